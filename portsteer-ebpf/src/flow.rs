//! Which packets belong together: a hash over addresses and ports that is the same in
//! both directions, so that a flow stays on one CPU.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    frame::{Buffer, Frame, PlainIpv4, PlainIpv6, TransportStart},
    parse::Place,
};

/// A hash of a packet's flow: 32 evenly spread bits.
///
/// Fragments, also the first, go by addresses alone: the later ones have no ports, and a datagram
/// belongs on one CPU. The protocol is left out: behind extension headers it would have to be looked
/// for, and flows that differ in nothing else may well share a CPU.
#[inline(always)]
pub fn hash<B: Buffer>(frame: &Frame<B>, place: Place) -> u32 {
    if place.is_plain() {
        return hash_plain(frame);
    }
    let l3_off = place.l3_off();
    let version = frame.header::<u8>(l3_off).map_or(0, |byte| byte >> 4);
    let addresses = if version == 6 {
        let Ok(ip) = frame.header::<Ipv6Hdr>(l3_off) else { return 0 };
        of_ipv6(&ip.src_addr, &ip.dst_addr)
    } else {
        let Ok(ip) = frame.header::<Ipv4Hdr>(l3_off) else { return 0 };
        of_ipv4(ip.src_addr, ip.dst_addr)
    };
    let ports = match frame.header::<TransportStart>(place.ports_off()) {
        Ok(start) if place.ports_off() != 0 => of_ports(start),
        _ => 0,
    };
    upper_half(addresses.wrapping_add(ports))
}

/// The same for a packet that took the fast path, whose headers stand where they mostly do.
#[inline(always)]
pub fn hash_plain<B: Buffer>(frame: &Frame<B>) -> u32 {
    let Some(plain) = frame.get::<PlainIpv4>(0) else { return 0 };
    let sum = if plain.kind[2] >> 4 == 4 {
        let [a, b, c, d, e, f, g, h] = plain.addresses;
        of_ipv4([a, b, c, d], [e, f, g, h]).wrapping_add(of_ports(&plain.transport))
    } else {
        let Some(plain) = frame.get::<PlainIpv6>(0) else { return 0 };
        let Some((src, dst)) = plain.addresses.split_first_chunk::<16>() else { return 0 };
        let Some((dst, _)) = dst.split_first_chunk::<16>() else { return 0 };
        of_ipv6(src, dst).wrapping_add(of_ports(&plain.transport))
    };
    upper_half(sum)
}

/// A sum of words times keys, of which the upper half is well spread: multilinear hashing (Lemire
/// and Kaser, "Strongly universal string hashing is fast", 2014). Unlike rounds of mixing, the
/// multiplications do not wait for each other.
const KEYS: [u64; 5] = [
    0x6c62_272e_07bb_0143,
    0xcbf2_9ce4_8422_2325,
    0xb492_b66f_be98_f273,
    0x9ae1_6a3b_2f90_404f,
    0xc3a5_c85c_97cb_3127,
];

#[inline(always)]
fn of_ipv4(src: [u8; 4], dst: [u8; 4]) -> u64 {
    u64::from(u32::from_ne_bytes(src) ^ u32::from_ne_bytes(dst)).wrapping_mul(KEYS[0])
}

#[inline(always)]
fn of_ipv6(src: &[u8; 16], dst: &[u8; 16]) -> u64 {
    let mut sum = 0u64;
    for (index, key) in KEYS.iter().enumerate().take(4) {
        let at = index * 4;
        let word = |bytes: &[u8; 16]| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        sum = sum.wrapping_add(u64::from(word(src) ^ word(dst)).wrapping_mul(*key));
    }
    sum
}

#[inline(always)]
fn of_ports(start: &TransportStart) -> u64 {
    let ports = u16::from_ne_bytes(start.src_port_be) ^ u16::from_ne_bytes(start.dst_port_be);
    u64::from(ports).wrapping_mul(KEYS[4])
}

#[inline(always)]
const fn upper_half(sum: u64) -> u32 {
    (sum >> 32) as u32
}
