//! The packets that are judged: UDP packets that differ in their addresses and ports, as a frame of
//! their own, or many as a table from which the [rotation](crate::rotation) takes them in turn.

use std::net::IpAddr;

use portsteer::{
    oracle::{self, Packet},
    policy::{Action, Policy},
};
use portsteer_testkit::packet::{IPV4, IPV6, UDP, ethernet, ipv4, ipv6, udp};

use crate::{
    family::Family,
    programs::{XDP_DROP, XDP_PASS},
    random::Random,
};

/// How many packets a table has: more than any predictor of branches remembers.
pub const PROBES: usize = 65_536;

#[derive(Debug, Clone, Copy)]
pub struct Probe {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
}

impl Probe {
    pub fn random(family: Family, random: &mut Random) -> Self {
        Self {
            src: family.address(random),
            dst: family.address(random),
            src_port: random.port(),
            dst_port: random.port(),
        }
    }

    pub fn family(&self) -> Family {
        if self.src.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The packet in a frame, as everything else that is measured has it: 60 or 80 bytes.
    pub fn frame(&self) -> Vec<u8> {
        let datagram = udp(self.src_port, self.dst_port, [0; 18]);
        let mut frame = match self.family() {
            Family::V4 => ethernet(IPV4, ipv4(UDP, datagram)),
            Family::V6 => ethernet(IPV6, ipv6(UDP, datagram)),
        };
        let at = self.family().addresses_at();
        let fields = self.fields();
        frame[at..at + fields.len()].copy_from_slice(&fields);
        frame
    }

    /// Addresses and ports as they stand one after the other in the frame.
    pub fn fields(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        for address in [self.src, self.dst] {
            match address {
                IpAddr::V4(address) => fields.extend(address.octets()),
                IpAddr::V6(address) => fields.extend(address.octets()),
            }
        }
        fields.extend(self.src_port.to_be_bytes());
        fields.extend(self.dst_port.to_be_bytes());
        fields
    }

    /// The XDP action that a policy which does not steer means, by the naive interpreter.
    pub fn judged_by(&self, policy: &Policy) -> u32 {
        let packet = Packet {
            src: Some(self.src),
            dst: Some(self.dst),
            src_port: Some(self.src_port),
            dst_port: Some(self.dst_port),
            ..Packet::new(UDP)
        };
        let action = match oracle::judge(policy, &packet) {
            oracle::Decision::Rule(index) => policy.rules[index].action,
            _ => policy.default,
        };
        if action == Action::Drop { XDP_DROP } else { XDP_PASS }
    }
}

impl Family {
    /// Where the source address begins in a frame without tags; the destination address and, as
    /// there are neither options nor extension headers, the ports come right behind.
    pub fn addresses_at(self) -> usize {
        match self {
            Self::V4 => 14 + 12,
            Self::V6 => 14 + 8,
        }
    }

    /// The length of [`Probe::fields`].
    pub fn fields_len(self) -> usize {
        match self {
            Self::V4 => 4 + 4 + 4,
            Self::V6 => 16 + 16 + 4,
        }
    }
}

/// [`PROBES`] packets with random addresses and ports.
pub fn random(family: Family) -> Vec<Probe> {
    let mut random = Random::new(3);
    (0..PROBES).map(|_| Probe::random(family, &mut random)).collect()
}
