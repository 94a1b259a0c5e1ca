//! iptables in its first chain: `PREROUTING` of the table `raw`. It is behind the door of the IP layer, where
//! only frames come in that have the interface's own Ethernet address and a header with a right checksum.

use std::{fmt::Write as _, fs, io::Write as _, os::fd::BorrowedFd, process::Stdio};

use portsteer::lab::{Namespace, ethtool::Offload};

use super::{Matched, installed};
use crate::{
    Result,
    arena::{Arena, Engine},
    family::Family,
    growth::Point,
    policies::{Mixed, ports_of},
    probes::Probe,
};

/// Frames that have to be counted by the last rule before anything is measured.
const TRIED: u32 = 64;

struct Chain {
    matched: Matched,
}

impl Engine for Chain {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn judges(&self, probe: &Probe) -> Option<u32> {
        Some(self.matched.verdict(probe))
    }
}

/// Rules that have a port each, one after the other.
pub fn iptables(arena: &mut Arena, point: Point, family: Family) -> Result<()> {
    let command = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    if !installed(arena, command, "iptables") {
        return Ok(());
    }
    let lane = arena.lane_apart()?;
    let (receiver, namespace) = (&lane.receiver, lane.receiver.namespace());
    // The receiver alone: with an address of its own it sends a few frames, which nobody counts.
    let setting = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", receiver.name());
    if family == Family::V6 {
        namespace.run(|| fs::write(setting, "0"))?;
    }
    receiver.set_offload(Offload::Gro, true)?;
    let ports = ports_of(point.size);
    let mut rules = String::from("*raw\n:PREROUTING ACCEPT [0:0]\n");
    for port in &ports {
        writeln!(rules, "-A PREROUTING -p udp -m udp --dport {port} -j DROP")?;
    }
    rules.push_str("COMMIT\n");
    restore(namespace, &format!("{command}-restore"), &rules)?;
    let mut frame = Mixed::packet(family).frame();
    frame[..6].copy_from_slice(&receiver.mac());
    arena.generator.send(&lane, &frame, TRIED)?;
    let counted = packets_of_last_rule(namespace, command)?;
    if counted != u64::from(TRIED) {
        return Err(format!("of {TRIED} frames, {counted} came to the last rule").into());
    }
    let matched = Matched::ports(&ports);
    arena.add_point(point, lane, Chain { matched });
    arena.last()?.addressed = true;
    Ok(())
}

fn restore(namespace: &Namespace, command: &str, rules: &str) -> Result<()> {
    let mut child = namespace
        .command(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

fn packets_of_last_rule(namespace: &Namespace, command: &str) -> Result<u64> {
    let arguments = ["-t", "raw", "-v", "-x", "-n", "-L", "PREROUTING"];
    let output = namespace.command(command).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text.lines().rfind(|line| line.contains("DROP"));
    let count = count.and_then(|line| line.split_whitespace().next()?.parse().ok());
    count.ok_or_else(|| format!("{command} lists no rule: {text}").into())
}
