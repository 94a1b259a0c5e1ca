//! The verdict table: description, frame, what decides.

use portsteer::policy::Action;
use portsteer_common::Reason;
use portsteer_testkit::packet::*;

use crate::bench::{Cause, on_bench};

/// Drops what it names and passes the rest, so that a wrong decision shows in the verdict too.
pub const POLICY: &str = r#"
version = 1
interfaces = ["dut"]

[[rules]]
name = "nine"
dst_port = 9
action = "drop"

[[rules]]
name = "tcp-range"
protocol = "tcp"
dst_port = ["100-200", 65535]
action = "drop"

[[rules]]
name = "udp-zero"
protocol = "udp"
dst_port = 0
action = "drop"

[[rules]]
name = "tcp-range-again"
protocol = "tcp"
dst_port = "150-250"
action = "pass"

[[rules]]
name = "gre"
protocol = 47
action = "drop"

[[rules]]
name = "ping"
protocol = "icmp"
action = "drop"

[[rules]]
name = "canary"
dst_port = 61166
action = "drop"
"#;

/// What bytes hold that are no port: whoever reads one there reads port 61,166, the canary's.
pub const CANARY: u8 = 0xee;

pub enum Expect {
    Rule(&'static str),
    Reason(Reason),
}
use Expect::{Reason as By, Rule};

fn five(port: u16) -> [(u8, Vec<u8>); 5] {
    let payload = [CANARY; 30];
    [
        (TCP, tcp(7, port, payload)),
        (UDP, udp(7, port, payload)),
        (UDPLITE, udplite(7, port, payload)),
        (SCTP, sctp(7, port, payload)),
        (DCCP, dccp(7, port, payload)),
    ]
}

pub fn patch(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// `count` extension headers before UDP to port 9.
pub fn chain(count: usize) -> Vec<u8> {
    let mut payload = udp(7, 9, [CANARY; 4]);
    let mut next = UDP;
    for _ in 0..count {
        payload = options(next, 1, payload);
        next = DESTINATION_OPTIONS;
    }
    ethernet(IPV6, ipv6(next, payload))
}

pub fn later(protocol: u8, offset: u16) -> Vec<u8> {
    let ip = Ipv4 { fragment_offset: offset, ..Ipv4::default() };
    ethernet(IPV4, ip.packet(protocol, [CANARY; 32]))
}

pub fn first(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ip = Ipv4 { more_fragments: true, ..Ipv4::default() };
    ethernet(IPV4, ip.packet(protocol, payload))
}

pub fn first6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(IPV6, ipv6(FRAGMENT, fragment(protocol, 0, true, payload)))
}

fn cases() -> Vec<(String, Vec<u8>, Expect)> {
    let mut cases: Vec<(String, Vec<u8>, Expect)> = Vec::new();
    let mut add = |what: &str, frame: Vec<u8>, expect| cases.push((what.to_owned(), frame, expect));

    // Every protocol with ports, over every header that can stand before it.
    for (protocol, l4) in five(9) {
        let with_options = Ipv4 { options: vec![1; 40], ..Ipv4::default() };
        let dont_fragment = Ipv4 { dont_fragment: true, ..Ipv4::default() };
        let frames = [
            ("IPv4", ethernet(IPV4, ipv4(protocol, &l4))),
            ("IPv4, padded", [ethernet(IPV4, ipv4(protocol, &l4)), vec![CANARY; 9]].concat()),
            ("IPv4, don't fragment", ethernet(IPV4, dont_fragment.packet(protocol, &l4))),
            ("IPv4 with 40 bytes of options", ethernet(IPV4, with_options.packet(protocol, &l4))),
            ("IPv6", ethernet(IPV6, ipv6(protocol, &l4))),
            ("IPv6, padded", [ethernet(IPV6, ipv6(protocol, &l4)), vec![CANARY; 9]].concat()),
            ("VLAN", ethernet(VLAN, vlan(12, IPV4, ipv4(protocol, &l4)))),
            ("priority tag", ethernet(VLAN, vlan(0, IPV4, ipv4(protocol, &l4)))),
            ("service VLAN", ethernet(SERVICE_VLAN, vlan(12, IPV6, ipv6(protocol, &l4)))),
            ("QinQ", ethernet(SERVICE_VLAN, vlan(7, VLAN, vlan(12, IPV4, ipv4(protocol, &l4))))),
            ("two VLANs, IPv6", ethernet(VLAN, vlan(7, VLAN, vlan(12, IPV6, ipv6(protocol, &l4))))),
            ("hop-by-hop", ethernet(IPV6, ipv6(HOP_BY_HOP, options(protocol, 1, &l4)))),
            ("routing", ethernet(IPV6, ipv6(ROUTING, options(protocol, 3, &l4)))),
            (
                "destination options of 2,048 bytes",
                ethernet(IPV6, ipv6(DESTINATION_OPTIONS, options(protocol, 256, &l4))),
            ),
            ("atomic fragment", ethernet(IPV6, ipv6(FRAGMENT, fragment(protocol, 0, false, &l4)))),
            ("authentication", ethernet(IPV6, ipv6(AH, authentication(protocol, &l4)))),
            (
                "six extension headers",
                ethernet(
                    IPV6,
                    ipv6(
                        HOP_BY_HOP,
                        options(
                            DESTINATION_OPTIONS,
                            1,
                            options(
                                ROUTING,
                                1,
                                options(
                                    FRAGMENT,
                                    2,
                                    fragment(
                                        AH,
                                        0,
                                        false,
                                        authentication(
                                            DESTINATION_OPTIONS,
                                            options(protocol, 2, &l4),
                                        ),
                                    ),
                                ),
                            ),
                        ),
                    ),
                ),
            ),
        ];
        for (what, frame) in frames {
            add(&format!("protocol {protocol} over {what}"), frame, Rule("nine"));
        }
        // First fragments have ports. Their lengths are multiples of 8.
        let whole = &l4[..l4.len() / 8 * 8];
        add(&format!("first fragment of {protocol}"), first(protocol, whole), Rule("nine"));
        add(&format!("first fragment of {protocol}, v6"), first6(protocol, whole), Rule("nine"));
        // Later fragments have none.
        let by_fragments = || By(Reason::FragmentWithoutPorts);
        add(&format!("later fragment of {protocol}"), later(protocol, 64), by_fragments());
        let last = ethernet(IPV6, ipv6(FRAGMENT, fragment(protocol, 64, false, [CANARY; 5])));
        add(&format!("last fragment of {protocol}, v6"), last, by_fragments());
    }

    // Boundaries of ranges, first match, protocols apart.
    for (port, rule) in [
        (99, None),
        (100, Some("tcp-range")),
        (150, Some("tcp-range")),
        (200, Some("tcp-range")),
        (201, Some("tcp-range-again")),
        (250, Some("tcp-range-again")),
        (251, None),
        (65_534, None),
        (65_535, Some("tcp-range")),
        (0, None),
        (8, None),
        (10, None),
    ] {
        let expect = rule.map_or(By(Reason::NoRule), Rule);
        add(&format!("TCP port {port}"), ethernet(IPV4, ipv4(TCP, tcp(9, port, []))), expect);
    }
    for (port, expect) in
        [(0, Rule("udp-zero")), (100, By(Reason::NoRule)), (65_535, By(Reason::NoRule))]
    {
        add(&format!("UDP port {port}"), ethernet(IPV4, ipv4(UDP, udp(9, port, []))), expect);
    }
    add("source port 9 is no match", ethernet(IPV4, ipv4(UDP, udp(9, 99, []))), By(Reason::NoRule));

    // Protocols without ports. Their payload is never read as a port.
    for (what, protocol) in [
        ("ESP", ESP),
        ("AH over IPv4", AH),
        ("no next header", NO_NEXT_HEADER),
        ("number 255", 255),
    ] {
        add(what, ethernet(IPV4, ipv4(protocol, [CANARY; 32])), By(Reason::NoRule));
    }
    add("unknown next header", ethernet(IPV6, ipv6(253, [CANARY; 32])), By(Reason::NoRule));
    add("no next header, v6", ethernet(IPV6, ipv6(NO_NEXT_HEADER, [])), By(Reason::NoRule));
    add("GRE", ethernet(IPV4, ipv4(GRE, [CANARY; 32])), Rule("gre"));
    add("GRE without a header", ethernet(IPV4, ipv4(GRE, [])), Rule("gre"));
    add("ESP without a header", ethernet(IPV6, ipv6(ESP, [])), By(Reason::NoRule));
    add("GRE over IPv6", ethernet(IPV6, ipv6(GRE, [CANARY; 32])), Rule("gre"));
    add("later fragment of GRE", later(GRE, 8), Rule("gre"));
    add(
        "a tunnelled packet",
        ethernet(IPV4, ipv4(4, ipv4(UDP, udp(7, 9, [])))),
        By(Reason::NoRule),
    );
    add("ping", ethernet(IPV4, ipv4(ICMP, icmp(8, 0, [CANARY; 8]))), Rule("ping"));
    add("later fragment of ICMP", later(ICMP, 64), Rule("ping"));
    add("ICMPv6", ethernet(IPV6, ipv6(ICMPV6, icmp(128, 0, []))), By(Reason::NoRule));
    add("ICMPv6 over IPv4", ethernet(IPV4, ipv4(ICMPV6, [CANARY; 2])), By(Reason::NoRule));
    add("ICMP over IPv6", ethernet(IPV6, ipv6(ICMP, [CANARY; 2])), Rule("ping"));
    add("ICMPv6 of four bytes", ethernet(IPV6, ipv6(ICMPV6, [155, 0, 0, 0])), By(Reason::NoRule));

    // Not ours.
    for (what, ether_type) in
        [("ARP", ARP), ("LLDP", 0x88cc), ("MPLS", 0x8847), ("802.3 length", 46), ("zero", 0)]
    {
        add(what, ethernet(ether_type, [CANARY; 46]), By(Reason::NotIp));
    }
    add("ARP in a VLAN", ethernet(VLAN, vlan(12, ARP, [CANARY; 46])), By(Reason::NotIp));
    add("nothing behind Ethernet", ethernet(ARP, []), By(Reason::NotIp));

    // Made to deceive: versions, lengths, tags.
    let good4 = || ethernet(IPV4, ipv4(UDP, udp(7, 9, [CANARY; 30])));
    let good6 = || ethernet(IPV6, ipv6(UDP, udp(7, 9, [CANARY; 30])));
    add(
        "IPv6 under IPv4's EtherType",
        ethernet(IPV4, ipv6(UDP, udp(7, 9, []))),
        By(Reason::IpVersion),
    );
    add(
        "IPv4 under IPv6's EtherType",
        ethernet(IPV6, ipv4(UDP, udp(7, 9, [0; 20]))),
        By(Reason::IpVersion),
    );
    for ihl in 0..5 {
        add(&format!("IHL {ihl}"), patch(good4(), 14, &[0x40 | ihl]), By(Reason::IpHeaderLength));
    }
    add("total length below the header", patch(good4(), 16, &[0, 19]), By(Reason::IpHeaderLength));
    add("total length zero", patch(good4(), 16, &[0, 0]), By(Reason::IpHeaderLength));
    add("total length beyond the frame", patch(good4(), 16, &[0xff, 0xff]), By(Reason::Truncated));
    add(
        "payload length beyond the frame",
        patch(good6(), 18, &[0xff, 0xff]),
        By(Reason::Truncated),
    );
    add("payload length zero", patch(good6(), 18, &[0, 0]), By(Reason::TransportTruncated));
    add("IHL 15 in a short packet", patch(good4(), 14, &[0x4f]), By(Reason::IpHeaderLength));
    add(
        "IHL 15 up to the end",
        patch(ethernet(IPV4, ipv4(UDP, udp(7, 9, [CANARY; 32]))), 14, &[0x4f]),
        By(Reason::TransportTruncated),
    );
    let tagged = |depth: usize| {
        let mut payload = vlan(12, IPV4, ipv4(UDP, udp(7, 9, [CANARY; 8])));
        for _ in 1..depth {
            payload = vlan(12, VLAN, payload);
        }
        ethernet(SERVICE_VLAN, payload)
    };
    add("three tags", tagged(3), By(Reason::VlanDepth));
    add("nine tags", tagged(9), By(Reason::VlanDepth));
    add(
        "jumbogram",
        patch(ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 1, udp(7, 9, [])))), 18, &[0, 0]),
        By(Reason::Jumbogram),
    );

    // Transport lengths.
    add(
        "UDP of 7 bytes",
        ethernet(IPV4, ipv4(UDP, [0, 7, 0, 9, 0, 8, 0])),
        By(Reason::TransportTruncated),
    );
    add(
        "TCP of 19 bytes",
        ethernet(IPV4, ipv4(TCP, &tcp(7, 9, [])[..19])),
        By(Reason::TransportTruncated),
    );
    add(
        "SCTP of 11 bytes",
        ethernet(IPV4, ipv4(SCTP, &sctp(7, 9, [])[..11])),
        By(Reason::TransportTruncated),
    );
    add(
        "DCCP of 11 bytes",
        ethernet(IPV4, ipv4(DCCP, &dccp(7, 9, [])[..11])),
        By(Reason::TransportTruncated),
    );
    add(
        "ICMP of 7 bytes",
        ethernet(IPV4, ipv4(ICMP, &icmp(8, 0, [])[..7])),
        By(Reason::TransportTruncated),
    );
    add(
        "ICMPv6 of 3 bytes",
        ethernet(IPV6, ipv6(ICMPV6, [128, 0, 0])),
        By(Reason::TransportTruncated),
    );
    add("no payload at all", ethernet(IPV4, ipv4(UDP, [])), By(Reason::TransportTruncated));
    for length in [0u16, 7, 39, 65_535] {
        let frame = patch(good4(), 38, &length.to_be_bytes());
        add(&format!("UDP length {length}"), frame, By(Reason::TransportLength));
        let frame = patch(good6(), 58, &length.to_be_bytes());
        add(&format!("UDP length {length}, v6"), frame, By(Reason::TransportLength));
    }
    add("UDP length 8, the rest is surplus", patch(good4(), 38, &[0, 8]), Rule("nine"));
    for coverage in [1u16, 7, 39] {
        let lite = patch(udplite(7, 9, [CANARY; 30]), 4, &coverage.to_be_bytes());
        add(
            &format!("coverage {coverage}"),
            ethernet(IPV4, ipv4(UDPLITE, lite)),
            By(Reason::TransportLength),
        );
    }
    for coverage in [0u16, 8, 38] {
        let lite = patch(udplite(7, 9, [CANARY; 30]), 4, &coverage.to_be_bytes());
        add(&format!("coverage {coverage}"), ethernet(IPV4, ipv4(UDPLITE, lite)), Rule("nine"));
    }
    for (offset, expect) in
        [(0, false), (4, false), (5, true), (10, true), (11, false), (15, false)]
    {
        let segment = patch(tcp(7, 9, [CANARY; 20]), 12, &[offset << 4]);
        let expect = || if expect { Rule("nine") } else { By(Reason::TransportLength) };
        add(&format!("TCP data offset {offset}"), ethernet(IPV4, ipv4(TCP, &segment)), expect());
        add(
            &format!("TCP data offset {offset}, v6"),
            ethernet(IPV6, ipv6(TCP, &segment)),
            expect(),
        );
    }
    for (offset, extended, fits) in [
        (0, 1, false),
        (3, 1, false),
        (4, 1, true),
        (2, 0, false),
        (3, 0, true),
        (9, 1, true),
        (10, 1, false),
    ] {
        let segment = patch(patch(dccp(7, 9, [CANARY; 16]), 4, &[offset]), 8, &[extended]);
        let expect = if fits { Rule("nine") } else { By(Reason::TransportLength) };
        add(
            &format!("DCCP data offset {offset}, X {extended}"),
            ethernet(IPV4, ipv4(DCCP, segment)),
            expect,
        );
    }

    // Fragments made to deceive.
    add("tiny first fragment of TCP", first(TCP, &tcp(7, 9, [])[..8]), By(Reason::FragmentTiny));
    add(
        "tiny first fragment of TCP, 16",
        first(TCP, &tcp(7, 9, [])[..16]),
        By(Reason::FragmentTiny),
    );
    add(
        "tiny first fragment of TCP, v6",
        first6(TCP, &tcp(7, 9, [])[..16]),
        By(Reason::FragmentTiny),
    );
    add("tiny first fragment of SCTP", first(SCTP, &sctp(7, 9, [])[..8]), By(Reason::FragmentTiny));
    add(
        "TCP options beyond the first fragment",
        first(TCP, &patch(tcp(7, 9, [CANARY; 4]), 12, &[0xf0])),
        By(Reason::FragmentTiny),
    );
    add("UDP header alone in the first fragment", first(UDP, &udp(7, 9, [])), Rule("nine"));
    add(
        "a first fragment's coverage speaks of all",
        first(UDPLITE, &patch(udplite(7, 9, [CANARY; 8]), 4, &[0x20, 0])),
        Rule("nine"),
    );
    add(
        "a first fragment's UDP length speaks of all",
        first(UDP, &patch(udp(7, 9, [CANARY; 8]), 4, &[0x20, 0])),
        Rule("nine"),
    );
    add(
        "but not of less than a header",
        first(UDP, &patch(udp(7, 9, [CANARY; 8]), 4, &[0, 7])),
        By(Reason::TransportLength),
    );
    for offset in [8, 16] {
        add(&format!("TCP fragment at {offset}"), later(TCP, offset), By(Reason::FragmentOverlap));
    }
    add("TCP fragment at 24", later(TCP, 24), By(Reason::FragmentWithoutPorts));
    add("SCTP fragment at 8", later(SCTP, 8), By(Reason::FragmentOverlap));
    add("UDP fragment at 8", later(UDP, 8), By(Reason::FragmentWithoutPorts));
    add(
        "TCP fragment at 8, v6",
        ethernet(IPV6, ipv6(FRAGMENT, fragment(TCP, 8, false, [CANARY; 32]))),
        By(Reason::FragmentOverlap),
    );
    add(
        "a fragment of 12 bytes with more to follow",
        first(UDP, &udp(7, 9, [0; 4])),
        By(Reason::FragmentLength),
    );
    add("an empty first fragment", first(UDP, &[]), By(Reason::FragmentLength));
    let ip = Ipv4 { fragment_offset: 64, ..Ipv4::default() };
    add("an empty last fragment", ethernet(IPV4, ip.packet(UDP, [])), By(Reason::FragmentLength));
    let ip = |offset| Ipv4 { fragment_offset: offset, ..Ipv4::default() };
    add(
        "a fragment up to byte 65,535",
        ethernet(IPV4, ip(65_504).packet(UDP, [CANARY; 11])),
        By(Reason::FragmentWithoutPorts),
    );
    add(
        "a fragment beyond byte 65,535",
        ethernet(IPV4, ip(65_504).packet(UDP, [CANARY; 12])),
        By(Reason::FragmentLength),
    );
    add(
        "the last offset",
        ethernet(IPV4, ip(65_528).packet(UDP, [CANARY; 8])),
        By(Reason::FragmentLength),
    );
    add(
        "a fragment beyond byte 65,535, v6",
        ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 65_528, false, [CANARY; 8]))),
        By(Reason::FragmentLength),
    );

    // Extension headers made to deceive.
    add("six destination options", chain(6), Rule("nine"));
    add("seven destination options", chain(7), By(Reason::ExtensionDepth));
    add("nine destination options", chain(9), By(Reason::ExtensionDepth));
    add(
        "hop-by-hop in second place",
        ethernet(
            IPV6,
            ipv6(DESTINATION_OPTIONS, options(HOP_BY_HOP, 1, options(UDP, 1, udp(7, 9, [])))),
        ),
        By(Reason::ExtensionOrder),
    );
    add(
        "two fragment headers",
        ethernet(
            IPV6,
            ipv6(FRAGMENT, fragment(FRAGMENT, 0, false, fragment(UDP, 0, false, udp(7, 9, [])))),
        ),
        By(Reason::ExtensionOrder),
    );
    add(
        "an extension header longer than the packet",
        ethernet(IPV6, ipv6(DESTINATION_OPTIONS, patch(options(UDP, 1, udp(7, 9, [])), 1, &[2]))),
        By(Reason::ExtensionLength),
    );
    add(
        "an extension header of 7 bytes",
        ethernet(IPV6, ipv6(ROUTING, [UDP, 0, 0, 0, 0, 0, 0])),
        By(Reason::ExtensionLength),
    );
    add(
        "an authentication header of 8 bytes",
        ethernet(IPV6, ipv6(AH, [&[UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp(7, 9, [])].concat())),
        By(Reason::ExtensionLength),
    );
    add(
        "a later fragment that starts with an extension header",
        ethernet(
            IPV6,
            ipv6(
                FRAGMENT,
                fragment(DESTINATION_OPTIONS, 64, false, options(UDP, 1, udp(7, 9, []))),
            ),
        ),
        By(Reason::FragmentChain),
    );
    add(
        "a first fragment that ends in its extension headers",
        first6(DESTINATION_OPTIONS, &options(UDP, 2, [])[..8]),
        By(Reason::FragmentTiny),
    );
    add(
        "a first fragment that ends before its transport header",
        first6(DESTINATION_OPTIONS, &options(UDP, 1, [])),
        By(Reason::FragmentTiny),
    );
    for number in [MOBILITY, HIP, SHIM6] {
        add(
            &format!("extension header {number} is not looked through"),
            ethernet(IPV6, ipv6(number, options(UDP, 1, udp(7, 9, [])))),
            By(Reason::NoRule),
        );
    }
    add(
        "an authentication header of 12 bytes",
        ethernet(
            IPV6,
            ipv6(AH, [&[UDP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], &udp(7, 9, [])].concat()),
        ),
        Rule("nine"),
    );

    cases.extend(contradictions());
    cases
}

/// Frames with more than one fault: the one that stands further out decides; of a header, first that it is
/// there in whole.
fn contradictions() -> Vec<(String, Vec<u8>, Expect)> {
    let mut cases: Vec<(String, Vec<u8>, Expect)> = Vec::new();
    let mut add = |what: &str, frame: Vec<u8>, reason| {
        cases.push((what.to_owned(), frame, By(reason)));
    };
    let good4 = || ethernet(IPV4, ipv4(UDP, udp(7, 9, [CANARY; 30])));

    add("no tag where one is announced", ethernet(VLAN, [0, 12, 8]), Reason::Truncated);
    let two_tags = vlan(7, VLAN, vlan(12, VLAN, []));
    add("a third tag that is not there", ethernet(VLAN, two_tags), Reason::VlanDepth);
    add("the tag of old", ethernet(0x9100, vlan(12, IPV4, [CANARY; 40])), Reason::NotIp);

    add("version 6 in 19 bytes", ethernet(IPV4, [0x65; 19]), Reason::Truncated);
    add("version 4 in 39 bytes", ethernet(IPV6, [0x45; 39]), Reason::Truncated);
    add("version 5 and IHL 1", patch(good4(), 14, &[0x51]), Reason::IpVersion);
    add(
        "IHL beyond the total length, and that beyond the frame",
        patch(good4(), 14, &[0x4f, 0, 0, 59])[..14 + 40].to_vec(),
        Reason::IpHeaderLength,
    );
    add(
        "IHL beyond the frame",
        patch(good4(), 14, &[0x4f, 0, 0, 60])[..14 + 40].to_vec(),
        Reason::Truncated,
    );
    add("a jumbogram of nothing", ethernet(IPV6, ipv6(HOP_BY_HOP, [])), Reason::Jumbogram);

    // Fragments: first their own length, then what they hold.
    add("an odd fragment of TCP", first(TCP, &tcp(7, 9, [])[..12]), Reason::FragmentLength);
    let at = |offset| Ipv4 { fragment_offset: offset, ..Ipv4::default() };
    add("nothing inside the header", ethernet(IPV4, at(8).packet(TCP, [])), Reason::FragmentLength);
    let with_options =
        |len| Ipv4 { options: vec![1; 12], ..at(65_488) }.packet(UDP, vec![CANARY; len]);
    add(
        "with its options up to byte 65,535",
        ethernet(IPV4, with_options(15)),
        Reason::FragmentWithoutPorts,
    );
    add(
        "with its options beyond byte 65,535",
        ethernet(IPV4, with_options(16)),
        Reason::FragmentLength,
    );
    let with_extension = |len| {
        let last = fragment(UDP, 65_520, false, vec![CANARY; len]);
        ethernet(IPV6, ipv6(DESTINATION_OPTIONS, options(FRAGMENT, 1, last)))
    };
    add(
        "with its extension header up to byte 65,535",
        with_extension(7),
        Reason::FragmentWithoutPorts,
    );
    add("with its extension header beyond byte 65,535", with_extension(8), Reason::FragmentLength);
    add(
        "an atomic fragment of nothing is no fragment",
        ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 0, false, []))),
        Reason::TransportTruncated,
    );
    add(
        "a tiny first fragment with data offset 4",
        first(TCP, &patch(tcp(7, 9, []), 12, &[0x40])[..16]),
        Reason::FragmentTiny,
    );
    add(
        "a first fragment with data offset 4",
        first(TCP, &patch(tcp(7, 9, [0; 4]), 12, &[0x40])),
        Reason::TransportLength,
    );

    // Extension headers: first whether a header may stand there, then what it says.
    for header in [HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS] {
        // Only the first fragment's next header is used (RFC 8200 section 4.5).
        let later = fragment(header, 64, false, options(UDP, 1, [CANARY; 8]));
        add(
            &format!("a later fragment that names header {header}"),
            ethernet(IPV6, ipv6(FRAGMENT, later)),
            Reason::FragmentChain,
        );
        // A fragment and five others.
        let mut seven = options(header, 1, fragment(UDP, 0, false, udp(7, 9, [])));
        let mut next = DESTINATION_OPTIONS;
        for _ in 0..4 {
            seven = options(next, 1, seven);
            next = DESTINATION_OPTIONS;
        }
        let seven = fragment(next, 0, false, seven);
        add(
            &format!("a seventh header of kind {header}"),
            ethernet(IPV6, ipv6(FRAGMENT, seven)),
            Reason::ExtensionDepth,
        );
    }
    let mut cut = options(DESTINATION_OPTIONS, 1, []);
    for _ in 0..5 {
        cut = options(DESTINATION_OPTIONS, 1, cut);
    }
    add(
        "a seventh header that is not there",
        ethernet(IPV6, ipv6(DESTINATION_OPTIONS, &cut)),
        Reason::ExtensionDepth,
    );
    add(
        "later fragments end the chain, whatever its length",
        ethernet(
            IPV6,
            ipv6(
                DESTINATION_OPTIONS,
                [&cut[..32], &options(FRAGMENT, 1, fragment(ROUTING, 64, false, [CANARY; 8]))]
                    .concat(),
            ),
        ),
        Reason::FragmentChain,
    );
    add(
        "a later fragment of nothing that names a header",
        ethernet(IPV6, ipv6(FRAGMENT, fragment(ROUTING, 64, false, []))),
        Reason::FragmentLength,
    );
    add(
        "hop-by-hop in second place, and not there",
        ethernet(IPV6, ipv6(DESTINATION_OPTIONS, options(HOP_BY_HOP, 1, []))),
        Reason::ExtensionOrder,
    );
    add(
        "hop-by-hop in a first fragment, and not there",
        first6(DESTINATION_OPTIONS, &options(HOP_BY_HOP, 1, [])),
        Reason::ExtensionOrder,
    );
    add(
        "a fragment header of 7 bytes",
        ethernet(IPV6, ipv6(FRAGMENT, &fragment(UDP, 64, true, [])[..7])),
        Reason::ExtensionLength,
    );
    add(
        "an authentication header of 8 bytes in a first fragment of 8",
        first6(AH, &[UDP, 0, 0, 0, 0, 0, 0, 0]),
        Reason::ExtensionLength,
    );
    add(
        "an authentication header of 12 bytes in a first fragment of 8",
        first6(AH, &[UDP, 1, 0, 0, 0, 0, 0, 0]),
        Reason::FragmentTiny,
    );
    add(
        "an authentication header of 8 bytes in a first fragment of 16",
        first6(AH, &[&[UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp(7, 9, [])].concat()),
        Reason::ExtensionLength,
    );

    // Transport headers: first their fixed part, then their lengths.
    add(
        "TCP of 19 bytes with data offset 4",
        ethernet(IPV4, ipv4(TCP, &patch(tcp(7, 9, []), 12, &[0x40])[..19])),
        Reason::TransportTruncated,
    );
    for offset in [3, 4] {
        add(
            &format!("DCCP of 12 bytes that is extended, with data offset {offset}"),
            ethernet(IPV4, ipv4(DCCP, &patch(dccp(7, 9, []), 4, &[offset])[..12])),
            Reason::TransportLength,
        );
    }
    add("DCCP fragment at 8", later(DCCP, 8), Reason::FragmentOverlap);
    cases
}

#[test]
fn every_packet_of_the_table_gets_its_verdict() {
    on_bench(POLICY, |bench| {
        for (what, frame, expect) in cases() {
            let outcome = bench.agree(&frame);
            let cause = match expect {
                Rule(name) => Cause::Rule(name.to_owned()),
                By(reason) => Cause::Reason(reason),
            };
            assert_eq!(outcome.cause, cause, "{what}");
            let action = match &cause {
                Cause::Rule(name) if name == "tcp-range-again" => Action::Pass,
                Cause::Rule(_) => Action::Drop,
                Cause::Reason(reason) if reason.fault().is_some() => Action::Drop,
                Cause::Reason(_) => Action::Pass,
            };
            assert_eq!(outcome.action, action, "{what}");
        }
        let stats = bench.stats();
        let canary = stats.rules.iter().find(|rule| rule.name == "canary").unwrap();
        assert_eq!(canary.packets, 0, "a port was read where there is none");
        assert_eq!(stats.interfaces[0].aborted, 0);
    });
}
