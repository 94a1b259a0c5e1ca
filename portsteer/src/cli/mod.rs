//! The command line: arguments, rendering, exit codes.
//!
//! Exit codes: 0 done, 1 a negative answer, 2 bad input, 3 the kernel or the agent refused.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    agent::{self, LoadedPolicy},
    dataplane::{self, Applied, Detached, Error as DataplaneError, Instance, OBJECT_DIGEST},
    demo,
    policy::diagnostic::{self, Diagnostic, Source},
};

mod check;
mod explain;
mod listings;
mod table;

/// A negative answer.
const NEGATIVE: u8 = 1;
/// Bad input.
const BAD_INPUT: u8 = 2;
/// The kernel or the agent refused.
const REFUSED: u8 = 3;

/// Steers packets by port, at the network interface.
///
/// An XDP program passes, drops or steers every packet by its destination port before the kernel's
/// network stack has spent anything on it, as one policy file says. The program stays in force
/// when the agent ends; `portsteer detach` takes it off.
#[derive(Debug, Parser)]
#[command(name = "portsteer", version, long_version = LONG_VERSION.as_str(), after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// `portsteer 0.1.0` and the digest of the embedded object.
static LONG_VERSION: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!("{}\neBPF object: sha256 {OBJECT_DIGEST}", env!("CARGO_PKG_VERSION"))
});

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 a negative answer, 2 bad input, 3 the kernel or the agent refused.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a small network of its own, steer real traffic through it, show what happened.
    ///
    /// Needs root. Touches no interface of this host and leaves nothing behind.
    Demo {
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a policy file: no privileges needed, nothing is changed.
    ///
    /// Exit code 0: fine. 1: warnings, with --strict. 2: errors.
    Check {
        #[command(flatten)]
        options: check::Options,
    },
    /// Say what a policy does with a packet, and why: no privileges needed.
    ///
    /// For example: portsteer explain --policy policy.toml 'tcp 203.0.113.9:51000 -> 192.0.2.10:443'
    Explain {
        #[command(flatten)]
        options: explain::Options,
    },
    /// Put a policy in force and keep it so, in the foreground.
    ///
    /// SIGHUP reads the file again and swaps the policy in whole; a file with errors changes
    /// nothing. SIGTERM ends the agent and leaves the dataplane in force, unless --for was given.
    /// Ctrl-C takes it off.
    Agent {
        /// The policy file.
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// Take the dataplane off after this time, such as 60s or 5m, or when the agent is ended
        /// before: the safety net for first tries. A number alone means seconds.
        #[arg(long = "for", value_name = "TIME", value_parser = lifetime)]
        lifetime: Option<Duration>,
        #[command(flatten)]
        instance: InstanceArgument,
    },
    /// Show what is attached where, and where it steers to. Needs no agent.
    ///
    /// Exit code 1: nothing is attached.
    Status {
        #[command(flatten)]
        listing: Listing,
    },
    /// Show what was counted per rule, target, reason and interface. Needs no agent.
    ///
    /// Exit code 1: nothing is attached.
    Stats {
        #[command(flatten)]
        listing: Listing,
    },
    /// Take the dataplane off all its interfaces, with or without an agent.
    ///
    /// Exit code 1: nothing is attached.
    Detach {
        #[command(flatten)]
        instance: InstanceArgument,
    },
}

#[derive(Debug, Args)]
struct Listing {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    instance: InstanceArgument,
}

#[derive(Debug, Args)]
struct InstanceArgument {
    /// Which dataplane: several can live side by side under different names.
    #[arg(long, value_name = "NAME", default_value = Instance::DEFAULT, value_parser = instance)]
    instance: Instance,
}

fn instance(name: &str) -> Result<Instance, String> {
    Instance::new(name).map_err(|error| error.to_string())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if lifetime.is_zero() {
        return Err("a time of zero leaves nothing to try".to_owned());
    }
    // Beyond a century the timer's arithmetic is not worth its while.
    Ok(lifetime.min(Duration::from_secs(100 * 365 * 86_400)))
}

/// The arguments as data, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let code = match Arguments::parse().command {
        Command::Demo { json } => return run_demo(json),
        Command::Check { options } => check::run(&options),
        Command::Explain { options } => explain::run(&options),
        Command::Agent { policy, lifetime, instance } => {
            run_agent(agent::Options { policy, instance: instance.instance, lifetime })
        }
        Command::Status { listing } => {
            let attached = |status: &dataplane::Status| {
                status.interfaces.iter().any(|interface| interface.attached)
            };
            run_listing(&listing, dataplane::read_status, listings::status, attached)
        }
        Command::Stats { listing } => {
            run_listing(&listing, dataplane::read_stats, listings::stats, |_| true)
        }
        Command::Detach { instance } => run_detach(&instance.instance),
    };
    ExitCode::from(code)
}

fn run_demo(json: bool) -> ExitCode {
    match demo::run(&demo::DemoOptions { json }) {
        Ok(code) => code,
        // Whoever reads along has seen enough.
        Err(demo::DemoError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error.to_string(), None);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_agent(options: agent::Options) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the agent cannot start: {error}"), None);
            return REFUSED;
        }
    };
    let mut log = AgentLog { instance: options.instance.clone(), lifetime: options.lifetime };
    match runtime.block_on(agent::run(options, &mut log)) {
        Ok(()) => 0,
        Err(error) => {
            show_error(&error);
            match error {
                agent::Error::Unreadable { .. }
                | agent::Error::Policy { .. }
                | agent::Error::Dataplane(DataplaneError::Compile(_)) => BAD_INPUT,
                agent::Error::Dataplane(_) | agent::Error::Signals(_) | agent::Error::Events(_) => {
                    REFUSED
                }
            }
        }
    }
}

fn run_listing<T: serde::Serialize>(
    listing: &Listing,
    read: impl Fn(&Instance) -> Result<T, DataplaneError>,
    render: impl Fn(&T) -> String,
    is_positive: impl Fn(&T) -> bool,
) -> u8 {
    let code = |value: &T| if is_positive(value) { 0 } else { NEGATIVE };
    match read(&listing.instance.instance) {
        Ok(value) if listing.json => match serde_json::to_string_pretty(&value) {
            Ok(json) => print(&format!("{json}\n"), code(&value)),
            Err(error) => {
                complain(&format!("writing JSON: {error}"), None);
                REFUSED
            }
        },
        Ok(value) => print(&render(&value), code(&value)),
        Err(error) => fail(&error),
    }
}

fn run_detach(instance: &Instance) -> u8 {
    match dataplane::detach(instance) {
        Ok(Detached { interfaces, notes }) => {
            let mut text = format!("detached from {}\n", interfaces.join(", "));
            notes.iter().for_each(|note| text.extend([note, "\n"]));
            print(&text, 0)
        }
        Err(error) => fail(&error),
    }
}

/// Says what the dataplane refused.
fn fail(error: &DataplaneError) -> u8 {
    complain(&error.to_string(), error.help().as_deref());
    if matches!(error, DataplaneError::NotAttached(_)) { NEGATIVE } else { REFUSED }
}

/// What the agent says while it runs, on standard error.
struct AgentLog {
    instance: Instance,
    lifetime: Option<Duration>,
}

impl agent::Reporter for AgentLog {
    fn applied(&mut self, loaded: &LoadedPolicy, applied: &Applied) {
        show_diagnostics(&loaded.path, &loaded.text, &loaded.warnings);
        for attached in &applied.attached {
            let word = agent::change_word(attached.change);
            self.note(&format!("{word} {} ({} mode)", attached.name, attached.mode.name()));
            if let Some(why) = &attached.native_refused {
                self.note(&format!("generic mode, because {why}"));
            }
        }
        for note in &applied.notes {
            self.note(note);
        }
        for name in &applied.detached {
            self.note(&format!("detached from {name}"));
        }
        for (label, counter) in &applied.removed {
            let (packets, bytes) = (counter.packets, counter.bytes);
            self.note(&format!(
                "rule `{label}` is gone; it counted {packets} packets, {bytes} bytes"
            ));
        }
        let rules = listings::count(loaded.policy.rules.len(), "rule");
        let default = loaded.policy.default.name();
        self.note(&format!("{} in force: {rules}, default {default}", loaded.path.display()));
        if let Some(lifetime) = self.lifetime.take() {
            self.note(&format!(
                "taking it off after {}; Ctrl-C does so at once",
                humantime::format_duration(lifetime)
            ));
        }
    }

    fn refused(&mut self, error: &agent::Error) {
        show_error(error);
        self.note("nothing was changed");
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(io::stderr(), "portsteer[{}]: {text}", self.instance.name());
    }
}

fn show_error(error: &agent::Error) {
    match error {
        agent::Error::Unreadable { path, source } => {
            complain(&format!("{}: {source}", path.display()), None);
        }
        agent::Error::Policy { path, text, diagnostics } => {
            show_diagnostics(path, text, diagnostics);
        }
        agent::Error::Dataplane(error) => {
            complain(&error.to_string(), error.help().as_deref());
        }
        agent::Error::Signals(error) => complain(&format!("listening for signals: {error}"), None),
        agent::Error::Events(error) => {
            complain(&format!("following the network's changes: {error}"), None);
        }
    }
}

fn show_diagnostics(path: &Path, text: &str, diagnostics: &[Diagnostic]) {
    if diagnostics.is_empty() {
        return;
    }
    let source = Source { name: path.display().to_string(), text: text.to_owned() };
    let mut stderr = io::stderr();
    let color = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let text = diagnostic::render(&source, diagnostics, color);
    let _ = writeln!(stderr, "{}", text.trim_end());
}

fn complain(message: &str, help: Option<&str>) {
    let mut stderr = io::stderr();
    let _ = writeln!(stderr, "portsteer: error: {message}");
    if let Some(help) = help {
        let _ = writeln!(stderr, "  help: {help}");
    }
}

/// Prints to standard output; a reader that has gone away is no error.
/// Prints the answer. Returns `code`, unless the answer was lost.
fn print(text: &str, code: u8) -> u8 {
    let mut output = io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // Whoever reads along has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            complain(&format!("writing the answer: {error}"), None);
            REFUSED
        }
        Ok(()) => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn lifetimes() {
        assert_eq!(lifetime("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(lifetime("90"), Ok(Duration::from_secs(90)));
        assert_eq!(lifetime("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["", "0", "0s", "-5s", "soon", "5 parsecs"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
