//! A policy's rules in a form that a packet is compared with quickly, however many they are.
//!
//! What several rules ask of a field is kept once, and a packet is compared with it once. Addresses are
//! looked up in the merged ranges of the sets.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
    ops::Range,
};

use globset::{Glob, GlobSet, GlobSetBuilder};
use ipnet::IpNet;
use portsteer_common::{PortProtocol, wire::protocol};

use crate::{
    oracle::Packet,
    policy::{AddressItem, Addresses, NumberRange, Policy, ranges::AddressRanges},
};

/// What a rule can ask for, in the order in which its misses are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Protocol,
    Src,
    SrcPort,
    Dst,
    DstPort,
    IcmpType,
    Vlan,
    Interface,
}

impl Field {
    pub const ALL: [Self; 8] = [
        Self::Protocol,
        Self::Src,
        Self::SrcPort,
        Self::Dst,
        Self::DstPort,
        Self::IcmpType,
        Self::Vlan,
        Self::Interface,
    ];

    /// Its key in the policy file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Src => "src",
            Self::SrcPort => "src_port",
            Self::Dst => "dst",
            Self::DstPort => "dst_port",
            Self::IcmpType => "icmp_type",
            Self::Vlan => "vlan",
            Self::Interface => "interface",
        }
    }
}

/// Fields, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fields(u8);

impl Fields {
    const PORTS: Self = Self(1 << Field::SrcPort as u8 | 1 << Field::DstPort as u8);
    const TYPES: Self = Self(1 << Field::IcmpType as u8);

    pub const fn contains(self, field: Field) -> bool {
        self.0 & 1 << field as u8 != 0
    }

    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    const fn touches(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

/// In a row, of a field that the rule asks nothing of.
const ANY: u32 = 0;

/// The rules.
#[derive(Debug)]
pub(super) struct Index<'a> {
    /// By rule and field: the place of what is asked among all that is asked of the field.
    rows: Vec<[u32; Field::ALL.len()]>,
    protocols: Vec<&'a [u8]>,
    src: Vec<Asked>,
    dst: Vec<Asked>,
    src_ports: Vec<&'a [NumberRange]>,
    dst_ports: Vec<&'a [NumberRange]>,
    icmp_types: Vec<&'a [NumberRange]>,
    vlans: Vec<&'a [NumberRange]>,
    interfaces: Vec<Interfaces<'a>>,
    /// The few prefixes of each list of addresses, one after the other.
    prefixes: Vec<IpNet>,
    /// The policy's sets, empty where no rule names them, then the lists of many prefixes.
    ranges: Vec<AddressRanges>,
}

/// Addresses that are asked for.
#[derive(Debug)]
struct Asked {
    /// Whether there are any that have to be met.
    has_positive: bool,
    positive: Part,
    negative: Part,
}

/// Places in [`Index::prefixes`] and [`Index::ranges`].
#[derive(Debug)]
struct Part {
    prefixes: Range<usize>,
    ranges: Vec<u32>,
}

/// Names and globs.
#[derive(Debug)]
struct Interfaces<'a> {
    names: Vec<&'a str>,
    globs: GlobSet,
}

/// How many prefixes of a list are compared one by one.
const FEW: usize = 16;

impl<'a> Index<'a> {
    pub fn new(policy: &'a Policy) -> Self {
        let rules = || policy.rules.iter();
        let mut rows = vec![[ANY; Field::ALL.len()]; policy.rules.len()];
        let mut place = |field: Field, ids: Vec<u32>| {
            for (row, id) in rows.iter_mut().zip(ids) {
                row[field as usize] = id;
            }
        };
        let mut numbers = |field, lists: Vec<&'a [NumberRange]>| {
            let (distinct, ids) = distinct(lists);
            place(field, ids);
            distinct
        };
        let src_ports = numbers(Field::SrcPort, rules().map(|rule| &rule.src_ports[..]).collect());
        let dst_ports = numbers(Field::DstPort, rules().map(|rule| &rule.dst_ports[..]).collect());
        let icmp_types =
            numbers(Field::IcmpType, rules().map(|rule| &rule.icmp_types[..]).collect());
        let vlans = numbers(Field::Vlan, rules().map(|rule| &rule.vlans[..]).collect());
        let (protocols, ids) = distinct(rules().map(|rule| &rule.protocols[..]));
        place(Field::Protocol, ids);
        let patterns = |rule: &'a crate::policy::Rule| -> Vec<(&'a str, bool)> {
            rule.interfaces.iter().map(|pattern| (&*pattern.text, pattern.is_glob)).collect()
        };
        let (interfaces, ids) = distinct(rules().map(patterns));
        place(Field::Interface, ids);
        let asked = |addresses: &'a Addresses| (&addresses.positive[..], &addresses.negative[..]);
        let (src, ids) = distinct(rules().map(|rule| asked(&rule.src)));
        place(Field::Src, ids);
        let (dst, ids) = distinct(rules().map(|rule| asked(&rule.dst)));
        place(Field::Dst, ids);
        let mut index = Self {
            rows,
            protocols,
            src: Vec::new(),
            dst: Vec::new(),
            src_ports,
            dst_ports,
            icmp_types,
            vlans,
            interfaces: interfaces.into_iter().map(Interfaces::new).collect(),
            prefixes: Vec::new(),
            ranges: vec![AddressRanges::default(); policy.sets.len()],
        };
        index.src = src.into_iter().map(|asked| index.resolve(policy, asked)).collect();
        index.dst = dst.into_iter().map(|asked| index.resolve(policy, asked)).collect();
        index
    }

    fn resolve(
        &mut self,
        policy: &Policy,
        (positive, negative): (&[AddressItem], &[AddressItem]),
    ) -> Asked {
        Asked {
            has_positive: !positive.is_empty(),
            positive: self.part(policy, positive),
            negative: self.part(policy, negative),
        }
    }

    fn part(&mut self, policy: &Policy, items: &[AddressItem]) -> Part {
        let (mut prefixes, mut ranges) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                AddressItem::Prefix(prefix) => prefixes.push(*prefix),
                AddressItem::Set(id) => {
                    let known = &mut self.ranges[id.0 as usize];
                    if known.count() == 0 {
                        *known = AddressRanges::of_prefixes(policy.set(*id).prefixes.iter());
                    }
                    ranges.push(id.0);
                }
            }
        }
        if prefixes.len() > FEW {
            ranges.push(self.ranges.len() as u32);
            self.ranges.push(AddressRanges::of_prefixes(&prefixes));
            prefixes.clear();
        }
        let first = self.prefixes.len();
        self.prefixes.extend(prefixes);
        Part { prefixes: first..self.prefixes.len(), ranges }
    }

    /// Whether an address is in what a rule asks for.
    pub fn is_in(&self, address: IpAddr, item: &AddressItem) -> bool {
        match item {
            AddressItem::Prefix(prefix) => prefix.contains(&address),
            AddressItem::Set(id) => self.ranges[id.0 as usize].contains(address),
        }
    }

    /// Compares a packet with all that is asked for.
    pub fn compare(&self, packet: &Packet<'_>) -> Compared<'_> {
        let has_ports = PortProtocol::from_number(packet.protocol).is_some();
        let has_types = [protocol::ICMP, protocol::ICMPV6].contains(&packet.protocol);
        let is_whole = !packet.later_fragment;
        let icmp = packet.icmp.or(packet.icmpv6);
        let icmp = icmp.map(|(kind, code)| u16::from_be_bytes([kind, code]));
        let hits = [
            hits(&self.protocols, |asked| asked.contains(&packet.protocol)),
            self.hit_addresses(&self.src, packet.src),
            hit_numbers(&self.src_ports, packet.src_port.filter(|_| has_ports && is_whole)),
            self.hit_addresses(&self.dst, packet.dst),
            hit_numbers(&self.dst_ports, packet.dst_port.filter(|_| has_ports && is_whole)),
            hit_numbers(&self.icmp_types, icmp.filter(|_| has_types && is_whole)),
            hit_numbers(&self.vlans, Some(packet.vlan)),
            hits(&self.interfaces, |asked| {
                packet.interface.is_some_and(|name| asked.contain(name))
            }),
        ];
        Compared { rows: &self.rows, hits, has_ports, has_types, is_whole }
    }

    fn hit_addresses(&self, lists: &[Asked], address: Option<IpAddr>) -> Vec<bool> {
        let Some(address) = address else { return hits(lists, |_| false) };
        let in_ranges: Vec<bool> =
            self.ranges.iter().map(|ranges| ranges.contains(address)).collect();
        let is_in = |part: &Part| {
            self.prefixes[part.prefixes.clone()].iter().any(|prefix| prefix.contains(&address))
                || part.ranges.iter().any(|&at| in_ranges[at as usize])
        };
        hits(lists, |asked| {
            (!asked.has_positive || is_in(&asked.positive)) && !is_in(&asked.negative)
        })
    }
}

impl<'a> Interfaces<'a> {
    fn new(patterns: Vec<(&'a str, bool)>) -> Self {
        let mut globs = GlobSetBuilder::new();
        let mut names = Vec::new();
        for (text, is_glob) in patterns {
            match Glob::new(text) {
                Ok(glob) if is_glob => drop(globs.add(glob)),
                Err(_) if is_glob => {}
                _ => names.push(text),
            }
        }
        Self { names, globs: globs.build().unwrap_or_else(|_| GlobSet::empty()) }
    }

    fn contain(&self, name: &str) -> bool {
        self.names.contains(&name) || self.globs.is_match(name)
    }
}

/// What of the rules a packet meets.
#[derive(Debug)]
pub(super) struct Compared<'a> {
    rows: &'a [[u32; Field::ALL.len()]],
    /// By field, and by what is asked of it, whether the packet has it.
    hits: [Vec<bool>; Field::ALL.len()],
    has_ports: bool,
    has_types: bool,
    is_whole: bool,
}

/// What a rule makes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// It decides.
    Decides,
    /// It ends the walk of a later fragment, which lacks what it asks for.
    Fragment,
    /// Nothing: these fields are other ones.
    Misses(Fields),
}

impl Compared<'_> {
    /// The fields that a rule asks for.
    pub fn asked(&self, rule: usize) -> Fields {
        let asks = |(field, &id): (usize, &u32)| u8::from(id != ANY) << field;
        Fields(self.rows[rule].iter().enumerate().map(asks).sum())
    }

    /// The fields that a rule asks for and the packet does not have.
    pub fn misses(&self, rule: usize) -> Fields {
        let row = &self.rows[rule];
        let misses =
            |(field, hits): (usize, &Vec<bool>)| u8::from(!hits[row[field] as usize]) << field;
        Fields(self.hits.iter().enumerate().map(misses).sum())
    }

    /// What a rule makes of the packet.
    pub fn met(&self, rule: usize) -> Met {
        let misses = self.misses(rule);
        if misses.is_empty() {
            return Met::Decides;
        }
        let asked = self.asked(rule);
        let lacks = Fields(Fields::PORTS.0 | Fields::TYPES.0);
        let could_have = (self.has_ports || !asked.touches(Fields::PORTS))
            && (self.has_types || !asked.touches(Fields::TYPES));
        if !self.is_whole && could_have && misses.without(lacks).is_empty() {
            return Met::Fragment;
        }
        Met::Misses(misses)
    }
}

/// What is different, each by its place; the first is nothing, [`ANY`].
fn distinct<T: Clone + Eq + Hash + Default>(
    all: impl IntoIterator<Item = T>,
) -> (Vec<T>, Vec<u32>) {
    let mut distinct = vec![T::default()];
    let mut known = HashMap::from([(T::default(), ANY)]);
    let ids = all
        .into_iter()
        .map(|asked| match known.entry(asked) {
            Entry::Occupied(id) => *id.get(),
            Entry::Vacant(entry) => {
                distinct.push(entry.key().clone());
                *entry.insert(distinct.len() as u32 - 1)
            }
        })
        .collect();
    (distinct, ids)
}

/// Which of what is asked is met. What is not asked always is.
fn hits<T>(asked: &[T], is_met: impl Fn(&T) -> bool) -> Vec<bool> {
    let mut hits: Vec<bool> = asked.iter().map(is_met).collect();
    hits[ANY as usize] = true;
    hits
}

fn hit_numbers(lists: &[&[NumberRange]], number: Option<u16>) -> Vec<bool> {
    hits(lists, |ranges| {
        number.is_some_and(|number| {
            let after = ranges.partition_point(|range| range.first <= number);
            after > 0 && number <= ranges[after - 1].last
        })
    })
}
