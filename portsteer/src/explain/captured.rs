//! A packet as its bytes: an Ethernet frame, whole or as much of it as was captured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portsteer_common::Reason;
use portsteer_ebpf::{
    frame::{Captured, Frame},
    parse::{Headers, Kind, parse},
};

use super::described::Described;
use crate::oracle::Packet;

/// The shortest frame that is looked at, in bytes: an Ethernet header. The kernel hands shorter ones to
/// no program.
pub const MIN_LEN: usize = 14;

/// What the program sees in a frame, of which `bytes` are known and which has `len` in all: the parser
/// is the program's own.
///
/// # Errors
///
/// Why the rules are not asked; `None` where what is known of the frame ends too soon to tell.
pub fn read(bytes: &[u8], len: usize) -> Result<Headers, Option<Reason>> {
    let whole = len.max(bytes.len());
    parse(&mut Frame::new(Captured { bytes, len: whole as u64 })).map_err(|reason| {
        let is_unknown = reason == Reason::BeyondFirstBuffer && bytes.len() < whole;
        (!is_unknown).then_some(reason)
    })
}

/// A frame as the oracle has it, of which these are the headers that the parser found. A frame does not
/// tell which interface it came in by.
#[must_use]
pub fn packet(bytes: &[u8], headers: Headers) -> Packet<'static> {
    let l3_off = headers.place.l3_off();
    let (src, dst) = match bytes.get(l3_off).map(|byte| byte >> 4) {
        Some(4) => (v4_at(bytes, l3_off + 12), v4_at(bytes, l3_off + 16)),
        _ => (v6_at(bytes, l3_off + 8), v6_at(bytes, l3_off + 24)),
    };
    let packet = Packet { src, dst, vlan: headers.vlan, ..Packet::new(headers.protocol) };
    let types = (headers.icmp_type, headers.icmp_code);
    match headers.kind {
        Kind::Ports => Packet {
            src_port: Some(headers.src_port),
            dst_port: Some(headers.key.dst_port()),
            ..packet
        },
        Kind::Icmp => Packet { icmp: Some(types), ..packet },
        Kind::Icmpv6 => Packet { icmpv6: Some(types), ..packet },
        Kind::Portless => packet,
        Kind::Later => Packet { later_fragment: true, ..packet },
    }
}

/// What can be said of a frame in words: what the rules see, where it comes from and goes to, and its
/// outermost tag.
#[must_use]
pub fn describe(bytes: &[u8], headers: Headers) -> Described {
    let packet = packet(bytes, headers);
    Described {
        protocol: packet.protocol,
        src: packet.src,
        src_port: packet.src_port,
        dst: packet.dst,
        dst_port: packet.dst_port,
        icmp: packet.icmp.or(packet.icmpv6),
        // A frame without headers behind its tag has the place of a plain one.
        vlan: (headers.place.l3_off() > MIN_LEN).then_some(packet.vlan),
        later_fragment: packet.later_fragment,
        ..Described::default()
    }
}

fn v4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
}

fn v6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    bytes.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into())
}

/// The bytes of a text of hexadecimal digits, of which pairs may have blanks, colons or line ends
/// between them.
///
/// # Errors
///
/// What is not right with it, in words.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut high = None;
    for (at, character) in text.char_indices() {
        if character.is_whitespace() || matches!(character, ':' | '-') {
            if high.is_some() {
                return Err(format!("half a byte before character {at}"));
            }
            continue;
        }
        let digit = character
            .to_digit(16)
            .ok_or_else(|| format!("`{character}` at character {at} is no hexadecimal digit"))?;
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push((high << 4 | digit) as u8),
        }
    }
    if high.is_some() {
        return Err("half a byte at the end".to_owned());
    }
    if bytes.len() < MIN_LEN {
        return Err(format!(
            "{} bytes are no Ethernet frame, which has at least {MIN_LEN}",
            bytes.len()
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: &str = "02 00 00 00 00 02 02 00 00 00 00 01 81 00 00 0c 08 00 \
        45 00 00 1c 12 34 00 00 40 11 00 00 c6 33 64 07 c0 00 02 01 10 00 00 35 00 08 00 00";

    #[test]
    fn a_frame_is_read_and_described() {
        let bytes = from_hex(FRAME).expect("bytes");
        let headers = read(&bytes, bytes.len()).expect("headers");
        let described = describe(&bytes, headers);
        assert_eq!(described.to_string(), "udp 198.51.100.7:4096 -> 192.0.2.1:53 vlan 12");
        assert_eq!(described.headers(), packet(&bytes, headers));
    }

    #[test]
    fn what_was_not_captured_is_not_guessed() {
        let bytes = from_hex(FRAME).expect("bytes");
        assert_eq!(read(&bytes[..40], bytes.len()), Err(None));
        assert_eq!(read(&bytes[..40], 40), Err(Some(Reason::Truncated)));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for text in ["", "0", "zz", "0200", "02 0 0"] {
            assert!(from_hex(text).is_err(), "{text}");
        }
        assert_eq!(from_hex("02:00-00 00\n000001000000000208 00").map(|bytes| bytes.len()), Ok(14));
    }
}
