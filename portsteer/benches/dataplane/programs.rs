//! Programs of a few instructions, written by hand: what everybody else is measured by.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use portsteer::dataplane::sys::{self, Instruction, MapShape, map_type};

/// The actions, as the kernel numbers them.
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;

/// What `struct xdp_md` has at the beginning.
const DATA: i16 = 0;
const DATA_END: i16 = 4;

const BPF_REDIRECT_MAP: i32 = 51;

/// The two addresses of an Ethernet header as they stand there: destination, source.
pub type MacAddresses = [u8; 12];

/// `return action;`
pub fn returning(name: &str, action: u32) -> io::Result<OwnedFd> {
    sys::load_xdp(name, &[set(0, action as i32), exit()])
}

/// `return bpf_redirect_map(&map, key, 0);`, and before it, where there are `addresses`, those into
/// the frame.
pub fn redirect_map(
    map: &OwnedFd,
    key: u32,
    addresses: Option<MacAddresses>,
) -> io::Result<OwnedFd> {
    let mut program = Vec::new();
    if let Some(addresses) = addresses {
        program.extend([
            load_word(2, 1, DATA),
            load_word(3, 1, DATA_END),
            copy(4, 2),
            add(4, addresses.len() as i32),
            skip_if_greater(4, 3, 3),
        ]);
        for (word, bytes) in addresses.chunks_exact(4).enumerate() {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            program.push(store_word(2, 4 * word as i16, i32::from_ne_bytes(bytes)));
        }
    }
    program.extend(set_to_map(1, map));
    program.extend([set(2, key as i32), set(3, 0), call(BPF_REDIRECT_MAP), exit()]);
    sys::load_xdp("redirect_map", &program)
}

/// A map for [`redirect_map`] with one interface at 0, by its index in this network namespace.
pub fn map_of_device(ifindex: u32) -> io::Result<OwnedFd> {
    let map = map(map_type::DEVMAP, 1)?;
    sys::map_update(map.as_fd(), 0, &ifindex.to_ne_bytes())?;
    Ok(map)
}

/// A map for [`redirect_map`] with one CPU, at its number, for which so many packets can wait.
pub fn map_of_cpu(cpu: u32, queue: u32) -> io::Result<OwnedFd> {
    let map = map(map_type::CPUMAP, cpu + 1)?;
    sys::map_update(map.as_fd(), cpu, &queue.to_ne_bytes())?;
    Ok(map)
}

/// A map for [`redirect_map`] with nothing in it yet.
pub fn map(map_type: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let shape = MapShape { map_type, key_size: 4, value_size: 4, max_entries, flags: 0 };
    sys::map_create("minimal", shape, None)
}

// The instructions that are needed, by RFC 9669. Registers are numbers.

fn set(to: u8, value: i32) -> Instruction {
    Instruction { code: 0xb7, registers: to, offset: 0, immediate: value }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: 0xbf, registers: from << 4 | to, offset: 0, immediate: 0 }
}

fn add(to: u8, value: i32) -> Instruction {
    Instruction { code: 0x07, registers: to, offset: 0, immediate: value }
}

fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: from << 4 | to, offset, immediate: 0 }
}

fn store_word(to: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code: 0x62, registers: to, offset, immediate: value }
}

fn skip_if_greater(left: u8, right: u8, instructions: i16) -> Instruction {
    Instruction { code: 0x2d, registers: right << 4 | left, offset: instructions, immediate: 0 }
}

fn set_to_map(to: u8, map: &OwnedFd) -> [Instruction; 2] {
    const IS_MAP_FD: u8 = 1 << 4;
    let fd = map.as_raw_fd();
    [
        Instruction { code: 0x18, registers: IS_MAP_FD | to, offset: 0, immediate: fd },
        Instruction { code: 0, registers: 0, offset: 0, immediate: 0 },
    ]
}

fn call(helper: i32) -> Instruction {
    Instruction { code: 0x85, registers: 0, offset: 0, immediate: helper }
}

fn exit() -> Instruction {
    Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 }
}
