//! Whole frames in and out of a device: an `AF_PACKET` socket (packet(7)).
//!
//! The kernel takes a received frame's outermost VLAN tag off and tells it beside the frame; here
//! it is put back, so that a frame is received as it was on the wire.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use portsteer::lab::{self, Device, Namespace};

use crate::agent::PATIENCE;

/// A socket for the frames of one device.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

/// `TP_STATUS_VLAN_VALID` and `TP_STATUS_VLAN_TPID_VALID` (include/uapi/linux/if_packet.h).
const VLAN_VALID: u32 = 1 << 4;
const TPID_VALID: u32 = 1 << 6;

/// `struct tpacket_auxdata`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AuxiliaryData {
    status: u32,
    _lengths: [u32; 2],
    _offsets: [u16; 2],
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Room for one control message with [`AuxiliaryData`], aligned as `struct cmsghdr`.
type ControlBuffer = [u64; 8];

impl RawSocket {
    /// Opens a socket for all frames of a device, in the device's namespace.
    ///
    /// # Errors
    ///
    /// Without the privilege for it.
    pub fn open(device: &Device) -> io::Result<Self> {
        let fd = unbound(device.namespace())?;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // A short frame may occupy a whole page.
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
        bind(&fd, device.index())?;
        Ok(Self { fd })
    }

    /// Sends a frame. While the device's queue is full this waits.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: a buffer and its length.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match sent {
            ..0 => Err(io::Error::last_os_error()),
            sent if sent.cast_unsigned() == frame.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// The next frame that the device has received, with its VLAN tags; frames that it sends are
    /// left out. None if none comes in time.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it.
    pub fn receive(&self, within: Duration) -> io::Result<Option<Vec<u8>>> {
        loop {
            if lab::poll_readable(&[self.fd.as_fd()], within)?.is_empty() {
                return Ok(None);
            }
            if let Some(frame) = self.receive_one()? {
                return Ok(Some(frame));
            }
        }
    }

    /// The next `count` received frames that end with `mark`.
    ///
    /// # Panics
    ///
    /// If they do not come in time.
    #[must_use]
    pub fn marked_frames(&self, mark: &[u8], count: usize) -> Vec<Vec<u8>> {
        let (start, mut frames) = (Instant::now(), Vec::new());
        while frames.len() < count {
            let frame = self.receive(Duration::from_millis(100)).expect("a raw socket");
            frames.extend(frame.filter(|frame| frame.ends_with(mark)));
            assert!(start.elapsed() < PATIENCE, "only {} of {count} frames came", frames.len());
        }
        frames
    }

    /// One frame; none if the device has sent it.
    fn receive_one(&self) -> io::Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 64 * 1024];
        let mut control: ControlBuffer = [0; 8];
        let mut from = link_layer_address();
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: a structure of integers and pointers, for which zeroes are a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message's pointers are to buffers that outlive it, with their sizes.
        let len = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
        if len < 0 {
            return Err(io::Error::last_os_error());
        }
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(None);
        }
        frame.truncate(len.cast_unsigned());
        if let Some(auxiliary) = auxiliary_data(&message)
            && auxiliary.status & VLAN_VALID != 0
            && frame.len() >= 12
        {
            let known = auxiliary.status & TPID_VALID != 0;
            let tpid = if known { auxiliary.vlan_tpid } else { libc::ETH_P_8021Q as u16 };
            let tag = [tpid.to_be_bytes(), auxiliary.vlan_tci.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
        Ok(Some(frame))
    }
}

/// A packet socket of a namespace, which receives nothing yet.
pub(crate) fn unbound(namespace: &Namespace) -> io::Result<OwnedFd> {
    namespace.run(|| {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: plain numbers. Protocol 0 receives nothing until the socket is bound.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// Has a packet socket receive all frames of a device, or, for 0, of all devices.
pub(crate) fn bind(fd: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let mut address = link_layer_address();
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: a `sockaddr_ll` and its size, which is what AF_PACKET takes.
    check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })
    .map(|_| ())
}

/// What the kernel told beside a frame.
fn auxiliary_data(message: &libc::msghdr) -> Option<AuxiliaryData> {
    // SAFETY: recvmsg has set the length of what it wrote into the control buffer.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: either null or the first header inside the control buffer, which is aligned for it.
    let header_ref = unsafe { header.as_ref() }?;
    let is_it =
        (header_ref.cmsg_level, header_ref.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA);
    // SAFETY: the kernel writes a whole `tpacket_auxdata` behind a header of this type, and the
    // buffer has room for it; the read needs no alignment.
    is_it.then(|| unsafe { libc::CMSG_DATA(header).cast::<AuxiliaryData>().read_unaligned() })
}

fn link_layer_address() -> libc::sockaddr_ll {
    // SAFETY: a structure of integers.
    unsafe { mem::zeroed() }
}

pub(crate) fn set_option(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: an integer of the size that is given, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })
    .map(|_| ())
}

pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
