//! Every packet cut at every byte, and every length field off by one in each direction.

use portsteer_common::Reason;
use portsteer_ebpf::{frame::Frame, parse::parse};
use portsteer_testkit::packet::*;

use crate::{
    bench::{Cause, on_bench},
    table::{CANARY, POLICY},
};

/// Packets of every kind, all to port 9, their payload full of canaries.
fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let fill = [CANARY; 24];
    let first = Ipv4 { more_fragments: true, ..Ipv4::default() };
    let later = Ipv4 { fragment_offset: 64, ..Ipv4::default() };
    let with_options = Ipv4 { options: vec![1; 12], ..Ipv4::default() };
    vec![
        ("udp4", ethernet(IPV4, ipv4(UDP, udp(7, 9, fill)))),
        ("tcp4", ethernet(IPV4, ipv4(TCP, tcp(7, 9, fill)))),
        ("udplite4", ethernet(IPV4, ipv4(UDPLITE, udplite(7, 9, fill)))),
        ("sctp4", ethernet(IPV4, ipv4(SCTP, sctp(7, 9, fill)))),
        ("dccp4", ethernet(IPV4, ipv4(DCCP, dccp(7, 9, fill)))),
        ("icmp4", ethernet(IPV4, ipv4(ICMP, icmp(8, 0, fill)))),
        ("gre4", ethernet(IPV4, ipv4(GRE, fill))),
        ("options4", ethernet(IPV4, with_options.packet(UDP, udp(7, 9, fill)))),
        ("first4", ethernet(IPV4, first.packet(UDP, udp(7, 9, fill)))),
        ("later4", ethernet(IPV4, later.packet(UDP, fill))),
        ("udp6", ethernet(IPV6, ipv6(UDP, udp(7, 9, fill)))),
        ("tcp6", ethernet(IPV6, ipv6(TCP, tcp(7, 9, fill)))),
        ("icmp6", ethernet(IPV6, ipv6(ICMPV6, icmp(128, 0, fill)))),
        ("hop6", ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 2, udp(7, 9, fill))))),
        ("ah6", ethernet(IPV6, ipv6(AH, authentication(UDP, udp(7, 9, fill))))),
        ("atomic6", ethernet(IPV6, ipv6(FRAGMENT, fragment(TCP, 0, false, tcp(7, 9, fill))))),
        ("first6", ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 0, true, udp(7, 9, fill))))),
        ("later6", ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 64, false, fill)))),
        ("vlan4", ethernet(VLAN, vlan(12, IPV4, ipv4(UDP, udp(7, 9, fill))))),
        (
            "qinq6",
            ethernet(SERVICE_VLAN, vlan(7, VLAN, vlan(12, IPV6, ipv6(UDP, udp(7, 9, fill))))),
        ),
    ]
}

/// An IP packet that says how long it is, and is shorter, is truncated wherever it was cut.
#[test]
fn a_packet_cut_anywhere_is_truncated() {
    on_bench(POLICY, |bench| {
        for (name, frame) in packets() {
            for len in 0..frame.len() {
                let cut = &frame[..len];
                let host = parse(&mut Frame::new(cut));
                assert_eq!(host, Err(Reason::Truncated), "{name} cut to {len} bytes");
                // The kernel's test run takes no less than an Ethernet header.
                if len >= 14 {
                    let outcome = bench.agree(cut);
                    assert_eq!(outcome.cause, Cause::Reason(Reason::Truncated), "{name} to {len}");
                }
            }
            assert_ne!(bench.agree(&frame).cause, Cause::Reason(Reason::Truncated), "{name}");
        }
    });
}

/// Bytes behind the IP packet are padding: whatever its length, nothing changes.
#[test]
fn padding_changes_nothing() {
    on_bench(POLICY, |bench| {
        for (name, frame) in packets() {
            let outcome = bench.agree(&frame);
            for padding in 1..=20 {
                let padded = [frame.clone(), vec![CANARY; padding]].concat();
                assert_eq!(bench.agree(&padded), outcome, "{name} with {padding} bytes of padding");
            }
        }
    });
}

/// Cutting the IP packet short by its own length field, with the frame left whole: no port may be
/// read from beyond.
#[test]
fn no_port_is_read_from_beyond_the_ip_packet() {
    on_bench(POLICY, |bench| {
        for (name, frame) in packets() {
            let (offset, least) = match name {
                "vlan4" => (20, 20),
                "qinq6" => (26, 0),
                name if name.ends_with('4') => (16, 20),
                _ => (18, 0),
            };
            let whole = u16::from_be_bytes([frame[offset], frame[offset + 1]]);
            for len in least..whole {
                let mut cut = frame.clone();
                cut[offset..offset + 2].copy_from_slice(&len.to_be_bytes());
                // What the field excludes becomes canaries.
                let excluded = frame.len() - usize::from(whole - len);
                cut[excluded..].fill(CANARY);
                let outcome = bench.agree(&cut);
                assert_ne!(outcome.cause, Cause::Rule("canary".to_owned()), "{name}, length {len}");
                if matches!(name, "udp4" | "udp6" | "options4" | "vlan4" | "qinq6" | "hop6") {
                    // The UDP length still speaks of the whole datagram, so every cut shows.
                    assert!(
                        matches!(outcome.cause, Cause::Reason(reason) if reason.fault().is_some()),
                        "{name}, length {len}: {outcome:?}"
                    );
                }
            }
        }
    });
}

/// A field, where it stands in the frame, and what one less and one more must lead to.
struct Field {
    packet: &'static str,
    field: &'static str,
    offset: usize,
    /// Added to the 16-bit word at `offset`.
    unit: u16,
    less: Cause,
    more: Cause,
}

fn fields() -> Vec<Field> {
    let by = Cause::Reason;
    let nine = || Cause::Rule("nine".to_owned());
    let field =
        |packet, field, offset, unit, less, more| Field { packet, field, offset, unit, less, more };
    vec![
        field("udp4", "IHL", 14, 0x100, by(Reason::IpHeaderLength), by(Reason::TransportLength)),
        field("udp4", "version", 14, 0x1000, by(Reason::IpVersion), by(Reason::IpVersion)),
        field("udp4", "total length", 16, 1, by(Reason::TransportLength), by(Reason::Truncated)),
        field("udp4", "UDP length", 38, 1, nine(), by(Reason::TransportLength)),
        field("tcp4", "total length", 16, 1, nine(), by(Reason::Truncated)),
        field("tcp4", "data offset", 46, 0x1000, by(Reason::TransportLength), nine()),
        field("udplite4", "coverage", 38, 1, by(Reason::TransportLength), nine()),
        field("sctp4", "total length", 16, 1, nine(), by(Reason::Truncated)),
        field("dccp4", "data offset", 38, 0x100, nine(), nine()),
        field(
            "icmp4",
            "total length",
            16,
            1,
            Cause::Rule("ping".to_owned()),
            by(Reason::Truncated),
        ),
        field(
            "options4",
            "IHL",
            14,
            0x100,
            by(Reason::TransportLength),
            by(Reason::TransportLength),
        ),
        // One less is the last offset there is, one more a fragment at byte 8.
        field(
            "first4",
            "fragment field",
            20,
            1,
            by(Reason::FragmentLength),
            by(Reason::FragmentWithoutPorts),
        ),
        field("first4", "total length", 16, 1, by(Reason::FragmentLength), by(Reason::Truncated)),
        field(
            "later4",
            "total length",
            16,
            1,
            by(Reason::FragmentWithoutPorts),
            by(Reason::Truncated),
        ),
        field("udp6", "payload length", 18, 1, by(Reason::TransportLength), by(Reason::Truncated)),
        field("udp6", "version", 14, 0x1000, by(Reason::IpVersion), by(Reason::IpVersion)),
        field("udp6", "UDP length", 58, 1, nine(), by(Reason::TransportLength)),
        field("tcp6", "data offset", 66, 0x1000, by(Reason::TransportLength), nine()),
        // A unit less, and the second half of the options is read as UDP of length zero; a unit
        // more, and it is the payload: canaries, with an impossible length.
        field(
            "hop6",
            "header length",
            54,
            1,
            by(Reason::TransportLength),
            by(Reason::TransportLength),
        ),
        field(
            "ah6",
            "header length",
            54,
            1,
            by(Reason::TransportLength),
            by(Reason::TransportLength),
        ),
        field("atomic6", "offset", 56, 8, by(Reason::FragmentLength), by(Reason::FragmentOverlap)),
        field(
            "later6",
            "payload length",
            18,
            1,
            by(Reason::FragmentWithoutPorts),
            by(Reason::Truncated),
        ),
        field("vlan4", "total length", 20, 1, by(Reason::TransportLength), by(Reason::Truncated)),
        field("qinq6", "payload length", 26, 1, by(Reason::TransportLength), by(Reason::Truncated)),
    ]
}

#[test]
fn every_length_field_off_by_one_has_its_outcome() {
    on_bench(POLICY, |bench| {
        let packets = packets();
        for Field { packet, field, offset, unit, less, more } in fields() {
            let frame = &packets.iter().find(|(name, _)| *name == packet).unwrap().1;
            let word = u16::from_be_bytes([frame[offset], frame[offset + 1]]);
            for (value, expected) in
                [(word.wrapping_sub(unit), less), (word.wrapping_add(unit), more)]
            {
                let mut changed = frame.clone();
                changed[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
                let outcome = bench.agree(&changed);
                assert_eq!(outcome.cause, expected, "{packet}: {field} {word:#x} -> {value:#x}");
            }
        }
    });
}
