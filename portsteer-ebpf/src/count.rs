//! The one exit: every packet is counted here, once per rule and once per interface, verdict and
//! reason.

use portsteer_common::{Rule, reason::REASON_SLOTS};

use crate::maps;

/// Counts a frame of `len` bytes under the rule that decided about it.
#[inline(always)]
pub fn count(rule: Rule, len: u32) {
    maps::count_rule(rule.counter, len);
    let index = usize::from(rule.verdict.0) * REASON_SLOTS + usize::from(rule.reason);
    maps::count_interface(index, len);
}
