//! End to end: the agent as a process, namespaces, real sockets. Needs root.

use portsteer::netlink::XdpMode;

#[path = "end_to_end/bulk.rs"]
mod bulk;
#[path = "end_to_end/capabilities.rs"]
mod capabilities;
#[path = "end_to_end/default_drop.rs"]
mod default_drop;
#[path = "end_to_end/devices.rs"]
mod devices;
#[path = "end_to_end/fragments.rs"]
mod fragments;
#[path = "end_to_end/ports.rs"]
mod ports;
#[path = "end_to_end/receivers.rs"]
mod receivers;
#[path = "end_to_end/restart.rs"]
mod restart;
#[path = "end_to_end/sctp.rs"]
mod sctp;
#[path = "end_to_end/steered_frames.rs"]
mod steered_frames;
#[path = "end_to_end/steering.rs"]
mod steering;
#[path = "end_to_end/storm.rs"]
mod storm;
#[path = "end_to_end/swaps.rs"]
mod swaps;
#[path = "end_to_end/tags.rs"]
mod tags;
#[path = "end_to_end/upheaval.rs"]
mod upheaval;

/// Whoever needs each CPU to stay as it is shares this; whoever takes one offline has it alone.
static CPUS: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// The name that every test's instance can have: its pins are its own.
const INSTANCE: &str = "main";

/// The head of a policy for the uplink in this mode.
fn head(mode: XdpMode) -> String {
    head_for(mode.name())
}

/// The same with the policy's word for the mode, which may be `auto`.
fn head_for(mode: &str) -> String {
    format!("version = 1\ninterfaces = [\"uplink\"]\nmode = \"{mode}\"\n")
}

/// A rule "web" that steers a destination port to the target "web".
fn steer(port: u16, target: &str) -> String {
    format!(
        "[targets.web]\n{target}\n[[rules]]\nname = \"web\"\ndst_port = {port}\n\
         action = {{ steer = \"web\" }}\n"
    )
}

/// An Ethernet address as policies have it.
fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// A rule for one destination port.
fn rule(name: &str, protocol: &str, port: u16, action: &str) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\ndst_port = {port}\n\
         action = \"{action}\"\n"
    )
}
