//! Rules that constrain addresses: which of them match, by address, as trees of 16-bit digits.
//!
//! Rules with the same addresses are a *group*. A sweep over the addresses where groups begin and end
//! gives *classes*: ranges of addresses that the same groups hold.

use std::{collections::HashMap, rc::Rc};

use portsteer_common::{Node, node::Kind};

use super::{
    budget::{Budget, OverBudget},
    diagram::{Diagram, Entries},
    fields::Fields,
    ranges::{AddressRanges, BITS, Resolver},
};
use crate::policy::Addresses;

/// Which of a packet's addresses a rule is grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Src,
    Dst,
}

/// Rules that ask for the same addresses.
#[derive(Debug)]
struct Group {
    addresses: Rc<AddressRanges>,
    rules: Vec<u32>,
}

/// Builds the trees.
#[derive(Debug)]
pub(super) struct Partitions<'a> {
    fields: Fields<'a>,
    resolver: Resolver<'a>,
    resolved: HashMap<&'a Addresses, Rc<AddressRanges>>,
    /// The trees by destination of rules that constrain the source too, by the rules and IP version.
    by_destination: HashMap<(Box<[u32]>, usize), Node>,
}

impl<'a> Partitions<'a> {
    pub(super) fn new(fields: Fields<'a>, resolver: Resolver<'a>) -> Self {
        let (resolved, by_destination) = (HashMap::new(), HashMap::new());
        Self { fields, resolver, resolved, by_destination }
    }

    /// See [`Fields`].
    pub(super) fn fields(&mut self) -> &mut Fields<'a> {
        &mut self.fields
    }

    /// The root of the tree for an IP version of these rules, all of which constrain this side.
    pub(super) fn root(
        &mut self,
        side: Side,
        rules: &[u32],
        version: usize,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let groups = self.groups(side, rules);
        let classes = classes(&groups, version, budget)?;
        let mut nodes = Vec::with_capacity(classes.groups.len());
        for class in &classes.groups {
            let rules = rules_of(&groups, class);
            budget.take_steps(rules.len())?;
            let (both, alone): (Vec<u32>, Vec<u32>) = rules.iter().partition(|&&rule| {
                side == Side::Src && !self.fields.rules[rule as usize].rule.dst.is_any()
            });
            let alone = self.fields.tail(&alone, diagram, budget)?;
            let root = self.by_destination(&both, version, diagram, budget)?;
            nodes.push(diagram.fork(alone, root, budget)?);
        }
        let entries = digits(&classes.intervals(&nodes), BITS[version], diagram, budget)?;
        // Every packet comes by here: no search for the first digit.
        if entries.iter().any(|entry| entry.1 != entries[0].1) {
            return diagram.table(Kind::Branch, &entries, budget);
        }
        Ok(entries[0].1)
    }

    /// The root by destination of rules that constrain source and destination, and whose source
    /// matches.
    fn by_destination(
        &mut self,
        rules: &[u32],
        version: usize,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        if rules.is_empty() {
            return Ok(Node::NOTHING);
        }
        let key = (rules.into(), version);
        if let Some(&node) = self.by_destination.get(&key) {
            return Ok(node);
        }
        budget.note(rules);
        let groups = self.groups(Side::Dst, rules);
        let classes = classes(&groups, version, budget)?;
        let mut nodes = Vec::with_capacity(classes.groups.len());
        for class in &classes.groups {
            let rules = rules_of(&groups, class);
            nodes.push(self.fields.tail(&rules, diagram, budget)?);
        }
        let node = tree(&classes.intervals(&nodes), BITS[version], diagram, budget)?;
        self.by_destination.insert(key, node);
        Ok(node)
    }

    /// The rules by their addresses, in the order of each group's first rule.
    fn groups(&mut self, side: Side, rules: &[u32]) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<&Addresses, usize> = HashMap::new();
        for &number in rules {
            let rule = self.fields.rules[number as usize].rule;
            let asked = match side {
                Side::Src => &rule.src,
                Side::Dst => &rule.dst,
            };
            let index = *known.entry(asked).or_insert_with(|| {
                let resolve = || Rc::new(self.resolver.resolve(asked));
                let addresses = self.resolved.entry(asked).or_insert_with(resolve).clone();
                groups.push(Group { addresses, rules: Vec::new() });
                groups.len() - 1
            });
            groups[index].rules.push(number);
        }
        groups
    }
}

/// The rules of some groups, ascending.
fn rules_of(groups: &[Group], class: &[u32]) -> Vec<u32> {
    let mut rules: Vec<u32> =
        class.iter().flat_map(|&group| &groups[group as usize].rules).copied().collect();
    rules.sort_unstable();
    rules
}

/// Ranges of addresses that the same groups hold.
struct Classes {
    /// From which address on which class: ascending, the first from 0 on.
    starts: Vec<(u128, usize)>,
    /// The groups of each class, ascending.
    groups: Vec<Rc<[u32]>>,
}

impl Classes {
    /// From which address on which node, of those that the classes have.
    fn intervals(&self, nodes: &[Node]) -> Vec<(u128, Node)> {
        let mut intervals: Vec<(u128, Node)> =
            self.starts.iter().map(|&(start, class)| (start, nodes[class])).collect();
        intervals.dedup_by_key(|interval| interval.1);
        intervals
    }
}

/// The classes of addresses of an IP version.
fn classes(groups: &[Group], version: usize, budget: &mut Budget) -> Result<Classes, OverBudget> {
    let greatest = u128::MAX >> (128 - BITS[version]);
    let mut events: Vec<(u128, u32)> = Vec::new();
    for (group, number) in groups.iter().zip(0..) {
        for &(first, last) in &group.addresses.0[version] {
            events.push((first, number));
            if last < greatest {
                events.push((last + 1, number));
            }
        }
    }
    budget.take_steps(events.len())?;
    // Stable: it makes use of what is sorted already.
    events.sort();
    let mut classes = Classes { starts: vec![(0, 0)], groups: vec![Rc::new([])] };
    let mut known: HashMap<Rc<[u32]>, usize> = HashMap::from([(classes.groups[0].clone(), 0)]);
    // A group begins where it is not active, and ends where it is.
    let mut active: Vec<u32> = Vec::new();
    let mut events = events.into_iter().peekable();
    while let Some((address, group)) = events.next() {
        match active.binary_search(&group) {
            Ok(at) => drop(active.remove(at)),
            Err(at) => active.insert(at, group),
        }
        if events.peek().is_some_and(|next| next.0 == address) {
            continue;
        }
        budget.take_steps(1 + active.len())?;
        let class = match known.get(&active[..]) {
            Some(&class) => class,
            None => {
                let class: Rc<[u32]> = Rc::from(&active[..]);
                classes.groups.push(class.clone());
                known.insert(class, classes.groups.len() - 1);
                classes.groups.len() - 1
            }
        };
        if address == 0 {
            classes.starts.clear();
        }
        classes.starts.push((address, class));
    }
    Ok(classes)
}

/// The node for ascending intervals, of which the first begins where the node does, by so many of an
/// address's lowest bits.
fn tree(
    intervals: &[(u128, Node)],
    bits: u32,
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Node, OverBudget> {
    if let [(_, node)] = intervals {
        return Ok(*node);
    }
    // One digit is found as quickly in a list.
    if bits > 16
        && let Some(path) = path(intervals, bits)
    {
        let same = tree(&path.inside, bits - path.bits, diagram, budget)?;
        return diagram.path(path.mask, path.value, [same, path.other], budget);
    }
    let entries = digits(intervals, bits, diagram, budget)?;
    diagram.branch(Kind::Branch, entries, budget)
}

/// Intervals that are one node but for a prefix.
struct Path {
    /// How many bits are compared, at most 64: if there are not so many left, the lowest are zero.
    bits: u32,
    mask: u64,
    value: u64,
    inside: Vec<(u128, Node)>,
    other: Node,
}

fn path(intervals: &[(u128, Node)], bits: u32) -> Option<Path> {
    // Of addresses, only the lowest bits count from here on.
    let low = u128::MAX >> (128 - bits);
    let at = |index: usize| intervals[index].0 & low;
    let (first, last, node, other) = match intervals.len() {
        3 if intervals[0].1 == intervals[2].1 => (at(1), at(2) - 1, intervals[1].1, intervals[0].1),
        // The prefix is at the start or at the end: whichever is one.
        2 if is_prefix(0, at(1) - 1) => (0, at(1) - 1, intervals[0].1, intervals[1].1),
        2 => (at(1), low, intervals[1].1, intervals[0].1),
        _ => return None,
    };
    if !is_prefix(first, last) {
        return None;
    }
    let taken = bits.min(64);
    // The next 64 bits of the address, those that there are not as zeroes.
    let window = |value: u128| (value << (128 - bits) >> 64) as u64;
    let base = intervals[0].0 & !low;
    let (inside_bits, host) = (bits - taken, last - first);
    let inside_low = (1 << inside_bits) - 1;
    if host & inside_low == inside_low {
        // The prefix ends within the window.
        let (mask, value) = (window(low & !host), window(first));
        return Some(Path { bits: taken, mask, value, inside: vec![(base | first, node)], other });
    }
    let mut inside = Vec::new();
    if first & inside_low != 0 {
        inside.push((base | first & !inside_low, other));
    }
    inside.push((base | first, node));
    if last & inside_low != inside_low {
        inside.push((base | (last + 1), other));
    }
    Some(Path { bits: taken, mask: window(low), value: window(first), inside, other })
}

/// Whether the addresses from `first` to `last`, both included, are a prefix.
const fn is_prefix(first: u128, last: u128) -> bool {
    let host = last - first;
    host & host.wrapping_add(1) == 0 && first & host == 0
}

/// The entries of a tree's node, by the highest of so many bits of an address, 16 of them, for ascending
/// intervals of which the first begins where the node does.
fn digits(
    intervals: &[(u128, Node)],
    bits: u32,
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Entries, OverBudget> {
    let shift = bits - 16;
    let digit = |address: u128| (address >> shift) as u16;
    let below = (1u128 << shift) - 1;
    let mut entries = Entries::new();
    let mut before = Node::NOTHING;
    for same in intervals.chunk_by(|a, b| digit(a.0) == digit(b.0)) {
        let at = digit(same[0].0);
        let starts_inside = same[0].0 & below != 0;
        let last = same[same.len() - 1].1;
        // What was to go on gives way to what begins here.
        entries.pop_if(|entry| entry.0 == at);
        if !starts_inside && same.len() == 1 {
            entries.push((at, last));
        } else {
            let mut part = Vec::with_capacity(same.len() + 1);
            if starts_inside {
                part.push((same[0].0 & !below, before));
            }
            part.extend_from_slice(same);
            entries.push((at, tree(&part, shift, diagram, budget)?));
            if let Some(next) = at.checked_add(1) {
                entries.push((next, last));
            }
        }
        before = last;
    }
    Ok(entries)
}
