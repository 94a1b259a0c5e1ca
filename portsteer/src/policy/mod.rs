//! What the operator wrote: the policy as it was meant, free of the file's syntax.
//!
//! [`file`] reads a policy file into a [`Policy`], [`services`] knows the names of ports,
//! [`lint`] looks for what is legal but hardly meant, and [`diagnostic`] is how all of them say
//! what they found. Nothing in here does any I/O.

use std::{fmt, net::IpAddr, ops::Range};

use portsteer_common::PortProtocol;
use serde::{Deserialize, Serialize};

pub mod diagnostic;
pub mod file;
pub mod lint;
pub mod services;

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
    /// The first that matches decides.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// What a rule of this policy is called in listings and what its counter belongs to: its name,
    /// or, without one, its match and action.
    #[must_use]
    pub fn label(&self, rule: &Rule) -> String {
        rule.name.clone().unwrap_or_else(|| format!("{} {}", rule.matches(), self.does(rule)))
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

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique in the policy.
    pub name: Option<String>,
    /// IP protocol numbers, ascending and without duplicates. Empty: any, or, where the rule has
    /// ports, any that has ports.
    pub protocols: Vec<u8>,
    /// Destination ports, ascending, neither overlapping nor adjacent. Empty: no constraint.
    pub dst_ports: Vec<PortRange>,
    /// What happens to a packet that matches.
    pub action: Action,
    /// The rule's header `[[rules]]` in the file, in bytes.
    pub span: Range<usize>,
    /// The line of that header, from 1.
    pub line: usize,
}

/// Ports from `first` to `last`, both included, `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

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
    /// What the rule matches, as text: `tcp dst_port 80,8000-8080`.
    #[must_use]
    pub fn matches(&self) -> String {
        let protocols = if self.protocols.is_empty() {
            "any".to_owned()
        } else {
            comma_list(self.protocols.iter().map(|&number| protocol_name(number)))
        };
        if self.dst_ports.is_empty() {
            protocols
        } else {
            let ports = comma_list(self.dst_ports.iter().map(ToString::to_string));
            format!("{protocols} dst_port {ports}")
        }
    }
}

impl PortRange {
    /// One port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

fn comma_list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
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
