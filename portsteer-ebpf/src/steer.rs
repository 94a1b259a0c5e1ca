//! To a target: rewrite, redirect, and count what really happened.

use aya_ebpf::{
    Global,
    bindings::{
        xdp_action::{XDP_DROP, XDP_REDIRECT},
        xdp_md,
    },
    programs::XdpContext,
};
use portsteer_common::{
    Decision, Reason, Verdict,
    steering::{SPREAD_PLACES, state},
};
use portsteer_ebpf::{
    flow,
    frame::{Buffer, Frame},
    parse::Place,
};

use crate::{maps, packet::Packet};

/// Steers a plain packet of `len` bytes. Counts it, once, and says what the kernel is to do.
///
/// Part of the fast path, down to its return code, which is why it has what mostly happens alone; all
/// else is for [`steer_any`] and [`lose`]. After the redirect nothing asks for the packet any more, so
/// that no more registers live across the call than where nothing is steered.
#[inline(always)]
pub fn steer_plain(ctx: *mut xdp_md, decision: u32, len: u64) -> u32 {
    let bits = decision;
    let decision = Decision::from_bits(bits);
    let target = maps::target_of(decision);
    let number = target.state();
    let packet = Packet(XdpContext::new(ctx));
    let is_sent = if DEVICES_TAKE_ONE_BUFFER.load() != 0 {
        return steer_any(ctx, bits, len, Place::PLAIN.to_bits());
    } else if number.wrapping_sub(state::READY_0) < 2 {
        if len > target.max_len() {
            return lose(bits, len, Reason::TargetMtu as u32);
        }
        packet.set_mac_addresses(target.macs((number - state::READY_0) as usize))
            && maps::redirect_to_device(target)
    } else if number == state::READY_CPU {
        maps::redirect_to_cpu(target, 0)
    } else if number == state::READY_CPUS {
        let hash = flow::hash_plain(&Frame::new(packet));
        maps::redirect_to_cpu(target, hash as usize % SPREAD_PLACES)
    } else {
        return steer_any(ctx, bits, len, Place::PLAIN.to_bits());
    };
    if is_sent {
        maps::count_steered(decision, len);
        return XDP_REDIRECT;
    }
    core::hint::cold_path();
    lose(bits, len, Reason::TargetGone as u32)
}

/// Steers any packet, to any target.
#[inline(never)]
pub fn steer_any(ctx: *mut xdp_md, decision: u32, len: u64, place: u32) -> u32 {
    let bits = decision;
    let decision = Decision::from_bits(bits);
    let target = maps::target_of(decision);
    let packet = Packet(XdpContext::new(ctx));
    let lost = match target.state() {
        number @ state::READY_0..=state::READY_KEEP => {
            if len > target.max_len() || is_in_pieces_that_are_not_taken(&packet) {
                Reason::TargetMtu
            } else if (number == state::READY_KEEP
                || packet.set_mac_addresses(target.macs((number - state::READY_0) as usize)))
                && maps::redirect_to_device(target)
            {
                maps::count_steered(decision, len);
                return XDP_REDIRECT;
            } else {
                Reason::TargetGone
            }
        }
        number @ state::READY_CPUS..=state::READY_CPU => {
            let hash = if number == state::READY_CPU {
                0
            } else {
                flow::hash(&Frame::new(packet), Place::from_bits(place))
            };
            if maps::redirect_to_cpu(target, hash as usize % SPREAD_PLACES) {
                maps::count_steered(decision, len);
                return XDP_REDIRECT;
            }
            Reason::TargetGone
        }
        state::DOWN => Reason::TargetDown,
        state::UNRESOLVED => Reason::TargetUnresolved,
        _ => Reason::TargetGone,
    };
    lose(bits, len, lost as u32)
}

/// Counts a packet that its target does not get, and drops it.
#[inline(never)]
fn lose(decision: u32, len: u64, reason: u32) -> u32 {
    let target = maps::target_of(Decision::from_bits(decision));
    let reason = match reason {
        DOWN => Reason::TargetDown,
        MTU => Reason::TargetMtu,
        UNRESOLVED => Reason::TargetUnresolved,
        _ => Reason::TargetGone,
    };
    maps::lose_at(target.slot(), |losses| match reason {
        Reason::TargetDown => losses.down += 1,
        Reason::TargetMtu => losses.mtu += 1,
        Reason::TargetUnresolved => losses.unresolved += 1,
        _ => losses.gone += 1,
    });
    maps::count(Decision::without_rule(Verdict::Drop, reason), len);
    XDP_DROP
}

const DOWN: u32 = Reason::TargetDown as u32;
const MTU: u32 = Reason::TargetMtu as u32;
const UNRESOLVED: u32 = Reason::TargetUnresolved as u32;

/// Whether this kernel redirects frames in several buffers to no device, and without a word:
/// before Linux 6.3 (`xdp_do_redirect` in net/core/filter.c).
#[unsafe(no_mangle)]
static DEVICES_TAKE_ONE_BUFFER: Global<u32> = Global::new(0);

/// Whether a packet is a frame of several buffers, be it for its padding alone, on a kernel that loses
/// those.
#[inline(always)]
fn is_in_pieces_that_are_not_taken(packet: &Packet) -> bool {
    DEVICES_TAKE_ONE_BUFFER.load() != 0 && packet.total_len() > packet.first_buffer_len()
}
