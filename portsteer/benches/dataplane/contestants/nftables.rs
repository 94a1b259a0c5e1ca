//! nftables at the ingress hook, which is the first that it has. Its frames go the way into the stack.

use std::{fmt::Write as _, fs, os::fd::BorrowedFd};

use portsteer::lab::ethtool::Offload;

use super::{Matched, installed, run};
use crate::{
    PORT, Result,
    arena::{Arena, Engine, Lane},
    family::Family,
    growth::Point,
    policies::{Blocklist, ports_of},
    probes::Probe,
};

/// Live frames in a run, for who takes the way into the stack, and for who goes through 1,000 rules
/// there.
const STACK_FRAMES: u32 = 100_000;
const FEW_FRAMES: u32 = 2_000;

/// What is to be said of the rulesets in `verdicts`, by their names.
pub const ONE_RULE: &str = "nftables ingress, 1 rule";
pub const SET_OF_PORTS: &str = "nftables ingress, set of 30,000";
pub const MANY_RULES: &str = "nftables ingress, 1,000 rules";

/// An ingress chain.
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

/// One of those that drop [`PORT`].
pub fn nftables(arena: &mut Arena, name: &str) -> Result<()> {
    if !installed(arena, "nft", "nftables") {
        return Ok(());
    }
    let (rules, frames) = match name {
        ONE_RULE => (format!("udp dport {PORT} drop\n"), STACK_FRAMES),
        SET_OF_PORTS => {
            let all = (1..=30_000).map(|port: u32| port.to_string()).collect::<Vec<_>>();
            (format!("udp dport {{ {} }} drop\n", all.join(", ")), STACK_FRAMES)
        }
        _ => {
            let others =
                (10_000..10_999).map(|port| format!("udp dport {port} drop\n")).collect::<String>();
            (format!("{others}udp dport {PORT} drop\n"), FEW_FRAMES)
        }
    };
    let lane = filtered_lane(arena, "", &rules)?;
    arena.add_slow(name, lane, Chain { matched: Matched::ports(&[PORT]) }, frames);
    Ok(())
}

/// Nothing but the way into the stack.
pub fn no_filter(arena: &mut Arena, name: &str) -> Result<()> {
    let lane = arena.lane()?;
    lane.receiver.set_offload(Offload::Gro, true)?;
    arena.add(name, lane, Chain { matched: Matched::nothing() });
    Ok(())
}

/// How a chain knows its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// A rule each, one after the other.
    InARow,
    /// A map from ports to verdicts.
    VerdictMap,
    /// A set of ranges, here of one port each.
    Intervals,
}

/// With so many ports.
pub fn nftables_ports(arena: &mut Arena, point: Point, lookup: Lookup) -> Result<()> {
    if !installed(arena, "nft", "nftables") {
        return Ok(());
    }
    let ports = match lookup {
        // Neighbours would be one range.
        Lookup::Intervals => (0..point.size as u16).map(|number| 2 * number + 1).collect(),
        Lookup::InARow | Lookup::VerdictMap => ports_of(point.size),
    };
    let list = |suffix: &str| {
        let elements: Vec<String> = ports.iter().map(|port| format!("{port}{suffix}")).collect();
        elements.join(",\n")
    };
    let (declared, rules) = match lookup {
        Lookup::InARow => {
            let rule = |port| format!("udp dport {port} drop\n");
            (String::new(), ports.iter().map(rule).collect())
        }
        Lookup::VerdictMap => (
            format!(
                "map m {{ type inet_service : verdict; elements = {{ {} }}; }}\n",
                list(" : drop")
            ),
            "udp dport vmap @m\n".to_owned(),
        ),
        Lookup::Intervals => (
            format!(
                "set s {{ type inet_service; flags interval; elements = {{ {} }}; }}\n",
                list("")
            ),
            "udp dport @s drop\n".to_owned(),
        ),
    };
    let lane = filtered_lane(arena, &declared, &rules)?;
    let matched = Matched::ports(&ports);
    arena.add_point(point, lane, Chain { matched });
    Ok(())
}

/// With a set of addresses, or of prefixes if it has any.
pub fn nftables_sources(arena: &mut Arena, point: Point, blocklist: &Blocklist) -> Result<()> {
    if !installed(arena, "nft", "nftables") {
        return Ok(());
    }
    let (kind, field) = match blocklist.family {
        Family::V4 => ("ipv4_addr", "ip saddr"),
        Family::V6 => ("ipv6_addr", "ip6 saddr"),
    };
    let flags = if blocklist.has_networks() { "flags interval; auto-merge; " } else { "" };
    let mut declared = format!("set s {{ type {kind}; {flags}elements = {{\n");
    for prefix in &blocklist.prefixes {
        if prefix.prefix_len() == prefix.max_prefix_len() {
            writeln!(declared, "{},", prefix.addr())?;
        } else {
            writeln!(declared, "{prefix},")?;
        }
    }
    declared.push_str("}; }\n");
    let lane = filtered_lane(arena, &declared, &format!("{field} @s drop\n"))?;
    let matched = Matched::sources(blocklist);
    arena.add_point(point, lane, Chain { matched });
    Ok(())
}

/// A lane with a chain of these rules, before which something is `declared`.
fn filtered_lane(arena: &mut Arena, declared: &str, rules: &str) -> Result<Lane> {
    let lane = arena.lane()?;
    let device = lane.receiver.name();
    let ruleset = format!(
        "table netdev bench_{device} {{\n{declared}chain c {{\ntype filter hook ingress device \
         {device} priority 0; policy accept;\n{rules}}}\n}}\n"
    );
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ruleset");
    fs::write(&path, ruleset)?;
    run(&arena.namespace, "nft", &["-f", &path.to_string_lossy()])?;
    // Redirected frames are only taken by a receiver with GRO or XDP.
    lane.receiver.set_offload(Offload::Gro, true)?;
    Ok(lane)
}
