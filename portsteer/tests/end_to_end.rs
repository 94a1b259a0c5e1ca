//! End to end: the agent as a process, namespaces, real sockets. Needs root.

use portsteer::netlink::XdpMode;

#[path = "end_to_end/bulk.rs"]
mod bulk;
#[path = "end_to_end/capabilities.rs"]
mod capabilities;
#[path = "end_to_end/default_drop.rs"]
mod default_drop;
#[path = "end_to_end/fragments.rs"]
mod fragments;
#[path = "end_to_end/ports.rs"]
mod ports;
#[path = "end_to_end/restart.rs"]
mod restart;
#[path = "end_to_end/steered_frames.rs"]
mod steered_frames;
#[path = "end_to_end/steering.rs"]
mod steering;
#[path = "end_to_end/swaps.rs"]
mod swaps;
#[path = "end_to_end/tags.rs"]
mod tags;
#[path = "end_to_end/upheaval.rs"]
mod upheaval;

/// The name that every test's instance can have: its pins are its own.
const INSTANCE: &str = "main";

/// The head of a policy for the uplink in this mode.
fn head(mode: XdpMode) -> String {
    format!("version = 1\ninterfaces = [\"uplink\"]\nmode = \"{}\"\n", mode.name())
}

/// A rule for one destination port.
fn rule(name: &str, protocol: &str, port: u16, action: &str) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\ndst_port = {port}\n\
         action = \"{action}\"\n"
    )
}
