//! The hash that spreads flows over CPUs, by the host's build of the program's own source.

use portsteer_common::steering::SPREAD_PLACES;
use portsteer_ebpf::{
    flow,
    frame::Frame,
    parse::{Headers, Place, parse_any, parse_plain},
};
use portsteer_testkit::packet::*;

/// The hash as the program comes by it: by the fast path where that takes the frame. Where both do,
/// they agree.
fn hash(frame: &[u8]) -> u32 {
    let mut parsed = Frame::new(frame);
    let mut headers = Headers::new();
    parse_any(&mut parsed, &mut headers).expect("a good frame");
    let slow = flow::hash(&parsed, headers.place);
    if parse_plain(&parsed).is_some() {
        assert_eq!(flow::hash(&parsed, Place::PLAIN), slow, "{frame:02x?}");
    }
    slow
}

/// The same packet in the other direction, for headers at these offsets.
fn reversed(frame: &[u8], l3_off: usize, l4_off: Option<usize>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (first, len) = if frame[l3_off] >> 4 == 4 { (l3_off + 12, 4) } else { (l3_off + 8, 16) };
    let (left, right) = frame.split_at_mut(first + len);
    left[first..].swap_with_slice(&mut right[..len]);
    if let Some(at) = l4_off {
        let (left, right) = frame.split_at_mut(at + 2);
        left[at..].swap_with_slice(&mut right[..2]);
    }
    frame
}

#[test]
fn both_directions_of_a_flow_have_one_hash() {
    let cases = [
        (ethernet(IPV4, ipv4(UDP, udp(5000, 80, [0; 9]))), 14, Some(34)),
        (ethernet(IPV4, ipv4(TCP, tcp(5000, 80, [0; 9]))), 14, Some(34)),
        (ethernet(IPV4, ipv4(SCTP, sctp(5000, 80, [0; 9]))), 14, Some(34)),
        (ethernet(IPV4, ipv4(GRE, [7; 30])), 14, None),
        (ethernet(IPV6, ipv6(UDP, udp(5000, 80, [0; 9]))), 14, Some(54)),
        (ethernet(IPV6, ipv6(TCP, tcp(5000, 80, [0; 9]))), 14, Some(54)),
        (ethernet(VLAN, vlan(7, IPV6, ipv6(TCP, tcp(5000, 80, [0; 9])))), 18, Some(58)),
        (
            ethernet(SERVICE_VLAN, vlan(7, VLAN, vlan(8, IPV4, ipv4(UDP, udp(5000, 80, [1]))))),
            22,
            Some(42),
        ),
        (
            ethernet(IPV6, ipv6(DESTINATION_OPTIONS, options(UDP, 1, udp(5000, 80, [0; 9])))),
            14,
            Some(62),
        ),
    ];
    for (frame, l3_off, l4_off) in cases {
        let back = reversed(&frame, l3_off, l4_off);
        assert_ne!(frame, back);
        assert_eq!(hash(&frame), hash(&back), "{frame:02x?}");
    }
}

#[test]
fn tags_and_extension_headers_change_no_hash() {
    let transport = udp(5000, 80, [0; 9]);
    let plain = hash(&ethernet(IPV6, ipv6(UDP, &transport)));
    for other in [
        ethernet(VLAN, vlan(7, IPV6, ipv6(UDP, &transport))),
        ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 1, &transport))),
    ] {
        assert_eq!(hash(&other), plain, "{other:02x?}");
    }
    assert_ne!(hash(&ethernet(IPV6, ipv6(UDP, udp(5001, 80, [0; 9])))), plain);
}

#[test]
fn fragments_go_by_addresses() {
    let piece = |offset, more| {
        hash(&ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, offset, more, udp(5000, 80, [0; 16])))))
    };
    assert_eq!(piece(0, true), piece(24, true));
    assert_eq!(piece(0, true), piece(48, false));
}

#[test]
fn flows_spread_evenly() {
    let flows = 200 * SPREAD_PLACES;
    for version in [IPV4, IPV6] {
        let mut places = [0; SPREAD_PLACES];
        for flow in 0..flows {
            // A client that opens one connection after the other.
            let transport = tcp(1024 + flow as u16, 443, [0; 9]);
            let packet = if version == IPV4 { ipv4(TCP, transport) } else { ipv6(TCP, transport) };
            places[hash(&ethernet(version, packet)) as usize % SPREAD_PLACES] += 1;
        }
        let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
        assert!(*least > 140 && *most < 260, "{least} to {most} of 200");
    }
}
