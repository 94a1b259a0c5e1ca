//! The guest's network interfaces: two virtio NICs with several queues, joined by a bridge in a network
//! namespace of the emulator's own, so that nothing of the machine's network is touched.

use std::{ffi::OsStr, path::Path, process::Command};

use crate::process::{exists, is_root};

/// How many queues a NIC has.
const QUEUES: u32 = 2;
/// The longest IP packet on the wire, in bytes.
const MTU: u32 = 9000;

/// Makes the wires, and becomes the emulator. Its arguments are the emulator's command line.
const SET_UP: &str = "set -e
ip link add wire type bridge mcast_snooping 0
ip link set wire mtu MTU up
for end in left right; do
    ip tuntap add $end mode tap multi_queue
    ip link set $end mtu MTU master wire up
done
exec \"$@\"";

/// Why the guest has no network interfaces, if it cannot have them.
pub(super) fn obstacle() -> Option<String> {
    if let Some(tool) = ["unshare", "ip"].into_iter().find(|tool| !exists(tool)) {
        return Some(format!(
            "{tool} is missing: apt-get install -y --no-install-recommends util-linux iproute2"
        ));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("/dev/net/tun is missing: modprobe tun".to_owned());
    }
    let output = match inside(["true"]).output() {
        Ok(output) => output,
        Err(error) => return Some(error.to_string()),
    };
    let why = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("the wires cannot be made: {}", why.trim_end()))
}

/// A command in a network namespace with the wires.
pub(super) fn inside<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.arg("--net");
    if !is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["sh", "-c", &SET_UP.replace("MTU", &MTU.to_string()), "sh"]).args(command);
    unshare
}

/// The emulator's arguments for the NICs at the ends of the wire.
pub(super) fn arguments() -> Vec<String> {
    // Two vectors for each queue, one for configuration and one for control.
    let vectors = 2 * QUEUES + 2;
    let end = |(number, name): (usize, &str)| {
        [
            "-netdev".to_owned(),
            format!(
                "tap,id={name},ifname={name},script=no,downscript=no,vhost=off,queues={QUEUES}"
            ),
            "-device".to_owned(),
            format!(
                "virtio-net-pci,netdev={name},mq=on,vectors={vectors},host_mtu={MTU},\
                 mac=52:54:00:00:00:{number:02x}"
            ),
        ]
    };
    ["left", "right"].into_iter().enumerate().flat_map(end).collect()
}
