//! Addresses as trees of 16-bit digits.

use portsteer_common::{Node, node::Kind};

use super::{
    budget::{Budget, OverBudget},
    diagram::{Diagram, Entries},
};

/// From which address on there is which node: ascending, no two neighbours the same.
pub(super) type Intervals = Vec<(u128, Node)>;

/// The node for all addresses with so many bits, of which the first interval begins at 0.
pub(super) fn root(
    intervals: &[(u128, Node)],
    bits: u32,
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Node, OverBudget> {
    let entries = digits(intervals, bits, diagram, budget)?;
    root_of(entries, diagram, budget)
}

/// The node for the entries of the first digit. Every packet comes by here: no search.
pub(super) fn root_of(
    entries: Entries,
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Node, OverBudget> {
    let is_one = entries.iter().all(|entry| entry.1 == entries[0].1);
    if is_one && !is_inner(entries[0].1) {
        return Ok(entries[0].1);
    }
    diagram.table(Kind::Branch, &entries, budget)
}

/// The node for ascending intervals, of which the first begins where the node does, by so many of an
/// address's lowest bits.
pub(super) fn tree(
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
    tree_of(entries, diagram, budget)
}

/// The node for the entries of a digit which is not the first, where there is no path.
pub(super) fn tree_of(
    mut entries: Entries,
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Node, OverBudget> {
    entries.dedup_by_key(|entry| entry.1);
    match entries[..] {
        // What looks up the next digit may not stand where this one is looked up.
        [(_, node)] if !is_inner(node) => Ok(node),
        _ => diagram.list(Kind::Branch, entries, budget),
    }
}

/// Whether a node in a tree leads on by the address.
pub(super) fn is_inner(node: Node) -> bool {
    node.is(Kind::Branch) || node.is(Kind::Path)
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
