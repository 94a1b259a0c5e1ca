//! Packet bytes. All `unsafe` access to them ends here: the parser sees references to header
//! types that have been checked against the end of the frame's first buffer.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use portsteer_common::{
    Reason,
    wire::{EthernetHeader, ExtensionHeader, VlanTag},
};

use crate::bound;

/// Where a frame's bytes come from.
///
/// # Safety
///
/// The bytes from `start` up to and without `end` are readable for as long as the value lives,
/// and `start <= end`.
pub unsafe trait Buffer {
    /// The address of the first byte of the first buffer.
    fn start(&self) -> usize;
    /// The address after the last byte of the first buffer.
    fn end(&self) -> usize;
    /// The length of the whole frame in bytes, all its buffers together.
    fn total_len(&self) -> u64;
}

/// A header that can be read in place.
///
/// # Safety
///
/// The type has an alignment of 1 and every pattern of bits is a value of it.
pub unsafe trait Header {}

/// The first 8 bytes of every transport header that has ports (RFC 768, 3828, 4340, 9260, 9293).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TransportStart {
    pub src_port_be: [u8; 2],
    pub dst_port_be: [u8; 2],
    /// UDP: length. UDP-Lite: checksum coverage. DCCP: data offset and CCVal.
    pub third_be: [u8; 2],
    pub fourth_be: [u8; 2],
}

/// What the fast path reads with one check: Ethernet, IPv4 without options (RFC 791), 8 bytes of
/// transport.
///
/// The fields are cut for the loads that the fast path makes of them, so they are spelled out.
#[repr(C)]
#[derive(Debug)]
pub struct PlainIpv4 {
    pub mac_addresses: [u8; 12],
    /// The EtherType, version and header length, and type of service.
    pub kind: [u8; 4],
    pub total_len_be: [u8; 2],
    pub id_be: [u8; 2],
    /// Flags and fragment offset.
    pub fragment_be: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum_be: [u8; 2],
    pub addresses: [u8; 8],
    pub transport: TransportStart,
}

/// What the fast path reads with one check: Ethernet, IPv6 without extension headers (RFC 8200),
/// 8 bytes of transport.
#[repr(C)]
#[derive(Debug)]
pub struct PlainIpv6 {
    pub mac_addresses: [u8; 12],
    /// The EtherType, version, traffic class, and the start of the flow label.
    pub kind: [u8; 4],
    pub flow_label: [u8; 2],
    pub payload_len_be: [u8; 2],
    pub next_header: u8,
    pub hop_limit: u8,
    pub addresses: [u8; 32],
    pub transport: TransportStart,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(PlainIpv4, transport) == EthernetHeader::LEN + Ipv4Hdr::LEN);
    assert!(offset_of!(PlainIpv6, transport) == EthernetHeader::LEN + Ipv6Hdr::LEN);
};

/// An IPv6 address in network byte order, by halves.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Ipv6Address {
    pub upper_be: [u8; 8],
    pub lower_be: [u8; 8],
}

macro_rules! headers {
    ($($header:ty),+ $(,)?) => {
        $(
            const _: () = assert!(align_of::<$header>() == 1);
            // SAFETY: the alignment is checked above; the type holds nothing but bytes and
            // packed integers, of which every pattern is valid.
            unsafe impl Header for $header {}
        )+
    };
}

headers!(
    u8,
    EthernetHeader,
    ExtensionHeader,
    Ipv4Hdr,
    Ipv6Address,
    Ipv6Hdr,
    PlainIpv4,
    PlainIpv6,
    TransportStart,
    VlanTag
);

/// A frame as the parser sees it.
#[derive(Debug)]
pub struct Frame<B> {
    buffer: B,
    start: usize,
    end: usize,
    len: u64,
}

impl<B: Buffer> Frame<B> {
    /// The frame in this buffer. Its length is taken to be that of the first buffer until
    /// [`Frame::measure`] asks for more, which costs a call.
    #[inline(always)]
    pub fn new(buffer: B) -> Self {
        let (start, end) = (buffer.start(), buffer.end());
        Self { buffer, start, end, len: (end - start) as u64 }
    }

    /// The length of the first buffer in bytes.
    #[inline(always)]
    pub fn first_len(&self) -> u64 {
        (self.end - self.start) as u64
    }

    /// The length of the frame in bytes, as far as it was measured.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes at all.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all buffers of the frame into account.
    #[inline(always)]
    pub fn measure(&mut self) {
        self.len = self.buffer.total_len();
    }

    /// The header at `offset` bytes from the frame's start, if it lies within the first buffer.
    #[inline(always)]
    pub fn get<T: Header>(&self, offset: usize) -> Option<&T> {
        let address = self.start + offset;
        if address + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the bytes lie between start and end, which `Buffer` vouches for; `Header`
        // vouches for alignment and validity.
        Some(unsafe { &*(address as *const T) })
    }

    /// The header at `offset`, which is no constant.
    ///
    /// # Errors
    ///
    /// [`Reason::BeyondFirstBuffer`] if the header lies in the frame, but not in its first
    /// buffer, else [`Reason::Truncated`].
    #[inline(always)]
    pub fn header<T: Header>(&self, offset: usize) -> Result<&T, Reason> {
        match self.get(bound::frame_offset(offset)) {
            Some(header) => Ok(header),
            None if (offset + size_of::<T>()) as u64 <= self.len => Err(Reason::BeyondFirstBuffer),
            None => Err(Reason::Truncated),
        }
    }
}

/// A frame that lies in one slice: on the host.
// SAFETY: a slice's bytes are readable while it is borrowed.
unsafe impl Buffer for &[u8] {
    fn start(&self) -> usize {
        self.as_ptr() as usize
    }

    fn end(&self) -> usize {
        self.as_ptr() as usize + self.len()
    }

    fn total_len(&self) -> u64 {
        self.len() as u64
    }
}

/// A frame of which only the beginning is known: on the host, from a capture.
#[derive(Debug)]
pub struct Captured<'a> {
    /// What is known of it.
    pub bytes: &'a [u8],
    /// The length of the whole frame in bytes, no less than what is known.
    pub len: u64,
}

// SAFETY: as for the slice.
unsafe impl Buffer for Captured<'_> {
    fn start(&self) -> usize {
        self.bytes.as_ptr() as usize
    }

    fn end(&self) -> usize {
        self.bytes.as_ptr() as usize + self.bytes.len()
    }

    fn total_len(&self) -> u64 {
        self.len
    }
}
