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
    agent,
    api::ApplyAnswer,
    dataplane::{Applied, Error as DataplaneError, Instance, OBJECT_DIGEST},
    demo,
    policy::diagnostic::{self, Diagnostic, Source},
};

mod check;
mod client;
mod edits;
mod explain;
mod listings;
mod looking;
mod printable;
mod running;
mod table;
mod way_here;

use client::AgentArgument;
use printable::{on_one_line, printable};

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
    format!("{}\neBPF object: sha256 {}", env!("CARGO_PKG_VERSION"), *OBJECT_DIGEST)
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
    /// Put a policy in force and keep it so, and serve the control socket.
    ///
    /// SIGHUP reads the file again and swaps the policy in whole; a file with errors changes
    /// nothing. SIGTERM ends the agent and leaves the dataplane in force, unless --for was given.
    /// Ctrl-C takes it off.
    Agent {
        #[command(flatten)]
        options: AgentOptions,
    },
    /// Replace the policy in force, whole or not at all.
    Apply {
        #[command(flatten)]
        options: running::ApplyOptions,
    },
    /// Keep the policy that is on trial when the command begins, and no other.
    ///
    /// Exit code 1: nothing is on trial. 3: what is in force has changed meanwhile, and nothing is confirmed.
    Confirm {
        #[command(flatten)]
        options: running::DoneOptions,
    },
    /// End the trial that is under way when the command begins, or go back to the policy that was accepted before.
    ///
    /// Exit code 1: there is none to go back to. 3: what is in force has changed meanwhile, and stays.
    Rollback {
        #[command(flatten)]
        options: running::RollbackOptions,
    },
    /// Compare the policy in force with a file: `-` is in force, `+` would come.
    ///
    /// Exit code 0: they mean the same. 1: they do not, or nothing is in force.
    Diff {
        #[command(flatten)]
        options: running::DiffOptions,
    },
    /// Print the policy in force, edits at the prompt included.
    ///
    /// Exit code 1: nothing is in force.
    Show {
        #[command(flatten)]
        options: running::ShowOptions,
    },
    /// Edit the rules in force.
    #[command(subcommand)]
    Rule(edits::RuleCommand),
    /// Edit the sets of addresses in force.
    #[command(subcommand)]
    Set(edits::SetCommand),
    /// Pass, drop or steer ports: a short form of `rule add`, before all other rules.
    ///
    /// For example: portsteer port drop 3306 5432 domain/udp
    Port {
        #[command(flatten)]
        options: edits::PortOptions,
    },
    /// Show what is attached where, where it steers to, and what the agent knows. Needs no agent.
    ///
    /// Exit code 1: nothing is attached.
    Status {
        #[command(flatten)]
        listing: Listing,
    },
    /// Show what was counted per rule, target, reason and interface. Needs no agent.
    ///
    /// Exit code 1: nothing is in force.
    Stats {
        #[command(flatten)]
        listing: Listing,
    },
    /// Take the dataplane off all its interfaces, with or without an agent.
    ///
    /// Exit code 1: nothing is attached.
    Detach {
        #[command(flatten)]
        options: running::DetachOptions,
    },
}

#[derive(Debug, Args)]
struct AgentOptions {
    /// The policy file: put in force at the start, and again at SIGHUP.
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    policy: Option<PathBuf>,
    /// Start with what is in force already, else with what was accepted last, and with the policy file only where
    /// there is neither: for service managers.
    #[arg(long, conflicts_with = "lifetime")]
    resume: bool,
    /// Take the dataplane off after this time, such as 60s or 5m, or when the agent is ended
    /// before: the safety net for first tries. A number alone means seconds. Nothing is kept.
    /// It listens at no socket.
    #[arg(long = "for", value_name = "TIME", value_parser = lifetime, conflicts_with = "socket")]
    lifetime: Option<Duration>,
    /// The agent's settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen; the default is /run/portsteer/agent.sock.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where policies are kept for the next start.
    #[arg(long, value_name = "DIRECTORY", default_value = agent::DEFAULT_DIRECTORY)]
    state_dir: PathBuf,
    /// Keep nothing, and listen at no socket.
    #[arg(long, conflicts_with_all = ["socket", "resume"])]
    ephemeral: bool,
    #[command(flatten)]
    instance: InstanceArgument,
}

#[derive(Debug, Args)]
struct Listing {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

#[derive(Debug, Args)]
struct InstanceArgument {
    /// Which dataplane: several can live side by side under different names. It is `main` if none is named.
    #[arg(long, value_name = "NAME", value_parser = instance)]
    instance: Option<Instance>,
}

impl InstanceArgument {
    /// The instance that is meant.
    fn get(&self) -> Instance {
        self.instance.clone().unwrap_or_default()
    }
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
        Command::Agent { options } => run_agent(options),
        Command::Apply { options } => running::apply(&options),
        Command::Confirm { options } => running::confirm(&options),
        Command::Rollback { options } => running::rollback(&options),
        Command::Diff { options } => running::diff(&options),
        Command::Show { options } => running::show(&options),
        Command::Rule(command) => edits::rule(command),
        Command::Set(command) => edits::set(command),
        Command::Port { options } => edits::port(options),
        Command::Status { listing } => looking::status(&listing),
        Command::Stats { listing } => looking::stats(&listing),
        Command::Detach { options } => running::detach(&options),
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

fn run_agent(options: AgentOptions) -> u8 {
    let AgentOptions { policy, resume, lifetime, config, socket, state_dir, ephemeral, instance } =
        options;
    let mut config = match config.as_deref().map(agent::Config::read).transpose() {
        Ok(config) => config.unwrap_or_default(),
        Err(message) => {
            complain(&message, None);
            return BAD_INPUT;
        }
    };
    config.socket = socket.or(config.socket);
    let instance = instance.get();
    let options = agent::Options {
        policy,
        resume,
        instance: instance.clone(),
        lifetime,
        config,
        // A trial is nothing to start with the next time.
        state: (!ephemeral && lifetime.is_none()).then_some(state_dir),
    };
    let runtime = match agent::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the agent cannot start: {error}"), None);
            return REFUSED;
        }
    };
    let mut log = AgentLog { instance, lifetime };
    let own = Box::new(AgentLog { instance: log.instance.clone(), lifetime });
    let result = runtime.block_on(agent::run(options, own));
    // Whoever still looks into a request is not waited for.
    runtime.shutdown_background();
    match result {
        Ok(agent::Ended::Done) => 0,
        Ok(agent::Ended::WhileReading) => {
            agent::Reporter::note(
                &mut log,
                "ending while a policy was read, which is left alone; the dataplane stays in force",
            );
            0
        }
        Err(error) => {
            show_error(&error);
            match error {
                agent::Error::Unreadable { .. }
                | agent::Error::Policy { .. }
                | agent::Error::Dataplane(DataplaneError::Compile(_)) => BAD_INPUT,
                agent::Error::Refused(refusal) => exit_code(refusal.kind),
                _ => REFUSED,
            }
        }
    }
}

/// The exit code for a kind of refusal.
const fn exit_code(kind: crate::api::Kind) -> u8 {
    match kind {
        crate::api::Kind::Negative => NEGATIVE,
        crate::api::Kind::BadInput => BAD_INPUT,
        crate::api::Kind::Refused => REFUSED,
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
    fn applied(&mut self, answer: &ApplyAnswer) {
        if !answer.warnings.is_empty() {
            print_error(&answer.warnings);
        }
        for line in listings::applied(answer) {
            self.note(&line);
        }
        self.tell_lifetime();
    }

    fn taken_over(&mut self, desired: &agent::Desired, applied: &Applied) {
        for attached in &applied.attached {
            let word = agent::change_word(attached.change);
            self.note(&format!("{word} {} ({} mode)", attached.name, attached.mode.name()));
        }
        for note in &applied.notes {
            self.note(note);
        }
        for name in &applied.waiting {
            self.note(&format!("waiting for `{name}`, which does not exist"));
        }
        self.note(&format!(
            "taken over, {} in force: {}, default {}, generation {}",
            desired.record.path,
            listings::count(desired.policy.rules.len(), "rule"),
            desired.policy.default.name(),
            desired.generation
        ));
    }

    fn refused(&mut self, error: &agent::Error) {
        show_error(error);
        self.note("nothing was changed");
    }

    fn note(&mut self, text: &str) {
        let text = on_one_line(text);
        let _ = writeln!(io::stderr(), "portsteer[{}]: {text}", self.instance.name());
    }
}

impl AgentLog {
    fn tell_lifetime(&mut self) {
        if let Some(lifetime) = self.lifetime.take() {
            agent::Reporter::note(
                self,
                &format!(
                    "taking it off after {}; Ctrl-C does so at once",
                    humantime::format_duration(lifetime)
                ),
            );
        }
    }
}

/// Prints text for people to standard error.
fn print_error(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text.trim_end()));
}

fn show_error(error: &agent::Error) {
    match error {
        agent::Error::Unreadable { path, source } => {
            let help = agent::access::advice(path, source);
            complain(&format!("{}: {source}", path.display()), help.as_deref());
        }
        agent::Error::Policy { path, text, diagnostics } => {
            show_diagnostics(path, text, diagnostics);
        }
        agent::Error::Dataplane(error) => {
            complain(&error.to_string(), error.help().as_deref());
        }
        error => {
            let refusal = error.to_refusal();
            if let Some(details) = &refusal.details {
                print_error(details);
            }
            complain(&refusal.message, refusal.help.as_deref());
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
    let _ = writeln!(stderr, "portsteer: error: {}", on_one_line(message));
    if let Some(help) = help {
        let _ = writeln!(stderr, "  help: {}", on_one_line(help));
    }
}

/// Prints the answer. Returns `code`, unless the answer was lost.
fn print(text: &str, code: u8) -> u8 {
    print_raw(&printable(text), code)
}

/// Prints a policy's text as it is, where that is for a file and not for a terminal.
fn print_policy(text: &str) -> u8 {
    if io::stdout().is_terminal() { print(text, 0) } else { print_raw(text, 0) }
}

fn print_raw(text: &str, code: u8) -> u8 {
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
