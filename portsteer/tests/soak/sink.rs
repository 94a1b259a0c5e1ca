//! Where steered packets end: a namespace behind the target's interface that counts what comes, by target.

use std::os::fd::{AsFd as _, OwnedFd};

use portsteer::{
    dataplane::sys::{self, Instruction, MapShape, map_type},
    lab::{End, Namespace, Veth},
};

/// The interface that targets lead to.
pub const INTERFACE: &str = "to-sink";

/// The Ethernet address that packets for a target get, of which the last byte is `number`.
pub fn mac(number: u8) -> String {
    format!("02:00:00:00:aa:{number:02x}")
}

#[derive(Debug)]
pub struct Sink {
    /// `to-sink` and, in the namespace, `sink`.
    pub street: Veth,
    counts: OwnedFd,
    _link: OwnedFd,
}

impl Sink {
    pub fn new(host: &Namespace) -> Self {
        let namespace = super::silent_namespace();
        let street = Veth::between(End::new(host, INTERFACE), End::new(&namespace, "sink"))
            .create()
            .expect("a veth pair");
        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 256,
            flags: 0,
        };
        let counts = sys::map_create("arrived", shape, None).expect("a map");
        let program = sys::load_xdp("sink", &program(&counts)).expect("a program");
        // XDP_FLAGS_DRV_MODE
        let attach = || sys::link_xdp(program.as_fd(), street.right.index(), 1 << 2);
        let link = namespace.run(attach).expect("it can be attached");
        Self { street, counts, _link: link }
    }

    /// How many packets have come for a target.
    pub fn arrived(&self, number: u8) -> u64 {
        let mut count = [0; 8];
        sys::map_lookup(self.counts.as_fd(), number.into(), &mut count).expect("a count");
        u64::from_ne_bytes(count)
    }

    /// How many packets have come for nobody: with other Ethernet addresses than those of targets.
    pub fn strayed(&self, numbers: &[u8]) -> u64 {
        (0..=u8::MAX).filter(|it| !numbers.contains(it)).map(|it| self.arrived(it)).sum()
    }

    /// How many packets the kernel says have come.
    pub fn received(&self) -> u64 {
        self.street.right.link().expect("the sink").counters.rx_packets
    }
}

/// Counts by the last byte of the destination's Ethernet address, and drops.
fn program(counts: &OwnedFd) -> Vec<Instruction> {
    const XDP_DROP: i32 = 1;
    const MAP_LOOKUP_ELEM: i32 = 1;
    let insn = |code, dst: u8, src: u8, offset, immediate| Instruction {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    };
    let [first, second] = Instruction::load_map(1, counts.as_fd());
    vec![
        // The frame's beginning and end: is there a header?
        insn(0x61, 2, 1, 0, 0),
        insn(0x61, 3, 1, 4, 0),
        insn(0xbf, 4, 2, 0, 0),
        insn(0x07, 4, 0, 0, 14),
        insn(0x2d, 4, 3, 10, 0),
        // Its byte 5 is the key.
        insn(0x71, 4, 2, 5, 0),
        insn(0x63, 10, 4, -4, 0),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, -4),
        first,
        second,
        insn(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        insn(0x15, 0, 0, 2, 0),
        insn(0xb7, 1, 0, 0, 1),
        insn(0xdb, 0, 1, 0, 0),
        insn(0xb7, 0, 0, 0, XDP_DROP),
        insn(0x95, 0, 0, 0, 0),
    ]
}
