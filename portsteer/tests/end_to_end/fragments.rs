//! Datagrams larger than the cable's MTU: the first fragment has the ports, the later ones do not.

use portsteer::netlink::XdpMode;
use portsteer_testkit::{
    agent::Agent,
    sandbox::sandbox,
    site::{HOST, Site, assert_nothing_arrived, wait_until},
};

use crate::{INSTANCE, head, rule};

/// 4,000 bytes and headers are three packets where 1,500 bytes fit into one, over both families.
const DATAGRAM: usize = 4_000;
const LATER: u64 = 2;
const DATAGRAMS: u64 = 5;

#[test]
fn later_fragments_pass_in_native_mode() {
    sandbox(|| later_fragments_pass(XdpMode::Native));
}

#[test]
fn later_fragments_pass_in_generic_mode() {
    sandbox(|| later_fragments_pass(XdpMode::Generic));
}

#[test]
fn later_fragments_are_dropped_in_native_mode_where_the_policy_says_so() {
    sandbox(|| later_fragments_are_dropped(XdpMode::Native));
}

#[test]
fn later_fragments_are_dropped_in_generic_mode_where_the_policy_says_so() {
    sandbox(|| later_fragments_are_dropped(XdpMode::Generic));
}

fn policy(mode: XdpMode, fragments: &str) -> String {
    let options = format!("[options]\nfragments = \"{fragments}\"\n");
    [head(mode), options, rule("yes", "udp", 6000, "pass"), rule("no", "udp", 6001, "drop")]
        .concat()
}

fn datagram(seed: u8) -> Vec<u8> {
    (0..DATAGRAM).map(|index| (index % 251) as u8 ^ seed).collect()
}

fn later_fragments_pass(mode: XdpMode) {
    let site = Site::new();
    let _agent = Agent::start(&site.host, INSTANCE, &policy(mode, "pass"));
    for address in HOST {
        let (passed, dropped) = (site.udp_server(address, 6000), site.udp_server(address, 6001));
        let clients = [site.udp_client(address, 6000), site.udp_client(address, 6001)];
        let mut buffer = vec![0; 2 * DATAGRAM];
        for seed in 0..DATAGRAMS as u8 {
            for client in &clients {
                client.send(&datagram(seed)).expect("a datagram can be sent");
            }
            let len = passed.recv(&mut buffer).expect("a datagram arrives");
            assert!(buffer[..len] == datagram(seed), "{len} bytes, and not those that were sent");
        }
        assert_nothing_arrived(&passed);
        let (stats, _) = site.settled(INSTANCE);
        assert_nothing_arrived(&dropped);
        assert_eq!(stats.rule("yes"), stats.rule("no"));
    }
    let (stats, _) = site.settled(INSTANCE);
    assert_eq!((stats.rule("yes"), stats.rule("no")), (2 * DATAGRAMS, 2 * DATAGRAMS));
    // Of the datagrams to either port.
    assert_eq!(stats.reason("pass", "fragment-without-ports"), 2 * 2 * DATAGRAMS * LATER);
    assert_eq!(stats.reason("drop", "fragment-without-ports"), 0);
}

fn later_fragments_are_dropped(mode: XdpMode) {
    let site = Site::new();
    let _agent = Agent::start(&site.host, INSTANCE, &policy(mode, "drop"));
    for (address, families) in HOST.into_iter().zip(1..) {
        let (server, client) = (site.udp_server(address, 6000), site.udp_client(address, 6000));
        for seed in 0..DATAGRAMS as u8 {
            client.send(&datagram(seed)).expect("a datagram can be sent");
        }
        let dropped = || site.settled(INSTANCE).0.reason("drop", "fragment-without-ports");
        wait_until("the fragments are counted", || dropped() == families * DATAGRAMS * LATER);
        assert_nothing_arrived(&server);
        // What fits into one packet is no fragment.
        client.send(b"small").expect("a datagram can be sent");
        assert_eq!(server.recv(&mut [0; 16]).expect("a datagram arrives"), 5);
    }
    let (stats, _) = site.settled(INSTANCE);
    assert_eq!(stats.rule("yes"), 2 * (DATAGRAMS + 1));
    assert_eq!(stats.reason("pass", "fragment-without-ports"), 0);
}
