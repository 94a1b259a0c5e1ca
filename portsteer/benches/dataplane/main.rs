//! What a packet costs, in nanoseconds and in packets per second, beside the peers that are
//! installed: `cargo xtask bench`.
//!
//! Every figure is the median of interleaved rounds: in each round every program runs once, between
//! two runs of a simpler one, and what counts is the difference or ratio to those two. The
//! kernel puts a program's code wherever there is room, and a bad place costs a nanosecond: so the
//! rounds come in batches, and in each all programs are loaded anew, in another order. A figure of
//! another day or machine tells nothing.
//!
//! [`contest`] says who is compared with whom, [`contestants`] how each is loaded, [`arena`] has the
//! network that they meet on; [`nanoseconds`] and [`live`] measure and report. [`rotation`] has many
//! packets instead of one, [`policies`] are what they are judged by. [`compilation`] and [`edits`] measure
//! what a packet does not wait for: until a policy can be put in force, and an edit of a large set. [`daemon`]
//! has the agent as a process, and its clients.

mod arena;
mod compilation;
mod contest;
mod contestants;
mod daemon;
mod edits;
mod family;
mod instructions;
mod live;
mod nanoseconds;
mod policies;
mod probes;
mod programs;
mod random;
mod rotation;
mod statistics;

use std::{fmt::Write as _, fs, process::ExitCode};

use serde_json::{Value, json};

use compilation::Compilation;
use daemon::Daemon;
use edits::Edits;

/// The destination port of the packets that every program under test drops or steers.
const PORT: u16 = 9;

/// One of those that can be named on the command line.
trait Measured {
    fn name(&self) -> &'static str;

    /// Sets everything up anew and measures some rounds.
    fn batch(&mut self, number: usize, rounds: &Rounds) -> Result<()>;

    /// What was measured in all batches.
    fn reports(&self) -> Result<Vec<Report>>;

    /// Who could not be had, and why.
    fn absent(&self) -> &[String];
}

/// How many times everything is set up, and the rounds that follow each time: of test runs and of
/// live frames. At least 15 pairs make a figure.
struct Rounds {
    batches: usize,
    test_runs: usize,
    live: usize,
}

const ROUNDS: Rounds = Rounds { batches: 20, test_runs: 3, live: 2 };
const QUICK: Rounds = Rounds { batches: 5, test_runs: 3, live: 3 };

struct Report {
    /// The list that it belongs to in the JSON.
    list: &'static str,
    text: String,
    json: Value,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    // Cargo adds an option of its own.
    let (options, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    let asked = |wanted: &str| options.iter().any(|option| option == wanted);
    let rounds = if asked("--quick") { QUICK } else { ROUNDS };
    match run(&rounds, &names) {
        Ok((text, json)) => {
            if asked("--json") {
                println!("{json:#}");
            } else {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the benchmark failed: {error}");
            ExitCode::from(3)
        }
    }
}

/// Everything, or the contests with these names.
fn run(rounds: &Rounds, names: &[String]) -> Result<(String, Value)> {
    let mut all: Vec<Box<dyn Measured>> =
        vec![Box::new(Compilation::new()), Box::new(Edits::new()), Box::new(Daemon::default())];
    all.splice(0..0, contest::all()?.into_iter().map(|contest| Box::new(contest) as _));
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|one| one.name() != **name)) {
        let mut known: Vec<&str> = all.iter().map(|one| one.name()).collect();
        known.dedup();
        return Err(format!("there is no {unknown}, only {}", known.join(", ")).into());
    }
    all.retain(|one| names.is_empty() || names.iter().any(|name| name == one.name()));
    for batch in 0..rounds.batches {
        for one in &mut all {
            one.batch(batch, rounds)?;
        }
    }

    let mut text = String::new();
    let mut json = json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "batches": rounds.batches,
        "rounds": rounds.batches * rounds.test_runs,
        "live_rounds": rounds.batches * rounds.live,
        "test_runs": [], "live_frames": [], "compilations": [], "edits": [], "daemon": [],
    });
    let mut absent = Vec::new();
    for one in &all {
        for report in one.reports()? {
            text.push_str(&report.text);
            json[report.list].as_array_mut().ok_or("no such list")?.push(report.json);
        }
        for name in one.absent() {
            if !absent.contains(&name) {
                absent.push(name);
            }
        }
    }
    for absent in &absent {
        writeln!(text, "not measured: {absent}")?;
    }
    json["not_measured"] = json!(absent);
    Ok((text, json))
}
