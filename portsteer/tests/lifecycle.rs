//! Bad input, refusals, and an agent's life from its start to its end or to a sudden one. Needs
//! root.

#[path = "lifecycle/answers.rs"]
mod answers;
#[path = "lifecycle/counters.rs"]
mod counters;
#[path = "lifecycle/foreign_pins.rs"]
mod foreign_pins;
#[path = "lifecycle/huge_policies.rs"]
mod huge_policies;
#[path = "lifecycle/instances.rs"]
mod instances;
#[path = "lifecycle/interfaces.rs"]
mod interfaces;
#[path = "lifecycle/policy_files.rs"]
mod policy_files;
#[path = "lifecycle/refusals.rs"]
mod refusals;
#[path = "lifecycle/set_files.rs"]
mod set_files;
#[path = "lifecycle/signals.rs"]
mod signals;
#[path = "lifecycle/sudden_ends.rs"]
mod sudden_ends;
#[path = "lifecycle/undo.rs"]
mod undo;

use portsteer::{
    lab::{Device, End, Namespace, Veth},
    netlink,
};
use portsteer_testkit::{
    agent::Stats,
    site::{HOST_V4, Site, assert_nothing_arrived, wait_until},
};

/// The name that every test's instance can have: its pins are its own.
const INSTANCE: &str = "main";

/// A policy for these interfaces in native mode, that drops UDP to port 2000.
fn policy(interfaces: &[&str]) -> String {
    policy_in("native", interfaces)
}

fn policy_in(mode: &str, interfaces: &[&str]) -> String {
    format!(
        "version = 1\ninterfaces = {interfaces:?}\nmode = \"{mode}\"\n{}",
        rule("blocked", 2000, "drop")
    )
}

/// A rule for one UDP port.
fn rule(name: &str, port: u16, action: &str) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nprotocol = \"udp\"\ndst_port = {port}\n\
         action = \"{action}\"\n"
    )
}

/// One more device of the site's host, with its other end at the client.
fn another_device(site: &Site, name: &str) -> Device {
    let other_end = End::new(&site.client, &format!("{name}-peer"));
    Veth::between(other_end, End::new(&site.host, name)).create().expect("a veth pair").right
}

/// The devices of a namespace that have an XDP program.
fn attached(namespace: &Namespace) -> Vec<String> {
    let links = namespace.run(netlink::links).expect("the links");
    links.into_iter().filter(|link| link.xdp.is_some()).map(|link| link.name).collect()
}

/// UDP port 2000 is silent and counted under `blocked`, and another port answers.
fn assert_in_force(site: &Site) {
    let (server, client) = (site.udp_server(HOST_V4, 2000), site.udp_client(HOST_V4, 2000));
    let blocked = || Stats::read(&site.host, INSTANCE).rule("blocked");
    let before = blocked();
    client.send(b"anybody?").expect("a datagram can be sent");
    wait_until("it is counted", || blocked() == before + 1);
    assert_nothing_arrived(&server);
    site.udp_echo(HOST_V4, 2001, 1);
}

/// UDP port 2000 answers, and nothing is attached or pinned.
fn assert_all_off(site: &Site) {
    assert_eq!(attached(&site.host), [] as [String; 0]);
    portsteer_testkit::sandbox::assert_no_pins();
    site.udp_echo(HOST_V4, 2000, 1);
}
