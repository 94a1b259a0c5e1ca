//! What rules ask for besides addresses: protocol, ports and ICMP types, by row and column; then VLAN
//! ids, interfaces and source ports, the *extras*.

use std::{
    cell::OnceCell,
    collections::{BTreeSet, HashMap},
};

use portsteer_common::{
    Node, PortProtocol,
    node::{Kind, OTHER_COLUMNS, row},
    wire::protocol,
};

use super::{
    budget::{Budget, OverBudget},
    diagram::{Diagram, Entries},
};
use crate::policy::{NumberRange, Rule};

/// A rule as the tables want it.
#[derive(Debug)]
pub(super) struct Match<'a> {
    pub(super) rule: &'a Rule,
    /// The slots of the interfaces that it asks for; `None` if any will do.
    pub(super) slots: Option<Vec<NumberRange>>,
    /// The columns of the last row that it matches, which take some time to find.
    other_columns: OnceCell<Vec<NumberRange>>,
}

/// The extras, in the order in which the program asks for them.
const EXTRAS: [Kind; 3] = [Kind::Vlan, Kind::Interface, Kind::SrcPort];

impl<'a> Match<'a> {
    /// A rule, with the slots of the interfaces that it asks for; `None` if any will do.
    pub(super) fn new(rule: &'a Rule, slots: Option<Vec<NumberRange>>) -> Self {
        Self { rule, slots, other_columns: OnceCell::new() }
    }

    /// What it asks for in one of the extras; `None` if anything will do. Later fragments have no
    /// source port.
    fn extra(&self, kind: Kind, later: bool) -> Option<&[NumberRange]> {
        let asked = |ranges: &'_ [NumberRange]| !ranges.is_empty();
        match kind {
            Kind::Vlan => Some(&self.rule.vlans[..]).filter(|ranges| asked(ranges)),
            Kind::Interface => self.slots.as_deref(),
            _ => Some(&self.rule.src_ports[..]).filter(|ranges| asked(ranges) && !later),
        }
    }

    pub(super) fn has_extras(&self, later: bool) -> bool {
        EXTRAS.iter().any(|&kind| self.extra(kind, later).is_some())
    }

    fn asks_for_ports(&self) -> bool {
        !self.rule.src_ports.is_empty() || !self.rule.dst_ports.is_empty()
    }

    fn has_protocol(&self, number: u8) -> bool {
        self.rule.protocols.is_empty() || self.rule.protocols.contains(&number)
    }

    /// The columns of a row that it matches, ascending.
    fn columns(&self, row: u32) -> &[NumberRange] {
        const ALL: &[NumberRange] = &[NumberRange::ALL];
        fn some(ranges: &[NumberRange]) -> &[NumberRange] {
            if ranges.is_empty() { ALL } else { ranges }
        }
        let types = &self.rule.icmp_types;
        match row {
            row::OTHER => self.other_columns.get_or_init(|| self.find_other_columns()),
            row::ICMP | row::ICMPV6 => {
                let number = if row == row::ICMP { protocol::ICMP } else { protocol::ICMPV6 };
                if self.asks_for_ports() || !self.has_protocol(number) {
                    return &[];
                }
                some(types)
            }
            row => {
                let number = PortProtocol::ALL[row as usize].number();
                if !types.is_empty() || !self.has_protocol(number) {
                    return &[];
                }
                some(&self.rule.dst_ports)
            }
        }
    }

    fn find_other_columns(&self) -> Vec<NumberRange> {
        let later = row::LATER as u16;
        let (ports, types) = (self.asks_for_ports(), !self.rule.icmp_types.is_empty());
        if self.rule.protocols.is_empty() && !ports && !types {
            return vec![NumberRange { first: 0, last: OTHER_COLUMNS as u16 - 1 }];
        }
        let matches = |&column: &u16| {
            let number = column as u8;
            let has_ports = PortProtocol::from_number(number).is_some();
            let has_types = matches!(number, protocol::ICMP | protocol::ICMPV6);
            let could = (!ports || has_ports) && (!types || has_types);
            self.has_protocol(number) && could && (column >= later || !ports && !types)
        };
        let mut columns: Vec<NumberRange> = Vec::new();
        for column in (0..OTHER_COLUMNS as u16).filter(matches) {
            match columns.last_mut() {
                Some(range) if range.last + 1 == column => range.last = column,
                _ => columns.push(NumberRange::single(column)),
            }
        }
        columns
    }

    /// Whether it matches whatever it is asked about.
    fn is_unconditional(&self) -> bool {
        self.rule.protocols.is_empty() && !self.rule.needs_transport() && !self.has_extras(false)
    }
}

/// Finds nodes for lists of rules. Rules are numbers, ascending: the first that matches decides.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) rules: &'a [Match<'a>],
    known: Tails,
}

/// The nodes that were found, which are those of the same rules for as long as the diagram has them.
#[derive(Debug, Default)]
pub(super) struct Tails {
    tails: HashMap<Box<[u32]>, Node>,
    extras: HashMap<(Box<[u32]>, bool), Node>,
}

impl Tails {
    pub(super) fn retain(&mut self, is_kept: impl Fn(Node) -> bool) {
        self.tails.retain(|_, node| is_kept(*node));
        self.extras.retain(|_, node| is_kept(*node));
    }
}

impl<'a> Fields<'a> {
    /// With what is known of the same rules.
    pub(super) fn new(rules: &'a [Match<'a>], known: Tails) -> Self {
        Self { rules, known }
    }

    pub(super) fn into_known(self) -> Tails {
        self.known
    }

    /// The node for the rules that match a packet's addresses.
    pub(super) fn tail(
        &mut self,
        rules: &[u32],
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let decides = |rule: &u32| self.rules[*rule as usize].is_unconditional();
        let rules = match rules.iter().position(decides) {
            Some(0) => return Ok(Node::rule(rules[0], false)),
            Some(at) => &rules[..=at],
            None if rules.is_empty() => return Ok(Node::NOTHING),
            None => rules,
        };
        if let Some(&node) = self.known.tails.get(rules) {
            return Ok(node);
        }
        budget.note(rules);
        let mut rows = [Node::NOTHING; row::COUNT];
        for (row, node) in (0..).zip(&mut rows) {
            let entries = self.columns(rules, row, diagram, budget)?;
            *node = diagram.branch(Kind::Branch, entries, budget)?;
        }
        let node = diagram.rows(rows, budget)?;
        self.known.tails.insert(rules.into(), node);
        Ok(node)
    }

    /// From which column of a row on which node.
    pub(super) fn columns(
        &mut self,
        rules: &[u32],
        row: u32,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Entries, OverBudget> {
        // Where a rule begins to match, and where it no longer does.
        let mut events: Vec<(u32, bool, u32)> = Vec::new();
        for &rule in rules {
            for range in self.rules[rule as usize].columns(row) {
                events.push((range.first.into(), true, rule));
                events.push((u32::from(range.last) + 1, false, rule));
            }
        }
        budget.take_steps(rules.len() + events.len())?;
        if row == row::OTHER {
            // Whether a column is a later fragment's matters to what is done with rules.
            events.push((row::LATER, false, u32::MAX));
        }
        events.sort_unstable();
        let mut entries: Entries = vec![(0, Node::NOTHING)];
        let mut active = BTreeSet::new();
        let mut events = events.into_iter().peekable();
        while let Some((column, begins, rule)) = events.next() {
            if begins {
                active.insert(rule);
            } else {
                active.remove(&rule);
            }
            if events.peek().is_some_and(|next| next.0 == column) {
                continue;
            }
            let Ok(start) = u16::try_from(column) else { break };
            let later = row == row::OTHER && column >= row::LATER;
            let node = self.first_of(&active, later, diagram, budget)?;
            if start == 0 {
                entries.clear();
            }
            if entries.last().is_none_or(|last| last.1 != node) {
                entries.push((start, node));
            }
        }
        Ok(entries)
    }

    /// The node for rules that match all but, perhaps, the extras.
    fn first_of(
        &mut self,
        rules: &BTreeSet<u32>,
        later: bool,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let mut list = Vec::new();
        for &rule in rules {
            list.push(rule);
            if !self.rules[rule as usize].has_extras(later) {
                break;
            }
        }
        budget.take_steps(list.len())?;
        self.extras(&list, later, 0, diagram, budget)
    }

    /// The node for rules of which all but the last may ask for extras, from one of these on.
    fn extras(
        &mut self,
        rules: &[u32],
        later: bool,
        next: usize,
        diagram: &mut Diagram,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let Some(&first) = rules.first() else { return Ok(Node::NOTHING) };
        let asked = (next..EXTRAS.len()).find(|&extra| {
            let asks = |rule: &u32| self.extra(*rule, extra, later).is_some();
            rules.iter().any(asks)
        });
        let Some(extra) = asked else {
            return Ok(Node::rule(
                first,
                later && self.rules[first as usize].rule.needs_transport(),
            ));
        };
        let key = (rules.into(), later);
        if next == 0
            && let Some(&node) = self.known.extras.get(&key)
        {
            return Ok(node);
        }
        budget.note(rules);
        let mut starts = BTreeSet::from([0]);
        for &rule in rules {
            for range in self.extra(rule, extra, later).into_iter().flatten() {
                starts.insert(range.first);
                starts.extend(range.last.checked_add(1));
            }
        }
        let mut entries = Entries::with_capacity(starts.len());
        for start in starts {
            budget.take_steps(rules.len())?;
            let matches = |rule: &&u32| {
                let ranges = self.extra(**rule, extra, later);
                ranges.is_none_or(|ranges| is_in(start, ranges))
            };
            let left: Vec<u32> = rules.iter().filter(matches).copied().collect();
            // What stands behind a rule that asks for nothing more is never reached.
            let asks = |rule: &u32| {
                (extra + 1..EXTRAS.len()).any(|extra| self.extra(*rule, extra, later).is_some())
            };
            let reached = left.iter().position(|rule| !asks(rule)).map_or(left.len(), |at| at + 1);
            let node = self.extras(&left[..reached], later, extra + 1, diagram, budget)?;
            entries.push((start, node));
        }
        let node = diagram.branch(EXTRAS[extra], entries, budget)?;
        if next == 0 {
            self.known.extras.insert(key, node);
        }
        Ok(node)
    }

    fn extra(&self, rule: u32, extra: usize, later: bool) -> Option<&[NumberRange]> {
        self.rules[rule as usize].extra(EXTRAS[extra], later)
    }
}

/// Whether ascending ranges hold a number.
fn is_in(number: u16, ranges: &[NumberRange]) -> bool {
    let after = ranges.partition_point(|range| range.first <= number);
    after > 0 && number <= ranges[after - 1].last
}
