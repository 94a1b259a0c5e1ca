//! The truth: a first-match interpreter of the policy as written, as naive as can be. It shares no
//! code with [`crate::compile`] and none with the XDP program; both are compared with it.

use crate::policy::{Action, Policy};

/// A packet as the rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` for protocols without ports and for non-first fragments.
    pub dst_port: Option<u16>,
    /// Type and code of a whole ICMP packet over IPv4.
    pub icmp: Option<(u8, u8)>,
    /// Type of a whole ICMPv6 packet over IPv6.
    pub icmpv6: Option<u8>,
    /// Whether it is a non-first fragment.
    pub later_fragment: bool,
}

/// What decides about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The rule at this index of the policy.
    Rule(usize),
    /// `options.fragments`.
    Fragments,
    /// `default`.
    Default,
    /// `default = "drop"` spares it: neighbour discovery.
    SparedDiscovery,
    /// `default = "drop"` spares it: packet too big.
    SparedPathMtu,
}

/// Judges a packet.
#[must_use]
pub fn judge(policy: &Policy, packet: &Packet) -> Decision {
    // TCP, UDP, DCCP, SCTP, UDP-Lite.
    let protocol_has_ports = [6, 17, 33, 132, 136].contains(&packet.protocol);
    for (index, rule) in policy.rules.iter().enumerate() {
        if !rule.protocols.is_empty() && !rule.protocols.contains(&packet.protocol) {
            continue;
        }
        if rule.dst_ports.is_empty() {
            return Decision::Rule(index);
        }
        if !protocol_has_ports {
            continue;
        }
        if packet.later_fragment {
            return Decision::Fragments;
        }
        let Some(port) = packet.dst_port else { continue };
        if rule.dst_ports.iter().any(|range| range.first <= port && port <= range.last) {
            return Decision::Rule(index);
        }
    }
    if policy.default == Action::Drop {
        match (packet.icmp, packet.icmpv6) {
            (Some((3, 4)), _) | (_, Some(2)) => return Decision::SparedPathMtu,
            (_, Some(133..=136)) => return Decision::SparedDiscovery,
            _ => {}
        }
    }
    Decision::Default
}

/// What happens to the packet.
#[must_use]
pub fn action(policy: &Policy, decision: Decision) -> Action {
    match decision {
        Decision::Rule(index) => policy.rules[index].action,
        Decision::Fragments => policy.options.fragments,
        Decision::Default => policy.default,
        Decision::SparedDiscovery | Decision::SparedPathMtu => Action::Pass,
    }
}
