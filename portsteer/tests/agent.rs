//! The agent as a daemon: policies on trial, agents that are killed and replaced, state directories that fail, and
//! interfaces that come and go, under traffic of which every packet is accounted for. Needs root.

#[path = "agent/clocks.rs"]
mod clocks;
#[path = "agent/faults.rs"]
mod faults;
#[path = "agent/interfaces.rs"]
mod interfaces;
#[path = "agent/kills.rs"]
mod kills;
#[path = "agent/links.rs"]
mod links;
#[path = "agent/memory.rs"]
mod memory;
#[path = "agent/starts.rs"]
mod starts;
#[path = "agent/tampering.rs"]
mod tampering;
#[path = "agent/trials.rs"]
mod trials;
#[path = "agent/upgrades.rs"]
mod upgrades;

use portsteer::{
    lab::{Device, End, Namespace, Veth},
    netlink,
};
use portsteer_testkit::{
    agent::{Agent, Stats},
    flood::FLOODED_PORT,
    site::{HOST_V4, Site, wait_until},
};

/// The name that every test's instance can have: its pins are its own.
const INSTANCE: &str = "main";

/// A policy for these interfaces that drops UDP to this port, and what floods come to.
fn policy(interfaces: &[&str], port: u16) -> String {
    format!(
        "version = 1\ninterfaces = {interfaces:?}\n{}{}",
        rule("closed", port),
        rule("flooded", FLOODED_PORT)
    )
}

/// A rule that drops UDP to a port.
fn rule(name: &str, port: u16) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nprotocol = \"udp\"\ndst_port = {port}\naction = \"drop\"\n"
    )
}

/// Whether UDP to a port of the host gets through the uplink.
fn is_open(site: &Site, port: u16) -> bool {
    let (server, client) = (site.udp_server(HOST_V4, port), site.udp_client(HOST_V4, port));
    client.send(b"anybody?").expect("a datagram can be sent");
    // What comes after it is through: the uplink has one queue.
    let (later, sender) = (site.udp_server(HOST_V4, 4999), site.udp_client(HOST_V4, 4999));
    sender.send(b"later").expect("a datagram can be sent");
    later.recv(&mut [0; 16]).expect("an open port");
    server.set_nonblocking(true).expect("a socket that does not wait");
    server.recv(&mut [0; 16]).is_ok()
}

/// Waits until UDP to a port gets through, or does not.
fn wait_until_open(site: &Site, port: u16, open: bool) {
    wait_until(&format!("port {port} is open: {open}"), || is_open(site, port) == open);
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

/// The number of the policy in force.
fn generation(site: &Site) -> u64 {
    Stats::read(&site.host, INSTANCE).generation()
}

/// What the agent says in `status --json`.
fn status(agent: &Agent) -> serde_json::Value {
    agent.ask_json(&["status"])["agent"].clone()
}
