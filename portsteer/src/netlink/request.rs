//! Requests to the kernel over netlink, and the walk through its answers.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{FromRawFd as _, OwnedFd},
};

use super::explain;

/// A request, as it is built.
#[derive(Debug)]
pub(crate) struct Request {
    /// `NETLINK_*`: whom it is for.
    protocol: libc::c_int,
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
    /// A request to rtnetlink of this kind (`RTM_*`) with these flags besides those that every
    /// one has.
    pub(crate) fn new(kind: u16, flags: i32) -> Self {
        Self::to(libc::NETLINK_ROUTE, kind, flags)
    }

    /// A command of a generic netlink family, which is known by the number that the kernel gave
    /// it, with flags as for [`new`](Self::new).
    pub(crate) fn generic(family: u16, command: u8, flags: i32) -> Self {
        // `struct genlmsghdr`: command, version, reserved. All families here are at version 1.
        Self::to(libc::NETLINK_GENERIC, family, flags).header(&[command, 1, 0, 0])
    }

    fn to(protocol: libc::c_int, kind: u16, flags: i32) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&SEQUENCE.to_ne_bytes());
        Self { protocol, bytes }
    }

    /// The fixed structure that stands before the attributes.
    pub(crate) fn header(mut self, header: &[u8]) -> Self {
        self.bytes.extend_from_slice(header);
        self.align();
        self
    }

    /// An attribute.
    pub(crate) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, |mut request| {
            request.bytes.extend_from_slice(value);
            request
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

    /// What the kernel would see after the netlink header. Messages have the form of requests, so
    /// tests build them with this.
    #[cfg(test)]
    pub(super) fn into_payload(mut self) -> Vec<u8> {
        self.bytes.split_off(HEADER_LEN)
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
        let mut socket = open_socket(self.protocol, 0)?;
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

/// A netlink socket in the calling thread's network namespace, with these flags (`SOCK_*`) besides
/// `SOCK_CLOEXEC`. What is written to it goes to the kernel.
pub(super) fn open_socket(protocol: libc::c_int, flags: libc::c_int) -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
    // SAFETY: socket() takes plain numbers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
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
pub(super) fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The attributes in a message, with their kinds. Ends at the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        let kind = u16::from_ne_bytes(field(bytes, 2)?) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
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
    fn a_generic_command_stands_before_the_attributes() {
        let request = Request::generic(0x1234, 7, 0).number(1, 5);
        assert_eq!(request.protocol, libc::NETLINK_GENERIC);
        assert_eq!(request.bytes[4..6], 0x1234u16.to_ne_bytes());
        let (command, rest) = request.bytes[HEADER_LEN..].split_at(4);
        assert_eq!(command, [7, 1, 0, 0]);
        assert_eq!(attributes(rest).collect::<Vec<_>>(), [(1, &5u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn attributes_that_are_cut_off_end_the_walk() {
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "shorter than their own header");
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[1]).count(), 0);
    }
}
