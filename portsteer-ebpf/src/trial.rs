//! The deadline of a policy on trial, held by the kernel: a program that user space runs once, and the
//! timer's function. It sees no packet of any interface.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};

use portsteer_common::trial::REFUSED;

use crate::maps::Timer;

/// Puts the policy that the map `trial` names in force, on trial. XDP_PASS if it is, XDP_DROP if another policy is in
/// force than the one that it was to follow.
#[xdp]
pub fn begin_trial(_: XdpContext) -> u32 {
    match Timer::get().map(Timer::begin) {
        Some(0) => XDP_PASS,
        Some(1) => XDP_DROP,
        Some(error) => refused(error),
        None => XDP_ABORTED,
    }
}

/// The kernel's error number, for user space.
fn refused(error: i64) -> u32 {
    REFUSED + (-error) as u32
}
