//! What the agent finds out about devices before it attaches, what it switches for steering, and
//! that it switches it back.

use portsteer::{
    lab::{
        Device, End, Namespace, Tap, TapKind, Veth,
        ethtool::{self, Offload},
    },
    netlink::XdpMode,
};
use portsteer_testkit::{
    agent::{Agent, Stats, run, run_agent},
    sandbox::sandbox,
    site::wait_until,
};

use crate::{
    INSTANCE, head,
    steering::{Town, VIA},
};

/// What a veth leaves undone for its other end. (Cutting TCP segments is not among them: the kernel
/// itself switches that off with checksums, and while the other end has a native program.)
const SENDER: [Offload; 3] = [Offload::TxChecksum, Offload::Gso, Offload::TxVlan];

fn is_on(device: &Device, offload: Offload) -> bool {
    let name = device.name();
    device.namespace().run(|| ethtool::get(name, offload)).expect("an offload")
}

/// One namespace with both ends of the uplink and both ends of the target's pair.
struct House {
    host: Namespace,
    /// `uplink` and `neighbour`.
    cable: Veth,
    /// `to-web` and `web`.
    street: Veth,
}

impl House {
    fn new() -> Self {
        let host = Namespace::new().expect("a namespace");
        let pair = |left: &str, right: &str| {
            Veth::between(End::new(&host, left), End::new(&host, right))
                .create()
                .expect("a veth pair")
        };
        let (cable, street) = (pair("uplink", "neighbour"), pair("to-web", "web"));
        Self { host, cable, street }
    }

    fn policy(mode: &str) -> String {
        Town::policy(XdpMode::Native, "interface = \"to-web\"\nmac = \"keep\"")
            .replace("\"native\"", &format!("\"{mode}\""))
    }

    /// Whether all is as it was made.
    fn is_untouched(&self) -> bool {
        SENDER.into_iter().all(|offload| is_on(&self.cable.right, offload))
            && !is_on(&self.street.right, Offload::Gro)
    }

    fn is_switched(&self) -> bool {
        !SENDER.into_iter().any(|offload| is_on(&self.cable.right, offload))
            && is_on(&self.street.right, Offload::Gro)
    }
}

#[test]
fn offloads_in_the_way_are_switched_and_switched_back() {
    sandbox(|| {
        let house = House::new();
        assert!(house.is_untouched());
        let mut agent = Agent::start(&house.host, INSTANCE, &House::policy("native"));
        assert!(house.is_switched(), "{}", agent.log());
        let log = agent.log();
        assert!(log.contains("tx, gso, txvlan of neighbour off"), "{log}");
        assert!(log.contains("gro of web on"), "{log}");
        run(&house.host, &["status"]).expect(0, &["OFFLOAD", "txvlan", "neighbour"]);

        // A policy that does not steer needs none of it.
        agent.swap(&head(XdpMode::Native));
        assert!(house.is_untouched(), "{}", agent.log());
        assert!(agent.log().contains("switched back: tx, gso, txvlan of neighbour on"));
        agent.swap(&House::policy("native"));
        assert!(house.is_switched(), "{}", agent.log());

        // An agent that takes over knows of it, whatever became of the one before.
        agent.kill();
        assert!(house.is_switched(), "the dataplane is still in force");
        agent.restart();
        assert!(house.is_switched());
        agent.stop(libc::SIGTERM);
        assert!(house.is_switched(), "the dataplane is still in force");
        run(&house.host, &["detach"]).expect(0, &["switched back", "gro of web off"]);
        assert!(house.is_untouched());
    });
}

#[test]
fn what_somebody_else_has_switched_is_theirs() {
    sandbox(|| {
        let house = House::new();
        let neighbour = &house.cable.right;
        neighbour.set_offload(Offload::TxVlan, false).expect("the offload can be switched");
        let agent = Agent::start(&house.host, INSTANCE, &House::policy("native"));
        assert!(house.is_switched(), "{}", agent.log());
        // The agent switches on again what its targets need, and may be quick enough for this to be an error.
        let _ = house.street.right.set_offload(Offload::Gro, false);
        agent.end(libc::SIGINT);
        assert!(!is_on(neighbour, Offload::TxVlan), "it was off before");
        assert!(is_on(neighbour, Offload::TxChecksum));
        assert!(!is_on(&house.street.right, Offload::Gro));
    });
}

#[test]
fn an_attached_interface_that_goes_leaves_nothing_switched() {
    sandbox(|| {
        let House { host, cable, street } = House::new();
        let mut agent = Agent::start(&host, INSTANCE, &House::policy("native"));
        assert!(is_on(&street.right, Offload::Gro));
        cable.left.delete().expect("it can be removed");
        agent.wait_for_log("uplink is gone from here", 1);
        agent.end(libc::SIGINT);
        assert!(!is_on(&street.right, Offload::Gro));
    });
}

#[test]
fn what_two_instances_need_is_switched_back_by_the_last() {
    sandbox(|| {
        let house = House::new();
        let other = Veth::between(End::new(&house.host, "other"), End::new(&house.host, "far"))
            .create()
            .expect("a veth pair");
        let gro = || is_on(&house.street.right, Offload::Gro);
        let one = Agent::start(&house.host, INSTANCE, &House::policy("native"));
        let policy = House::policy("native").replace("\"uplink\"", "\"other\"");
        // An agent that runs would switch it on again.
        Agent::start(&house.host, "two", &policy).end(libc::SIGTERM);
        one.end(libc::SIGINT);
        assert!(gro(), "the other needs it");
        assert!(is_on(&house.cable.right, Offload::TxChecksum), "nobody needs that any more");
        run(&house.host, &["detach", "--instance", "two"]).expect(0, &["gro of web off"]);
        assert!(!gro());
        assert!(is_on(&other.right, Offload::TxChecksum));
    });
}

#[test]
fn a_target_that_is_made_anew_is_made_ready_again() {
    sandbox(|| {
        let House { host, cable: _cable, street } = House::new();
        let mut agent = Agent::start(&host, INSTANCE, &House::policy("native"));
        let state = |wanted: &str| {
            wait_until(wanted, || Stats::read(&host, INSTANCE).target("state") == wanted);
        };
        state("ready");
        street.left.delete().expect("it can be removed");
        state("gone");
        let street = Veth::between(End::new(&host, "to-web"), End::new(&host, "web"))
            .create()
            .expect("a veth pair");
        state("ready");
        agent.wait_for_log("gro of web on", 2);
        agent.end(libc::SIGINT);
        assert!(!is_on(&street.right, Offload::Gro));
    });
}

#[test]
fn a_detach_from_another_namespace_has_the_agent_switch_back() {
    sandbox(|| {
        let house = House::new();
        let mut agent = Agent::start(&house.host, INSTANCE, &House::policy("native"));
        let elsewhere = Namespace::new().expect("a namespace");
        run(&elsewhere, &["detach"]).expect(0, &["still switched, in another network namespace"]);
        agent.wait_for_log("switched back", 1);
        assert!(house.is_untouched());
    });
}

#[test]
fn indices_of_another_namespace_mean_nothing_here() {
    sandbox(|| {
        let House { host, cable, street } = House::new();
        let mut agent = Agent::start(&host, INSTANCE, &House::policy("native"));
        agent.kill();
        cable.left.delete().expect("it can be removed");
        // In a fresh namespace the same indices come up again.
        let house = House::new();
        house.street.right.set_offload(Offload::Gro, true).expect("the offload can be switched");
        let agent = Agent::start(&house.host, INSTANCE, &head(XdpMode::Native));
        assert!(is_on(&house.street.right, Offload::Gro), "{}", agent.log());
        agent.end(libc::SIGINT);
        assert!(is_on(&house.street.right, Offload::Gro));
        assert!(is_on(&street.right, Offload::Gro), "nobody was there to switch it back");
    });
}

#[test]
fn targets_that_are_not_ready_are_told_of_at_the_start() {
    sandbox(|| {
        let town = Town::new();
        let agent = town.agent(XdpMode::Native, &VIA.replace("10.0.80.2", "10.0.80.77"));
        let said = "target `web` is unresolved: 10.0.80.77 does not answer on `to-web`";
        assert!(agent.log().contains(said), "{}", agent.log());
        agent.end(libc::SIGINT);
        town.street.left.set_down().expect("it can be set down");
        let agent = town.agent(XdpMode::Native, VIA);
        assert!(agent.log().contains("target `web` is down"), "{}", agent.log());
    });
}

#[test]
fn another_instance_behind_a_target_is_told_of() {
    sandbox(|| {
        let house = House::new();
        let policy = format!("{}interfaces = [\"web\"]\n", "version = 1\n");
        let _other = Agent::start(&house.host, "other", &policy);
        let agent = Agent::start(&house.host, INSTANCE, &House::policy("native"));
        let said = "arrives on `web`, where instance `other` is attached";
        assert!(agent.log().contains(said), "{}", agent.log());
    });
}

#[test]
fn a_policy_that_is_refused_leaves_offloads_as_they_were() {
    sandbox(|| {
        let house = House::new();
        let other = Veth::between(End::new(&house.host, "busy"), End::new(&house.host, "busier"))
            .create()
            .expect("a veth pair");
        let _other = portsteer_testkit::site::attach_other_program(&other.left, XdpMode::Native);
        let refused = House::policy("native").replace("\"uplink\"", "\"uplink\", \"busy\"");
        run_agent(&house.host, INSTANCE, &refused).expect(3, &["another XDP program", "`busy`"]);
        assert!(house.is_untouched());

        // The same where something is in force, and that may need some of it.
        let mut agent = Agent::start(&house.host, INSTANCE, &head(XdpMode::Native));
        agent.swap_refused(&refused);
        assert!(house.is_untouched(), "{}", agent.log());
        agent.swap(&House::policy("native"));
        agent.swap_refused(&refused);
        assert!(house.is_switched(), "{}", agent.log());
        agent.end(libc::SIGINT);
        assert!(house.is_untouched());
    });
}

#[test]
fn generic_mode_sees_packets_before_they_are_joined() {
    sandbox(|| {
        let house = House::new();
        let uplink = &house.cable.left;
        uplink.set_offload(Offload::Gro, true).expect("the offload can be switched");
        let agent = Agent::start(&house.host, INSTANCE, &House::policy("generic"));
        assert!(!is_on(uplink, Offload::Gro), "{}", agent.log());
        assert!(!is_on(&house.street.right, Offload::Gro), "generic mode needs it for no target");
        agent.end(libc::SIGINT);
        assert!(is_on(uplink, Offload::Gro));
        assert!(!is_on(&house.street.right, Offload::Gro));
    });
}

#[test]
fn senders_out_of_reach_are_told_of() {
    sandbox(|| {
        let town = Town::new();
        let agent = town.agent(XdpMode::Native, VIA);
        let said = "whoever sends to `uplink` at its other end must finish them";
        assert!(agent.log().contains(said), "{}", agent.log());
        agent.end(libc::SIGINT);
        let agent = Agent::start(&town.site.host, INSTANCE, &head(XdpMode::Native));
        assert!(!agent.log().contains(said), "nothing is steered: {}", agent.log());
    });
}

#[test]
fn frames_in_several_buffers_need_a_target_that_takes_them() {
    sandbox(|| {
        let town = Town::new();
        let host = &town.site.host;
        let _tap = Tap::create(host, "tap0", TapKind::Tap).expect("a tap");
        let to_tap = "interface = \"tap0\"\nmac = \"keep\"";
        for device in [&town.site.cable.left, &town.site.cable.right] {
            device.set_mtu(9000).expect("an MTU");
        }
        run_agent(host, INSTANCE, &Town::policy(XdpMode::Native, to_tap))
            .expect(3, &["`tap0` takes only frames that are in one buffer", "mtu 3502"]);
        assert_eq!(town.site.xdp(), None, "nothing stays attached");

        let auto = Town::policy(XdpMode::Native, to_tap).replace("\"native\"", "\"auto\"");
        let agent = Agent::start(host, INSTANCE, &auto);
        assert_eq!(town.site.xdp_mode(), Some(XdpMode::Generic), "{}", agent.log());
        assert!(agent.log().contains("generic mode, because target `web`"), "{}", agent.log());
        agent.end(libc::SIGINT);

        for device in [&town.site.cable.left, &town.site.cable.right] {
            device.set_mtu(3502).expect("an MTU");
        }
        let agent = Agent::start(host, INSTANCE, &auto);
        assert_eq!(town.site.xdp_mode(), Some(XdpMode::Native), "{}", agent.log());
    });
}

#[test]
fn a_failed_policy_leaves_queues_as_they_were() {
    sandbox(|| {
        let town = Town::new();
        let policy = Town::policy(XdpMode::Native, "cpus = [0]\nqueue = 64");
        let mut agent = Agent::start(&town.site.host, INSTANCE, &policy);
        let other =
            Veth::between(End::new(&town.site.host, "busy"), End::new(&town.site.host, "b"))
                .create()
                .expect("a veth pair");
        let _other = portsteer_testkit::site::attach_other_program(&other.left, XdpMode::Native);
        let refused = policy
            .replace("queue = 64", "queue = 4096")
            .replace("\"uplink\"", "\"uplink\", \"busy\"");
        agent.swap_refused(&refused);
        assert_eq!(queue_of_cpu_0(), 64);
        wait_until("it goes on", || town.state() == "ready");
    });
}

/// As the kernel has it.
fn queue_of_cpu_0() -> u32 {
    use portsteer::dataplane::sys;
    use std::os::fd::AsFd as _;

    let path = format!("/sys/fs/bpf/portsteer/{INSTANCE}/cpus");
    let map = sys::open_pin(std::path::Path::new(&path)).expect("the map");
    let mut value = [0; 4];
    sys::map_lookup(map.as_fd(), 0, &mut value).expect("a queue");
    u32::from_ne_bytes(value)
}
