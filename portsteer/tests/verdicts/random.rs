//! Random policies that ask for everything a rule can ask for, and packets at their boundaries.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portsteer::{
    explain::described::Described,
    oracle::Packet,
    policy::{
        Action, AddressItem, Addresses, InterfacePattern, Mode, NumberRange, Options, Policy, Rule,
        Set, SetId, Target, TargetId, file, services::Services,
    },
};
use portsteer_testkit::packet::*;
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

pub const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

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

/// Reproducible numbers (splitmix64: Steele, Lea and Flood, 2014).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Where a policy's rules begin and end: each boundary, one below and one above.
pub struct Boundaries {
    protocols: Vec<u8>,
    src_v4: Vec<u32>,
    dst_v4: Vec<u32>,
    src_v6: Vec<u128>,
    dst_v6: Vec<u128>,
    src_ports: Vec<u16>,
    dst_ports: Vec<u16>,
    types: Vec<u16>,
    vlans: Vec<u16>,
}

impl Boundaries {
    pub fn of(policy: &Policy) -> Self {
        let edges = |of: &dyn Fn(&Rule) -> &Vec<NumberRange>| -> Vec<u16> {
            let mut edges = BTreeSet::from([0, 1, u16::MAX]);
            for range in policy.rules.iter().flat_map(of) {
                edges.extend([range.first, range.last]);
                edges.extend([range.first.wrapping_sub(1), range.last.wrapping_add(1)]);
            }
            edges.into_iter().collect()
        };
        let (src_v4, src_v6) = addresses_of(policy, |rule| &rule.src);
        let (dst_v4, dst_v6) = addresses_of(policy, |rule| &rule.dst);
        let mut protocols: BTreeSet<u8> =
            policy.rules.iter().flat_map(|r| r.protocols.clone()).collect();
        protocols.extend([1, 58, 6, 17, 17, 6, 132, 47]);
        Self {
            protocols: protocols.into_iter().collect(),
            src_v4,
            dst_v4,
            src_v6,
            dst_v6,
            src_ports: edges(&|rule| &rule.src_ports),
            dst_ports: edges(&|rule| &rule.dst_ports),
            types: edges(&|rule| &rule.icmp_types),
            vlans: edges(&|rule| &rule.vlans).into_iter().filter(|vlan| *vlan < 4_096).collect(),
        }
    }

    /// A packet at these boundaries.
    pub fn packet(&self, numbers: &mut Numbers) -> Packet<'static> {
        let protocol = numbers.pick(&self.protocols);
        let mut packet = Packet::new(protocol);
        let is_v4 = numbers.below(2) == 0;
        (packet.src, packet.dst) = if is_v4 {
            let (src, dst) = (numbers.pick(&self.src_v4), numbers.pick(&self.dst_v4));
            (Some(Ipv4Addr::from(src).into()), Some(Ipv4Addr::from(dst).into()))
        } else {
            let (src, dst) = (numbers.pick(&self.src_v6), numbers.pick(&self.dst_v6));
            (Some(Ipv6Addr::from(src).into()), Some(Ipv6Addr::from(dst).into()))
        };
        packet.interface = Some("dut");
        packet.vlan = if numbers.below(3) == 0 { numbers.pick(&self.vlans) } else { 0 };
        packet.later_fragment = numbers.below(8) == 0;
        if packet.later_fragment {
            return packet;
        }
        if WITH_PORTS.contains(&protocol) {
            packet.src_port = Some(numbers.pick(&self.src_ports));
            packet.dst_port = Some(numbers.pick(&self.dst_ports));
        }
        let [kind, code] = numbers.pick(&self.types).to_be_bytes();
        if protocol == 1 && is_v4 {
            packet.icmp = Some((kind, code));
        }
        if protocol == 58 && !is_v4 {
            packet.icmpv6 = Some((kind, code));
        }
        packet
    }
}

fn addresses_of(policy: &Policy, of: impl Fn(&Rule) -> &Addresses) -> (Vec<u32>, Vec<u128>) {
    let mut v4 = BTreeSet::from([0, 0xc000_0201, u32::MAX]);
    let mut v6 = BTreeSet::from([0, u128::MAX]);
    let mut add = |prefix: &IpNet| match prefix {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            v4.extend([first, last, first.wrapping_sub(1), last.wrapping_add(1)]);
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            v6.extend([first, last, first.wrapping_sub(1), last.wrapping_add(1)]);
        }
    };
    for rule in &policy.rules {
        let addresses = of(rule);
        for item in addresses.positive.iter().chain(&addresses.negative) {
            match item {
                AddressItem::Prefix(prefix) => add(prefix),
                AddressItem::Set(id) => policy.set(*id).prefixes.iter().for_each(&mut add),
            }
        }
    }
    (v4.into_iter().collect(), v6.into_iter().collect())
}

/// The packet as a frame.
pub fn frame(packet: &Packet<'_>) -> Vec<u8> {
    let (src_port, dst_port) = (packet.src_port.unwrap_or(0), packet.dst_port.unwrap_or(0));
    let (kind, code) = packet.icmp.or(packet.icmpv6).unwrap_or((0, 0));
    let transport = match packet.protocol {
        _ if packet.later_fragment => vec![0xa5; 24],
        TCP => tcp(src_port, dst_port, []),
        UDP => udp(src_port, dst_port, []),
        UDPLITE => udplite(src_port, dst_port, []),
        SCTP => sctp(src_port, dst_port, []),
        DCCP => dccp(src_port, dst_port, []),
        1 | 58 => icmp(kind, code, [0; 16]),
        _ => vec![0xa5; 24],
    };
    let (ether_type, ip) = match (packet.src, packet.dst) {
        (Some(IpAddr::V4(src)), Some(IpAddr::V4(dst))) => {
            let offset = if packet.later_fragment { 64 } else { 0 };
            let header = Ipv4 { fragment_offset: offset, ..Ipv4::default() };
            let mut ip = header.packet(packet.protocol, transport);
            ip[12..16].copy_from_slice(&src.octets());
            ip[16..20].copy_from_slice(&dst.octets());
            (IPV4, ip)
        }
        (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) => {
            let mut ip = if packet.later_fragment {
                ipv6(FRAGMENT, fragment(packet.protocol, 64, false, transport))
            } else {
                ipv6(packet.protocol, transport)
            };
            ip[8..24].copy_from_slice(&src.octets());
            ip[24..40].copy_from_slice(&dst.octets());
            (IPV6, ip)
        }
        other => panic!("a packet has two addresses of one version: {other:?}"),
    };
    match packet.vlan {
        0 => ethernet(ether_type, ip),
        id => ethernet(VLAN, vlan(id, ether_type, ip)),
    }
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
