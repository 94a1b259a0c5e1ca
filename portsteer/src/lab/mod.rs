//! A small network made on the spot, that leaves nothing behind: for the demo, the tests and the
//! benchmarks.
//!
//! A [`Namespace`] has no name on disk and a [`Veth`] lives in two of them, so the kernel removes
//! all of it when the last file descriptor is closed, be it by `kill -9`. [`private_mounts`] does
//! the same for what is pinned under `/sys/fs/bpf`. Nothing here needs the `ip` program.
//!
//! ```no_run
//! use std::net::Ipv4Addr;
//! use portsteer::lab::{End, Namespace, Veth};
//!
//! # fn main() -> std::io::Result<()> {
//! let (client, host) = (Namespace::new()?, Namespace::new()?);
//! let veth = Veth::between(
//!     End::new(&client, "client").address(Ipv4Addr::new(192, 0, 2, 2), 24),
//!     End::new(&host, "uplink").address(Ipv4Addr::new(192, 0, 2, 1), 24),
//! )
//! .mtu(1400)
//! .create()?;
//! let listener = host.run(|| std::net::TcpListener::bind("192.0.2.1:80"))?;
//! let stream = client.run(|| std::net::TcpStream::connect("192.0.2.1:80"))?;
//! # Ok(())
//! # }
//! ```

mod by_cpu;
mod device;
mod mounts;
mod namespace;
pub(crate) mod sys;
mod virtual_device;

pub use crate::ethtool;
pub use by_cpu::udp_sockets_by_cpu;
pub use device::{Device, End, Tap, TapKind, Veth, VethBuilder};
pub use mounts::{private_mounts, private_tmpfs};
pub use namespace::{Namespace, die_with_thread};
pub use sys::{incoming_cpu, poll_readable, send_signal, set_clock, stay_on_cpu, stay_on_this_cpu};
pub use virtual_device::VirtualKind;
