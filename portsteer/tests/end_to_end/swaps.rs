//! Policies swapped under traffic: no packet uncounted, none judged by neither policy, no counter
//! set back.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portsteer::netlink::XdpMode;
use portsteer_testkit::{
    agent::{Agent, Stats, is_slow},
    sandbox::sandbox,
    site::{HOST_V4, Site, wait_until},
};

use crate::{INSTANCE, head, rule};

#[test]
fn swaps_under_traffic_lose_no_count_in_native_mode() {
    sandbox(|| swaps_under_traffic_lose_no_count(XdpMode::Native));
}

#[test]
fn swaps_under_traffic_lose_no_count_in_generic_mode() {
    sandbox(|| swaps_under_traffic_lose_no_count(XdpMode::Generic));
}

/// Two policies that differ in what becomes of each port. A packet to either port that is judged
/// by neither policy would fall to the default.
fn policies(mode: XdpMode) -> [String; 2] {
    [("pass", "drop"), ("drop", "pass")].map(|(one, two)| {
        [
            head(mode),
            "default = \"drop\"\n".to_owned(),
            rule("one", "udp", 1000, one),
            rule("two", "udp", 2000, two),
        ]
        .concat()
    })
}

fn swaps_under_traffic_lose_no_count(mode: XdpMode) {
    let swaps = if is_slow() { 50 } else { 200 };
    let site = Site::quiet();
    let _servers = [site.udp_server(HOST_V4, 1000), site.udp_server(HOST_V4, 2000)];
    let clients = [site.udp_client(HOST_V4, 1000), site.udp_client(HOST_V4, 2000)];
    let received = || site.cable.right.link().expect("the uplink").counters.rx_packets;
    let policies = policies(mode);
    let mut agent = Agent::start(&site.host, INSTANCE, &policies[0]);
    let received_before = received();
    assert_eq!(Stats::read(&site.host, INSTANCE).interface("uplink"), 0, "the cable is not quiet");

    let stop = AtomicBool::new(false);
    let (sent, readings) = thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(&stop, &clients));
        let reader = scope.spawn(|| read_until(&stop, &site));
        let stopped = StopOnDrop(&stop);
        for swap in 1..=swaps {
            agent.swap(&policies[swap % 2]);
        }
        drop(stopped);
        (sender.join().expect("the sender"), reader.join().expect("the reader"))
    });

    let (stats, received) = site.settled(INSTANCE);
    assert!(sent > 1_000 && readings > 3, "{sent} packets sent, {readings} readings");
    assert_eq!(stats.generation(), 1 + swaps as u64);
    // Every packet that the kernel has received was counted once, under a rule.
    assert_eq!(stats.interface("uplink"), received - received_before);
    assert_eq!(stats.all_rules(), stats.interface("uplink"));
    assert_eq!(stats.reason("drop", "no-rule"), 0, "{stats:?}");
    assert_eq!(stats.all_reasons(), stats.interface("uplink"));
    assert!(stats.interface("uplink") <= sent, "{sent} sent, {stats:?}");
    for reason in ["pass", "drop"].map(|verdict| stats.reason(verdict, "rule")) {
        assert!(reason > 0, "each policy has judged: {stats:?}");
    }
}

/// Sends without a pause, to both ports in turn.
fn send_until(stop: &AtomicBool, clients: &[UdpSocket; 2]) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        for client in clients {
            // A full queue refuses a datagram now and then.
            sent += u64::from(client.send(b"which way?").is_ok());
        }
    }
    sent
}

/// Reads the stats again and again: no counter may ever go back.
fn read_until(stop: &AtomicBool, site: &Site) -> usize {
    let mut before = Stats::read(&site.host, INSTANCE);
    let mut readings = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = Stats::read(&site.host, INSTANCE);
        assert_no_step_back(&before, &now);
        assert_eq!(now.interface("uplink"), now.all_reasons());
        (before, readings) = (now, readings + 1);
    }
    readings
}

/// Asserts that all counters are there still, and none is lower.
pub(crate) fn assert_no_step_back(before: &Stats, now: &Stats) {
    assert!(now.generation() >= before.generation());
    let counters = now.counters();
    for (name, count) in before.counters() {
        let found = counters.iter().find(|(other, _)| *other == name);
        assert!(found.is_some_and(|(_, now)| *now >= count), "{name} was {count}, now {found:?}");
    }
}

/// Ends the other threads also when this one panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn after_a_swap_every_packet_is_judged_by_the_new_policy() {
    sandbox(|| {
        let site = Site::quiet();
        let servers = [1000, 2000].map(|port| site.udp_server(HOST_V4, port));
        let clients = [1000, 2000].map(|port| site.udp_client(HOST_V4, port));
        let policies = policies(XdpMode::Native);
        let mut agent = Agent::start(&site.host, INSTANCE, &policies[0]);
        for swap in 0..10 {
            if swap > 0 {
                agent.swap(&policies[swap % 2]);
            }
            let before = Stats::read(&site.host, INSTANCE);
            for client in &clients {
                client.send(&[swap as u8]).expect("a datagram can be sent");
            }
            let counted = || Stats::read(&site.host, INSTANCE).all_rules();
            wait_until("both are counted", || counted() == before.all_rules() + 2);
            // Each policy passes the port that the other drops.
            let mut heard = [0; 8];
            let len = servers[swap % 2].recv(&mut heard).expect("the passed one arrives");
            assert_eq!(&heard[..len], &[swap as u8]);
            portsteer_testkit::site::assert_nothing_arrived(&servers[1 - swap % 2]);
        }
    });
}
