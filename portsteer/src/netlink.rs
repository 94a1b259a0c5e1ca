//! Network interfaces, as the kernel's rtnetlink tells about them: of the network namespace that
//! the calling thread is in. (`/sys/class/net` would show the namespace it was mounted in.)
//!
//! Everything here blocks, and only for as long as the kernel needs to answer. The requests are
//! few and the attributes plain, so they are written and read here byte by byte; attributes and
//! messages that are unknown are skipped, so that a newer kernel's answers stay readable.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{FromRawFd as _, OwnedFd},
};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The kind of a virtual interface, such as `veth`; a hardware interface has none.
    pub kind: Option<String>,
    /// `ARPHRD_*`: 1 is Ethernet.
    pub hardware_type: u16,
    pub mtu: u32,
    /// Whether it was set up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Its operational state (`IF_OPER_*`, RFC 2863): 6 is up. Some virtual interfaces never tell
    /// theirs, which is 0.
    pub operstate: u8,
    /// The Ethernet address; none where addresses are not six bytes long.
    pub mac: Option<[u8; 6]>,
    pub rx_queues: u32,
    pub tx_queues: u32,
    /// The XDP program that is attached, if one is.
    pub xdp: Option<AttachedXdp>,
    /// The device's own counters.
    pub counters: LinkCounters,
}

/// What is attached at an interface's XDP hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedXdp {
    pub mode: XdpMode,
    /// The program's id. None where several are attached in different modes.
    pub program_id: Option<u32>,
}

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's receive path.
    Generic,
    /// On the network card.
    Hardware,
    /// Several programs, in different modes.
    Multiple,
}

impl XdpMode {
    /// The word for it in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
            Self::Multiple => "multiple",
        }
    }
}

/// An interface's counters since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// All interfaces of the calling thread's network namespace, in the kernel's order.
///
/// # Errors
///
/// If the kernel refuses the request, or its answer cannot be read.
pub fn links() -> io::Result<Vec<Link>> {
    // The kernel flags a listing during which interfaces came or went. The next try nearly always
    // succeeds; where it never does, the last one is as good as any.
    let mut tries = 5;
    loop {
        let mut links = Vec::new();
        let consistent = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP)
            .header(&link_header(0, 0, 0))
            .send(|kind, payload| {
                if kind == libc::RTM_NEWLINK {
                    links.extend(parse_link(payload));
                }
            })
            .map_err(|error| explain(&error, "cannot list the network interfaces"))?;
        tries -= 1;
        if consistent || tries == 0 {
            return Ok(links);
        }
    }
}

/// The interface with this name in the calling thread's network namespace; `None` if there is
/// none.
///
/// # Errors
///
/// If the kernel refuses the request, or its answer cannot be read.
pub fn link_by_name(name: &str) -> io::Result<Option<Link>> {
    // The kernel would take a longer name for a protocol error.
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Ok(None);
    }
    let mut link = None;
    let answer = Request::new(libc::RTM_GETLINK, 0)
        .header(&link_header(0, 0, 0))
        .text(libc::IFLA_IFNAME, name)
        .send(|kind, payload| {
            if kind == libc::RTM_NEWLINK {
                link = parse_link(payload);
            }
        });
    match answer {
        Ok(_) => Ok(link),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(explain(&error, &format!("cannot look up the interface {name}"))),
    }
}

/// The same error with what failed before it. Its kind stays, its number does not.
pub(crate) fn explain(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// `struct ifinfomsg`.
pub(crate) fn link_header(index: u32, flags: i32, change: i32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// A request to rtnetlink, as it is built.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
const SEQUENCE: u32 = 1;
/// The kernel never sends more than 32 KiB at once.
const RECEIVE_LEN: usize = 64 * 1024;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;

impl Request {
    /// A request of this kind (`RTM_*`) with these flags besides those that every one has.
    pub(crate) fn new(kind: u16, flags: i32) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&SEQUENCE.to_ne_bytes());
        Self { bytes }
    }

    /// The fixed structure that stands before the attributes.
    pub(crate) fn header(mut self, header: &[u8]) -> Self {
        self.bytes.extend_from_slice(header);
        self.align();
        self
    }

    /// An attribute.
    pub(crate) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, |request| {
            let Self { mut bytes } = request;
            bytes.extend_from_slice(value);
            Self { bytes }
        })
    }

    /// An attribute that holds a number.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// An attribute that holds a text.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// An attribute that holds what `body` adds.
    pub(crate) fn nested(mut self, kind: u16, body: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut outer = body(self);
        let len = (outer.bytes.len() - start) as u16;
        outer.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        outer.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        outer.align();
        outer
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Sends the request in the calling thread's network namespace, hands the messages of the
    /// answer to `take` with their kind, and returns whether they belong together: false if a
    /// listing was interrupted by a change.
    ///
    /// An error that the kernel answers has its number and, if the kernel gave one, its text.
    pub(crate) fn send(mut self, mut take: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        let mut socket = open_socket()?;
        socket.write_all(&self.bytes)?;

        let mut consistent = true;
        let mut buffer = vec![0; RECEIVE_LEN];
        loop {
            let received = socket.read(&mut buffer)?;
            let mut rest = &buffer[..received];
            if rest.is_empty() {
                return Err(unreadable());
            }
            while !rest.is_empty() {
                let len = field(rest, 0).map(u32::from_ne_bytes).ok_or_else(unreadable)? as usize;
                let kind = field(rest, 4).map(u16::from_ne_bytes).ok_or_else(unreadable)?;
                let flags = field(rest, 6).map(u16::from_ne_bytes).ok_or_else(unreadable)?;
                let payload = rest.get(HEADER_LEN..len).ok_or_else(unreadable)?;
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();

                consistent &= i32::from(flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        return match field(payload, 0).map(i32::from_ne_bytes) {
                            Some(0) | None => Ok(consistent),
                            Some(number) => Err(answered_error(-number, kind, payload)),
                        };
                    }
                    libc::NLMSG_NOOP => {}
                    _ => take(kind, payload),
                }
            }
        }
    }

    /// [`send`](Self::send) where the answer is only whether it was done.
    pub(crate) fn done(self) -> io::Result<()> {
        self.send(|_, _| {}).map(|_| ())
    }
}

/// The error in an `NLMSG_ERROR` or `NLMSG_DONE`. Where the kernel has no words of its own the
/// number alone is kept, so that callers can tell errors apart.
fn answered_error(number: i32, kind: u16, payload: &[u8]) -> io::Error {
    // `NETLINK_CAP_ACK` leaves the request's header, and no more, between number and attributes.
    let attributes_at = if i32::from(kind) == libc::NLMSG_ERROR { 4 + HEADER_LEN } else { 4 };
    let error = io::Error::from_raw_os_error(number);
    let text = attributes(payload.get(attributes_at..).unwrap_or_default())
        .find(|(kind, _)| *kind == ERROR_TEXT)
        .map(|(_, value)| text(value))
        .filter(|text| !text.is_empty());
    match text {
        // An unknown device stays recognisable by its number.
        Some(text) if number != libc::ENODEV => explain(&error, &text),
        _ => error,
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "cannot read the kernel's netlink answer")
}

/// A netlink socket in the calling thread's network namespace. What is written to it goes to the
/// kernel.
fn open_socket() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket() takes plain numbers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened above and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: `on` is alive during the call, and the length given is its own. That an old
        // kernel may not know the option does no harm, so the result does not matter.
        unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            );
        }
    }
    Ok(File::from(socket))
}

/// The bytes at `offset`, if there are as many.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The attributes in a message, with their kinds. Ends at the first that is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        let kind = u16::from_ne_bytes(field(bytes, 2)?) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn parse_link(message: &[u8]) -> Option<Link> {
    let flags = i32::from_ne_bytes(field(message, 8)?);
    let mut link = Link {
        index: u32::from_ne_bytes(field(message, 4)?),
        name: String::new(),
        kind: None,
        hardware_type: u16::from_ne_bytes(field(message, 2)?),
        mtu: 0,
        up: flags & libc::IFF_UP != 0,
        carrier: flags & libc::IFF_LOWER_UP != 0,
        operstate: 0,
        mac: None,
        rx_queues: 0,
        tx_queues: 0,
        xdp: None,
        counters: LinkCounters::default(),
    };
    let number = |value| field(value, 0).map_or(0, u32::from_ne_bytes);
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = number(value),
            libc::IFLA_OPERSTATE => link.operstate = value.first().copied().unwrap_or(0),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_NUM_RX_QUEUES => link.rx_queues = number(value),
            libc::IFLA_NUM_TX_QUEUES => link.tx_queues = number(value),
            libc::IFLA_LINKINFO => {
                link.kind = attributes(value)
                    .find(|(kind, _)| *kind == libc::IFLA_INFO_KIND)
                    .map(|(_, value)| text(value));
            }
            libc::IFLA_XDP => link.xdp = parse_xdp(value),
            libc::IFLA_STATS64 => link.counters = parse_counters(value),
            _ => {}
        }
    }
    Some(link)
}

/// `IFLA_XDP_ATTACHED` and `IFLA_XDP_PROG_ID`, nested in `IFLA_XDP`.
fn parse_xdp(value: &[u8]) -> Option<AttachedXdp> {
    let attribute = |wanted| attributes(value).find(|(kind, _)| *kind == wanted);
    let mode = match attribute(2)?.1.first()? {
        1 => XdpMode::Native,
        2 => XdpMode::Generic,
        3 => XdpMode::Hardware,
        4 => XdpMode::Multiple,
        _ => return None,
    };
    let program_id =
        attribute(4).and_then(|(_, id)| field(id, 0)).map(u32::from_ne_bytes).filter(|&id| id != 0);
    Some(AttachedXdp { mode, program_id })
}

/// The beginning of `struct rtnl_link_stats64`.
fn parse_counters(value: &[u8]) -> LinkCounters {
    let number = |index: usize| field(value, index * 8).map_or(0, u64::from_ne_bytes);
    LinkCounters {
        rx_packets: number(0),
        tx_packets: number(1),
        rx_bytes: number(2),
        tx_bytes: number(3),
        rx_errors: number(4),
        tx_errors: number(5),
        rx_dropped: number(6),
        tx_dropped: number(7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested_ones_measured() {
        let request =
            Request::new(1, 0).nested(7, |outer| outer.text(3, "abcd").bytes(4, &[1, 2, 3]));
        assert_eq!(
            &request.bytes[HEADER_LEN..],
            // 4 + 12 (9 padded) + 8 (7 padded)
            [&[24u8, 0, 7, 0][..], &[9, 0, 3, 0], b"abcd\0\0\0\0", &[7, 0, 4, 0], &[1, 2, 3, 0]]
                .concat()
        );
        let outer: Vec<_> = attributes(&request.bytes[HEADER_LEN..]).collect();
        assert_eq!(outer.len(), 1);
        let inner: Vec<_> = attributes(outer[0].1).collect();
        assert_eq!(inner, [(3, &b"abcd\0"[..]), (4, &[1u8, 2, 3][..])]);
    }

    #[test]
    fn attributes_that_are_cut_off_end_the_walk() {
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "shorter than their own header");
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[1]).count(), 0);
    }

    #[test]
    fn the_loopback_interface_is_found_both_ways() {
        let lo = link_by_name("lo").expect("a look-up").expect("lo");
        assert_eq!((lo.index, lo.hardware_type), (1, libc::ARPHRD_LOOPBACK));
        let listed = links().expect("a list");
        assert!(listed.iter().any(|link| link.name == "lo" && link.index == 1));
    }

    #[test]
    fn names_that_no_interface_can_have_are_simply_not_there() {
        for name in ["", "sixteen-letters-", "a-name-that-is-far-too-long", "nul\0", "no-such"] {
            assert_eq!(link_by_name(name).expect("an answer"), None, "{name:?}");
        }
    }
}
