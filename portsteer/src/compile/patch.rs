//! Trees in which some addresses get other nodes: what it takes depends on these addresses, not on the
//! tree's size. What comes of it is the very node that [`tree`](super::tree) makes of all intervals.

use portsteer_common::{Node, node::Kind};

use super::{
    budget::{Budget, OverBudget},
    diagram::{Diagram, Entries},
    tree::{Intervals, is_inner, root, root_of, tree, tree_of},
};

/// The addresses from `first` to `last`, both included, and the node that they get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u128,
    pub(super) last: u128,
    pub(super) node: Node,
}

/// The root that a tree by so many bits has with some spans, ascending and apart.
pub(super) fn patched_root(
    old: Node,
    bits: u32,
    spans: &[Span],
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Node, OverBudget> {
    if spans.is_empty() {
        return Ok(old);
    }
    if let Some(intervals) = all(spans, 0, u128::MAX >> (128 - bits)) {
        return root(&intervals, bits, diagram, budget);
    }
    let entries = if is_inner(old) { diagram.entries(old) } else { vec![(0, old)] };
    let entries = patched_entries(&entries, 0, bits, spans, diagram, budget)?;
    root_of(entries, diagram, budget)
}

/// The node that another gets by some spans, ascending and apart, which all are within its addresses:
/// those from `base` on with so many bits.
pub(super) fn patched(
    old: Node,
    base: u128,
    bits: u32,
    spans: &[Span],
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Node, OverBudget> {
    let last = base | (u128::MAX >> (128 - bits));
    if spans.is_empty() {
        return Ok(old);
    }
    if let Some(intervals) = all(spans, base, last) {
        return tree(&intervals, bits, diagram, budget);
    }
    if !old.is(Kind::Branch) {
        let mut intervals = Intervals::new();
        decode(diagram, old, base, bits, usize::MAX, &mut intervals);
        return tree(&overlaid(&intervals, last, spans), bits, diagram, budget);
    }
    let entries = diagram.entries(old);
    let entries = patched_entries(&entries, base, bits, spans, diagram, budget)?;
    // What has three intervals or fewer may be a path; it has five entries or fewer.
    if bits > 16 && entries.len() <= 5 {
        let mut intervals = Intervals::new();
        if decode_entries(diagram, &entries, base, bits, 3, &mut intervals) {
            return tree(&intervals, bits, diagram, budget);
        }
    }
    tree_of(entries, diagram, budget)
}

/// The intervals of spans that are all addresses from `first` to `last`.
fn all(spans: &[Span], first: u128, last: u128) -> Option<Intervals> {
    let is_all = spans[0].first == first
        && spans[spans.len() - 1].last == last
        && spans.windows(2).all(|pair| pair[0].last + 1 == pair[1].first);
    is_all.then(|| {
        let mut intervals: Intervals = spans.iter().map(|span| (span.first, span.node)).collect();
        intervals.dedup_by_key(|interval| interval.1);
        intervals
    })
}

/// The entries that others get by spans.
fn patched_entries(
    old: &[(u16, Node)],
    base: u128,
    bits: u32,
    spans: &[Span],
    diagram: &mut Diagram,
    budget: &mut Budget,
) -> Result<Entries, OverBudget> {
    let shift = bits - 16;
    let below = (1u128 << shift) - 1;
    let digit = |address: u128| (address >> shift) as u16;
    let mut new = Entries::with_capacity(old.len() + 2 * spans.len());
    // The next digit to be given a node, and the old entry that holds it.
    let (mut next, mut index) = (0u32, 0);
    let mut inside: Vec<Span> = Vec::new();
    let mut spans = spans.iter().copied();
    let mut span = spans.next();
    while let Some(at) = span {
        budget.take_steps(1)?;
        let first = digit(at.first);
        keep(old, &mut index, &mut next, first.into(), &mut new);
        if at.first & below == 0 && at.last - at.first >= below {
            // Some digits as a whole, and perhaps the beginning of one more.
            push(&mut new, first, at.node);
            let is_whole = at.last & below == below;
            next = u32::from(digit(at.last)) + u32::from(is_whole);
            span = match is_whole {
                true => spans.next(),
                false => Some(Span { first: at.last & !below, ..at }),
            };
            continue;
        }
        // All that is within this digit.
        let start = base_of(base, first, bits);
        let end = start | below;
        inside.clear();
        span = None;
        let mut candidate = Some(at);
        while let Some(piece) = candidate {
            if piece.first > end {
                span = Some(piece);
                break;
            }
            inside.push(Span { last: piece.last.min(end), ..piece });
            candidate = if piece.last > end {
                Some(Span { first: end + 1, ..piece })
            } else {
                spans.next()
            };
        }
        while old.get(index + 1).is_some_and(|entry| entry.0 <= first) {
            index += 1;
        }
        let node = patched(old[index].1, start, shift, &inside, diagram, budget)?;
        push(&mut new, first, node);
        next = u32::from(first) + 1;
    }
    keep(old, &mut index, &mut next, 1 << 16, &mut new);
    Ok(new)
}

/// Adds what old entries say about the digits up to `end`.
fn keep(old: &[(u16, Node)], index: &mut usize, next: &mut u32, end: u32, new: &mut Entries) {
    while *next < end {
        while old.get(*index + 1).is_some_and(|entry| u32::from(entry.0) <= *next) {
            *index += 1;
        }
        push(new, *next as u16, old[*index].1);
        *next = old.get(*index + 1).map_or(end, |entry| end.min(entry.0.into()));
    }
}

fn push(entries: &mut Entries, start: u16, node: Node) {
    if entries.last().is_none_or(|last| last.1 != node) {
        entries.push((start, node));
    }
}

/// The first address of a digit of the addresses from `base` on with so many bits.
fn base_of(base: u128, digit: u16, bits: u32) -> u128 {
    base | u128::from(digit) << (bits - 16)
}

/// Adds the intervals of a node's addresses, as many as `limit` together with those that are there. Says
/// whether these are all.
fn decode(
    diagram: &Diagram,
    node: Node,
    base: u128,
    bits: u32,
    limit: usize,
    intervals: &mut Intervals,
) -> bool {
    let add = |intervals: &mut Intervals, start: u128, node: Node| {
        if intervals.last().is_some_and(|last| last.1 == node) {
            return true;
        }
        intervals.push((start, node));
        intervals.len() <= limit
    };
    match node.kind() {
        Kind::Branch => {
            decode_entries(diagram, &diagram.entries(node), base, bits, limit, intervals)
        }
        Kind::Path => {
            let (words, nodes) = (diagram.words(node), diagram.nodes(node));
            let double = |at: usize| u64::from(words[at + 1]) << 32 | u64::from(words[at]);
            let (mask, value) = (double(0), double(2));
            let taken = bits.min(64);
            let inside = bits - mask.count_ones();
            let first = base | u128::from(value) << 64 >> (128 - bits);
            let last = first + ((1u128 << inside) - 1);
            if first > base && !add(intervals, base, nodes[1]) {
                return false;
            }
            let is_all = match inside == bits - taken && inside > 0 {
                true => decode(diagram, nodes[0], first, inside, limit, intervals),
                false => add(intervals, first, nodes[0]),
            };
            let end = base | (u128::MAX >> (128 - bits));
            is_all && (last == end || add(intervals, last + 1, nodes[1]))
        }
        _ => add(intervals, base, node),
    }
}

fn decode_entries(
    diagram: &Diagram,
    entries: &[(u16, Node)],
    base: u128,
    bits: u32,
    limit: usize,
    intervals: &mut Intervals,
) -> bool {
    entries.iter().enumerate().all(|(index, &(start, node))| {
        let end = entries.get(index + 1).map_or(1 << 16, |next| u32::from(next.0));
        // A leaf says the same about all of its digits; what leads on has to be asked about each.
        let end = if is_inner(node) { end } else { u32::from(start) + 1 };
        (u32::from(start)..end).all(|digit| {
            let first = base_of(base, digit as u16, bits);
            decode(diagram, node, first, bits - 16, limit, intervals)
        })
    })
}

/// Intervals that end with the address `last`, but where there are spans.
fn overlaid(old: &[(u128, Node)], last: u128, spans: &[Span]) -> Intervals {
    let mut new = Intervals::with_capacity(old.len() + 2 * spans.len());
    let mut add = |start: u128, node: Node| {
        if new.last().is_none_or(|before: &(u128, Node)| before.1 != node) {
            new.push((start, node));
        }
    };
    let mut next = Some(old[0].0);
    let mut index = 0;
    // A last span behind all others, so that what comes before it is kept.
    for span in spans.iter().map(Some).chain([None]) {
        let end = span.map_or(Some(last), |span| span.first.checked_sub(1));
        while let (Some(at), Some(end)) = (next.filter(|_| end.is_some()), end)
            && at <= end
        {
            while old.get(index + 1).is_some_and(|interval| interval.0 <= at) {
                index += 1;
            }
            add(at, old[index].1);
            next = match old.get(index + 1) {
                Some(interval) if interval.0 <= end => Some(interval.0),
                _ => end.checked_add(1),
            };
        }
        if let Some(span) = span {
            add(span.first, span.node);
            next = span.last.checked_add(1);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compile::Interrupt;

    const V4: u32 = 32;
    const V6: u32 = 128;

    fn budget() -> Budget {
        Budget::new(0, Interrupt::default())
    }

    fn node(number: u32) -> Node {
        if number == 0 { Node::NOTHING } else { Node::rule(number, false) }
    }

    fn intervals(starts: &[(u128, u32)]) -> Intervals {
        let mut intervals: Intervals = vec![(0, Node::NOTHING)];
        intervals.extend(starts.iter().map(|&(start, number)| (start, node(number))));
        intervals.sort_by_key(|interval| interval.0);
        intervals.dedup_by(|next, before| {
            let is_same = next.0 == before.0;
            if is_same {
                before.1 = next.1;
            }
            is_same
        });
        intervals.dedup_by_key(|interval| interval.1);
        intervals
    }

    /// Addresses that share digits more often than chance would have it.
    fn address(bits: u32) -> impl Strategy<Value = u128> {
        let digit = || prop::sample::select(&[0u16, 0, 1, 2, 0x0100, 0x8000, 0xfffe, 0xffff][..]);
        prop::array::uniform8(digit()).prop_map(move |digits| {
            let address = digits.iter().fold(0, |sum, &digit| sum << 16 | u128::from(digit));
            address & (u128::MAX >> (128 - bits))
        })
    }

    /// Spans, and how many bits addresses have.
    fn spans(bits: u32) -> impl Strategy<Value = Vec<Span>> {
        let last = u128::MAX >> (128 - bits);
        // Prefixes, and any addresses from one to another.
        let prefix = (address(bits), 0..=bits, 0..4u32).prop_map(move |(at, len, number)| {
            let host = last.checked_shr(len).filter(|_| len < bits).unwrap_or(0);
            Span { first: at & !host, last: at | host, node: node(number) }
        });
        let any = (address(bits), address(bits), 0..4u32).prop_map(|(a, b, number)| Span {
            first: a.min(b),
            last: a.max(b),
            node: node(number),
        });
        prop::collection::vec(prop_oneof![4 => prefix, 1 => any], 0..6).prop_map(|mut spans| {
            spans.sort_by_key(|span| span.first);
            let mut apart: Vec<Span> = Vec::new();
            for span in spans {
                if apart.last().is_none_or(|before| before.last < span.first) {
                    apart.push(span);
                }
            }
            apart
        })
    }

    fn bits() -> impl Strategy<Value = u32> {
        prop::sample::select(&[V4, V6][..])
    }

    type Case = (u32, Vec<(u128, u32)>, Vec<Vec<Span>>);

    fn case() -> impl Strategy<Value = Case> {
        bits().prop_flat_map(|bits| {
            let starts = prop::collection::vec((address(bits), 0..4u32), 0..12);
            (Just(bits), starts, prop::collection::vec(spans(bits), 1..4))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

        /// Whatever is patched in whatever order is the node that is built at once, and says the same.
        #[test]
        fn patched_trees_are_the_trees((bits, starts, patches) in case()) {
            let (mut diagram, mut budget) = (Diagram::default(), budget());
            let last = u128::MAX >> (128 - bits);
            let mut now = intervals(&starts);
            let mut by_root = root(&now, bits, &mut diagram, &mut budget).unwrap();
            let mut by_tree = tree(&now, bits, &mut diagram, &mut budget).unwrap();
            for spans in &patches {
                let (diagram, budget) = (&mut diagram, &mut budget);
                now = overlaid(&now, last, spans);
                by_root = patched_root(by_root, bits, spans, diagram, budget).unwrap();
                by_tree = patched(by_tree, 0, bits, spans, diagram, budget).unwrap();
                prop_assert_eq!(by_root, root(&now, bits, diagram, budget).unwrap());
                prop_assert_eq!(by_tree, tree(&now, bits, diagram, budget).unwrap());
                let mut decoded = Intervals::new();
                prop_assert!(decode(diagram, by_tree, 0, bits, usize::MAX, &mut decoded));
                prop_assert_eq!(&decoded, &now);
            }
        }

        /// What is laid over intervals is there, and nothing else changes.
        #[test]
        fn what_is_overlaid_is_there((bits, starts, patches) in case(), probe in address(V6)) {
            let last = u128::MAX >> (128 - bits);
            let at = |intervals: &[(u128, Node)], address: u128| {
                intervals[intervals.partition_point(|interval| interval.0 <= address) - 1].1
            };
            let before = intervals(&starts);
            let after = overlaid(&before, last, &patches[0]);
            let ends = patches[0].iter().flat_map(|span| {
                [span.first, span.last, span.first.saturating_sub(1), span.last.saturating_add(1)]
            });
            for address in ends.chain([probe & last, 0, last]).filter(|address| *address <= last) {
                let span = patches[0].iter().find(|span| (span.first..=span.last).contains(&address));
                let expected = span.map_or_else(|| at(&before, address), |span| span.node);
                prop_assert_eq!(at(&after, address), expected);
            }
        }
    }
}
