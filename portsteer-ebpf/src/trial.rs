//! The deadline of a policy on trial, held by the kernel: two programs that user space runs once, and the
//! timer's function. They see no packet of any interface.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};

use portsteer_common::trial::REFUSED;

use crate::maps::Timer;

/// Starts the timer for what the map `trial` says. XDP_PASS if it runs.
#[xdp]
pub fn start_trial(_: XdpContext) -> u32 {
    match Timer::get().map(Timer::start) {
        Some(0) => XDP_PASS,
        Some(error) => refused(error),
        None => XDP_ABORTED,
    }
}

/// Stops it. XDP_PASS if it ran until then, XDP_DROP if its time was up before or it never ran.
#[xdp]
pub fn end_trial(_: XdpContext) -> u32 {
    match Timer::get().map(Timer::cancel) {
        Some(1) => XDP_PASS,
        Some(0) => XDP_DROP,
        Some(error) => refused(error),
        None => XDP_ABORTED,
    }
}

/// How user space is told of a helper's error.
fn refused(error: i64) -> u32 {
    REFUSED + (-error) as u32
}
