//! The truth: a first-match interpreter of the policy as written, as naive as can be. It shares no
//! code with [`crate::compile`] and none with the XDP program; both are compared with it.

use std::net::IpAddr;

use globset::Glob;

use crate::policy::{Action, AddressItem, Addresses, InterfacePattern, NumberRange, Policy};

/// A packet as the rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// IP protocol number.
    pub protocol: u8,
    /// Source address; `None`, as for the destination, if nobody said: then no rule matches that
    /// asks for it.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Source port; `None` for protocols without ports and for non-first fragments.
    pub src_port: Option<u16>,
    /// Destination port, as the source port.
    pub dst_port: Option<u16>,
    /// Type and code of an ICMP packet over IPv4, or of its first fragment.
    pub icmp: Option<(u8, u8)>,
    /// Type and code of an ICMPv6 packet over IPv6, or of its first fragment.
    pub icmpv6: Option<(u8, u8)>,
    /// Whether it is a non-first fragment.
    pub later_fragment: bool,
    /// The outermost tag's VLAN id; 0 for untagged packets.
    pub vlan: u16,
    /// The interface that it came in by, as far as known.
    pub interface: Option<&'a str>,
}

impl Packet<'_> {
    /// A packet of which nothing is known but its protocol.
    #[must_use]
    pub const fn new(protocol: u8) -> Self {
        Self {
            protocol,
            src: None,
            dst: None,
            src_port: None,
            dst_port: None,
            icmp: None,
            icmpv6: None,
            later_fragment: false,
            vlan: 0,
            interface: None,
        }
    }
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
pub fn judge(policy: &Policy, packet: &Packet<'_>) -> Decision {
    // TCP, UDP, DCCP, SCTP, UDP-Lite.
    let protocol_has_ports = [6, 17, 33, 132, 136].contains(&packet.protocol);
    let protocol_has_types = [1, 58].contains(&packet.protocol);
    for (index, rule) in policy.rules.iter().enumerate() {
        let is_protocol = rule.protocols.is_empty() || rule.protocols.contains(&packet.protocol);
        let is_vlan = rule.vlans.is_empty() || is_in(packet.vlan, &rule.vlans);
        if !is_protocol
            || !is_vlan
            || !matches_addresses(policy, &rule.src, packet.src)
            || !matches_addresses(policy, &rule.dst, packet.dst)
            || !matches_interface(&rule.interfaces, packet.interface)
        {
            continue;
        }
        let asks_for_ports = !rule.src_ports.is_empty() || !rule.dst_ports.is_empty();
        let asks_for_types = !rule.icmp_types.is_empty();
        if !asks_for_ports && !asks_for_types {
            return Decision::Rule(index);
        }
        if asks_for_ports && !protocol_has_ports || asks_for_types && !protocol_has_types {
            continue;
        }
        if packet.later_fragment {
            return Decision::Fragments;
        }
        let icmp = packet.icmp.or(packet.icmpv6);
        let icmp = icmp.map(|(kind, code)| u16::from(kind) << 8 | u16::from(code));
        let asked = [
            (packet.src_port, &rule.src_ports),
            (packet.dst_port, &rule.dst_ports),
            (icmp, &rule.icmp_types),
        ];
        let matches = |&(value, ranges): &(Option<u16>, &Vec<NumberRange>)| {
            ranges.is_empty() || value.is_some_and(|value| is_in(value, ranges))
        };
        if asked.iter().all(matches) {
            return Decision::Rule(index);
        }
    }
    if policy.default == Action::Drop {
        match (packet.icmp, packet.icmpv6) {
            (Some((3, 4)), _) | (_, Some((2, _))) => return Decision::SparedPathMtu,
            (_, Some((133..=136, _))) => return Decision::SparedDiscovery,
            _ => {}
        }
    }
    Decision::Default
}

fn is_in(value: u16, ranges: &[NumberRange]) -> bool {
    ranges.iter().any(|range| range.first <= value && value <= range.last)
}

fn matches_addresses(policy: &Policy, asked: &Addresses, address: Option<IpAddr>) -> bool {
    if asked.positive.is_empty() && asked.negative.is_empty() {
        return true;
    }
    let Some(address) = address else { return false };
    let is_in = |item: &AddressItem| match item {
        AddressItem::Prefix(prefix) => prefix.contains(&address),
        AddressItem::Set(id) => {
            policy.sets[id.0 as usize].prefixes.iter().any(|prefix| prefix.contains(&address))
        }
    };
    (asked.positive.is_empty() || asked.positive.iter().any(is_in))
        && !asked.negative.iter().any(is_in)
}

fn matches_interface(asked: &[InterfacePattern], interface: Option<&str>) -> bool {
    if asked.is_empty() {
        return true;
    }
    let Some(interface) = interface else { return false };
    let is_it = |pattern: &InterfacePattern| {
        if !pattern.is_glob {
            return pattern.text == interface;
        }
        Glob::new(&pattern.text).is_ok_and(|glob| glob.compile_matcher().is_match(interface))
    };
    asked.iter().any(is_it)
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
