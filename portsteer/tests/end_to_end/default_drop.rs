//! `default = "drop"`: what no rule passes is silent, and yet the host keeps its neighbours.

use std::fs;

use portsteer::netlink::XdpMode;
use portsteer_testkit::{
    agent::Agent,
    sandbox::sandbox,
    site::{HOST, Site, assert_nothing_arrived},
};

use crate::{INSTANCE, head, rule};

#[test]
fn neighbours_find_each_other_in_native_mode() {
    sandbox(|| neighbours_find_each_other(XdpMode::Native));
}

#[test]
fn neighbours_find_each_other_in_generic_mode() {
    sandbox(|| neighbours_find_each_other(XdpMode::Generic));
}

fn neighbours_find_each_other(mode: XdpMode) {
    let site = Site::new();
    let policy = [
        head(mode),
        "default = \"drop\"\n".to_owned(),
        rule("web", "tcp", 8080, "pass"),
        rule("names", "udp", 5353, "pass"),
    ]
    .concat();
    let agent = Agent::start(&site.host, INSTANCE, &policy);
    // Nobody has spoken yet, so nobody knows anybody's Ethernet address.
    let arp = site.client.run(|| fs::read_to_string("/proc/thread-self/net/arp"));
    assert!(!arp.expect("the neighbours").contains("198.51.100.1 "), "the cache is not fresh");

    for address in HOST {
        site.tcp_echo(address, 8080);
        site.udp_echo(address, 5353, 5);
        site.tcp_silence(address, 8081);
        let (server, client) = (site.udp_server(address, 5354), site.udp_client(address, 5354));
        let dropped = || site.settled(INSTANCE).0.reason("drop", "no-rule");
        let before = dropped();
        client.send(b"anybody?").expect("a datagram can be sent");
        portsteer_testkit::site::wait_until("it is counted", || dropped() > before);
        assert_nothing_arrived(&server);
        assert_nothing_arrived(&client);
    }
    let (stats, _) = site.settled(INSTANCE);
    assert_eq!(stats.rule("names"), 10);
    assert!(stats.reason("pass", "neighbor-discovery") >= 1, "{stats:?}");
    assert!(stats.reason("pass", "not-ip") >= 1, "{stats:?}");
    // 2 SYNs and 2 datagrams at least.
    assert!(stats.reason("drop", "no-rule") >= 4, "{stats:?}");
    assert_eq!(stats.reason("pass", "no-rule"), 0, "{stats:?}");
    drop(agent);
}
