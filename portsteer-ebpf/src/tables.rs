//! Looking things up in the tables: a step from one node to the next, and the ways that are made of
//! such steps. See [`portsteer_common::node`].
//!
//! For plain IPv4 packets all is inlined: where the kernel guards against speculation at returns, as on
//! many AMD processors, a call costs more than a search. Elsewhere these are global functions, which the
//! verifier looks at once, by itself, whatever the number of places that call them. What cannot
//! happen (a node that leads nowhere) finds nothing.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use portsteer_common::{
    Node,
    image::feature,
    node::{Kind, LINE_WORDS, MAX_STEPS, MIN_STEPS, SEGMENT_LINES, SEGMENT_WORDS, row},
};
use portsteer_ebpf::{
    bound::is_below,
    frame::{Frame, Ipv6Address},
};

use crate::{
    maps::{self, Segment},
    packet::Packet,
};

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
#[inline(always)]
fn descend(node: Node, key: u32) -> Node {
    let key = key & 0xffff;
    let next = if node.is_table() {
        let line = node.line() + key / LINE_WORDS as u32;
        let word = key % LINE_WORDS as u32 * size_of::<u32>() as u32;
        Segment::of_line(line).map(|(segment, offset)| segment.word(offset + word))
    } else {
        Segment::of_line(node.line())
            .map(|(segment, offset)| segment.word(search(segment, offset, node.steps(), key)))
    };
    next.map_or(Node::NOTHING, Node::from_bits)
}

/// Where the node stands that a list has for a key: in bytes, as the list's own `offset`.
///
/// In long lists, which are searched for keys that nobody can predict, what counts is how many loads wait
/// for each other: each step looks at three places that quarter what is left, and the last four starts
/// are compared in one word.
#[inline(always)]
fn search(segment: Segment, offset: u32, steps: u32, key: u32) -> u32 {
    // Most lists: a range, or some prefixes, and what is around them. Branches, since what is predicted
    // need not be waited for.
    if steps == MIN_STEPS {
        return search_four(segment, offset, key, offset + 4 * START_LEN);
    }
    if steps == MIN_STEPS + 1 {
        let (half, nodes) = (offset + 4 * START_LEN, offset + 8 * START_LEN);
        return if key < segment.half_word(half) {
            search_four(segment, offset, key, nodes)
        } else {
            search_four(segment, half, key, nodes + 4 * NODE_LEN)
        };
    }
    let len = 1 << (steps & 15);
    let mut window = len;
    let mut at = offset;
    let above = |at: u32| !(is_below(key, segment.half_word(at)) as u32);
    if steps & 1 != 0 {
        window /= 2;
        let half = window * START_LEN;
        at += half & above(at + half);
    }
    for _ in 0..(MAX_STEPS - 2) / 2 {
        if window <= 4 {
            break;
        }
        window /= 4;
        let quarter = window * START_LEN;
        let (first, second, third) =
            (above(at + quarter), above(at + 2 * quarter), above(at + 3 * quarter));
        at += (quarter & first) + (quarter & second) + (quarter & third);
    }
    let before = (at - offset) / START_LEN + count_not_above(segment.double_word(at), key) - 1;
    offset + len * START_LEN + before * NODE_LEN
}

/// The same for four starts and four nodes.
#[inline(always)]
fn search_four(segment: Segment, starts_at: u32, key: u32, nodes_at: u32) -> u32 {
    let starts = segment.double_word(starts_at);
    if key < (starts >> 16) as u32 & 0xffff {
        nodes_at
    } else if key < (starts >> 32) as u32 & 0xffff {
        nodes_at + NODE_LEN
    } else if key < (starts >> 48) as u32 {
        nodes_at + 2 * NODE_LEN
    } else {
        nodes_at + 3 * NODE_LEN
    }
}

const START_LEN: u32 = size_of::<u16>() as u32;
const NODE_LEN: u32 = size_of::<u32>() as u32;

/// How many of four starts are not above a key: in each half of two words, a bit above the difference
/// stays if nothing is borrowed from it.
#[inline(always)]
fn count_not_above(starts: u64, key: u32) -> u32 {
    const EVERY_OTHER: u64 = 0x0000_ffff_0000_ffff;
    const ONES: u64 = 0x0000_0001_0000_0001;
    let keys = u64::from(key) * ONES | ONES << 16;
    let even = (keys - (starts & EVERY_OTHER)) >> 16 & ONES;
    let odd = (keys - (starts >> 16 & EVERY_OTHER)) >> 16 & ONES;
    let sum = even + odd;
    (sum + (sum >> 32)) as u32 & 7
}

/// The leaf that a node leads to by all but addresses, which mostly is one.
#[inline(always)]
pub fn leaf(node: Node, facts: Facts) -> Node {
    if node.is_leaf() { node } else { by_facts(node, facts) }
}

/// The same by a call, off the fast path.
#[inline(always)]
pub fn leaf_slowly(node: Node, facts: Facts) -> Node {
    if node.is_leaf() {
        return node;
    }
    leaf_or_nothing(Node::from_bits(finish(node.to_bits(), facts.key, facts.extras)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn finish(node: u32, key: u32, extras: u32) -> u32 {
    by_facts(Node::from_bits(node), Facts { key, extras }).to_bits()
}

#[inline(always)]
fn by_facts(node: Node, facts: Facts) -> Node {
    let mut node = node;
    if node.is(Kind::Rows) {
        let Some((segment, offset)) = Segment::of_line(node.line()) else { return Node::NOTHING };
        let word = (facts.key >> 16) % row::COUNT as u32;
        node = Node::from_bits(segment.word(offset + word * size_of::<u32>() as u32));
    }
    if node.is(Kind::Branch) {
        node = descend(node, facts.key);
    }
    if maps::has(feature::EXTRAS) && !node.is_leaf() {
        node = Node::from_bits(by_extras(node.to_bits(), facts.extras));
    }
    leaf_or_nothing(node)
}

/// The leaf that a node leads to by the extras, in the order in which the compiler asks for them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn by_extras(node: u32, extras: u32) -> u32 {
    let mut node = Node::from_bits(node);
    if node.is(Kind::Vlan) {
        node = descend(node, extras >> 16);
    }
    if node.is(Kind::Interface) {
        node = descend(node, maps::slot());
    }
    if node.is(Kind::SrcPort) {
        node = descend(node, extras);
    }
    node.to_bits()
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

/// An address that is looked up in a tree.
pub trait Address: Copy {
    /// The node that it leads to from a root.
    fn walk(self, root: Node) -> Node;
}

/// An IPv4 address.
#[derive(Clone, Copy)]
pub struct V4(u32);

impl V4 {
    #[inline(always)]
    pub fn new(address_be: [u8; 4]) -> Self {
        Self(u32::from_be_bytes(address_be))
    }
}

impl Address for V4 {
    #[inline(always)]
    fn walk(self, root: Node) -> Node {
        if root.is(Kind::Path) {
            return by_path(root, u64::from(self.0) << 32);
        }
        by_digit(by_digit(root, self.0 >> 16), self.0)
    }
}

#[inline(always)]
fn by_digit(node: Node, digit: u32) -> Node {
    if node.is(Kind::Branch) { descend(node, digit) } else { node }
}

/// An IPv6 address, where it stands in the frame. Looking it up is a call, because it would be too much
/// for the verifier of older kernels to follow at every place.
#[derive(Clone, Copy)]
pub struct V6 {
    pub ctx: *mut xdp_md,
    /// Bytes from the frame's start.
    pub at: u32,
}

impl Address for V6 {
    #[inline(always)]
    fn walk(self, root: Node) -> Node {
        if !root.is(Kind::Branch) && !root.is(Kind::Path) {
            return root;
        }
        Node::from_bits(walk_v6(self.ctx, root.to_bits(), self.at))
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_v6(ctx: *mut xdp_md, root: u32, at: u32) -> u32 {
    let frame = Frame::new(Packet(XdpContext::new(ctx)));
    let Ok(address) = frame.header::<Ipv6Address>(at as usize) else {
        return Node::NOTHING.to_bits();
    };
    let mut upper = u64::from_be_bytes(address.upper_be);
    let mut lower = u64::from_be_bytes(address.lower_be);
    let mut node = Node::from_bits(root);
    for _ in 0..8 {
        if node.is(Kind::Branch) {
            node = descend(node, (upper >> 48) as u32);
            upper = upper << 16 | lower >> 48;
            lower <<= 16;
        } else if node.is(Kind::Path) {
            node = by_path(node, upper);
            (upper, lower) = (lower, 0);
        } else {
            break;
        }
    }
    node.to_bits()
}

/// An IPv4 address off the fast path, whose look-ups are calls.
#[derive(Clone, Copy)]
pub struct SlowV4(pub V4);

impl Address for SlowV4 {
    #[inline(always)]
    fn walk(self, root: Node) -> Node {
        Node::from_bits(walk_v4(root.to_bits(), self.0.0))
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_v4(root: u32, address: u32) -> u32 {
    V4(address).walk(Node::from_bits(root)).to_bits()
}

/// The node that a path leads to by the next 64 bits of an address.
#[inline(always)]
fn by_path(node: Node, bits: u64) -> Node {
    let Some((segment, offset)) = Segment::of_line(node.line()) else { return Node::NOTHING };
    let (mask, value) = (segment.double_word(offset), segment.double_word(offset + 8));
    let other = if bits & mask == value { 0 } else { NODE_LEN };
    Node::from_bits(segment.word(offset + 16 + other))
}

const _: () = assert!(MIN_STEPS == 2);
const _: () = assert!(SEGMENT_LINES * LINE_WORDS == SEGMENT_WORDS);
