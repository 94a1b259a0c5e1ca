//! The evasion table: the tricks that are played on packet filters, and what becomes of each. The table in
//! `docs/evasion.md` is made of this one; a test fails where they differ. `PORTSTEER_BLESS=1` writes it anew.

use std::{env, fs, path::Path};

use portsteer::policy::Action;
use portsteer_common::{Fault, Reason};
use portsteer_testkit::{outcome::Cause, packet::*};

use crate::{
    bench::on_bench,
    table::{
        CANARY,
        Expect::{self, Reason as By, Rule},
        POLICY, chain, first, first6, later, patch,
    },
};

/// A trick, and the frames that play it.
struct Trick {
    name: &'static str,
    /// Whom it deceives, and how.
    aim: &'static str,
    /// What portsteer does about it.
    answer: &'static str,
    frames: Vec<(Vec<u8>, Expect)>,
}

/// Each of these frames, with the same outcome.
fn all<const N: usize>(
    frames: [Vec<u8>; N],
    expect: impl Fn() -> Expect,
) -> Vec<(Vec<u8>, Expect)> {
    frames.into_iter().map(|frame| (frame, expect())).collect()
}

/// A datagram that the rule `nine` drops.
fn to_nine() -> Vec<u8> {
    udp(7, 9, [CANARY; 30])
}

fn with_nine() -> Expect {
    Rule("nine")
}

fn tags(types: &[u16]) -> Vec<u8> {
    let mut payload = ipv4(UDP, to_nine());
    let mut ether_type = IPV4;
    for &outer in types.iter().rev() {
        payload = vlan(12, ether_type, payload);
        ether_type = outer;
    }
    ethernet(ether_type, payload)
}

/// A packet whose IP length leaves only so many bytes of a datagram to port 9; the others are behind its end.
fn padded(len: usize) -> [Vec<u8>; 2] {
    let datagram = to_nine();
    let (inside, behind) = datagram.split_at(len);
    [
        [ethernet(IPV4, ipv4(UDP, inside)), behind.to_vec()].concat(),
        [ethernet(IPV6, ipv6(UDP, inside)), behind.to_vec()].concat(),
    ]
}

fn fragmented_tricks() -> Vec<Trick> {
    let at = |offset| Ipv4 { fragment_offset: offset, ..Ipv4::default() };
    vec![
        Trick {
            name: "Tiny first fragments",
            aim: "the first fragment is so short that ports or TCP flags come in the second (RFC 1858)",
            answer: "a first fragment must hold its whole transport header",
            frames: all(
                [
                    first(TCP, &tcp(7, 9, [])[..8]),
                    first(TCP, &tcp(7, 9, [])[..16]),
                    first(TCP, &patch(tcp(7, 9, [CANARY; 4]), 12, &[0xf0])),
                    first(SCTP, &sctp(7, 9, [])[..8]),
                    first(DCCP, &dccp(7, 9, [])[..8]),
                    first6(TCP, &tcp(7, 9, [])[..8]),
                    first6(TCP, &tcp(7, 9, [])[..16]),
                ],
                || By(Reason::FragmentTiny),
            ),
        },
        Trick {
            name: "First fragments that end among extension headers",
            aim: "the transport header comes in a fragment that carries no ports (RFC 7112)",
            answer: "a first fragment must hold its whole header chain",
            frames: all(
                [
                    first6(DESTINATION_OPTIONS, &options(UDP, 1, [])),
                    first6(DESTINATION_OPTIONS, &options(UDP, 2, [])[..8]),
                    first6(ROUTING, &options(DESTINATION_OPTIONS, 1, options(TCP, 1, []))),
                ],
                || By(Reason::FragmentTiny),
            ),
        },
        Trick {
            name: "Fragment offset 1",
            aim: "a later fragment writes over TCP's flags once the datagram is put together (RFC 3128)",
            answer: "no later fragment may begin inside the transport header",
            frames: all(
                [later(TCP, 8), ethernet(IPV6, ipv6(FRAGMENT, fragment(TCP, 8, false, [0; 32])))],
                || By(Reason::FragmentOverlap),
            ),
        },
        Trick {
            name: "Fragments that overlap the transport header",
            aim: "ports that were judged are replaced by others (RFC 1858, RFC 5722)",
            answer: "no later fragment may begin inside the transport header",
            frames: all(
                [
                    later(TCP, 16),
                    later(SCTP, 8),
                    later(DCCP, 8),
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(TCP, 16, true, [0; 32]))),
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(SCTP, 8, false, [0; 32]))),
                ],
                || By(Reason::FragmentOverlap),
            ),
        },
        Trick {
            name: "Fragments that overlap behind the transport header",
            aim: "the filter and the host put different payloads together",
            answer: "nothing is reassembled, so nothing can differ: later fragments go through the rules \
                     without ports",
            frames: all(
                [
                    later(TCP, 24),
                    later(UDP, 8),
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 8, true, [CANARY; 32]))),
                ],
                || By(Reason::FragmentWithoutPorts),
            ),
        },
        Trick {
            name: "Later fragments of a dropped source",
            aim: "fragments pass where only packets with ports are judged",
            answer: "a rule without ports decides about them as about any packet",
            frames: all(
                [
                    later(GRE, 64),
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(GRE, 64, false, [CANARY; 16]))),
                ],
                || Rule("gre"),
            ),
        },
        Trick {
            name: "Later IPv6 fragments that name another protocol",
            aim: "a host goes by the first fragment's, and a filter by the one at hand (RFC 8200)",
            answer: "each is judged by the one that it names; without its first fragment, which is judged by its \
                     ports, nothing comes of it",
            frames: {
                let later = |next| {
                    let payload = fragment(next, 64, false, [CANARY; 16]);
                    ethernet(IPV6, ipv6(FRAGMENT, payload))
                };
                vec![
                    (later(GRE), Rule("gre")),
                    (later(UDP), By(Reason::FragmentWithoutPorts)),
                    (later(253), By(Reason::NoRule)),
                ]
            },
        },
        Trick {
            name: "Fragments beyond byte 65,535",
            aim: "the datagram that is put together is longer than any may be (the \"ping of death\")",
            answer: "refused by its numbers",
            frames: all(
                [
                    ethernet(IPV4, at(65_528).packet(ICMP, [CANARY; 32])),
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 65_528, false, [CANARY; 8]))),
                ],
                || By(Reason::FragmentLength),
            ),
        },
        Trick {
            name: "Fragments of impossible length",
            aim: "empty fragments, or some of a length that is no multiple of 8, confuse reassembly",
            answer: "refused by their numbers",
            frames: all(
                [
                    first(UDP, &udp(7, 9, [0; 4])),
                    first(UDP, &[]),
                    ethernet(IPV4, at(64).packet(UDP, [])),
                    first6(UDP, &udp(7, 9, [0; 4])),
                ],
                || By(Reason::FragmentLength),
            ),
        },
        Trick {
            name: "IPv6 atomic fragments",
            aim: "a fragment header on a whole packet makes filters take it for a fragment (RFC 6946)",
            answer: "it is a whole packet",
            frames: all(
                [
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 0, false, to_nine()))),
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(TCP, 0, false, tcp(7, 9, [])))),
                ],
                with_nine,
            ),
        },
        Trick {
            name: "A fragment header behind other extension headers",
            aim: "filters that look for it right behind the IPv6 header see no fragment",
            answer: "the chain is followed to its end",
            frames: {
                let behind = |rest| ethernet(IPV6, ipv6(HOP_BY_HOP, options(FRAGMENT, 1, rest)));
                let mut frames = all(
                    [
                        behind(fragment(UDP, 0, true, udp(7, 9, [0; 8]))),
                        behind(fragment(UDP, 0, false, to_nine())),
                    ],
                    with_nine,
                );
                let rest = behind(fragment(UDP, 64, false, [CANARY; 16]));
                frames.push((rest, By(Reason::FragmentWithoutPorts)));
                let over = behind(fragment(TCP, 8, false, [CANARY; 16]));
                frames.push((over, By(Reason::FragmentOverlap)));
                frames
            },
        },
        Trick {
            name: "Two fragment headers",
            aim: "the inner one is found only after the outer datagram was put together",
            answer: "no packet has two",
            frames: all(
                [ethernet(
                    IPV6,
                    ipv6(
                        FRAGMENT,
                        fragment(FRAGMENT, 0, false, fragment(UDP, 0, false, to_nine())),
                    ),
                )],
                || By(Reason::ExtensionOrder),
            ),
        },
        Trick {
            name: "Later IPv6 fragments that begin with an extension header",
            aim: "what protocol they belong to stands in another fragment",
            answer: "no rule can judge them",
            frames: all(
                [DESTINATION_OPTIONS, ROUTING, AH].map(|next| {
                    ethernet(IPV6, ipv6(FRAGMENT, fragment(next, 64, false, [CANARY; 32])))
                }),
                || By(Reason::FragmentChain),
            ),
        },
    ]
}

fn extension_tricks() -> Vec<Trick> {
    vec![
        Trick {
            name: "Extension headers before the ports",
            aim: "filters that look for ports right behind the IPv6 header find none, or other bytes",
            answer: "up to six are followed",
            frames: all(
                [
                    chain(1),
                    chain(6),
                    ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 3, to_nine()))),
                    ethernet(IPV6, ipv6(AH, authentication(UDP, to_nine()))),
                    ethernet(IPV6, ipv6(DESTINATION_OPTIONS, options(UDP, 256, to_nine()))),
                ],
                with_nine,
            ),
        },
        Trick {
            name: "Extension header chains beyond the limit",
            aim: "the filter gives up and lets pass what it did not read",
            answer: "a seventh is not read, and the policy says what that means",
            frames: all([chain(7), chain(8), chain(40)], || By(Reason::ExtensionDepth)),
        },
        Trick {
            name: "Extension headers out of order",
            aim: "a host may read hop-by-hop options elsewhere than a filter",
            answer: "they are first or not at all (RFC 8200)",
            frames: all(
                [ethernet(
                    IPV6,
                    ipv6(DESTINATION_OPTIONS, options(HOP_BY_HOP, 1, options(UDP, 1, to_nine()))),
                )],
                || By(Reason::ExtensionOrder),
            ),
        },
        Trick {
            name: "Extension headers with false lengths",
            aim: "what follows is read from beyond the packet, or from the padding",
            answer: "a header ends inside its packet",
            frames: all(
                [
                    ethernet(
                        IPV6,
                        ipv6(DESTINATION_OPTIONS, patch(options(UDP, 1, to_nine()), 1, &[9])),
                    ),
                    ethernet(IPV6, ipv6(ROUTING, patch(options(UDP, 1, to_nine()), 1, &[255]))),
                    ethernet(IPV6, ipv6(AH, patch(authentication(UDP, to_nine()), 1, &[0]))),
                ],
                || By(Reason::ExtensionLength),
            ),
        },
        Trick {
            name: "Routing headers",
            aim: "the packet goes on to somewhere else (RFC 5095)",
            answer: "it is judged by the addresses of its IPv6 header, as it would be without one",
            frames: all(
                [ethernet(IPV6, ipv6(ROUTING, patch(options(UDP, 3, to_nine()), 2, &[0, 1])))],
                with_nine,
            ),
        },
        Trick {
            name: "Unknown next headers",
            aim: "whatever follows is taken for a transport header",
            answer: "no port is read: rules without ports decide",
            frames: all(
                [
                    ethernet(IPV6, ipv6(253, to_nine())),
                    ethernet(IPV6, ipv6(NO_NEXT_HEADER, to_nine())),
                    // Mobility, HIP and shim6 are extension headers by name, and lead no further here.
                    ethernet(IPV6, ipv6(MOBILITY, options(UDP, 1, to_nine()))),
                    ethernet(IPV6, ipv6(HIP, options(UDP, 1, to_nine()))),
                    ethernet(IPV6, ipv6(SHIM6, options(UDP, 1, to_nine()))),
                    ethernet(IPV4, ipv4(253, to_nine())),
                    ethernet(IPV4, ipv4(HOP_BY_HOP, options(UDP, 1, to_nine()))),
                    ethernet(IPV4, ipv4(AH, authentication(UDP, to_nine()))),
                ],
                || By(Reason::NoRule),
            ),
        },
        Trick {
            name: "Jumbograms",
            aim: "a payload length of zero hides the packet's real end (RFC 2675)",
            answer: "not read, and the policy says what that means",
            frames: all(
                [patch(ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 1, to_nine()))), 18, &[0, 0])],
                || By(Reason::Jumbogram),
            ),
        },
    ]
}

fn link_tricks() -> Vec<Trick> {
    vec![
        Trick {
            name: "One or two VLAN tags",
            aim: "filters that look for IP right behind the addresses see none",
            answer: "up to two are followed, 802.1Q and 802.1ad in any order",
            frames: all(
                [
                    tags(&[VLAN]),
                    tags(&[SERVICE_VLAN]),
                    tags(&[SERVICE_VLAN, VLAN]),
                    tags(&[VLAN, VLAN]),
                    tags(&[SERVICE_VLAN, SERVICE_VLAN]),
                ],
                with_nine,
            ),
        },
        Trick {
            name: "Three VLAN tags and more",
            aim: "the filter gives up and lets pass what it did not read",
            answer: "a third is not read, and the policy says what that means",
            frames: all(
                [tags(&[SERVICE_VLAN, VLAN, VLAN]), tags(&[VLAN; 3]), tags(&[VLAN; 9])],
                || By(Reason::VlanDepth),
            ),
        },
        Trick {
            name: "Priority tags (VID 0)",
            aim: "the host takes the frame for untagged, and the filter for another VLAN's",
            answer: "it counts as untagged",
            frames: all(
                [0x0000u16, 0xe000, 0x1000]
                    .map(|control| ethernet(VLAN, vlan(control, IPV4, ipv4(UDP, to_nine())))),
                with_nine,
            ),
        },
        Trick {
            name: "Tags of other types (0x9100, 0x9200)",
            aim: "an IP packet where the filter sees none",
            answer: "not IP to Linux either, which discards them",
            frames: all([tags(&[0x9100]), tags(&[0x9200, VLAN])], || By(Reason::NotIp)),
        },
        Trick {
            name: "IPv6 as IPv4's EtherType, and the reverse",
            aim: "addresses and ports are read from where they are not",
            answer: "the version has to be the EtherType's",
            frames: all(
                [
                    ethernet(IPV4, ipv6(UDP, to_nine())),
                    ethernet(IPV6, ipv4(UDP, to_nine())),
                    ethernet(VLAN, vlan(12, IPV4, ipv6(UDP, to_nine()))),
                    patch(ethernet(IPV4, ipv4(UDP, to_nine())), 14, &[0x55]),
                ],
                || By(Reason::IpVersion),
            ),
        },
        Trick {
            name: "LLC and SNAP frames (802.3)",
            aim: "an IP packet where the filter sees none (RFC 1042)",
            answer: "not IP to Linux either, which takes IP from Ethernet II frames alone",
            frames: {
                let snap = |kind: u16, packet: Vec<u8>| {
                    let llc = [0xaa, 0xaa, 0x03, 0, 0, 0];
                    let body = [&llc[..], &kind.to_be_bytes(), &packet].concat();
                    ethernet(body.len() as u16, body)
                };
                all(
                    [
                        snap(IPV4, ipv4(UDP, to_nine())),
                        snap(IPV6, ipv6(UDP, to_nine())),
                        ethernet(0x05dc, [&[0x06, 0x06, 0x03][..], &ipv4(UDP, to_nine())].concat()),
                    ],
                    || By(Reason::NotIp),
                )
            },
        },
        Trick {
            name: "PPPoE",
            aim: "the filter does not see the IP packet of a session",
            answer: "not read; the session's own interface carries no Ethernet frames, so its packets are \
                     not judged at all",
            frames: {
                let session = |kind: u16, packet: Vec<u8>| {
                    let len = (packet.len() + 2) as u16;
                    let head = [0x11, 0, 0, 7];
                    let body =
                        [&head[..], &len.to_be_bytes(), &kind.to_be_bytes(), &packet].concat();
                    ethernet(0x8864, body)
                };
                all(
                    [
                        session(0x0021, ipv4(UDP, to_nine())),
                        session(0x0057, ipv6(UDP, to_nine())),
                        ethernet(0x8863, [0x11, 9, 0, 0, 0, 0]),
                    ],
                    || By(Reason::NotIp),
                )
            },
        },
        Trick {
            name: "MPLS",
            aim: "the filter does not see the IP packet below the labels",
            answer: "not read; Linux takes such packets only where `net.mpls` is set up to",
            frames: all(
                [0x8847, 0x8848].map(|kind| {
                    ethernet(kind, [&[0, 1, 1, 64][..], &ipv4(UDP, to_nine())].concat())
                }),
                || By(Reason::NotIp),
            ),
        },
    ]
}

fn length_tricks() -> Vec<Trick> {
    let v4 = || ethernet(IPV4, ipv4(UDP, to_nine()));
    let v6 = || ethernet(IPV6, ipv6(UDP, to_nine()));
    vec![
        Trick {
            name: "IPv4 total length below the frame's",
            aim: "the padding is read as a part of the packet",
            answer: "the packet ends where it says",
            frames: all(
                [[v4(), vec![CANARY; 9]].concat(), [v6(), vec![CANARY; 9]].concat()],
                with_nine,
            ),
        },
        Trick {
            name: "Padding that completes a transport header",
            aim: "ports, flags or lengths are read from behind the packet's end",
            answer: "no byte behind the packet's end is read",
            frames: [0, 1, 2, 4, 7]
                .into_iter()
                .flat_map(|len| all(padded(len), || By(Reason::TransportTruncated)))
                .collect(),
        },
        Trick {
            name: "IP length beyond the frame",
            aim: "the filter reads beyond the frame's end, or takes what is missing for zeroes",
            answer: "such a packet is not whole",
            frames: all(
                [
                    patch(v4(), 16, &[0xff, 0xff]),
                    patch(v6(), 18, &[0xff, 0xff]),
                    v4()[..v4().len() - 1].to_vec(),
                    v6()[..v6().len() - 1].to_vec(),
                    v4()[..33].to_vec(),
                    v6()[..53].to_vec(),
                ],
                || By(Reason::Truncated),
            ),
        },
        Trick {
            name: "IPv4 total length below the header's",
            aim: "the payload's length becomes negative, and huge",
            answer: "refused by its numbers",
            frames: all([[0, 0], [0, 19]].map(|len| patch(v4(), 16, &len)), || {
                By(Reason::IpHeaderLength)
            }),
        },
        Trick {
            name: "IHL below 5, or beyond the packet",
            aim: "ports are read from inside the IP header, or from beyond the packet",
            answer: "refused by its numbers",
            frames: all(
                [0x40, 0x41, 0x42, 0x43, 0x44].map(|first| patch(v4(), 14, &[first])),
                || By(Reason::IpHeaderLength),
            )
            .into_iter()
            .chain(all([patch(ethernet(IPV4, ipv4(UDP, udp(7, 9, []))), 14, &[0x4f])], || {
                By(Reason::IpHeaderLength)
            }))
            .collect(),
        },
        Trick {
            name: "IPv4 options",
            aim: "ports are read at a fixed place, which is inside the options",
            answer: "the header's length says where the ports are",
            frames: all(
                [4, 8, 40].map(|len| {
                    let ip = Ipv4 { options: vec![CANARY; len], ..Ipv4::default() };
                    ethernet(IPV4, ip.packet(UDP, to_nine()))
                }),
                with_nine,
            ),
        },
        Trick {
            name: "UDP length lies",
            aim: "filter and host take different bytes for the datagram",
            answer: "at least 8, and no more than the IP packet has (the reverse is legal, RFC 9868)",
            frames: [0u16, 7, 39, 65_535]
                .into_iter()
                .flat_map(|len| {
                    let len = len.to_be_bytes();
                    all([patch(v4(), 38, &len), patch(v6(), 58, &len)], || {
                        By(Reason::TransportLength)
                    })
                })
                .chain(all([patch(v4(), 38, &[0, 8]), patch(v6(), 58, &[0, 8])], with_nine))
                .collect(),
        },
        Trick {
            name: "UDP-Lite coverage lies",
            aim: "a checksum that covers less than the header, or more than the packet",
            answer: "0, or at least 8 and no more than the packet has (RFC 3828)",
            frames: [1u16, 7, 39]
                .into_iter()
                .map(|coverage| {
                    let lite = patch(udplite(7, 9, [CANARY; 30]), 4, &coverage.to_be_bytes());
                    (ethernet(IPV4, ipv4(UDPLITE, lite)), By(Reason::TransportLength))
                })
                .collect(),
        },
        Trick {
            name: "TCP data offset lies",
            aim: "a header that is shorter than a header, or ends behind the packet",
            answer: "at least 5 words, all of them in the packet",
            frames: [0u8, 4, 11, 15]
                .into_iter()
                .flat_map(|words| {
                    let segment = patch(tcp(7, 9, [CANARY; 20]), 12, &[words << 4]);
                    all(
                        [ethernet(IPV4, ipv4(TCP, &segment)), ethernet(IPV6, ipv6(TCP, &segment))],
                        || By(Reason::TransportLength),
                    )
                })
                .collect(),
        },
        Trick {
            name: "DCCP data offset lies",
            aim: "the same, with two lengths of headers (RFC 4340)",
            answer: "at least the generic header, all of it in the packet",
            frames: [(0u8, 1u8), (3, 1), (2, 0), (10, 1), (255, 1)]
                .into_iter()
                .map(|(words, extended)| {
                    let packet = patch(dccp(7, 9, [CANARY; 16]), 4, &[words]);
                    let packet = patch(packet, 8, &[extended]);
                    (ethernet(IPV4, ipv4(DCCP, packet)), By(Reason::TransportLength))
                })
                .collect(),
        },
    ]
}

fn packets_in_packets() -> Vec<Trick> {
    let vxlan = |inner: &[u8]| udp(7, 4_789, [&[8, 0, 0, 0, 0, 0, 7, 0][..], inner].concat());
    vec![
        Trick {
            name: "Tunnels that carry Ethernet frames (VXLAN, GRETAP)",
            aim: "the filter does not see the packet inside",
            answer: "the outer header counts, with its ports if it has any; what comes out is judged where a \
                     policy names the tunnel's own interface",
            frames: all(
                [ethernet(IPV4, ipv4(UDP, vxlan(&ethernet(IPV4, ipv4(UDP, to_nine())))))],
                || By(Reason::NoRule),
            ),
        },
        Trick {
            name: "Tunnels that carry IP (IP in IP, 6in4, 4in6)",
            aim: "the filter does not see the packet inside",
            answer: "the outer header counts; the tunnel's own interface has no Ethernet frames, so what comes \
                     out is not judged at all: pass the protocol from the tunnel's other end alone",
            frames: all(
                [
                    ethernet(IPV4, ipv4(4, ipv4(UDP, to_nine()))),
                    ethernet(IPV4, ipv4(41, ipv6(UDP, to_nine()))),
                    ethernet(IPV6, ipv6(4, ipv4(UDP, to_nine()))),
                    ethernet(IPV6, ipv6(41, ipv6(UDP, to_nine()))),
                ],
                || By(Reason::NoRule),
            ),
        },
        Trick {
            name: "What goes on behind the filter (ESP, FOU, GUE)",
            aim: "the host takes the packet inside as if it had come in by the same interface",
            answer: "the outer header counts, of FOU and GUE its UDP port; the packet inside is not judged at \
                     all: pass them from whom you trust alone",
            frames: all(
                [
                    ethernet(IPV4, ipv4(ESP, [CANARY; 32])),
                    ethernet(IPV6, ipv6(ESP, [CANARY; 32])),
                    ethernet(IPV4, ipv4(UDP, udp(7, 5_555, tcp(7, 9, [])))),
                ],
                || By(Reason::NoRule),
            ),
        },
        Trick {
            name: "Authentication headers over IPv4",
            aim: "the ports stand behind a header that is not encrypted, and a host with a key for it takes them",
            answer: "over IPv4 it is a protocol without ports, over IPv6 an extension header that is followed",
            frames: {
                let mut frames =
                    all([ethernet(IPV4, ipv4(AH, authentication(UDP, to_nine())))], || {
                        By(Reason::NoRule)
                    });
                let followed = ethernet(IPV6, ipv6(AH, authentication(UDP, to_nine())));
                frames.push((followed, with_nine()));
                frames
            },
        },
        Trick {
            name: "GRE",
            aim: "the filter does not see the packet inside",
            answer: "the same: a rule for protocol 47 decides about the tunnel",
            frames: all(
                [
                    ethernet(IPV4, ipv4(GRE, [&[0, 0, 8, 0][..], &ipv4(UDP, to_nine())].concat())),
                    ethernet(IPV6, ipv6(GRE, [&[0, 0, 8, 0][..], &ipv4(UDP, to_nine())].concat())),
                ],
                || Rule("gre"),
            ),
        },
        Trick {
            name: "ICMP errors that quote a packet",
            aim: "the quoted packet's ports are taken for the error's own",
            answer: "an error is ICMP, whatever it quotes",
            frames: vec![
                (ethernet(IPV4, ipv4(ICMP, icmp(3, 3, ipv4(UDP, to_nine())))), Rule("ping")),
                (
                    ethernet(IPV6, ipv6(ICMPV6, icmp(1, 4, ipv6(UDP, to_nine())))),
                    By(Reason::NoRule),
                ),
            ],
        },
    ]
}

fn tricks() -> Vec<(&'static str, Vec<Trick>)> {
    vec![
        ("Fragments", fragmented_tricks()),
        ("IPv6 extension headers", extension_tricks()),
        ("Below IP", link_tricks()),
        ("Lengths", length_tricks()),
        ("Packets in packets", packets_in_packets()),
    ]
}

#[test]
fn no_trick_is_played_on_the_rules() {
    on_bench(POLICY, |bench| {
        for trick in tricks().into_iter().flat_map(|(_, tricks)| tricks) {
            assert!(!trick.frames.is_empty(), "{}", trick.name);
            for (frame, expect) in trick.frames {
                let outcome = bench.agree(&frame);
                let (cause, action) = match expect {
                    Rule(name) => (Cause::Rule(name.to_owned()), Action::Drop),
                    By(reason) => {
                        let action =
                            if reason.fault().is_some() { Action::Drop } else { Action::Pass };
                        (Cause::Reason(reason), action)
                    }
                };
                assert_eq!(
                    (outcome.cause, outcome.action),
                    (cause, action),
                    "{}: {frame:02x?}",
                    trick.name
                );
            }
        }
        let stats = bench.stats();
        let canary = stats.rules.iter().find(|rule| rule.name == "canary").unwrap();
        assert_eq!(canary.packets, 0, "a port was read where there is none");
    });
}

/// Who decides, in the words of the documentation.
fn decides(expect: &Expect) -> String {
    let by = |reason: Reason| format!("`{}`", reason.name());
    match expect {
        Rule(_) => "the rules".to_owned(),
        By(reason) => match (reason, reason.fault()) {
            (_, Some(Fault::Malformed)) => format!("{}: `options.malformed`", by(*reason)),
            (_, Some(Fault::Unsupported)) => format!("{}: `options.unsupported`", by(*reason)),
            (Reason::FragmentWithoutPorts, _) => {
                format!("{}: `options.fragments`, if a rule asks for ports first", by(*reason))
            }
            (Reason::NoRule, _) => "the rules without ports, else `default`".to_owned(),
            (reason, _) => format!("{}: passed", by(*reason)),
        },
    }
}

/// The table in Markdown.
fn in_markdown() -> String {
    let mut text = String::new();
    for (title, tricks) in tricks() {
        text += &format!(
            "### {title}\n\n| trick | whom it deceives | here | who decides |\n| --- | --- | --- | --- |\n"
        );
        for Trick { name, aim, answer, frames } in tricks {
            let mut deciding: Vec<String> = Vec::new();
            for (_, expect) in &frames {
                let decides = decides(expect);
                if !deciding.contains(&decides) {
                    deciding.push(decides);
                }
            }
            text += &format!("| {name} | {aim} | {answer} | {} |\n", deciding.join("; "));
        }
        text.push('\n');
    }
    text
}

const BEGIN: &str = "<!-- table: made by portsteer/tests/verdicts/evasion.rs -->\n\n";
const END: &str = "<!-- end of the table -->\n";

/// What was in the file when this test was built: a guest has no source tree.
const DOCUMENT: &str = include_str!("../../../docs/evasion.md");

#[test]
fn the_documents_table_is_this_one() {
    let (head, rest) = DOCUMENT.split_once(BEGIN).expect("a table in docs/evasion.md");
    let (table, tail) = rest.split_once(END).expect("the end of the table");
    let wanted = in_markdown();
    if env::var_os("PORTSTEER_BLESS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/evasion.md");
        fs::write(path, [head, BEGIN, &wanted, END, tail].concat()).expect("the document");
        return;
    }
    assert!(table == wanted, "docs/evasion.md differs: {BLESS}");
}

/// Each trick's frames, under names for files.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for trick in tricks().into_iter().flat_map(|(_, tricks)| tricks) {
        let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
        let words: String = trick.name.chars().map(word).collect();
        let name = words.split_whitespace().collect::<Vec<_>>().join("-");
        for (number, (frame, _)) in (1..).zip(trick.frames) {
            seeds.push((format!("{name}-{number}"), frame));
        }
    }
    seeds
}

/// The fuzzer begins with the tricks that are known.
#[test]
fn every_trick_is_a_seed_of_the_fuzzer() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz/seeds/packet");
    for (name, frame) in seeds() {
        let path = directory.join(&name);
        if env::var_os("PORTSTEER_BLESS").is_some() {
            fs::write(&path, &frame).expect("a seed can be written");
        }
        let kept = fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}, {BLESS}"));
        assert!(kept == frame, "{name} is another frame, {BLESS}");
    }
}

const BLESS: &str = "PORTSTEER_BLESS=1 cargo test -p portsteer --test verdicts evasion";
