//! Random frames: built header by header out of what stands at a boundary, then changed, cut and padded.

use portsteer_testkit::packet::*;
use proptest::{prelude::*, sample::Index};

use crate::{random::number, table::CANARY};

const MPLS: u16 = 0x8847;
/// What some devices once used for the outer of two tags.
const OLD_VLAN: u16 = 0x9100;

/// How much fits into one buffer of a test run, whose page it shares with headroom and tailroom.
const ONE_BUFFER: usize = 3_500;

/// A header that stands between IPv6's and the transport's.
#[derive(Debug, Clone)]
enum Extension {
    Options {
        kind: u8,
        units: usize,
    },
    /// Its length field may say anything, the 24 bytes stay.
    Authentication(u8),
    Fragment(Place),
}

/// Where a packet stands in the one that it is of, in bytes; and whether more follow.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u16,
    more: bool,
}

#[derive(Debug, Clone)]
enum Ip {
    V4 {
        options: usize,
        place: Place,
        dont_fragment: bool,
    },
    /// Extension headers, and how much of all that is behind IPv6's header is there.
    V6(Vec<Extension>, Option<usize>),
}

/// What is said of a length, instead of the truth.
#[derive(Debug, Clone, Copy)]
enum Length {
    True,
    Off(i8),
    Is(u16),
}

#[derive(Debug, Clone)]
struct Transport {
    protocol: u8,
    dst_port: u16,
    /// How much is behind the header.
    payload: usize,
    /// How much of both is there at all.
    keep: Option<usize>,
    /// Whether that is a multiple of 8 bytes, as fragments before the last must be.
    is_even: bool,
    /// UDP's length, UDP-Lite's coverage.
    length: Length,
    /// TCP's or DCCP's data offset.
    data_offset: Option<u8>,
    /// DCCP's extended sequence numbers.
    extended: bool,
    /// ICMP's type and code.
    icmp: (u8, u8),
}

fn place() -> impl Strategy<Value = Place> {
    let offset = prop_oneof![
        6 => Just(0),
        2 => prop::sample::select(&[8u16, 16, 24, 64][..]),
        1 => prop::sample::select(&[65_480u16, 65_488, 65_496, 65_504, 65_512, 65_520, 65_528][..]),
        1 => (0u16..8_192).prop_map(|units| units * 8),
    ];
    (offset, any::<bool>()).prop_map(|(offset, more)| Place { offset, more })
}

fn extension() -> impl Strategy<Value = Extension> {
    let kind = prop_oneof![
        1 => Just(HOP_BY_HOP),
        6 => Just(ROUTING),
        16 => Just(DESTINATION_OPTIONS),
        1 => prop::sample::select(&[MOBILITY, SHIM6][..]),
    ];
    let units = prop_oneof![20 => 1usize..4, 1 => Just(256)];
    prop_oneof![
        8 => (kind, units).prop_map(|(kind, units)| Extension::Options { kind, units }),
        2 => prop_oneof![4 => Just(4u8), 1 => 0u8..8].prop_map(Extension::Authentication),
        3 => place().prop_map(Extension::Fragment),
    ]
}

fn ip() -> impl Strategy<Value = Ip> {
    let unfragmented = Just(Place { offset: 0, more: false });
    let place_v4 = prop_oneof![2 => unfragmented, 1 => place()];
    let options = prop_oneof![2 => Just(0usize), 1 => 1usize..=10];
    let v4 = (options, place_v4, any::<bool>())
        .prop_map(|(options, place, dont_fragment)| Ip::V4 { options, place, dont_fragment });
    let chain = prop_oneof![
        1 => Just(Vec::new()),
        3 => prop::collection::vec(extension(), 1..4),
        1 => prop::collection::vec(extension(), 4..8),
    ];
    // Hop-by-hop options stand where they belong more often than elsewhere.
    let keep = prop_oneof![3 => (0usize..16).prop_map(|units| units * 8), 1 => 0usize..100];
    let keep = prop::option::weighted(0.15, keep);
    let v6 = (prop::bool::weighted(0.2), chain, keep).prop_map(|(first, mut chain, keep)| {
        if first {
            chain.insert(0, Extension::Options { kind: HOP_BY_HOP, units: 1 });
        }
        Ip::V6(chain, keep)
    });
    prop_oneof![v4, v6]
}

fn length() -> impl Strategy<Value = Length> {
    prop_oneof![
        12 => Just(Length::True),
        2 => (-3i8..=3).prop_map(Length::Off),
        1 => prop::sample::select(&[0u16, 1, 7, 8, 9, 19, 20, 65_535][..]).prop_map(Length::Is),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    let protocol = prop_oneof![
        8 => prop::sample::select(&[TCP, UDP, UDPLITE, SCTP, DCCP][..]),
        3 => prop::sample::select(&[ICMP, ICMPV6][..]),
        1 => prop::sample::select(&[GRE, ESP, NO_NEXT_HEADER, AH, 253][..]),
    ];
    let dst_port = prop_oneof![1 => Just(9u16), 1 => number()];
    let payload = prop_oneof![(0usize..6).prop_map(|units| units * 8), 0usize..48];
    let keep = prop::option::weighted(0.3, 0usize..32);
    let data_offset = prop::option::weighted(0.3, prop_oneof![0u8..16, any::<u8>()]);
    let icmp = prop_oneof![
        Just((8, 0)),
        Just((3, 4)),
        Just((2, 0)),
        (133u8..=136, Just(0)),
        any::<(u8, u8)>()
    ];
    let flags = (prop::bool::weighted(0.6), any::<bool>());
    (protocol, dst_port, payload, keep, length(), data_offset, flags, icmp).prop_map(
        |(protocol, dst_port, payload, keep, length, data_offset, (is_even, extended), icmp)| {
            Transport {
                protocol,
                dst_port,
                payload,
                keep,
                is_even,
                length,
                data_offset,
                extended,
                icmp,
            }
        },
    )
}

impl Length {
    fn apply(self, field: &mut [u8]) {
        let truth = u16::from_be_bytes([field[0], field[1]]);
        let said = match self {
            Self::True => truth,
            Self::Off(by) => truth.wrapping_add_signed(by.into()),
            Self::Is(value) => value,
        };
        field.copy_from_slice(&said.to_be_bytes());
    }
}

impl Transport {
    fn bytes(&self) -> Vec<u8> {
        let fill = vec![CANARY; self.payload];
        let mut bytes = match self.protocol {
            TCP => tcp(7, self.dst_port, fill),
            UDP => udp(7, self.dst_port, fill),
            UDPLITE => udplite(7, self.dst_port, fill),
            SCTP => sctp(7, self.dst_port, fill),
            DCCP => dccp(7, self.dst_port, fill),
            ICMP | ICMPV6 => icmp(self.icmp.0, self.icmp.1, fill),
            _ => fill,
        };
        match (self.protocol, self.data_offset) {
            (TCP, Some(offset)) => bytes[12] = offset << 4,
            (DCCP, Some(offset)) => bytes[4] = offset,
            _ => {}
        }
        match self.protocol {
            DCCP => bytes[8] = bytes[8] & !1 | u8::from(self.extended),
            UDP => self.length.apply(&mut bytes[4..6]),
            UDPLITE => {
                if !matches!(self.length, Length::True) {
                    let len = bytes.len() as u16;
                    bytes[4..6].copy_from_slice(&len.to_be_bytes());
                }
                self.length.apply(&mut bytes[4..6]);
            }
            _ => {}
        }
        if let Some(keep) = self.keep {
            bytes.truncate(keep);
        }
        if self.is_even {
            bytes.truncate(bytes.len() / 8 * 8);
        }
        bytes
    }
}

impl Ip {
    /// The EtherType and the packet.
    fn packet(&self, transport: &Transport, said: Length) -> (u16, Vec<u8>) {
        let payload = transport.bytes();
        match self {
            &Self::V4 { options, place: Place { offset, more }, dont_fragment } => {
                let ip = Ipv4 {
                    options: vec![1; options * 4],
                    fragment_offset: offset,
                    more_fragments: more,
                    dont_fragment,
                };
                let mut packet = ip.packet(transport.protocol, payload);
                said.apply(&mut packet[2..4]);
                (IPV4, packet)
            }
            Self::V6(chain, keep) => {
                let mut next = transport.protocol;
                let mut payload = payload;
                for extension in chain.iter().rev() {
                    (next, payload) = match *extension {
                        Extension::Options { kind, units } => (kind, options(next, units, payload)),
                        Extension::Authentication(len) => {
                            let mut bytes = authentication(next, payload);
                            bytes[1] = len;
                            (AH, bytes)
                        }
                        Extension::Fragment(Place { offset, more }) => {
                            (FRAGMENT, fragment(next, offset, more, payload))
                        }
                    };
                }
                payload.truncate(keep.unwrap_or(payload.len()));
                let mut packet = ipv6(next, payload);
                said.apply(&mut packet[4..6]);
                (IPV6, packet)
            }
        }
    }
}

/// Changes a byte. Nearly all that matters stands among the first.
fn change(frame: &mut [u8], at: Index, value: u8, how: u8) {
    let at = at.index(frame.len().min(100));
    frame[at] = match how {
        0 => value,
        1 => frame[at].wrapping_add(1),
        _ => frame[at] ^ (1 << (value % 8)),
    };
}

/// A frame of at least an Ethernet header, which the kernel's test run asks for.
pub fn frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = (any::<bool>(), prop_oneof![Just(0u16), Just(12), any::<u16>()]);
    let tags = prop_oneof![
        10 => Just(Vec::new()),
        4 => prop::collection::vec(tag.clone(), 1..3),
        1 => prop::collection::vec(tag, 3..5),
    ];
    let few = |most| prop::collection::vec((any::<Index>(), any::<u8>(), 0u8..3), 0..most);
    let changes = prop_oneof![2 => few(1), 1 => few(4)];
    let cut = prop::option::weighted(0.15, any::<Index>());
    let padding = prop_oneof![3 => Just(0usize), 1 => 1usize..12];
    let other = prop::sample::select(&[ARP, MPLS, OLD_VLAN, 46][..]);
    let other = prop::option::weighted(0.02, other);
    (tags, other, ip(), transport(), length(), changes, padding, cut).prop_map(
        |(tags, other, ip, transport, said, changes, padding, cut)| {
            let (ether_type, mut bytes) = ip.packet(&transport, said);
            let mut ether_type = other.unwrap_or(ether_type);
            for (is_service, control) in tags {
                bytes = vlan(control, ether_type, bytes);
                ether_type = if is_service { SERVICE_VLAN } else { VLAN };
            }
            let mut frame = ethernet(ether_type, bytes);
            for (at, value, how) in changes {
                change(&mut frame, at, value, how);
            }
            frame.resize(frame.len() + padding, CANARY);
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len() + 1).max(14));
            }
            frame.truncate(ONE_BUFFER);
            frame
        },
    )
}
