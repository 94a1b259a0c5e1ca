//! The packets that are judged: UDP packets that differ in their addresses and ports, as a frame of
//! their own, or many as a table from which the [rotation](crate::rotation) takes them in turn.

use std::{net::IpAddr, os::fd::BorrowedFd};

use portsteer::{
    dataplane::sys::{self, TestRun},
    oracle::{self, Packet},
    policy::{Action, Policy},
};
use portsteer_testkit::{
    packet::{IPV4, IPV6, UDP, ethernet, internet_checksum, ipv4, ipv6, udp},
    random::Random,
};

use crate::{
    Result,
    family::Family,
    programs::{XDP_DROP, XDP_PASS},
};

/// How many packets a table has: more than any predictor of branches remembers.
pub const PROBES: usize = 65_536;

/// Where the part of a frame begins that is another one in each packet.
pub const REWRITTEN_AT: usize = 14 + 8;

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
        if self.family() == Family::V4 {
            let header = 14..14 + 20;
            let checksum = header.start + 10..header.start + 12;
            frame[checksum.clone()].fill(0);
            let sum = internet_checksum(&frame[header]);
            frame[checksum].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }

    /// What differs between frames, from [`REWRITTEN_AT`] on.
    pub fn rewritten(&self) -> Vec<u8> {
        self.frame()[REWRITTEN_AT..REWRITTEN_AT + self.family().rewritten_len()].to_vec()
    }

    /// Addresses and ports as they stand one after the other in the frame.
    fn fields(&self) -> Vec<u8> {
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

/// [`PROBES`] packets, and the table that the rotation takes them from.
pub struct Probes {
    pub list: Vec<Probe>,
    table: Vec<u8>,
}

impl Probes {
    pub fn new(list: Vec<Probe>) -> Self {
        assert_eq!(list.len(), PROBES, "the rotation counts to that");
        let len = list[0].family().entry_len();
        let mut table = vec![0; PROBES * len];
        for (entry, probe) in table.chunks_exact_mut(len).zip(&list) {
            let bytes = probe.rewritten();
            entry[..bytes.len()].copy_from_slice(&bytes);
        }
        Self { list, table }
    }

    pub fn table(&self) -> &[u8] {
        &self.table
    }
}

impl Family {
    /// What a packet takes in a table: [`Probe::rewritten`], and bytes that nobody needs up to a multiple of eight.
    pub fn entry_len(self) -> usize {
        self.rewritten_len().next_multiple_of(8)
    }

    /// Where the source address begins in a frame without tags; the destination address and, as
    /// there are neither options nor extension headers, the ports come right behind.
    pub fn addresses_at(self) -> usize {
        match self {
            Self::V4 => 14 + 12,
            Self::V6 => 14 + 8,
        }
    }

    /// The length of [`Probe::rewritten`]: addresses and ports, and before them, in an IPv4 header, the time to
    /// live, the protocol and the checksum.
    pub fn rewritten_len(self) -> usize {
        match self {
            Self::V4 => 4 + 4 + 4 + 4,
            Self::V6 => 16 + 16 + 4,
        }
    }
}

/// [`PROBES`] packets with random addresses and ports.
pub fn random(family: Family) -> Vec<Probe> {
    let mut random = Random::new(3);
    (0..PROBES).map(|_| Probe::random(family, &mut random)).collect()
}

/// Of these packets those that a program drops, again and again until there are [`PROBES`].
pub fn dropped(program: BorrowedFd<'_>, probes: &[Probe]) -> Result<Vec<Probe>> {
    let mut dropped = Vec::new();
    for probe in probes {
        let run = TestRun { frame: &probe.frame(), repeat: 1, live: false, first_buffer: None };
        if sys::test_run(program, run)?.action == XDP_DROP {
            dropped.push(*probe);
        }
    }
    if dropped.is_empty() {
        return Err("no packet is dropped".into());
    }
    Ok(dropped.iter().copied().cycle().take(PROBES).collect())
}

/// [`PROBES`] packets with random addresses, to random ones of these ports.
pub fn to_ports(family: Family, ports: &[u16]) -> Vec<Probe> {
    let mut random = Random::new(9);
    let probe = |_| Probe {
        dst_port: ports[random.below(ports.len())],
        ..Probe::random(family, &mut random)
    };
    (0..PROBES).map(probe).collect()
}
