//! Who is compared with whom, and with which packets.

use std::thread;

use portsteer_testkit::packet::{IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp};

use crate::{
    Measured, PORT, Report, Result, Rounds,
    arena::Arena,
    contestants::{
        EMPTY_DROP, EMPTY_PASS, EMPTY_REDIRECT, Goal, MANY_RULES, MINIMAL, MINIMAL_MACS,
        MINIMAL_WATCHED, ONE_RULE, REDIRECTS, REDIRECTS_TO_CPU, SET_OF_PORTS, WITH_TARGETS,
        WITHOUT_TARGETS, WITHOUT_TARGETS_WATCHED, XDP_FILTER, blocking, dropping, dropping_beside,
        empty, lpm_trie, minimal, minimal_watched, mixed, nftables, steering, steering_mixed,
        trie_of, without_targets_watched, xdp_bench, xdp_filter,
    },
    cores::Cores,
    curves::Curves,
    family::Family,
    growth,
    live::Live,
    nanoseconds::Table,
    policies::{Blocklist, Mixed, PASSED_PORT},
    probes,
    programs::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
    stream::Finish,
};

/// Live frames in a run, which takes about 20 milliseconds.
const FRAMES: u32 = 400_000;
/// The same for frames that are redirected a second time.
const STEERED_FRAMES: u32 = 200_000;

/// Puts somebody into the arena.
pub struct Turn {
    /// What somebody is called who can be asked for.
    row: Option<String>,
    enter: Box<Enter>,
}

type Enter = dyn Fn(&mut Arena) -> Result<()> + Send + Sync;

impl Turn {
    pub fn new(
        row: impl Into<String>,
        enter: impl Fn(&mut Arena) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { row: Some(row.into()), enter: Box::new(enter) }
    }

    /// Something that all others need.
    pub fn unnamed(enter: impl Fn(&mut Arena) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { row: None, enter: Box::new(enter) }
    }
}

/// Those who do the same thing.
pub struct Contest {
    pub name: &'static str,
    pub frames: u32,
    pub needs_another_cpu: bool,
    pub turns: Vec<Turn>,
    pub tables: Vec<Table>,
    pub live: Option<Live>,
    pub curves: Vec<Curves>,
    pub cores: Option<Cores>,
    /// The batches, and the rounds in each, where they are other ones than everybody's.
    pub amount: Option<(usize, usize)>,
    pub absent: Vec<String>,
    pub failures: Vec<String>,
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
        growth::rules(Family::V4),
        growth::rules(Family::V6),
        growth::sets(Family::V4)?,
        growth::sets(Family::V6)?,
        cores(),
    ])
}

/// A program that does nothing, by its name.
fn nothing(name: &'static str) -> Turn {
    Turn::new(name, move |arena| empty(arena, name))
}

/// portsteer with so many rules.
fn ours(rules: usize, enter: fn(&mut Arena, usize) -> Result<()>) -> Turn {
    Turn::new(format!("portsteer, {rules} rules"), move |arena| enter(arena, rules))
}

fn minimal_turn(name: &'static str, goal: Goal) -> Turn {
    Turn::new(name, move |arena| minimal(arena, name, goal))
}

fn steering_turn(rules: usize, goal: Goal) -> Turn {
    let name = format!("portsteer, {rules} rules");
    Turn::new(name, move |arena| steering(arena, rules, goal))
}

fn steering_mixed_turn(rules: usize, goal: Goal) -> Turn {
    let name = format!("portsteer, {rules} mixed rules");
    Turn::new(name, move |arena| steering_mixed(arena, rules, goal))
}

fn xdp_bench_turns(subcommands: [&'static str; 2], goal: Goal) -> [Turn; 2] {
    subcommands.map(|subcommand| {
        let name = format!("xdp-bench {subcommand}");
        Turn::new(name, move |arena| xdp_bench(arena, subcommand, goal))
    })
}

/// Packets that are dropped or passed.
fn verdicts() -> Contest {
    let drops = |packet, frame| Table::new(packet, frame, XDP_DROP, EMPTY_DROP, None);
    let passes = |packet, frame| Table::new(packet, frame, XDP_PASS, EMPTY_PASS, None);
    Contest {
        turns: vec![
            nothing(EMPTY_DROP),
            nothing(EMPTY_PASS),
            ours(1, dropping),
            ours(1_000, dropping),
            ours(65_535, dropping),
            Turn::new(XDP_FILTER, xdp_filter),
            Turn::new(ONE_RULE, |arena| nftables(arena, ONE_RULE)),
            Turn::new(SET_OF_PORTS, |arena| nftables(arena, SET_OF_PORTS)),
            Turn::new(MANY_RULES, |arena| nftables(arena, MANY_RULES)),
        ],
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
        ..judging("verdicts")
    }
}

/// Whether targets cost those packets something that are not steered.
fn presence() -> Contest {
    Contest {
        turns: vec![
            Turn::new(WITHOUT_TARGETS, |arena| dropping_beside(arena, WITHOUT_TARGETS)),
            Turn::new(WITH_TARGETS, |arena| dropping_beside(arena, WITH_TARGETS)),
            Turn::new(WITHOUT_TARGETS_WATCHED, without_targets_watched),
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
        live: Some(Live::new(
            "into veth, dropped beside rules that steer",
            udp4(PORT),
            Finish::Receiver,
            WITHOUT_TARGETS,
            &[WITHOUT_TARGETS, WITHOUT_TARGETS_WATCHED],
        )),
        ..judging("presence")
    }
}

/// Packets that are steered to an interface.
fn to_interface() -> Contest {
    let steers =
        |packet, frame| Table::new(packet, frame, XDP_REDIRECT, EMPTY_REDIRECT, Some(MINIMAL_MACS));
    Contest {
        frames: STEERED_FRAMES,
        turns: [
            nothing(EMPTY_REDIRECT),
            minimal_turn(MINIMAL, Goal::Sink),
            minimal_turn(MINIMAL_MACS, Goal::Sink),
            Turn::new(MINIMAL_WATCHED, |arena| minimal_watched(arena, Goal::Sink)),
            steering_turn(1, Goal::Sink),
            steering_turn(65_535, Goal::Sink),
            steering_mixed_turn(10_000, Goal::Sink),
        ]
        .into_iter()
        .chain(xdp_bench_turns(REDIRECTS, Goal::Sink))
        .collect(),
        tables: vec![
            steers("UDP over IPv4, steered to an interface", Mixed::packet(Family::V4).frame()),
            steers("UDP over IPv6, steered to an interface", Mixed::packet(Family::V6).frame()),
        ],
        live: Some(Live::new(
            "into veth, steered to another veth",
            Mixed::packet(Family::V4).frame(),
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
        ..judging("to-interface")
    }
}

/// Packets that are steered to a CPU.
fn to_cpu() -> Contest {
    let steers =
        |packet, frame| Table::new(packet, frame, XDP_REDIRECT, EMPTY_REDIRECT, Some(MINIMAL));
    Contest {
        frames: STEERED_FRAMES,
        needs_another_cpu: true,
        turns: [
            nothing(EMPTY_REDIRECT),
            minimal_turn(MINIMAL, Goal::OtherCpu),
            Turn::new(MINIMAL_WATCHED, |arena| minimal_watched(arena, Goal::OtherCpu)),
            steering_turn(1, Goal::OtherCpu),
            steering_turn(65_535, Goal::OtherCpu),
            steering_mixed_turn(10_000, Goal::OtherCpu),
        ]
        .into_iter()
        .chain(xdp_bench_turns(REDIRECTS_TO_CPU, Goal::OtherCpu))
        .collect(),
        tables: vec![
            steers("UDP over IPv4, steered to a CPU", Mixed::packet(Family::V4).frame()),
            steers("UDP over IPv6, steered to a CPU", Mixed::packet(Family::V6).frame()),
        ],
        live: Some(Live::new(
            "into veth, steered to another CPU",
            Mixed::packet(Family::V4).frame(),
            Finish::Stack,
            MINIMAL,
            &[
                MINIMAL,
                MINIMAL_WATCHED,
                "xdp-bench redirect-cpu -p no-touch",
                "xdp-bench redirect-cpu -p l4-hash",
            ],
        )),
        ..judging("to-cpu")
    }
}

/// Policies of all kinds of rules, and always the same packet, which the last of them drops.
fn mixed_rules(family: Family) -> Contest {
    let title = format!("UDP over {}, dropped by the last of mixed rules", family.name());
    let frame = Mixed::packet(family).frame();
    Contest {
        turns: vec![
            nothing(EMPTY_DROP),
            // Other packets are only judged to see that they are judged well.
            Turn::unnamed(move |arena| arena.rotate(family)),
            mixed_turn(10, family),
            mixed_turn(10_000, family),
            mixed_turn(100_000, family),
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
    let mut turns = vec![
        nothing(EMPTY_DROP),
        nothing(EMPTY_PASS),
        Turn::unnamed(move |arena| arena.rotate(family)),
    ];
    for count in [10_000, 100_000, 1_000_000] {
        let set = format!("portsteer, set of {count}");
        turns.push(Turn::new(set, move |arena| blocking(arena, count, family)));
        turns.push(Turn::new(trie_of(count), move |arena| lpm_trie(arena, count, family)));
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
        turns: vec![
            nothing(EMPTY_PASS),
            Turn::unnamed(|arena| arena.rotate(Family::V4)),
            ours(1, dropping),
            ours(65_535, dropping),
        ],
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
            nothing(EMPTY_PASS),
            Turn::unnamed(move |arena| arena.rotate(family)),
            mixed_turn(10, family),
            mixed_turn(10_000, family),
        ],
        tables: vec![Table::rotating(title, frame, EMPTY_PASS)],
        ..judging("rotating")
    }
}

fn mixed_turn(rules: usize, family: Family) -> Turn {
    Turn::new(format!("portsteer, {rules} rules"), move |arena| mixed(arena, rules, family))
}

/// The same frames on one core, and on two at once.
fn cores() -> Contest {
    let packet = Mixed::packet(Family::V4);
    Contest {
        needs_another_cpu: true,
        turns: vec![
            Turn::unnamed(|arena| {
                arena.set_queues(2);
                Ok(())
            }),
            nothing(EMPTY_DROP),
            ours(65_535, dropping),
            Turn::new("portsteer, 10000 mixed rules", |arena| {
                mixed(arena, 10_000, Family::V4)?;
                "portsteer, 10000 mixed rules".clone_into(&mut arena.last()?.name);
                Ok(())
            }),
            Turn::new(XDP_FILTER, xdp_filter),
            Turn::new(ONE_RULE, |arena| nftables(arena, ONE_RULE)),
        ],
        cores: Some(Cores::new(packet.frame(), EMPTY_DROP)),
        amount: Some((5, 3)),
        ..judging("cores")
    }
}

/// A contest with nobody in it yet, where nothing is measured.
pub fn judging(name: &'static str) -> Contest {
    Contest {
        name,
        frames: FRAMES,
        needs_another_cpu: false,
        turns: Vec::new(),
        tables: Vec::new(),
        live: None,
        curves: Vec::new(),
        cores: None,
        amount: None,
        absent: Vec::new(),
        failures: Vec::new(),
    }
}

impl Measured for Contest {
    fn name(&self) -> &'static str {
        self.name
    }

    fn rows(&self) -> Vec<String> {
        self.turns.iter().filter_map(|turn| turn.row.clone()).collect()
    }

    fn keep(&mut self, wanted: &dyn Fn(&str) -> bool) {
        let tables = self.tables.iter().flat_map(Table::needed);
        let live = self.live.iter().map(Live::zero);
        let curves = self.curves.iter().map(Curves::zero);
        let cores = self.cores.iter().map(Cores::zero);
        let needed: Vec<&str> = tables.chain(live).chain(curves).chain(cores).collect();
        self.turns.retain(|turn| match &turn.row {
            Some(row) => wanted(row) || needed.contains(&row.as_str()),
            None => true,
        });
    }

    fn batch(&mut self, number: usize, rounds: &Rounds) -> Result<()> {
        let rounds = match self.amount {
            Some((batches, _)) if number >= batches => return Ok(()),
            Some((batches, each)) => Rounds { batches, test_runs: each, live: each },
            None => *rounds,
        };
        // Mounts and namespaces belong to a thread, and end with it.
        thread::scope(|scope| {
            let measured = scope.spawn(|| self.measure(number, &rounds)).join();
            measured.map_err(|_| "a batch panicked")?
        })
    }

    fn reports(&self) -> Result<Vec<Report>> {
        let tables = self.tables.iter().map(Table::report);
        let reports = tables
            .chain(self.live.as_ref().map(Live::report))
            .chain(self.curves.iter().map(Curves::report))
            .chain(self.cores.as_ref().map(Cores::report));
        reports.filter_map(Result::transpose).collect()
    }

    fn absent(&self) -> &[String] {
        &self.absent
    }

    fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl Contest {
    fn measure(&mut self, batch: usize, rounds: &Rounds) -> Result<()> {
        let mut arena = Arena::new(self.frames)?;
        if self.needs_another_cpu && arena.other_cpu.is_none() {
            self.absent = vec![format!("{}: there is only one CPU", self.name)];
            return Ok(());
        }
        // In each batch somebody else is loaded first; the first batch has the order of the tables. What has no
        // name is there before everyone.
        let (named, unnamed): (Vec<&Turn>, Vec<&Turn>) =
            self.turns.iter().partition(|turn| turn.row.is_some());
        for turn in unnamed {
            (turn.enter)(&mut arena)?;
        }
        for place in 0..named.len() {
            let turn = named[(place + batch) % named.len()];
            if let (Err(error), Some(row)) = ((turn.enter)(&mut arena), &turn.row) {
                // What others' programs and commands need is not known here.
                let list = if is_ours(row) { &mut self.failures } else { &mut arena.absent };
                list.push(format!("{row}: {error}"));
            }
        }
        // No test run passes a tracepoint, so here nobody is in anybody's way.
        if !self.tables.is_empty() {
            for contestant in &mut arena.contestants {
                contestant.engine.start()?;
            }
        }
        arena.check(batch == 0)?;
        if !self.tables.is_empty() {
            for table in &mut self.tables {
                table.measure(&arena, rounds.test_runs)?;
            }
            for contestant in &mut arena.contestants {
                contestant.engine.stop()?;
            }
        }
        if let Some(live) = &mut self.live {
            live.measure(&mut arena, rounds.live)?;
        }
        for curves in &mut self.curves {
            curves.measure(&mut arena, rounds.live)?;
            arena.absent.append(&mut curves.absent);
            for failure in curves.failures.drain(..) {
                if !self.failures.contains(&failure) {
                    self.failures.push(failure);
                }
            }
        }
        if let Some(cores) = &mut self.cores {
            cores.measure(&mut arena, rounds.live)?;
        }
        for absent in arena.absent {
            if !self.absent.contains(&absent) {
                self.absent.push(absent);
            }
        }
        Ok(())
    }
}

/// Whether it is portsteer, or what everything is compared with.
fn is_ours(row: &str) -> bool {
    row.starts_with("portsteer") || row.starts_with("empty ")
}
