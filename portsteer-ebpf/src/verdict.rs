//! Verdict to XDP action. Whatever a verdict does to a packet is done here.

use aya_ebpf::bindings::xdp_action::{self, XDP_ABORTED, XDP_DROP, XDP_PASS};
use portsteer_common::{Decision, Verdict};

/// Does what was decided.
#[inline(always)]
pub fn act(decision: Decision) -> xdp_action::Type {
    // These verdicts are nothing but an action and have its number. Said with a comparison, since
    // a match over them becomes a chain of branches.
    const _: () = assert!(
        Verdict::Abort as u32 == XDP_ABORTED
            && Verdict::Drop as u32 == XDP_DROP
            && Verdict::Pass as u32 == XDP_PASS
    );
    let number = decision.verdict_number();
    if number <= XDP_PASS { number } else { XDP_ABORTED }
}
