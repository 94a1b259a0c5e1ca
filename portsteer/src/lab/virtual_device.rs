//! Devices that the kernel makes out of nothing or out of other devices. A kernel may lack any of
//! them.

use std::io;

use super::{Device, Namespace};
use crate::netlink::{self, Request, explain};

/// What a device is made as.
#[derive(Debug, Clone, Copy)]
pub enum VirtualKind<'a> {
    /// A switch; its ports are the devices that [join](Device::join) it.
    Bridge,
    /// One device for several that are each other's spares: those that [join](Device::join) it.
    /// It takes the Ethernet address of the first.
    Bond,
    /// The frames of one VLAN of another device (802.1Q).
    Vlan {
        /// The device that carries the VLAN.
        lower: &'a Device,
        /// 1 to 4094.
        id: u16,
    },
    /// Another device's twin with an Ethernet address of its own.
    Macvlan {
        /// The device that they share.
        lower: &'a Device,
    },
    /// A device that takes whatever is sent, and throws it away.
    Dummy,
}

/// `IFLA_BOND_MODE` and `IFLA_BOND_MIIMON`, `BOND_MODE_ACTIVEBACKUP` (include/uapi/linux/if_link.h
/// and if_bonding.h).
const BOND_MODE: u16 = 1;
const BOND_MIIMON: u16 = 3;
const ACTIVE_BACKUP: u8 = 1;
/// How often the bond looks whether its devices have a carrier, in milliseconds.
const BOND_LOOKS_EVERY: u32 = 10;
/// `IFLA_VLAN_ID`.
const VLAN_ID: u16 = 1;
/// `IFLA_MACVLAN_MODE` and `MACVLAN_MODE_BRIDGE`.
const MACVLAN_MODE: u16 = 1;
const MACVLAN_BRIDGE: u32 = 4;

impl VirtualKind<'_> {
    /// The name that `ip link add type` has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Bond => "bond",
            Self::Vlan { .. } => "vlan",
            Self::Macvlan { .. } => "macvlan",
            Self::Dummy => "dummy",
        }
    }

    /// The device that it is put on.
    const fn lower(&self) -> Option<&Device> {
        match self {
            Self::Vlan { lower, .. } | Self::Macvlan { lower } => Some(lower),
            Self::Bridge | Self::Bond | Self::Dummy => None,
        }
    }

    /// What is particular to the kind (`IFLA_INFO_DATA`).
    fn data(self, data: Request) -> Request {
        match self {
            Self::Bond => {
                data.bytes(BOND_MODE, &[ACTIVE_BACKUP]).number(BOND_MIIMON, BOND_LOOKS_EVERY)
            }
            Self::Vlan { id, .. } => data.bytes(VLAN_ID, &id.to_ne_bytes()),
            Self::Macvlan { .. } => data.number(MACVLAN_MODE, MACVLAN_BRIDGE),
            Self::Bridge | Self::Dummy => data,
        }
    }
}

impl Device {
    /// Makes a device and sets it up.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the kernel does not know the kind; others if it refuses.
    pub fn create(namespace: &Namespace, name: &str, kind: VirtualKind<'_>) -> io::Result<Self> {
        let mut request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .header(&netlink::link_header(0, 0, 0))
            .text(libc::IFLA_IFNAME, name);
        if let Some(lower) = kind.lower() {
            request = request.number(libc::IFLA_LINK, lower.index());
        }
        let request = request.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, kind.name())
                .nested(libc::IFLA_INFO_DATA, |data| kind.data(data))
        });
        namespace
            .run(|| request.done())
            .map_err(|error| explain(&error, &format!("cannot make the {} {name}", kind.name())))?;
        let device = Self::find(namespace, name)?;
        device.set_up()?;
        Ok(device)
    }

    /// Makes the device a port of a bridge, or, while it is down, one of a bond's, which sets it up.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn join(&self, master: &Self) -> io::Result<()> {
        self.request(
            Request::new(libc::RTM_NEWLINK, 0)
                .header(&netlink::link_header(self.index(), 0, 0))
                .number(libc::IFLA_MASTER, master.index()),
            || format!("cannot make {} a part of {}", self.name(), master.name()),
        )
    }
}
