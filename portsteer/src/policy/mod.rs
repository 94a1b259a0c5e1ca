//! What the operator wrote: the policy as it was meant, free of the file's syntax.
//!
//! [`file`] reads a policy file into a [`Policy`], [`prefixes`] addresses and files of them,
//! [`services`] knows the names of ports, [`lint`] looks for what is legal but hardly meant,
//! [`ranges`] is how addresses are compared, and [`diagnostic`] is how all of them say what they found.
//! [`edit`] changes what it has to of a policy file's text, [`set_edit`] a set's addresses, and [`diff`] tells
//! what one policy changes about another.
//! Nothing in here does any I/O.

use std::{fmt, net::IpAddr, ops::Range, sync::Arc};

use ipnet::IpNet;
use portsteer_common::PortProtocol;
use serde::{Deserialize, Serialize};

pub mod diagnostic;
pub mod diff;
pub mod edit;
pub mod file;
pub mod lint;
pub mod prefixes;
#[cfg(test)]
pub(crate) mod random;
pub mod ranges;
pub mod services;
pub mod set_edit;

/// A whole policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The interfaces to attach to, at least one.
    pub interfaces: Vec<InterfacePattern>,
    /// How to attach.
    pub mode: Mode,
    /// What happens to an IP packet that no rule matches.
    pub default: Action,
    /// What happens to packets that the rules cannot judge.
    pub options: Options,
    /// Where packets can be steered to, in the file's order, at most
    /// [`MAX_TARGETS`](portsteer_common::steering::MAX_TARGETS).
    pub targets: Vec<Target>,
    /// The sets of addresses that rules can name, in the file's order.
    pub sets: Vec<Set>,
    /// The first that matches decides.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// What a rule of this policy is called in listings and what its counter belongs to: its name,
    /// or, without one, its match and action.
    #[must_use]
    pub fn label(&self, rule: &Rule) -> String {
        rule.name.clone().unwrap_or_else(|| format!("{} {}", self.matches(rule), self.does(rule)))
    }

    /// What a rule of this policy matches, as text: `tcp src @office dst_port 80,8000-8080`.
    #[must_use]
    pub fn matches(&self, rule: &Rule) -> String {
        let mut text = if rule.protocols.is_empty() {
            "any".to_owned()
        } else {
            comma_list(rule.protocols.iter().map(|&number| protocol_name(number)))
        };
        let mut field = |name: &str, values: String| {
            if !values.is_empty() {
                text.push_str(&format!(" {name} {values}"));
            }
        };
        field("src", self.addresses(&rule.src));
        field("src_port", comma_list(rule.src_ports.iter().map(ToString::to_string)));
        field("dst", self.addresses(&rule.dst));
        field("dst_port", comma_list(rule.dst_ports.iter().map(ToString::to_string)));
        field("icmp_type", comma_list(rule.icmp_types.iter().map(icmp_text)));
        field("vlan", comma_list(rule.vlans.iter().map(vlan_text)));
        field("interface", comma_list(rule.interfaces.iter().map(|pattern| pattern.text.clone())));
        text
    }

    /// A rule's addresses as text: `@office,198.51.100.7,!198.51.100.9`.
    #[must_use]
    pub fn addresses(&self, addresses: &Addresses) -> String {
        let positive = addresses.positive.iter().map(|item| ("", item));
        let negative = addresses.negative.iter().map(|item| ("!", item));
        comma_list(positive.chain(negative).map(|(sign, item)| match item {
            AddressItem::Set(id) => format!("{sign}@{}", self.set(*id).name),
            AddressItem::Prefix(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => {
                format!("{sign}{}", prefix.addr())
            }
            AddressItem::Prefix(prefix) => format!("{sign}{prefix}"),
        }))
    }

    /// A set of this policy.
    #[must_use]
    pub fn set(&self, id: SetId) -> &Set {
        &self.sets[id.0 as usize]
    }

    /// A rule's action in words: `pass`, `drop`, `steer web`.
    #[must_use]
    pub fn does(&self, rule: &Rule) -> String {
        match rule.action {
            Action::Steer(id) => format!("steer {}", self.target(id).name),
            action => action.name().to_owned(),
        }
    }

    /// A target of this policy.
    #[must_use]
    pub fn target(&self, id: TargetId) -> &Target {
        &self.targets[usize::from(id.0)]
    }
}

/// Where traffic is steered: one of the policy's `[targets.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Unique in the policy.
    pub name: String,
    pub kind: TargetKind,
    /// The name in the target's header, in bytes.
    pub span: Range<usize>,
    /// The line of that header, from 1.
    pub line: usize,
}

/// What kind of place a target is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// Out of an interface.
    Interface { interface: String, next_hop: NextHop },
    /// To CPUs of this host, by a hash over the 5-tuple, and on to its network stack.
    Cpus {
        /// CPU numbers, ascending and without duplicates, at least one.
        cpus: Vec<u32>,
        /// How many packets may wait for a CPU.
        queue: u32,
    },
}

/// Where a frame that is steered out of an interface is addressed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NextHop {
    /// To the MAC address of this neighbour, which is resolved and followed.
    Via(IpAddr),
    /// To this MAC address.
    Mac([u8; 6]),
    /// To wherever it was addressed before: neither MAC address is changed.
    Keep,
}

/// A target's index in [`Policy::targets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

/// A set of addresses: one of the policy's `[sets.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Unique in the policy.
    pub name: String,
    /// As they come: they may overlap, nest and repeat. No host bits are set. There may be a million of
    /// them, so whoever keeps an older policy, or something that was made from it, shares them.
    pub prefixes: Arc<Vec<IpNet>>,
    /// The file that they were read from, as the policy names it; `None` if they stand in the policy.
    pub file: Option<String>,
    /// The name in the set's header, in bytes.
    pub span: Range<usize>,
    /// The line of that header, from 1.
    pub line: usize,
}

/// A set's index in [`Policy::sets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// Addresses that a rule asks for: any of the positive ones and none of the negative ones. With
/// negative ones alone, everything else, of both IP versions. Both empty: no constraint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    pub positive: Vec<AddressItem>,
    pub negative: Vec<AddressItem>,
}

/// One entry of a rule's `src` or `dst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressItem {
    /// A prefix without host bits; one address is a prefix of full length.
    Prefix(IpNet),
    /// All prefixes of a set.
    Set(SetId),
}

/// How many packets wait for a CPU at most, where the policy does not say. As large as the queues
/// of network cards commonly are made under load.
pub const DEFAULT_QUEUE: u32 = 2048;

/// An interface's name, or a glob over names such as `veth-*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfacePattern {
    /// As written.
    pub text: String,
    /// Whether it has any of the glob characters `*`, `?`, `[` and `{`.
    pub is_glob: bool,
    /// Where in the file, in bytes.
    pub span: Range<usize>,
}

/// How the program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, before the kernel allocates a socket buffer.
    Native,
    /// In the kernel's receive path: any device, but slower.
    Generic,
}

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// On to the host's own network stack.
    Pass,
    /// Discarded.
    Drop,
    /// To a target. Only rules steer; defaults and options do not.
    Steer(TargetId),
}

/// The policy's `[options]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Non-first fragments, which carry no ports, where a rule with ports would have to decide.
    pub fragments: Action,
    /// Packets that violate the standard, truncated headers included.
    pub malformed: Action,
    /// Legal packets beyond what is parsed.
    pub unsupported: Action,
}

impl Default for Options {
    fn default() -> Self {
        Self { fragments: Action::Pass, malformed: Action::Drop, unsupported: Action::Drop }
    }
}

/// One rule: every field that it constrains has to match. An empty field is no constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique in the policy.
    pub name: Option<String>,
    /// IP protocol numbers, ascending and without duplicates. Empty: any, or, where the rule has
    /// ports, any that has ports. Exactly one, ICMP or ICMPv6, where the rule has ICMP types.
    pub protocols: Vec<u8>,
    /// Source addresses.
    pub src: Addresses,
    /// Destination addresses.
    pub dst: Addresses,
    /// Source ports, ascending, neither overlapping nor adjacent.
    pub src_ports: Vec<PortRange>,
    /// Destination ports, ascending, neither overlapping nor adjacent.
    pub dst_ports: Vec<PortRange>,
    /// ICMP types and codes, ascending, neither overlapping nor adjacent.
    pub icmp_types: Vec<IcmpRange>,
    /// The outermost tag's VLAN ids, ascending, neither overlapping nor adjacent.
    pub vlans: Vec<VlanRange>,
    /// The interfaces that the packet comes in by.
    pub interfaces: Vec<InterfacePattern>,
    /// What happens to a packet that matches.
    pub action: Action,
    /// The rule's header `[[rules]]` in the file, in bytes.
    pub span: Range<usize>,
    /// The line of that header, from 1.
    pub line: usize,
}

/// Numbers of 16 bits from `first` to `last`, both included, `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumberRange {
    pub first: u16,
    pub last: u16,
}

/// Ports.
pub type PortRange = NumberRange;

/// VLAN ids: 0 is an untagged packet or one with a priority tag, 1 to 4,095 are ids.
pub type VlanRange = NumberRange;

/// ICMP types and codes: the type in the upper byte, the code in the lower one.
pub type IcmpRange = NumberRange;

impl Action {
    /// The word for it in the policy file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Steer(_) => "steer",
        }
    }
}

impl Mode {
    /// The word for it in the policy file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl Rule {
    /// A rule that matches every IP packet and stands in no file.
    #[must_use]
    pub fn any(action: Action) -> Self {
        Self {
            name: None,
            protocols: Vec::new(),
            src: Addresses::default(),
            dst: Addresses::default(),
            src_ports: Vec::new(),
            dst_ports: Vec::new(),
            icmp_types: Vec::new(),
            vlans: Vec::new(),
            interfaces: Vec::new(),
            action,
            span: 0..0,
            line: 0,
        }
    }

    /// Whether the rule asks for what only a transport header has, which later fragments lack.
    #[must_use]
    pub const fn needs_transport(&self) -> bool {
        !self.dst_ports.is_empty() || !self.src_ports.is_empty() || !self.icmp_types.is_empty()
    }
}

impl NumberRange {
    /// All numbers.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// One number.
    #[must_use]
    pub const fn single(number: u16) -> Self {
        Self { first: number, last: number }
    }
}

impl Addresses {
    /// Whether every address will do.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.positive.is_empty() && self.negative.is_empty()
    }
}

fn comma_list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

impl fmt::Display for NumberRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// ICMP types as text: `8`, `8-11`, `3/4`, `3/0-3`.
pub(crate) fn icmp_text(range: &IcmpRange) -> String {
    let [first, first_code] = range.first.to_be_bytes();
    let [last, last_code] = range.last.to_be_bytes();
    match (first_code, last_code) {
        (0, u8::MAX) if first == last => first.to_string(),
        (0, u8::MAX) => format!("{first}-{last}"),
        _ if range.first == range.last => format!("{first}/{first_code}"),
        _ if first == last => format!("{first}/{first_code}-{last_code}"),
        // Adjacent entries that were merged.
        _ => format!("{first}/{first_code}-{last}/{last_code}"),
    }
}

/// VLAN ids as text: `12`, `100-199`, `untagged`, `untagged,1-7`.
pub(crate) fn vlan_text(range: &VlanRange) -> String {
    match *range {
        VlanRange { first: 0, last: 0 } => "untagged".to_owned(),
        VlanRange { first: 0, last } => format!("untagged,{}", NumberRange { first: 1, last }),
        range => range.to_string(),
    }
}

/// The port ranges that have a name in the policy file (RFC 6335 section 6).
pub const RANGE_NAMES: [(&str, PortRange); 3] = [
    ("well-known", PortRange { first: 0, last: 1023 }),
    ("registered", PortRange { first: 1024, last: 49_151 }),
    ("dynamic", PortRange { first: 49_152, last: 65_535 }),
];

/// The protocols that have a name in the policy file, with their numbers.
pub const PROTOCOL_NAMES: [(&str, u8); 7] = [
    ("tcp", PortProtocol::Tcp.number()),
    ("udp", PortProtocol::Udp.number()),
    ("udplite", PortProtocol::UdpLite.number()),
    ("sctp", PortProtocol::Sctp.number()),
    ("dccp", PortProtocol::Dccp.number()),
    ("icmp", portsteer_common::wire::protocol::ICMP),
    ("icmpv6", portsteer_common::wire::protocol::ICMPV6),
];

/// A protocol's name in the policy file, its number as text where it has none.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    PROTOCOL_NAMES
        .iter()
        .find(|(_, named)| *named == number)
        .map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}
