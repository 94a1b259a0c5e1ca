//! What a device did with the frames that it was to send: a program on the kernel's tracepoint `xdp_devmap_xmit`
//! (include/trace/events/xdp.h), which tells it of every batch.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::LazyLock,
};

use portsteer::{
    dataplane::{
        kernel::Structures,
        sys::{self, Instruction, MapShape, map_type},
    },
    lab::Device,
};

/// Frames by what became of them at the sending device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// The other end's queue took them.
    pub queued: u64,
    /// The other end's queue had no room for them.
    pub overrun: u64,
    /// Nobody was at the other end: it was down.
    pub unheard: u64,
}

impl Sent {
    pub fn all(self) -> u64 {
        self.queued + self.overrun + self.unheard
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            queued: self.queued - before.queued,
            overrun: self.overrun - before.overrun,
            unheard: self.unheard - before.unheard,
        }
    }

    pub fn add(&mut self, more: Self) {
        self.queued += more.queued;
        self.overrun += more.overrun;
        self.unheard += more.unheard;
    }
}

/// Counts what one device sends, from when it is made.
#[derive(Debug)]
pub struct Meter {
    counts: OwnedFd,
    _link: OwnedFd,
}

/// `struct net_device`'s ifindex and network namespace, and the latter's inode number.
static OFFSETS: LazyLock<[i32; 3]> = LazyLock::new(|| {
    let structures = Structures::read().expect("the kernel's type information");
    let offset =
        |structure, member| structures.offset(structure, member).expect("a member").cast_signed();
    [
        offset("net_device", "ifindex"),
        offset("net_device", "nd_net"),
        offset("net", "ns") + offset("ns_common", "inum"),
    ]
});

impl Meter {
    pub fn of(device: &Device) -> Self {
        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 24,
            max_entries: 1,
            flags: 0,
        };
        let counts = sys::map_create("meter", shape, None).expect("a map");
        let namespace = device.namespace().as_fd().try_clone_to_owned().expect("a descriptor");
        let inode = File::from(namespace).metadata().expect("a namespace").ino() as u32;
        let program = program(&counts, device.index(), inode);
        let program = sys::load_raw_tracepoint("meter", &program).expect("a program");
        let link = sys::link_raw_tracepoint(program.as_fd(), c"xdp_devmap_xmit");
        Self { counts, _link: link.expect("the tracepoint") }
    }

    pub fn read(&self) -> Sent {
        let mut value = [0; 24];
        sys::map_lookup(self.counts.as_fd(), 0, &mut value).expect("the counts");
        let [queued, overrun, unheard] = [0, 8, 16]
            .map(|at| u64::from_ne_bytes(*value[at..].first_chunk().expect("eight bytes")));
        Sent { queued, overrun, unheard }
    }
}

/// Arguments: device that they came from, device that they go to, taken, dropped, error.
fn program(counts: &OwnedFd, ifindex: u32, inode: u32) -> Vec<Instruction> {
    const PROBE_READ_KERNEL: i32 = 113;
    const MAP_LOOKUP_ELEM: i32 = 1;
    let [ifindex_at, network_at, inode_at] = *OFFSETS;
    let mut program = Vec::new();
    // Jumps to the end are filled in when it is known where that is.
    let mut to_end = Vec::new();
    let mut add = |code, dst: u8, src: u8, offset, immediate| {
        program.push(Instruction { code, registers: dst | src << 4, offset, immediate });
        program.len() - 1
    };
    // r1 = the stack at -8; r3 += offset; read `len` bytes there.
    let read = |add: &mut dyn FnMut(u8, u8, u8, i16, i32) -> usize, len, offset| {
        add(0xbf, 1, 10, 0, 0);
        add(0x07, 1, 0, 0, -8);
        add(0xb7, 2, 0, 0, len);
        add(0x07, 3, 0, 0, offset);
        add(0x85, 0, 0, 0, PROBE_READ_KERNEL);
    };
    // r6 = the arguments, r7 = the device that they go to
    add(0xbf, 6, 1, 0, 0);
    add(0x79, 7, 6, 8, 0);
    // Is it this one?
    add(0xbf, 3, 7, 0, 0);
    read(&mut add, 4, ifindex_at);
    add(0x61, 1, 10, -8, 0);
    to_end.push(add(0x56, 1, 0, 0, ifindex.cast_signed()));
    // Of this network namespace?
    add(0xbf, 3, 7, 0, 0);
    read(&mut add, 8, network_at);
    add(0x79, 3, 10, -8, 0);
    read(&mut add, 4, inode_at);
    add(0x61, 1, 10, -8, 0);
    to_end.push(add(0x56, 1, 0, 0, inode.cast_signed()));
    // r0 = the counts
    add(0x62, 10, 0, -8, 0);
    add(0xbf, 2, 10, 0, 0);
    add(0x07, 2, 0, 0, -8);
    let [first, second] = Instruction::load_map(1, counts.as_fd());
    for half in [first, second] {
        add(half.code, half.registers & 15, half.registers >> 4, half.offset, half.immediate);
    }
    add(0x85, 0, 0, 0, MAP_LOOKUP_ELEM);
    to_end.push(add(0x15, 0, 0, 0, 0));
    // counts[0] += taken
    add(0x79, 1, 6, 16, 0);
    add(0xbc, 1, 1, 0, 0);
    add(0xdb, 0, 1, 0, 0);
    // counts[error < 0 ? 2 : 1] += dropped
    add(0x79, 1, 6, 24, 0);
    add(0xbc, 1, 1, 0, 0);
    add(0x79, 2, 6, 32, 0);
    add(0xc6, 2, 0, 2, 0);
    add(0xdb, 0, 1, 8, 0);
    to_end.push(add(0x05, 0, 0, 0, 0));
    add(0xdb, 0, 1, 16, 0);
    let end = add(0xb7, 0, 0, 0, 0);
    add(0x95, 0, 0, 0, 0);
    for jump in to_end {
        program[jump].offset = (end - jump - 1) as i16;
    }
    program
}
