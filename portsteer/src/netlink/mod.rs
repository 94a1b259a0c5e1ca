//! Network interfaces and neighbours, as the kernel's netlink tells about them: of the network
//! namespace that the calling thread is in. (`/sys/class/net` would show the namespace it was
//! mounted in.)
//!
//! Everything here blocks, and only for as long as the kernel needs to answer; [`Events`] alone
//! never does. Numbers are in the machine's byte order, as the kernel has them. The requests are
//! few and the attributes plain, so they are written and read here byte by byte; attributes and
//! messages that are unknown are skipped, so that a newer kernel's answers stay readable.

mod events;
mod features;
mod neighbours;
mod request;
mod routes;
mod watch;

use std::{io, net::IpAddr};

pub use events::{Events, News};
pub use features::{XdpFeatures, xdp_features};
pub(crate) use neighbours::neighbour_header;
pub use neighbours::{Neighbour, NeighbourState, neighbour, resolve_neighbour};
pub(crate) use request::Request;
use request::{attributes, field, text};
pub use routes::route_to;
pub use watch::Watch;

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
    /// The index of a veth's other end, in whichever network namespace that is; other kinds of
    /// interface have none (`IFLA_LINK`).
    pub peer: Option<u32>,
    /// The same where the other end is in this network namespace too, so that the index can be
    /// looked up here (no `IFLA_LINK_NETNSID`).
    pub peer_index: Option<u32>,
    /// The index of the device that a VLAN device, macvlan or the like is put on, where that is in this
    /// network namespace (`IFLA_LINK`).
    pub lower: Option<u32>,
    /// The id of a VLAN device (`IFLA_VLAN_ID`).
    pub vlan: Option<u16>,
    /// The index of the bridge, bond, team or VRF that the interface is part of (`IFLA_MASTER`).
    pub master: Option<u32>,
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
    /// Frames for another Ethernet address, which the IP layer has dropped. Kernels before 5.19 do
    /// not count them.
    pub rx_otherhost_dropped: u64,
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

/// [`explain`] for what was asked of one interface: that there is none with the index is
/// `NotFound`.
fn explain_interface(error: &io::Error, what: &str) -> io::Error {
    if error.raw_os_error() == Some(libc::ENODEV) {
        io::Error::new(io::ErrorKind::NotFound, format!("{what}: {error}"))
    } else {
        explain(error, what)
    }
}

/// The `AF_*` of an address, and the address itself as it stands in attributes: in network order.
pub(crate) fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

/// `struct ifinfomsg`.
pub(crate) fn link_header(index: u32, flags: i32, change: i32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `IFLA_VLAN_ID` (include/uapi/linux/if_link.h).
const VLAN_ID: u16 = 1;

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
        peer: None,
        peer_index: None,
        lower: None,
        vlan: None,
        master: None,
        xdp: None,
        counters: LinkCounters::default(),
    };
    let number = |value| field(value, 0).map_or(0, u32::from_ne_bytes);
    let index = |value| field(value, 0).map(u32::from_ne_bytes).filter(|&index| index != 0);
    let mut is_elsewhere = false;
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            libc::IFLA_LINK => link.peer = index(value),
            libc::IFLA_LINK_NETNSID => is_elsewhere = true,
            libc::IFLA_MASTER => link.master = index(value),
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = number(value),
            libc::IFLA_OPERSTATE => link.operstate = value.first().copied().unwrap_or(0),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_NUM_RX_QUEUES => link.rx_queues = number(value),
            libc::IFLA_NUM_TX_QUEUES => link.tx_queues = number(value),
            libc::IFLA_LINKINFO => {
                let info = |wanted| attributes(value).find(|(kind, _)| *kind == wanted);
                link.kind = info(libc::IFLA_INFO_KIND).map(|(_, value)| text(value));
                if link.kind.as_deref() == Some("vlan") {
                    link.vlan = info(libc::IFLA_INFO_DATA)
                        .and_then(|(_, data)| attributes(data).find(|(kind, _)| *kind == VLAN_ID))
                        .and_then(|(_, id)| field(id, 0))
                        .map(u16::from_ne_bytes);
                }
            }
            libc::IFLA_XDP => link.xdp = parse_xdp(value),
            libc::IFLA_STATS64 => link.counters = parse_counters(value),
            _ => {}
        }
    }
    // For a VLAN or a tunnel the attribute is the device below.
    if link.kind.as_deref() != Some("veth") {
        link.lower = link.peer.take().filter(|_| !is_elsewhere);
    }
    link.peer_index = link.peer.filter(|_| !is_elsewhere);
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

/// What is of interest in `struct rtnl_link_stats64`.
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
        rx_otherhost_dropped: number(24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: &str, attributes: &[(u16, u32)]) -> Link {
        let header = Request::new(libc::RTM_NEWLINK, 0).header(&link_header(7, 0, 0));
        let message = attributes
            .iter()
            .fold(header, |message, &(kind, value)| message.number(kind, value))
            .nested(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, kind));
        parse_link(&message.into_payload()).expect("a link")
    }

    #[test]
    fn only_a_veth_has_a_peer_and_its_index_means_something_in_one_namespace() {
        let here = link("veth", &[(libc::IFLA_LINK, 8)]);
        assert_eq!((here.index, here.peer, here.peer_index), (7, Some(8), Some(8)));
        // The namespace's id may be 0.
        let elsewhere = link("veth", &[(libc::IFLA_LINK, 8), (libc::IFLA_LINK_NETNSID, 0)]);
        assert_eq!((elsewhere.peer, elsewhere.peer_index), (Some(8), None));
        let vlan = link("vlan", &[(libc::IFLA_LINK, 8)]);
        assert_eq!((vlan.peer, vlan.peer_index, vlan.lower), (None, None, Some(8)));
        assert_eq!(here.lower, None);
        let alone = link("veth", &[(libc::IFLA_LINK, 0)]);
        assert_eq!((alone.peer, alone.peer_index), (None, None));
    }

    #[test]
    fn a_link_may_have_a_master() {
        assert_eq!(link("veth", &[(libc::IFLA_MASTER, 9)]).master, Some(9));
        assert_eq!(link("veth", &[]).master, None);
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
