//! SCTP sockets of the one-to-one style (RFC 6458 section 4), which are used as TCP's are.

use std::{
    io, mem,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use portsteer::lab::Namespace;

/// A server on an address of a namespace.
///
/// # Errors
///
/// `EPROTONOSUPPORT` where the kernel knows no SCTP.
pub fn listen(namespace: &Namespace, address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = socket(namespace)?;
    let (address, len) = socket_address(address, port);
    // SAFETY: a `sockaddr_in` and its size.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) })?;
    Ok(socket.into())
}

/// An association with a server, made in time.
///
/// # Errors
///
/// `EPROTONOSUPPORT` where the kernel knows no SCTP; `WouldBlock` or `TimedOut` if nobody answers.
pub fn connect(
    namespace: &Namespace,
    address: Ipv4Addr,
    port: u16,
    within: Duration,
) -> io::Result<TcpStream> {
    let stream = TcpStream::from(socket(namespace)?);
    // It holds for the connection as well.
    stream.set_write_timeout(Some(within))?;
    let (address, len) = socket_address(address, port);
    // SAFETY: a `sockaddr_in` and its size.
    check(unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(stream)
}

fn socket(namespace: &Namespace) -> io::Result<OwnedFd> {
    namespace.run(|| {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: plain numbers.
        let fd = check(unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_SCTP) })?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

fn socket_address(address: Ipv4Addr, port: u16) -> (libc::sockaddr_in, libc::socklen_t) {
    // SAFETY: a structure of integers.
    let mut bytes: libc::sockaddr_in = unsafe { mem::zeroed() };
    bytes.sin_family = libc::AF_INET as libc::sa_family_t;
    bytes.sin_port = port.to_be();
    bytes.sin_addr.s_addr = u32::from(address).to_be();
    (bytes, size_of::<libc::sockaddr_in>() as libc::socklen_t)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
