//! What becomes of the sets.

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
        let (old, new) = (sorted(old), sorted(new));
        let mut change = Self {
            name: name.to_owned(),
            old_count: old.len(),
            new_count: new.len(),
            added_count: 0,
            removed_count: 0,
            added: Vec::new(),
            removed: Vec::new(),
        };
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(old), Some(new)) => old.cmp(new),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return change,
            };
            let (gone, came) =
                (order.is_le().then(|| old.next()), order.is_ge().then(|| new.next()));
            match (gone.flatten(), came.flatten()) {
                (Some(gone), None) => {
                    change.removed_count += 1;
                    list(&mut change.removed, gone);
                }
                (None, Some(came)) => {
                    change.added_count += 1;
                    list(&mut change.added, came);
                }
                _ => {}
            }
        }
    }
}

fn list(listed: &mut Vec<String>, prefix: IpNet) {
    if listed.len() < MAX_LISTED {
        listed.push(bare(prefix));
    }
}

/// Ascending and without duplicates.
fn sorted(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut prefixes = prefixes.to_vec();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}
