//! What steering to each kind of device does, in each mode: the table in README.md, cell by cell. A
//! packet arrives, or the policy is refused, or the target shows the packet as lost.

use std::{
    any::Any,
    io::{self, ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use portsteer::{
    lab::{
        Device, End, Namespace, Tap, TapKind, Veth, VirtualKind, ethtool::Offload, poll_readable,
    },
    netlink::{LinkCounters, XdpMode, xdp_features},
};
use portsteer_testkit::{
    agent::{Agent, PATIENCE, Stats, is_slow, run_agent},
    packet::{IPV4, VLAN},
    raw_socket::RawSocket,
    sandbox::{sandbox, skip},
    site::{HOST_V4, Site, attach_other_program, wait_until},
};

use crate::{INSTANCE, head_for, mac, steer};

/// The service's address, which whoever is behind the target owns.
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
const PORT: u16 = 80;
/// The network between the host and the next hop.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 80, 1));
const NEXT_HOP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 80, 2));
/// Where nobody has a socket, for targets with no namespace behind them.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x50];
/// What tells this test's frames from others: the end of every datagram.
const MARK: &[u8] = b"portsteer steers here";
/// The length of the headers of IPv4 and UDP.
const IP_AND_UDP: usize = 20 + 8;
/// How many packets are steered.
const COUNT: u64 = 3;
/// The length of an ordinary IP packet, and of one that takes more than a page.
const SHORT: usize = 400;
const LONG: usize = 9000;

/// What becomes of a packet that is steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It comes out, with the right Ethernet addresses.
    Arrives,
    /// The policy does not come into force.
    Refused,
    /// It is shown among the target's losses, in this way and no other.
    Lost(&'static str),
    /// It is counted as steered and among what the interface itself has dropped.
    DroppedByInterface,
}

/// Native mode, for what kernels before 6.3 cannot do.
fn since_6_3(fate: Fate) -> Fate {
    if kernel_tells_features() { fate } else { Fate::Refused }
}

/// Whether the kernel tells which devices take native redirects.
fn kernel_tells_features() -> bool {
    xdp_features().expect("an answer").is_some()
}

/// A target, and who is behind it.
struct Road {
    target: Device,
    /// What the policy says of the next hop.
    next_hop: String,
    /// The link layer header that a packet has where it comes out.
    header: Vec<u8>,
    far: Far,
    /// The length of the IP packets that are sent.
    len: usize,
    /// Where nothing comes out.
    beside: Option<RawSocket>,
    /// What must last as long as the road does.
    _kept: Vec<Box<dyn Any>>,
}

/// Where packets come out.
enum Far {
    /// A namespace that owns [`SERVICE`].
    Host { socket: UdpSocket, wire: RawSocket },
    /// This process.
    Tap(Tap),
    /// Nowhere: the device itself takes them.
    Sink,
    /// Nowhere.
    Nobody,
}

impl Road {
    fn new(target: Device, next_hop: String, destination: [u8; 6], far: Far) -> Self {
        // A bond's address is not the one that it was made with.
        let source = target.link().expect("the target").mac.unwrap_or_default();
        let header = [&destination[..], &source, &IPV4.to_be_bytes()].concat();
        Self { target, next_hop, header, far, len: SHORT, beside: None, _kept: Vec::new() }
    }

    /// To a host that is asked for its Ethernet address.
    fn via(target: Device, eth0: &Device) -> Self {
        target.add_address(GATEWAY, 24).expect("an address");
        Self::new(target, format!("via = \"{NEXT_HOP}\""), eth0.mac(), Far::host(eth0))
    }

    /// To an Ethernet address that the policy knows.
    fn by_mac(target: Device, destination: [u8; 6], far: Far) -> Self {
        Self::new(target, format!("mac = \"{}\"", mac(destination)), destination, far)
    }

    /// With the addresses that the frame came with.
    fn as_it_is(target: Device, town: &Town, far: Far) -> Self {
        let cable = &town.site.cable;
        let header = [&cable.right.mac()[..], &cable.left.mac(), &IPV4.to_be_bytes()].concat();
        Self { header, ..Self::new(target, "mac = \"keep\"".to_owned(), [0; 6], far) }
    }

    fn len(self, len: usize) -> Self {
        Self { len, ..self }
    }

    fn keep(mut self, value: impl Any) -> Self {
        self._kept.push(Box::new(value));
        self
    }

    fn policy(&self, mode: &str) -> String {
        let target = format!("interface = \"{}\"\n{}", self.target.name(), self.next_hop);
        [head_for(mode), steer(PORT, &target)].concat()
    }
}

impl Far {
    /// A host that has [`NEXT_HOP`] and [`SERVICE`] on this device.
    fn host(eth0: &Device) -> Self {
        eth0.add_address(NEXT_HOP, 24).expect("an address");
        eth0.add_address(SERVICE, 32).expect("an address");
        // Without a way back the packets might be taken for forged.
        eth0.add_route(Ipv4Addr::UNSPECIFIED, 0, GATEWAY).expect("a route");
        let socket = eth0.namespace().run(|| UdpSocket::bind((SERVICE, PORT)));
        let socket = socket.expect("a UDP server");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        Self::Host { socket, wire: RawSocket::open(eth0).expect("a raw socket") }
    }

    /// The next of the test's frames, if one comes in time.
    fn frame(&mut self, within: Duration) -> Option<Vec<u8>> {
        match self {
            Self::Host { wire, .. } => marked_frame(within, |left| wire.receive(left)),
            Self::Tap(tap) => marked_frame(within, |left| {
                if poll_readable(&[tap.file.as_fd()], left)?.is_empty() {
                    return Ok(None);
                }
                let mut frame = vec![0; 64 * 1024];
                let len = tap.file.read(&mut frame)?;
                frame.truncate(len);
                Ok(Some(frame))
            }),
            Self::Sink | Self::Nobody => None,
        }
    }

    /// Asserts that the next packet has this header and this payload.
    fn expect(&mut self, header: &[u8], payload: &[u8]) {
        if let Self::Host { socket, .. } = self {
            let mut received = vec![0; 64 * 1024];
            let len = socket.recv(&mut received).expect("a datagram arrives");
            assert!(received[..len] == *payload, "the datagram is whole");
        }
        let frame = self.frame(PATIENCE).expect("a frame arrives");
        assert_eq!(frame[..header.len()], *header, "{frame:02x?}");
        assert_eq!(frame.len(), header.len() + IP_AND_UDP + payload.len(), "{frame:02x?}");
        assert!(frame.ends_with(payload), "{frame:02x?}");
    }
}

/// The first of the test's frames, if one comes in time.
fn marked_frame(
    within: Duration,
    mut receive: impl FnMut(Duration) -> io::Result<Option<Vec<u8>>>,
) -> Option<Vec<u8>> {
    let end = Instant::now() + within;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let frame = receive(left).expect("frames can be received")?;
        if frame.ends_with(MARK) {
            return Some(frame);
        }
    }
}

/// Who sends, and whose host steers.
struct Town {
    site: Site,
}

impl Town {
    fn new() -> Self {
        let site = Site::quiet();
        let client = &site.cable.left;
        client.add_route(Ipv4Addr::new(203, 0, 113, 0), 24, HOST_V4).expect("a route");
        // What comes over a wire has its checksum.
        for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso] {
            client.set_offload(offload, false).expect("the offload can be switched");
        }
        Self { site }
    }

    fn stats(&self) -> Stats {
        Stats::read(&self.site.host, INSTANCE)
    }

    /// A veth pair from a device of the host with this name to a fresh namespace, whose end is
    /// `eth0`.
    fn street(&self, name: &str) -> Veth {
        let far = Namespace::new().expect("a namespace");
        Veth::between(End::new(&self.site.host, name), End::new(&far, "eth0"))
            .create()
            .expect("a veth pair")
    }

    /// The same, ready for native redirects.
    fn native_street(&self, name: &str) -> Veth {
        let street = self.street(name);
        street.right.set_offload(Offload::Gro, true).expect("the offload can be switched");
        street
    }

    fn tap(&self) -> io::Result<Tap> {
        Tap::create(&self.site.host, "tap0", TapKind::Tap)
    }

    /// A bond of one device.
    fn bond(&self, device: &Device) -> io::Result<Device> {
        let bond = Device::create(&self.site.host, "bond0", VirtualKind::Bond)?;
        device.set_down()?;
        device.join(&bond)?;
        bond.wait_until_ready()?;
        Ok(bond)
    }

    /// Makes the client's network one of long frames.
    fn widen(&self) {
        for device in [&self.site.cable.left, &self.site.cable.right] {
            device.set_mtu(LONG as u32).expect("an MTU");
        }
    }

    /// Sends datagrams that nobody answers; returns their payload.
    fn send(&self, count: u64, len: usize) -> Vec<u8> {
        let mut payload = vec![b'.'; len - IP_AND_UDP - MARK.len()];
        payload.extend(MARK);
        let client = self.site.udp_client(SERVICE, PORT);
        for _ in 0..count {
            client.send(&payload).expect("a datagram can be sent");
        }
        payload
    }

    /// Puts the policy in force; asserts in which mode, and whether the agent chose generic mode for
    /// the target's sake.
    fn agent(&self, road: &Road, mode: &str, obtained: XdpMode) -> Agent {
        let agent = Agent::start(&self.site.host, INSTANCE, &road.policy(mode));
        assert_eq!(self.site.xdp_mode(), Some(obtained), "{}", agent.log());
        let chosen = agent.log().contains("generic mode, because target `web`");
        assert_eq!(chosen, mode == "auto" && obtained == XdpMode::Generic, "{}", agent.log());
        agent
    }

    /// Asserts that the policy does not come into force, for the target's sake.
    fn refused(&self, road: &Road, mode: &str) {
        let target = format!("`{}`", road.target.name());
        run_agent(&self.site.host, INSTANCE, &road.policy(mode)).expect(3, &[&target]);
        assert_eq!(self.site.xdp(), None, "nothing stays attached");
    }

    /// Puts the policy in force where it can be, and steers packets; asserts what becomes of them.
    fn steer(&self, road: &mut Road, mode: &str, obtained: XdpMode, fate: Fate) {
        if fate == Fate::Refused {
            return self.refused(road, mode);
        }
        let agent = self.agent(road, mode, obtained);
        let by_program = matches!(fate, Fate::Lost("down" | "unresolved"));
        let state = match fate {
            Fate::Lost(state) if by_program => state,
            _ => "ready",
        };
        wait_until(state, || self.stats().target("state") == state);

        let sent = counters(&road.target).tx_packets;
        let dropped = self.stats().target("interface_dropped").as_u64().unwrap_or(0);
        let payload = self.send(COUNT, road.len);
        if fate == Fate::Arrives && !matches!(road.far, Far::Sink) {
            (0..COUNT).for_each(|_| road.far.expect(&road.header, &payload));
        }
        // Drivers and tracepoints count a moment after the program.
        wait_until("the packets are counted", || match fate {
            Fate::Lost(way) => self.stats().lost(way) == COUNT,
            Fate::DroppedByInterface => {
                self.stats().target("interface_dropped").as_u64() == Some(dropped + COUNT)
            }
            _ if matches!(road.far, Far::Sink) => counters(&road.target).tx_packets == sent + COUNT,
            _ => self.stats().interface("uplink") == COUNT,
        });
        let (stats, _) = self.site.settled(INSTANCE);
        assert_eq!(road.far.frame(Duration::ZERO), None, "nothing else comes out");
        if let Some(beside) = &road.beside {
            let stray = marked_frame(Duration::ZERO, |left| beside.receive(left));
            assert_eq!(stray, None, "nor anywhere else");
        }

        let steered = if by_program { 0 } else { COUNT };
        assert_eq!(stats.interface("uplink"), COUNT, "{stats:?}");
        assert_eq!(stats.interface_number("uplink", "dropped"), COUNT - steered, "{stats:?}");
        assert_eq!(stats.target("packets"), steered, "{stats:?}");
        let lost = if let Fate::Lost(way) = fate { vec![(way, COUNT)] } else { Vec::new() };
        assert_eq!(losses(&stats), lost, "{stats:?}");
        agent.end(libc::SIGINT);
    }
}

fn counters(device: &Device) -> LinkCounters {
    device.link().expect("the device").counters
}

/// The ways in which the target has lost packets, and how many.
fn losses(stats: &Stats) -> Vec<(&str, u64)> {
    let losses = stats.target("lost").as_object().expect("the losses by their ways");
    let ways = losses.iter().map(|(way, count)| (way.as_str(), count.as_u64().expect("a number")));
    ways.filter(|(_, count)| *count > 0).collect()
}

/// Builds a road, and steers packets down it in native mode and in generic mode. Left the choice,
/// the agent takes native mode wherever it would not refuse it.
fn try_modes(build: impl FnOnce(&Town) -> io::Result<Road> + Send, [native, generic]: [Fate; 2]) {
    sandbox(|| {
        let town = Town::new();
        let mut road = match build(&town) {
            Ok(road) => road,
            // The kernels that `cargo xtask vm` boots know all kinds.
            Err(error) if error.kind() == ErrorKind::Unsupported && !is_slow() => {
                return skip(error);
            }
            Err(error) => panic!("{error}"),
        };
        town.steer(&mut road, "native", XdpMode::Native, native);
        town.steer(&mut road, "generic", XdpMode::Generic, generic);
        match (native, generic) {
            (Fate::Refused, Fate::Refused) => town.refused(&road, "auto"),
            (Fate::Refused, _) => drop(town.agent(&road, "auto", XdpMode::Generic)),
            _ => drop(town.agent(&road, "auto", XdpMode::Native)),
        }
    });
}

#[test]
fn a_veth_whose_peer_joins_packets() {
    let build = |town: &Town| {
        let street = town.native_street("to-web");
        Ok(Road::via(street.left, &street.right))
    };
    try_modes(build, [Fate::Arrives, Fate::Arrives]);
}

#[test]
fn a_veth_whose_peer_has_a_program() {
    let build = |town: &Town| {
        let street = town.street("to-web");
        let program = attach_other_program(&street.right, XdpMode::Native);
        Ok(Road::via(street.left, &street.right).keep(program))
    };
    try_modes(build, [Fate::Arrives, Fate::Arrives]);
}

#[test]
fn a_veth_whose_peer_is_not_prepared() {
    let build = |town: &Town| {
        let street = town.street("to-web");
        Ok(Road::via(street.left, &street.right))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_veth_whose_peer_is_down() {
    let build = |town: &Town| {
        let street = town.native_street("to-web");
        street.right.set_down()?;
        Ok(Road::by_mac(street.left, street.right.mac(), Far::Nobody).keep(street.right))
    };
    try_modes(build, [Fate::Lost("down"); 2]);
}

#[test]
fn a_veth_whose_peer_has_a_smaller_mtu() {
    let build = |town: &Town| {
        let street = town.native_street("to-web");
        street.right.set_mtu(1280)?;
        Ok(Road::via(street.left, &street.right).len(1400))
    };
    try_modes(build, [Fate::Lost("device"), Fate::DroppedByInterface]);
}

#[test]
fn a_veth_with_long_frames() {
    let build = |town: &Town| {
        town.widen();
        let street = town.native_street("to-web");
        for device in [&street.left, &street.right] {
            device.set_mtu(LONG as u32)?;
        }
        Ok(Road::via(street.left, &street.right).len(LONG))
    };
    try_modes(build, [since_6_3(Fate::Arrives), Fate::Arrives]);
}

#[test]
fn a_tap() {
    let build = |town: &Town| {
        let tap = town.tap()?;
        Ok(Road::by_mac(tap.device.clone(), STRANGER, Far::Tap(tap)))
    };
    try_modes(build, [Fate::Arrives, Fate::Arrives]);
}

#[test]
fn a_tap_that_gets_frames_as_they_are() {
    let build = |town: &Town| {
        let tap = town.tap()?;
        Ok(Road::as_it_is(tap.device.clone(), town, Far::Tap(tap)))
    };
    try_modes(build, [Fate::Arrives, Fate::Arrives]);
}

/// A tap has no way to take a frame in several pieces.
#[test]
fn a_tap_with_long_frames() {
    let build = |town: &Town| {
        town.widen();
        let tap = town.tap()?;
        tap.device.set_mtu(LONG as u32)?;
        Ok(Road::by_mac(tap.device.clone(), STRANGER, Far::Tap(tap)).len(LONG))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_tap_that_nobody_reads() {
    let build = |town: &Town| {
        let tap = town.tap()?;
        let queue = RawSocket::open(&tap.device)?;
        wait_until("its queue is full", || {
            (0..100).for_each(|_| queue.send(&[0; 60]).expect("a frame can be sent"));
            counters(&tap.device).tx_dropped > 0
        });
        Ok(Road::by_mac(tap.device.clone(), STRANGER, Far::Nobody).keep(tap))
    };
    try_modes(build, [Fate::Lost("device"), Fate::DroppedByInterface]);
}

#[test]
fn a_tap_that_nobody_holds() {
    let build = |town: &Town| Ok(Road::by_mac(town.tap()?.abandon()?, STRANGER, Far::Nobody));
    try_modes(build, [Fate::Lost("down"); 2]);
}

#[test]
fn a_tun() {
    let build = |town: &Town| {
        let tun = Tap::create(&town.site.host, "tun0", TapKind::Tun)?;
        Ok(Road::as_it_is(tun.device.clone(), town, Far::Tap(tun)))
    };
    try_modes(build, [Fate::Refused, Fate::Refused]);
}

#[test]
fn a_bridge() {
    let build = |town: &Town| {
        let bridge = Device::create(&town.site.host, "br0", VirtualKind::Bridge)?;
        let street = town.native_street("port0");
        street.left.join(&bridge)?;
        bridge.wait_until_ready()?;
        Ok(Road::via(bridge, &street.right))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

/// The frame leaves by the port and is not bridged.
#[test]
fn a_bridge_port() {
    let build = |town: &Town| {
        let bridge = Device::create(&town.site.host, "br0", VirtualKind::Bridge)?;
        let [street, other] = ["port0", "port1"].map(|port| town.native_street(port));
        street.left.join(&bridge)?;
        other.left.join(&bridge)?;
        bridge.wait_until_ready()?;
        let far = Far::host(&street.right);
        let road = Road::by_mac(street.left, street.right.mac(), far);
        Ok(Road { beside: Some(RawSocket::open(&other.right)?), ..road })
    };
    try_modes(build, [Fate::Arrives, Fate::Arrives]);
}

/// What a port hears, its bridge hears: the next hop's answer does not reach the port.
#[test]
fn a_bridge_port_with_a_next_hop_to_be_asked() {
    let build = |town: &Town| {
        let bridge = Device::create(&town.site.host, "br0", VirtualKind::Bridge)?;
        let street = town.native_street("port0");
        street.left.join(&bridge)?;
        bridge.wait_until_ready()?;
        Ok(Road::via(street.left, &street.right))
    };
    try_modes(build, [Fate::Lost("unresolved"); 2]);
}

#[test]
fn a_vlan() {
    const ID: u16 = 12;
    let build = |town: &Town| {
        let street = town.native_street("trunk");
        let vlan = |lower| VirtualKind::Vlan { lower, id: ID };
        let target = Device::create(&town.site.host, "vlan12", vlan(&street.left))?;
        let far = Device::create(street.right.namespace(), "vlan12", vlan(&street.right))?;
        target.wait_until_ready()?;
        let mut road = Road::via(target, &far);
        // On the trunk it has a tag.
        if let Far::Host { wire, .. } = &mut road.far {
            *wire = RawSocket::open(&street.right)?;
        }
        road.header.splice(12.., [VLAN, ID, IPV4].map(u16::to_be_bytes).concat());
        Ok(road)
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_macvlan() {
    let build = |town: &Town| {
        let street = town.native_street("below");
        let kind = VirtualKind::Macvlan { lower: &street.left };
        let target = Device::create(&town.site.host, "macvlan0", kind)?;
        target.wait_until_ready()?;
        Ok(Road::via(target, &street.right))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_dummy() {
    let build = |town: &Town| {
        let target = Device::create(&town.site.host, "dummy0", VirtualKind::Dummy)?;
        Ok(Road::by_mac(target, STRANGER, Far::Sink))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_bond_of_a_veth_whose_peer_joins_packets() {
    let build = |town: &Town| {
        let street = town.native_street("slave0");
        Ok(Road::via(town.bond(&street.left)?, &street.right))
    };
    // Before, the kernel would crash if the bond had the wrong device.
    try_modes(build, [since_6_3(Fate::Arrives), Fate::Arrives]);
}

#[test]
fn a_bond_of_a_veth_whose_peer_is_not_prepared() {
    let build = |town: &Town| {
        let street = town.street("slave0");
        Ok(Road::via(town.bond(&street.left)?, &street.right))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_bond_of_a_device_without_native_redirects() {
    let build = |town: &Town| {
        let slave = Device::create(&town.site.host, "slave0", VirtualKind::Dummy)?;
        Ok(Road::by_mac(town.bond(&slave)?, STRANGER, Far::Sink))
    };
    try_modes(build, [Fate::Refused, Fate::Arrives]);
}

#[test]
fn a_bond_of_nothing() {
    let build = |town: &Town| {
        let bond = Device::create(&town.site.host, "bond0", VirtualKind::Bond)?;
        Ok(Road::by_mac(bond, STRANGER, Far::Nobody))
    };
    try_modes(build, [Fate::Refused, Fate::Lost("down")]);
}

/// The tracepoint that tells what devices do not take tells of those of all network namespaces.
#[test]
fn devices_of_one_index_in_two_namespaces_are_told_apart() {
    sandbox(|| {
        let towns = [Town::new(), Town::new()];
        let [full, read] = towns.each_ref().map(|town| town.tap().expect("a tap"));
        assert_eq!(full.device.index(), read.device.index(), "fresh namespaces are alike");
        let policy = [
            head_for("native"),
            steer(PORT, &format!("interface = \"tap0\"\nmac = \"{}\"", mac(STRANGER))),
        ]
        .concat();
        let [one, other] = [INSTANCE, "other"];
        let _agents = [(&towns[0], one), (&towns[1], other)]
            .map(|(town, instance)| Agent::start(&town.site.host, instance, &policy));
        let stats = |index: usize| Stats::read(&towns[index].site.host, [one, other][index]);

        // Nobody reads the one, and everything is read from the other.
        wait_until("the queue of the first is full", || {
            towns[0].send(100, SHORT);
            stats(0).lost("device") > 0
        });
        let payload = towns[1].send(COUNT, SHORT);
        let mut far = Far::Tap(read);
        for _ in 0..COUNT {
            let frame = far.frame(PATIENCE).expect("a frame arrives");
            assert!(frame.ends_with(&payload));
        }
        assert_eq!(stats(1).target("packets"), COUNT);
        assert_eq!(losses(&stats(1)), [], "the first one's are not the second one's");
    });
}
