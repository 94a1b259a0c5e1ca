//! To a target: rewrite, redirect, and count what really happened.

use aya_ebpf::{
    Global,
    bindings::{
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_REDIRECT},
        xdp_md,
    },
    programs::XdpContext,
};
use portsteer_common::{
    Decision, Reason, Verdict,
    steering::{SPREAD_PLACES, state},
};
use portsteer_ebpf::{flow, frame::Frame, parse::Place};

use crate::{classify::BROKEN, maps, packet::Packet};

/// Steers a packet of `len` bytes whose headers stand at `place`. Counts it, once, and says what
/// the kernel is to do.
///
/// A subprogram, for the reason that the slow path is one. Here is what mostly happens, in one
/// straight line; all else is for [`steer_otherwise`].
#[inline(never)]
pub fn steer(ctx: *mut xdp_md, decision: u32, len: u64, place: u32) -> u32 {
    let bits = decision;
    let decision = Decision::from_bits(bits);
    if decision.verdict_number() == Verdict::Steer as u32
        && let Some(target) = maps::target_of(decision)
    {
        let number = target.state();
        let packet = Packet(XdpContext::new(ctx));
        let is_sent = if number.wrapping_sub(state::READY_0) < 2 {
            len <= target.max_len()
                && !is_in_pieces_that_are_not_taken(&packet, len)
                && packet.set_mac_addresses(target.macs((number - state::READY_0) as usize))
                && maps::redirect_to_device(target)
        } else if number == state::READY_CPU {
            maps::redirect_to_cpu(target, 0)
        } else {
            number == state::READY_CPUS && Place::from_bits(place).is_plain() && {
                let hash = flow::hash_plain(&Frame::new(packet));
                maps::redirect_to_cpu(target, hash as usize % SPREAD_PLACES)
            }
        };
        if is_sent {
            maps::count(decision, len);
            return XDP_REDIRECT;
        }
    }
    core::hint::cold_path();
    steer_otherwise(ctx, bits, len, place)
}

/// The same for packets that are not plain, frames that leave as they came, and whatever fails.
#[inline(never)]
fn steer_otherwise(ctx: *mut xdp_md, decision: u32, len: u64, place: u32) -> u32 {
    let decision = Decision::from_bits(decision);
    if decision.verdict_number() != Verdict::Steer as u32 {
        maps::count(decision, len);
        return XDP_ABORTED;
    }
    let Some(target) = maps::target_of(decision) else {
        maps::count(BROKEN, len);
        return XDP_ABORTED;
    };
    let packet = Packet(XdpContext::new(ctx));
    let lost = match target.state() {
        number @ state::READY_0..=state::READY_KEEP => {
            if len > target.max_len() || is_in_pieces_that_are_not_taken(&packet, len) {
                Reason::TargetMtu
            } else if number == state::READY_KEEP && maps::redirect_to_device(target) {
                maps::count(decision, len);
                return XDP_REDIRECT;
            } else {
                Reason::TargetGone
            }
        }
        state::READY_CPUS => {
            let hash = flow::hash(&Frame::new(packet), Place::from_bits(place));
            if maps::redirect_to_cpu(target, hash as usize % SPREAD_PLACES) {
                maps::count(decision, len);
                return XDP_REDIRECT;
            }
            Reason::TargetGone
        }
        state::DOWN => Reason::TargetDown,
        state::UNRESOLVED => Reason::TargetUnresolved,
        _ => Reason::TargetGone,
    };
    maps::lose_at(target.slot(), |losses| match lost {
        Reason::TargetDown => losses.down += 1,
        Reason::TargetMtu => losses.mtu += 1,
        Reason::TargetUnresolved => losses.unresolved += 1,
        _ => losses.gone += 1,
    });
    maps::count(Decision::without_rule(Verdict::Drop, lost), len);
    XDP_DROP
}

/// Whether this kernel redirects frames in several buffers to no device, and without a word:
/// before Linux 6.3 (`xdp_do_redirect` in net/core/filter.c).
#[unsafe(no_mangle)]
static DEVICES_TAKE_ONE_BUFFER: Global<u32> = Global::new(0);

/// Whether a packet of `len` bytes is a frame of several buffers, on a kernel that loses those.
#[inline(always)]
fn is_in_pieces_that_are_not_taken(packet: &Packet, len: u64) -> bool {
    DEVICES_TAKE_ONE_BUFFER.load() != 0 && len > packet.first_buffer_len()
}
