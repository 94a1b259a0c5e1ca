//! What becomes of the sets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{MAX_LISTED, SetChange, SetChanges, by_name};
use crate::policy::{Policy, Set, prefixes::bare};

pub(super) fn changed_sets(old: &Policy, new: &Policy) -> SetChanges {
    let by_name = by_name(&old.sets, |set| &set.name);
    let mut changes = SetChanges::default();
    let mut stays = vec![false; old.sets.len()];
    for set in &new.sets {
        let Some(&index) = by_name.get(set.name.as_str()) else {
            changes.added.push(SetChange::new(&set.name, &[], &set.prefixes));
            continue;
        };
        stays[index] = true;
        let was = &old.sets[index].prefixes;
        if *was == set.prefixes {
            continue; // spares sorting, which is most of the work
        }
        let change = SetChange::new(&set.name, was, &set.prefixes);
        if change.added_count + change.removed_count > 0 {
            changes.changed.push(change);
        }
    }
    let gone = old.sets.iter().zip(stays).filter(|(_, stays)| !stays);
    changes.removed =
        gone.map(|(Set { name, prefixes, .. }, _)| SetChange::new(name, prefixes, &[])).collect();
    changes
}

impl SetChange {
    fn new(name: &str, old: &[IpNet], new: &[IpNet]) -> Self {
        let (old, new) = (Sorted::new(old), Sorted::new(new));
        let mut change = Self {
            name: name.to_owned(),
            old_count: old.v4.len() + old.v6.len(),
            new_count: new.v4.len() + new.v6.len(),
            added_count: 0,
            removed_count: 0,
            added: Vec::new(),
            removed: Vec::new(),
        };
        change.compare(old.v4, new.v4, |(address, len)| net(Ipv4Addr::from(address).into(), len));
        change.compare(old.v6, new.v6, |(address, len)| net(Ipv6Addr::from(address).into(), len));
        change
    }

    /// Adds what differs between two ascending lists without duplicates.
    fn compare<K: Ord + Copy>(&mut self, old: Vec<K>, new: Vec<K>, net: impl Fn(K) -> IpNet) {
        let list = |listed: &mut Vec<String>, key: K| {
            if listed.len() < MAX_LISTED {
                listed.push(bare(net(key)));
            }
        };
        let mut old = old.into_iter().peekable();
        for new in new {
            while let Some(gone) = old.next_if(|old| *old < new) {
                self.removed_count += 1;
                list(&mut self.removed, gone);
            }
            if old.next_if(|old| *old == new).is_none() {
                self.added_count += 1;
                list(&mut self.added, new);
            }
        }
        for gone in old {
            self.removed_count += 1;
            list(&mut self.removed, gone);
        }
    }
}

/// Prefixes as addresses and lengths, ascending and without duplicates: numbers are sorted in a
/// fraction of the time that [`IpNet`]s take.
struct Sorted {
    v4: Vec<(u32, u8)>,
    v6: Vec<(u128, u8)>,
}

impl Sorted {
    fn new(prefixes: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(prefix) => v4.push((prefix.addr().to_bits(), prefix.prefix_len())),
                IpNet::V6(prefix) => v6.push((prefix.addr().to_bits(), prefix.prefix_len())),
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        Self { v4, v6 }
    }
}

fn net(address: IpAddr, len: u8) -> IpNet {
    IpNet::new_assert(address, len) // the length is that of a prefix
}
