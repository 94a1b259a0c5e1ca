//! The layout of the compiled policy: one value of the map `images`, which has two of them
//! (*banks*). The program reads the word in the map `active` once per packet and uses that bank
//! alone, so every packet is judged by exactly one policy.
//!
//! A lookup costs the same whatever the number of rules:
//!
//! ```text
//! TCP, UDP, UDP-Lite, SCTP, DCCP with ports   by_port[protocol][dst_port] ─┐
//! all other IP packets, later fragments       by_protocol[protocol] ───────┴▶ rules[number]
//! ```

use bytemuck::{Pod, Zeroable};

use crate::{Reason, Verdict, verdict::VerdictCode};

/// The number of banks in the map `images`.
pub const BANKS: u32 = 2;

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

/// A protocol that has ports, and a destination port: a cell of [`Image::by_port`], as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey(u32);

impl PortKey {
    /// The key of this protocol and destination port.
    #[inline(always)]
    #[must_use]
    pub const fn new(protocol: PortProtocol, dst_port: u16) -> Self {
        Self(((protocol as u32) << 16) | dst_port as u32)
    }

    /// The cell's index, all rows in a row: below 5 times 65,536.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The protocol.
    #[must_use]
    pub const fn protocol(self) -> PortProtocol {
        PortProtocol::ALL[(self.0 >> 16) as usize]
    }

    /// The destination port.
    #[must_use]
    pub const fn dst_port(self) -> u16 {
        self.0 as u16
    }
}

/// The number of rules that an image has room for, those of [`Special`] included. A power of two.
pub const RULES: usize = 1 << 17;

/// The entries of [`Image::rules`] that stand for the policy's default and options. The
/// operator's rules follow them, in file order, from [`FIRST_RULE`] on.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Special {
    /// `default`.
    Default = 0,
    /// `options.fragments`.
    Fragments = 1,
    /// `options.malformed`.
    Malformed = 2,
    /// `options.unsupported`.
    Unsupported = 3,
}

/// The number of the first of the operator's rules in [`Image::rules`].
pub const FIRST_RULE: u32 = 4;

/// The number of rules that a policy may have.
pub const MAX_RULES: usize = RULES - FIRST_RULE as usize;

/// What a rule does, and where it counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// The rule's counter in `rule_counters`. It belongs to the rule's name and is the same in
    /// every policy that has a rule of that name.
    pub counter: u32,
    /// What happens to the packet.
    pub verdict: VerdictCode,
    /// Why, as the number of a [`Reason`]. For [`Special::Malformed`] and
    /// [`Special::Unsupported`] the parser's reason stands in its place.
    pub reason: u8,
    /// Zero. Where the packet is steered, once there are targets.
    pub target: u16,
}

impl Rule {
    /// A rule that has no counter of its own uses this one, which no listing shows.
    pub const UNLISTED_COUNTER: u32 = 0;

    /// An entry with this verdict and reason that counts in `counter`.
    #[must_use]
    pub const fn new(verdict: Verdict, reason: Reason, counter: u32) -> Self {
        Self { counter, verdict: verdict.code(), reason: reason as u8, target: 0 }
    }
}

/// The number of protocol rows that the port table has room for: a power of two, so that an index
/// into it needs nothing but a mask.
pub const PORT_TABLE_ROWS: usize = 8;

/// The compiled policy. Three megabytes: only ever behind a pointer.
#[repr(C)]
#[expect(missing_debug_implementations, reason = "nobody wants to read half a million numbers")]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Image {
    /// The number of the rule that decides, by [`PortProtocol`] and destination port.
    pub by_port: [[u32; 65_536]; PORT_TABLE_ROWS],
    /// The number of the rule that decides where there are no ports, by IP protocol number: for
    /// protocols without ports, and for the non-first fragments of those with ports.
    pub by_protocol: [u32; 256],
    /// What the rules do, by number.
    pub rules: [Rule; RULES],
}

// Older kernels refuse map values above 4 MiB.
const _: () = assert!(size_of::<Image>() < 4 << 20);
