//! Random policies that ask for everything a rule can ask for, and how to write them down.

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portsteer::{
    explain::described::Described,
    oracle::Packet,
    policy::{
        Action, AddressItem, Addresses, InterfacePattern, Mode, NumberRange, Options, Policy, Rule,
        Set, SetId, Target, TargetId, file, services::Services,
    },
};
use portsteer_testkit::boundaries::WITH_PORTS;
use proptest::prelude::*;

use crate::bench::{TARGET_NAMES, TARGETS};

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Pass), Just(Action::Drop)]
}

/// What a rule may do; the targets are those of [`TARGETS`].
fn rule_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => action(),
        1 => (0..TARGET_NAMES.len() as u16).prop_map(|index| Action::Steer(TargetId(index))),
    ]
}

/// Numbers that meet at their boundaries more often than chance would have it.
pub fn number() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u16::MAX),
        Just(u16::MAX - 1),
        20u16..30,
        255u16..258,
        any::<u16>()
    ]
}

/// Merged ranges below a limit: none more often than some.
fn ranges(
    number: impl Strategy<Value = u16> + 'static,
    nothing: u32,
) -> impl Strategy<Value = Vec<NumberRange>> {
    let pairs = prop::collection::vec(prop::array::uniform2(number), 1..4);
    prop_oneof![
        nothing => Just(Vec::new()),
        2 => pairs.prop_map(|pairs| {
            let mut ranges: Vec<NumberRange> = pairs
                .into_iter()
                .map(|[a, b]| NumberRange { first: a.min(b), last: a.max(b) })
                .collect();
            ranges.sort();
            let mut merged: Vec<NumberRange> = Vec::new();
            for range in ranges {
                match merged.last_mut() {
                    Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                        last.last = last.last.max(range.last);
                    }
                    _ => merged.push(range),
                }
            }
            merged
        }),
    ]
}

/// Prefixes that nest, touch and repeat.
fn prefix() -> impl Strategy<Value = IpNet> {
    let octet = || prop::sample::select(&[0u8, 1, 2, 127, 128, 254, 255][..]);
    let v4 = ([octet(), octet(), octet(), octet()], 0u8..=32)
        .prop_map(|(octets, len)| IpNet::V4(Ipv4Net::new_assert(octets.into(), len).trunc()));
    let digit = || prop::sample::select(&[0u16, 1, 2, 0x2001, 0xfffe, 0xffff][..]);
    let v6 = (prop::array::uniform8(digit()), 0u8..=128)
        .prop_map(|(digits, len)| IpNet::V6(Ipv6Net::new_assert(digits.into(), len).trunc()));
    prop_oneof![v4, v6]
}

const SETS: u32 = 3;

fn addresses() -> impl Strategy<Value = Addresses> {
    let item = || {
        prop_oneof![
            3 => prefix().prop_map(AddressItem::Prefix),
            1 => (0..SETS).prop_map(|index| AddressItem::Set(SetId(index))),
        ]
    };
    let some = (prop::collection::vec(item(), 0..4), prop::collection::vec(item(), 0..3))
        .prop_map(|(positive, negative)| Addresses { positive, negative });
    prop_oneof![2 => Just(Addresses::default()), 3 => some]
}

/// What a rule asks of the transport: protocols, source and destination ports, ICMP types.
type Transport = (Vec<u8>, Vec<NumberRange>, Vec<NumberRange>, Vec<NumberRange>);

fn transport() -> impl Strategy<Value = Transport> {
    let any_protocol = prop_oneof![
        prop::sample::select(&WITH_PORTS[..]),
        prop::sample::select(&[0u8, 1, 47, 58, 255][..]),
    ];
    let ports =
        (prop::collection::vec(any_protocol, 0..4), ranges(number(), 3), ranges(number(), 1))
            .prop_map(|(mut protocols, src_ports, dst_ports)| {
                if !src_ports.is_empty() || !dst_ports.is_empty() {
                    protocols.retain(|protocol| WITH_PORTS.contains(protocol));
                }
                protocols.sort_unstable();
                protocols.dedup();
                (protocols, src_ports, dst_ports, Vec::new())
            });
    let kind =
        prop_oneof![Just(0x0300u16), Just(0x0304), Just(0x08ff), 0x8500u16..0x8900, number()];
    let types = (prop::sample::select(&[1u8, 58][..]), ranges(kind, 1))
        .prop_map(|(protocol, types)| (vec![protocol], Vec::new(), Vec::new(), types));
    prop_oneof![4 => ports, 1 => types]
}

/// The bench's interface is `dut`.
fn interfaces() -> impl Strategy<Value = Vec<InterfacePattern>> {
    let pattern = prop::sample::select(&["dut", "d*", "else0", "e*"][..]).prop_map(|text| {
        InterfacePattern { text: text.to_owned(), is_glob: text.contains('*'), span: 0..0 }
    });
    prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(pattern, 1..3)]
}

fn rule() -> impl Strategy<Value = Rule> {
    let vlan = prop_oneof![Just(0u16), Just(1), Just(12), Just(4_094), 0u16..=4_094];
    (transport(), addresses(), addresses(), ranges(vlan, 5), interfaces(), rule_action()).prop_map(
        |((protocols, src_ports, dst_ports, icmp_types), src, dst, vlans, interfaces, action)| {
            Rule {
                protocols,
                src_ports,
                dst_ports,
                icmp_types,
                src,
                dst,
                vlans,
                interfaces,
                ..Rule::any(action)
            }
        },
    )
}

/// [`TARGETS`], as a policy has them.
pub fn targets() -> Vec<Target> {
    let text = format!("version = 1\ninterfaces = [\"dut\"]\n{TARGETS}");
    file::parse(&text, &Services::embedded()).expect("a policy").policy.targets
}

/// Policies of up to this many rules.
pub fn policy(rules: usize) -> impl Strategy<Value = Policy> {
    let options = (action(), action(), action()).prop_map(|(fragments, malformed, unsupported)| {
        Options { fragments, malformed, unsupported }
    });
    let sets = prop::collection::vec(prop::collection::vec(prefix(), 1..8), SETS as usize);
    (prop::collection::vec(rule(), 0..rules), sets, action(), options).prop_map(
        |(rules, sets, default, options)| Policy {
            interfaces: vec![InterfacePattern {
                text: "dut".to_owned(),
                is_glob: false,
                span: 0..0,
            }],
            mode: Mode::Auto,
            default,
            options,
            targets: targets(),
            sets: (0..)
                .zip(sets)
                .map(|(index, prefixes): (u32, _)| Set {
                    name: format!("set-{index}"),
                    prefixes: Arc::new(prefixes),
                    file: None,
                    span: 0..0,
                    line: 0,
                })
                .collect(),
            rules,
        },
    )
}

/// The packet in words, as `portsteer explain` reads it.
pub fn in_words(packet: &Packet<'_>) -> String {
    Described {
        protocol: packet.protocol,
        src: packet.src,
        src_port: packet.src_port,
        dst: packet.dst,
        dst_port: packet.dst_port,
        icmp: packet.icmp.or(packet.icmpv6),
        vlan: (packet.vlan != 0).then_some(packet.vlan),
        interface: packet.interface.map(str::to_owned),
        later_fragment: packet.later_fragment,
    }
    .to_string()
}

/// The policy file that means this policy. Rules are named by their place, so that each counts
/// for itself.
pub fn as_text(policy: &Policy) -> String {
    use std::fmt::Write;
    let options = policy.options;
    let mut text = format!(
        "version = 1\ninterfaces = [\"dut\"]\ndefault = \"{}\"\n[options]\nfragments = \"{}\"\n\
         malformed = \"{}\"\nunsupported = \"{}\"\n",
        policy.default.name(),
        options.fragments.name(),
        options.malformed.name(),
        options.unsupported.name()
    );
    text.push_str(TARGETS);
    for set in &policy.sets {
        let prefixes: Vec<String> = set.prefixes.iter().map(|p| format!("\"{p}\"")).collect();
        writeln!(text, "[sets.{}]\naddresses = [{}]", set.name, prefixes.join(", ")).unwrap();
    }
    let list = |ranges: &[NumberRange], text: &dyn Fn(&NumberRange) -> String| {
        ranges.iter().map(text).collect::<Vec<_>>().join(", ")
    };
    let range = |range: &NumberRange| format!("\"{}-{}\"", range.first, range.last);
    for (index, rule) in policy.rules.iter().enumerate() {
        let action = match rule.action {
            Action::Steer(id) => format!("{{ steer = \"{}\" }}", TARGET_NAMES[usize::from(id.0)]),
            plain => format!("\"{}\"", plain.name()),
        };
        write!(text, "[[rules]]\nname = \"rule-{index}\"\naction = {action}\n").unwrap();
        let mut field = |key: &str, values: String| {
            if !values.is_empty() {
                writeln!(text, "{key} = [{values}]").unwrap();
            }
        };
        let protocols: Vec<String> = rule.protocols.iter().map(ToString::to_string).collect();
        field("protocol", protocols.join(", "));
        for (key, addresses) in [("src", &rule.src), ("dst", &rule.dst)] {
            let items = policy.addresses(addresses);
            let items: Vec<String> =
                items.split(',').filter(|i| !i.is_empty()).map(|i| format!("\"{i}\"")).collect();
            field(key, items.join(", "));
        }
        field("src_port", list(&rule.src_ports, &range));
        field("dst_port", list(&rule.dst_ports, &range));
        field("icmp_type", types(&rule.icmp_types));
        field("vlan", vlans(&rule.vlans));
        let interfaces: Vec<String> =
            rule.interfaces.iter().map(|pattern| format!("\"{}\"", pattern.text)).collect();
        field("interface", interfaces.join(", "));
    }
    text
}

/// Ranges of types and codes, a type at a time.
fn types(ranges: &[NumberRange]) -> String {
    let mut items = Vec::new();
    for range in ranges {
        let ([first, first_code], [last, last_code]) =
            (range.first.to_be_bytes(), range.last.to_be_bytes());
        for kind in first..=last {
            let from = if kind == first { first_code } else { 0 };
            let to = if kind == last { last_code } else { u8::MAX };
            items.push(format!("\"{kind}/{from}-{to}\""));
        }
    }
    items.join(", ")
}

fn vlans(ranges: &[NumberRange]) -> String {
    let mut items = Vec::new();
    for range in ranges {
        if range.first == 0 {
            items.push("\"untagged\"".to_owned());
        }
        if range.last > 0 {
            items.push(format!("\"{}-{}\"", range.first.max(1), range.last));
        }
    }
    items.join(", ")
}
