//! The counters' layout. Every attached program has a map `counters` of its own, an array of pages,
//! per CPU; user space adds the CPUs and the interfaces up.
//!
//! A packet is counted once, in one counter:
//!
//! ```text
//! pages 0, 1  packets that no rule decided about, by verdict and reason
//! page 2...   packets that a rule decided about: one counter per rule and verdict
//! ```
//!
//! All rules that count in a page have the same verdict, and a page never changes its verdict, so
//! an interface's totals per verdict are sums over pages. The counters live outside the policy, so
//! a swap leaves them alone.

use bytemuck::{Pod, Zeroable};

use crate::{Reason, Verdict, reason::REASON_SLOTS, verdict::VERDICT_SLOTS};

/// Packets, and the bytes of their frames (Ethernet header included, frame check sequence not).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// The number of counters in a page: a power of two.
pub const PAGE_COUNTERS: usize = 256;

/// The most pages that a map `counters` can have. How many it really has is settled when it is made: a
/// page costs 4 KiB per CPU and interface. An interface that needs more gets another map beside it.
pub const MAX_PAGES: usize = 2048;

/// One value of the map `counters`. Counter `id` stands in page `id / 256` at `id % 256`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct CounterPage {
    pub counters: [Counter; PAGE_COUNTERS],
}

/// The number of pages that packets without a rule are counted in; the pages of rules begin here.
pub const OUTCOME_PAGES: usize = VERDICT_SLOTS * REASON_SLOTS / PAGE_COUNTERS;

const _: () = assert!(OUTCOME_PAGES * PAGE_COUNTERS == VERDICT_SLOTS * REASON_SLOTS);

/// The counter, in the first [`OUTCOME_PAGES`] pages, of packets with this verdict that no rule decided about.
#[inline(always)]
#[must_use]
pub const fn outcome_counter(verdict: Verdict, reason: Reason) -> u32 {
    verdict as u32 * REASON_SLOTS as u32 + reason as u32
}
