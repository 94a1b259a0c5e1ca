//! The contests in which the number of rules, ports or addresses grows, and what their points are called.

use crate::{
    Result,
    arena::Arena,
    contest::{Contest, Turn, judging},
    contestants::{
        EMPTY_DROP, EMPTY_PASS, Lookup, Matched, blocking_sources, dropping_ports, empty, iptables,
        judging_mixed, lpm_trie_of, nftables_ports, nftables_sources, no_filter, xdp_filter_ports,
    },
    curves::Curves,
    family::Family,
    policies::{Blocklist, Mixed, ports_of},
    probes::{self, Probe, Probes},
    programs::{XDP_DROP, XDP_PASS},
    stream::Frames,
};

/// The way into the stack, and nobody on it.
const NO_FILTER: &str = "no filter";

/// Loading takes most of the time, so there are few batches: of at least 15 rounds altogether.
const RULES: (usize, usize) = (5, 3);
const SETS: (usize, usize) = (3, 5);

/// Those who differ in nothing but a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// What a picture calls it.
    pub name: &'static str,
    /// What stands before and after the number in a point's name, and what is counted.
    before: &'static str,
    counted: &'static str,
    after: &'static str,
}

const fn series(
    name: &'static str,
    before: &'static str,
    counted: &'static str,
    after: &'static str,
) -> Series {
    Series { name, before, counted, after }
}

const PORTSTEER_PORTS: Series =
    series("portsteer, rules by port", "portsteer, ", "rule", " by port");
const PORTSTEER_MIXED: Series = series("portsteer, mixed rules", "portsteer, ", "mixed rule", "");
const XDP_FILTER: Series = series("xdp-filter", "xdp-filter, ", "port", "");
const NFTABLES_RULES: Series =
    series("nftables, rules in a row", "nftables ingress, ", "rule", " in a row");
const NFTABLES_MAP: Series =
    series("nftables, verdict map", "nftables ingress, verdict map of ", "port", "");
const NFTABLES_INTERVALS: Series =
    series("nftables, interval set", "nftables ingress, interval set of ", "port", "");
const IPTABLES: Series = series("iptables, rules in a row", "iptables raw, ", "rule", " in a row");

const PORTSTEER_SET: Series = series("portsteer, addresses", "portsteer, set of ", "address", "");
const TRIE: Series = series("LPM trie, addresses", "kernel LPM trie, ", "address", "");
const NFTABLES_SET: Series =
    series("nftables, addresses", "nftables ingress, set of ", "address", "");
const PORTSTEER_PREFIXES: Series =
    series("portsteer, prefixes", "portsteer, set of ", "prefix", "");
const TRIE_OF_PREFIXES: Series = series("LPM trie, prefixes", "kernel LPM trie, ", "prefix", "");
const NFTABLES_PREFIXES: Series =
    series("nftables, prefixes", "nftables ingress, interval set of ", "prefix", "");

/// A contestant with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub series: Series,
    pub size: usize,
}

impl Point {
    /// `portsteer, 1,000 rules by port`
    pub fn name(self) -> String {
        let Series { before, counted, after, .. } = self.series;
        let plural = match counted {
            _ if self.size == 1 => "",
            "address" | "prefix" => "es",
            _ => "s",
        };
        format!("{before}{} {counted}{plural}{after}", with_commas(self.size))
    }
}

/// `1,000`
pub fn with_commas(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Adds a point of a curve to an arena.
type Enter = fn(&mut Arena, Point, Family) -> Result<()>;

/// Points of one curve.
fn points(turns: &mut Vec<Turn>, series: Series, family: Family, sizes: &[usize], enter: Enter) {
    for &size in sizes {
        let point = Point { series, size };
        turns.push(Turn::new(point.name(), move |arena| enter(arena, point, family)));
    }
}

/// Rules and ports: from 1 to as many as there can be.
pub fn rules(family: Family) -> Contest {
    let mut turns = vec![
        Turn::new(EMPTY_DROP, |arena| empty(arena, EMPTY_DROP)),
        Turn::new(EMPTY_PASS, |arena| empty(arena, EMPTY_PASS)),
        Turn::new(NO_FILTER, |arena| no_filter(arena, NO_FILTER)),
        Turn::unnamed(move |arena| arena.rotate(family)),
    ];
    let mut add = |series, sizes: &[usize], enter| points(&mut turns, series, family, sizes, enter);
    add(PORTSTEER_PORTS, &[1, 10, 100, 1_000, 10_000, 65_535], |arena, point, family| {
        dropping_ports(arena, point)?;
        take_ports_in_turn(arena, &ports_of(point.size), family)
    });
    add(PORTSTEER_MIXED, &[10, 100, 1_000, 10_000, 100_000], judging_mixed);
    add(XDP_FILTER, &[1, 10_000], |arena, point, family| {
        xdp_filter_ports(arena, point)?;
        take_ports_in_turn(arena, &ports_of(point.size), family)
    });
    add(NFTABLES_RULES, &[1, 10, 100, 1_000, 10_000], |arena, point, family| {
        nftables_ports(arena, point, Lookup::InARow)?;
        take_ports_in_turn(arena, &ports_of(point.size), family)
    });
    add(NFTABLES_MAP, &[100, 10_000, 65_535], |arena, point, family| {
        nftables_ports(arena, point, Lookup::VerdictMap)?;
        take_ports_in_turn(arena, &ports_of(point.size), family)
    });
    add(NFTABLES_INTERVALS, &[1_000, 30_000], |arena, point, family| {
        nftables_ports(arena, point, Lookup::Intervals)?;
        let ports: Vec<u16> = (0..point.size as u16).map(|number| 2 * number + 1).collect();
        take_ports_in_turn(arena, &ports, family)
    });
    add(IPTABLES, &[1, 100, 1_000], |arena, point, family| {
        iptables(arena, point, family)?;
        take_ports_in_turn(arena, &ports_of(point.size), family)
    });
    let ip = family.name();
    let hit = Mixed::packet(family);
    let miss = Probe { dst_port: 0, ..hit };
    Contest {
        turns,
        curves: vec![
            Curves::new(
                format!("UDP over {ip}, dropped by the last rule"),
                picture("rules", family, "dropped"),
                Frames::from(&hit),
                Some(hit),
                XDP_DROP,
                EMPTY_DROP,
            ),
            Curves::new(
                format!("UDP over {ip}, 65,536 packets in turn, dropped by random rules"),
                picture("rules", family, "dropped-in-turn"),
                Frames::InTurn,
                None,
                XDP_DROP,
                EMPTY_DROP,
            ),
            Curves::new(
                format!("UDP over {ip}, passed: no rule matches"),
                picture("rules", family, "passed"),
                Frames::from(&miss),
                Some(miss),
                XDP_PASS,
                EMPTY_PASS,
            ),
        ],
        amount: Some(RULES),
        ..judging("rules")
    }
}

/// Lets the contestant that was added last get packets to all of these ports.
fn take_ports_in_turn(arena: &mut Arena, ports: &[u16], family: Family) -> Result<()> {
    // Somebody who is not installed was not added.
    if let Ok(last) = arena.last()
        && last.point.is_some()
        && last.probes.is_none()
    {
        last.probes = Some(Probes::new(probes::to_ports(family, ports)));
    }
    Ok(())
}

/// Sources: up to a million.
pub fn sets(family: Family) -> Result<Contest> {
    let mut turns = vec![
        Turn::new(EMPTY_DROP, |arena| empty(arena, EMPTY_DROP)),
        Turn::new(EMPTY_PASS, |arena| empty(arena, EMPTY_PASS)),
        Turn::new(NO_FILTER, |arena| no_filter(arena, NO_FILTER)),
        Turn::unnamed(move |arena| arena.rotate(family)),
    ];
    let sizes = [1_000, 10_000, 100_000, 1_000_000];
    // A million prefixes take nft half a minute.
    let few = [1_000, 10_000, 100_000];
    let mut add = |series, sizes: &[usize], enter| points(&mut turns, series, family, sizes, enter);
    add(PORTSTEER_SET, &sizes, |arena, point, family| {
        blocking(arena, point, Blocklist::of_addresses(point.size, family)?, blocking_sources)
    });
    add(TRIE, &sizes, |arena, point, family| {
        blocking(arena, point, Blocklist::of_addresses(point.size, family)?, lpm_trie_of)
    });
    add(NFTABLES_SET, &sizes, |arena, point, family| {
        blocking(arena, point, Blocklist::of_addresses(point.size, family)?, nftables_sources)
    });
    add(PORTSTEER_PREFIXES, &sizes, |arena, point, family| {
        blocking(arena, point, Blocklist::new(point.size, family)?, blocking_sources)
    });
    add(TRIE_OF_PREFIXES, &sizes, |arena, point, family| {
        blocking(arena, point, Blocklist::new(point.size, family)?, lpm_trie_of)
    });
    add(NFTABLES_PREFIXES, &few, |arena, point, family| {
        blocking(arena, point, Blocklist::new(point.size, family)?, nftables_sources)
    });
    let ip = family.name();
    Ok(Contest {
        turns,
        curves: vec![
            Curves::new(
                format!("UDP over {ip}, dropped: 65,536 sources in the set in turn"),
                picture("sets", family, "dropped"),
                Frames::InTurn,
                None,
                XDP_DROP,
                EMPTY_DROP,
            ),
            Curves::new(
                format!("UDP over {ip}, passed: 65,536 sources in turn that are not in the set"),
                picture("sets", family, "passed"),
                Frames::OthersInTurn,
                None,
                XDP_PASS,
                EMPTY_PASS,
            ),
        ],
        amount: Some(SETS),
        ..judging("sets")
    })
}

/// Adds somebody who drops these sources, with packets from them and from others.
fn blocking(
    arena: &mut Arena,
    point: Point,
    blocklist: Blocklist,
    enter: fn(&mut Arena, Point, &Blocklist) -> Result<()>,
) -> Result<()> {
    let count = arena.contestants.len();
    enter(arena, point, &blocklist)?;
    if arena.contestants.len() > count {
        let matched = Matched::sources(&blocklist);
        let others = blocklist.other_probes(|probe| matched.verdict(probe) == XDP_DROP)?;
        let last = arena.last()?;
        last.probes = Some(Probes::new(blocklist.matched_probes()));
        last.others = Some(Probes::new(others));
    }
    Ok(())
}

/// What the file of a picture is called.
fn picture(contest: &str, family: Family, what: &str) -> String {
    format!("{contest}-{}-{what}", family.name().to_ascii_lowercase())
}
