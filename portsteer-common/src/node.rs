//! The layout of the *tables*: what a policy needs that constrains more than protocols and
//! destination ports. They are a decision diagram over 16-bit keys. A [`Node`] is one word: either a
//! rule, or where to go on and how.
//!
//! ```text
//! Node ──branch──▶ list:  starts[2^steps], ascending, of 16 bits; nodes[2^steps]
//!                  table: nodes[65,536]
//!      ──path────▶ mask and value of 64 bits; node if they match, node if they do not
//!      ──rows────▶ nodes[8], by the packet's row
//!      ──fork────▶ rules that constrain the source alone; by destination, those that constrain both
//!      ──leaf────▶ rule number
//! ```
//!
//! In a list, the node of the last start that is not above the key counts. The first start is always
//! 0; a list is filled up to a power of two, four at least, by repeating its last entry.
//!
//! The tables are an array of *segments*, so that they can be larger than one map value. What a node
//! leads to stands at a *line*, a multiple of 32 bytes, and lies within one segment, except for a
//! table, which fills [`TABLE_SEGMENTS`] segments in a row.

use bytemuck::{Pod, Zeroable};

/// Words of 4 bytes in a segment.
pub const SEGMENT_WORDS: usize = 16_384;

/// Words in a line.
pub const LINE_WORDS: usize = 8;

/// Lines in a segment.
pub const SEGMENT_LINES: usize = SEGMENT_WORDS / LINE_WORDS;

/// Segments of a table of 65,536 nodes.
pub const TABLE_SEGMENTS: usize = 65_536 / SEGMENT_WORDS;

/// The least steps of a search.
pub const MIN_STEPS: u32 = 2;

/// The most steps of a search through a list, which then has 4,096 entries and more than a third of a
/// segment.
pub const MAX_STEPS: u32 = 12;

/// The most segments: 512 MiB, as far as lines have numbers.
pub const MAX_SEGMENTS: usize = (1 << Node::LINE_BITS) / SEGMENT_LINES;

/// One value of the map `tables`.
pub type Segment = [u32; SEGMENT_WORDS];

/// What a packet is told apart by besides its addresses. Rows 0 to 4 are those of
/// [`PortProtocol`](crate::PortProtocol), whose column is the destination port.
pub mod row {
    /// ICMP over IPv4; the column is type (upper byte) and code.
    pub const ICMP: u32 = 5;
    /// ICMPv6 over IPv6; the column as for ICMP.
    pub const ICMPV6: u32 = 6;
    /// Everything else; the column is the protocol's number, plus [`LATER`] for later fragments, of
    /// whatever protocol.
    pub const OTHER: u32 = 7;
    /// How many rows there are.
    pub const COUNT: usize = 8;
    /// See [`OTHER`].
    pub const LATER: u32 = 256;
}

/// The number of kinds of later columns in row [`row::OTHER`].
pub const OTHER_COLUMNS: usize = 512;

/// A rule, or where to go on.
///
/// ```text
///   bit 31   29 28      24 23                 0
///      ├───────┼───────────┴───────────────────┤
///      │   0   │          rule          │ later│  a leaf
///      │ kind  │   steps   │       line        │  31 steps: a table
///      └───────┴───────────┴───────────────────┘
/// ```
///
/// Leaves compare as numbers the way their rules do, and [`Node::NOTHING`] is greater than all.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Node(u32);

/// How a [`Node`] leads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It does not: a rule or nothing.
    Leaf = 0,
    /// By the next 16 bits of the address that is being looked up, or by the column.
    Branch = 1,
    /// By the row.
    Rows = 2,
    /// To two nodes: the rules that constrain the source alone, and the root of those that constrain
    /// the destination too.
    Fork = 3,
    /// By the VLAN id.
    Vlan = 4,
    /// By the interface's slot.
    Interface = 5,
    /// By the source port.
    SrcPort = 6,
    /// By the next 64 bits of the address that is being looked up, where there is one prefix alone; behind
    /// an IPv4 address come zeroes.
    Path = 7,
}

impl Node {
    const KIND_AT: u32 = 29;
    const STEPS_AT: u32 = 24;
    const LINE_BITS: u32 = 24;
    const LINE_MASK: u32 = (1 << Self::LINE_BITS) - 1;
    /// The number of steps that says "table".
    const TABLE: u32 = 31;

    /// No rule.
    pub const NOTHING: Self = Self((1 << Self::KIND_AT) - 1);

    /// The rule with this number matches; or, if `later`, would, if a later fragment had what the rule
    /// asks for.
    ///
    /// # Panics
    ///
    /// If the number is beyond 2^28 - 2.
    #[must_use]
    pub const fn rule(number: u32, later: bool) -> Self {
        assert!(number < (Self::NOTHING.0 >> 1));
        Self(number << 1 | later as u32)
    }

    /// A list of `1 << steps` entries at a line.
    ///
    /// # Panics
    ///
    /// If there are fewer than [`MIN_STEPS`] or more than [`MAX_STEPS`], or the line is beyond.
    #[must_use]
    pub const fn list(kind: Kind, line: u32, steps: u32) -> Self {
        assert!(MIN_STEPS <= steps && steps <= MAX_STEPS);
        Self::at(kind, line, steps)
    }

    /// A table of 65,536 nodes whose first segment begins at a line.
    #[must_use]
    pub const fn table(kind: Kind, line: u32) -> Self {
        Self::at(kind, line, Self::TABLE)
    }

    /// Rows, a fork or a path at a line.
    #[must_use]
    pub const fn record(kind: Kind, line: u32) -> Self {
        Self::at(kind, line, 0)
    }

    const fn at(kind: Kind, line: u32, steps: u32) -> Self {
        assert!(line <= Self::LINE_MASK);
        Self((kind as u32) << Self::KIND_AT | steps << Self::STEPS_AT | line)
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// From [`Node::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether it is a leaf.
    #[inline(always)]
    #[must_use]
    pub const fn is_leaf(self) -> bool {
        self.0 <= Self::NOTHING.0
    }

    /// Whether it leads on in this way.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, kind: Kind) -> bool {
        self.0 >> Self::KIND_AT == kind as u32
    }

    /// How it leads on.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self.0 >> Self::KIND_AT {
            0 => Kind::Leaf,
            1 => Kind::Branch,
            2 => Kind::Rows,
            3 => Kind::Fork,
            4 => Kind::Vlan,
            5 => Kind::Interface,
            6 => Kind::SrcPort,
            _ => Kind::Path,
        }
    }

    /// For a leaf that is not [`Node::NOTHING`]: the rule's number.
    #[inline(always)]
    #[must_use]
    pub const fn rule_number(self) -> u32 {
        self.0 >> 1
    }

    /// For a leaf: whether `options.fragments` decides.
    #[inline(always)]
    #[must_use]
    pub const fn is_later(self) -> bool {
        self.0 & 1 != 0
    }

    /// For what branches by a key: whether it is a table, rather than a list.
    #[inline(always)]
    #[must_use]
    pub const fn is_table(self) -> bool {
        self.steps() == Self::TABLE
    }

    /// For a list: how many steps a search takes.
    #[inline(always)]
    #[must_use]
    pub const fn steps(self) -> u32 {
        (self.0 >> Self::STEPS_AT) & 31
    }

    /// For all but leaves: where it leads.
    #[inline(always)]
    #[must_use]
    pub const fn line(self) -> u32 {
        self.0 & Self::LINE_MASK
    }

    /// The same node, but that what it leads to is so many lines further on.
    ///
    /// # Panics
    ///
    /// If that is beyond the last line.
    #[must_use]
    pub const fn moved(self, lines: u32) -> Self {
        if self.is_leaf() {
            return self;
        }
        assert!(self.line() + lines <= Self::LINE_MASK);
        Self(self.0 + lines)
    }
}
