//! Verdict to XDP action. Whatever a verdict does to a packet is done here.

use aya_ebpf::bindings::xdp_action::{self, XDP_ABORTED, XDP_DROP, XDP_PASS};
use portsteer_common::Verdict;

/// Does what the verdict says.
#[inline(always)]
pub fn act(verdict: Verdict) -> xdp_action::Type {
    match verdict {
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
        Verdict::Abort => XDP_ABORTED,
    }
}
