//! `portsteer demo`: a client, a host and what is behind it, in namespaces of their own; the real
//! agent and the real program between them, real servers and real connections; and a table of where
//! each port led.
//!
//! The demo drives the product the way a user does: it starts this same executable as an agent and
//! asks it for its counters. Nothing of it stays, however it ends: the namespaces have no names,
//! the pins and files lie in private mounts, and the agent dies with the demo.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use self::{
    agent::Agent,
    counters::{Snapshot, Steered},
    network::{CLIENT, HOST, Network, UPLINK},
    rows::{Judged, ROWS, Row},
    servers::Servers,
    table::Report,
};
use crate::{dataplane, lab};

mod agent;
mod counters;
mod network;
mod probe;
mod rows;
mod servers;
mod table;

/// The policy that the demo runs, with [`SOME_CPUS`] for those of the machine.
const POLICY: &str = include_str!("policy.toml");
/// The line of the policy that has to be another on each machine.
const SOME_CPUS: &str = "cpus = [0]";

/// What `portsteer demo` was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct DemoOptions {
    /// JSON instead of a table.
    pub json: bool,
}

/// Why the demo could not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The kernel refused what the demo needs.
    #[error(
        "{0}\nThe demo makes network namespaces and loads a BPF program: run it as root (sudo portsteer demo), on Linux 6.1 or later."
    )]
    Refused(String),
    /// Something that the demo is there to show does not work.
    #[error("{0}")]
    Broken(String),
    /// By Ctrl-C or SIGTERM.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
    /// Input or output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl DemoError {
    /// The process's exit code for this.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 3,
            Self::Broken(_) | Self::Io(_) => 1,
            Self::Interrupted => 130,
        }
    }
}

/// What it all came to.
#[derive(Debug, Serialize)]
struct Summary {
    mode: String,
    kernel: String,
    seconds: f64,
    /// How many there were. In JSON the rows themselves stand there.
    #[serde(skip)]
    rows: usize,
    packets: u64,
    passed: u64,
    steered: u64,
    dropped: u64,
    /// In the policy's order.
    targets: Vec<Steered>,
    deviations: Vec<String>,
}

/// Runs the demo and prints what came of it: success if everything was as the policy says, 1 if
/// not. Afterwards the process no longer ends by SIGINT and SIGTERM, so it should end by itself.
///
/// # Errors
///
/// If the demo could not come to its end; [`DemoError::exit_code`] has the exit code.
pub fn run(options: &DemoOptions) -> Result<ExitCode, DemoError> {
    let interrupt = Interrupt::default();
    let finished = AtomicBool::new(false);
    let deviations = thread::scope(|scope| {
        interrupt.watch(scope, &finished)?;
        // A thread of its own, since its mounts change. The agent is bound to it.
        let outcome = scope.spawn(|| demonstrate(options, &interrupt)).join();
        finished.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(if deviations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the number of deviations.
fn demonstrate(options: &DemoOptions, interrupt: &Interrupt) -> Result<usize, DemoError> {
    let started = Instant::now();
    let online = dataplane::online_cpus().map_err(|error| DemoError::Refused(error.to_string()))?;
    let cpus = chosen(&online);
    let policy = prepare_mounts(&policy_for(cpus)).map_err(refused)?;
    let network = Network::create().map_err(refused)?;
    let _servers = Servers::start(&network, cpus)?;
    let mut agent = Agent::start(&network.host, &policy)?;
    agent.wait_until_ready(interrupt)?;

    let mut report = Report::new(options.json);
    report.start()?;
    let before = Snapshot::take(&network, &agent, interrupt)?;
    let mut deviations = Vec::new();
    let mut dropped_by_rules = 0;
    for row in &ROWS {
        let judged = try_row(row, &network, &agent, cpus, interrupt)?;
        if row.group == rows::Group::Dropped {
            dropped_by_rules += judged.packets;
        }
        report.row(&judged)?;
        deviations.extend(judged.deviations);
    }
    let after = Snapshot::take_after(&before, &network, &agent, interrupt)?;
    deviations.extend(after.deviations_since(&before, dropped_by_rules));
    deviations.extend(stop(&mut agent, &network)?);

    let uplink = after.uplink();
    let summary = Summary {
        mode: uplink.mode,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        seconds: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        rows: ROWS.len(),
        packets: uplink.packets,
        passed: uplink.passed,
        steered: uplink.steered,
        dropped: uplink.dropped,
        targets: after.steered_since(&before),
        deviations,
    };
    report.end(&summary)?;
    Ok(summary.deviations.len())
}

fn refused(error: io::Error) -> DemoError {
    DemoError::Refused(error.to_string())
}

/// The CPUs to steer to, of those that are online: the last one, or two where that is half of them
/// or less.
fn chosen(online: &[u32]) -> &[u32] {
    let count = if online.len() < 4 { 1 } else { 2 };
    &online[online.len().saturating_sub(count)..]
}

/// The policy with these CPUs.
fn policy_for(cpus: &[u32]) -> String {
    POLICY.replace(SOME_CPUS, &format!("cpus = {cpus:?}"))
}

/// Mounts that vanish with this thread and its children, and a file with the policy in them.
fn prepare_mounts(text: &str) -> io::Result<PathBuf> {
    lab::private_mounts()?;
    // Where the agent keeps its socket and its last policy.
    for directory in ["/run", "/var/lib"].map(Path::new) {
        if directory.is_dir() {
            lab::private_tmpfs(directory)?;
        }
    }
    let directory = Path::new("/run/portsteer-demo");
    fs::create_dir_all(directory)?;
    let policy = directory.join("policy.toml");
    fs::write(&policy, text)?;
    Ok(policy)
}

/// Tries one row over both families at once.
fn try_row(
    row: &Row,
    network: &Network,
    agent: &Agent,
    cpus: &[u32],
    interrupt: &Interrupt,
) -> Result<Judged, DemoError> {
    let before = row.counter(&agent.stats()?);
    let [over_ipv4, over_ipv6] = thread::scope(|scope| {
        [0, 1]
            .map(|family| {
                scope
                    .spawn(move || probe::probe(&network.client, CLIENT[family], HOST[family], row))
            })
            .map(|probe| probe.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    interrupt.check()?;
    let packets = row.counter(&agent.stats()?).saturating_sub(before);
    let experiences = [over_ipv4, over_ipv6];
    let deviations = row.deviations(&experiences, packets, cpus);
    Ok(Judged { row: *row, experiences, packets, deviations })
}

/// Ends the agent as Ctrl-C would and looks whether it left the interface as it was.
fn stop(agent: &mut Agent, network: &Network) -> Result<Vec<String>, DemoError> {
    let mut deviations = Vec::new();
    let status = agent.stop()?;
    if !status.success() {
        deviations.push(format!("the agent ended with {status}; it says: {}", agent.said()));
    }
    if network.uplink.link()?.xdp.is_some() {
        deviations.push(format!("the agent ended, but left its program on {UPLINK}"));
    }
    Ok(deviations)
}

/// Whether somebody wants the demo to end.
#[derive(Debug, Default)]
struct Interrupt {
    wanted: AtomicBool,
}

impl Interrupt {
    fn check(&self) -> Result<(), DemoError> {
        if self.wanted.load(Ordering::Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    /// Watches for SIGINT and SIGTERM until the demo has finished.
    fn watch<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        finished: &'scope AtomicBool,
    ) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut ctrl_c, mut terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        scope.spawn(move || {
            runtime.block_on(async {
                while !finished.load(Ordering::Relaxed) {
                    tokio::select! {
                        _ = ctrl_c.recv() => self.wanted.store(true, Ordering::Relaxed),
                        _ = terminate.recv() => self.wanted.store(true, Ordering::Relaxed),
                        () = tokio::time::sleep(Duration::from_millis(20)) => {}
                    }
                }
            });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{NextHop, TargetKind, file, services::Services};

    #[test]
    fn the_policy_fits_the_network_and_the_machine() {
        let text = policy_for(&[2, 3]);
        let policy = file::parse(&text, &Services::embedded()).expect("a policy").policy;
        let kind = |name: &str| {
            let target = policy.targets.iter().find(|target| target.name == name);
            &target.unwrap_or_else(|| panic!("there is no target {name}")).kind
        };
        for (place, number) in network::PLACES.into_iter().zip(1..) {
            let TargetKind::Interface { interface, next_hop: NextHop::Via(via) } = kind(place)
            else {
                panic!("{place} is no place");
            };
            assert_eq!(*interface, network::interface(place));
            assert!(network::addresses(number, 2).contains(via), "{place}: {via}");
        }
        let TargetKind::Cpus { cpus, .. } = kind("dns-cores") else { panic!("no CPUs") };
        assert_eq!(*cpus, [2, 3]);
    }

    #[test]
    fn as_many_cpus_are_chosen_as_there_are() {
        assert_eq!(chosen(&[0]), [0]);
        assert_eq!(chosen(&[0, 1, 4]), [4]);
        assert_eq!(chosen(&[0, 1, 2, 8]), [2, 8]);
    }
}
