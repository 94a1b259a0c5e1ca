//! Frames that nobody thought of: stacks of real headers, and mutations that know where in a frame its headers
//! and their fields are. A mutated byte anywhere mostly makes a frame that is refused by its first check; a
//! field with another value that occurs, a header more or less, and lengths that are made right again lead
//! behind it.

use crate::{packet::*, random::Random};

/// The ports at which policies for fuzzing begin and end something, and those beside them.
pub const PORTS: [u16; 16] =
    [0, 1, 8, 9, 10, 99, 100, 200, 201, 1_023, 1_024, 4_999, 5_000, 61_166, 65_534, 65_535];

/// The same of IPv4 addresses.
pub const ADDRESSES_V4: [[u8; 4]; 12] = [
    [0, 0, 0, 0],
    [10, 0, 0, 0],
    [10, 0, 0, 1],
    [10, 0, 255, 255],
    [10, 1, 0, 0],
    [192, 0, 2, 0],
    [192, 0, 2, 1],
    [192, 0, 2, 127],
    [192, 0, 2, 128],
    [198, 51, 100, 7],
    [198, 51, 100, 8],
    [255, 255, 255, 255],
];

/// The same of IPv6 addresses, by their first four and their last group.
pub const ADDRESSES_V6: [([u16; 4], u16); 9] = [
    ([0, 0, 0, 0], 0),
    ([0, 0, 0, 0], 1),
    ([0x2001, 0xdb8, 0, 0], 1),
    ([0x2001, 0xdb8, 0, 0], 7),
    ([0x2001, 0xdb8, 0, 1], 0),
    ([0x2001, 0xdb8, 5, 0], 0),
    ([0x2001, 0xdb8, 5, 0xffff], 0xffff),
    ([0xfe80, 0, 0, 0], 1),
    ([0xffff; 4], 0xffff),
];

/// VLAN tags: priority and identifier.
const TAGS: [u16; 10] = [0, 1, 11, 12, 13, 0xe000, 0x1000, 0x100c, 4_094, 4_095];
const ETHER_TYPES: [u16; 14] = [
    IPV4,
    IPV4,
    IPV6,
    IPV6,
    VLAN,
    SERVICE_VLAN,
    ARP,
    0x9100,
    0x8847,
    0x8864,
    0x88cc,
    0x05dc,
    0x0600,
    0,
];
const PROTOCOLS: [u8; 20] = [
    TCP,
    UDP,
    UDPLITE,
    SCTP,
    DCCP,
    ICMP,
    ICMPV6,
    HOP_BY_HOP,
    ROUTING,
    FRAGMENT,
    ESP,
    AH,
    NO_NEXT_HEADER,
    DESTINATION_OPTIONS,
    GRE,
    4,
    41,
    MOBILITY,
    253,
    255,
];
const TRANSPORTS: [u8; 10] = [TCP, TCP, UDP, UDP, UDPLITE, SCTP, DCCP, ICMP, ICMPV6, GRE];
/// Flags and offset of an IPv4 fragment, the offset in units of 8 bytes.
const FRAGMENTS_V4: [u16; 16] = [
    0, 0x4000, 0x8000, 0x2000, 0x2001, 0x2002, 0x2003, 1, 2, 3, 4, 8, 0x1fff, 0x3fff, 0xa000,
    0x6000,
];
/// Offset, reserved bits and flag of an IPv6 fragment.
const FRAGMENTS_V6: [u16; 14] = [0, 1, 2, 4, 6, 7, 8, 9, 16, 17, 24, 64, 0xfff8, 0xffff];

/// A header's kind. Those of IPv6's extension headers that have a form of their own are kinds of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ethernet,
    Tag,
    Ipv4,
    Ipv6,
    Options,
    Fragment,
    Authentication,
    /// Of this protocol; whatever follows the IP headers.
    Transport(u8),
}

/// A header in a frame, as far as it is in it.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: Kind,
    start: usize,
    len: usize,
    /// Where it says what comes next, and in how many bytes.
    next: Option<(usize, usize)>,
}

/// A stack of real headers with a payload, whose lengths are right, from and to some of these ports.
#[must_use]
pub fn stack(ports: &[u16], random: &mut Random) -> Vec<u8> {
    let fill = random.below(40);
    let payload = vec![random.pick(&[0, 0xee, 0xff]); fill];
    let protocol = random.pick(&TRANSPORTS);
    let mut packet = transport(random, protocol, ports, &payload);
    let mut next = protocol;
    let ether_type = if random.once_in(2) {
        let mut ip = Ipv4 { dont_fragment: random.once_in(2), ..Ipv4::default() };
        if random.once_in(4) {
            ip.options = vec![1; 4 * (1 + random.below(10))];
        }
        if random.once_in(4) {
            ip.dont_fragment = false;
            ip.more_fragments = random.once_in(2);
            ip.fragment_offset = random.pick(&[0, 0, 8, 16, 24, 64, 1_480]);
        }
        packet = ip.packet(next, packet);
        set_addresses(&mut packet, random, false);
        IPV4
    } else {
        for _ in 0..random.pick(&[0, 0, 0, 1, 1, 2, 3, 5, 6, 7]) {
            let (kind, header) = extension(random, next);
            packet.splice(0..0, header);
            next = kind;
        }
        packet = ipv6(next, packet);
        set_addresses(&mut packet, random, true);
        IPV6
    };
    let mut ether_type = ether_type;
    for _ in 0..random.pick(&[0, 0, 0, 0, 1, 1, 2, 3]) {
        packet = vlan(random.pick(&TAGS), ether_type, packet);
        ether_type = random.pick(&[VLAN, VLAN, SERVICE_VLAN]);
    }
    let mut frame = ethernet(ether_type, packet);
    if random.once_in(8) {
        frame.resize(frame.len() + 1 + random.below(20), 0xee);
    }
    frame
}

/// Changes a frame a few times. What is no frame becomes one: it has at least an Ethernet header, and at most
/// `max_len` bytes, which are at least 14.
pub fn mutate(frame: &mut Vec<u8>, max_len: usize, random: &mut Random) {
    if frame.len() < 14 {
        *frame = stack(&PORTS, random);
    }
    for _ in 0..=random.below(3) {
        mutate_once(frame, random);
        if random.once_in(2) {
            repair(frame);
        }
    }
    frame.truncate(max_len);
}

fn mutate_once(frame: &mut Vec<u8>, random: &mut Random) {
    match random.below(16) {
        0..=6 => set_field(frame, random),
        7 => insert_tag(frame, random),
        8 | 9 => insert_extension(frame, random),
        10 => insert_ipv4_options(frame, random),
        11 => remove_header(frame, random),
        12 => repeat_header(frame, random),
        13 => replace_transport(frame, random),
        14 => change_end(frame, random),
        _ => change_byte(frame, random),
    }
}

/// The frame's headers, from the outside in, up to the first that nobody could go on from.
fn headers(frame: &[u8]) -> Vec<Header> {
    let mut found = Vec::new();
    let number = |at: usize, len: usize| -> Option<u32> {
        let bytes = frame.get(at..at + len)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    };
    let mut add = |kind, start: usize, len: usize, next: Option<(usize, usize)>| {
        found.push(Header { kind, start, len: len.min(frame.len().saturating_sub(start)), next });
    };
    let mut walk = || -> Option<()> {
        add(Kind::Ethernet, 0, 14, Some((12, 2)));
        let mut ether_type = number(12, 2)?;
        let mut at = 14;
        while [VLAN, SERVICE_VLAN].map(u32::from).contains(&ether_type) {
            add(Kind::Tag, at, 4, Some((at + 2, 2)));
            ether_type = number(at + 2, 2)?;
            at += 4;
        }
        let mut next = if ether_type == u32::from(IPV4) {
            let len = (number(at, 1)? as usize & 0xf) * 4;
            add(Kind::Ipv4, at, len.max(20), Some((at + 9, 1)));
            let next = number(at + 9, 1)?;
            at += len.max(20);
            add(Kind::Transport(next as u8), at, usize::MAX, None);
            return None;
        } else if ether_type == u32::from(IPV6) {
            add(Kind::Ipv6, at, 40, Some((at + 6, 1)));
            let next = number(at + 6, 1)?;
            at += 40;
            next as u8
        } else {
            return None;
        };
        loop {
            let units = number(at + 1, 1).unwrap_or(0) as usize;
            let (kind, len) = match next {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (Kind::Options, (units + 1) * 8),
                FRAGMENT => (Kind::Fragment, 8),
                AH => (Kind::Authentication, (units + 2) * 4),
                _ => {
                    add(Kind::Transport(next), at, usize::MAX, None);
                    return None;
                }
            };
            add(kind, at, len, Some((at, 1)));
            next = number(at, 1)? as u8;
            at += len;
        }
    };
    walk();
    found.retain(|header| header.start < frame.len());
    found
}

fn put(frame: &mut [u8], at: usize, value: impl AsRef<[u8]>) {
    let value = value.as_ref();
    if let Some(place) = frame.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Gives a field of one of the headers another value.
fn set_field(frame: &mut [u8], random: &mut Random) {
    let found = headers(frame);
    let header = random.pick(&found);
    let at = header.start;
    let rest = (frame.len() - at) as u16;
    let near = |right: u16, random: &mut Random| -> u16 {
        random.pick(&[right, right.wrapping_sub(1), right.wrapping_add(1), 0, 7, 8, 19, 20, 0xffff])
    };
    match header.kind {
        Kind::Ethernet => put(frame, 12, random.pick(&ETHER_TYPES).to_be_bytes()),
        Kind::Tag if random.once_in(2) => put(frame, at, random.pick(&TAGS).to_be_bytes()),
        Kind::Tag => put(frame, at + 2, random.pick(&ETHER_TYPES).to_be_bytes()),
        Kind::Ipv4 => match random.below(6) {
            0 => put(frame, at, [random.pick(&[0x45, 0x44, 0x46, 0x40, 0x4f, 0x65, 0x55])]),
            1 => put(frame, at + 2, near(rest, random).to_be_bytes()),
            2 => put(frame, at + 6, random.pick(&FRAGMENTS_V4).to_be_bytes()),
            3 => put(frame, at + 9, [random.pick(&PROTOCOLS)]),
            4 => put(frame, at + 12, random.pick(&ADDRESSES_V4)),
            _ => put(frame, at + 16, random.pick(&ADDRESSES_V4)),
        },
        Kind::Ipv6 => match random.below(5) {
            0 => put(frame, at, [random.pick(&[0x60, 0x6f, 0x45, 0x70, 0x50])]),
            1 => put(frame, at + 4, near(rest.wrapping_sub(40), random).to_be_bytes()),
            2 => put(frame, at + 6, [random.pick(&PROTOCOLS)]),
            3 => put(frame, at + 8, address_v6(random)),
            _ => put(frame, at + 24, address_v6(random)),
        },
        Kind::Options | Kind::Authentication if random.once_in(2) => {
            put(frame, at + 1, [random.pick(&[0, 1, 2, 4, 5, 31, 254, 255])]);
        }
        Kind::Options | Kind::Authentication => put(frame, at, [random.pick(&PROTOCOLS)]),
        Kind::Fragment if random.once_in(3) => put(frame, at, [random.pick(&PROTOCOLS)]),
        Kind::Fragment => put(frame, at + 2, random.pick(&FRAGMENTS_V6).to_be_bytes()),
        Kind::Transport(protocol) => match (protocol, random.below(4)) {
            (ICMP | ICMPV6, 0) => put(frame, at, [random.pick(&[0, 2, 3, 8, 128, 133, 135, 136])]),
            (ICMP | ICMPV6, _) => put(frame, at + 1, [random.pick(&[0, 1, 4, 255])]),
            (_, 0) => put(frame, at, random.pick(&PORTS).to_be_bytes()),
            (_, 1) => put(frame, at + 2, random.pick(&PORTS).to_be_bytes()),
            (TCP, _) => put(frame, at + 12, [random.pick(&[0, 0x40, 0x50, 0x60, 0xf0, 0x5f])]),
            (DCCP, 2) => put(frame, at + 4, [random.pick(&[0, 2, 3, 4, 5, 255])]),
            (DCCP, _) => put(frame, at + 8, [random.pick(&[0, 1, 2, 0xff])]),
            _ => put(frame, at + 4, near(rest, random).to_be_bytes()),
        },
    }
}

/// One more VLAN tag, somewhere among those that there are.
fn insert_tag(frame: &mut Vec<u8>, random: &mut Random) {
    let found = headers(frame);
    let places: Vec<usize> = found
        .iter()
        .filter(|header| matches!(header.kind, Kind::Ethernet | Kind::Tag))
        .filter_map(|header| header.next)
        .map(|(at, _)| at)
        .filter(|at| at + 2 <= frame.len())
        .collect();
    let at = random.pick(&places);
    let mut tag = random.pick(&[VLAN, SERVICE_VLAN]).to_be_bytes().to_vec();
    tag.extend(random.pick(&TAGS).to_be_bytes());
    frame.splice(at..at, tag);
}

/// An IPv6 extension header that is followed by this, and its own number.
fn extension(random: &mut Random, next: u8) -> (u8, Vec<u8>) {
    match random.below(6) {
        0 => (HOP_BY_HOP, options(next, 1 + random.below(2), [])),
        1 => (ROUTING, options(next, 1 + random.below(3), [])),
        2 => (AH, authentication(next, [])),
        3 => {
            let offset = random.pick(&[0, 0, 0, 8, 16, 24, 64]);
            (FRAGMENT, fragment(next, offset, random.once_in(3), []))
        }
        _ => (DESTINATION_OPTIONS, options(next, 1 + random.below(2), [])),
    }
}

/// One more extension header, right behind the IPv6 header or another of them.
fn insert_extension(frame: &mut Vec<u8>, random: &mut Random) {
    let kinds = [Kind::Ipv6, Kind::Options, Kind::Fragment, Kind::Authentication];
    let found: Vec<Header> = headers(frame)
        .into_iter()
        .filter(|header| kinds.contains(&header.kind) && header.start + header.len < frame.len())
        .collect();
    if found.is_empty() {
        return;
    }
    let before = random.pick(&found);
    let Some((at, _)) = before.next else { return };
    let (kind, header) = extension(random, frame[at]);
    frame[at] = kind;
    let end = before.start + before.len;
    frame.splice(end..end, header);
}

/// Options in an IPv4 header that has none.
fn insert_ipv4_options(frame: &mut Vec<u8>, random: &mut Random) {
    let Some(ip) = headers(frame).into_iter().find(|header| header.kind == Kind::Ipv4) else {
        return;
    };
    let words = random.below(11);
    if ip.len != 20 || ip.start + 20 > frame.len() {
        return;
    }
    frame[ip.start] = 0x45 + words as u8;
    let end = ip.start + 20;
    frame.splice(end..end, vec![random.pick(&[0, 1, 0x83]); words * 4]);
}

/// Takes a header out; the one before it leads to what came behind.
fn remove_header(frame: &mut Vec<u8>, random: &mut Random) {
    let found = headers(frame);
    if found.len() < 2 {
        return;
    }
    let index = 1 + random.below(found.len() - 1);
    let (before, header) = (found[index - 1], found[index]);
    if let (Some((to, len)), Some((from, same))) = (before.next, header.next)
        && len == same
        && from + len <= frame.len()
    {
        frame.copy_within(from..from + len, to);
    }
    frame.drain(header.start..(header.start + header.len).min(frame.len()));
}

/// A header twice. Whether the first leads to the second is left to chance.
fn repeat_header(frame: &mut Vec<u8>, random: &mut Random) {
    let found = headers(frame);
    let header = random.pick(&found);
    let bytes = frame[header.start..header.start + header.len.min(64)].to_vec();
    frame.splice(header.start..header.start, bytes);
}

/// The start of another protocol's packet in place of what is there.
fn replace_transport(frame: &mut Vec<u8>, random: &mut Random) {
    let found = headers(frame);
    let [.., before, last] = &found[..] else { return };
    let (Kind::Transport(_), Some((at, 1))) = (last.kind, before.next) else { return };
    let protocol = random.pick(&TRANSPORTS);
    frame[at] = protocol;
    let len = random.below(24);
    let fill = vec![0xee; len];
    let packet = transport(random, protocol, &PORTS, &fill);
    frame.truncate(last.start);
    frame.extend(packet);
}

/// A packet of this protocol.
fn transport(random: &mut Random, protocol: u8, ports: &[u16], payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (random.pick(ports), random.pick(ports));
    match protocol {
        TCP => tcp(src, dst, payload),
        UDP => udp(src, dst, payload),
        UDPLITE => udplite(src, dst, payload),
        SCTP => sctp(src, dst, payload),
        DCCP => dccp(src, dst, payload),
        ICMP => icmp(random.pick(&[0, 3, 8, 11]), random.pick(&[0, 1, 4]), payload),
        ICMPV6 => icmp(random.pick(&[1, 2, 128, 133, 135, 136]), 0, payload),
        _ => payload.to_vec(),
    }
}

/// The frame ends elsewhere.
fn change_end(frame: &mut Vec<u8>, random: &mut Random) {
    match random.below(3) {
        0 => frame.resize(frame.len() + random.pick(&[1, 4, 8, 60]), 0xee),
        1 => frame.truncate(14 + random.below(frame.len() - 13)),
        _ => {
            // Right behind a header, or a byte before its end.
            let found = headers(frame);
            let header = random.pick(&found);
            let end = (header.start + header.len).saturating_sub(random.below(2));
            frame.truncate(end.max(14));
        }
    }
}

/// Another byte, mostly among the headers.
fn change_byte(frame: &mut [u8], random: &mut Random) {
    let at = random.below(frame.len().min(96));
    frame[at] = match random.below(3) {
        0 => random.number() as u8,
        1 => frame[at].wrapping_add(1),
        _ => frame[at] ^ 1 << random.below(8),
    };
}

/// Makes the lengths of the packet's headers right, as far as they can be.
fn repair(frame: &mut [u8]) {
    for header in headers(frame) {
        let rest = (frame.len() - header.start).min(usize::from(u16::MAX)) as u16;
        match header.kind {
            Kind::Ipv4 => put(frame, header.start + 2, rest.to_be_bytes()),
            Kind::Ipv6 => put(frame, header.start + 4, rest.saturating_sub(40).to_be_bytes()),
            Kind::Transport(UDP) => put(frame, header.start + 4, rest.to_be_bytes()),
            _ => {}
        }
    }
}

fn set_addresses(packet: &mut [u8], random: &mut Random, is_v6: bool) {
    if is_v6 {
        put(packet, 8, address_v6(random));
        put(packet, 24, address_v6(random));
    } else {
        put(packet, 12, random.pick(&ADDRESSES_V4));
        put(packet, 16, random.pick(&ADDRESSES_V4));
    }
}

fn address_v6(random: &mut Random) -> [u8; 16] {
    let (first, last) = random.pick(&ADDRESSES_V6);
    let mut address = [0; 16];
    let filling = if last == 0xffff { 0xff } else { 0 };
    address[8..14].fill(filling);
    for (bytes, group) in address.chunks_mut(2).zip(first) {
        bytes.copy_from_slice(&group.to_be_bytes());
    }
    address[14..].copy_from_slice(&last.to_be_bytes());
    address
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is made from nothing are frames as they are sent.
    #[test]
    fn stacks_have_right_lengths() {
        let mut random = Random::new(1);
        for _ in 0..2_000 {
            let frame = stack(&PORTS, &mut random);
            let mut repaired = frame.clone();
            repaired.truncate(end_of_packet(&frame));
            let before = repaired.clone();
            repair(&mut repaired);
            let is_fragment = headers(&frame).iter().any(|it| it.kind == Kind::Fragment);
            assert!(before == repaired || is_fragment, "{frame:02x?}");
        }
    }

    /// Where the padding begins.
    fn end_of_packet(frame: &[u8]) -> usize {
        let number = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        headers(frame)
            .iter()
            .find_map(|header| match header.kind {
                Kind::Ipv4 => Some(header.start + number(header.start + 2)),
                Kind::Ipv6 => Some(header.start + 40 + number(header.start + 4)),
                _ => None,
            })
            .expect("an IP packet")
    }

    /// Mutations end at what the caller asks for, and never make the same of everything.
    #[test]
    fn mutations_make_frames_of_many_kinds() {
        let mut random = Random::new(2);
        let mut shapes = BTreeSet::new();
        let mut frame = Vec::new();
        for round in 0..20_000 {
            if round % 20 == 0 {
                frame.clear();
            }
            mutate(&mut frame, 300, &mut random);
            assert!((14..=300).contains(&frame.len()));
            let kinds: Vec<String> =
                headers(&frame).iter().map(|header| format!("{:?}", header.kind)).collect();
            shapes.insert(kinds.join(" "));
        }
        assert!(shapes.len() > 500, "{}", shapes.len());
    }
}
