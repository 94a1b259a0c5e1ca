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
//! network that they meet on; [`nanoseconds`] and [`live`] measure and report.

mod arena;
mod contest;
mod contestants;
mod live;
mod nanoseconds;
mod policies;
mod programs;
mod statistics;

use std::{fmt::Write as _, fs, process::ExitCode};

use serde_json::{Value, json};

/// The destination port of the packets that every program under test drops or steers.
const PORT: u16 = 9;

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
        Ok(report) => {
            if asked("--json") {
                println!("{:#}", report.json);
            } else {
                println!("{}", report.text);
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
fn run(rounds: &Rounds, names: &[String]) -> Result<Report> {
    let mut contests = contest::all();
    if let Some(unknown) =
        names.iter().find(|name| contests.iter().all(|contest| contest.name != **name))
    {
        let known: Vec<&str> = contests.iter().map(|contest| contest.name).collect();
        return Err(format!("there is no {unknown}, only {}", known.join(", ")).into());
    }
    contests.retain(|contest| names.is_empty() || names.iter().any(|name| name == contest.name));
    for batch in 0..rounds.batches {
        for contest in &mut contests {
            contest.batch(batch, rounds)?;
        }
    }

    let (mut text, mut test_runs, mut live_frames) = (String::new(), Vec::new(), Vec::new());
    let mut absent = Vec::new();
    for contest in &contests {
        for report in contest.tables()? {
            text.push_str(&report.text);
            test_runs.push(report.json);
        }
        if let Some(report) = contest.live()? {
            text.push_str(&report.text);
            live_frames.push(report.json);
        }
        for name in contest.absent() {
            if !absent.contains(&name) {
                absent.push(name);
            }
        }
    }
    for absent in &absent {
        writeln!(text, "not measured: {absent}")?;
    }
    let json = json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "batches": rounds.batches,
        "rounds": rounds.batches * rounds.test_runs,
        "live_rounds": rounds.batches * rounds.live,
        "test_runs": test_runs,
        "live_frames": live_frames,
        "not_measured": absent,
    });
    Ok(Report { text, json })
}
