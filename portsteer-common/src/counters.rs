//! The counters' layout. All counters are per CPU; user space adds the CPUs up.
//!
//! Counters live outside the policy image, so a swap leaves them alone.

use bytemuck::{Pod, Zeroable};

use crate::{Reason, Verdict, reason::REASON_SLOTS, verdict::VERDICT_SLOTS};

/// Packets, and the bytes of their frames (Ethernet header included, frame check sequence not).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// The number of rule counters in one [`RuleCounterPage`]: a power of two, and small enough for
/// the per-CPU allocator, which takes no value above 32 KiB.
pub const RULE_COUNTERS_PER_PAGE: usize = 1024;

/// The most pages an instance can have. Twice as many counters as a policy may have rules, so
/// that a policy in which every rule is new finds room beside the one that it replaces. How many
/// an instance really has is settled when it is loaded: a page costs 16 KiB per CPU.
pub const MAX_RULE_COUNTER_PAGES: usize = 256;

/// One entry of the map `rule_counters`. Counter `id` stands in page `id / 1024` at `id % 1024`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RuleCounterPage {
    pub counters: [Counter; RULE_COUNTERS_PER_PAGE],
}

/// One entry of the map `if_counters`: an interface slot's packets by verdict and reason. Sums
/// over it give the interface's totals, and sums over interfaces a reason's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct InterfaceCounters {
    pub counters: [Counter; VERDICT_SLOTS * REASON_SLOTS],
}

impl InterfaceCounters {
    /// Where the packets with this verdict and reason are counted.
    #[inline(always)]
    #[must_use]
    pub const fn index(verdict: Verdict, reason: Reason) -> usize {
        (verdict as usize) * REASON_SLOTS + reason as usize
    }
}
