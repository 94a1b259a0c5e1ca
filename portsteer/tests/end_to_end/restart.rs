//! An agent that is killed under traffic is missed by nobody, and its successor takes over.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portsteer::netlink::XdpMode;
use portsteer_testkit::{
    agent::{Agent, Stats},
    sandbox::sandbox,
    site::{HOST_V4, Site, assert_nothing_arrived, wait_until},
};

use crate::{INSTANCE, head, rule, swaps::assert_no_step_back};

#[test]
fn kill_9_and_restart_change_nothing_in_native_mode() {
    sandbox(|| kill_9_and_restart_change_nothing(XdpMode::Native));
}

#[test]
fn kill_9_and_restart_change_nothing_in_generic_mode() {
    sandbox(|| kill_9_and_restart_change_nothing(XdpMode::Generic));
}

fn kill_9_and_restart_change_nothing(mode: XdpMode) {
    let site = Site::quiet();
    let (open, closed) = (site.udp_server(HOST_V4, 1000), site.udp_server(HOST_V4, 2000));
    open.set_read_timeout(Some(Duration::from_millis(50))).expect("a time limit");
    let clients = [site.udp_client(HOST_V4, 1000), site.udp_client(HOST_V4, 2000)];
    let policy = [
        head(mode),
        "default = \"drop\"\n".to_owned(),
        rule("open", "udp", 1000, "pass"),
        rule("closed", "udp", 2000, "drop"),
    ]
    .concat();
    let stats = || Stats::read(&site.host, INSTANCE);
    let received = || site.cable.right.link().expect("the uplink").counters.rx_packets;

    let mut agent = Agent::start(&site.host, INSTANCE, &policy);
    let (received_before, attached) = (received(), site.xdp());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for client in &clients {
                    let _ = client.send(b"still there?");
                }
                // The open port's server is to keep up.
                thread::sleep(Duration::from_micros(200));
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = open.recv(&mut [0; 64]);
            }
        });
        for round in 1..=3 {
            agent.kill();
            let killed = stats();
            for rule in ["open", "closed"] {
                wait_until("traffic is judged and counted without an agent", || {
                    stats().rule(rule) > killed.rule(rule) + 20
                });
            }
            assert_eq!(site.xdp(), attached, "the program stays");
            assert_no_step_back(&killed, &stats());

            let said = agent.log().len();
            agent.restart();
            let said = agent.log().split_off(said);
            assert!(said.contains("still on uplink"), "{said}");
            assert!(!said.contains("attached to"), "{said}");
            assert_eq!(site.xdp(), attached, "the program stays");
            assert_no_step_back(&killed, &stats());
            assert_eq!(stats().generation(), 1 + round);
        }
        drop(stopped);
    });

    let (stats, received) = site.settled(INSTANCE);
    assert_eq!(stats.interface("uplink"), received - received_before);
    assert_eq!(stats.all_rules(), stats.interface("uplink"), "{stats:?}");
    assert_eq!(stats.reason("pass", "rule"), stats.rule("open"));
    assert_eq!(stats.reason("drop", "rule"), stats.rule("closed"));
    assert_nothing_arrived(&closed);
}

/// Ends the other threads also when this one panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
