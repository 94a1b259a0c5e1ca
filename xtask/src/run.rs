//! The README's commands: the demo, all tests, and the benchmark.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{self, Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    before, ebpf,
    process::{is_root, run, say, shown},
    workspace,
};

/// Runs `portsteer demo` and passes its exit code on.
pub(crate) fn demo(arguments: &[String]) -> Result<ExitCode> {
    ensure_root("demo")?;
    let mut command = cargo()?;
    command.args(["run", "--release", "--quiet", "--package", "portsteer", "--", "demo"]);
    // It keeps its standard input: it may be watched by somebody.
    exit_code_of(command.args(arguments))
}

/// What `bench` is asked for. The benchmark itself understands the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// Only these contests: --list has their names. Without any, all of them
    #[arg(value_name = "CONTEST")]
    contests: Vec<String>,
    /// Only the row with this name, or those that have this in their names, and what they are compared with
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Measure nothing: list all contests and their rows
    #[arg(long)]
    list: bool,
    /// Fewer rounds: at least 15 all the same
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Keep the figures in results.json in this directory, draw pictures of them there, and write tables of them
    /// into benchmarks.md beside it
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["only", "list"])]
    write: Option<PathBuf>,
    /// Measure nothing: make pictures and tables anew from what is kept in this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["write", "list", "only", "contests"])]
    redraw: Option<PathBuf>,
}

/// Measures, and passes the exit code on.
pub(crate) fn bench(options: &Bench) -> Result<ExitCode> {
    if !options.list && options.redraw.is_none() {
        ensure_root("bench")?;
    }
    let mut command = cargo()?;
    // Not quietly: building it takes minutes.
    command.args(["bench", "--package", "portsteer", "--bench", "dataplane", "--"]);
    for (option, is_asked) in
        [("--list", options.list), ("--quick", options.quick), ("--json", options.json)]
    {
        command.args(is_asked.then_some(option));
    }
    for row in &options.only {
        command.arg(format!("--only={row}"));
    }
    for (option, directory) in [("--write", &options.write), ("--redraw", &options.redraw)] {
        if let Some(directory) = directory {
            // Cargo runs it somewhere else.
            command.arg(option).arg(path::absolute(directory)?);
        }
    }
    exit_code_of(command.args(&options.contests))
}

fn exit_code_of(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs all tests: the object's digest, then the tests of every crate. The arguments go to cargo.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    ensure_root("test")?;
    ensure_bpffs()?;
    ebpf::check_digest()?;
    let before = before::binary()?;
    let is_shallow = before.is_none() && before::is_shallow()?;
    // The whole workspace, with the parts of the eBPF crate that do not touch the kernel.
    run(cargo()?
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .args(arguments)
        .envs(before.map(|binary| (before::VARIABLE, binary)))
        .envs(is_shallow.then_some((before::SHALLOW, "1"))))
}

/// The tests that can go on for as long as they are told to, which share the time: by test binary.
const SOAKED: [(&str, &[&str]); 3] = [
    (
        "verdicts",
        &[
            "differential::the_compiled_tables_agree_with_the_oracle",
            "differential::the_kernel_agrees_with_the_oracle_on_random_policies",
        ],
    ),
    ("soak", &["every_packet_is_accounted_for_whatever_happens"]),
    ("agent", &["trials::at_the_deadline_a_trial_is_confirmed_or_over"]),
];

/// The test that kills more agents then, by its binary.
const KILLED: (&str, &[&str]) =
    ("agent", &["kills::an_agent_killed_at_any_moment_of_an_apply_leaves_one_policy_whole"]);

/// What the first of them say at their ends begins with this, a line each.
const COMPARED: &str = "compared: ";
/// What the other one says at its end begins with this, and goes on for as long as lines are indented.
const ACCOUNT: &str = "account: ";

/// For a third of so many minutes, has random policies judge random packets, for another lets everything
/// happen at once, under traffic that is accounted for, and for the last has trials end at all moments; then kills agents. Says at the end how many packets were
/// compared, and the account.
pub(crate) fn soak(minutes: u32) -> Result<()> {
    ensure_root("test --soak")?;
    ensure_bpffs()?;
    ebpf::check_digest()?;
    let share = f64::from(minutes) / SOAKED.len() as f64;
    let mut told = Vec::new();
    for (binary, tests) in SOAKED.iter().chain([&KILLED]) {
        let (said, outcome) = soak_in(binary, tests, share)?;
        told.extend(said);
        if let Err(error) = outcome {
            told.iter().for_each(say);
            return Err(error);
        }
    }
    told.iter().for_each(say);
    let count = |beginning| told.iter().filter(|line| line.starts_with(beginning)).count();
    match (count(COMPARED), count(ACCOUNT)) {
        (2, 1) => Ok(()),
        (compared, accounts) => bail!(
            "two tests were to compare and one to account for packets; {compared} and {accounts} did"
        ),
    }
}

/// Runs tests of one binary, and returns what they say at their ends, and how that was.
fn soak_in(binary: &str, tests: &[&str], minutes: f64) -> Result<(Vec<String>, Result<()>)> {
    let mut command = cargo()?;
    command
        .args(["test", "--release", "--locked", "--package", "portsteer", "--test", binary])
        .args(["--", "--exact", "--nocapture", "--test-threads", "2"])
        .args(tests)
        .env("PORTSTEER_SOAK_MINUTES", minutes.to_string())
        .stderr(Stdio::piped());
    let shown = shown(&command);
    let cannot_run = || format!("cannot run {shown}");
    let mut child = command.spawn().with_context(cannot_run)?;
    let mut said = Vec::new();
    let mut is_in_account = false;
    for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
        let line = line.with_context(cannot_run)?;
        eprintln!("{line}");
        is_in_account = line.starts_with(ACCOUNT) || is_in_account && line.starts_with("  ");
        said.extend((is_in_account || line.starts_with(COMPARED)).then_some(line));
    }
    let status = child.wait().with_context(cannot_run)?;
    let outcome = match status.success() {
        true => Ok(()),
        false => Err(anyhow!("{shown} failed: {status}")),
    };
    Ok((said, outcome))
}

/// The cargo that runs xtask, in the workspace.
fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root()?);
    Ok(command)
}

pub(crate) fn ensure_root(command: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "loading programs into the kernel and making network namespaces needs root: \
         sudo env PATH=\"$PATH\" cargo xtask {command}"
    )
}

/// Pins live in the BPF file system, which not every machine mounts by itself.
pub(crate) fn ensure_bpffs() -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let is_mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    });
    if is_mounted {
        return Ok(());
    }
    if !Path::new(BPFFS).exists() {
        bail!("this kernel has no {BPFFS}: it was built without CONFIG_BPF_SYSCALL");
    }
    let mut mount = Command::new("mount");
    mount.args(["-t", "bpf", "-o", "mode=0700", "bpf", BPFFS]);
    say(format!("{BPFFS} is not mounted: {}", shown(&mount)));
    run(&mut mount)
}
