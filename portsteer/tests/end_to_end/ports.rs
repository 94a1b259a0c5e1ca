//! Passed, blocked and closed ports as clients experience them, and the counters to the packet.

use portsteer::netlink::XdpMode;
use portsteer_testkit::{
    agent::{Agent, Stats, run},
    sandbox::{assert_no_pins, sandbox},
    site::{HOST, HOST_V4, Site, assert_nothing_arrived, wait_until},
};

use crate::{INSTANCE, head, rule};

const DATAGRAMS: u64 = 10;

fn policy(mode: XdpMode) -> String {
    [
        head(mode),
        rule("web", "tcp", 8080, "pass"),
        rule("closed", "tcp", 8081, "pass"),
        rule("no-tcp", "tcp", 9000, "drop"),
        rule("names", "udp", 5353, "pass"),
        rule("closed-udp", "udp", 5354, "pass"),
        rule("no-udp", "udp", 9000, "drop"),
    ]
    .concat()
}

#[test]
fn ports_lead_where_native_mode_was_told() {
    sandbox(|| ports_lead_where_they_should(XdpMode::Native));
}

#[test]
fn ports_lead_where_generic_mode_was_told() {
    sandbox(|| ports_lead_where_they_should(XdpMode::Generic));
}

fn ports_lead_where_they_should(mode: XdpMode) {
    let site = Site::new();
    let agent = Agent::start(&site.host, INSTANCE, &policy(mode));
    assert_eq!(site.xdp_mode(), Some(mode));
    let status = run(&site.host, &["status", "--json"]);
    let status: serde_json::Value =
        serde_json::from_str(&status.expect(0, &[]).stdout).expect("JSON");
    assert_eq!(status["interfaces"][0]["mode"], mode.name());
    assert_eq!(status["interfaces"][0]["attached"], true);
    let (before, received_before) = site.settled(INSTANCE);

    for address in HOST {
        site.tcp_echo(address, 8080);
        site.tcp_refused(address, 8081);
        site.tcp_silence(address, 9000);
        site.udp_echo(address, 5353, DATAGRAMS as usize);
        udp_refused(&site, address);
        udp_silence(&site, address);
    }
    // A port that no rule names.
    site.udp_echo(HOST_V4, 7000, DATAGRAMS as usize);

    let (after, received) = site.settled(INSTANCE);
    let rule = |name| after.rule(name);
    assert_eq!(rule("names"), 2 * DATAGRAMS);
    assert_eq!(rule("no-udp"), 2 * DATAGRAMS);
    assert_eq!(rule("closed-udp"), 2);
    // SYN, ACK, and the segment with the request, both families; a slow machine resends.
    assert!(rule("web") >= 6, "{after:?}");
    assert!(rule("closed") >= 2 && rule("no-tcp") >= 2, "{after:?}");
    assert!(after.reason("pass", "no-rule") >= DATAGRAMS, "{after:?}");
    assert!(after.reason("pass", "not-ip") >= 1, "ARP is not judged: {after:?}");
    assert_eq!(after.reason("drop", "rule"), rule("no-udp") + rule("no-tcp"));
    assert_eq!(after.reason("pass", "rule") + after.reason("drop", "rule"), after.all_rules());
    everything_is_counted_once(&before, &after, received - received_before);

    let (status, log) = agent.end(libc::SIGINT);
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(site.xdp(), None);
    assert_no_pins();
    // What was silent answers now.
    site.tcp_echo(HOST_V4, 9000);
}

/// The interface's counters, the reasons and the kernel's own counter agree to the packet.
fn everything_is_counted_once(before: &Stats, after: &Stats, received: u64) {
    let uplink = |field| after.interface_number("uplink", field);
    assert_eq!(uplink("packets") - before.interface("uplink"), received);
    assert_eq!(uplink("packets"), after.all_reasons());
    assert_eq!(uplink("passed") + uplink("dropped"), uplink("packets"));
    assert_eq!(uplink("dropped"), after.reason("drop", "rule"));
    assert_eq!(uplink("aborted"), 0);
}

/// A passed port without a server: the host's own stack refuses by ICMP.
fn udp_refused(site: &Site, address: std::net::IpAddr) {
    let client = site.udp_client(address, 5354);
    client.send(b"anybody?").expect("a datagram can be sent");
    let error = client.recv(&mut [0; 16]).expect_err("nobody answers");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
}

/// A blocked port with a server that never hears anything.
fn udp_silence(site: &Site, address: std::net::IpAddr) {
    let (server, client) = (site.udp_server(address, 9000), site.udp_client(address, 9000));
    let counted = || Stats::read(&site.host, INSTANCE).rule("no-udp");
    let before = counted();
    for _ in 0..DATAGRAMS {
        client.send(b"anybody?").expect("a datagram can be sent");
    }
    wait_until("all of them are counted", || counted() == before + DATAGRAMS);
    assert_nothing_arrived(&server);
    assert_nothing_arrived(&client);
}
