//! Why a rule does not match a packet, in words, field by field.

use std::net::IpAddr;

use portsteer_common::{PortProtocol, wire::protocol};

use super::index::{Field, Fields, Index};
use crate::{
    oracle::Packet,
    policy::{
        AddressItem, Addresses, NumberRange, Policy, Rule, icmp_text, protocol_name, vlan_text,
    },
};

/// How many entries of a list are told.
const MAX_TOLD: usize = 8;

/// What a rule matches, as [`Policy::matches`] has it, but of long lists only the first entries.
#[must_use]
pub fn shortened(policy: &Policy, rule: &Rule) -> String {
    let cut = |text: &str| match text.match_indices(',').nth(MAX_TOLD - 1) {
        Some((end, _)) => format!("{},...", &text[..end]),
        None => text.to_owned(),
    };
    let short = Rule {
        name: None,
        protocols: rule.protocols.clone(),
        src: first_of(&rule.src),
        dst: first_of(&rule.dst),
        src_ports: first(&rule.src_ports),
        dst_ports: first(&rule.dst_ports),
        icmp_types: first(&rule.icmp_types),
        vlans: first(&rule.vlans),
        interfaces: first(&rule.interfaces),
        ..Rule::any(rule.action)
    };
    policy.matches(&short).split(' ').map(cut).collect::<Vec<_>>().join(" ")
}

/// One entry more than is told, so that it shows that there are more.
fn first<T: Clone>(list: &[T]) -> Vec<T> {
    list.iter().take(MAX_TOLD + 1).cloned().collect()
}

fn first_of(addresses: &Addresses) -> Addresses {
    Addresses { positive: first(&addresses.positive), negative: first(&addresses.negative) }
}

/// The fields in which a rule does not match, by their keys, each with why.
pub(super) fn told(
    policy: &Policy,
    index: &Index<'_>,
    rule: &Rule,
    packet: &Packet<'_>,
    fields: Fields,
) -> Vec<(&'static str, String)> {
    let fields = Field::ALL.into_iter().filter(|&field| fields.contains(field));
    fields.map(|field| (field.name(), why(policy, index, rule, packet, field))).collect()
}

fn why(
    policy: &Policy,
    index: &Index<'_>,
    rule: &Rule,
    packet: &Packet<'_>,
    field: Field,
) -> String {
    match field {
        Field::Protocol => {
            let names: Vec<String> =
                rule.protocols.iter().map(|&number| protocol_name(number)).collect();
            format!("{} is not {}", protocol_name(packet.protocol), names.join(" or "))
        }
        Field::Src => address(policy, index, &rule.src, packet.src, "source"),
        Field::Dst => address(policy, index, &rule.dst, packet.dst, "destination"),
        Field::SrcPort => port(&rule.src_ports, packet, packet.src_port, "source"),
        Field::DstPort => port(&rule.dst_ports, packet, packet.dst_port, "destination"),
        Field::IcmpType => icmp_type(rule, packet),
        Field::Vlan => {
            let id = vlan_text(&NumberRange::single(packet.vlan));
            format!("{id} is not in {}", list(&rule.vlans, vlan_text))
        }
        Field::Interface => {
            let asked = list(&rule.interfaces, |pattern| pattern.text.clone());
            packet.interface.map_or_else(
                || "the packet's interface is not given".to_owned(),
                |name| format!("{name} is not in {asked}"),
            )
        }
    }
}

fn address(
    policy: &Policy,
    index: &Index<'_>,
    asked: &Addresses,
    address: Option<IpAddr>,
    end: &str,
) -> String {
    let Some(address) = address else {
        return format!("the packet's {end} address is not given");
    };
    let text = |item: &AddressItem| {
        policy.addresses(&Addresses { positive: vec![*item], negative: Vec::new() })
    };
    match asked.negative.iter().find(|item| index.is_in(address, item)) {
        // Which it is that excludes the address is worth knowing; where there is none, it lacks the others.
        Some(item) => format!("{address} is in {}, which is excluded", text(item)),
        None => format!("{address} is not in {}", list(&asked.positive, text)),
    }
}

fn port(asked: &[NumberRange], packet: &Packet<'_>, port: Option<u16>, end: &str) -> String {
    if PortProtocol::from_number(packet.protocol).is_none() {
        return format!("{} has no ports", protocol_name(packet.protocol));
    }
    if packet.later_fragment {
        return "a later fragment has no ports".to_owned();
    }
    port.map_or_else(
        || format!("the packet's {end} port is not given"),
        |port| format!("{port} is not in {}", list(asked, ToString::to_string)),
    )
}

fn icmp_type(rule: &Rule, packet: &Packet<'_>) -> String {
    let name = protocol_name(packet.protocol);
    if ![protocol::ICMP, protocol::ICMPV6].contains(&packet.protocol) {
        return format!("{name} has no type");
    }
    if packet.later_fragment {
        return "a later fragment has no type".to_owned();
    }
    let Some((kind, code)) = packet.icmp.or(packet.icmpv6) else {
        return format!("this {name} has no type: it is of the other IP version");
    };
    format!("type {kind} code {code} is not in {}", list(&rule.icmp_types, icmp_text))
}

/// The first entries of a list.
fn list<T>(entries: &[T], text: impl Fn(&T) -> String) -> String {
    let mut told: Vec<String> = entries.iter().take(MAX_TOLD).map(text).collect();
    if entries.len() > told.len() {
        told.push("...".to_owned());
    }
    told.join(",")
}
