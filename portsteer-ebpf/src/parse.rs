//! Frame to headers, or to the reason why there are none.
//!
//! [`parse_plain`] is a fast path for what nearly every packet is: untagged Ethernet, IPv4 without
//! options or IPv6 without extension headers, not a fragment, TCP or UDP, in one buffer. The fast
//! path never decides that a packet is at fault; whatever it does not like takes the slow path,
//! which names the reason.
//!
//! Every length is checked twice: against the frame, and against what the header around it
//! claims. A port is only ever read from a transport header that lies within its IP packet.
//! Checksums are not verified: a packet whose checksum is wrong is discarded by its receiver.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use portsteer_common::{
    PortProtocol, Reason,
    image::PortKey,
    node::row,
    wire::{
        EthernetHeader, ExtensionHeader, MAX_EXTENSIONS, MAX_VLAN_TAGS, VlanTag, ether_type, icmp,
        protocol,
    },
};

use crate::{
    bound::forget,
    frame::{Buffer, Frame, PlainIpv4, PlainIpv6, TransportStart},
};

/// What the rules judge a packet by.
///
/// A structure that is filled in place, not a value that is handed up: the compiler would pack a
/// small return value into one register, and the verifier refuses what it makes of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// What there is besides the protocol.
    pub kind: Kind,
    /// The IP protocol number of the transport.
    pub protocol: u8,
    /// For [`Kind::Icmp`] and [`Kind::Icmpv6`]: type and code.
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// For [`Kind::Ports`]: protocol and destination port.
    pub key: PortKey,
    /// For [`Kind::Ports`]: the source port.
    pub src_port: u16,
    /// The outermost tag's VLAN id; 0 for untagged packets.
    pub vlan: u16,
    /// Where the headers stand.
    pub place: Place,
}

/// Where in a frame the IP header stands, and the ports: offsets in bytes, as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// That of a packet that took the fast path: untagged, with no options and no extension
    /// headers.
    pub const PLAIN: Self = Self(0);

    #[inline(always)]
    const fn new(l3_off: usize) -> Self {
        Self(l3_off as u32)
    }

    #[inline(always)]
    const fn with_ports(self, l4_off: usize) -> Self {
        Self(self.0 | (l4_off as u32) << 16)
    }

    /// Whether this is [`Place::PLAIN`].
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.0 == 0
    }

    /// Where the IP header stands.
    #[inline(always)]
    #[must_use]
    pub const fn l3_off(self) -> usize {
        if self.is_plain() { EthernetHeader::LEN } else { self.0 as usize & 0xffff }
    }

    /// Where the ports stand; 0 in a fragment, and where there are none. Unknown in
    /// [`Place::PLAIN`].
    #[inline(always)]
    #[must_use]
    pub const fn ports_off(self) -> usize {
        (self.0 >> 16) as usize
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// From [`Place::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// What kind of transport header a packet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole packet or a first fragment of a protocol that has ports.
    Ports,
    /// A whole ICMP packet over IPv4, or its first fragment.
    Icmp,
    /// A whole ICMPv6 packet over IPv6, or its first fragment.
    Icmpv6,
    /// Any other protocol.
    Portless,
    /// A non-first fragment, which has no transport header.
    Later,
}

impl Headers {
    /// The headers of a packet of which nothing is known yet.
    #[inline(always)]
    #[must_use]
    pub const fn new() -> Self {
        let key = PortKey::new(PortProtocol::Tcp, [0; 2]);
        Self {
            kind: Kind::Portless,
            protocol: 0,
            icmp_type: 0,
            icmp_code: 0,
            key,
            src_port: 0,
            vlan: 0,
            place: Place::PLAIN,
        }
    }
}

impl Headers {
    /// What the rules tell the packet apart by besides its addresses: row and column, see
    /// [`row`](portsteer_common::node::row).
    #[inline(always)]
    #[must_use]
    pub const fn row_and_column(&self) -> (u32, u32) {
        match self.kind {
            Kind::Ports => (self.key.row(), self.key.dst_port() as u32),
            Kind::Icmp => (row::ICMP, self.icmp_type_and_code()),
            Kind::Icmpv6 => (row::ICMPV6, self.icmp_type_and_code()),
            Kind::Portless | Kind::Later => (row::OTHER, self.other_column()),
        }
    }

    /// The column in [`row::OTHER`] of the protocol.
    #[inline(always)]
    #[must_use]
    pub const fn other_column(&self) -> u32 {
        let later = if matches!(self.kind, Kind::Later) { row::LATER } else { 0 };
        self.protocol as u32 | later
    }

    #[inline(always)]
    const fn icmp_type_and_code(&self) -> u32 {
        (self.icmp_type as u32) << 8 | self.icmp_code as u32
    }

    /// Why `default = "drop"` spares the packet, if it does.
    #[inline(always)]
    #[must_use]
    pub const fn spared(&self) -> Option<Reason> {
        match (self.kind, self.icmp_type, self.icmp_code) {
            (Kind::Icmp, icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED)
            | (Kind::Icmpv6, icmp::V6_PACKET_TOO_BIG, _) => Some(Reason::PathMtu),
            (Kind::Icmpv6, icmp::V6_DISCOVERY_FIRST..=icmp::V6_DISCOVERY_LAST, _) => {
                Some(Reason::NeighborDiscovery)
            }
            _ => None,
        }
    }
}

impl Default for Headers {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a packet stands in the datagram that it is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fragment {
    /// It is the whole datagram.
    Whole,
    /// It is the datagram's start, and more follow.
    First,
    /// It starts somewhere inside.
    Later,
}

/// The longest IP packet in bytes (RFC 791, RFC 8200 section 4.5).
const MAX_PACKET: u32 = 65_535;
const ETHERNET_LEN: u32 = EthernetHeader::LEN as u32;
const IPV4_LEN: u32 = Ipv4Hdr::LEN as u32;
const IPV6_LEN: u32 = Ipv6Hdr::LEN as u32;

/// Parses a frame that starts with an Ethernet header.
///
/// The program calls the two halves itself, so that the fast path's one number stays in a
/// register.
///
/// # Errors
///
/// The reason why the rules cannot judge the frame, [`Reason::NotIp`] among them.
#[inline(always)]
pub fn parse<B: Buffer>(frame: &mut Frame<B>) -> Result<Headers, Reason> {
    let mut headers = Headers::new();
    match parse_plain(frame) {
        Some(key) => {
            let protocol = key.protocol().number();
            let src_port = plain_src_port(frame).unwrap_or(0);
            headers = Headers { kind: Kind::Ports, protocol, key, src_port, ..headers };
        }
        None => parse_any(frame, &mut headers)?,
    }
    Ok(headers)
}

/// The source port of a packet that took the fast path.
#[inline(always)]
pub fn plain_src_port<B: Buffer>(frame: &Frame<B>) -> Option<u16> {
    let plain = frame.get::<PlainIpv4>(0)?;
    let src_port_be = if plain.kind[2] >> 4 == 4 {
        plain.transport.src_port_be
    } else {
        frame.get::<PlainIpv6>(0)?.transport.src_port_be
    };
    Some(u16::from_be_bytes(src_port_be))
}

/// The fast path. `None` says nothing about the frame but that it has to take the slow one.
#[inline(always)]
pub fn parse_plain<B: Buffer>(frame: &Frame<B>) -> Option<PortKey> {
    // The EtherType and the byte after it, taken as one number: version 4 with a header of five
    // words, or version 6.
    const V4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
    const V4_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    const V6: u32 = u32::from_ne_bytes([0x86, 0xdd, 0x60, 0]);
    const V6_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xf0, 0]);
    // Offset and more fragments; the bits "reserved" and "don't fragment" are free.
    const FRAGMENT_MASK: u16 = 0x3fff;

    let plain = frame.get::<PlainIpv4>(0)?;
    let kind = u32::from_ne_bytes(plain.kind);
    if kind & V4_MASK == V4 {
        let total_len = u32::from(u16::from_be_bytes(plain.total_len_be));
        let fragment = u16::from_ne_bytes(plain.fragment_be) & FRAGMENT_MASK.to_be();
        let beyond = u64::from(ETHERNET_LEN + total_len) > frame.first_len();
        if fragment != 0 || beyond {
            return None;
        }
        return parse_plain_transport(frame, plain.protocol, &plain.transport, IPV4_LEN, total_len);
    }
    if kind & V6_MASK == V6 {
        let plain = frame.get::<PlainIpv6>(0)?;
        let total_len = IPV6_LEN + u32::from(u16::from_be_bytes(plain.payload_len_be));
        if u64::from(ETHERNET_LEN + total_len) > frame.first_len() {
            return None;
        }
        return parse_plain_transport(
            frame,
            plain.next_header,
            &plain.transport,
            IPV6_LEN,
            total_len,
        );
    }
    None
}

/// The end of the fast path: TCP and UDP with lengths that fit. `header_len` and `total_len` are
/// those of the IP packet.
#[inline(always)]
fn parse_plain_transport<B: Buffer>(
    frame: &Frame<B>,
    protocol: u8,
    start: &TransportStart,
    header_len: u32,
    total_len: u32,
) -> Option<PortKey> {
    if protocol == PortProtocol::Tcp.number() {
        let l4_off = (ETHERNET_LEN + header_len) as usize;
        let len = tcp_header_len(*frame.get::<u8>(l4_off + TCP_DATA_OFFSET)?);
        if len < PortProtocol::Tcp.header_len() || header_len + len > total_len {
            return None;
        }
        return Some(PortKey::new(PortProtocol::Tcp, start.dst_port_be));
    }
    if protocol == PortProtocol::Udp.number() {
        let len = u32::from(u16::from_be_bytes(start.third_be));
        if len < PortProtocol::Udp.header_len() || header_len + len > total_len {
            return None;
        }
        return Some(PortKey::new(PortProtocol::Udp, start.dst_port_be));
    }
    None
}

/// The slow path, which takes any frame and finds the reason where there is one.
///
/// # Errors
///
/// As [`parse`].
#[inline(always)]
pub fn parse_any<B: Buffer>(frame: &mut Frame<B>, headers: &mut Headers) -> Result<(), Reason> {
    frame.measure();
    parse_ethernet(frame, headers)
}

#[inline(always)]
fn parse_ethernet<B: Buffer>(frame: &Frame<B>, headers: &mut Headers) -> Result<(), Reason> {
    let mut kind = frame.header::<EthernetHeader>(0)?.ether_type();
    let mut l3_off = EthernetHeader::LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(kind) {
            break;
        }
        let tag = frame.header::<VlanTag>(l3_off)?;
        if l3_off == EthernetHeader::LEN {
            headers.vlan = tag.vlan();
        }
        kind = tag.ether_type();
        l3_off += VlanTag::LEN;
    }
    let l3_off = forget(l3_off as u32) as usize;
    match kind {
        ether_type::IPV4 => parse_ipv4(frame, l3_off, headers),
        ether_type::IPV6 => parse_ipv6(frame, l3_off, headers),
        kind if is_vlan(kind) => Err(Reason::VlanDepth),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn is_vlan(kind: u16) -> bool {
    kind == ether_type::VLAN || kind == ether_type::SERVICE_VLAN
}

/// RFC 791. Options are skipped unread.
#[inline(always)]
fn parse_ipv4<B: Buffer>(
    frame: &Frame<B>,
    l3_off: usize,
    headers: &mut Headers,
) -> Result<(), Reason> {
    headers.place = Place::new(l3_off);
    let ip = frame.header::<Ipv4Hdr>(l3_off)?;
    if ip.vihl >> 4 != 4 {
        return Err(Reason::IpVersion);
    }
    let header_len = u32::from(ip.vihl & 0xf) * 4;
    let total_len = u32::from(u16::from_be_bytes(ip.tot_len));
    if header_len < IPV4_LEN || header_len > total_len {
        return Err(Reason::IpHeaderLength);
    }
    if u64::from(l3_off as u32 + total_len) > frame.len() {
        return Err(Reason::Truncated);
    }
    let payload = total_len - header_len;
    let field = u16::from_be_bytes(ip.frags);
    let (offset, more) = (u32::from(field & 0x1fff) * 8, field & 0x2000 != 0);
    let fragment = check_fragment(ip.proto, offset, more, header_len, payload)?;
    if fragment == Fragment::Later {
        headers.kind = Kind::Later;
        headers.protocol = ip.proto;
        return Ok(());
    }
    let l4_off = l3_off + header_len as usize;
    headers.protocol = ip.proto;
    if ip.proto == protocol::ICMP {
        headers.kind = Kind::Icmp;
        return parse_icmp(frame, l4_off, payload, ICMP_HEADER_LEN, fragment, headers);
    }
    parse_transport(frame, l4_off, payload, fragment, headers)
}

/// RFC 8200, with at most [`MAX_EXTENSIONS`] extension headers.
#[inline(always)]
fn parse_ipv6<B: Buffer>(
    frame: &Frame<B>,
    l3_off: usize,
    headers: &mut Headers,
) -> Result<(), Reason> {
    headers.place = Place::new(l3_off);
    let ip = frame.header::<Ipv6Hdr>(l3_off)?;
    if ip.vcf[0] >> 4 != 6 {
        return Err(Reason::IpVersion);
    }
    let mut payload = u32::from(u16::from_be_bytes(ip.payload_len));
    let mut kind = ip.next_hdr;
    if payload == 0 && kind == protocol::HOP_BY_HOP {
        return Err(Reason::Jumbogram);
    }
    if u64::from(l3_off as u32 + IPV6_LEN + payload) > frame.len() {
        return Err(Reason::Truncated);
    }

    let mut l4_off = l3_off + Ipv6Hdr::LEN;
    let mut extensions_len = 0;
    let mut fragment = None;
    for index in 0..MAX_EXTENSIONS {
        if !ExtensionHeader::is_extension(kind) {
            break;
        }
        let misplaced = kind == protocol::HOP_BY_HOP && index > 0
            || kind == protocol::FRAGMENT && fragment.is_some();
        if misplaced {
            return Err(Reason::ExtensionOrder);
        }
        let too_short = match fragment {
            Some(Fragment::First) => Reason::FragmentTiny,
            _ => Reason::ExtensionLength,
        };
        if payload < ExtensionHeader::MIN_LEN {
            return Err(too_short);
        }
        let extension = frame.header::<ExtensionHeader>(l4_off)?;
        let len = extension.len_as(kind);
        if len > payload {
            return Err(too_short);
        }
        if kind == protocol::AUTHENTICATION && extension.length == 0 {
            return Err(Reason::ExtensionLength);
        }
        payload -= len;
        if kind == protocol::FRAGMENT {
            let (offset, more) = extension.fragment();
            let next = extension.next_header;
            let place = check_fragment(next, offset, more, extensions_len, payload)?;
            if place == Fragment::Later {
                headers.kind = Kind::Later;
                headers.protocol = next;
                return if ExtensionHeader::is_extension(next) {
                    Err(Reason::FragmentChain)
                } else {
                    Ok(())
                };
            }
            fragment = Some(place);
        }
        extensions_len = forget(extensions_len + len);
        l4_off = forget(l4_off as u32 + len) as usize;
        payload = forget(payload);
        kind = extension.next_header;
    }
    if ExtensionHeader::is_extension(kind) {
        return Err(Reason::ExtensionDepth);
    }

    let fragment = fragment.unwrap_or(Fragment::Whole);
    headers.protocol = kind;
    if kind == protocol::ICMPV6 {
        headers.kind = Kind::Icmpv6;
        return parse_icmp(frame, l4_off, payload, ICMPV6_HEADER_LEN, fragment, headers);
    }
    parse_transport(frame, l4_off, payload, fragment, headers)
}

/// Where the packet stands in its datagram, from its `offset` and `payload` in bytes.
///
/// `header_len` are the bytes that reassembly puts before the payload and that count towards the
/// datagram's length.
#[inline(always)]
fn check_fragment(
    protocol: u8,
    offset: u32,
    more: bool,
    header_len: u32,
    payload: u32,
) -> Result<Fragment, Reason> {
    if offset == 0 && !more {
        return Ok(Fragment::Whole);
    }
    let impossible = payload == 0
        || more && !payload.is_multiple_of(8)
        || header_len + offset + payload > MAX_PACKET;
    if impossible {
        return Err(Reason::FragmentLength);
    }
    if offset == 0 {
        return Ok(Fragment::First);
    }
    match PortProtocol::from_number(protocol) {
        Some(protocol) if offset < protocol.header_len() => Err(Reason::FragmentOverlap),
        _ => Ok(Fragment::Later),
    }
}

/// The least length of an ICMP header (RFC 792) and of an ICMPv6 header (RFC 4443 section 2.1).
const ICMP_HEADER_LEN: u32 = 8;
const ICMPV6_HEADER_LEN: u32 = 4;

/// Type and code of an ICMP or ICMPv6 header.
#[inline(always)]
fn parse_icmp<B: Buffer>(
    frame: &Frame<B>,
    l4_off: usize,
    payload: u32,
    header_len: u32,
    fragment: Fragment,
    headers: &mut Headers,
) -> Result<(), Reason> {
    if payload < header_len {
        return Err(too_short(fragment));
    }
    headers.icmp_type = byte(frame, l4_off)?;
    headers.icmp_code = byte(frame, l4_off + 1)?;
    Ok(())
}

/// Offsets of length fields in transport headers, in bytes.
const TCP_DATA_OFFSET: usize = 12;
const DCCP_DATA_OFFSET: usize = 4;
const DCCP_TYPE_AND_X: usize = 8;

/// RFC 9293 section 3.1: the header's length in bytes, 0 to 60, from the byte with the data offset.
#[inline(always)]
fn tcp_header_len(byte: u8) -> u32 {
    u32::from(byte >> 4) * 4
}

/// A transport header, or a protocol without ports.
#[inline(always)]
fn parse_transport<B: Buffer>(
    frame: &Frame<B>,
    l4_off: usize,
    payload: u32,
    fragment: Fragment,
    headers: &mut Headers,
) -> Result<(), Reason> {
    let Some(protocol) = PortProtocol::from_number(headers.protocol) else {
        return Ok(());
    };
    if payload < protocol.header_len() {
        return Err(too_short(fragment));
    }
    let start = frame.header::<TransportStart>(l4_off)?;
    match protocol {
        PortProtocol::Tcp => {
            let header_len = tcp_header_len(byte(frame, l4_off + TCP_DATA_OFFSET)?);
            check_header_len(header_len, protocol.header_len(), payload, fragment)?;
        }
        PortProtocol::Udp => {
            let len = u32::from(u16::from_be_bytes(start.third_be));
            check_covered_len(len, payload, fragment)?;
        }
        PortProtocol::UdpLite => {
            // RFC 3828 section 3.1: zero covers the whole packet.
            let coverage = u32::from(u16::from_be_bytes(start.third_be));
            if coverage != 0 {
                check_covered_len(coverage, payload, fragment)?;
            }
        }
        PortProtocol::Sctp => {}
        PortProtocol::Dccp => {
            // RFC 4340 section 5.1: extended sequence numbers make the generic header longer.
            let extended = byte(frame, l4_off + DCCP_TYPE_AND_X)? & 1 != 0;
            let least = if extended { 16 } else { 12 };
            let header_len = u32::from(byte(frame, l4_off + DCCP_DATA_OFFSET)?) * 4;
            check_header_len(header_len, least, payload, fragment)?;
        }
    }
    if fragment == Fragment::Whole {
        headers.place = headers.place.with_ports(l4_off);
    }
    headers.kind = Kind::Ports;
    headers.key = PortKey::new(protocol, start.dst_port_be);
    headers.src_port = u16::from_be_bytes(start.src_port_be);
    Ok(())
}

#[inline(always)]
fn byte<B: Buffer>(frame: &Frame<B>, offset: usize) -> Result<u8, Reason> {
    frame.header::<u8>(offset).copied()
}

/// A header length in bytes: at least `least`, and within the packet.
#[inline(always)]
fn check_header_len(
    header_len: u32,
    least: u32,
    payload: u32,
    fragment: Fragment,
) -> Result<(), Reason> {
    if header_len < least {
        return Err(Reason::TransportLength);
    }
    if header_len > payload {
        return Err(match fragment {
            Fragment::First => Reason::FragmentTiny,
            _ => Reason::TransportLength,
        });
    }
    Ok(())
}

/// A UDP length or UDP-Lite coverage in bytes: at least the header, and at most the payload,
/// which may be longer (RFC 9868). In a first fragment it speaks of the whole datagram.
#[inline(always)]
fn check_covered_len(len: u32, payload: u32, fragment: Fragment) -> Result<(), Reason> {
    let too_long = fragment == Fragment::Whole && len > payload;
    if len < PortProtocol::Udp.header_len() || too_long {
        return Err(Reason::TransportLength);
    }
    Ok(())
}

/// A payload too short for its header.
#[inline(always)]
fn too_short(fragment: Fragment) -> Reason {
    match fragment {
        Fragment::First => Reason::FragmentTiny,
        _ => Reason::TransportTruncated,
    }
}
