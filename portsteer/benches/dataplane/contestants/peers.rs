//! What else drops packets by port.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use portsteer::{
    dataplane::sys,
    lab::{Namespace, ethtool::Offload},
};

use super::installed;
use crate::{
    PORT, Result,
    arena::{Arena, Engine},
};

pub const XDP_FILTER: &str = "xdp-filter, 1 port";

/// Live frames in a run, for who takes the way into the stack, and for who goes through 1,000 rules
/// there.
const STACK_FRAMES: u32 = 100_000;
const FEW_FRAMES: u32 = 2_000;

struct XdpFilter {
    program: OwnedFd,
}

impl Engine for XdpFilter {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        Some(self.program.as_fd())
    }
}

pub fn xdp_filter(arena: &mut Arena) -> Result<()> {
    if !installed(arena, "xdp-filter", "xdp-tools") {
        return Ok(());
    }
    let lane = arena.lane()?;
    let name = lane.receiver.name();
    call(&arena.namespace, "xdp-filter", &["load", name, "--mode", "native"])?;
    call(&arena.namespace, "xdp-filter", &["port", &PORT.to_string(), "--mode", "dst"])?;
    let id = lane.receiver.link()?.xdp.and_then(|xdp| xdp.program_id);
    let program = sys::program_by_id(id.ok_or("xdp-filter has attached nothing")?)?;
    arena.add(XDP_FILTER, lane, XdpFilter { program });
    Ok(())
}

/// An ingress chain, whose frames go the way into the stack.
struct Chain;

impl Engine for Chain {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

pub fn nftables(arena: &mut Arena) -> Result<()> {
    if !installed(arena, "nft", "nftables") {
        return Ok(());
    }
    let all = (1..=30_000u32).map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
    let in_a_row =
        (10_000..10_999).map(|port| format!("udp dport {port} drop\n")).collect::<String>();
    let rulesets = [
        ("nftables ingress, 1 rule", format!("udp dport {PORT} drop"), STACK_FRAMES),
        ("nftables ingress, set of 30,000", format!("udp dport {{ {all} }} drop"), STACK_FRAMES),
        ("nftables ingress, 1,000 rules", format!("{in_a_row}udp dport {PORT} drop"), FEW_FRAMES),
    ];
    for (number, (name, rules, frames)) in rulesets.into_iter().enumerate() {
        let lane = arena.lane()?;
        let device = lane.receiver.name();
        let ruleset = format!(
            "table netdev bench{number} {{ chain c {{ type filter hook ingress device {device} \
             priority 0; policy accept;\n{rules}\n}}\n}}\n"
        );
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("ruleset");
        std::fs::write(&path, ruleset)?;
        call(&arena.namespace, "nft", &["-f", &path.to_string_lossy()])?;
        // Redirected frames are only taken by a receiver with GRO or XDP.
        lane.receiver.set_offload(Offload::Gro, true)?;
        arena.add_slow(name, lane, Chain, frames);
    }
    Ok(())
}

fn call(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<()> {
    let output = namespace.command(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    Err(format!("{program} {}: {error}{said}", arguments.join(" ")).into())
}
