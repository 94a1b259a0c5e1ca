//! The kernel's own way to look addresses up: a map of the type `BPF_MAP_TYPE_LPM_TRIE`.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use ipnet::IpNet;
use portsteer::dataplane::sys::{self, MapShape, NO_PREALLOC, map_type};

use crate::{
    Result,
    arena::{Arena, Attached, Engine, attach},
    family::Family,
    policies::Blocklist,
    probes::Probe,
    programs::{self, XDP_DROP, XDP_PASS},
};

/// A program that does nothing but drop sources that are in a trie with so many prefixes.
pub fn lpm_trie(arena: &mut Arena, count: usize, family: Family) -> Result<()> {
    let lane = arena.lane()?;
    let blocklist = Blocklist::new(count, family)?;
    let trie = trie(&blocklist.prefixes, family)?;
    let program = programs::drop_by_trie(&trie, family.addresses_at(), address_len(family))?;
    let attached = attach(program, &lane)?;
    let name = format!("kernel LPM trie, set of {count}");
    let probes = blocklist.probes();
    arena.add_rotating(&name, lane, Trie { attached, prefixes: blocklist.prefixes }, probes);
    Ok(())
}

struct Trie {
    attached: Attached,
    prefixes: Vec<IpNet>,
}

impl Engine for Trie {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        self.attached.program()
    }

    fn judges(&self, probe: &Probe) -> Option<u32> {
        let is_in = self.prefixes.iter().any(|prefix| prefix.contains(&probe.src));
        Some(if is_in { XDP_DROP } else { XDP_PASS })
    }
}

/// A trie with these prefixes.
fn trie(prefixes: &[IpNet], family: Family) -> Result<OwnedFd> {
    let shape = MapShape {
        map_type: map_type::LPM_TRIE,
        key_size: 4 + address_len(family) as u32,
        value_size: 4,
        max_entries: prefixes.len() as u32,
        flags: NO_PREALLOC,
    };
    let trie = sys::map_create("trie", shape, None)?;
    for prefix in prefixes {
        let mut key = u32::from(prefix.prefix_len()).to_ne_bytes().to_vec();
        match prefix.addr() {
            IpAddr::V4(address) => key.extend(address.octets()),
            IpAddr::V6(address) => key.extend(address.octets()),
        }
        sys::map_insert(trie.as_fd(), &key, &[0; 4])?;
    }
    Ok(trie)
}

fn address_len(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}
