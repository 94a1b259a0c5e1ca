//! The entry point.

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        xdp_md,
    },
    macros::xdp,
    programs::XdpContext,
};
use portsteer_common::{Decision, Verdict};
use portsteer_ebpf::{
    frame::Frame,
    parse::{Headers, Place, parse_any, parse_plain},
};

use crate::{
    classify::{classify, without_headers},
    maps::{self, Policy},
    packet::Packet,
    steer::steer,
};

/// Judges one packet, counts it, and does what was decided.
#[xdp(frags)]
pub fn portsteer(ctx: XdpContext) -> u32 {
    let frame = Frame::new(Packet(XdpContext::new(ctx.ctx)));
    // The fast path parses before it looks anything up: a look-up is a call to the compiler, and
    // what lives across it is pushed onto the stack.
    match parse_plain(&frame) {
        Some(key) => {
            let decision = Policy::current().by_plain_port(key);
            conclude(ctx.ctx, decision, frame.len(), Place::PLAIN)
        }
        None => judge_any(ctx.ctx),
    }
}

/// The slow path. A subprogram, so that its hunger for registers is not the fast path's.
#[inline(never)]
fn judge_any(ctx: *mut xdp_md) -> u32 {
    let mut frame = Frame::new(Packet(XdpContext::new(ctx)));
    let mut headers = Headers::new();
    let parsed = parse_any(&mut frame, &mut headers);
    let policy = Policy::current();
    let decision = match parsed {
        Ok(()) => classify(policy, &headers),
        Err(reason) => without_headers(policy, reason),
    };
    conclude(ctx, decision, frame.len(), headers.place)
}

/// The one exit of both paths: counts a packet of `len` bytes, and does what was decided.
#[inline(always)]
fn conclude(ctx: *mut xdp_md, decision: Decision, len: u64, place: Place) -> u32 {
    // These verdicts are nothing but an XDP action and have its number.
    const _: () = assert!(
        Verdict::Abort as u32 == XDP_ABORTED
            && Verdict::Drop as u32 == XDP_DROP
            && Verdict::Pass as u32 == XDP_PASS
    );
    if decision.needs_more_than_an_action() {
        core::hint::cold_path();
        return steer(ctx, decision.to_bits(), len, place.to_bits());
    }
    maps::count(decision, len);
    decision.verdict_number()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A loop that the verifier refuses: a program that could panic does not load.
    loop {}
}

/// What the program is licensed under, as the kernel wants to know it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
