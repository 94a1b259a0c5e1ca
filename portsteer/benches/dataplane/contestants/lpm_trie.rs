//! The kernel's own way to look addresses up: a map of the type `BPF_MAP_TYPE_LPM_TRIE`.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use ipnet::IpNet;
use portsteer::dataplane::sys::{self, MapShape, NO_PREALLOC, map_type};

use super::Matched;
use crate::{
    Result,
    arena::{Arena, Attached, Engine, Lane, attach},
    family::Family,
    growth::Point,
    policies::Blocklist,
    probes::Probe,
    programs,
};

/// A program that does nothing but drop sources that are in a trie with so many prefixes.
pub fn lpm_trie(arena: &mut Arena, count: usize, family: Family) -> Result<()> {
    let blocklist = Blocklist::new(count, family)?;
    let (lane, engine) = load(arena, &blocklist)?;
    arena.add_rotating(&trie_of(count), lane, engine, blocklist.probes());
    Ok(())
}

/// What that is called.
pub fn trie_of(count: usize) -> String {
    format!("kernel LPM trie, set of {count}")
}

/// The same as a point of a curve, for any prefixes.
pub fn lpm_trie_of(arena: &mut Arena, point: Point, blocklist: &Blocklist) -> Result<()> {
    let (lane, engine) = load(arena, blocklist)?;
    arena.add_point(point, lane, engine);
    Ok(())
}

fn load(arena: &mut Arena, blocklist: &Blocklist) -> Result<(Lane, Trie)> {
    let family = blocklist.family;
    let lane = arena.lane()?;
    let trie = trie(&blocklist.prefixes, family)?;
    let program = programs::drop_by_trie(&trie, family.addresses_at(), address_len(family))?;
    let attached = attach(program, &lane)?;
    Ok((lane, Trie { attached, matched: Matched::sources(blocklist) }))
}

struct Trie {
    attached: Attached,
    matched: Matched,
}

impl Engine for Trie {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        self.attached.program()
    }

    fn judges(&self, probe: &Probe) -> Option<u32> {
        Some(self.matched.verdict(probe))
    }
}

/// A trie with these prefixes.
pub fn trie(prefixes: &[IpNet], family: Family) -> Result<OwnedFd> {
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
