//! An agent that is killed under traffic is missed by nobody, and its successor takes over.

use std::{
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portsteer::{
    dataplane::{OBJECT_DIGEST, sys},
    netlink::XdpMode,
};
use portsteer_testkit::{
    agent::{Agent, Stats},
    sandbox::sandbox,
    site::{HOST_V4, Site, assert_nothing_arrived, wait_until},
};

use crate::{INSTANCE, head, rule, swaps::assert_no_step_back};

#[test]
fn kill_9_and_restart_change_nothing_in_native_mode() {
    sandbox(|| kill_9_and_restart(XdpMode::Native, Successor::Same));
}

#[test]
fn kill_9_and_restart_change_nothing_in_generic_mode() {
    sandbox(|| kill_9_and_restart(XdpMode::Generic, Successor::Same));
}

#[test]
fn another_version_replaces_the_program_and_loses_no_packet_in_native_mode() {
    sandbox(|| kill_9_and_restart(XdpMode::Native, Successor::OtherVersion));
}

#[test]
fn another_version_replaces_the_program_and_loses_no_packet_in_generic_mode() {
    sandbox(|| kill_9_and_restart(XdpMode::Generic, Successor::OtherVersion));
}

/// Who comes after the agent that was killed.
#[derive(Clone, Copy, PartialEq)]
enum Successor {
    Same,
    /// A version with another program.
    OtherVersion,
}

/// Has the pinned state say that the uplink's program came from another object.
fn forget_the_object() {
    let path = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE).join("interfaces");
    let map = sys::open_pin(&path).expect("the map of interfaces");
    let shape = sys::map_shape(map.as_fd()).expect("its shape");
    let mut slot = vec![0; shape.value_size as usize];
    sys::map_lookup(map.as_fd(), 0, &mut slot).expect("the first slot");
    let digest = u8::from_str_radix(&OBJECT_DIGEST[..2], 16).expect("a hexadecimal number");
    let place = slot.len() - OBJECT_DIGEST.len() / 2;
    assert_eq!(slot[place], digest, "a slot ends with the object's digest");
    slot[place] ^= 1;
    sys::map_update(map.as_fd(), 0, &slot).expect("the first slot is written");
}

fn kill_9_and_restart(mode: XdpMode, successor: Successor) {
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
            let before_kill = site.xdp();
            agent.kill();
            let killed = stats();
            for rule in ["open", "closed"] {
                wait_until("traffic is judged and counted without an agent", || {
                    stats().rule(rule) > killed.rule(rule) + 20
                });
            }
            assert_eq!(site.xdp(), before_kill, "the program stays");
            assert_no_step_back(&killed, &stats());

            let said = agent.log().len();
            if successor == Successor::OtherVersion {
                forget_the_object();
            }
            agent.restart();
            let said = agent.log().split_off(said);
            assert!(!said.contains("attached to"), "{said}");
            if successor == Successor::OtherVersion {
                assert!(said.contains("program replaced on uplink"), "{said}");
                assert_ne!(site.xdp(), before_kill, "a new program");
                assert_eq!(site.xdp_mode(), attached.map(|xdp| xdp.mode));
            } else {
                assert!(said.contains("still on uplink"), "{said}");
                assert_eq!(site.xdp(), attached, "the program stays");
            }
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
