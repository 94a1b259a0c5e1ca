//! VLAN tags, as raw frames on the cable: judged by the port behind them, and left as they are.

use std::time::Duration;

use portsteer::{lab::ethtool::Offload, netlink::XdpMode};
use portsteer_testkit::{
    agent::Agent,
    packet::{IPV4, IPV6, SERVICE_VLAN, UDP, VLAN, ethernet, ipv4, ipv6, udp, vlan},
    raw_socket::RawSocket,
    sandbox::sandbox,
    site::Site,
};

use crate::{INSTANCE, head, rule};

const DROPPED: u16 = 7000;
const PASSED: u16 = 7001;
const REPEATS: u64 = 20;
/// What tells this test's frames from others.
const MARK: &[u8] = b"portsteer tagged traffic";

#[test]
fn tagged_frames_are_judged_by_port_in_native_mode() {
    sandbox(|| tagged_frames_are_judged_by_port(XdpMode::Native));
}

#[test]
fn tagged_frames_are_judged_by_port_in_generic_mode() {
    sandbox(|| tagged_frames_are_judged_by_port(XdpMode::Generic));
}

/// Frames to a port: a VLAN tag, two, a priority tag, over both families.
fn frames(port: u16) -> Vec<Vec<u8>> {
    let datagram = udp(4711, port, MARK);
    let (v4, v6) = (ipv4(UDP, &datagram), ipv6(UDP, &datagram));
    let mut frames = Vec::new();
    for (ether_type, packet) in [(IPV4, v4), (IPV6, v6)] {
        frames.push(ethernet(VLAN, vlan(12, ether_type, &packet)));
        frames.push(ethernet(VLAN, vlan(0xe000, ether_type, &packet)));
        frames.push(ethernet(SERVICE_VLAN, vlan(9, VLAN, vlan(12, ether_type, &packet))));
        frames.push(ethernet(VLAN, vlan(9, VLAN, vlan(12, ether_type, &packet))));
    }
    frames
}

fn three_tags() -> Vec<u8> {
    let packet = ipv4(UDP, udp(4711, PASSED, MARK));
    ethernet(SERVICE_VLAN, vlan(1, VLAN, vlan(2, VLAN, vlan(3, IPV4, packet))))
}

fn tagged_frames_are_judged_by_port(mode: XdpMode) {
    let site = Site::new();
    site.cable.left.set_offload(Offload::TxVlan, false).expect("tags stay in the frame");
    let policy =
        [head(mode), rule("no", "udp", DROPPED, "drop"), rule("yes", "udp", PASSED, "pass")]
            .concat();
    let _agent = Agent::start(&site.host, INSTANCE, &policy);
    let client = RawSocket::open(&site.cable.left).expect("a raw socket");
    let host = RawSocket::open(&site.cable.right).expect("a raw socket");

    let passed = frames(PASSED);
    let mut seen = Vec::new();
    for _ in 0..REPEATS {
        for frame in frames(DROPPED).iter().chain(&passed).chain([&three_tags()]) {
            client.send(frame).expect("a frame can be sent");
        }
        // Round by round, so that no queue between the two ever overflows.
        seen.extend(host.marked_frames(MARK, passed.len()));
    }
    let (stats, _) = site.settled(INSTANCE);
    let kinds = passed.len() as u64;
    assert_eq!(stats.rule("no"), REPEATS * kinds);
    assert_eq!(stats.rule("yes"), REPEATS * kinds);
    assert_eq!(stats.reason("drop", "vlan-depth"), REPEATS);

    // No other came, and those that came have the tags that they were sent with.
    while let Some(frame) = host.receive(Duration::ZERO).expect("a raw socket") {
        seen.push(frame);
    }
    seen.retain(|frame| frame.ends_with(MARK));
    assert_eq!(seen.len() as u64, REPEATS * kinds);
    for frame in &passed {
        let count = seen.iter().filter(|seen| *seen == frame).count() as u64;
        assert_eq!(count, REPEATS, "{frame:02x?} among {seen:02x?}");
    }
}
