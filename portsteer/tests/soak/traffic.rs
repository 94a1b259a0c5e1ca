//! Who sends what over a cable, and how much of it got into the other end's queue.

use std::{
    collections::BTreeMap,
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use portsteer::{
    dataplane::sys::{self, Instruction, TestRun},
    lab::Device,
};
use portsteer_common::Reason;
use portsteer_testkit::random::Random;
use portsteer_testkit::{arrivals::SHORTEST_TAGGED, packet::*};

use crate::{
    meter::{Meter, Sent},
    mutation::Mutator,
    operator::{EDITED_PORT, EDITS, SECONDS_EDITS},
    policies::{Decider, decider, is_seconds, rule_name},
};

/// One end of a cable, to send from.
#[derive(Debug)]
pub struct Sender {
    program: OwnedFd,
    _attached: OwnedFd,
    meter: Meter,
}

impl Sender {
    pub fn on(device: &Device) -> Self {
        const BPF_REDIRECT: i32 = 23;
        let instruction =
            |code, registers, immediate| Instruction { code, registers, offset: 0, immediate };
        // return bpf_redirect(ifindex, 0);
        let program = [
            instruction(0xb7, 1, device.index().cast_signed()),
            instruction(0xb7, 2, 0),
            instruction(0x85, 0, BPF_REDIRECT),
            instruction(0x95, 0, 0),
        ];
        let program = sys::load_xdp("generator", &program).expect("a program");
        // A run of a program that is attached nowhere begins and ends with milliseconds of patching the kernel's
        // dispatcher. XDP_FLAGS_DRV_MODE
        let attached = sys::link_xdp(program.as_fd(), device.index(), 1 << 2);
        Self { program, _attached: attached.expect("the program"), meter: Meter::of(device) }
    }

    /// Sends a frame so many times, and says what became of them. Nobody else may send from this end.
    fn send(&self, frame: &[u8], repeat: u32) -> Sent {
        let before = self.meter.read();
        let run = TestRun { frame, repeat, live: true, first_buffer: None };
        sys::test_run(self.program.as_fd(), run).expect("live frames");
        let sent = self.meter.read().since(before);
        assert_eq!(sent.all(), u64::from(repeat), "what was sent: {sent:?} of {frame:02x?}");
        sent
    }
}

/// What somebody sends.
struct Kind {
    name: &'static str,
    frames: Vec<Vec<u8>>,
    decider: Decider,
}

/// A rule that all policies begin with, by its name.
fn rule(name: &str) -> Decider {
    let index = crate::policies::rules().find(|&index| rule_name(index) == name);
    Decider::Rule(index.expect("a rule of this name"))
}

/// The same packet over both versions of IP, and in other wrappings.
fn everywhere(protocol: u8, payload: &[u8]) -> Vec<Vec<u8>> {
    let with_options = Ipv4 { options: vec![1; 8], ..Ipv4::default() };
    let (v4, v6) = (ipv4(protocol, payload), ipv6(protocol, payload));
    vec![
        ethernet(IPV4, &v4),
        ethernet(IPV6, &v6),
        ethernet(IPV4, with_options.packet(protocol, payload)),
        ethernet(IPV6, ipv6(HOP_BY_HOP, options(protocol, 2, payload))),
        ethernet(VLAN, vlan(12, IPV4, &v4)),
        ethernet(VLAN, vlan(13, IPV6, &v6)),
        ethernet(SERVICE_VLAN, vlan(9, VLAN, vlan(12, IPV4, &v4))),
    ]
}

fn kind(name: &'static str, decider: Decider, frames: Vec<Vec<u8>>) -> Kind {
    for frame in &frames {
        let decides = self::decider(frame);
        assert_eq!(decides, decider, "what decides about {name}: {frame:02x?}");
    }
    Kind { name, frames, decider }
}

/// Packets to a port by UDP and TCP.
fn to_port(dst_port: u16) -> Vec<Vec<u8>> {
    let mut frames = everywhere(UDP, &udp(7, dst_port, [0; 18]));
    frames.extend(everywhere(TCP, &tcp(7, dst_port, [0; 6])));
    frames
}

/// The ports of edited rules.
fn edited(numbers: Range<usize>) -> impl Iterator<Item = u16> {
    numbers.map(|number| (EDITED_PORT + number) as u16)
}

/// What comes over the first cable.
fn over_the_first() -> Vec<Kind> {
    let udp_to = |dst_port| everywhere(UDP, &udp(7, dst_port, [0; 18]));
    let later = Ipv4 { fragment_offset: 1480, ..Ipv4::default() };
    let fragments = vec![
        ethernet(IPV4, later.packet(UDP, [0; 64])),
        ethernet(IPV6, ipv6(FRAGMENT, fragment(UDP, 1480, false, [0; 64]))),
    ];
    let mut from_the_set = Vec::new();
    for last in [1, 2, 3, 130, 200] {
        let mut ip = ipv4(UDP, udp(9, 4000, [0; 18]));
        ip[12..16].copy_from_slice(&[192, 0, 2, last]);
        from_the_set.push(ethernet(IPV4, ip));
    }
    let mut cut = ethernet(IPV4, ipv4(UDP, udp(7, 1001, [0; 18])));
    cut.truncate(40);
    let discovery = ethernet(IPV6, ipv6(ICMPV6, icmp(135, 0, [0; 16])));
    vec![
        kind("dropped", rule("dropped"), udp_to(1001)),
        kind("dropped, TCP", rule("dropped-tcp"), everywhere(TCP, &tcp(7, 1002, [0; 6]))),
        kind("passed", rule("passed"), to_port(1003)),
        kind("steered", rule("steered"), to_port(1004)),
        kind("steered to a CPU", rule("to-cpu"), udp_to(1005)),
        kind("ESP", rule("esp"), everywhere(ESP, &[0; 24])),
        kind("ICMP", rule("icmp"), vec![ethernet(IPV4, ipv4(ICMP, icmp(8, 0, [0; 18])))]),
        kind("later fragments", Decider::Reason(Reason::FragmentWithoutPorts), fragments),
        kind("ARP", Decider::Reason(Reason::NotIp), vec![ethernet(ARP, [0; 28])]),
        kind("cut off", Decider::Reason(Reason::Truncated), vec![cut]),
        kind("neighbour discovery", Decider::Changing, vec![discovery]),
        kind("from a set", Decider::Changing, from_the_set),
        kind("to varied ports", Decider::Changing, (3000..3010).flat_map(udp_to).collect()),
        kind("to edited ports", Decider::Changing, edited(0..EDITS).flat_map(udp_to).collect()),
    ]
}

/// What comes over the second cable.
fn over_the_second() -> Vec<Kind> {
    let udp_to = |dst_port| everywhere(UDP, &udp(7, dst_port, [0; 18]));
    vec![
        kind("dropped", rule("second-dropped"), udp_to(2001)),
        kind("passed", rule("second-passed"), udp_to(2002)),
        kind("steered", rule("second-steered"), to_port(2003)),
        kind("to varied ports", Decider::Changing, (3000..3010).flat_map(udp_to).collect()),
        kind(
            "to edited ports",
            Decider::Changing,
            edited(SECONDS_EDITS).flat_map(udp_to).collect(),
        ),
    ]
}

/// What was sent over a cable.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sent: Sent,
    pub by_kind: BTreeMap<&'static str, Sent>,
    /// Frames that the other end's queue took, by what decides about them.
    pub queued: BTreeMap<Decider, u64>,
    /// How many different frames were made by mutation.
    pub mutated: u64,
}

impl Ledger {
    fn add(&mut self, kind: &'static str, decider: Decider, sent: Sent) {
        self.sent.add(sent);
        self.by_kind.entry(kind).or_default().add(sent);
        *self.queued.entry(decider).or_default() += sent.queued;
    }
}

/// Which cable somebody sends over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    First,
    /// Comes and goes.
    Second,
}

/// The longest frame that the cables carry, and the shortest that the kernel hands to a program.
const LONGEST: usize = 1514;
pub const SHORTEST: usize = 14;

/// A frame that is neither too long for the cable nor so short that the kernel loses it in silence.
fn presentable(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().clamp(SHORTEST, LONGEST), 0);
    if is_tagged(&frame) && frame.len() < SHORTEST_TAGGED {
        frame.resize(SHORTEST_TAGGED, 0);
    }
    frame
}

fn is_tagged(frame: &[u8]) -> bool {
    [VLAN, SERVICE_VLAN].contains(&u16::from_be_bytes([frame[12], frame[13]]))
}

/// How often a frame is sent at once. The stack writes into what it is passed, as when it takes a tag off, and the
/// kernel sends the same 64 pages again and again.
fn most_at_once(frame: &[u8]) -> usize {
    if is_tagged(frame) { 64 } else { 1_024 }
}

/// Sends everything in turn until it is over. While there is no cable nothing is sent.
pub fn send_until(
    over: &AtomicBool,
    cable: Cable,
    sender: &Mutex<Option<Sender>>,
    mutator: Mutator,
    random: &mut Random,
) -> Ledger {
    let kinds = match cable {
        Cable::First => over_the_first(),
        Cable::Second => over_the_second(),
    };
    let mut ledger = Ledger::default();
    while !over.load(Ordering::Relaxed) {
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            if random.once_in(4) {
                for _ in 0..16 {
                    let frame = presentable(mutator(random.number()));
                    let decider = decider(&frame);
                    if !belongs(cable, decider) {
                        continue;
                    }
                    let sent = sender.send(&frame, 1 + random.below(4) as u32);
                    ledger.add("mutated", decider, sent);
                    ledger.mutated += 1;
                }
            } else {
                let kind = random.choose(&kinds);
                let frame = random.choose(&kind.frames);
                let repeat = 1 + random.below(most_at_once(frame)) as u32;
                ledger.add(kind.name, kind.decider, sender.send(frame, repeat));
            }
        }
        drop(sender);
        // The agent is to get on, too, and whoever waits for the cable.
        thread::yield_now();
    }
    ledger
}

/// Whether something may come over a cable. What is counted by the rules of one cable never comes over the other, so
/// that each rule's count is that of one cable; and what is counted by reason comes over the first alone.
fn belongs(cable: Cable, decider: Decider) -> bool {
    match decider {
        Decider::Rule(index) => is_seconds(index) == (cable == Cable::Second),
        Decider::Reason(_) => cable == Cable::First,
        Decider::Changing => true,
    }
}
