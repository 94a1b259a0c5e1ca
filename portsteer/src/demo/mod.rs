//! `portsteer demo`: a client and a host in namespaces of their own, the real agent and the real
//! program between them, real servers and real connections, and a table of where each port led.
//!
//! The demo drives the product the way a user does: it starts this same executable as an agent and
//! asks it for its counters. Nothing of it stays, however it ends: the namespaces have no names,
//! the pins and files lie in private mounts, and the agent dies with the demo.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use self::{
    agent::{Agent, InterfaceCount, Stats},
    rows::{Judged, ROWS, Row},
    servers::Servers,
    table::Report,
};
use crate::{
    lab::{self, End, Namespace, Veth},
    netlink::{self, LinkCounters},
};

mod agent;
mod probe;
mod rows;
mod servers;
mod table;

/// The policy that the demo runs.
pub const POLICY: &str = include_str!("policy.toml");

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
    dropped: u64,
    deviations: Vec<String>,
}

const UPLINK: &str = "uplink";
const HOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
const CLIENT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
];
const PREFIX_LENS: [u8; 2] = [24, 64];

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
    let policy = prepare_mounts().map_err(refused)?;
    let (client, host) = prepare_network().map_err(refused)?;
    let _servers = Servers::start(&host, HOST, &ROWS)?;
    let mut agent = Agent::start(&host, &policy)?;
    agent.wait_until_attached(interrupt)?;

    let mut report = Report::new(options.json);
    report.start()?;
    let before = Snapshot::take(&host, &agent, interrupt)?;
    let mut deviations = Vec::new();
    let mut dropped_by_rules = 0;
    for row in &ROWS {
        let judged = try_row(row, &client, &agent, interrupt)?;
        if row.group == rows::Group::Dropped {
            dropped_by_rules += judged.packets;
        }
        report.row(&judged)?;
        deviations.extend(judged.deviations);
    }
    let after = Snapshot::take(&host, &agent, interrupt)?;
    deviations.extend(after.deviations_since(&before, dropped_by_rules));
    deviations.extend(stop(&mut agent, &host)?);

    let uplink = &after.uplink;
    let summary = Summary {
        mode: uplink.mode.clone(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        seconds: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        rows: ROWS.len(),
        packets: uplink.packets,
        passed: uplink.passed,
        dropped: uplink.dropped,
        deviations,
    };
    report.end(&summary)?;
    Ok(summary.deviations.len())
}

fn refused(error: io::Error) -> DemoError {
    DemoError::Refused(error.to_string())
}

/// Mounts that vanish with this thread and its children, and the policy file in them.
fn prepare_mounts() -> io::Result<std::path::PathBuf> {
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
    fs::write(&policy, POLICY)?;
    Ok(policy)
}

/// The client's and the host's namespaces, joined.
fn prepare_network() -> io::Result<(Namespace, Namespace)> {
    let (client, host) = (Namespace::new()?, Namespace::new()?);
    let mut ends = [End::new(&client, "client"), End::new(&host, UPLINK)];
    for (end, addresses) in ends.iter_mut().zip([CLIENT, HOST]) {
        for (address, prefix_len) in addresses.into_iter().zip(PREFIX_LENS) {
            *end = end.clone().address(address, prefix_len);
        }
    }
    let [client_end, host_end] = ends;
    // Neighbours that know each other leave the counters to the connections.
    Veth::between(client_end, host_end).static_neighbors().create()?;
    Ok((client, host))
}

/// Tries one row over both families at once.
fn try_row(
    row: &Row,
    client: &Namespace,
    agent: &Agent,
    interrupt: &Interrupt,
) -> Result<Judged, DemoError> {
    let before = row.counter(&agent.stats()?);
    let [over_ipv4, over_ipv6] = thread::scope(|scope| {
        [0, 1]
            .map(|family| {
                scope.spawn(move || probe::probe(client, CLIENT[family], HOST[family], row))
            })
            .map(|probe| probe.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    interrupt.check()?;
    let packets = row.counter(&agent.stats()?).saturating_sub(before);
    let experiences = [over_ipv4, over_ipv6];
    let deviations = row.deviations(&experiences, packets);
    Ok(Judged { row: *row, experiences, packets, deviations })
}

/// Ends the agent as Ctrl-C would and looks whether it left the interface as it was.
fn stop(agent: &mut Agent, host: &Namespace) -> Result<Vec<String>, DemoError> {
    let mut deviations = Vec::new();
    let status = agent.stop()?;
    if !status.success() {
        deviations.push(format!("the agent ended with {status}; it says: {}", agent.said()));
    }
    match host.run(|| netlink::link_by_name(UPLINK))? {
        Some(link) if link.xdp.is_none() => {}
        _ => deviations.push(format!("the agent ended, but left its program on {UPLINK}")),
    }
    Ok(deviations)
}

/// The counters of portsteer and of the device, taken while nothing moves.
#[derive(Debug)]
struct Snapshot {
    stats: Stats,
    uplink: InterfaceCount,
    device: LinkCounters,
}

impl Snapshot {
    /// Reads the counters until the device's are the same before and after: then portsteer's
    /// belong to them. (IPv6 has an announcement to make now and then.)
    fn take(host: &Namespace, agent: &Agent, interrupt: &Interrupt) -> Result<Self, DemoError> {
        let device = || {
            let link = host.run(|| netlink::link_by_name(UPLINK))?;
            link.map(|link| link.counters)
                .ok_or_else(|| DemoError::Broken(format!("the interface {UPLINK} is gone")))
        };
        for _ in 0..20 {
            interrupt.check()?;
            let before = device()?;
            let stats = agent.stats()?;
            if device()?.rx_packets == before.rx_packets {
                let uplink = stats.interface(UPLINK);
                return Ok(Self { stats, uplink, device: before });
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(DemoError::Broken(format!("the traffic on {UPLINK} never rests")))
    }

    fn deviations_since(&self, before: &Self, dropped_by_rules: u64) -> Vec<String> {
        let mut deviations = Vec::new();
        let mut equal = |what: &str, left: u64, right: u64| {
            if left != right {
                deviations.push(format!("{what}: {left} and {right}"));
            }
        };
        let InterfaceCount { packets, passed, dropped, aborted, .. } = self.uplink;
        let grew_by = packets.saturating_sub(before.uplink.packets);
        equal(
            "the packets that portsteer and the network device counted on uplink differ",
            grew_by,
            self.device.rx_packets.saturating_sub(before.device.rx_packets),
        );
        equal("the packets of all reasons and of uplink differ", self.stats.all_reasons(), packets);
        equal(
            "the packets passed, dropped and aborted and those of uplink differ",
            passed + dropped + aborted,
            packets,
        );
        equal(
            "the packets that the rules dropped and those that uplink lost differ",
            dropped_by_rules,
            dropped.saturating_sub(before.uplink.dropped),
        );
        if grew_by == 0 {
            deviations.push("no packet was counted on uplink".to_owned());
        }
        if aborted != 0 {
            deviations.push(format!("the program aborted on {aborted} packets"));
        }
        deviations
    }
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
