//! A device's offloads, switched the way `ethtool -K` does.

use std::{
    io,
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
};

use crate::{lab::sys::interface_request, netlink::explain};

/// What a device does in the sender's or receiver's stead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Checksums of sent packets (`tx`). On a veth a checksum is then never written at all.
    TxChecksum,
    /// Checksums of received packets (`rx`).
    RxChecksum,
    /// Cutting large TCP segments (`tso`).
    Tso,
    /// Cutting large packets late (`gso`).
    Gso,
    /// Joining received packets (`gro`).
    Gro,
    /// VLAN tags of sent packets (`txvlan`).
    TxVlan,
    /// VLAN tags of received packets (`rxvlan`). XDP does not see tags that were taken off.
    RxVlan,
}

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETH_FLAG_TXVLAN: u32 = 1 << 7;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

impl Offload {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::TxChecksum,
        Self::RxChecksum,
        Self::Tso,
        Self::Gso,
        Self::Gro,
        Self::TxVlan,
        Self::RxVlan,
    ];

    /// The name that `ethtool -K` has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TxChecksum => "tx",
            Self::RxChecksum => "rx",
            Self::Tso => "tso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::TxVlan => "txvlan",
            Self::RxVlan => "rxvlan",
        }
    }

    /// How to ask for it and set it: commands, and a bit in the value.
    const fn commands(self) -> (u32, u32, u32) {
        match self {
            Self::RxChecksum => (0x14, 0x15, 1),
            Self::TxChecksum => (0x16, 0x17, 1),
            Self::Tso => (0x1e, 0x1f, 1),
            Self::Gso => (0x23, 0x24, 1),
            Self::Gro => (0x2b, 0x2c, 1),
            Self::TxVlan => (ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, ETH_FLAG_TXVLAN),
            Self::RxVlan => (ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, ETH_FLAG_RXVLAN),
        }
    }
}

/// Whether an interface of the calling thread's network namespace has the offload on.
///
/// # Errors
///
/// If there is no such interface, or it knows no offloads.
pub fn get(interface: &str, offload: Offload) -> io::Result<bool> {
    let (get, _, bit) = offload.commands();
    // Any socket will do: it names the network namespace.
    let socket = UnixDatagram::unbound()?;
    let value = ethtool_value(&socket, interface, get, 0).map_err(|error| {
        explain(&error, &format!("cannot read the offload {} of {interface}", offload.name()))
    })?;
    Ok(value & bit != 0)
}

/// Switches an offload of an interface of the calling thread's network namespace on or off.
///
/// # Errors
///
/// If there is no such interface, or the device does not let the offload be switched.
pub fn set(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    let cannot = |error: &io::Error| {
        let to = if on { "on" } else { "off" };
        let name = offload.name();
        explain(error, &format!("cannot switch the offload {name} of {interface} {to}"))
    };
    let (get_command, set_command, bit) = offload.commands();
    let socket = UnixDatagram::unbound()?;
    let before = ethtool_value(&socket, interface, get_command, 0).map_err(|e| cannot(&e))?;
    let wanted = if on { before | bit } else { before & !bit };
    if wanted == before {
        return Ok(());
    }
    ethtool_value(&socket, interface, set_command, wanted).map_err(|e| cannot(&e))?;
    // A device may accept the request and go on as before.
    if get(interface, offload)? == on {
        Ok(())
    } else {
        Err(cannot(&io::Error::new(io::ErrorKind::Unsupported, "the device keeps it as it is")))
    }
}

/// `SIOCETHTOOL` with a `struct ethtool_value`: returns the value that the kernel left there.
fn ethtool_value(
    socket: &UnixDatagram,
    interface: &str,
    command: u32,
    value: u32,
) -> io::Result<u32> {
    let mut argument = [command, value];
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_data = argument.as_mut_ptr().cast();
    // SAFETY: for SIOCETHTOOL the kernel reads `request`, and through its data pointer, for the
    // commands of `Offload::commands`, a `struct ethtool_value`: two u32, which it may write back.
    // `argument` is that, and outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(argument[1])
}
