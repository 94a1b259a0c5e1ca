//! The entry point.

use aya_ebpf::{helpers::generated::bpf_xdp_get_buff_len, macros::xdp, programs::XdpContext};
use portsteer_common::Decision;
use portsteer_ebpf::{
    frame::{Buffer, Frame},
    parse::{Headers, parse_any, parse_plain},
};

use crate::{
    classify::{BROKEN, classify, without_headers},
    maps::{self, Policy},
    verdict::act,
};

/// Judges one packet, counts it, and does what was decided: the one exit.
#[xdp(frags)]
pub fn portsteer(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(Packet(ctx));
    let decision = judge(&mut frame);
    maps::count(decision, frame.len());
    act(decision)
}

/// The fast path parses before it looks anything up: a look-up is a call to the compiler, and what
/// lives across it is pushed onto the stack.
#[inline(always)]
fn judge(frame: &mut Frame<Packet>) -> Decision {
    match parse_plain(frame) {
        Some(key) => Policy::current().map_or(BROKEN, |policy| policy.by_plain_port(key)),
        None => judge_any(frame),
    }
}

/// The slow path.
#[inline(always)]
fn judge_any(frame: &mut Frame<Packet>) -> Decision {
    // So that the fast path is laid out in one piece.
    core::hint::cold_path();
    let mut headers = Headers::new();
    let parsed = parse_any(frame, &mut headers);
    let Some(policy) = Policy::current() else { return BROKEN };
    match parsed {
        Ok(()) => classify(policy, &headers),
        Err(reason) => without_headers(policy, reason),
    }
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
