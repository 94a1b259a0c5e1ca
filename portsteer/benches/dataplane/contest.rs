//! Who is compared with whom, and with which packets.

use std::thread;

use portsteer_testkit::packet::{IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp};

use crate::{
    Measured, PORT, Report, Result, Rounds,
    arena::Arena,
    contestants::{
        EMPTY_DROP, EMPTY_PASS, EMPTY_REDIRECT, Goal, MINIMAL, MINIMAL_MACS, MINIMAL_WATCHED,
        WITH_TARGETS, WITHOUT_TARGETS, WITHOUT_TARGETS_WATCHED, XDP_FILTER, blocking, dropping,
        dropping_beside, empty, lpm_trie, minimal, minimal_watched, mixed, nftables, steering,
        without_targets_watched, xdp_bench, xdp_filter,
    },
    family::Family,
    live::{Finish, Live},
    nanoseconds::Table,
    policies::{Blocklist, Mixed, PASSED_PORT},
    probes,
    programs::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
};

/// Live frames in a run, which takes about 20 milliseconds.
const FRAMES: u32 = 400_000;
/// The same for frames that are redirected a second time.
const STEERED_FRAMES: u32 = 200_000;

/// Puts somebody into the arena.
type Turn = Box<dyn Fn(&mut Arena) -> Result<()> + Send + Sync>;

/// Those who do the same thing.
pub struct Contest {
    name: &'static str,
    frames: u32,
    needs_another_cpu: bool,
    turns: Vec<Turn>,
    tables: Vec<Table>,
    live: Option<Live>,
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

/// All of them. Some have several parts, with a name in common.
pub fn all() -> Result<Vec<Contest>> {
    Ok(vec![
        verdicts(),
        presence(),
        to_interface(),
        to_cpu(),
        mixed_rules(Family::V4),
        mixed_rules(Family::V6),
        blocklist(Family::V4)?,
        blocklist(Family::V6)?,
        rotating_ports(),
        rotating_mixed(Family::V4),
        rotating_mixed(Family::V6),
    ])
}

fn turns(turns: Vec<fn(&mut Arena) -> Result<()>>) -> Vec<Turn> {
    turns.into_iter().map(|turn| Box::new(turn) as Turn).collect()
}

/// Packets that are dropped or passed.
fn verdicts() -> Contest {
    let drops = |packet, frame| Table::new(packet, frame, XDP_DROP, EMPTY_DROP, None);
    let passes = |packet, frame| Table::new(packet, frame, XDP_PASS, EMPTY_PASS, None);
    Contest {
        name: "verdicts",
        frames: FRAMES,
        needs_another_cpu: false,
        turns: turns(vec![
            |arena| empty(arena, EMPTY_DROP),
            |arena| empty(arena, EMPTY_PASS),
            |arena| dropping(arena, 1),
            |arena| dropping(arena, 1_000),
            |arena| dropping(arena, 65_535),
            xdp_filter,
            nftables,
        ]),
        tables: vec![
            drops("UDP over IPv4, dropped", udp4(PORT)),
            drops("TCP over IPv4, dropped", tcp4(PORT)),
            drops("UDP over IPv6, dropped", udp6(PORT)),
            passes("UDP over IPv4, passed", udp4(0)),
        ],
        live: Some(Live::new(
            "into veth, dropped on port 9",
            udp4(PORT),
            Finish::Receiver,
            EMPTY_DROP,
            &[EMPTY_DROP, XDP_FILTER],
        )),
        absent: Vec::new(),
    }
}

/// Whether targets cost those packets something that are not steered.
fn presence() -> Contest {
    Contest {
        name: "presence",
        frames: FRAMES,
        needs_another_cpu: false,
        turns: turns(vec![
            |arena| dropping_beside(arena, WITHOUT_TARGETS),
            |arena| dropping_beside(arena, WITH_TARGETS),
            without_targets_watched,
        ]),
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
        live: Some(Live::new(
            "into veth, dropped beside rules that steer",
            udp4(PORT),
            Finish::Receiver,
            WITHOUT_TARGETS,
            &[WITHOUT_TARGETS, WITHOUT_TARGETS_WATCHED],
        )),
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
        turns: turns(vec![
            |arena| empty(arena, EMPTY_REDIRECT),
            |arena| minimal(arena, MINIMAL, Goal::Sink),
            |arena| minimal(arena, MINIMAL_MACS, Goal::Sink),
            |arena| minimal_watched(arena, Goal::Sink),
            |arena| steering(arena, 1, Goal::Sink),
            |arena| steering(arena, 65_535, Goal::Sink),
            |arena| xdp_bench(arena, Goal::Sink),
        ]),
        tables: vec![
            steers("UDP over IPv4, steered to an interface", udp4(PORT)),
            steers("UDP over IPv6, steered to an interface", udp6(PORT)),
        ],
        live: Some(Live::new(
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
        )),
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
        turns: turns(vec![
            |arena| empty(arena, EMPTY_REDIRECT),
            |arena| minimal(arena, MINIMAL, Goal::OtherCpu),
            |arena| minimal_watched(arena, Goal::OtherCpu),
            |arena| steering(arena, 1, Goal::OtherCpu),
            |arena| steering(arena, 65_535, Goal::OtherCpu),
            |arena| xdp_bench(arena, Goal::OtherCpu),
        ]),
        tables: vec![
            steers("UDP over IPv4, steered to a CPU", udp4(PORT)),
            steers("UDP over IPv6, steered to a CPU", udp6(PORT)),
        ],
        live: Some(Live::new(
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
        )),
        absent: Vec::new(),
    }
}

/// Policies of all kinds of rules, and always the same packet, which the last of them drops.
fn mixed_rules(family: Family) -> Contest {
    let title = format!("UDP over {}, dropped by the last of mixed rules", family.name());
    let frame = Mixed::packet(family).frame();
    Contest {
        turns: vec![
            Box::new(|arena| empty(arena, EMPTY_DROP)),
            // Other packets are only judged to see that they are judged well.
            Box::new(move |arena| arena.rotate(family)),
            Box::new(move |arena| mixed(arena, 10, family)),
            Box::new(move |arena| mixed(arena, 10_000, family)),
            Box::new(move |arena| mixed(arena, 100_000, family)),
        ],
        tables: vec![Table::new(title, frame, XDP_DROP, EMPTY_DROP, None)],
        ..judging("mixed")
    }
}

/// Large sets of sources, and packets from sources in them and elsewhere.
fn blocklist(family: Family) -> Result<Contest> {
    let [hit, miss] = Blocklist::packets(family)?.map(|packet| packet.frame());
    let name = match family {
        Family::V4 => "blocklist",
        Family::V6 => "blocklist6",
    };
    let ip = family.name();
    let packets = match family {
        Family::V4 => format!("UDP over {ip}, 65,536 random sources in turn"),
        Family::V6 => format!("UDP over {ip}, 65,536 sources in turn, half of them in the set"),
    };
    let mut turns: Vec<Turn> = vec![
        Box::new(|arena| empty(arena, EMPTY_DROP)),
        Box::new(|arena| empty(arena, EMPTY_PASS)),
        Box::new(move |arena| arena.rotate(family)),
    ];
    for count in [10_000, 100_000, 1_000_000] {
        turns.push(Box::new(move |arena| blocking(arena, count, family)));
        turns.push(Box::new(move |arena| lpm_trie(arena, count, family)));
    }
    Ok(Contest {
        turns,
        tables: vec![
            Table::rotating(packets, miss.clone(), EMPTY_PASS),
            Table::new(
                format!("UDP over {ip}, the same source, in the set"),
                hit,
                XDP_DROP,
                EMPTY_DROP,
                None,
            ),
            Table::new(
                format!("UDP over {ip}, the same source, not in the set"),
                miss,
                XDP_PASS,
                EMPTY_PASS,
                None,
            ),
        ],
        ..judging(name)
    })
}

/// Rules that have a port each, and packets to all ports.
fn rotating_ports() -> Contest {
    Contest {
        turns: turns(vec![
            |arena| empty(arena, EMPTY_PASS),
            |arena| arena.rotate(Family::V4),
            |arena| dropping(arena, 1),
            |arena| dropping(arena, 65_535),
        ]),
        tables: vec![Table::rotating(
            "UDP over IPv4, 65,536 packets to random ports in turn",
            probes::random(Family::V4)[0].frame(),
            EMPTY_PASS,
        )],
        ..judging("rotating")
    }
}

/// Policies of all kinds of rules, and packets half of which were made for one of them.
fn rotating_mixed(family: Family) -> Contest {
    let title = format!("UDP over {}, 65,536 packets to mixed rules in turn", family.name());
    let frame = Mixed::packet(family).frame();
    Contest {
        turns: vec![
            Box::new(|arena| empty(arena, EMPTY_PASS)),
            Box::new(move |arena| arena.rotate(family)),
            Box::new(move |arena| mixed(arena, 10, family)),
            Box::new(move |arena| mixed(arena, 10_000, family)),
        ],
        tables: vec![Table::rotating(title, frame, EMPTY_PASS)],
        ..judging("rotating")
    }
}

/// A contest with nobody in it yet, where no live frames are sent.
fn judging(name: &'static str) -> Contest {
    Contest {
        name,
        frames: FRAMES,
        needs_another_cpu: false,
        turns: Vec::new(),
        tables: Vec::new(),
        live: None,
        absent: Vec::new(),
    }
}

impl Measured for Contest {
    fn name(&self) -> &'static str {
        self.name
    }

    fn batch(&mut self, number: usize, rounds: &Rounds) -> Result<()> {
        // Mounts and namespaces belong to a thread, and end with it.
        thread::scope(|scope| {
            let measured = scope.spawn(|| self.measure(number, rounds)).join();
            measured.map_err(|_| "a batch panicked")?
        })
    }

    fn reports(&self) -> Result<Vec<Report>> {
        let tables = self.tables.iter().map(Table::report);
        let reports = tables.chain(self.live.as_ref().map(Live::report));
        reports.filter_map(Result::transpose).collect()
    }

    fn absent(&self) -> &[String] {
        &self.absent
    }
}

impl Contest {
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
        arena.check(batch == 0)?;
        for table in &mut self.tables {
            table.measure(&arena, rounds.test_runs)?;
        }
        for contestant in &mut arena.contestants {
            contestant.engine.stop()?;
        }
        if let Some(live) = &mut self.live {
            live.measure(&mut arena, rounds.live)?;
        }
        for absent in arena.absent {
            if !self.absent.contains(&absent) {
                self.absent.push(absent);
            }
        }
        Ok(())
    }
}
