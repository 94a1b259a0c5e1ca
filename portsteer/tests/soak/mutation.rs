//! Frames that nobody would send on purpose.

use portsteer_testkit::{fuzzing::mutation::mutate, packet::*};

use portsteer_testkit::random::Random;

/// How long a frame may become, in bytes.
const LONGEST: usize = 1_400;

/// Makes a frame of a seed, the same of the same, of whatever length.
pub type Mutator = fn(u64) -> Vec<u8>;

/// A frame as it should be, with a few things about it that are not.
pub fn mutated(seed: u64) -> Vec<u8> {
    let mut random = Random::sequence(seed, 0x6d75_7461);
    let mut frame = sound(&mut random);
    mutate(&mut frame, LONGEST, &mut Random::new(random.number()));
    frame
}

/// A packet of some protocol, behind some headers, to a port that policies know.
fn sound(random: &mut Random) -> Vec<u8> {
    let ports = [1001, 1002, 1003, 1004, 1005, 2001, 2002, 2003, 3000, 3004, 3005, 7000, 53];
    let dst_port = random.pick(&ports);
    let src_port = random.pick(&[7, 53, 50_000]);
    let payload = vec![0x5a; random.below(100)];
    let is_v6 = random.once_in(2);
    let (mut protocol, mut packet) = match random.below(10) {
        0..4 => (UDP, udp(src_port, dst_port, payload)),
        4..6 => (TCP, tcp(src_port, dst_port, payload)),
        6 => (SCTP, sctp(src_port, dst_port, payload)),
        7 => (DCCP, dccp(src_port, dst_port, payload)),
        8 => (UDPLITE, udplite(src_port, dst_port, payload)),
        _ if is_v6 => (ICMPV6, icmp(random.pick(&[2, 128, 135]), 0, payload)),
        _ => (ICMP, icmp(random.pick(&[3, 8]), 4, payload)),
    };
    let (mut ether_type, mut packet) = if is_v6 {
        for _ in 0..random.below(4) {
            (protocol, packet) = match random.below(5) {
                0 => (HOP_BY_HOP, options(protocol, 1 + random.below(3), packet)),
                1 => (DESTINATION_OPTIONS, options(protocol, 1 + random.below(3), packet)),
                2 => (ROUTING, options(protocol, 1 + random.below(3), packet)),
                3 => (AH, authentication(protocol, packet)),
                _ => {
                    let offset = 8 * random.below(3) as u16;
                    (FRAGMENT, fragment(protocol, offset, random.once_in(2), packet))
                }
            };
        }
        (IPV6, ipv6(protocol, packet))
    } else {
        let header = Ipv4 {
            options: vec![1; 4 * random.below(4)],
            fragment_offset: 8 * random.below(12).saturating_sub(9) as u16,
            more_fragments: random.once_in(8),
            dont_fragment: false,
        };
        (IPV4, header.packet(protocol, packet))
    };
    for _ in 0..random.below(8).saturating_sub(4) {
        packet = vlan(random.below(20) as u16, ether_type, packet);
        ether_type = random.pick(&[VLAN, SERVICE_VLAN]);
    }
    ethernet(ether_type, packet)
}
