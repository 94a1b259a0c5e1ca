//! The fuzzers: `cargo fuzz` with the pinned nightly, on the seeds and the inputs that were found before.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{exists, isolated, output, run, say, shown},
    run::{ensure_bpffs, ensure_root},
    toolchain::{NIGHTLY, nightly, with_nightly},
    workspace,
};

/// The version of cargo-fuzz.
const VERSION: &str = "0.13.2";

/// What is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// A policy file, and a file of a set: the parser, the lints, the compiler
    Policy,
    /// A frame, judged by three policies: the kernel, the parser on the host, and a reading of its own
    Packet,
    /// What comes over the control socket of an agent
    Request,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Packet => "packet",
            Self::Request => "request",
        }
    }

    /// What libFuzzer is told about it: how long an input may be in bytes and take in seconds, and its words.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Policy => &["-max_len=4096", "-timeout=20", "-dict=dictionaries/policy.dict"],
            Self::Packet => &["-max_len=512", "-timeout=20"],
            Self::Request => &["-max_len=4096", "-timeout=60", "-dict=dictionaries/request.dict"],
        }
    }
}

/// How to fuzz.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to fuzz
    #[arg(required_unless_present = "check")]
    target: Option<Target>,
    /// Fuzz nothing: fail if one of the fuzzers does not compile
    #[arg(long)]
    check: bool,
    /// Stop after so many inputs
    #[arg(long, value_name = "COUNT")]
    runs: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Fuzz nothing: try this one input, such as one that was found
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check", "runs", "seconds"])]
    r#try: Option<PathBuf>,
    /// Options of libFuzzer's own, such as -jobs=2
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// Fuzzes until something is found, or it is enough.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    let target = match options.target {
        Some(target) if !options.check => target,
        _ => return check(),
    };
    ensure_root("fuzz")?;
    ensure_bpffs()?;
    nightly()?;
    let program = cargo_fuzz()?;
    let root = workspace::root()?;
    let fuzz = root.join("fuzz");
    let name = target.name();
    // What is found goes into the first of them, which is not kept; the others are.
    let directories = ["corpus", "seeds", "regressions"].map(|kind| fuzz.join(kind).join(name));
    for directory in &directories {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut command = with_nightly(&program.to_string_lossy());
    command.current_dir(&fuzz).args(["run", "--sanitizer", "none", name]);
    match &options.r#try {
        Some(input) => {
            let input = fs::canonicalize(input)
                .with_context(|| format!("there is no input {}", input.display()))?;
            command.arg(input);
        }
        None => {
            command.args(&directories);
        }
    }
    command.arg("--").args(target.options()).arg("-rss_limit_mb=2048");
    command.args(options.runs.map(|runs| format!("-runs={runs}")));
    command.args(options.seconds.map(|seconds| format!("-max_total_time={seconds}")));
    command.args(&options.options);
    let known = artifacts(&fuzz, name);
    let status = command.status().with_context(|| format!("cannot run {}", shown(&command)))?;
    if status.success() {
        return Ok(());
    }
    let new: Vec<PathBuf> =
        artifacts(&fuzz, name).into_iter().filter(|it| !known.contains(it)).collect();
    let Some(found) = new.first() else {
        bail!("{name}: the fuzzer ended by itself, and kept nothing: {status}");
    };
    let found = found.strip_prefix(&root).unwrap_or(found).display();
    bail!(
        "{name}: something was found, and is in {found}\n\
         again: cargo xtask fuzz {name} --try {found}\n\
         once it is understood, move it to fuzz/regressions/{name}/ under a name that says what it is: \
         `cargo xtask test` tries it from then on"
    );
}

/// What was found until now.
fn artifacts(fuzz: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(fuzz.join("artifacts").join(name));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Checks that all targets still compile, with the toolchain of everything else.
fn check() -> Result<()> {
    let root = workspace::root()?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&root).args(["clippy", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    // Most of it is there.
    command.arg("--target-dir").arg(root.join("target")).args(["--", "--deny", "warnings"]);
    run(&mut command)
}

/// The program cargo-fuzz; builds it if it is missing or does not run.
fn cargo_fuzz() -> Result<PathBuf> {
    let home = workspace::cache()?.join(format!("cargo-fuzz-{VERSION}"));
    let program = home.join("bin/cargo-fuzz");
    if is_pinned(&program) {
        return Ok(program);
    }
    if !exists("c++") {
        bail!(
            "no C++ compiler `c++`, which builds libFuzzer: \
             apt-get install -y --no-install-recommends g++"
        );
    }
    say(format!("building cargo-fuzz {VERSION} with {NIGHTLY} (about a minute)"));
    let mut install = with_nightly("cargo");
    install.args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--force", "--root"]);
    run(install.arg(&home))?;
    if !is_pinned(&program) {
        bail!("cargo-fuzz was built, yet `cargo-fuzz --version` does not say {VERSION}");
    }
    Ok(program)
}

fn is_pinned(program: &Path) -> bool {
    output(isolated(program).arg("--version"))
        .is_ok_and(|version| version.trim_end().ends_with(VERSION))
}
