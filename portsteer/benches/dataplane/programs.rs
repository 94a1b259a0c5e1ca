//! Programs of a few instructions, written by hand: what everybody else is measured by.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use portsteer::dataplane::sys::{self, MapShape, map_type};

use crate::instructions::{
    STACK, add, call, copy, exit, load_double, load_word, set, set_to_map, skip_if_greater,
    skip_if_zero, store_double_of, store_word, store_word_of,
};

/// The actions, as the kernel numbers them.
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;

/// What `struct xdp_md` has at the beginning.
pub const DATA: i16 = 0;
pub const DATA_END: i16 = 4;

const BPF_MAP_LOOKUP_ELEM: i32 = 1;
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

/// Drops packets if an address is in a trie, and passes all others: `address_len` bytes, 4 or 16, at
/// a fixed offset of the frame, whose headers are not looked at.
pub fn drop_by_trie(trie: &OwnedFd, address_at: usize, address_len: usize) -> io::Result<OwnedFd> {
    // The stack has the key: its length in bits as a word, and the address.
    let key_at = -(4 + address_len as i16);
    let mut look = Vec::new();
    for word in (0..address_len as i16).step_by(8) {
        let (from, to) = (address_at as i16 + word, key_at + 4 + word);
        look.extend(if address_len == 4 {
            [load_word(5, 2, from), store_word_of(STACK, to, 5)]
        } else {
            [load_double(5, 2, from), store_double_of(STACK, to, 5)]
        });
    }
    look.push(store_word(STACK, key_at, 8 * address_len as i32));
    look.extend(set_to_map(1, trie));
    look.extend([copy(2, STACK), add(2, i32::from(key_at)), call(BPF_MAP_LOOKUP_ELEM)]);
    look.extend([skip_if_zero(0, 2), set(0, XDP_DROP as i32), exit()]);
    let mut program = vec![
        load_word(2, 1, DATA),
        load_word(3, 1, DATA_END),
        copy(4, 2),
        add(4, (address_at + address_len) as i32),
        skip_if_greater(4, 3, look.len()),
    ];
    program.extend(look);
    program.extend([set(0, XDP_PASS as i32), exit()]);
    sys::load_xdp("drop_by_trie", &program)
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
