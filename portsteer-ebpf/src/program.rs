//! The entry point.

use aya_ebpf::{
    bindings::xdp_md, helpers::generated::bpf_xdp_get_buff_len, macros::xdp, programs::XdpContext,
};
use portsteer_common::Decision;
use portsteer_ebpf::{
    frame::{Buffer, Frame},
    parse::{Headers, parse_any, parse_plain},
};

use crate::{
    classify::{classify, without_headers},
    maps::{self, Policy},
    verdict::act,
};

/// Judges one packet, counts it, and does what was decided.
#[xdp(frags)]
pub fn portsteer(ctx: XdpContext) -> u32 {
    let frame = Frame::new(Packet(XdpContext::new(ctx.ctx)));
    // The fast path parses before it looks anything up: a look-up is a call to the compiler, and
    // what lives across it is pushed onto the stack.
    match parse_plain(&frame) {
        Some(key) => conclude(Policy::current().by_plain_port(key), frame.len()),
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
    conclude(decision, frame.len())
}

/// The one exit of both paths: counts a packet of `len` bytes, and does what was decided.
#[inline(always)]
fn conclude(decision: Decision, len: u64) -> u32 {
    maps::count(decision, len);
    act(decision)
}

/// The packet that the kernel hands in.
struct Packet(XdpContext);

// SAFETY: the kernel keeps the bytes between data and data_end readable while the program runs,
// and the verifier checks each access against data_end.
unsafe impl Buffer for Packet {
    #[inline(always)]
    fn start(&self) -> usize {
        self.0.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.0.data_end()
    }

    #[inline(always)]
    fn total_len(&self) -> u64 {
        // SAFETY: the context is the one that the program was called with.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) }
    }
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
