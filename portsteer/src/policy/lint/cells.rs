//! Protocols and destination ports: what rules that ask for the same in all other fields have taken
//! between them, worked out exactly.

use std::collections::{BTreeMap, BTreeSet};

use portsteer_common::{PortProtocol, wire::protocol};

use super::{MAX_NAMED, Steps};
use crate::policy::{PortRange, Rule};

/// IP protocol numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Protocols([u64; 4]);

impl Protocols {
    /// The protocols of which a rule matches packets.
    pub fn of(rule: &Rule) -> Self {
        let mut listed = Self::default();
        if rule.protocols.is_empty() {
            listed = Self([u64::MAX; 4]);
        }
        rule.protocols.iter().for_each(|&number| listed.insert(number));
        if !rule.dst_ports.is_empty() || !rule.src_ports.is_empty() {
            listed = listed.and(PortProtocol::ALL.map(PortProtocol::number));
        }
        if !rule.icmp_types.is_empty() {
            listed = listed.and([protocol::ICMP, protocol::ICMPV6]);
        }
        listed
    }

    pub const fn contains(self, number: u8) -> bool {
        self.0[number as usize / 64] & 1 << (number % 64) != 0
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub fn is_all(self) -> bool {
        self == Self([u64::MAX; 4])
    }

    /// Those that are not among `others`.
    fn without(self, others: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] & !others.0[index]))
    }

    fn with(self, others: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] | others.0[index]))
    }

    /// Those that are among `numbers`.
    pub fn and(self, numbers: impl IntoIterator<Item = u8>) -> Self {
        let mut both = Self::default();
        let numbers = numbers.into_iter().filter(|&number| self.contains(number));
        numbers.for_each(|number| both.insert(number));
        both
    }

    const fn insert(&mut self, number: u8) {
        self.0[number as usize / 64] |= 1 << (number % 64);
    }

    fn with_ports(self) -> impl Iterator<Item = PortProtocol> {
        PortProtocol::ALL.into_iter().filter(move |protocol| self.contains(protocol.number()))
    }
}

/// The cells that a rule matches: one for every port of every protocol that has ports, and one for
/// every protocol. For a protocol with ports the latter is that of its later fragments, which a rule
/// with ports takes too, because it ends their walk and leaves them to `options.fragments`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub protocols: Protocols,
    pub ports: &'a [PortRange],
}

impl<'a> Wanted<'a> {
    pub fn of(rule: &'a Rule) -> Self {
        const ALL: &[PortRange] = &[PortRange::ALL];
        let ports = if rule.dst_ports.is_empty() { ALL } else { &rule.dst_ports };
        Self { protocols: Protocols::of(rule), ports }
    }
}

/// Which rule was the first to take which cell. Rules are their indexes.
#[derive(Debug, Default)]
pub(super) struct Cells {
    taken: Protocols,
    by_protocol: Vec<(Protocols, u32)>,
    by_port: [Ports; PortProtocol::ALL.len()],
}

/// One protocol's ports.
#[derive(Debug, Default)]
struct Ports {
    /// By first port, the last: taken by anyone, neither overlapping nor adjacent.
    taken: BTreeMap<u16, u16>,
    /// By first port, the last and the owner.
    owners: BTreeMap<u16, (u16, u32)>,
}

impl Cells {
    /// Gives those of the cells to `owner` that nobody has.
    pub fn take(&mut self, wanted: Wanted<'_>, owner: u32) {
        let new = wanted.protocols.without(self.taken);
        if !new.is_empty() {
            self.by_protocol.push((new, owner));
            self.taken = self.taken.with(new);
        }
        for protocol in wanted.protocols.with_ports() {
            for range in wanted.ports {
                self.by_port[protocol as usize].take(*range, owner);
            }
        }
    }

    fn owner_of(&self, number: u8) -> Option<u32> {
        let has_it = |(protocols, _): &&(Protocols, u32)| protocols.contains(number);
        self.by_protocol.iter().find(has_it).map(|(_, owner)| *owner)
    }
}

impl Ports {
    fn take(&mut self, range: PortRange, owner: u32) {
        let mut free = Some(range.first);
        // What is taken already and touches the range becomes one with it.
        let (mut first, mut last) = (range.first, range.last);
        let before = self.taken.range(..=range.first).next_back();
        if let Some((&start, &end)) = before
            && u32::from(end) + 1 >= u32::from(range.first)
        {
            first = start;
        }
        let touching: Vec<(u16, u16)> = self
            .taken
            .range(first..=range.last.saturating_add(1))
            .map(|(&start, &end)| (start, end))
            .collect();
        for (start, end) in touching {
            if let Some(from) = free.filter(|from| *from < start) {
                self.owners.insert(from, (start - 1, owner));
            }
            // A neighbour below the range takes nothing from it.
            free = free.and_then(|from| end.checked_add(1).map(|after| from.max(after)));
            last = last.max(end);
            self.taken.remove(&start);
        }
        if let Some(from) = free.filter(|from| *from <= range.last) {
            self.owners.insert(from, (range.last, owner));
        }
        self.taken.insert(first, last);
    }

    /// The last port up to which all from `port` on are taken.
    fn taken_until(&self, port: u16) -> Option<u16> {
        let (_, &last) = self.taken.range(..=port).next_back()?;
        (last >= port).then_some(last)
    }

    /// Who has a port, and the last port of which the same is true.
    fn run(&self, port: u16) -> (Option<u32>, u16) {
        match self.owners.range(..=port).next_back() {
            Some((_, &(last, owner))) if last >= port => (Some(owner), last),
            _ => {
                let next = self.owners.range(port..).next();
                (None, next.map_or(u16::MAX, |(first, _)| first - 1))
            }
        }
    }
}

/// Whether each of the wanted cells is taken in some of `groups`. `None` if there were too few steps
/// to find out.
pub(super) fn is_taken(groups: &[&Cells], wanted: Wanted<'_>, steps: &mut Steps) -> Option<bool> {
    let taken = groups.iter().fold(Protocols::default(), |all, group| all.with(group.taken));
    steps.spend(groups.len())?;
    if !wanted.protocols.without(taken).is_empty() {
        return Some(false);
    }
    for protocol in wanted.protocols.with_ports() {
        for range in wanted.ports {
            let mut port = range.first;
            loop {
                steps.spend(groups.len())?;
                let ends = groups.iter().map(|group| &group.by_port[protocol as usize]);
                let Some(end) = ends.filter_map(|ports| ports.taken_until(port)).max() else {
                    return Some(false);
                };
                match end.checked_add(1) {
                    Some(after) if after <= range.last => port = after,
                    _ => break,
                }
            }
        }
    }
    Some(true)
}

/// Adds the first rules in `groups` to have the wanted cells to `found`. Returns whether these are all
/// of them: it stops when there are more than are named, or when there are too few steps.
pub(super) fn add_owners(
    groups: &[&Cells],
    wanted: Wanted<'_>,
    found: &mut BTreeSet<usize>,
    steps: &mut Steps,
) -> bool {
    let mut is_enough = |owner: Option<u32>| {
        found.extend(owner.map(|owner| owner as usize));
        found.len() > MAX_NAMED || steps.spend(groups.len()).is_none()
    };
    for number in (0..=u8::MAX).filter(|&number| wanted.protocols.contains(number)) {
        if is_enough(groups.iter().filter_map(|group| group.owner_of(number)).min()) {
            return false;
        }
        let Some(protocol) = PortProtocol::from_number(number) else { continue };
        for range in wanted.ports {
            let mut port = range.first;
            loop {
                let runs = groups.iter().map(|group| group.by_port[protocol as usize].run(port));
                let nobody = (None, u16::MAX);
                let (owner, last) = runs.fold(nobody, |(owner, last), (other, end)| {
                    (owner.into_iter().chain(other).min(), last.min(end))
                });
                if is_enough(owner) {
                    return false;
                }
                match last.checked_add(1) {
                    Some(after) if after <= range.last => port = after,
                    _ => break,
                }
            }
        }
    }
    true
}
