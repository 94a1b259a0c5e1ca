//! Which packets belong together: a hash over addresses and ports that is the same in
//! both directions, so that a flow stays on one CPU.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    frame::{Buffer, Frame, TransportStart},
    parse::Place,
};

/// A hash of a packet's flow: 32 evenly spread bits.
///
/// Fragments, also the first, go by addresses alone: the later ones have no ports, and a datagram
/// belongs on one CPU. The protocol is left out: behind extension headers it would have to be looked
/// for, and flows that differ in nothing else may well share a CPU.
#[inline(always)]
pub fn hash<B: Buffer>(frame: &Frame<B>, place: Place) -> u32 {
    let l3_off = place.l3_off();
    let version = frame.header::<u8>(l3_off).map_or(0, |byte| byte >> 4);
    let (addresses, plain_l4_off) = if version == 6 {
        let Ok(ip) = frame.header::<Ipv6Hdr>(l3_off) else { return 0 };
        let mut folded = 0;
        for index in 0..4 {
            let at = index * 4;
            let word = |bytes: &[u8; 16]| {
                u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            folded = mix(folded ^ word(&ip.src_addr) ^ word(&ip.dst_addr));
        }
        (folded, l3_off + Ipv6Hdr::LEN)
    } else {
        let Ok(ip) = frame.header::<Ipv4Hdr>(l3_off) else { return 0 };
        let (src, dst) = (u32::from_ne_bytes(ip.src_addr), u32::from_ne_bytes(ip.dst_addr));
        (mix(src ^ dst), l3_off + Ipv4Hdr::LEN)
    };
    let l4_off = if place.is_plain() { plain_l4_off } else { place.ports_off() };
    if l4_off == 0 {
        return mix(addresses);
    }
    let Ok(start) = frame.header::<TransportStart>(l4_off) else { return mix(addresses) };
    let ports = u16::from_ne_bytes(start.src_port_be) ^ u16::from_ne_bytes(start.dst_port_be);
    mix(addresses ^ u32::from(ports))
}

/// Spreads every bit over all: multiplications by odd numbers and shifts, each of which can be
/// undone, so that no two inputs give the same output.
#[inline(always)]
fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x9e37_79b1);
    word ^= word >> 15;
    word = word.wrapping_mul(0x85eb_ca77);
    word ^ (word >> 13)
}
