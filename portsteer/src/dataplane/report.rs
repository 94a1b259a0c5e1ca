//! What listings show. The field names are those of `--json` and stay.

use portsteer_common::{Counter, CounterPage, Reason, Verdict, counters::outcome_counter};
use serde::Serialize;

use super::{AttachedMode, Manifest, ManifestRule, Pinned};

/// What `portsteer status` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub instance: String,
    pub policy: PolicyInfo,
    pub interfaces: Vec<InterfaceStatus>,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyInfo {
    /// The file it came from, as it was given.
    pub path: String,
    /// Counts the policies that this instance has had in force.
    pub generation: u64,
    /// Seconds since 1970.
    pub applied_at: u64,
    pub default: String,
    pub rules: usize,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    pub name: String,
    /// 0 once the interface is gone.
    pub index: u32,
    pub mode: AttachedMode,
    /// Whether the program is on the interface.
    pub attached: bool,
}

/// What `portsteer stats` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub instance: String,
    pub policy: PolicyInfo,
    /// In the policy's order.
    pub rules: Vec<RuleStats>,
    /// Those that were counted at least once, over all interfaces.
    pub reasons: Vec<ReasonStats>,
    pub interfaces: Vec<InterfaceStats>,
}

/// What a rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonStats {
    pub verdict: &'static str,
    pub reason: &'static str,
    pub help: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

/// What one interface received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterfaceStats {
    pub name: String,
    pub index: u32,
    pub mode: AttachedMode,
    pub attached: bool,
    pub packets: u64,
    pub bytes: u64,
    /// Packets by verdict.
    pub passed: u64,
    pub dropped: u64,
    pub aborted: u64,
}

impl PolicyInfo {
    pub(super) fn new(manifest: &Manifest) -> Self {
        Self {
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
        }
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
    /// All that were counted, from a page of outcomes.
    pub(super) fn all(outcomes: &CounterPage) -> Vec<Self> {
        let mut reasons = Vec::new();
        for verdict in Verdict::ALL {
            for &reason in Reason::ALL {
                let counter = outcomes.counters[outcome_counter(verdict, reason) as usize];
                if counter.packets > 0 {
                    reasons.push(Self {
                        verdict: verdict.name(),
                        reason: reason.name(),
                        help: reason.help(),
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
    pub(super) fn new(pinned: &Pinned, outcomes: &CounterPage) -> Self {
        let InterfaceStatus { name, index, mode, attached } = InterfaceStatus::new(pinned);
        let packets = |verdict| {
            Reason::ALL
                .iter()
                .map(|&reason| outcomes.counters[outcome_counter(verdict, reason) as usize].packets)
                .sum()
        };
        Self {
            name,
            index,
            mode,
            attached,
            packets: outcomes.counters.iter().map(|counter| counter.packets).sum(),
            bytes: outcomes.counters.iter().map(|counter| counter.bytes).sum(),
            passed: packets(Verdict::Pass),
            dropped: packets(Verdict::Drop),
            aborted: packets(Verdict::Abort),
        }
    }
}
