//! The entry point.

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        xdp_md,
    },
    macros::xdp,
    programs::XdpContext,
};
use portsteer_common::{Decision, PortKey, Verdict};
use portsteer_ebpf::{
    frame::Frame,
    parse::{Headers, parse_any, parse_plain},
};

use crate::{
    classify::{classify_any, classify_plain, classify_plain_by_rules, without_headers},
    maps::{self, Policy},
    packet::Packet,
    steer::{steer_any, steer_plain},
};

/// Judges one packet, counts it, and does what was decided: for policies whose rules constrain nothing
/// but protocols and ports.
#[xdp(frags)]
pub fn portsteer(ctx: XdpContext) -> u32 {
    run(&ctx, Policy::current, judge_any, |_, policy, key| classify_plain(policy, key))
}

/// The same for policies whose rules constrain more. It can do all that the other does, since it is in
/// place before the first such policy is; but the other should not pay for it.
#[xdp(frags)]
pub fn portsteer_rules(ctx: XdpContext) -> u32 {
    run(&ctx, Policy::current, judge_any, |frame, policy, key| {
        classify_plain_by_rules(ctx.ctx, frame, policy, key)
    })
}

/// The same for interfaces that only one of two policies names, while one is on trial: where the other is in
/// force, it is as if nothing were attached.
#[xdp(frags)]
pub fn portsteer_alone(ctx: XdpContext) -> u32 {
    let alone = Policy::of_this_program();
    // The only time that this packet asks which policy is in force.
    if alone.to_word() != Policy::current().to_word() {
        return XDP_PASS;
    }
    run(&ctx, Policy::of_this_program, judge_any_alone, |frame, policy, key| {
        classify_plain_by_rules(ctx.ctx, frame, policy, key)
    })
}

#[inline(always)]
fn run(
    ctx: &XdpContext,
    policy: impl FnOnce() -> Policy,
    judge_any: impl FnOnce(*mut xdp_md) -> u32,
    classify: impl FnOnce(&Frame<Packet>, Policy, PortKey) -> Decision,
) -> u32 {
    let frame = Frame::new(Packet(XdpContext::new(ctx.ctx)));
    // The fast path parses before it looks anything up: a look-up is a call to the compiler, and
    // what lives across it is pushed onto the stack.
    match parse_plain(&frame) {
        Some(key) => {
            let decision = classify(&frame, policy(), key);
            if decision.steers() {
                core::hint::cold_path();
                return steer_plain(ctx.ctx, decision.to_bits(), frame.len());
            }
            conclude(decision, frame.len())
        }
        None => judge_any(ctx.ctx),
    }
}

/// The slow path. A subprogram, so that its hunger for registers is not the fast path's.
#[inline(never)]
fn judge_any(ctx: *mut xdp_md) -> u32 {
    judge_any_by(ctx, Policy::current)
}

/// The same where the interface belongs to one bank alone.
#[inline(never)]
fn judge_any_alone(ctx: *mut xdp_md) -> u32 {
    judge_any_by(ctx, Policy::of_this_program)
}

#[inline(always)]
fn judge_any_by(ctx: *mut xdp_md, policy: impl FnOnce() -> Policy) -> u32 {
    let mut frame = Frame::new(Packet(XdpContext::new(ctx)));
    let mut headers = Headers::new();
    let parsed = parse_any(&mut frame, &mut headers);
    let policy = policy();
    let decision = match parsed {
        Ok(()) => classify_any(ctx, policy, &headers),
        Err(reason) => without_headers(policy, reason),
    };
    conclude_any(ctx, decision.to_bits(), frame.len(), headers.place.to_bits())
}

/// The exit of the slow path. A global function, which the verifier looks at once, and not again for
/// every way through the parser that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn conclude_any(ctx: *mut xdp_md, decision: u32, len: u64, place: u32) -> u32 {
    let decision = Decision::from_bits(decision);
    if decision.steers() {
        return steer_any(ctx, decision.to_bits(), len, place);
    }
    conclude(decision, len)
}

/// What both paths end with for packets that are not steered: counts one of `len` bytes, and does
/// what was decided.
#[inline(always)]
fn conclude(decision: Decision, len: u64) -> u32 {
    // These verdicts are nothing but an XDP action and have its number.
    const _: () = assert!(
        Verdict::Abort as u32 == XDP_ABORTED
            && Verdict::Drop as u32 == XDP_DROP
            && Verdict::Pass as u32 == XDP_PASS
    );
    maps::count(decision, len);
    decision.action()
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
