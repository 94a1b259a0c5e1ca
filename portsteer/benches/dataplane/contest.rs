//! Who is compared with whom, and with which packets.

use std::thread;

use portsteer_testkit::packet::{IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp};

use crate::{
    PORT, Report, Result, Rounds,
    arena::Arena,
    contestants::{
        EMPTY_DROP, EMPTY_PASS, EMPTY_REDIRECT, Goal, MINIMAL, MINIMAL_MACS, MINIMAL_WATCHED,
        WITH_TARGETS, WITHOUT_TARGETS, WITHOUT_TARGETS_WATCHED, XDP_FILTER, dropping,
        dropping_beside, empty, minimal, minimal_watched, nftables, steering,
        without_targets_watched, xdp_bench, xdp_filter,
    },
    live::{Finish, Live},
    nanoseconds::Table,
    policies::PASSED_PORT,
    programs::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
};

/// Live frames in a run, which takes about 20 milliseconds.
const FRAMES: u32 = 400_000;
/// The same for frames that are redirected a second time.
const STEERED_FRAMES: u32 = 200_000;

/// Puts somebody into the arena.
type Turn = fn(&mut Arena) -> Result<()>;

/// Those who do the same thing.
pub struct Contest {
    pub name: &'static str,
    frames: u32,
    needs_another_cpu: bool,
    turns: Vec<Turn>,
    tables: Vec<Table>,
    live: Live,
    absent: Vec<String>,
}

/// UDP over IPv4 to this port; and so on.
fn udp4(dst_port: u16) -> Vec<u8> {
    ethernet(IPV4, ipv4(UDP, udp(40_000, dst_port, [0; 18])))
}

fn udp6(dst_port: u16) -> Vec<u8> {
    ethernet(IPV6, ipv6(UDP, udp(40_000, dst_port, [0; 18])))
}

fn tcp4(dst_port: u16) -> Vec<u8> {
    ethernet(IPV4, ipv4(TCP, tcp(40_000, dst_port, [0; 6])))
}

/// Everything that is measured.
pub fn all() -> Vec<Contest> {
    vec![verdicts(), presence(), to_interface(), to_cpu()]
}

/// Packets that are dropped or passed.
fn verdicts() -> Contest {
    let drops = |packet, frame| Table::new(packet, frame, XDP_DROP, EMPTY_DROP, None);
    let passes = |packet, frame| Table::new(packet, frame, XDP_PASS, EMPTY_PASS, None);
    Contest {
        name: "verdicts",
        frames: FRAMES,
        needs_another_cpu: false,
        turns: vec![
            |arena| empty(arena, EMPTY_DROP),
            |arena| empty(arena, EMPTY_PASS),
            |arena| dropping(arena, 1),
            |arena| dropping(arena, 1_000),
            |arena| dropping(arena, 65_535),
            xdp_filter,
            nftables,
        ],
        tables: vec![
            drops("UDP over IPv4, dropped", udp4(PORT)),
            drops("TCP over IPv4, dropped", tcp4(PORT)),
            drops("UDP over IPv6, dropped", udp6(PORT)),
            passes("UDP over IPv4, passed", udp4(0)),
        ],
        live: Live::new(
            "into veth, dropped on port 9",
            udp4(PORT),
            Finish::Receiver,
            EMPTY_DROP,
            &[EMPTY_DROP, XDP_FILTER],
        ),
        absent: Vec::new(),
    }
}

/// Whether targets cost those packets something that are not steered.
fn presence() -> Contest {
    Contest {
        name: "presence",
        frames: FRAMES,
        needs_another_cpu: false,
        turns: vec![
            |arena| dropping_beside(arena, WITHOUT_TARGETS),
            |arena| dropping_beside(arena, WITH_TARGETS),
            without_targets_watched,
        ],
        tables: vec![
            Table::new(
                "UDP over IPv4, dropped beside rules that steer",
                udp4(PORT),
                XDP_DROP,
                WITHOUT_TARGETS,
                None,
            ),
            Table::new(
                "UDP over IPv4, passed beside rules that steer",
                udp4(PASSED_PORT),
                XDP_PASS,
                WITHOUT_TARGETS,
                None,
            ),
        ],
        live: Live::new(
            "into veth, dropped beside rules that steer",
            udp4(PORT),
            Finish::Receiver,
            WITHOUT_TARGETS,
            &[WITHOUT_TARGETS, WITHOUT_TARGETS_WATCHED],
        ),
        absent: Vec::new(),
    }
}

/// Packets that are steered to an interface.
fn to_interface() -> Contest {
    let steers =
        |packet, frame| Table::new(packet, frame, XDP_REDIRECT, EMPTY_REDIRECT, Some(MINIMAL_MACS));
    Contest {
        name: "to-interface",
        frames: STEERED_FRAMES,
        needs_another_cpu: false,
        turns: vec![
            |arena| empty(arena, EMPTY_REDIRECT),
            |arena| minimal(arena, MINIMAL, Goal::Sink),
            |arena| minimal(arena, MINIMAL_MACS, Goal::Sink),
            |arena| minimal_watched(arena, Goal::Sink),
            |arena| steering(arena, 1, Goal::Sink),
            |arena| steering(arena, 65_535, Goal::Sink),
            |arena| xdp_bench(arena, Goal::Sink),
        ],
        tables: vec![
            steers("UDP over IPv4, steered to an interface", udp4(PORT)),
            steers("UDP over IPv6, steered to an interface", udp6(PORT)),
        ],
        live: Live::new(
            "into veth, steered to another veth",
            udp4(PORT),
            Finish::Sink,
            MINIMAL,
            &[
                MINIMAL,
                MINIMAL_MACS,
                MINIMAL_WATCHED,
                "xdp-bench redirect",
                "xdp-bench redirect-map",
            ],
        ),
        absent: Vec::new(),
    }
}

/// Packets that are steered to a CPU.
fn to_cpu() -> Contest {
    let steers =
        |packet, frame| Table::new(packet, frame, XDP_REDIRECT, EMPTY_REDIRECT, Some(MINIMAL));
    Contest {
        name: "to-cpu",
        frames: STEERED_FRAMES,
        needs_another_cpu: true,
        turns: vec![
            |arena| empty(arena, EMPTY_REDIRECT),
            |arena| minimal(arena, MINIMAL, Goal::OtherCpu),
            |arena| minimal_watched(arena, Goal::OtherCpu),
            |arena| steering(arena, 1, Goal::OtherCpu),
            |arena| steering(arena, 65_535, Goal::OtherCpu),
            |arena| xdp_bench(arena, Goal::OtherCpu),
        ],
        tables: vec![
            steers("UDP over IPv4, steered to a CPU", udp4(PORT)),
            steers("UDP over IPv6, steered to a CPU", udp6(PORT)),
        ],
        live: Live::new(
            "into veth, steered to another CPU",
            udp4(PORT),
            Finish::Stack,
            MINIMAL,
            &[
                MINIMAL,
                MINIMAL_WATCHED,
                "xdp-bench redirect-cpu -p no-touch",
                "xdp-bench redirect-cpu -p l4-hash",
            ],
        ),
        absent: Vec::new(),
    }
}

impl Contest {
    /// Sets everything up anew and measures some rounds.
    pub fn batch(&mut self, number: usize, rounds: &Rounds) -> Result<()> {
        // Mounts and namespaces belong to a thread, and end with it.
        thread::scope(|scope| {
            let measured = scope.spawn(|| self.measure(number, rounds)).join();
            measured.map_err(|_| "a batch panicked")?
        })
    }

    fn measure(&mut self, batch: usize, rounds: &Rounds) -> Result<()> {
        let mut arena = Arena::new(self.frames)?;
        if self.needs_another_cpu && arena.other_cpu.is_none() {
            self.absent = vec![format!("{}: there is only one CPU", self.name)];
            return Ok(());
        }
        // In each batch somebody else is loaded first; the first batch has the order of the tables.
        for place in 0..self.turns.len() {
            self.turns[(place + batch) % self.turns.len()](&mut arena)?;
        }
        // No test run passes a tracepoint, so here nobody is in anybody's way.
        for contestant in &mut arena.contestants {
            contestant.engine.start()?;
        }
        for table in &mut self.tables {
            table.measure(&arena, rounds.test_runs)?;
        }
        for contestant in &mut arena.contestants {
            contestant.engine.stop()?;
        }
        self.live.measure(&mut arena, rounds.live)?;
        for absent in arena.absent {
            if !self.absent.contains(&absent) {
                self.absent.push(absent);
            }
        }
        Ok(())
    }

    /// Nanoseconds per packet.
    pub fn tables(&self) -> Result<Vec<Report>> {
        self.tables.iter().filter_map(|table| table.report().transpose()).collect()
    }

    /// Packets per second.
    pub fn live(&self) -> Result<Option<Report>> {
        self.live.report()
    }

    /// Who could not be had, and why.
    pub fn absent(&self) -> &[String] {
        &self.absent
    }
}
