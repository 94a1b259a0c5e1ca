//! The entry point.

use aya_ebpf::{helpers::generated::bpf_xdp_get_buff_len, macros::xdp, programs::XdpContext};
use portsteer_common::{Reason, Rule, Verdict};
use portsteer_ebpf::{
    frame::{Buffer, Frame},
    parse::{Headers, parse_any, parse_plain},
};

use crate::{
    classify::{classify, classify_ports, without_headers},
    count::count,
    maps::Policy,
    verdict::act,
};

/// Judges one packet.
#[xdp(frags)]
pub fn portsteer(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(Packet(ctx));
    let rule = judge(&mut frame);
    count(rule, frame.len());
    act(rule.verdict.verdict())
}

#[inline(always)]
fn judge(frame: &mut Frame<Packet>) -> Rule {
    let Some(policy) = Policy::current() else {
        return Rule::new(Verdict::Abort, Reason::Internal, Rule::UNLISTED_COUNTER);
    };
    if let Some(key) = parse_plain(frame) {
        return classify_ports(policy, key);
    }
    let mut headers = Headers::new();
    match parse_any(frame, &mut headers) {
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
    fn total_len(&self) -> u32 {
        // SAFETY: the context is the one that the program was called with.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) as u32 }
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
