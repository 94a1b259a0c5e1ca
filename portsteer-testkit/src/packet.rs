//! Packets, built from the inside out: `ethernet(IPV4, ipv4(UDP, udp(1, 53, b"")))`. Lengths and
//! IPv4 header checksums are right until a test makes them wrong. Nothing is padded.

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;

pub const HOP_BY_HOP: u8 = 0;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DCCP: u8 = 33;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const GRE: u8 = 47;
pub const ESP: u8 = 50;
pub const AH: u8 = 51;
pub const ICMPV6: u8 = 58;
pub const NO_NEXT_HEADER: u8 = 59;
pub const DESTINATION_OPTIONS: u8 = 60;
pub const SCTP: u8 = 132;
/// Extension headers whose use is elsewhere: RFC 6275, RFC 7401 and RFC 5533. None is looked through.
pub const MOBILITY: u8 = 135;
pub const HIP: u8 = 139;
pub const SHIM6: u8 = 140;
pub const UDPLITE: u8 = 136;

/// An Ethernet frame.
#[must_use]
pub fn ethernet(ether_type: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01];
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload.as_ref());
    frame
}

/// What follows a VLAN tag's own EtherType: the tag control information, the next EtherType and
/// the payload. `ethernet(VLAN, vlan(12, IPV4, ...))`.
#[must_use]
pub fn vlan(vid: u16, ether_type: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vid.to_be_bytes().to_vec();
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(payload.as_ref());
    bytes
}

/// An IPv4 packet that is no fragment and has no options.
#[must_use]
pub fn ipv4(protocol: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    Ipv4::default().packet(protocol, payload)
}

/// The fields of an IPv4 header that tests vary.
#[derive(Debug, Clone, Default)]
pub struct Ipv4 {
    /// Options, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
    /// In bytes, a multiple of 8.
    pub fragment_offset: u16,
    pub more_fragments: bool,
    pub dont_fragment: bool,
}

impl Ipv4 {
    #[must_use]
    pub fn packet(&self, protocol: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let payload = payload.as_ref();
        let header_len = 20 + self.options.len();
        let mut bytes = vec![0x40 | (header_len / 4) as u8, 0];
        bytes.extend(((header_len + payload.len()) as u16).to_be_bytes());
        bytes.extend([0x12, 0x34]);
        let flags = (u16::from(self.dont_fragment) << 14) | (u16::from(self.more_fragments) << 13);
        bytes.extend((flags | (self.fragment_offset / 8)).to_be_bytes());
        bytes.extend([64, protocol, 0, 0]);
        bytes.extend([198, 51, 100, 7]);
        bytes.extend([192, 0, 2, 1]);
        bytes.extend(&self.options);
        let checksum = internet_checksum(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// RFC 1071.
#[must_use]
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| (u32::from(pair[0]) << 8) | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv6 packet.
#[must_use]
pub fn ipv6(next_header: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next_header, 64]);
    bytes.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    bytes.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend(payload);
    bytes
}

/// A hop-by-hop, destination options or routing header of `units` times 8 bytes, 1 to 256, filled
/// with padding, and what follows it.
#[must_use]
pub fn options(next_header: u8, units: usize, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![next_header, (units - 1) as u8];
    bytes.resize(units * 8, 0);
    bytes.extend(payload.as_ref());
    bytes
}

/// An IPv6 fragment header; `offset` in bytes, a multiple of 8.
#[must_use]
pub fn fragment(next_header: u8, offset: u16, more: bool, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![next_header, 0];
    bytes.extend((offset | u16::from(more)).to_be_bytes());
    bytes.extend([0, 0, 0x47, 0x11]);
    bytes.extend(payload.as_ref());
    bytes
}

/// An authentication header with a 12-byte integrity check value.
#[must_use]
pub fn authentication(next_header: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![next_header, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    bytes.resize(24, 0xaa);
    bytes.extend(payload.as_ref());
    bytes
}

fn ports(src_port: u16, dst_port: u16) -> Vec<u8> {
    let mut bytes = src_port.to_be_bytes().to_vec();
    bytes.extend(dst_port.to_be_bytes());
    bytes
}

/// A UDP datagram without a checksum.
#[must_use]
pub fn udp(src_port: u16, dst_port: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = ports(src_port, dst_port);
    bytes.extend(((8 + payload.len()) as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// A UDP-Lite datagram whose checksum covers the header.
#[must_use]
pub fn udplite(src_port: u16, dst_port: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = ports(src_port, dst_port);
    bytes.extend([0, 8, 0, 0]);
    bytes.extend(payload.as_ref());
    bytes
}

/// A TCP SYN without options and without a checksum.
#[must_use]
pub fn tcp(src_port: u16, dst_port: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = ports(src_port, dst_port);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload.as_ref());
    bytes
}

/// An SCTP common header.
#[must_use]
pub fn sctp(src_port: u16, dst_port: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = ports(src_port, dst_port);
    bytes.resize(12, 0);
    bytes.extend(payload.as_ref());
    bytes
}

/// A DCCP request with extended sequence numbers, its header 20 bytes long.
#[must_use]
pub fn dccp(src_port: u16, dst_port: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = ports(src_port, dst_port);
    bytes.extend([5, 0, 0, 0, 0x01, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    bytes.extend(payload.as_ref());
    bytes
}

/// An ICMP or ICMPv6 message of 8 bytes and its payload.
#[must_use]
pub fn icmp(kind: u8, code: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0, 0, 0, 0, 0];
    bytes.extend(payload.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    /// An independent parser finds what the builders put in.
    #[test]
    fn packets_are_what_they_seem() {
        let frames = [
            ethernet(IPV4, ipv4(UDP, udp(7, 53, b"abc"))),
            ethernet(IPV6, ipv6(UDP, udp(7, 53, b"abc"))),
            ethernet(VLAN, vlan(12, IPV4, ipv4(UDP, udp(7, 53, b"")))),
            ethernet(SERVICE_VLAN, vlan(9, VLAN, vlan(12, IPV6, ipv6(UDP, udp(7, 53, b""))))),
            ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 2, udp(7, 53, b"")))),
            ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 0, false, udp(7, 53, b"")))),
            ethernet(IPV6, ipv6(AH, authentication(UDP, udp(7, 53, b"")))),
        ];
        for frame in &frames {
            let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
            let Some(TransportHeader::Udp(udp)) = headers.transport else {
                panic!("no UDP in {frame:02x?}")
            };
            assert_eq!((udp.source_port, udp.destination_port), (7, 53));
        }

        let with_options = Ipv4 { options: vec![1; 8], dont_fragment: true, ..Ipv4::default() };
        let frame = ethernet(IPV4, with_options.packet(TCP, tcp(7, 443, b"")));
        let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("no IPv4") };
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP") };
        assert_eq!((tcp.source_port, tcp.destination_port, tcp.syn), (7, 443, true));
    }
}
