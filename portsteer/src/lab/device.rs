//! Network devices in namespaces.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    Namespace,
    ethtool::{self, Offload},
    sys,
};
use crate::netlink::{self, Link, Request, explain, family_and_bytes};

/// A device in a namespace. It stays when this is dropped: it goes with its namespace, or by
/// [`delete`](Self::delete).
#[derive(Debug, Clone)]
pub struct Device {
    namespace: Namespace,
    name: String,
    index: u32,
    mac: Option<[u8; 6]>,
}

/// `VETH_INFO_PEER`.
const VETH_INFO_PEER: u16 = 1;
/// `IF_OPER_UP`.
const OPERSTATE_UP: u8 = 6;
/// How long a veth end may take to become ready to send.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// The index of the next veth pair's right end. Given the choice, the kernel would give both ends
/// of a pair between two fresh namespaces the same index, mistake the link for one without a
/// peer, and take a second to bring it up.
static RIGHT_INDEX: AtomicU32 = AtomicU32::new(10_000);

impl Device {
    pub(super) fn find(namespace: &Namespace, name: &str) -> io::Result<Self> {
        let link = namespace.run(|| netlink::link_by_name(name))?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}"))
        })?;
        Ok(Self { namespace: namespace.clone(), name: link.name, index: link.index, mac: link.mac })
    }

    /// Takes an interface of this thread's network namespace into another, as it is: with its name,
    /// down. A real one is back here when that namespace has ended.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or the kernel refuses.
    pub fn adopt(name: &str, into: &Namespace) -> io::Result<Self> {
        let link = netlink::link_by_name(name)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}"))
        })?;
        Request::new(libc::RTM_NEWLINK, 0)
            .header(&netlink::link_header(link.index, 0, 0))
            .number(libc::IFLA_NET_NS_FD, into.as_fd().as_raw_fd().cast_unsigned())
            .done()
            .map_err(|error| explain(&error, &format!("cannot move {name}")))?;
        Self::find(into, name)
    }

    /// The namespace that the device is in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index in its namespace.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The Ethernet address; all zeros where the device has none.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac.unwrap_or_default()
    }

    /// What the kernel knows about the device now.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn link(&self) -> io::Result<Link> {
        self.namespace.run(|| netlink::link_by_name(&self.name))?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("the interface {} is gone", self.name))
        })
    }

    /// Adds an address, IPv6 addresses without duplicate address detection.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn add_address(&self, address: impl Into<IpAddr>, prefix_len: u8) -> io::Result<()> {
        let address = address.into();
        let (family, bytes) = family_and_bytes(address);
        // `struct ifaddrmsg`: family, prefix length, flags, scope, index.
        let mut header = [family, prefix_len, 0, 0, 0, 0, 0, 0];
        if address.is_ipv6() {
            header[2] = libc::IFA_F_NODAD as u8;
        }
        header[4..8].copy_from_slice(&self.index.to_ne_bytes());
        self.request(
            Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
                .header(&header)
                .bytes(libc::IFA_LOCAL, &bytes)
                .bytes(libc::IFA_ADDRESS, &bytes),
            || format!("cannot give {} the address {address}/{prefix_len}", self.name),
        )
    }

    /// Adds a permanent neighbour: nobody asks for its Ethernet address any more.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn add_neighbor(&self, address: impl Into<IpAddr>, mac: [u8; 6]) -> io::Result<()> {
        let address = address.into();
        let (family, bytes) = family_and_bytes(address);
        let header = netlink::neighbour_header(family, self.index, libc::NUD_PERMANENT, 0);
        self.request(
            Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
                .header(&header)
                .bytes(libc::NDA_DST, &bytes)
                .bytes(libc::NDA_LLADDR, &mac),
            || format!("cannot make {address} a neighbour of {}", self.name),
        )
    }

    /// Adds a route by way of a next hop; `destination` 0.0.0.0/0 or ::/0 is the default route.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn add_route(
        &self,
        destination: impl Into<IpAddr>,
        prefix_len: u8,
        via: impl Into<IpAddr>,
    ) -> io::Result<()> {
        let (destination, via) = (destination.into(), via.into());
        let (family, bytes) = family_and_bytes(destination);
        // `struct rtmsg`: family, prefix lengths of destination and source, TOS, table, protocol,
        // scope, type, flags.
        let mut header = [0; 12];
        header[0] = family;
        header[1] = prefix_len;
        header[4] = libc::RT_TABLE_MAIN;
        header[5] = libc::RTPROT_STATIC;
        header[7] = libc::RTN_UNICAST;
        self.request(
            Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
                .header(&header)
                .bytes(libc::RTA_DST, &bytes)
                .bytes(libc::RTA_GATEWAY, &family_and_bytes(via).1)
                .number(libc::RTA_OIF, self.index),
            || format!("cannot route {destination}/{prefix_len} via {via} on {}", self.name),
        )
    }

    /// Sets the largest size of a packet, link layer header not included.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.request(
            Request::new(libc::RTM_NEWLINK, 0)
                .header(&netlink::link_header(self.index, 0, 0))
                .number(libc::IFLA_MTU, mtu),
            || format!("cannot set the MTU of {} to {mtu}", self.name),
        )
    }

    /// Gives the device, which is down, another Ethernet address.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        self.request(
            Request::new(libc::RTM_NEWLINK, 0)
                .header(&netlink::link_header(self.index, 0, 0))
                .bytes(libc::IFLA_ADDRESS, &mac),
            || format!("cannot change the address of {}", self.name),
        )
    }

    /// Sets the device up.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_up(&self) -> io::Result<()> {
        self.set_flags(libc::IFF_UP, "up")
    }

    /// Sets the device down. Its IPv6 addresses and all its routes go.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_down(&self) -> io::Result<()> {
        self.set_flags(0, "down")
    }

    fn set_flags(&self, flags: i32, state: &str) -> io::Result<()> {
        self.request(
            Request::new(libc::RTM_NEWLINK, 0).header(&netlink::link_header(
                self.index,
                flags,
                libc::IFF_UP,
            )),
            || format!("cannot set {} {state}", self.name),
        )
    }

    /// Waits until the device can send: one with a carrier still discards what is sent until the
    /// kernel has noticed.
    ///
    /// # Errors
    ///
    /// If it takes too long, as where the device has no carrier, or does not tell of it.
    pub fn wait_until_ready(&self) -> io::Result<()> {
        self.wait_until_ready_for(&[])
    }

    /// A device with a carrier still discards what is sent until the kernel has noticed, and what
    /// comes for its IPv6 addresses until, after that, it has made their routes.
    fn wait_until_ready_for(&self, addresses: &[(IpAddr, u8)]) -> io::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while self.link()?.operstate != OPERSTATE_UP || !self.receives_for(addresses)? {
            if Instant::now() > deadline {
                let message = format!("{} did not become ready to send and receive", self.name);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether the namespace has local routes to those of the addresses that are IPv6.
    fn receives_for(&self, addresses: &[(IpAddr, u8)]) -> io::Result<bool> {
        let in_hex = |(address, _): &(IpAddr, u8)| match address {
            IpAddr::V6(address) => Some(format!("{:032x}", address.to_bits())),
            IpAddr::V4(_) => None,
        };
        let wanted: Vec<String> = addresses.iter().filter_map(in_hex).collect();
        if wanted.is_empty() {
            return Ok(true);
        }
        let read = || fs::read_to_string("/proc/thread-self/net/ipv6_route");
        let routes = self.namespace.run(read)?;
        // One a line (`ipv6_route_native_seq_show` in net/ipv6/ip6_fib.c): destination and prefix
        // length, the same of the source, next hop, metric, two counts, flags, all of these in
        // hexadecimal, and the device.
        let is_local_route = |line: &str, address: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [to, "80", _, _, _, _, _, _, flags, _] = fields[..] else { return false };
            let flags = u32::from_str_radix(flags, 16);
            to == address && flags.is_ok_and(|flags| flags & libc::RTF_LOCAL != 0)
        };
        Ok(wanted.iter().all(|address| routes.lines().any(|line| is_local_route(line, address))))
    }

    /// Switches an offload on or off.
    ///
    /// # Errors
    ///
    /// If the device does not let it be switched.
    pub fn set_offload(&self, offload: Offload, on: bool) -> io::Result<()> {
        self.namespace.run(|| ethtool::set(&self.name, offload, on))
    }

    /// Removes the device, and with one end of a veth pair the other.
    ///
    /// # Errors
    ///
    /// If it is gone already.
    pub fn delete(self) -> io::Result<()> {
        self.request(
            Request::new(libc::RTM_DELLINK, 0).header(&netlink::link_header(self.index, 0, 0)),
            || format!("cannot delete {}", self.name),
        )
    }

    pub(super) fn request(
        &self,
        request: Request,
        what: impl FnOnce() -> String,
    ) -> io::Result<()> {
        self.namespace.run(|| request.done()).map_err(|error| explain(&error, &what()))
    }
}

/// One end of a veth pair to be.
#[derive(Debug, Clone)]
pub struct End {
    namespace: Namespace,
    name: String,
    mac: Option<[u8; 6]>,
    rx_queues: Option<u32>,
    addresses: Vec<(IpAddr, u8)>,
}

impl End {
    /// An end with this name in this namespace.
    #[must_use]
    pub fn new(namespace: &Namespace, name: &str) -> Self {
        Self {
            namespace: namespace.clone(),
            name: name.to_owned(),
            mac: None,
            rx_queues: None,
            addresses: Vec::new(),
        }
    }

    /// Its Ethernet address. Without this the kernel chooses one.
    #[must_use]
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = Some(mac);
        self
    }

    /// How many queues it has for receiving, where that differs from [`VethBuilder::queues`].
    #[must_use]
    pub fn rx_queues(mut self, queues: u32) -> Self {
        self.rx_queues = Some(queues);
        self
    }

    /// One more IP address, with the length of its network's prefix.
    #[must_use]
    pub fn address(mut self, address: impl Into<IpAddr>, prefix_len: u8) -> Self {
        self.addresses.push((address.into(), prefix_len));
        self
    }
}

/// Two devices joined by a virtual cable.
#[derive(Debug, Clone)]
pub struct Veth {
    /// The first end of [`Veth::between`].
    pub left: Device,
    /// The second.
    pub right: Device,
}

/// A veth pair to be: see [`Veth::between`].
#[derive(Debug, Clone)]
#[must_use = "nothing is made before create()"]
pub struct VethBuilder {
    left: End,
    right: End,
    mtu: Option<u32>,
    queues: Option<u32>,
    neighbors: bool,
}

impl Veth {
    /// Describes a pair; [`VethBuilder::create`] makes it.
    pub fn between(left: End, right: End) -> VethBuilder {
        VethBuilder { left, right, mtu: None, queues: None, neighbors: false }
    }
}

impl VethBuilder {
    /// The MTU of both ends. Without this it is 1500.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// How many queues each end has, for receiving and for sending. Without this the kernel
    /// decides.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Makes the ends permanent neighbours of each other, so that neither ARP nor neighbour
    /// discovery is ever on the cable.
    pub fn static_neighbors(mut self) -> Self {
        self.neighbors = true;
        self
    }

    /// Makes the pair, both ends up, ready to send, and with their addresses.
    ///
    /// # Errors
    ///
    /// If the kernel refuses any of it.
    pub fn create(self) -> io::Result<Veth> {
        let Self { left, right, .. } = &self;
        let request = self
            .end_attributes(
                Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
                    .header(&netlink::link_header(0, 0, 0)),
                left,
            )
            .nested(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, |data| {
                    data.nested(VETH_INFO_PEER, |peer| {
                        let index = RIGHT_INDEX.fetch_add(1, Ordering::Relaxed);
                        self.end_attributes(peer.header(&netlink::link_header(index, 0, 0)), right)
                    })
                })
            });
        left.namespace.run(|| request.done()).map_err(|error| {
            explain(&error, &format!("cannot make the veth pair {} and {}", left.name, right.name))
        })?;

        let veth = Veth {
            left: Device::find(&left.namespace, &left.name)?,
            right: Device::find(&right.namespace, &right.name)?,
        };
        for (device, end, other_device, other_end) in
            [(&veth.left, left, &veth.right, right), (&veth.right, right, &veth.left, left)]
        {
            for &(address, prefix_len) in &end.addresses {
                device.add_address(address, prefix_len)?;
            }
            device.set_up()?;
            if self.neighbors {
                for &(address, _) in &other_end.addresses {
                    device.add_neighbor(address, other_device.mac())?;
                }
            }
        }
        veth.left.wait_until_ready_for(&left.addresses)?;
        veth.right.wait_until_ready_for(&right.addresses)?;
        Ok(veth)
    }

    fn end_attributes(&self, request: Request, end: &End) -> Request {
        let namespace = end.namespace.as_fd().as_raw_fd();
        let mut request = request
            .text(libc::IFLA_IFNAME, &end.name)
            .number(libc::IFLA_NET_NS_FD, namespace.cast_unsigned());
        if let Some(mac) = end.mac {
            request = request.bytes(libc::IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = self.mtu {
            request = request.number(libc::IFLA_MTU, mtu);
        }
        if let Some(queues) = end.rx_queues.or(self.queues) {
            request = request.number(libc::IFLA_NUM_RX_QUEUES, queues);
        }
        if let Some(queues) = self.queues {
            request = request.number(libc::IFLA_NUM_TX_QUEUES, queues);
        }
        request
    }
}

/// What goes through a [`Tap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TapKind {
    /// Ethernet frames.
    Tap,
    /// IP packets: the device has no link layer.
    Tun,
}

/// A device whose other end is this program: what the kernel sends on it is read from the file,
/// and what is written to the file the kernel receives. It goes when this is dropped.
#[derive(Debug)]
pub struct Tap {
    /// The device, in its namespace.
    pub device: Device,
    /// One frame or packet a `read` or `write`.
    pub file: File,
}

impl Tap {
    /// Makes a tap or tun device and sets it up.
    ///
    /// # Errors
    ///
    /// Without `/dev/net/tun`, or if the kernel refuses.
    pub fn create(namespace: &Namespace, name: &str, kind: TapKind) -> io::Result<Self> {
        let flags = libc::IFF_NO_PI
            | match kind {
                TapKind::Tap => libc::IFF_TAP,
                TapKind::Tun => libc::IFF_TUN,
            };
        let file = namespace.run(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .map_err(|error| explain(&error, "cannot open /dev/net/tun"))?;
            sys::make_tun(&file, name, flags)
                .map_err(|error| explain(&error, &format!("cannot make the device {name}")))?;
            Ok::<_, io::Error>(file)
        })?;
        let device = Device::find(namespace, name)?;
        device.set_up()?;
        Ok(Self { device, file })
    }

    /// Leaves the device behind, up, with no program at its other end and so without a carrier.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn abandon(self) -> io::Result<Device> {
        let Self { device, file } = self;
        sys::make_tun_persistent(&file)
            .map_err(|error| explain(&error, &format!("cannot make {} stay", device.name)))?;
        Ok(device)
    }
}
