//! How many frames reach a host's network stack, whatever they are: a packet socket that keeps none of them
//! (packet(7)).
//!
//! The kernel takes an outer VLAN tag off before it asks such sockets, and discards in silence what is too short for
//! that: a tagged frame of fewer than [`SHORTEST_TAGGED`] bytes arrives nowhere.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use portsteer::lab::{Device, Namespace};

use crate::raw_socket::{bind, check, set_option, unbound};

/// The Ethernet header, the tag, and two bytes more (`skb_vlan_untag` in net/core/skbuff.c).
pub const SHORTEST_TAGGED: usize = 20;

/// `PACKET_IGNORE_OUTGOING` (include/uapi/linux/if_packet.h).
const IGNORE_OUTGOING: libc::c_int = 23;

/// `struct tpacket_stats`.
#[repr(C)]
#[derive(Default)]
struct Statistics {
    /// Those included that there was no room for.
    packets: u32,
    drops: u32,
}

/// Counts the frames that come to a stack after XDP, from when it is made.
#[derive(Debug)]
pub struct Arrivals {
    fd: OwnedFd,
    count: u64,
}

impl Arrivals {
    /// Those by one device.
    ///
    /// # Errors
    ///
    /// Without the privilege for it.
    pub fn by(device: &Device) -> io::Result<Self> {
        Self::open(device.namespace(), device.index())
    }

    /// Those by any device of a namespace.
    ///
    /// # Errors
    ///
    /// Without the privilege for it.
    pub fn anywhere(namespace: &Namespace) -> io::Result<Self> {
        Self::open(namespace, 0)
    }

    fn open(namespace: &Namespace, ifindex: u32) -> io::Result<Self> {
        let fd = unbound(namespace)?;
        // The least that there is: frames that there is no room for are counted without a copy.
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 1)?;
        set_option(&fd, libc::SOL_PACKET, IGNORE_OUTGOING, 1)?;
        bind(&fd, ifindex)?;
        Ok(Self { fd, count: 0 })
    }

    /// How many there were until now. The kernel counts to four thousand million: ask more often.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    pub fn count(&mut self) -> u64 {
        let mut statistics = Statistics::default();
        let mut len = size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: the kernel writes no more than `len` bytes of the structure, all of whose bits are valid.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut len,
            )
        })
        .expect("a socket's statistics");
        self.count += u64::from(statistics.packets);
        self.count
    }
}
