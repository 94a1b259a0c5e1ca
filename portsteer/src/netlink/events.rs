//! Waking up when interfaces or neighbours change.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use super::request::open_socket;

/// What is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    Interfaces,
    /// Of these there is as much as anybody on a link likes: each unknown sender of an ARP request is one.
    Neighbours,
}

impl News {
    /// The first 32 groups as bits: `RTNLGRP_LINK`, `RTNLGRP_NEIGH`.
    const fn group(self) -> libc::c_int {
        match self {
            Self::Interfaces => libc::RTMGRP_LINK,
            Self::Neighbours => libc::RTMGRP_NEIGH,
        }
    }
}

/// Tells that interfaces or neighbours have changed, but not which: whoever wants to know looks
/// ([`links`](super::links), [`neighbour`](super::neighbour)), and so misses nothing when the
/// kernel had more to tell than it kept. Its file descriptor is readable when there is news, and
/// never blocks; [`drain`](Self::drain) it before looking.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// use portsteer::netlink::{Events, News, links};
///
/// let events = Events::subscribe(News::Interfaces)?;
/// let before = links()?;
/// // Now, or whenever the descriptor is readable:
/// if events.drain()? {
///     println!("{}", before == links()?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    socket: File,
}

impl Events {
    /// Starts listening in the network namespace that the calling thread is in; it goes on for
    /// that namespace from any thread. Changes from before are not told.
    ///
    /// # Errors
    ///
    /// If the kernel has no socket to give.
    pub fn subscribe(news: News) -> io::Result<Self> {
        let socket = open_socket(libc::NETLINK_ROUTE, libc::SOCK_NONBLOCK)?;
        // SAFETY: `sockaddr_nl` is plain data, for which all zeros are valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = news.group().cast_unsigned();
        // SAFETY: the socket is open, and pointer and size are those of `address`, which is alive
        // during the call and of the type that a netlink socket expects.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket }) }
    }

    /// Takes all the news that there is, and returns whether there was any. News that the kernel
    /// had to drop for lack of room is news as well. Never blocks.
    ///
    /// # Errors
    ///
    /// If the socket cannot be read, which it always can.
    pub fn drain(&self) -> io::Result<bool> {
        let mut any = false;
        loop {
            // The rest of a message goes with its beginning.
            match (&self.socket).read(&mut [0; 64]) {
                Ok(0) => return Ok(any),
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Tells that messages were dropped, once.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
