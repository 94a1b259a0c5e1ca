//! What steered frames look like where they arrive: tags and all.

use portsteer::{lab::ethtool::Offload, netlink::XdpMode};
use portsteer_testkit::{
    agent::Agent,
    packet::{IPV4, IPV6, SERVICE_VLAN, UDP, VLAN, ethernet, ipv4, ipv6, udp, vlan},
    raw_socket::RawSocket,
    sandbox::sandbox,
};

use crate::{
    INSTANCE, mac,
    steering::{PORT, Town, VIA},
};

/// What tells this test's frames from others.
const MARK: &[u8] = b"portsteer steered traffic";
const REPEATS: usize = 20;

/// Datagrams to the steered port: without a tag, with one, with a priority tag, with two.
fn frames() -> Vec<Vec<u8>> {
    let datagram = udp(4711, PORT, MARK);
    let (v4, v6) = (ipv4(UDP, &datagram), ipv6(UDP, &datagram));
    let mut frames = Vec::new();
    for (ether_type, packet) in [(IPV4, v4), (IPV6, v6)] {
        frames.push(ethernet(ether_type, &packet));
        frames.push(ethernet(VLAN, vlan(12, ether_type, &packet)));
        frames.push(ethernet(VLAN, vlan(0xe000, ether_type, &packet)));
        frames.push(ethernet(SERVICE_VLAN, vlan(9, VLAN, vlan(12, ether_type, &packet))));
        frames.push(ethernet(VLAN, vlan(9, VLAN, vlan(12, ether_type, &packet))));
    }
    frames
}

#[test]
fn frames_keep_their_tags_in_native_mode() {
    sandbox(|| frames_keep_their_tags(XdpMode::Native));
}

#[test]
fn frames_keep_their_tags_in_generic_mode() {
    sandbox(|| frames_keep_their_tags(XdpMode::Generic));
}

fn frames_keep_their_tags(mode: XdpMode) {
    let town = Town::new();
    let client = &town.site.cable.left;
    client.set_offload(Offload::TxVlan, false).expect("tags stay in the frame");
    let (sender, receiver) = (client, &town.street.right);
    let sender = RawSocket::open(sender).expect("a raw socket");
    let eth0 = RawSocket::open(receiver).expect("a raw socket");

    let rewritten = [&receiver.mac()[..], &town.street.left.mac()[..]].concat();
    let to_eth0 = format!("interface = \"to-web\"\nmac = \"{}\"", mac(receiver.mac()));
    let targets = [(VIA, Some(&rewritten)), (&to_eth0, Some(&rewritten)), (KEEP, None)];
    for (target, addresses) in targets {
        let agent = town.agent(mode, target);
        for _ in 0..REPEATS {
            let frames = frames();
            for frame in &frames {
                sender.send(frame).expect("a frame can be sent");
            }
            let mut wanted = frames;
            for frame in &mut wanted {
                if let Some(addresses) = addresses {
                    frame[..12].copy_from_slice(addresses);
                }
            }
            assert_eq!(eth0.marked_frames(MARK, wanted.len()), wanted);
        }
        let (stats, _) = town.site.settled(INSTANCE);
        assert_eq!(stats.rule("web"), (REPEATS * frames().len()) as u64, "{stats:?}");
        agent.end(libc::SIGINT);
    }
}

const KEEP: &str = "interface = \"to-web\"\nmac = \"keep\"";

#[test]
fn the_agent_makes_a_sender_in_reach_leave_tags_in_the_frame() {
    sandbox(|| {
        let town = Town::new();
        // The sender's other end is here, for the agent to see.
        let neighbour = portsteer::lab::Veth::between(
            portsteer::lab::End::new(&town.site.host, "inner"),
            portsteer::lab::End::new(&town.site.host, "outer"),
        )
        .create()
        .expect("a veth pair");
        let policy = Town::policy(XdpMode::Native, KEEP).replace("uplink", "inner");
        let _agent = Agent::start(&town.site.host, INSTANCE, &policy);
        let sender = RawSocket::open(&neighbour.right).expect("a raw socket");
        let eth0 = RawSocket::open(&town.street.right).expect("a raw socket");
        let frame = ethernet(VLAN, vlan(12, IPV4, ipv4(UDP, udp(4711, PORT, MARK))));
        sender.send(&frame).expect("a frame can be sent");
        assert_eq!(eth0.marked_frames(MARK, 1), [frame]);
    });
}
