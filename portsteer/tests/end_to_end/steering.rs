//! Steering to interfaces: a service on another namespace's address, its replies routed back by the
//! host, and every way in which a target can fail.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    sync::PoisonError,
    thread,
    time::Duration,
};

use portsteer::{
    dataplane::kernel::loses_cpu_packets_in_generic_mode,
    lab::{Device, End, Namespace, Veth, VirtualKind, ethtool::Offload, incoming_cpu},
    netlink::{self, XdpMode},
};
use portsteer_common::steering::MAX_TARGETS;
use portsteer_testkit::{
    agent::{Agent, PATIENCE, Stats, is_slow, run_agent},
    sandbox::{sandbox, skip},
    site::{CLIENT_V4, HOST_V4, HOST_V6, SILENCE, Site, wait_until},
};

use crate::{CPUS, INSTANCE, head, mac, steer};

/// The service's addresses, which are the web namespace's alone: a host would take answers from an
/// address of its own for forged.
pub(crate) const SERVICE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
const SERVICE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 10));
/// The network between host and web.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 80, 1));
const WEB_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 80, 2));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 1));
const WEB_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 2));
pub(crate) const PORT: u16 = 80;

/// A site whose host has a namespace "web" behind an interface `to-web`.
pub(crate) struct Town {
    pub(crate) site: Site,
    web: Namespace,
    /// `to-web` and, in the namespace, `eth0`.
    pub(crate) street: Veth,
}

impl Town {
    pub(crate) fn new() -> Self {
        let site = Site::new();
        let web = Namespace::new().expect("a namespace");
        site.host.run(|| {
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{path}"), "1").expect("the host can forward");
            }
        });
        let street = street(&site, &web);
        let client = &site.cable.left;
        client.add_route(Ipv4Addr::new(203, 0, 113, 0), 24, HOST_V4).expect("a route");
        let network_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 0);
        client.add_route(network_v6, 64, HOST_V6).expect("a route");
        // What comes over a wire has its checksum and is no larger than a frame; what comes over a
        // veth pair is as the sending socket left it.
        for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso] {
            client.set_offload(offload, false).expect("the offload can be switched");
        }
        Self { site, web, street }
    }

    pub(crate) fn policy(mode: XdpMode, target: &str) -> String {
        [head(mode), steer(PORT, target)].concat()
    }

    pub(crate) fn agent(&self, mode: XdpMode, target: &str) -> Agent {
        Agent::start(&self.site.host, INSTANCE, &Self::policy(mode, target))
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats::read(&self.site.host, INSTANCE)
    }

    pub(crate) fn state(&self) -> String {
        self.stats().target("state").as_str().unwrap_or_default().to_owned()
    }

    /// A datagram that nobody answers.
    fn send(&self, len: usize) {
        self.site.udp_client(SERVICE_V4, PORT).send(&vec![0; len]).expect("a datagram can be sent");
    }

    /// Sends a datagram, and waits until it was counted as lost for this reason, and as that alone.
    fn loses(&self, reason: &str, field: &str, len: usize) {
        let before = self.stats();
        self.send(len);
        let packets = |stats: &Stats| stats.reason("drop", reason);
        wait_until("the datagram is counted", || packets(&self.stats()) == packets(&before) + 1);
        let after = self.stats();
        assert_eq!(after.lost(field), before.lost(field) + 1, "{after:?}");
        assert_eq!(after.rule("web"), before.rule("web"), "it was not steered: {after:?}");
    }

    /// Sends datagrams until one arrives.
    pub(crate) fn arrives(&self, server: &UdpSocket) {
        let client = self.site.udp_client(SERVICE_V4, PORT);
        server.set_read_timeout(Some(Duration::from_millis(50))).expect("a time limit");
        wait_until("a datagram arrives", || {
            client.send(b"anybody there?").is_ok() && server.recv(&mut [0; 64]).is_ok()
        });
    }

    pub(crate) fn udp_server(&self) -> UdpSocket {
        self.web.run(|| UdpSocket::bind((SERVICE_V4, PORT))).expect("a UDP server")
    }

    fn tcp_server(&self, address: IpAddr) -> TcpListener {
        self.web.run(|| TcpListener::bind((address, PORT))).expect("a TCP server")
    }
}

/// The pair between host and web, ready for native redirects.
fn street(site: &Site, web: &Namespace) -> Veth {
    street_named(site, web, "to-web")
}

fn street_named(site: &Site, web: &Namespace, name: &str) -> Veth {
    let street = Veth::between(
        End::new(&site.host, name).address(GATEWAY_V4, 24).address(GATEWAY_V6, 64),
        End::new(web, "eth0").address(WEB_V4, 24).address(WEB_V6, 64),
    )
    .create()
    .expect("a veth pair");
    let eth0 = &street.right;
    eth0.add_address(SERVICE_V4, 32).expect("an address");
    eth0.add_address(SERVICE_V6, 128).expect("an address");
    eth0.add_route(Ipv4Addr::UNSPECIFIED, 0, GATEWAY_V4).expect("a route");
    eth0.add_route(Ipv6Addr::UNSPECIFIED, 0, GATEWAY_V6).expect("a route");
    // Without it, and without XDP, the receiving end takes no redirected frames.
    eth0.set_offload(Offload::Gro, true).expect("the offload can be switched");
    // The way back, the same as for the client.
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso] {
        eth0.set_offload(offload, false).expect("the offload can be switched");
    }
    street
}

pub(crate) const VIA: &str = "interface = \"to-web\"\nvia = \"10.0.80.2\"";

#[test]
fn connections_lead_to_the_target_in_native_mode() {
    sandbox(|| connections_lead_to_the_target(XdpMode::Native));
}

#[test]
fn connections_lead_to_the_target_in_generic_mode() {
    sandbox(|| connections_lead_to_the_target(XdpMode::Generic));
}

fn connections_lead_to_the_target(mode: XdpMode) {
    let town = Town::new();
    let targets = [
        VIA.to_owned(),
        "interface = \"to-web\"\nvia = \"fd00:80::2\"".to_owned(),
        format!("interface = \"to-web\"\nmac = \"{}\"", mac(town.street.right.mac())),
    ];
    for target in targets {
        let agent = town.agent(mode, &target);
        assert_eq!(town.state(), "ready", "{target}: {}", agent.log());
        for address in [SERVICE_V4, SERVICE_V6] {
            let server = town.tcp_server(address);
            let mut client = town.site.connect(address, PORT, PATIENCE).expect("it answers");
            let (mut served, peer) = server.accept().expect("a connection");
            assert_eq!(peer.ip().is_ipv4(), address.is_ipv4());
            client.write_all(b"hello").expect("it can be said");
            let mut heard = [0; 5];
            served.read_exact(&mut heard).expect("it is heard");
            served.write_all(b"web").expect("it can be answered");
            client.read_exact(&mut heard[..3]).expect("the answer comes");
            assert_eq!(&heard[..3], b"web");
        }
        let (stats, _) = town.site.settled(INSTANCE);
        assert!(stats.rule("web") >= 8, "{stats:?}");
        assert_eq!(stats.target("packets"), stats.rule("web"), "{stats:?}");
        assert_eq!(stats.interface_number("uplink", "steered"), stats.rule("web"));
        assert_eq!(stats.reason("steer", "rule"), stats.rule("web"));
        assert_eq!(stats.interface_number("uplink", "dropped"), 0, "{stats:?}");
        agent.end(libc::SIGINT);
    }
}

#[test]
fn bulk_data_is_steered_unharmed_in_native_mode() {
    sandbox(|| bulk_data_is_steered_unharmed(XdpMode::Native));
}

#[test]
fn bulk_data_is_steered_unharmed_in_generic_mode() {
    sandbox(|| bulk_data_is_steered_unharmed(XdpMode::Generic));
}

fn bulk_data_is_steered_unharmed(mode: XdpMode) {
    let megabytes = if is_slow() { 10 } else { 100 };
    let town = Town::new();
    let _agent = town.agent(mode, VIA);
    let server = town.tcp_server(SERVICE_V4);
    let client = town.site.connect(SERVICE_V4, PORT, PATIENCE).expect("it answers");
    let (served, _) = server.accept().expect("a connection");
    served.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let (sent, came) = thread::scope(|scope| {
        let sender = scope.spawn(|| send_megabytes(&client, megabytes));
        let came = checksum(&served);
        (sender.join().expect("a sender"), came)
    });
    assert_eq!(came, sent);
    assert_eq!(came.0, megabytes << 20);
    let (stats, _) = town.site.settled(INSTANCE);
    assert!(stats.target("bytes").as_u64() > Some(megabytes << 20), "{stats:?}");
    assert_eq!(stats.interface_number("uplink", "dropped"), 0, "{stats:?}");
}

/// FNV-1a over numbered words, and how many bytes there were.
fn send_megabytes(mut stream: &TcpStream, megabytes: u64) -> (u64, u64) {
    let (mut len, mut hash) = (0, FNV_START);
    let mut block = vec![0; 1 << 20];
    for number in 0..megabytes {
        for (index, byte) in block.iter_mut().enumerate() {
            *byte = (number as usize * 31 + index * 7 + index / 251) as u8;
        }
        stream.write_all(&block).expect("a block can be sent");
        hash = fnv(hash, &block);
        len += block.len() as u64;
    }
    stream.shutdown(Shutdown::Write).expect("an end");
    (len, hash)
}

fn checksum(mut stream: &TcpStream) -> (u64, u64) {
    let (mut len, mut hash) = (0, FNV_START);
    let mut block = vec![0; 1 << 16];
    loop {
        let read = stream.read(&mut block).expect("data comes");
        if read == 0 {
            return (len, hash);
        }
        hash = fnv(hash, &block[..read]);
        len += read as u64;
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn a_target_that_fails_is_counted_by_its_reason_and_comes_back() {
    sandbox(|| {
        let town = Town::new();
        let _agent = town.agent(XdpMode::Native, VIA);
        assert_eq!(town.state(), "ready");
        let server = town.udp_server();
        town.arrives(&server);
        let state_is = |state: &str| wait_until(state, || town.state() == state);

        // A frame longer than the target's interface takes.
        town.street.left.set_mtu(1300).expect("an MTU");
        wait_until("the MTU is known", || {
            let before = town.stats().lost("mtu");
            town.send(1400);
            thread::sleep(Duration::from_millis(20));
            town.stats().lost("mtu") > before
        });
        town.loses("target-mtu", "mtu", 1400);
        town.arrives(&server);
        town.street.left.set_mtu(1500).expect("an MTU");

        // Down, and up again.
        town.street.left.set_down().expect("it can be set down");
        state_is("down");
        town.loses("target-down", "down", 100);
        town.street.left.set_up().expect("it can be set up");
        state_is("ready");
        town.arrives(&server);

        // Gone, and back with another index and other addresses.
        let Town { site, web, street } = town;
        street.left.delete().expect("it can be removed");
        let town = Town { street: Veth { ..placeholder(&site) }, site, web };
        wait_until("gone", || town.state() == "gone");
        town.loses("target-gone", "gone", 100);
        drop(server);
        let Town { site, web, street } = town;
        street.left.delete().expect("the placeholder can be removed");
        let street = self::street(&site, &web);
        let town = Town { site, web, street };
        wait_until("ready", || town.state() == "ready");
        town.arrives(&town.udp_server());

        // The neighbour moves to another Ethernet address.
        let eth0 = &town.street.right;
        eth0.set_down().expect("it can be set down");
        eth0.set_mac([2, 0, 0, 0, 0, 99]).expect("an address can be changed");
        eth0.set_up().expect("it can be set up");
        eth0.add_route(Ipv4Addr::UNSPECIFIED, 0, GATEWAY_V4).expect("a route");
        town.arrives(&town.udp_server());
    });
}

/// A pair that stands in for one that is gone.
fn placeholder(site: &Site) -> Veth {
    Veth::between(End::new(&site.host, "spare0"), End::new(&site.host, "spare1"))
        .create()
        .expect("a veth pair")
}

#[test]
fn a_next_hop_that_does_not_answer_is_counted_until_it_does() {
    sandbox(|| {
        let town = Town::new();
        let agent = town.agent(XdpMode::Native, "interface = \"to-web\"\nvia = \"10.0.80.77\"");
        assert_eq!(town.state(), "unresolved", "{}", agent.log());
        town.loses("target-unresolved", "unresolved", 100);
        town.street.right.add_address(Ipv4Addr::new(10, 0, 80, 77), 24).expect("an address");
        wait_until("it answers", || town.state() == "ready");
        town.arrives(&town.udp_server());
    });
}

#[test]
fn what_the_kernel_refuses_is_counted_without_an_agent() {
    sandbox(|| {
        let town = Town::new();
        let mut agent = town.agent(XdpMode::Native, VIA);
        town.arrives(&town.udp_server());
        // From here on nobody tells the program what becomes of the interface.
        agent.stop(libc::SIGTERM);
        town.street.left.set_down().expect("it can be set down");
        let before = town.stats();
        for _ in 0..5 {
            town.send(100);
        }
        wait_until("the datagrams are counted", || {
            town.stats().rule("web") >= before.rule("web") + 5
        });
        let after = town.stats();
        assert_eq!(after.lost("refused"), before.lost("refused") + 5, "{after:?}");
        assert_eq!(after.lost("down"), 0, "{after:?}");

        // A new definition of the target starts at zero, and a policy that does not steer needs no
        // watchers.
        town.street.left.set_up().expect("it can be set up");
        agent.restart();
        assert_eq!(town.stats().lost("refused"), after.lost("refused"));
        assert_eq!(watchers(), ["watch_refused", "watch_sent"]);
        agent.swap(&Town::policy(XdpMode::Native, "cpus = [0]"));
        assert_eq!(watchers(), ["watch_queued", "watch_refused"]);
        agent.swap(&head(XdpMode::Native));
        assert_eq!(watchers(), [""; 0]);
        agent.end(libc::SIGINT);
    });
}

#[test]
fn what_a_device_does_not_take_is_counted() {
    sandbox(|| {
        let town = Town::new();
        let _agent = town.agent(XdpMode::Native, VIA);
        town.arrives(&town.udp_server());
        // Without it the receiving end of a veth pair takes no redirected frames any more.
        town.street.right.set_offload(Offload::Gro, false).expect("the offload can be switched");
        // From 6.3 on the kernel knows that and refuses; before, the device has to.
        let way = if kernel_knows() { "refused" } else { "device" };
        let before = town.stats();
        for _ in 0..5 {
            town.send(100);
        }
        wait_until("the datagrams are counted", || town.stats().lost(way) >= before.lost(way) + 5);
        if kernel_knows() {
            wait_until("it is said", || town.state() == "refusing");
        }
        let after = town.stats();
        assert_eq!(after.lost(way), before.lost(way) + 5, "{after:?}");
        assert!(after.rule("web") >= before.rule("web") + 5, "{after:?}");
    });
}

/// The links to tracepoints that are pinned, without the object's name.
fn watchers() -> Vec<String> {
    let directory = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE);
    let entries = fs::read_dir(directory).expect("the instance's pins");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("a pin").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("watch_"))
        .filter_map(|name| name.rsplit_once('_').map(|(watcher, _)| watcher.to_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn what_finds_no_room_in_a_queue_is_counted() {
    sandbox(|| {
        let town = Town::new();
        let _agent = town.agent(XdpMode::Native, "cpus = [0]\nqueue = 1");
        let server = town.site.udp_server(HOST_V4, PORT);
        let client = town.site.udp_client(HOST_V4, PORT);
        server.set_read_timeout(Some(SILENCE)).expect("a time limit");
        let mut received = 0;
        wait_until("the queue overflows", || {
            // Fewer than the socket's buffer holds, where each takes a page.
            for _ in 0..25 {
                client.send(&[0; 1]).expect("a datagram can be sent");
            }
            while server.recv(&mut [0; 64]).is_ok() {
                received += 1;
            }
            town.stats().lost("queue") > 0
        });
        let stats = town.stats();
        assert_eq!(stats.rule("web"), received + stats.lost("queue"), "{stats:?}");
    });
}

#[test]
fn a_swap_moves_a_rule_to_another_target() {
    sandbox(|| {
        let town = Town::new();
        let other = Namespace::new().expect("a namespace");
        let lane = Veth::between(
            End::new(&town.site.host, "to-other").address(Ipv4Addr::new(10, 0, 81, 1), 24),
            End::new(&other, "eth0").address(Ipv4Addr::new(10, 0, 81, 2), 24),
        )
        .create()
        .expect("a veth pair");
        lane.right.add_address(SERVICE_V4, 32).expect("an address");
        lane.right.set_offload(Offload::Gro, true).expect("the offload can be switched");
        let there = other.run(|| UdpSocket::bind((SERVICE_V4, PORT))).expect("a UDP server");
        let here = town.udp_server();

        let mut agent = town.agent(XdpMode::Native, VIA);
        town.arrives(&here);
        let before = town.stats().rule("web");
        agent.swap(&Town::policy(XdpMode::Native, "interface = \"to-other\"\nvia = \"10.0.81.2\""));
        town.arrives(&there);
        assert!(!agent.log().contains("`web` is gone"), "the rule is there: {}", agent.log());
        let stats = town.stats();
        assert!(stats.rule("web") > before, "the rule goes on counting: {stats:?}");
        let steered = stats.target("packets").as_u64().expect("a number");
        assert!(steered < stats.rule("web"), "a new target starts at zero: {stats:?}");
        here.set_read_timeout(Some(SILENCE)).expect("a time limit");
        while here.recv(&mut [0; 64]).is_ok() {}
        town.send(10);
        assert!(here.recv(&mut [0; 64]).is_err(), "nothing goes to the target before");

        // The next one gets the first one's slot, but not its count.
        let mac = format!("interface = \"to-web\"\nmac = \"{}\"", mac(town.street.right.mac()));
        agent.swap(&Town::policy(XdpMode::Native, &mac));
        let before = town.stats();
        assert_eq!(before.target("packets").as_u64(), Some(0), "{before:?}");
        town.arrives(&here);
        assert!(town.stats().rule("web") > before.rule("web"));
    });
}

#[test]
fn a_target_that_is_not_there_yet_is_waited_for() {
    sandbox(|| {
        let town = Town::new();
        let agent = town.agent(XdpMode::Native, &VIA.replace("to-web", "to-wep"));
        let log = agent.log();
        assert!(log.contains("target `web`: there is no interface `to-wep`"), "{log}");
        assert!(log.contains("did you mean `to-web`?"), "{log}");
        assert_eq!(town.state(), "gone");
        town.loses("target-gone", "gone", 100);
        let Town { site, web, street } = town;
        street.left.delete().expect("it can be removed");
        let street = self::street_named(&site, &web, "to-wep");
        let town = Town { site, web, street };
        wait_until("ready", || town.state() == "ready");
        town.arrives(&town.udp_server());
    });
}

/// A policy with as many targets as there may be, of which the last is `web`.
fn with_all_targets(prefix: &str) -> String {
    let others: String = (1..MAX_TARGETS)
        .map(|number| {
            let mac = format!("02:00:00:00:{:02x}:{:02x}", number >> 8, number & 0xff);
            format!("[targets.{prefix}{number}]\ninterface = \"to-web\"\nmac = \"{mac}\"\n")
        })
        .collect();
    let policy = Town::policy(XdpMode::Native, VIA);
    policy.replacen("[targets.web]", &format!("{others}[targets.web]"), 1)
}

#[test]
fn all_targets_that_a_policy_may_have_can_be_replaced_at_once() {
    sandbox(|| {
        let town = Town::new();
        let mut agent = Agent::start(&town.site.host, INSTANCE, &with_all_targets("a"));
        let server = town.udp_server();
        town.arrives(&server);
        for prefix in ["b", "c"] {
            agent.swap(&with_all_targets(prefix));
            town.arrives(&server);
        }
        let one_more =
            with_all_targets("d").replacen("[targets", "[targets.more]\ncpus = [0]\n[targets", 1);
        assert!(agent.swap_refused(&one_more).contains("the policy has 1025 targets"));
        town.arrives(&server);
    });
}

#[test]
fn targets_that_cannot_be_right_are_refused() {
    sandbox(|| {
        let town = Town::new();
        let refused = |target: &str, said: &[&str]| {
            let policy = Town::policy(XdpMode::Native, target);
            run_agent(&town.site.host, INSTANCE, &policy).expect(3, said);
            assert_eq!(town.site.xdp(), None, "nothing stays attached");
        };
        let circle = Town::policy(XdpMode::Native, "interface = \"uplink\"\nmac = \"keep\"");
        run_agent(&town.site.host, INSTANCE, &circle).expect(2, &["`web` steers in a circle"]);
        let by_glob = circle.replace("[\"uplink\"]", "[\"upl*\"]");
        run_agent(&town.site.host, INSTANCE, &by_glob).expect(3, &["targets are left out: uplink"]);
        refused("cpus = [0, 1000]", &["this machine has no CPU 1000", "online are: 0"]);
    });
}

/// A circle by way of a device that is put on the other end, or that the other end is a part of.
#[test]
fn circles_through_other_devices_are_found() {
    sandbox(|| {
        let town = Town::new();
        let host = &town.site.host;
        let cable = Veth::between(End::new(host, "inner"), End::new(host, "outer"));
        let outer = cable.create().expect("a veth pair").right;
        let policy = |target: &str| {
            let target = format!("interface = \"{target}\"\nmac = \"keep\"");
            Town::policy(XdpMode::Generic, &target).replace("uplink", "inner")
        };
        let macvlan = VirtualKind::Macvlan { lower: &outer };
        match Device::create(host, "macvlan0", macvlan) {
            Err(error) if error.kind() == ErrorKind::Unsupported && !is_slow() => {
                skip(error);
            }
            macvlan => {
                let macvlan = macvlan.expect("a macvlan");
                run_agent(host, INSTANCE, &policy("macvlan0"))
                    .expect(3, &["`web` steers in a circle"]);
                macvlan.delete().expect("it can be removed");
            }
        }
        // Whether a bridge sends it there is its own affair.
        let bridge = Device::create(host, "br0", VirtualKind::Bridge).expect("a bridge");
        outer.join(&bridge).expect("it can be a port");
        let agent = Agent::start(host, INSTANCE, &policy("br0"));
        assert!(agent.log().contains("it goes round for ever"), "{}", agent.log());
        agent.end(libc::SIGINT);
    });
}

/// An agent in the wrong network namespace must not look for the targets there.
#[test]
fn a_start_that_is_refused_elsewhere_changes_nothing() {
    sandbox(|| {
        let town = Town::new();
        let server = town.udp_server();
        let agent = town.agent(XdpMode::Native, VIA);
        town.arrives(&server);
        agent.end(libc::SIGTERM);
        let elsewhere = Namespace::new().expect("a namespace");
        for (name, other) in [("uplink", "client"), ("to-web", "web")] {
            Veth::between(End::new(&elsewhere, name), End::new(&elsewhere, other))
                .create()
                .expect("a veth pair");
        }
        run_agent(&elsewhere, INSTANCE, &Town::policy(XdpMode::Native, VIA))
            .expect(3, &["attached in another network namespace"]);
        assert_eq!(town.state(), "ready");
        town.arrives(&server);
    });
}

#[test]
fn packets_are_handed_to_the_chosen_cpu_in_native_mode() {
    sandbox(|| packets_are_handed_to_the_chosen_cpu(XdpMode::Native));
}

#[test]
fn packets_are_handed_to_the_chosen_cpu_in_generic_mode_where_the_kernel_can() {
    sandbox(|| {
        if loses_cpu_packets_in_generic_mode().expect("a release") {
            let town = Town::new();
            let policy = Town::policy(XdpMode::Generic, "cpus = [0]");
            run_agent(&town.site.host, INSTANCE, &policy)
                .expect(3, &["target `web` hands packets to CPUs", "this kernel would lose them"]);
            assert_eq!(town.site.xdp(), None, "nothing stays attached");
        } else {
            packets_are_handed_to_the_chosen_cpu(XdpMode::Generic);
        }
    });
}

#[test]
fn a_target_that_takes_no_native_redirects_is_not_steered_to_in_native_mode() {
    sandbox(|| {
        let town = Town::new();
        town.street.right.set_offload(Offload::Gro, false).expect("the offload can be switched");
        let host = &town.site.host;
        run_agent(host, INSTANCE, &Town::policy(XdpMode::Native, VIA))
            .expect(3, &["`to-web` takes no frames", "ethtool -K DEVICE gro on"]);
        assert_eq!(town.site.xdp(), None, "nothing stays attached");

        // Left the choice, the agent takes the mode that works, and says why.
        let policy = Town::policy(XdpMode::Native, VIA).replace("\"native\"", "\"auto\"");
        let agent = Agent::start(host, INSTANCE, &policy);
        assert_eq!(town.site.xdp_mode(), Some(XdpMode::Generic));
        assert!(agent.log().contains("generic mode, because target `web`"), "{}", agent.log());
        // Kernels before 6.3 were not asked, but tried.
        let stats = town.stats();
        assert_eq!((stats.lost("refused"), stats.lost("device")), (0, 0), "{stats:?}");
        town.arrives(&town.udp_server());
    });
}

/// Whether the kernel tells what interfaces can do with XDP.
fn kernel_knows() -> bool {
    netlink::xdp_features().expect("an answer").is_some()
}

fn packets_are_handed_to_the_chosen_cpu(mode: XdpMode) {
    let _shared = CPUS.read().unwrap_or_else(PoisonError::into_inner);
    let town = Town::new();
    let cpus = thread::available_parallelism().expect("a number").get() as u32;
    for cpu in [0, cpus - 1] {
        let agent = town.agent(mode, &format!("cpus = [{cpu}]"));
        assert_eq!(town.state(), "ready", "{}", agent.log());
        // The socket says on which CPU its last packet was taken in.
        let server = town.site.udp_server(HOST_V4, PORT);
        let client = town.site.udp_client(HOST_V4, PORT);
        // The kernel notes it for connected sockets alone.
        let port = client.local_addr().expect("an address").port();
        server.connect((CLIENT_V4, port)).expect("a peer");
        for number in 0..20 {
            client.send(b"where am I?").expect("a datagram can be sent");
            let received = server.recv(&mut [0; 64]);
            assert!(received.is_ok(), "datagram {number} arrives: {:?}", town.stats());
            assert_eq!(incoming_cpu(server.as_fd()).expect("a number"), cpu);
        }
        let stats = town.stats();
        assert_eq!(stats.rule("web"), 20, "{stats:?}");
        agent.end(libc::SIGINT);
    }
}
