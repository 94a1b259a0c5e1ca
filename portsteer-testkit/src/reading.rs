//! What a frame says, read from the specification: the README, the reasons' own words and the RFCs.
//!
//! The program's parser is compared with this reading, which shares no code with it and is written without
//! a look at it: whoever misreads an RFC has to do so twice. Hence it is naive: a function for each header,
//! with the section that each check is from. Fields are decoded by `etherparse`, except where that refuses
//! what the specification lets pass.
//!
//! Where a frame has several faults, the one counts that is met first on the way in: of a header, whether it
//! may stand where it does, then whether it is there, then what its fields say; then what is behind it.

use std::net::IpAddr;

use etherparse::{
    Ethernet2Slice, IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, SingleVlanSlice, TcpHeaderSlice, UdpHeaderSlice,
    err::{ipv6, tcp},
};
use portsteer::{
    oracle::{self, Packet},
    policy::Policy,
};
use portsteer_common::Reason;

use crate::{
    outcome::Outcome,
    packet::{
        AH, DCCP, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, ROUTING,
        SCTP, SERVICE_VLAN, TCP, UDP, UDPLITE, VLAN,
    },
};

/// README: "Up to two VLAN tags [...] are looked through."
const MOST_TAGS: usize = 2;
/// README: "up to six IPv6 extension headers are looked through."
const MOST_EXTENSIONS: usize = 6;
/// RFC 791 section 3.1, "Total Length", and RFC 8200 section 3, "Payload Length": 16 bits.
const LONGEST: usize = 65_535;

/// What a policy does with a frame that comes in by an interface, and why.
#[must_use]
pub fn expect(policy: &Policy, frame: &[u8], interface: &str) -> Outcome {
    match read(frame) {
        Ok(packet) => {
            let packet = Packet { interface: Some(interface), ..packet };
            Outcome::decided(policy, oracle::judge(policy, &packet))
        }
        Err(reason) => Outcome::not_judged(policy, reason),
    }
}

/// What the rules see of a frame.
///
/// # Errors
///
/// Why the rules cannot judge it.
pub fn read(frame: &[u8]) -> Result<Packet<'static>, Reason> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).map_err(|_| Reason::Truncated)?;
    let Tagged { vlan, ether_type, payload } =
        read_tags(ethernet.ether_type().0, ethernet.payload_slice())?;
    let packet = match ether_type {
        IPV4 => read_ipv4(payload)?,
        IPV6 => read_ipv6(payload)?,
        _ => return Err(Reason::NotIp),
    };
    Ok(Packet { vlan, ..packet })
}

struct Tagged<'a> {
    vlan: u16,
    ether_type: u16,
    payload: &'a [u8],
}

/// IEEE 802.1Q clause 9: customer and service tags. `vlan` is the outermost one's id (README).
fn read_tags(ether_type: u16, payload: &[u8]) -> Result<Tagged<'_>, Reason> {
    let mut read = Tagged { vlan: 0, ether_type, payload };
    let mut count = 0;
    while [VLAN, SERVICE_VLAN].contains(&read.ether_type) {
        if count == MOST_TAGS {
            return Err(Reason::VlanDepth);
        }
        let tag = SingleVlanSlice::from_slice(read.payload).map_err(|_| Reason::Truncated)?;
        if count == 0 {
            read.vlan = tag.vlan_identifier().value();
        }
        read.ether_type = tag.ether_type().0;
        read.payload = tag.payload_slice();
        count += 1;
    }
    Ok(read)
}

/// Where a packet's payload stands in the one that was sent.
#[derive(Clone, Copy)]
struct Fragment {
    /// In bytes.
    offset: usize,
    more: bool,
}

impl Fragment {
    const WHOLE: Self = Self { offset: 0, more: false };

    fn is_whole(self) -> bool {
        self.offset == 0 && !self.more
    }

    fn is_first(self) -> bool {
        self.offset == 0 && self.more
    }

    fn is_later(self) -> bool {
        self.offset > 0
    }

    /// Checks a fragment's length. `before` is how much of the reassembled packet's own 16-bit length
    /// goes to what stands before the fragments.
    fn check_len(self, before: usize, len: usize) -> Result<(), Reason> {
        if self.is_whole() {
            return Ok(());
        }
        // RFC 791 section 3.2 and RFC 8200 section 4.5: all but the last are multiples of 8 bytes.
        let is_uneven = self.more && !len.is_multiple_of(8);
        // RFC 791 section 3.2, "Total Data Length"; RFC 8200 section 4.5: "If the length and offset of
        // a fragment are such that the Payload Length of the packet reassembled from that fragment
        // would exceed 65,535 octets".
        let is_beyond = before + self.offset + len > LONGEST;
        if len == 0 || is_uneven || is_beyond {
            return Err(Reason::FragmentLength);
        }
        Ok(())
    }
}

/// RFC 791 section 3.1.
fn read_ipv4(bytes: &[u8]) -> Result<Packet<'static>, Reason> {
    // These three are read by hand: `etherparse` asks first whether the options are there.
    let Some(fixed) = bytes.get(..20) else { return Err(Reason::Truncated) };
    let (version, header_len) = (fixed[0] >> 4, usize::from(fixed[0] & 0xf) * 4);
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if version != 4 {
        return Err(Reason::IpVersion);
    }
    // "Internet Header Length": "the minimum value for a correct header is 5".
    if header_len < 20 || header_len > total_len {
        return Err(Reason::IpHeaderLength);
    }
    let Some(packet) = bytes.get(..total_len) else { return Err(Reason::Truncated) };
    let header = Ipv4HeaderSlice::from_slice(packet).expect("it was checked");
    let payload = &packet[header_len..];

    let fragment = Fragment {
        offset: usize::from(header.fragments_offset().byte_offset()),
        more: header.more_fragments(),
    };
    fragment.check_len(header_len, payload.len())?;
    Ok(Packet {
        src: Some(IpAddr::V4(header.source_addr())),
        dst: Some(IpAddr::V4(header.destination_addr())),
        ..read_transport(Version::V4, header.protocol().0, fragment, payload)?
    })
}

/// RFC 8200 section 3.
fn read_ipv6(bytes: &[u8]) -> Result<Packet<'static>, Reason> {
    let header = match Ipv6HeaderSlice::from_slice(bytes) {
        Ok(header) => header,
        Err(ipv6::HeaderSliceError::Len(_)) => return Err(Reason::Truncated),
        Err(ipv6::HeaderSliceError::Content(_)) => return Err(Reason::IpVersion),
    };
    // RFC 2675 section 3: the payload length of a jumbogram is zero, and its true length is an option
    // in a hop-by-hop options header.
    if header.payload_length() == 0 && header.next_header().0 == HOP_BY_HOP {
        return Err(Reason::Jumbogram);
    }
    let Some(payload) = bytes[40..].get(..usize::from(header.payload_length())) else {
        return Err(Reason::Truncated);
    };
    let Upper { protocol, fragment, payload } = read_extensions(header.next_header().0, payload)?;
    Ok(Packet {
        src: Some(IpAddr::V6(header.source_addr())),
        dst: Some(IpAddr::V6(header.destination_addr())),
        ..read_transport(Version::V6, protocol, fragment, payload)?
    })
}

/// What is behind the extension headers.
struct Upper<'a> {
    protocol: u8,
    fragment: Fragment,
    payload: &'a [u8],
}

/// RFC 8200 section 4: "Extension headers must be processed strictly in the order they appear".
fn read_extensions(next_header: u8, payload: &[u8]) -> Result<Upper<'_>, Reason> {
    let mut protocol = next_header;
    let mut rest = payload;
    let mut fragment = None;
    let mut count = 0;
    while [HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS].contains(&protocol) {
        let part = fragment.unwrap_or(Fragment::WHOLE);
        // Section 4.5: what the next header of a later fragment names, the first fragment has. "Only the
        // value from the Offset zero fragment packet is used for reassembly."
        if part.is_later() {
            return Err(Reason::FragmentChain);
        }
        // README: "a seventh header [is] `unsupported`", whichever it is.
        if count == MOST_EXTENSIONS {
            return Err(Reason::ExtensionDepth);
        }
        // Section 4.1: the hop-by-hop options header "is restricted to appear immediately after an
        // IPv6 header only", and each extension header "should occur at most once, except for the
        // Destination Options header".
        let is_misplaced = protocol == HOP_BY_HOP && count > 0;
        let is_second = protocol == FRAGMENT && fragment.is_some();
        if is_misplaced || is_second {
            return Err(Reason::ExtensionOrder);
        }
        let extension = match protocol {
            FRAGMENT => read_fragment(rest)?,
            AH => read_authentication(rest, part)?,
            _ => read_options(rest, part)?,
        };
        let before = payload.len() - rest.len();
        rest = &rest[extension.len..];
        if let Some(found) = extension.fragment {
            found.check_len(before, rest.len())?;
            fragment = Some(found);
        }
        protocol = extension.next_header;
        count += 1;
    }
    Ok(Upper { protocol, fragment: fragment.unwrap_or(Fragment::WHOLE), payload: rest })
}

struct Extension {
    next_header: u8,
    len: usize,
    fragment: Option<Fragment>,
}

/// RFC 8200 section 4.5.
fn read_fragment(bytes: &[u8]) -> Result<Extension, Reason> {
    let header = Ipv6FragmentHeaderSlice::from_slice(bytes).map_err(|_| Reason::ExtensionLength)?;
    let fragment = Fragment {
        offset: usize::from(header.fragment_offset().byte_offset()),
        more: header.more_fragments(),
    };
    Ok(Extension { next_header: header.next_header().0, len: 8, fragment: Some(fragment) })
}

/// RFC 4302 section 2.
fn read_authentication(bytes: &[u8], part: Fragment) -> Result<Extension, Reason> {
    // RFC 8200 section 4: an extension header is "an integer multiple of 8 octets long".
    let Some(start) = bytes.get(..8) else { return Err(extension_is_cut(part)) };
    // Section 2.2, "Payload Length": in 4 bytes, less 2. The fixed part alone, 12 bytes, makes that 1.
    if start[1] < 1 {
        return Err(Reason::ExtensionLength);
    }
    let header = IpAuthHeaderSlice::from_slice(bytes).map_err(|_| extension_is_cut(part))?;
    let (next_header, len) = (header.next_header().0, header.slice().len());
    Ok(Extension { next_header, len, fragment: None })
}

/// RFC 8200 sections 4.3, 4.4 and 4.6.
fn read_options(bytes: &[u8], part: Fragment) -> Result<Extension, Reason> {
    let header = Ipv6RawExtHeaderSlice::from_slice(bytes).map_err(|_| extension_is_cut(part))?;
    let (next_header, len) = (header.next_header().0, header.slice().len());
    Ok(Extension { next_header, len, fragment: None })
}

/// RFC 7112 section 5: a first fragment must hold all headers up to the transport's.
fn extension_is_cut(part: Fragment) -> Reason {
    if part.is_first() { Reason::FragmentTiny } else { Reason::ExtensionLength }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

/// How long a protocol's header is at least. Of protocols that are not known here, nothing is asked; nor
/// of ICMP and ICMPv6 in the other IP version.
fn least_len(version: Version, protocol: u8) -> usize {
    match (protocol, version) {
        (TCP, _) => 20,
        (UDP | UDPLITE, _) => 8,
        (SCTP | DCCP, _) => 12,
        (ICMP, Version::V4) => 8,
        (ICMPV6, Version::V6) => 4,
        _ => 0,
    }
}

fn read_transport(
    version: Version,
    protocol: u8,
    fragment: Fragment,
    bytes: &[u8],
) -> Result<Packet<'static>, Reason> {
    let least = least_len(version, protocol);
    if fragment.is_later() {
        // RFC 1858 section 4, and RFC 3128 for what lies behind the first 8 bytes.
        if fragment.offset < least {
            return Err(Reason::FragmentOverlap);
        }
        return Ok(Packet { later_fragment: true, ..Packet::new(protocol) });
    }
    if bytes.len() < least {
        // RFC 1858 section 3 and RFC 7112 section 5.
        let first = fragment.is_first();
        return Err(if first { Reason::FragmentTiny } else { Reason::TransportTruncated });
    }
    match (protocol, version) {
        (TCP, _) => read_tcp(bytes, fragment),
        (UDP, _) => read_udp(bytes, fragment),
        (UDPLITE, _) => read_udplite(bytes, fragment),
        (SCTP, _) => Ok(with_ports(SCTP, bytes)),
        (DCCP, _) => read_dccp(bytes, fragment),
        (ICMP, Version::V4) => {
            // RFC 792.
            Ok(Packet { icmp: Some((bytes[0], bytes[1])), ..Packet::new(ICMP) })
        }
        (ICMPV6, Version::V6) => {
            // RFC 4443 section 2.1.
            Ok(Packet { icmpv6: Some((bytes[0], bytes[1])), ..Packet::new(ICMPV6) })
        }
        _ => Ok(Packet::new(protocol)),
    }
}

/// All protocols with ports begin with them: RFC 768, RFC 3828 section 3.1, RFC 4340 section 5.1, RFC
/// 9260 section 3.1, RFC 9293 section 3.1.
fn with_ports(protocol: u8, bytes: &[u8]) -> Packet<'static> {
    Packet {
        src_port: Some(u16::from_be_bytes([bytes[0], bytes[1]])),
        dst_port: Some(u16::from_be_bytes([bytes[2], bytes[3]])),
        ..Packet::new(protocol)
    }
}

/// RFC 9293 section 3.1, "Data Offset": in 4 bytes, the header's options included.
fn read_tcp(bytes: &[u8], fragment: Fragment) -> Result<Packet<'static>, Reason> {
    match TcpHeaderSlice::from_slice(bytes) {
        Ok(_) => Ok(with_ports(TCP, bytes)),
        Err(tcp::HeaderSliceError::Content(_)) => Err(Reason::TransportLength),
        Err(tcp::HeaderSliceError::Len(_)) => Err(header_is_cut(fragment)),
    }
}

/// A header that says that it ends beyond the payload.
fn header_is_cut(fragment: Fragment) -> Reason {
    if fragment.is_first() { Reason::FragmentTiny } else { Reason::TransportLength }
}

/// RFC 768, "Length": header and data, "the minimum value of the length is eight". Of a first fragment it
/// speaks of the whole datagram.
fn read_udp(bytes: &[u8], fragment: Fragment) -> Result<Packet<'static>, Reason> {
    let header = UdpHeaderSlice::from_slice(bytes).expect("it was checked");
    let len = usize::from(header.length());
    if len < 8 || !fragment.is_first() && len > bytes.len() {
        return Err(Reason::TransportLength);
    }
    Ok(with_ports(UDP, bytes))
}

/// RFC 3828 section 3.1, "Checksum Coverage": zero for all, else 8 or more, and no more than there is.
/// Of a first fragment it speaks of the whole datagram.
fn read_udplite(bytes: &[u8], fragment: Fragment) -> Result<Packet<'static>, Reason> {
    let coverage = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    if (1..8).contains(&coverage) || !fragment.is_first() && coverage > bytes.len() {
        return Err(Reason::TransportLength);
    }
    Ok(with_ports(UDPLITE, bytes))
}

/// RFC 4340 section 5.1: the generic header is 12 bytes long, or 16 with extended sequence numbers (X);
/// "Data Offset" is in 4 bytes, what the packet's type adds and the options included.
fn read_dccp(bytes: &[u8], fragment: Fragment) -> Result<Packet<'static>, Reason> {
    let data_offset = usize::from(bytes[4]) * 4;
    let is_extended = bytes[8] & 1 == 1;
    let generic_len = if is_extended { 16 } else { 12 };
    if data_offset < generic_len {
        return Err(Reason::TransportLength);
    }
    if data_offset > bytes.len() {
        return Err(header_is_cut(fragment));
    }
    Ok(with_ports(DCCP, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::*;

    /// What the verdict table's policy does not ask for.
    #[test]
    fn tags_addresses_and_types_are_read() {
        let inner = vlan(12, IPV4, ipv4(UDP, udp(7, 9, [])));
        let read_vlan = |frame: Vec<u8>| read(&frame).unwrap().vlan;
        assert_eq!(read_vlan(ethernet(SERVICE_VLAN, vlan(7, VLAN, &inner))), 7);
        assert_eq!(read_vlan(ethernet(VLAN, vlan(0xe007, VLAN, &inner))), 7, "with a priority");
        assert_eq!(read_vlan(ethernet(VLAN, vlan(0xe000, VLAN, &inner))), 0, "a priority alone");

        let datagram = Packet { src_port: Some(7), dst_port: Some(9), ..Packet::new(UDP) };
        let addresses = |src: &str, dst: &str| (src.parse().ok(), dst.parse().ok());
        let (src, dst) = addresses("198.51.100.7", "192.0.2.1");
        assert_eq!(read(&ethernet(VLAN, &inner)), Ok(Packet { vlan: 12, src, dst, ..datagram }));
        let (src, dst) = addresses("2001:db8::7", "2001:db8::1");
        let frame = ethernet(IPV6, ipv6(UDP, udp(7, 9, [])));
        assert_eq!(read(&frame), Ok(Packet { src, dst, ..datagram }));
    }

    #[test]
    fn a_first_fragment_has_types() {
        let first = Ipv4 { more_fragments: true, ..Ipv4::default() };
        let packet = read(&ethernet(IPV4, first.packet(ICMP, icmp(3, 4, [])))).unwrap();
        assert_eq!((packet.icmp, packet.icmpv6), (Some((3, 4)), None));
        let first = fragment(ICMPV6, 0, true, icmp(2, 0, []));
        let packet = read(&ethernet(IPV6, ipv6(FRAGMENT, first))).unwrap();
        assert_eq!((packet.icmp, packet.icmpv6), (None, Some((2, 0))));
    }
}
