//! Headers to the decision about them: one load, whatever the number of rules, where they constrain
//! nothing but protocols and destination ports; else as many bounded look-ups as the policy has
//! partitions (see [`portsteer_common::image`]).

use core::mem::offset_of;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use portsteer_common::{
    Decision, Fault, Node, PortKey, Reason, Verdict,
    image::{Cell, Roots, feature},
    node::{Kind, row},
    wire::EthernetHeader,
};
use portsteer_ebpf::{
    frame::{Frame, PlainIpv4},
    parse::{self, Headers},
};

use crate::{
    maps::{self, Policy, Segment},
    packet::Packet,
    tables::{self, Address, Facts, SlowV4, V4, V6},
};

/// A defect in this program.
pub const BROKEN: Decision = Decision::without_rule(Verdict::Abort, Reason::Internal);

/// What is decided about a plain packet where rules constrain nothing but protocols and ports.
#[inline(always)]
pub fn classify_plain(policy: Policy, key: PortKey) -> Decision {
    Decision::from_bits(policy.by_plain_port(key).0)
}

/// What is decided about a plain packet.
#[inline(always)]
pub fn classify_plain_by_rules(
    ctx: *mut xdp_md,
    frame: &Frame<Packet>,
    policy: Policy,
    key: PortKey,
) -> Decision {
    let cell = policy.by_plain_port(key);
    if policy.features() == 0 {
        return Decision::from_bits(cell.0);
    }
    let src_port =
        if maps::has(feature::EXTRAS) { parse::plain_src_port(frame).unwrap_or(0) } else { 0 };
    let facts = Facts::new(key.row(), u32::from(key.dst_port()), 0, src_port);
    let best = tables::leaf::<false>(Node::from_bits(cell.0), facts);
    let Some(plain) = frame.get::<PlainIpv4>(0) else { return BROKEN };
    let best = if plain.kind[2] >> 4 == 4 {
        let [a, b, c, d, e, f, g, h] = plain.addresses;
        let addresses = [V4::new([a, b, c, d]), V4::new([e, f, g, h])];
        let Roots { src_v4, dst_v4, .. } = policy.roots();
        best_of::<false, _>(best, facts, [src_v4, dst_v4], addresses)
    } else {
        best_v6(ctx, policy, best, facts, EthernetHeader::LEN)
    };
    decision(policy, best)
}

/// What is decided about any packet with these headers.
#[inline(always)]
pub fn classify_any(ctx: *mut xdp_md, policy: Policy, headers: &Headers) -> Decision {
    let decision = if maps::has(feature::RULES) && policy.features() != 0 {
        let (row, column) = headers.row_and_column();
        let facts = Facts::new(row, column, headers.vlan, headers.src_port);
        let l3_off = headers.place.l3_off() as u32;
        Decision::from_bits(any_by_rules(ctx, policy.to_word(), facts.key, facts.extras, l3_off))
    } else {
        let cell = match headers.kind {
            parse::Kind::Ports => policy.by_port(headers.key).unwrap_or(Cell(BROKEN.to_bits())),
            _ => policy.by_protocol(headers.other_column()),
        };
        Decision::from_bits(cell.0)
    };
    unless_spared(decision, headers)
}

/// The same where rules constrain more than protocols and ports.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn any_by_rules(
    ctx: *mut xdp_md,
    policy: u32,
    key: u32,
    extras: u32,
    l3_off: u32,
) -> u32 {
    let policy = Policy::of_word(policy);
    let facts = Facts { key, extras };
    let column = key & 0xffff;
    let node = match key >> 16 {
        row::OTHER => Node::from_bits(policy.by_protocol(column).0),
        row::ICMP => policy.icmp(),
        row::ICMPV6 => policy.icmpv6(),
        row => match policy.by_port(PortKey::of_row(row, column as u16)) {
            Some(cell) => Node::from_bits(cell.0),
            None => return BROKEN.to_bits(),
        },
    };
    let best = tables::leaf::<true>(node, facts);
    let frame = Frame::new(Packet(XdpContext::new(ctx)));
    let l3_off = l3_off as usize;
    let version = frame.header::<u8>(l3_off).map_or(0, |byte| byte >> 4);
    let best = if version == 4 {
        let Ok(ip) = frame.header::<Ipv4Hdr>(l3_off) else { return BROKEN.to_bits() };
        let addresses = [ip.src_addr, ip.dst_addr].map(|address| SlowV4(V4::new(address)));
        let Roots { src_v4, dst_v4, .. } = policy.roots();
        best_of::<true, _>(best, facts, [src_v4, dst_v4], addresses)
    } else {
        best_v6(ctx, policy, best, facts, l3_off)
    };
    decision(policy, best).to_bits()
}

/// The first rule of all partitions for an IPv6 packet, whose header stands at an offset in the frame.
#[inline(always)]
fn best_v6(ctx: *mut xdp_md, policy: Policy, best: Node, facts: Facts, l3_off: usize) -> Node {
    let address = |offset: usize| V6 { ctx, at: (l3_off + offset) as u32 };
    let addresses =
        [address(offset_of!(Ipv6Hdr, src_addr)), address(offset_of!(Ipv6Hdr, dst_addr))];
    let Roots { src_v6, dst_v6, .. } = policy.roots();
    best_of::<true, _>(best, facts, [src_v6, dst_v6], addresses)
}

/// The first rule of all partitions, where `best` is that of the rules that constrain no address, for
/// source and destination.
#[inline(always)]
fn best_of<const SLOW: bool, A: Address>(
    best: Node,
    facts: Facts,
    [src_root, dst_root]: [Node; 2],
    [src, dst]: [A; 2],
) -> Node {
    let mut best = best;
    if maps::has(feature::SRC | feature::BOTH) {
        let mut node = src.walk(src_root);
        if maps::has(feature::BOTH) && node.is(Kind::Fork) {
            let (alone, root) = tables::fork(node);
            best = best.min(tables::leaf::<SLOW>(dst.walk(root), facts));
            node = alone;
        }
        best = best.min(tables::leaf::<SLOW>(node, facts));
    }
    if maps::has(feature::DST) {
        best = best.min(tables::leaf::<SLOW>(dst.walk(dst_root), facts));
    }
    best
}

/// What a leaf stands for.
#[inline(always)]
fn decision(policy: Policy, leaf: Node) -> Decision {
    if leaf == Node::NOTHING {
        return policy.default();
    }
    if leaf.is_later() {
        return policy.fragments();
    }
    match Segment::word_of_all(policy.decisions() + leaf.rule_number()) {
        Some(bits) => Decision::from_bits(bits),
        None => BROKEN,
    }
}

/// The decision, but a pass for the messages that `default = "drop"` spares.
#[inline(always)]
fn unless_spared(decision: Decision, headers: &Headers) -> Decision {
    const DEFAULT_DROP: Decision = Decision::without_rule(Verdict::Drop, Reason::NoRule);
    match headers.spared() {
        Some(reason) if decision == DEFAULT_DROP => Decision::without_rule(Verdict::Pass, reason),
        _ => decision,
    }
}

/// What is decided about a packet that has no headers to judge it by.
#[inline(always)]
pub fn without_headers(policy: Policy, reason: Reason) -> Decision {
    let verdict = match reason.fault() {
        Some(Fault::Malformed) => policy.malformed(),
        Some(Fault::Unsupported) => policy.unsupported(),
        None => Verdict::Pass,
    };
    Decision::without_rule(verdict, reason)
}
