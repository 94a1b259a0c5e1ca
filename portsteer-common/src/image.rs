//! The layout of the compiled policy: the one value of the map `policy`, which has room for two
//! images (*banks*). Which is in force says the word in [`active`](crate::active). The program reads it once per
//! packet and uses that bank alone, so every packet is judged by exactly one policy.
//!
//! Where the rules ask for nothing but protocols and destination ports, a lookup is one load,
//! whatever the number of rules:
//!
//! ```text
//! TCP, UDP, UDP-Lite, SCTP, DCCP with ports   by_port[protocol][dst_port] ─┐
//! all other IP packets, later fragments       by_protocol[protocol] ───────┴▶ Decision
//! ```
//!
//! Where they ask for more ([`Image::features`]), the same cells are [`Node`]s: the first rule of
//! those that constrain no address. The rules that do are looked up by the packet's addresses, from
//! the [`Roots`]; of what is found, the lowest rule number wins, and the rule's decision stands in
//! the tables:
//!
//! ```text
//! by_port, by_protocol, icmp, icmpv6 ─────────────▶ Node ─┐
//! roots.src ──▶ source alone ─────────────────────▶ Node ─┤ least rule number
//!           └─▶ source and destination ───────────▶ Node ─┤  ──▶ decisions[rule]
//! roots.dst ──▶ destination alone ────────────────▶ Node ─┘
//! ```

use bytemuck::{Pod, Zeroable};

use crate::{
    Counter, Node, Reason, Verdict,
    counters::{MAX_PAGES, PAGE_COUNTERS, outcome_counter},
    node::OTHER_COLUMNS,
    steering::{TARGET_SLOTS, Targets},
};

/// The number of banks.
pub const BANKS: usize = 2;

/// The transport protocols that have ports, as rows of [`Image::by_port`].
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortProtocol {
    Tcp = 0,
    Udp = 1,
    UdpLite = 2,
    Sctp = 3,
    Dccp = 4,
}

impl PortProtocol {
    /// All of them, in the order of their rows.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::UdpLite, Self::Sctp, Self::Dccp];

    /// The IP protocol number (IANA "Assigned Internet Protocol Numbers").
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::UdpLite => 136,
            Self::Sctp => 132,
            Self::Dccp => 33,
        }
    }

    /// The protocol with this number, if it is one that has ports.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            136 => Some(Self::UdpLite),
            132 => Some(Self::Sctp),
            33 => Some(Self::Dccp),
            _ => None,
        }
    }

    /// The least length of its header in bytes. TCP: RFC 9293, UDP: RFC 768, UDP-Lite: RFC 3828,
    /// SCTP: RFC 9260, DCCP: RFC 4340 (with short sequence numbers).
    #[inline(always)]
    #[must_use]
    pub const fn header_len(self) -> u32 {
        match self {
            Self::Tcp => 20,
            Self::Udp | Self::UdpLite => 8,
            Self::Sctp | Self::Dccp => 12,
        }
    }
}

/// The place of a destination port in a row of [`Image::by_port`]: its bytes as they stand in the
/// packet, taken as a number of this machine, so that the program looks up what it has loaded.
#[inline(always)]
#[must_use]
pub const fn column(dst_port_be: [u8; 2]) -> u16 {
    u16::from_ne_bytes(dst_port_be)
}

/// A protocol that has ports, and a destination port: a cell of [`Image::by_port`], as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey(u32);

impl PortKey {
    /// The key of this protocol and destination port, the latter in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(protocol: PortProtocol, dst_port_be: [u8; 2]) -> Self {
        Self(((protocol as u32) << 16) | column(dst_port_be) as u32)
    }

    /// The cell's index, all rows in a row: below 5 times 65,536.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The key with this row, and destination port as a number of this machine.
    #[inline(always)]
    #[must_use]
    pub const fn of_row(row: u32, dst_port: u16) -> Self {
        Self(row << 16 | column(dst_port.to_be_bytes()) as u32)
    }

    /// The protocol's row.
    #[inline(always)]
    #[must_use]
    pub const fn row(self) -> u32 {
        self.0 >> 16
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// From [`PortKey::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The protocol.
    #[must_use]
    pub const fn protocol(self) -> PortProtocol {
        PortProtocol::ALL[(self.0 >> 16) as usize]
    }

    /// The destination port.
    #[inline(always)]
    #[must_use]
    pub const fn dst_port(self) -> u16 {
        u16::from_be_bytes((self.0 as u16).to_ne_bytes())
    }
}

/// What is decided about a packet, where that is counted, and where the packet goes: all that the
/// program needs to know, in one load.
///
/// ```text
///   bit 31          23 22           4 3 2 1 0
///      ├──────────────┼──────────────┼─┼─┼───┤
///      │       0      │   counter    │0│0│ v │  v: the number of a verdict that is an XDP action
///      │  slot / 4    │   counter    │0│1│ s │  steer; s: the target's slot modulo 4
///      └──────────────┴──────────────┴─┴─┴───┘
/// ```
///
/// In this order the counter's place in its page, in bytes, is the number with a mask over it.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Decision(u32);

impl Decision {
    const COUNTER_AT: u32 = 4;
    const COUNTER_BITS: u32 = (MAX_PAGES * PAGE_COUNTERS).trailing_zeros();
    const SLOT_AT: u32 = Self::COUNTER_AT + Self::COUNTER_BITS;
    /// The bits of a slot that stand below the counter.
    const SLOT_LOW: u32 = 0b11;
    const STEERS: u32 = 0b100;

    /// A decision to steer to the target in `slot`, below [`TARGET_SLOTS`], that counts in
    /// `counter`, below 524,288.
    ///
    /// # Panics
    ///
    /// If one is beyond.
    #[must_use]
    pub const fn steer(slot: u16, counter: u32) -> Self {
        assert!((slot as usize) < TARGET_SLOTS);
        let slot = slot as u32;
        let upper = (slot >> Self::SLOT_LOW.count_ones()) << Self::SLOT_AT;
        Self(upper | Self::with_counter(counter) | Self::STEERS | (slot & Self::SLOT_LOW))
    }

    /// Any other decision.
    ///
    /// # Panics
    ///
    /// If the verdict is to steer, or the counter is beyond.
    #[must_use]
    pub const fn new(verdict: Verdict, counter: u32) -> Self {
        assert!(!matches!(verdict, Verdict::Steer), "that takes a target");
        Self(Self::with_counter(counter) | verdict as u32)
    }

    const fn with_counter(counter: u32) -> u32 {
        assert!(counter >> Self::COUNTER_BITS == 0);
        counter << Self::COUNTER_AT
    }

    /// The same decision, but counted in another counter, below 524,288.
    ///
    /// # Panics
    ///
    /// If the counter is beyond.
    #[must_use]
    pub const fn counted_in(self, counter: u32) -> Self {
        const MASK: u32 = ((1 << Decision::COUNTER_BITS) - 1) << Decision::COUNTER_AT;
        Self(self.0 & !MASK | Self::with_counter(counter))
    }

    /// A decision for another reason than a rule.
    #[inline(always)]
    #[must_use]
    pub const fn without_rule(verdict: Verdict, reason: Reason) -> Self {
        // Page 0 is never beyond, and a program that could panic does not load.
        Self((outcome_counter(verdict, reason) << Self::COUNTER_AT) | verdict as u32)
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// From [`Decision::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The verdict.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        if self.steers() { Verdict::Steer } else { Verdict::from_number(self.action()) }
    }

    /// Whether the packet is steered. All other verdicts are an XDP action and nothing else.
    #[inline(always)]
    #[must_use]
    pub const fn steers(self) -> bool {
        self.0 & Self::STEERS != 0
    }

    /// The XDP action, if the packet is not steered.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> u32 {
        self.0 & 0b11
    }

    /// The target's slot, below [`TARGET_SLOTS`], if the packet is steered.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        let upper = (self.0 >> Self::SLOT_AT) << Self::SLOT_LOW.count_ones();
        upper | (self.0 & Self::SLOT_LOW)
    }

    /// The number of the counter's page, if the packet is not steered.
    #[inline(always)]
    #[must_use]
    pub const fn page(self) -> u32 {
        self.0 >> (Self::COUNTER_AT + PAGE_COUNTERS.trailing_zeros())
    }

    /// The same, if it is.
    #[inline(always)]
    #[must_use]
    pub const fn page_steered(self) -> u32 {
        self.counter() / PAGE_COUNTERS as u32
    }

    /// Where the counter stands in its page, in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn page_offset(self) -> usize {
        const MASK: usize = (PAGE_COUNTERS - 1) * size_of::<Counter>();
        const _: () = assert!(1 << Decision::COUNTER_AT == size_of::<Counter>());
        self.0 as usize & MASK
    }

    /// The counter.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> u32 {
        (self.0 >> Self::COUNTER_AT) & ((1 << Self::COUNTER_BITS) - 1)
    }
}

// All slots fit above the counter and below it.
const _: () = assert!(
    TARGET_SLOTS.trailing_zeros()
        == u32::BITS - Decision::SLOT_AT + Decision::SLOT_LOW.count_ones()
);

/// The number of rules that a policy may have: all of them can be replaced by as many new ones
/// while there is a counter for each, and each of their verdicts may leave a page half empty.
pub const MAX_RULES: usize = MAX_PAGES / 2 * PAGE_COUNTERS - 4 * PAGE_COUNTERS;

/// The number of rows in [`Image::by_port`].
pub const ROWS: usize = PortProtocol::ALL.len();

/// What a policy asks for beyond protocols and destination ports, as bits. A program is loaded with
/// those that its policies need, and has no code for the others.
pub mod feature {
    /// Cells are nodes, not decisions: set if any of the others is, or ICMP types are asked for.
    pub const RULES: u32 = 1 << 0;
    /// Rules constrain source addresses.
    pub const SRC: u32 = 1 << 1;
    /// Rules constrain destination addresses and no source addresses.
    pub const DST: u32 = 1 << 2;
    /// Rules constrain both.
    pub const BOTH: u32 = 1 << 3;
    /// Rules constrain VLAN ids, interfaces or source ports.
    pub const EXTRAS: u32 = 1 << 4;
    /// Tables lie beyond [`SMALL_SEGMENTS`](crate::node::SMALL_SEGMENTS).
    pub const LARGE: u32 = 1 << 5;
    /// Of programs alone, not of policies: the interface belongs to the first bank's policy and to no other.
    /// Where that is not in force, everything passes, as if nothing were attached.
    pub const FIRST_BANK_ALONE: u32 = 1 << 30;
    /// The same for the second bank.
    pub const SECOND_BANK_ALONE: u32 = 1 << 31;
    /// Those that policies have, with a name for each.
    pub const NAMES: [(u32, &str); 6] = [
        (RULES, "rules"),
        (SRC, "src"),
        (DST, "dst"),
        (BOTH, "src-dst"),
        (EXTRAS, "extras"),
        (LARGE, "large"),
    ];
}

/// Where a lookup by addresses starts, by IP version.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Roots {
    pub src_v4: Node,
    pub src_v6: Node,
    pub dst_v4: Node,
    pub dst_v6: Node,
}

/// A decision where [`Image::features`] are none, else a node.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Cell(pub u32);

impl From<Decision> for Cell {
    fn from(decision: Decision) -> Self {
        Self(decision.to_bits())
    }
}

impl From<Node> for Cell {
    fn from(node: Node) -> Self {
        Self(node.to_bits())
    }
}

/// The compiled policy but for its tables. More than a megabyte: only ever behind a pointer.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
#[expect(missing_debug_implementations, reason = "nobody wants to read half a million numbers")]
pub struct Image {
    /// By protocol and [`column`]: a cell for each [`PortKey`].
    pub by_port: [[Cell; 65_536]; ROWS],
    /// Where there are no ports, by IP protocol number; the non-first fragments of all protocols
    /// stand [`LATER`](crate::node::row::LATER) cells further on.
    pub by_protocol: [Cell; OTHER_COLUMNS],
    /// Bits of [`feature`].
    pub features: u32,
    /// By type and code: the rules that constrain no address. Only if there are features, as the
    /// following.
    pub icmp: Node,
    pub icmpv6: Node,
    pub roots: Roots,
    /// What happens to an IP packet that no rule matches.
    pub default: Decision,
    /// What happens to later fragments where a rule asks for what they do not have.
    pub fragments: Decision,
    /// Where in the tables the rules' decisions stand, by rule number: in words.
    pub decisions: u32,
    /// The segments of the tables that this policy uses, and how many.
    pub first_segment: u32,
    pub segments: u32,
    /// What happens to malformed packets: a verdict's number.
    pub malformed: u32,
    /// What happens to unsupported packets: a verdict's number.
    pub unsupported: u32,
    pub reserved: u32,
}

/// The word of the first bank.
pub const FIRST_BANK: u32 = 0;
/// The word of the second bank: all ones, so that the bank's offset is this word with a mask over it.
pub const SECOND_BANK: u32 = u32::MAX;

/// The value of the map `policy`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
#[expect(missing_debug_implementations, reason = "as for the image")]
pub struct PolicyBanks {
    pub banks: [Image; BANKS],
    pub targets: Targets,
}

// Older kernels refuse map values above 4 MiB.
const _: () = assert!(size_of::<PolicyBanks>() < 4 << 20);
