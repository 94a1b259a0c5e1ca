//! What attaching to each kind of device does, in each mode: the table in README.md, cell by cell. Real
//! sockets behind the device learn what passes, a namespace beside it what is steered.

use std::{
    collections::HashMap,
    env, fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use portsteer::{
    lab::{
        Device, End, Namespace, Tap, TapKind, Veth, VirtualKind,
        ethtool::{self, Offload},
    },
    netlink::{self, XdpMode, xdp_features},
};
use portsteer_testkit::{
    agent::{Agent, PATIENCE, Stats, is_slow, run_agent},
    packet::{IPV4, UDP, ethernet, ipv4, udp},
    raw_socket::RawSocket,
    sandbox::{sandbox, skip},
    site::{CLIENT_V4, HOST_V4, SILENCE, assert_nothing_arrived, attach_other_program, wait_until},
};

use crate::{INSTANCE, mac, rule, steer};

/// Ports that the policy has rules for.
const PASSED: u16 = 2001;
const DROPPED: u16 = 2000;
const STEERED: u16 = 3000;
/// Whom the frames of [`portsteer_testkit::packet`] are for, and where they come from.
const FRAMES_TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FRAMES_FROM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);
/// What tells this test's frames from others: the end of every datagram.
const MARK: &[u8] = b"portsteer attaches here";
/// How many datagrams go to each port.
const COUNT: u64 = 24;
/// Payloads that fit into an ordinary frame, and that take more than a page.
const SHORT: usize = 200;
const LONG: usize = 8_900;
const LONG_MTU: u32 = 9_000;

/// What attaching does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// What is to pass passes, what is to be dropped does not, what is to be steered arrives.
    Works,
    /// The policy does not come into force.
    Refused,
}

use Outcome::{Refused, Works};

/// A device to attach to, and who sends to it.
struct Yard {
    attached: Device,
    sender: Sender,
    /// Who has the host's addresses: the device itself, or another that gets what it passes on.
    host: Device,
    payload: usize,
}

enum Sender {
    /// Sockets of a namespace that shares a network with the host.
    Sockets(Namespace),
    /// Frames that this process makes.
    Tap(Tap),
}

impl Yard {
    /// Sockets on `client` and on `host` have a network of their own.
    fn with_sockets(attached: Device, host: Device, client: &Device) -> io::Result<Self> {
        client.add_address(CLIENT_V4, 24)?;
        host.add_address(HOST_V4, 24)?;
        let sender = Sender::Sockets(client.namespace().clone());
        Ok(Self { attached, sender, host, payload: SHORT })
    }

    fn with_frames(tap: Tap) -> io::Result<Self> {
        let attached = tap.device.clone();
        attached.add_address(FRAMES_TO, 24)?;
        // Without a way back the packets might be taken for forged.
        attached.add_route(FRAMES_FROM, 24, Ipv4Addr::new(192, 0, 2, 2))?;
        let (host, sender) = (attached.clone(), Sender::Tap(tap));
        Ok(Self { attached, sender, host, payload: SHORT })
    }

    fn namespace(&self) -> &Namespace {
        self.attached.namespace()
    }

    /// A datagram for the host, each from another port.
    fn send(&mut self, port: u16, number: u64) {
        let payload = [vec![b'.'; self.payload - MARK.len()], MARK.to_vec()].concat();
        match &mut self.sender {
            Sender::Sockets(client) => {
                let socket = client.run(|| UdpSocket::bind((CLIENT_V4, 0))).expect("a client");
                socket.send_to(&payload, (HOST_V4, port)).expect("a datagram can be sent");
            }
            Sender::Tap(tap) => {
                let datagram = udp(40_000 + number as u16, port, payload);
                let mut frame = ethernet(IPV4, ipv4(UDP, datagram));
                frame[..6].copy_from_slice(&tap.device.mac());
                tap.file.write_all(&frame).expect("a frame can be written");
            }
        }
    }

    /// A connection is made and carries an answer.
    fn connects(&self, port: u16) {
        let Sender::Sockets(client) = &self.sender else { return };
        let listener = self.namespace().run(|| TcpListener::bind((HOST_V4, port)));
        let listener = listener.expect("a server");
        let address = SocketAddr::from((HOST_V4, port));
        let stream = client.run(|| TcpStream::connect_timeout(&address, PATIENCE));
        let mut stream = stream.expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let (mut accepted, _) = listener.accept().expect("a connection");
        accepted.write_all(b"hello").expect("words can be sent");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"hello");
    }

    /// Nobody answers.
    fn does_not_connect(&self, port: u16) {
        let Sender::Sockets(client) = &self.sender else { return };
        let _listener = self.namespace().run(|| TcpListener::bind((HOST_V4, port)));
        let address = SocketAddr::from((HOST_V4, port));
        let error = client.run(|| TcpStream::connect_timeout(&address, SILENCE));
        assert_eq!(error.expect_err("silence").kind(), ErrorKind::TimedOut);
    }

    fn policy(&self, mode: &str, street: &Device) -> String {
        let target =
            format!("interface = \"{}\"\nmac = \"{}\"", street.name(), mac([2, 0, 0, 0, 0, 0x50]));
        [
            format!(
                "version = 1\ninterfaces = [\"{}\"]\nmode = \"{mode}\"\n",
                self.attached.name()
            ),
            steer(STEERED, &target),
            rule("passed", "udp", PASSED, "pass"),
            rule("dropped", "udp", DROPPED, "drop"),
            rule("dropped-tcp", "tcp", DROPPED, "drop"),
        ]
        .concat()
    }

    /// In which mode something is attached.
    fn mode(&self) -> Option<XdpMode> {
        self.attached.link().expect("the device").xdp.map(|xdp| xdp.mode)
    }

    /// Attaches in a mode, and sends packets of all kinds; asserts what becomes of them.
    fn check(&mut self, mode: &str, expected: Outcome, street: &Veth) {
        let policy = self.policy(mode, &street.left);
        if expected == Refused {
            let name = format!("`{}`", self.attached.name());
            run_agent(self.namespace(), INSTANCE, &policy).expect(3, &[&name]);
            assert_eq!(self.mode(), None, "nothing stays attached");
            return;
        }
        let agent = Agent::start(self.namespace(), INSTANCE, &policy);
        let obtained = if mode == "native" { XdpMode::Native } else { XdpMode::Generic };
        assert_eq!(self.mode(), Some(obtained), "{}", agent.log());
        self.wait_until_ready();
        wait_until("the target is ready", || self.stats().target("state") == "ready");

        let address = match &self.sender {
            Sender::Sockets(_) => HOST_V4,
            Sender::Tap(_) => FRAMES_TO.into(),
        };
        let server = |port| {
            let socket = self.namespace().run(|| UdpSocket::bind((address, port)));
            let socket = socket.expect("a UDP server");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
            socket
        };
        let [passed, dropped, steered] = [PASSED, DROPPED, STEERED].map(server);
        let beside = RawSocket::open(&street.right).expect("a raw socket");
        let before = self.stats();
        for number in 0..COUNT {
            for port in [PASSED, DROPPED, STEERED] {
                self.send(port, number);
            }
            let mut datagram = [0; 2 * LONG];
            let len = passed.recv(&mut datagram).expect("what is to pass passes");
            assert!(len == self.payload && datagram[..len].ends_with(MARK));
        }
        let frames = beside.marked_frames(MARK, COUNT as usize);
        assert!(frames.iter().all(|frame| frame.len() == 14 + 28 + self.payload), "{frames:02x?}");
        let counted = |name| self.stats().rule(name) - before.rule(name);
        wait_until("all are counted", || {
            ["passed", "dropped", "web"].into_iter().all(|name| counted(name) == COUNT)
        });
        assert_nothing_arrived(&dropped);
        assert_nothing_arrived(&steered);
        self.connects(PASSED);
        self.does_not_connect(DROPPED);
        agent.end(libc::SIGINT);
        assert_eq!(self.mode(), None, "nothing stays attached");
        self.wait_until_ready();
    }

    /// Waits until the host can be reached again: some drivers start anew when a program comes or goes.
    fn wait_until_ready(&self) {
        // A tap does not tell.
        if let Sender::Sockets(_) = self.sender {
            self.host.wait_until_ready().expect("the host can be reached");
        }
    }

    fn stats(&self) -> Stats {
        Stats::read(self.namespace(), INSTANCE)
    }
}

/// Builds a yard, and attaches in native mode and in generic mode. Left the choice, the agent takes
/// native mode where it can be had.
fn try_modes(
    build: impl FnOnce(&Namespace) -> io::Result<Yard> + Send,
    [native, generic]: [Outcome; 2],
) {
    sandbox(|| {
        let host = Namespace::new().expect("a namespace");
        let mut yard = match build(&host) {
            Ok(yard) => yard,
            // The kernels that `cargo xtask vm` boots know all kinds.
            Err(error) if error.kind() == ErrorKind::Unsupported && !is_slow() => {
                return skip(error);
            }
            Err(error) => panic!("{error}"),
        };
        let street = street(&yard);
        yard.check("native", native, &street);
        yard.check("generic", generic, &street);
        let policy = yard.policy("auto", &street.left);
        match (native, generic) {
            (Refused, Refused) => yard.check("auto", Refused, &street),
            (native, _) => {
                let _agent = Agent::start(&host, INSTANCE, &policy);
                let expected = if native == Works { XdpMode::Native } else { XdpMode::Generic };
                assert_eq!(yard.mode(), Some(expected));
            }
        }
    });
}

/// Where packets are steered: a veth pair to a fresh namespace, ready for native redirects.
fn street(yard: &Yard) -> Veth {
    let far = Namespace::new().expect("a namespace");
    let street = Veth::between(End::new(yard.namespace(), "to-web"), End::new(&far, "eth0"));
    let street = street.mtu(LONG_MTU).create().expect("a veth pair");
    street.right.set_offload(Offload::Gro, true).expect("the offload can be switched");
    street
}

/// A veth pair from a fresh namespace to the host, whose client sends frames as a wire has them.
fn cable(host: &Namespace, name: &str) -> io::Result<Veth> {
    let client = Namespace::new()?;
    let cable = Veth::between(End::new(&client, "client"), End::new(host, name)).create()?;
    like_a_wire(&cable.left)?;
    Ok(cable)
}

/// Has a device send frames as a wire has them: with their checksum and their tag, one by one.
fn like_a_wire(device: &Device) -> io::Result<()> {
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::TxVlan] {
        device.set_offload(offload, false)?;
    }
    Ok(())
}

#[test]
fn a_veth_with_several_queues() {
    const QUEUES: u32 = 4;
    let build = |host: &Namespace| {
        let client = Namespace::new()?;
        let cable = Veth::between(End::new(&client, "client"), End::new(host, "uplink"));
        let cable = cable.queues(QUEUES).create()?;
        like_a_wire(&cable.left)?;
        Yard::with_sockets(cable.right.clone(), cable.right, &cable.left)
    };
    try_modes(build, [Works, Works]);
}

/// Frames of several buffers are judged, and handed to CPUs, by all kernels.
#[test]
fn long_frames_on_a_veth() {
    sandbox(|| {
        let host = Namespace::new().expect("a namespace");
        let cable = cable(&host, "uplink").expect("a veth pair");
        for device in [&cable.left, &cable.right] {
            device.set_mtu(LONG_MTU).expect("an MTU");
        }
        let mut yard =
            Yard::with_sockets(cable.right.clone(), cable.right, &cable.left).expect("addresses");
        yard.payload = LONG;
        let policy = [
            "version = 1\ninterfaces = [\"uplink\"]\nmode = \"native\"\n".to_owned(),
            steer(STEERED, "cpus = [0]"),
            rule("passed", "udp", PASSED, "pass"),
            rule("dropped", "udp", DROPPED, "drop"),
        ]
        .concat();
        let agent = Agent::start(&host, INSTANCE, &policy);
        let server = |port| {
            let socket = host.run(|| UdpSocket::bind((HOST_V4, port))).expect("a UDP server");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
            socket
        };
        let [passed, dropped, steered] = [PASSED, DROPPED, STEERED].map(server);
        for number in 0..COUNT {
            for port in [PASSED, DROPPED, STEERED] {
                yard.send(port, number);
            }
            for socket in [&passed, &steered] {
                let mut datagram = [0; 2 * LONG];
                let len = socket.recv(&mut datagram).expect("a long datagram arrives");
                assert!(len == LONG && datagram[..len].ends_with(MARK));
            }
        }
        let stats = yard.stats();
        for name in ["passed", "dropped", "web"] {
            assert_eq!(stats.rule(name), COUNT, "{name}: {stats:?}");
        }
        let bytes = 3 * COUNT * (14 + 28 + LONG as u64);
        assert!(stats.interface_number("uplink", "bytes") >= bytes, "whole frames: {stats:?}");
        assert_nothing_arrived(&dropped);
        agent.end(libc::SIGINT);
    });
}

#[test]
fn a_tap() {
    let build = |host: &Namespace| Yard::with_frames(Tap::create(host, "tap0", TapKind::Tap)?);
    try_modes(build, [Works, Works]);
}

#[test]
fn a_tun() {
    let build = |host: &Namespace| Yard::with_frames(Tap::create(host, "tun0", TapKind::Tun)?);
    try_modes(build, [Refused, Refused]);
}

#[test]
fn a_bridge_port() {
    let build = |host: &Namespace| {
        let bridge = Device::create(host, "br0", VirtualKind::Bridge)?;
        let cable = cable(host, "port0")?;
        cable.right.join(&bridge)?;
        bridge.wait_until_ready()?;
        Yard::with_sockets(cable.right, bridge, &cable.left)
    };
    try_modes(build, [Works, Works]);
}

#[test]
fn a_bridge() {
    let build = |host: &Namespace| {
        let bridge = Device::create(host, "br0", VirtualKind::Bridge)?;
        let cable = cable(host, "port0")?;
        cable.right.join(&bridge)?;
        bridge.wait_until_ready()?;
        Yard::with_sockets(bridge.clone(), bridge, &cable.left)
    };
    try_modes(build, [Refused, Works]);
}

const VLAN_ID: u16 = 12;

/// A VLAN between two devices, of which the second is the host's.
fn vlan(cable: &Veth) -> io::Result<[Device; 2]> {
    let end = |lower: &Device| {
        let kind = VirtualKind::Vlan { lower, id: VLAN_ID };
        let vlan = Device::create(lower.namespace(), "vlan12", kind)?;
        vlan.wait_until_ready()?;
        Ok::<_, io::Error>(vlan)
    };
    Ok([end(&cable.left)?, end(&cable.right)?])
}

#[test]
fn a_vlan_device() {
    let build = |host: &Namespace| {
        let [client, vlan] = vlan(&cable(host, "trunk")?)?;
        Yard::with_sockets(vlan.clone(), vlan, &client)
    };
    try_modes(build, [Refused, Works]);
}

/// The program sees the trunk's frames with their tags, and the sockets are on the VLAN device.
#[test]
fn a_trunk_with_a_vlan_device() {
    sandbox(|| {
        let host = Namespace::new().expect("a namespace");
        let cable = cable(&host, "trunk").expect("a veth pair");
        let [client, vlan] = match vlan(&cable) {
            Err(error) if error.kind() == ErrorKind::Unsupported && !is_slow() => {
                return skip(error);
            }
            vlan => vlan.expect("a VLAN device"),
        };
        let yard = Yard::with_sockets(cable.right.clone(), vlan, &client).expect("addresses");
        let street = street(&yard);
        for mode in ["native", "generic"] {
            let agent = Agent::start(&host, INSTANCE, &yard.policy(mode, &street.left));
            for tag_in_frame in [true, false] {
                cable.left.set_offload(Offload::TxVlan, !tag_in_frame).expect("it can be switched");
                yard.connects(PASSED);
                let before = yard.stats().rule("dropped-tcp");
                yard.does_not_connect(DROPPED);
                assert!(yard.stats().rule("dropped-tcp") > before, "{mode}, tag {tag_in_frame}");
            }
            agent.end(libc::SIGINT);
        }
    });
}

#[test]
fn a_bond() {
    let build = |host: &Namespace| {
        let bond = Device::create(host, "bond0", VirtualKind::Bond)?;
        let client = Namespace::new()?;
        let bridge = Device::create(&client, "br0", VirtualKind::Bridge)?;
        for (near, far) in [("slave0", "far0"), ("slave1", "far1")] {
            let cable = Veth::between(End::new(&client, far), End::new(host, near)).create()?;
            like_a_wire(&cable.left)?;
            cable.left.join(&bridge)?;
            cable.right.set_down()?;
            cable.right.join(&bond)?;
        }
        like_a_wire(&bridge)?;
        bond.wait_until_ready()?;
        bridge.wait_until_ready()?;
        Yard::with_sockets(bond.clone(), bond, &bridge)
    };
    try_modes(build, [Works, Works]);
}

#[test]
fn a_macvlan() {
    let build = |host: &Namespace| {
        let cable = cable(host, "below")?;
        let kind = VirtualKind::Macvlan { lower: &cable.right };
        let macvlan = Device::create(host, "macvlan0", kind)?;
        macvlan.wait_until_ready()?;
        // The device below would answer for it too.
        cable.left.add_neighbor(HOST_V4, macvlan.mac())?;
        Yard::with_sockets(macvlan.clone(), macvlan, &cable.left)
    };
    try_modes(build, [Refused, Works]);
}

/// The two NICs that `cargo xtask vm` gives its guests, joined by a wire outside; none elsewhere.
///
/// They are real devices, so there is one pair for all tests, which therefore are one.
fn nics(client: &Namespace, host: &Namespace) -> Option<[Device; 2]> {
    match env::var("PORTSTEER_NICS").as_deref() {
        Ok("2") => {}
        Ok(other) => {
            skip(format!("this guest has {other} virtio NICs: `cargo xtask vm` said why"));
            return None;
        }
        Err(_) => {
            skip("virtio NICs are what the guests of `cargo xtask vm` have");
            return None;
        }
    }
    let nic = |last: u8, namespace| {
        let links = netlink::links().expect("the interfaces");
        let link = links.into_iter().find(|link| link.mac == Some([0x52, 0x54, 0, 0, 0, last]));
        Device::adopt(&link.expect("a NIC").name, namespace).expect("the NIC can be moved")
    };
    Some([nic(0, client), nic(1, host)])
}

/// How many interrupts each receive queue of the guest's NICs has had, by name.
fn interrupts() -> HashMap<String, u64> {
    let text = fs::read_to_string("/proc/interrupts").expect("the interrupts");
    let queue = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.last().filter(|name| name.contains("-input"))?;
        let counts = words.iter().skip(1).map_while(|word| word.parse::<u64>().ok());
        Some(((*name).to_owned(), counts.sum()))
    };
    text.lines().filter_map(queue).collect()
}

#[test]
fn virtio_nics() {
    sandbox(|| {
        let namespaces = [(); 2].map(|()| Namespace::new().expect("a namespace"));
        let [client, host] = &namespaces;
        let Some([near, nic]) = nics(client, host) else { return };
        for device in [&near, &nic] {
            device.set_mtu(1500).expect("an MTU");
            device.set_up().expect("it can be set up");
            device.wait_until_ready().expect("a carrier");
        }
        like_a_wire_if_possible(&near);
        let before = interrupts();
        let mut yard = Yard::with_sockets(nic.clone(), nic.clone(), &near).expect("addresses");
        let street = street(&yard);
        yard.check("native", Works, &street);
        yard.check("generic", Works, &street);
        let busy = interrupts()
            .into_iter()
            .filter(|(queue, count)| before.get(queue).is_some_and(|before| count > before));
        assert!(busy.count() > 2, "both queues of the NIC receive: {:?}", interrupts());

        // Frames of several buffers: the driver takes them natively from Linux 6.3 on.
        for device in [&near, &nic] {
            device.set_mtu(LONG_MTU).expect("an MTU");
        }
        yard.payload = LONG;
        let tells_features = xdp_features().expect("an answer").is_some();
        yard.check("native", if tells_features { Works } else { Refused }, &street);
        yard.check("generic", Works, &street);

        // As a target, a NIC takes native redirects only while it has a program of its own.
        let site_policy = |mode: &str| {
            let target = format!("interface = \"{}\"\nmac = \"{}\"", nic.name(), mac(near.mac()));
            let head = format!("version = 1\ninterfaces = [\"to-web\"]\nmode = \"{mode}\"\n");
            [head, steer(STEERED, &target)].concat()
        };
        let quoted = format!("`{}`", nic.name());
        run_agent(host, INSTANCE, &site_policy("native")).expect(3, &[&quoted]);
        for device in [&near, &nic] {
            device.set_mtu(1500).expect("an MTU");
        }
        street.left.set_mtu(1500).expect("an MTU");
        let arrives = |mode: &str| {
            let agent = Agent::start(host, INSTANCE, &site_policy(mode));
            wait_until("the target is ready", || yard.stats().target("state") == "ready");
            let wire = RawSocket::open(&near).expect("a raw socket");
            let sender = RawSocket::open(&street.right).expect("a raw socket");
            let frame = ethernet(IPV4, ipv4(UDP, udp(4711, STEERED, MARK)));
            for _ in 0..COUNT {
                sender.send(&frame).expect("a frame can be sent");
            }
            let frames = wire.marked_frames(MARK, COUNT as usize);
            let header = [near.mac(), nic.mac()].concat();
            assert!(frames.iter().all(|frame| frame.starts_with(&header)), "{frames:02x?}");
            agent.end(libc::SIGINT);
        };
        arrives("generic");
        let _program = attach_other_program(&nic, XdpMode::Native);
        nic.wait_until_ready().expect("it is there again");
        arrives("native");
    });
}

/// The same for a NIC, some of whose offloads are fixed.
fn like_a_wire_if_possible(device: &Device) {
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::TxVlan] {
        // A real wire is at its other end: what it is sent has its checksum whatever this says.
        let _ = device.namespace().run(|| ethtool::set(device.name(), offload, false));
    }
}
