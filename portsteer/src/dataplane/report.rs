//! What listings show. The field names are those of `--json` and stay.

use std::{borrow::Cow, os::fd::AsFd as _};

use portsteer_common::{Counter, Reason, Verdict, steering::Losses};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AttachedMode, Error, Manifest, ManifestRule, ManifestTarget, Pinned,
    manifest::Share,
    maps::{Maps, Snapshot},
    reading::Outcomes,
    repairs::Setting,
    sys,
    targets::{TargetState, losses, state_of},
    total,
};
use crate::{
    netlink::Link,
    policy::{NextHop, TargetKind},
};

/// What `portsteer status` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub instance: String,
    pub policy: PolicyInfo,
    pub interfaces: Vec<InterfaceStatus>,
    /// In the policy's order.
    pub targets: Vec<TargetStatus>,
    /// Offloads that were switched for a policy, until it ends.
    pub offloads: Vec<OffloadStatus>,
}

/// An offload that was switched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OffloadStatus {
    pub interface: String,
    /// As `ethtool -K` calls it.
    pub offload: Cow<'static, str>,
    pub on: bool,
}

/// Where packets can be steered to, and how that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetStatus {
    pub name: String,
    /// In words: `veth-web via 10.0.80.2`, `CPUs 2,3`.
    pub to: String,
    pub state: TargetState,
}

/// What was steered to a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetStats {
    pub name: String,
    pub to: String,
    pub state: TargetState,
    /// Packets and bytes that the program sent on their way, by the rules of the policy in force.
    pub packets: u64,
    pub bytes: u64,
    /// Packets that did not get there.
    pub lost: TargetLosses,
    /// What the interface itself has dropped since, whoever sent it: of what generic mode sends, the
    /// kernel tells nothing else. `None` for CPUs, and where the interface is not to be seen.
    pub interface_dropped: Option<u64>,
}

/// Packets that a rule steered and that did not get to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetLosses {
    /// The program knew, and dropped them: these four are not among the target's packets.
    pub gone: u64,
    pub down: u64,
    pub mtu: u64,
    pub unresolved: u64,
    /// The kernel refused the redirect after the program had decided it: these three are among the
    /// target's packets.
    pub refused: u64,
    /// The device did not take the frame. Where several targets send out of one interface, this
    /// counts for the first.
    pub device: u64,
    /// A CPU's queue was full. Counted by CPU, so for all targets that name it.
    pub queue: u64,
}

impl TargetLosses {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.gone + self.down + self.mtu + self.unresolved + self.refused + self.device + self.queue
    }
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInfo {
    /// The file it came from, as it was given.
    pub path: String,
    /// Counts the policies that this instance has had in force.
    pub generation: u64,
    /// Seconds since 1970.
    pub applied_at: u64,
    pub default: String,
    pub rules: usize,
    /// Whether it is on trial: then the kernel puts the policy before back in force by itself.
    pub on_trial: bool,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    pub name: String,
    /// 0 once the interface is gone.
    pub index: u32,
    pub mode: AttachedMode,
    /// Whether the program is on the interface.
    pub attached: bool,
    /// The program's tag: the kernel's hash over its instructions, 16 hexadecimal digits, as `bpftool prog` shows it.
    #[serde(default)]
    pub tag: Option<String>,
    /// The SHA-256 of the object that the program came from, as 64 hexadecimal digits: `portsteer --version` prints that
    /// of the object which it has.
    #[serde(default)]
    pub object: Option<String>,
}

/// What `portsteer stats` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    pub instance: String,
    pub policy: PolicyInfo,
    /// In the policy's order.
    pub rules: Vec<RuleStats>,
    /// In the policy's order.
    pub targets: Vec<TargetStats>,
    /// Those that were counted at least once, over all interfaces.
    pub reasons: Vec<ReasonStats>,
    pub interfaces: Vec<InterfaceStats>,
}

/// What a rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleStats {
    /// Its name, or its match and action where it has none.
    pub name: String,
    /// The line of the policy file.
    pub line: usize,
    #[serde(rename = "match")]
    pub matches: String,
    pub action: String,
    pub packets: u64,
    pub bytes: u64,
}

/// Packets with one verdict and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonStats {
    pub verdict: Cow<'static, str>,
    pub reason: Cow<'static, str>,
    pub help: Cow<'static, str>,
    pub packets: u64,
    pub bytes: u64,
}

/// What one interface received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStats {
    pub name: String,
    pub index: u32,
    pub mode: AttachedMode,
    pub attached: bool,
    pub packets: u64,
    pub bytes: u64,
    /// Packets by verdict.
    pub passed: u64,
    pub steered: u64,
    pub dropped: u64,
    pub aborted: u64,
}

impl PolicyInfo {
    pub(super) fn new(manifest: &Manifest, on_trial: bool) -> Self {
        Self {
            on_trial,
            path: manifest.path.clone(),
            generation: manifest.generation,
            applied_at: manifest.applied_at,
            default: manifest.default.clone(),
            rules: manifest.rules.len(),
        }
    }
}

impl InterfaceStatus {
    pub(super) fn new(pinned: &Pinned) -> Self {
        Self {
            name: pinned.record.name(),
            index: pinned.ifindex,
            mode: pinned.record.mode(),
            attached: pinned.ifindex != 0,
            tag: sys::link_program_tag(pinned.link.as_fd()).ok(),
            object: Some(pinned.record.object.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }
}

impl OffloadStatus {
    pub(super) fn new(setting: &Setting) -> Self {
        let (interface, offload) = (setting.interface.clone(), setting.offload.name().into());
        Self { interface, offload, on: setting.on }
    }
}

/// A target in words.
fn describe(kind: &TargetKind) -> String {
    match kind {
        TargetKind::Interface { interface, next_hop } => match next_hop {
            NextHop::Via(address) => format!("{interface} via {address}"),
            NextHop::Mac(mac) => {
                let digits: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{interface} to {}", digits.join(":"))
            }
            NextHop::Keep => format!("{interface} as it is"),
        },
        TargetKind::Cpus { cpus, .. } => {
            let numbers: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            format!("CPU {}", numbers.join(","))
        }
    }
}

impl TargetStatus {
    pub(super) fn new(target: &ManifestTarget, maps: &Maps) -> Self {
        Self {
            name: target.name.clone(),
            to: describe(&target.kind),
            state: TargetState::from_number(state_of(maps, target.slot)),
        }
    }
}

impl TargetStats {
    pub(super) fn new(
        target: &ManifestTarget,
        manifest: &Manifest,
        counted: &[Snapshot],
        maps: &Maps,
        links: &[Link],
    ) -> Result<Self, Error> {
        let TargetStatus { name, to, state } = TargetStatus::new(target, maps);
        // Rules of the same name share their counters.
        let mut counters: Vec<&Share> = manifest
            .rules
            .iter()
            .flat_map(|rule| &rule.shares)
            .filter(|share| share.target == Some(target.slot))
            .collect();
        counters.sort_by_key(|share| share.counter);
        counters.dedup_by_key(|share| share.counter);
        let (mut packets, mut bytes) = (0, 0);
        for share in counters {
            let count = total(counted, share.counter);
            packets += count.packets.wrapping_sub(share.base_packets);
            bytes += count.bytes.wrapping_sub(share.base_bytes);
        }
        let now = losses(maps, target.slot, &target.kind)?;
        let base: Losses = bytemuck::cast(target.base);
        let lost = TargetLosses {
            gone: now.gone.wrapping_sub(base.gone),
            down: now.down.wrapping_sub(base.down),
            mtu: now.mtu.wrapping_sub(base.mtu),
            unresolved: now.unresolved.wrapping_sub(base.unresolved),
            refused: now.refused.wrapping_sub(base.refused),
            device: now.device.wrapping_sub(base.device),
            queue: now.queue.wrapping_sub(base.queue),
        };
        // An interface that was made anew counts from zero.
        let interface_dropped = target.kind.link(links).map(|link| {
            let now = link.counters.tx_dropped;
            now.checked_sub(target.dropped_before).unwrap_or(now)
        });
        Ok(Self { name, to, state, packets, bytes, lost, interface_dropped })
    }
}

impl RuleStats {
    pub(super) fn new(rule: &ManifestRule, counter: Counter) -> Self {
        Self {
            name: rule.label.clone(),
            line: rule.line,
            matches: rule.matches.clone(),
            action: rule.action.clone(),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

impl ReasonStats {
    /// All that were counted.
    pub(super) fn all(outcomes: &Outcomes) -> Vec<Self> {
        let mut reasons = Vec::new();
        for verdict in Verdict::ALL {
            for &reason in Reason::ALL {
                let counter = outcomes.get(verdict, reason);
                if counter.packets > 0 {
                    reasons.push(Self {
                        verdict: verdict.name().into(),
                        reason: reason.name().into(),
                        help: reason.help().into(),
                        packets: counter.packets,
                        bytes: counter.bytes,
                    });
                }
            }
        }
        reasons
    }
}

impl InterfaceStats {
    pub(super) fn new(pinned: &Pinned, outcomes: &Outcomes) -> Self {
        let InterfaceStatus { name, index, mode, attached, .. } = InterfaceStatus::new(pinned);
        let packets =
            |verdict| Reason::ALL.iter().map(|&reason| outcomes.get(verdict, reason).packets).sum();
        Self {
            name,
            index,
            mode,
            attached,
            packets: outcomes.total().packets,
            bytes: outcomes.total().bytes,
            passed: packets(Verdict::Pass),
            steered: packets(Verdict::Steer),
            dropped: packets(Verdict::Drop),
            aborted: packets(Verdict::Abort),
        }
    }
}
