//! Rules that constrain addresses: which of them match, by address, as trees of 16-bit digits.
//!
//! Rules with the same addresses are a *group*. A sweep over the addresses where groups begin and end
//! gives *classes*: ranges of addresses that the same groups hold.

use std::{collections::HashMap, rc::Rc};

use portsteer_common::Node;

use super::{
    budget::{Budget, OverBudget},
    diagram::Diagram,
    fields::Fields,
    patch::{Span, patched, patched_root},
    ranges::{AddressRanges, BITS, Ranges, Region, Resolver},
    tree::{Intervals, root, tree},
};
use crate::policy::{Addresses, Policy};

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

/// The trees by destination of rules that constrain the source too, by the rules and IP version.
pub(super) type ByDestination = HashMap<(Box<[u32]>, usize), Node>;

/// Where rules are looked at.
#[derive(Debug, Clone, Copy)]
enum Scope {
    Everywhere,
    /// Where sets have changed.
    Changed,
}

/// Builds the trees.
#[derive(Debug)]
pub(super) struct Partitions<'a> {
    fields: Fields<'a>,
    everywhere: Resolver<'a>,
    changed: Resolver<'a>,
    by_destination: ByDestination,
}

impl<'a> Partitions<'a> {
    /// With nothing known yet.
    pub(super) fn new(fields: Fields<'a>, policy: &'a Policy) -> Self {
        let nowhere = Region::within(AddressRanges::default());
        Self::changed(fields, policy, nowhere, ByDestination::new())
    }

    /// With the trees by destination of a policy that differs in this region at most.
    pub(super) fn changed(
        fields: Fields<'a>,
        policy: &'a Policy,
        region: Region,
        by_destination: ByDestination,
    ) -> Self {
        let everywhere = Resolver::new(policy, Region::Everywhere);
        let changed = Resolver::new(policy, region);
        Self { fields, everywhere, changed, by_destination }
    }

    /// See [`Fields`].
    pub(super) fn fields(&mut self) -> &mut Fields<'a> {
        &mut self.fields
    }

    /// What is known by now.
    pub(super) fn into_parts(self) -> (Fields<'a>, ByDestination) {
        (self.fields, self.by_destination)
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
        let (classes, nodes) =
            self.classes(side, rules, version, Scope::Everywhere, diagram, budget)?;
        root(&classes.intervals(&nodes), BITS[version], diagram, budget)
    }

    /// The same root, from the one that it was before sets changed.
    pub(super) fn patched_root(
        &mut self,
        (side, version): (Side, usize),
        rules: &[u32],
        old: Node,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let (classes, nodes) =
            self.classes(side, rules, version, Scope::Changed, diagram, budget)?;
        let spans = classes.spans(&nodes, &self.changed.region().ranges().0[version]);
        patched_root(old, BITS[version], &spans, diagram, budget)
    }

    /// Brings the trees by destination up to date that have a rule of which this is true. Says whether
    /// any became another.
    pub(super) fn patch_destinations(
        &mut self,
        is_affected: impl Fn(u32) -> bool,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<bool, OverBudget> {
        let affected =
            |(rules, _): &&(Box<[u32]>, usize)| rules.iter().any(|&rule| is_affected(rule));
        let mut keys: Vec<(Box<[u32]>, usize)> =
            self.by_destination.keys().filter(affected).cloned().collect();
        keys.sort_unstable();
        let mut is_any_other = false;
        for key in keys {
            let (rules, version) = (&key.0, key.1);
            let (classes, nodes) =
                self.classes(Side::Dst, rules, version, Scope::Changed, diagram, budget)?;
            let spans = classes.spans(&nodes, &self.changed.region().ranges().0[version]);
            let old = self.by_destination[&key];
            let new = patched(old, 0, BITS[version], &spans, diagram, budget)?;
            is_any_other |= new != old;
            self.by_destination.insert(key, new);
        }
        Ok(is_any_other)
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
        let (classes, nodes) =
            self.classes(Side::Dst, rules, version, Scope::Everywhere, diagram, budget)?;
        let node = tree(&classes.intervals(&nodes), BITS[version], diagram, budget)?;
        self.by_destination.insert(key, node);
        Ok(node)
    }

    /// The classes of addresses, and the node of each.
    fn classes(
        &mut self,
        side: Side,
        rules: &[u32],
        version: usize,
        scope: Scope,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<(Classes, Vec<Node>), OverBudget> {
        let groups = self.groups(side, rules, scope);
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
        Ok((classes, nodes))
    }

    /// The rules by their addresses, in the order of each group's first rule.
    fn groups(&mut self, side: Side, rules: &[u32], scope: Scope) -> Vec<Group> {
        let resolver = match scope {
            Scope::Everywhere => &mut self.everywhere,
            Scope::Changed => &mut self.changed,
        };
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<&Addresses, usize> = HashMap::new();
        for &number in rules {
            let rule = self.fields.rules[number as usize].rule;
            let asked = match side {
                Side::Src => &rule.src,
                Side::Dst => &rule.dst,
            };
            let index = *known.entry(asked).or_insert_with(|| {
                let addresses = resolver.resolved(asked);
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
    fn intervals(&self, nodes: &[Node]) -> Intervals {
        let mut intervals: Intervals =
            self.starts.iter().map(|&(start, class)| (start, nodes[class])).collect();
        intervals.dedup_by_key(|interval| interval.1);
        intervals
    }

    /// The same for these ranges alone, each by itself.
    fn spans(&self, nodes: &[Node], ranges: &Ranges) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut index = 0;
        for &(from, to) in ranges {
            while self.starts.get(index + 1).is_some_and(|start| start.0 <= from) {
                index += 1;
            }
            loop {
                let (start, class) = self.starts[index];
                let (first, node) = (start.max(from), nodes[class]);
                let end = self.starts.get(index + 1).map(|next| next.0).filter(|next| *next <= to);
                let last = end.map_or(to, |end| end - 1);
                match spans.last_mut() {
                    Some(span) if span.node == node && first > from => span.last = last,
                    _ => spans.push(Span { first, last, node }),
                }
                if end.is_none() {
                    break;
                }
                index += 1;
            }
        }
        spans
    }
}

/// The classes of addresses of an IP version.
fn classes(groups: &[Group], version: usize, budget: &mut Budget) -> Result<Classes, OverBudget> {
    let greatest = u128::MAX >> (128 - BITS[version]);
    let count: usize = groups.iter().map(|group| group.addresses.0[version].len()).sum();
    let mut events: Vec<(u128, u32)> = Vec::with_capacity(2 * count);
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
    let mut starts = Vec::with_capacity(1 + events.len());
    starts.push((0, 0));
    let mut classes = Classes { starts, groups: vec![Rc::new([])] };
    let mut known: HashMap<Rc<[u32]>, usize> = HashMap::new();
    // The classes of one group alone, which are most where there are a million ranges.
    let mut alone: Vec<Option<usize>> = vec![None; groups.len()];
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
        let found = match active[..] {
            [] => Some(0),
            [group] => alone[group as usize],
            _ => known.get(&active[..]).copied(),
        };
        let class = found.unwrap_or_else(|| {
            let class: Rc<[u32]> = Rc::from(&active[..]);
            classes.groups.push(class.clone());
            let number = classes.groups.len() - 1;
            match active[..] {
                [group] => alone[group as usize] = Some(number),
                _ => drop(known.insert(class, number)),
            }
            number
        });
        if address == 0 {
            classes.starts.clear();
        }
        classes.starts.push((address, class));
    }
    Ok(classes)
}
