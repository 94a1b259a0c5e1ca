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
//! network that they meet on; [`nanoseconds`], [`live`], [`curves`] and [`cores`] measure and report, the last three
//! with a [`stream`] of live frames. [`rotation`] has many packets instead of one, [`policies`] are what they are
//! judged by, and [`growth`] has those of many sizes. [`compilation`] and [`edits`] measure what a packet does not
//! wait for: until a policy can be put in force, and an edit of a large set. [`daemon`] has the agent as a
//! process, and its clients, [`swaps`] the same while packets come, and [`memory`] what all of it takes.
//!
//! [`results`] keeps figures; [`pictures`] and [`page`] are made from what is kept.

mod arena;
mod commands;
mod compilation;
mod contest;
mod contestants;
mod cores;
mod curves;
mod daemon;
mod edits;
mod family;
mod flood;
mod growth;
mod instructions;
mod live;
mod machine;
mod memory;
mod nanoseconds;
mod page;
mod pictures;
mod policies;
mod probes;
mod programs;
mod results;
mod rotation;
mod selection;
mod statistics;
mod stream;
mod swaps;

use std::{
    fmt::Write as _,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use serde_json::{Map, Value, json};

use compilation::Compilation;
use daemon::Daemon;
use edits::Edits;
use machine::Machine;
use memory::Memory;
use selection::Selection;
use swaps::Swaps;

/// The destination port of the packets that every program under test drops or steers.
const PORT: u16 = 9;

/// One of those that can be named on the command line.
trait Measured {
    fn name(&self) -> &'static str;

    /// What can be asked for by itself.
    fn rows(&self) -> Vec<String>;

    /// Leaves out the rows that are not wanted, and not needed by those that are.
    fn keep(&mut self, wanted: &dyn Fn(&str) -> bool);

    /// Sets everything up anew and measures some rounds.
    fn batch(&mut self, number: usize, rounds: &Rounds) -> Result<()>;

    /// What was measured in all batches.
    fn reports(&self) -> Result<Vec<Report>>;

    /// Who could not be had, and why.
    fn absent(&self) -> &[String];

    /// What should not have happened.
    fn failures(&self) -> &[String] {
        &[]
    }
}

/// How many times everything is set up, and the rounds that follow each time: of test runs and of
/// live frames. At least 15 pairs make a figure.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    batches: usize,
    test_runs: usize,
    live: usize,
}

const ROUNDS: Rounds = Rounds { batches: 20, test_runs: 3, live: 2 };
const QUICK: Rounds = Rounds { batches: 5, test_runs: 3, live: 3 };

/// The kinds of reports, each with a list in the JSON.
const LISTS: [&str; 9] = [
    "test_runs",
    "live_frames",
    "curves",
    "cores",
    "compilations",
    "edits",
    "daemon",
    "swaps",
    "memory",
];

struct Report {
    /// One of [`LISTS`].
    list: &'static str,
    text: String,
    json: Value,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What is measured, and what is done with it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// The names of contests; without any, all of them
    contests: Vec<String>,
    /// Only the row with this name, or those whose names have this in them, beside what they are compared with
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Measure nothing: list all contests and their rows
    #[arg(long)]
    list: bool,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Keep the figures in results.json in this directory, with pictures, and write them into the tables of
    /// benchmarks.md beside it
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["only", "list"])]
    write: Option<PathBuf>,
    /// Measure nothing: make pictures and tables anew from what is kept in this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["write", "list", "only", "contests"])]
    redraw: Option<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            failures.iter().for_each(|failure| eprintln!("the benchmark failed: {failure}"));
            ExitCode::from(3)
        }
        Err(error) => {
            eprintln!("the benchmark failed: {error}");
            ExitCode::from(3)
        }
    }
}

/// All that there is.
fn all() -> Result<Vec<Box<dyn Measured>>> {
    let mut all: Vec<Box<dyn Measured>> = Vec::new();
    all.extend(contest::all()?.into_iter().map(|contest| Box::new(contest) as _));
    all.push(Box::new(Compilation::new()));
    all.push(Box::new(Edits::new()));
    all.push(Box::new(Daemon::default()));
    all.push(Box::new(Swaps::of_portsteer()));
    all.push(Box::new(Swaps::of_nftables()));
    all.push(Box::new(Memory::new()));
    Ok(all)
}

/// Does what was asked for, and says what of it has failed.
fn run(arguments: &Arguments) -> Result<Vec<String>> {
    if let Some(directory) = &arguments.redraw {
        results::redraw(directory)?;
        return Ok(Vec::new());
    }
    let mut all = all()?;
    let selection = Selection { contests: &arguments.contests, only: &arguments.only };
    selection.apply(&mut all)?;
    if arguments.list {
        print!("{}", selection::listing(&all));
        return Ok(Vec::new());
    }
    if let Some(directory) = &arguments.write {
        results::prepare(directory)?;
    }
    let rounds = if arguments.quick { QUICK } else { ROUNDS };
    let mut failures = measure(&mut all, &rounds);
    failures.extend(all.iter().flat_map(|one| one.failures()).cloned());

    let machine = Machine::here()?;
    let mut text = String::new();
    let mut json = json!({
        "kernel": machine.json["kernel"], "machine": machine.json, "batches": rounds.batches,
        "rounds": rounds.batches * rounds.test_runs, "live_rounds": rounds.batches * rounds.live,
    });
    for list in LISTS {
        json[list] = json!([]);
    }
    let mut contests = Map::new();
    let mut all_absent = Vec::new();
    for one in &all {
        let contest = contests.entry(one.name()).or_insert_with(
            || json!({ "machine": machine.json, "reports": [], "not_measured": [] }),
        );
        for Report { list, text: reported, json: mut report } in one.reports()? {
            text.push_str(&reported);
            json[list].as_array_mut().ok_or("no such list")?.push(report.clone());
            report["kind"] = json!(list);
            contest["reports"].as_array_mut().ok_or("no reports")?.push(report);
        }
        for absent in one.absent() {
            let list = contest["not_measured"].as_array_mut().ok_or("no such list")?;
            if !list.contains(&json!(absent)) {
                list.push(json!(absent));
            }
            if !all_absent.contains(absent) {
                all_absent.push(absent.clone());
            }
        }
    }
    for absent in &all_absent {
        writeln!(text, "not measured: {absent}")?;
    }
    json["not_measured"] = json!(all_absent);
    if arguments.json {
        println!("{json:#}");
    } else {
        println!("{text}{}", machine.text);
    }
    if let Some(directory) = &arguments.write {
        // Of whom nothing was measured, what was there before is kept.
        contests.retain(|_, contest| contest["reports"] != json!([]));
        results::write(directory, contests)?;
    }
    Ok(failures)
}

/// Runs all batches, and says on standard error how far that is. Who fails is left out from then on.
fn measure(all: &mut [Box<dyn Measured>], rounds: &Rounds) -> Vec<String> {
    let start = Instant::now();
    let mut failures = Vec::new();
    let mut failed = vec![false; all.len()];
    for batch in 0..rounds.batches {
        for (one, failed) in all.iter_mut().zip(&mut failed).filter(|(_, failed)| !**failed) {
            let before = Instant::now();
            let outcome = contained(|| one.batch(batch, rounds));
            if let Err(error) = outcome {
                failures.push(format!("{}: {error}", one.name()));
                *failed = true;
            }
            let took = before.elapsed().as_secs_f64();
            if took > 0.01 {
                eprintln!(
                    "{:>5.0} s: batch {} of {}, {}, {took:.1} s",
                    start.elapsed().as_secs_f64(),
                    batch + 1,
                    rounds.batches,
                    one.name(),
                );
            }
        }
    }
    failures
}

/// Does something with tools of the tests, which panic where they are surprised.
fn contained<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(said.unwrap_or("it panicked").into())
    })
}
