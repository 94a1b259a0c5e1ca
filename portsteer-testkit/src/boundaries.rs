//! Packets at the boundaries of a policy's rules, which is where compiled tables go wrong.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use portsteer::{
    oracle::Packet,
    policy::{AddressItem, Addresses, NumberRange, Policy, Rule},
};

use crate::{packet::*, random::Random};

/// The protocols that have ports.
pub const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// Where a policy's rules begin and end: each boundary, one below and one above.
#[derive(Debug)]
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
    /// Those of this policy.
    #[must_use]
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
    pub fn packet(&self, random: &mut Random) -> Packet<'static> {
        let protocol = random.pick(&self.protocols);
        let mut packet = Packet::new(protocol);
        let is_v4 = random.below(2) == 0;
        (packet.src, packet.dst) = if is_v4 {
            let (src, dst) = (random.pick(&self.src_v4), random.pick(&self.dst_v4));
            (Some(Ipv4Addr::from(src).into()), Some(Ipv4Addr::from(dst).into()))
        } else {
            let (src, dst) = (random.pick(&self.src_v6), random.pick(&self.dst_v6));
            (Some(Ipv6Addr::from(src).into()), Some(Ipv6Addr::from(dst).into()))
        };
        packet.interface = Some("dut");
        packet.vlan = if random.below(3) == 0 { random.pick(&self.vlans) } else { 0 };
        packet.later_fragment = random.below(8) == 0;
        if packet.later_fragment {
            return packet;
        }
        if WITH_PORTS.contains(&protocol) {
            packet.src_port = Some(random.pick(&self.src_ports));
            packet.dst_port = Some(random.pick(&self.dst_ports));
        }
        let [kind, code] = random.pick(&self.types).to_be_bytes();
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
///
/// # Panics
///
/// If it has not two addresses of one version.
#[must_use]
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
