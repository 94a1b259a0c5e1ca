//! Looking things up in the tables: a step from one node to the next, and the ways that are made of
//! such steps. See [`portsteer_common::node`].
//!
//! The steps are global functions: the verifier looks at each once, by itself, whatever the number of
//! places that call it. What cannot happen (a node that leads nowhere) finds nothing.

use portsteer_common::{
    Node,
    image::feature,
    node::{Kind, LINE_WORDS, MAX_STEPS, SEGMENT_LINES, SEGMENT_WORDS, row},
};
use portsteer_ebpf::bound::is_below;

use crate::maps::{self, Segment};

/// What a packet is told apart by besides its addresses.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Row (upper half) and column; see [`row`].
    pub key: u32,
    /// VLAN id (upper half) and source port.
    pub extras: u32,
}

impl Facts {
    /// The facts of a packet.
    #[inline(always)]
    pub fn new(row: u32, column: u32, vlan: u16, src_port: u16) -> Self {
        Self { key: row << 16 | column, extras: u32::from(vlan) << 16 | u32::from(src_port) }
    }
}

/// The node that a node leads to by a key of 16 bits.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn descend(node: u32, key: u32) -> u32 {
    let (node, key) = (Node::from_bits(node), key & 0xffff);
    let next = if node.is_table() {
        let line = node.line() + key / LINE_WORDS as u32;
        let word = key % LINE_WORDS as u32 * size_of::<u32>() as u32;
        Segment::of_line(line).map(|(segment, offset)| segment.word(offset + word))
    } else {
        Segment::of_line(node.line())
            .map(|(segment, offset)| segment.word(search(segment, offset, node.steps(), key)))
    };
    next.unwrap_or(Node::NOTHING.to_bits())
}

/// Where the node stands that a list has for a key: in bytes, as the list's own `offset`.
#[inline(always)]
fn search(segment: Segment, offset: u32, steps: u32, key: u32) -> u32 {
    const START_LEN: u32 = size_of::<u16>() as u32;
    const NODE_LEN: u32 = size_of::<u32>() as u32;
    let len = 1 << (steps & 15);
    let mut half = len / 2;
    let mut found = 0;
    for _ in 0..MAX_STEPS {
        if half == 0 {
            break;
        }
        let start = segment.half_word(offset + (found + half) * START_LEN);
        found += half & !(is_below(key, start) as u32);
        half /= 2;
    }
    offset + len * START_LEN + found * NODE_LEN
}

/// The leaf that a node leads to by all but addresses.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn finish(node: u32, key: u32, extras: u32) -> u32 {
    let mut node = Node::from_bits(node);
    if node.is(Kind::Rows) {
        let Some((segment, offset)) = Segment::of_line(node.line()) else {
            return Node::NOTHING.to_bits();
        };
        let word = (key >> 16) % row::COUNT as u32;
        node = Node::from_bits(segment.word(offset + word * size_of::<u32>() as u32));
    }
    if node.is(Kind::Branch) {
        node = Node::from_bits(descend(node.to_bits(), key));
    }
    if maps::has(feature::EXTRAS) {
        // In the order in which the compiler asks.
        if node.is(Kind::Vlan) {
            node = Node::from_bits(descend(node.to_bits(), extras >> 16));
        }
        if node.is(Kind::Interface) {
            node = Node::from_bits(descend(node.to_bits(), maps::slot()));
        }
        if node.is(Kind::SrcPort) {
            node = Node::from_bits(descend(node.to_bits(), extras));
        }
    }
    node.to_bits()
}

/// The leaf that a node leads to, which mostly is one.
#[inline(always)]
pub fn leaf(node: Node, facts: Facts) -> Node {
    if node.is_leaf() {
        return node;
    }
    leaf_or_nothing(Node::from_bits(finish(node.to_bits(), facts.key, facts.extras)))
}

#[inline(always)]
fn leaf_or_nothing(node: Node) -> Node {
    if node.is_leaf() { node } else { Node::NOTHING }
}

/// The two nodes of a fork: the rules that constrain the source alone, and the root of those that
/// constrain the destination too.
#[inline(always)]
pub fn fork(node: Node) -> (Node, Node) {
    match Segment::of_line(node.line()) {
        Some((segment, offset)) => (
            Node::from_bits(segment.word(offset)),
            Node::from_bits(segment.word(offset + size_of::<u32>() as u32)),
        ),
        None => (Node::NOTHING, Node::NOTHING),
    }
}

/// The node that an IPv4 address leads to from a root.
#[inline(always)]
pub fn by_v4(root: Node, address_be: [u8; 4]) -> Node {
    let [a, b, c, d] = address_be;
    let node = by_digit(root, [a, b]);
    by_digit(node, [c, d])
}

/// The same for an IPv6 address.
#[inline(always)]
pub fn by_v6(root: Node, address_be: &[u8; 16]) -> Node {
    let mut node = root;
    for digit in 0..8 {
        if !node.is(Kind::Branch) {
            break;
        }
        node = by_digit(node, [address_be[2 * digit], address_be[2 * digit + 1]]);
    }
    node
}

#[inline(always)]
fn by_digit(node: Node, digit_be: [u8; 2]) -> Node {
    if !node.is(Kind::Branch) {
        return node;
    }
    Node::from_bits(descend(node.to_bits(), u32::from(u16::from_be_bytes(digit_be))))
}

const _: () = assert!(SEGMENT_LINES * LINE_WORDS == SEGMENT_WORDS);
