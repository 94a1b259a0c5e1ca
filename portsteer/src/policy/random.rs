//! Random policies that use every field, and packets that meet them at their boundaries: for the tests
//! that compare something with the oracle.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::{
    Action, AddressItem, Addresses, InterfacePattern, Mode, NumberRange, Options, Policy, Rule,
    Set, SetId,
};
use crate::oracle::Packet;

const SETS: usize = 3;
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
const PORTS: [u16; 6] = [0, 1, 2, 3, 65_534, 65_535];
const VLANS: [u16; 5] = [0, 1, 2, 3, 4095];
const NAMES: [&str; 5] = ["eth0", "eth1", "eth10", "veth-a", "lo"];
const GLOBS: [&str; 7] = ["*", "eth*", "eth1*", "eth?", "veth-*", "wl*", "e{th0,th1}"];

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Pass), Just(Action::Drop)]
}

pub(crate) fn prefix() -> impl Strategy<Value = IpNet> {
    const PREFIXES: [&str; 17] = [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "10.0.0.0/8",
        "10.0.0.0/30",
        "10.0.0.0/31",
        "10.0.0.2/31",
        "10.0.0.0/32",
        "10.0.0.1/32",
        "10.0.0.3/32",
        "255.255.255.255/32",
        "::/0",
        "fd00::/126",
        "fd00::/127",
        "fd00::1/128",
        "fd00::3/128",
        "fe80::/10",
    ];
    prop::sample::select(&PREFIXES[..]).prop_map(|prefix| prefix.parse().unwrap())
}

fn address(is_v6: bool) -> impl Strategy<Value = IpAddr> {
    let v4 = [
        "0.0.0.0",
        "9.255.255.255",
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
        "128.0.0.0",
        "255.255.255.255",
    ];
    let v6 = [
        "::",
        "fcff::1",
        "fd00::",
        "fd00::1",
        "fd00::2",
        "fd00::3",
        "fd00::4",
        "fe80::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    prop::sample::select(if is_v6 { v6 } else { v4 }.to_vec())
        .prop_map(|text| text.parse().unwrap())
}

fn addresses() -> impl Strategy<Value = Addresses> {
    let item = || {
        prop_oneof![
            2 => prefix().prop_map(AddressItem::Prefix),
            1 => (0..SETS as u32).prop_map(|id| AddressItem::Set(SetId(id))),
        ]
    };
    let asked = (prop::collection::vec(item(), 0..3), prop::collection::vec(item(), 0..3))
        .prop_map(|(positive, negative)| Addresses { positive, negative });
    prop_oneof![2 => Just(Addresses::default()), 1 => asked]
}

fn ranges(numbers: Vec<u16>) -> impl Strategy<Value = Vec<NumberRange>> {
    let number = prop::sample::select(numbers);
    let some = prop::collection::vec((number.clone(), number), 1..4).prop_map(|pairs| {
        let mut ranges: Vec<NumberRange> = pairs
            .into_iter()
            .map(|(a, b)| NumberRange { first: a.min(b), last: a.max(b) })
            .collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let touches = u32::from(next.first) <= u32::from(last.last) + 1;
            if touches {
                last.last = last.last.max(next.last);
            }
            touches
        });
        ranges
    });
    prop_oneof![2 => Just(Vec::new()), 1 => some]
}

fn patterns(at_least: usize) -> impl Strategy<Value = Vec<InterfacePattern>> {
    let pattern = |text: &str| InterfacePattern {
        text: text.to_owned(),
        is_glob: text.contains(['*', '?', '[', '{']),
        span: 0..0,
    };
    let one = prop_oneof![
        2 => prop::sample::select(&NAMES[..]),
        1 => prop::sample::select(&GLOBS[..]),
    ];
    prop::collection::vec(one.prop_map(pattern), at_least..at_least + 3)
}

pub(crate) fn rule() -> impl Strategy<Value = Rule> {
    let protocols =
        prop::collection::btree_set(prop::sample::select(&[1_u8, 6, 17, 47, 58, 132][..]), 0..4);
    let types: Vec<u16> =
        [0, 1, 3, 133].into_iter().flat_map(|kind| [kind << 8, kind << 8 | 0xff]).collect();
    let types = prop_oneof![ranges(types), ranges(vec![3 << 8, 3 << 8 | 4, 2 << 8, 135 << 8]),];
    let interfaces = prop_oneof![2 => Just(Vec::new()), 1 => patterns(1)];
    (
        (protocols, prop::sample::select(&[1_u8, 58][..])),
        (addresses(), addresses()),
        (ranges(PORTS.to_vec()), ranges(PORTS.to_vec()), 0_u8..3),
        types,
        ranges(VLANS.to_vec()),
        interfaces,
        action(),
    )
        .prop_map(
            |(
                (protocols, icmp),
                (src, dst),
                (src_ports, dst_ports, kind),
                icmp_types,
                vlans,
                interfaces,
                action,
            )| {
                let mut rule = Rule {
                    protocols: protocols.into_iter().collect(),
                    src,
                    dst,
                    vlans,
                    interfaces,
                    ..Rule::any(action)
                };
                if kind == 0 && !icmp_types.is_empty() {
                    rule.protocols = vec![icmp];
                    rule.icmp_types = icmp_types;
                } else {
                    (rule.src_ports, rule.dst_ports) = (src_ports, dst_ports);
                    if rule.needs_transport() {
                        rule.protocols.retain(|number| WITH_PORTS.contains(number));
                    }
                }
                rule
            },
        )
}

/// A policy of up to `most` rules. No target is steered to.
pub(crate) fn policy(most: usize) -> impl Strategy<Value = Policy> {
    let sets = prop::collection::vec(prop::collection::vec(prefix(), 0..4), SETS);
    (prop::collection::vec(rule(), 0..=most), sets, patterns(1), action(), action()).prop_map(
        |(rules, sets, interfaces, default, fragments)| {
            let set = |(index, prefixes): (usize, Vec<IpNet>)| Set {
                name: format!("set-{index}"),
                prefixes: prefixes.into(),
                file: None,
                span: 0..0,
                line: 0,
            };
            Policy {
                interfaces,
                mode: Mode::Auto,
                default,
                options: Options { fragments, ..Options::default() },
                targets: Vec::new(),
                sets: sets.into_iter().enumerate().map(set).collect(),
                rules,
            }
        },
    )
}

/// A packet as it comes in from a network.
pub(crate) fn packet() -> impl Strategy<Value = Packet<'static>> {
    let icmp = (
        prop::sample::select(&[0_u8, 1, 2, 3, 4, 133, 135, 136][..]),
        prop::sample::select(&[0_u8, 1, 4, 255][..]),
    );
    let ends = any::<bool>().prop_flat_map(|is_v6| (Just(is_v6), address(is_v6), address(is_v6)));
    (
        prop::sample::select(&[0_u8, 1, 1, 6, 6, 6, 17, 33, 47, 58, 58, 132, 136, 255][..]),
        ends,
        (prop::sample::select(&PORTS[..]), prop::sample::select(&PORTS[..])),
        icmp,
        (prop::sample::select(&VLANS[..]), prop::sample::select(&NAMES[..])),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(protocol, (is_v6, src, dst), ports, icmp, (vlan, interface), later_fragment)| {
                let has_ports = WITH_PORTS.contains(&protocol) && !later_fragment;
                Packet {
                    src: Some(src),
                    dst: Some(dst),
                    src_port: has_ports.then_some(ports.0),
                    dst_port: has_ports.then_some(ports.1),
                    icmp: (protocol == 1 && !is_v6 && !later_fragment).then_some(icmp),
                    icmpv6: (protocol == 58 && is_v6 && !later_fragment).then_some(icmp),
                    later_fragment,
                    vlan,
                    interface: Some(interface),
                    ..Packet::new(protocol)
                }
            },
        )
}
