//! Edits of a set: prefixes are put in and taken out, in the time that it takes to go over the set once.

use std::{collections::HashMap, sync::Arc};

use ipnet::IpNet;

use super::{Policy, SetId, file::MAX_PREFIXES_IN_ALL, prefixes::MAX_PREFIXES};

/// What to do with a set: first the ones are taken out, then the others put in. None has host bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetEdit {
    pub remove: Vec<IpNet>,
    pub add: Vec<IpNet>,
}

/// What an edit changed, each prefix once and in the edit's order. An edit that adds what was removed and
/// removes what was added undoes it, but that these stand last then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetEdited {
    pub removed: Vec<IpNet>,
    pub added: Vec<IpNet>,
}

/// Why an edit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetFull {
    /// The set.
    #[error("the set would have {count} prefixes, but there is room for {MAX_PREFIXES}")]
    One { count: usize },
    /// All sets together.
    #[error(
        "the sets would have {count} prefixes altogether, but there is room for {MAX_PREFIXES_IN_ALL}"
    )]
    All { count: usize },
}

impl Policy {
    /// Edits a set. Prefixes are the same if they are equal: one that lies within another is put in
    /// beside it, and stays when the other is taken out. What is added comes last, and nothing else
    /// changes its place.
    ///
    /// # Errors
    ///
    /// There is no room. Then nothing is changed.
    pub fn edit_set(&mut self, id: SetId, edit: &SetEdit) -> Result<SetEdited, SetFull> {
        let old = &self.set(id).prefixes;
        let mut named = Named::new(edit);
        let mut prefixes = Vec::with_capacity(old.len() + edit.add.len());
        // Up to where what is left has been copied.
        let mut copied = 0;
        for (index, prefix) in old.iter().enumerate() {
            let Some(found) = named.find(prefix) else { continue };
            found.was_there = true;
            if found.is_removed {
                prefixes.extend_from_slice(&old[copied..index]);
                copied = index + 1;
            }
        }
        prefixes.extend_from_slice(&old[copied..]);
        let mut edited = SetEdited::default();
        for prefix in &edit.remove {
            if let Some(found) =
                named.find(prefix).filter(|found| found.was_there && !found.is_told)
            {
                // What is put in again is not changed by that, but for its place.
                found.is_told = true;
                edited.removed.push(*prefix);
            }
        }
        for prefix in &edit.add {
            if let Some(found) = named.find(prefix)
                && (!found.was_there || found.is_removed)
                && !found.is_added
            {
                found.is_added = true;
                edited.added.push(*prefix);
            }
        }
        if edited == SetEdited::default() {
            return Ok(edited);
        }
        prefixes.extend(&edited.added);
        let count = prefixes.len();
        if count > MAX_PREFIXES {
            return Err(SetFull::One { count });
        }
        let others = self.sets.iter().map(|set| set.prefixes.len()).sum::<usize>() - old.len();
        if others + count > MAX_PREFIXES_IN_ALL {
            return Err(SetFull::All { count: others + count });
        }
        self.sets[id.0 as usize].prefixes = Arc::new(prefixes);
        Ok(edited)
    }
}

/// The prefixes that an edit names, to be found among a million of which few are.
struct Named {
    found: HashMap<IpNet, Found>,
    /// A bit for what is not to be found at once: which of so many hashes occur.
    hashes: Vec<u64>,
    shift: u32,
}

/// What is known of one.
#[derive(Default)]
struct Found {
    is_removed: bool,
    was_there: bool,
    is_told: bool,
    is_added: bool,
}

impl Named {
    fn new(edit: &SetEdit) -> Self {
        let count = edit.remove.len() + edit.add.len();
        // Few bits are set, and they are in the processor's nearest cache for edits of thousands.
        let bits = (32 * count).next_power_of_two().clamp(1 << 12, 1 << 24);
        let mut new = Self {
            found: HashMap::with_capacity(count),
            hashes: vec![0; bits / 64],
            shift: 64 - bits.trailing_zeros(),
        };
        for prefix in edit.remove.iter().chain(&edit.add) {
            let hash = new.hash(prefix);
            new.hashes[hash / 64] |= 1 << (hash % 64);
            new.found.entry(*prefix).or_default();
        }
        for prefix in &edit.remove {
            new.found.entry(*prefix).or_default().is_removed = true;
        }
        new
    }

    fn hash(&self, prefix: &IpNet) -> usize {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let address = match prefix {
            IpNet::V4(net) => u64::from(net.addr().to_bits()),
            IpNet::V6(net) => {
                let bits = net.addr().to_bits();
                (bits >> 64) as u64 ^ (bits as u64).wrapping_mul(MULTIPLIER)
            }
        };
        let mixed = (address ^ u64::from(prefix.prefix_len()) << 40).wrapping_mul(MULTIPLIER);
        ((mixed ^ mixed >> 32).wrapping_mul(MULTIPLIER) >> self.shift) as usize
    }

    fn find(&mut self, prefix: &IpNet) -> Option<&mut Found> {
        let hash = self.hash(prefix);
        match self.hashes[hash / 64] >> (hash % 64) & 1 {
            0 => None,
            _ => self.found.get_mut(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Action, Mode, Options, Set};

    fn prefixes(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|prefix| prefix.parse().unwrap()).collect()
    }

    fn policy(sets: &[&str]) -> Policy {
        let set = |text: &&str| Set {
            name: "set".to_owned(),
            prefixes: prefixes(text).into(),
            file: None,
            span: 0..0,
            line: 0,
        };
        Policy {
            interfaces: Vec::new(),
            mode: Mode::Auto,
            default: Action::Pass,
            options: Options::default(),
            targets: Vec::new(),
            sets: sets.iter().map(set).collect(),
            rules: Vec::new(),
        }
    }

    #[test]
    fn prefixes_are_put_in_and_taken_out() {
        let before = "10.0.0.0/8 10.0.0.0/9 ::/0 10.0.0.0/9 192.0.2.1/32";
        for (remove, add, expected, removed, added) in [
            ("", "", before, "", ""),
            ("", "10.0.0.0/8 ::/0", before, "", ""),
            ("10.0.0.0/10 ::/1", "", before, "", ""),
            ("10.0.0.0/9", "", "10.0.0.0/8 ::/0 192.0.2.1/32", "10.0.0.0/9", ""),
            (
                "10.0.0.0/8 10.0.0.0/8",
                "10.0.0.0/10 ::/0 10.0.0.0/10",
                "10.0.0.0/9 ::/0 10.0.0.0/9 192.0.2.1/32 10.0.0.0/10",
                "10.0.0.0/8",
                "10.0.0.0/10",
            ),
            // What is taken out and put in again is there.
            ("::/0", "::/0", "10.0.0.0/8 10.0.0.0/9 10.0.0.0/9 192.0.2.1/32 ::/0", "::/0", "::/0"),
        ] {
            let mut policy = policy(&["1.1.1.1/32", before]);
            let edit = SetEdit { remove: prefixes(remove), add: prefixes(add) };
            let edited = policy.edit_set(SetId(1), &edit).unwrap();
            assert_eq!(*policy.sets[1].prefixes, prefixes(expected), "{edit:?}");
            assert_eq!(edited.removed, prefixes(removed), "{edit:?}");
            assert_eq!(edited.added, prefixes(added), "{edit:?}");
            assert_eq!(*policy.sets[0].prefixes, prefixes("1.1.1.1/32"));
        }
    }

    /// A set in which nothing changes is the same, and so nothing is copied or compared any more.
    #[test]
    fn nothing_is_done_for_nothing() {
        let mut policy = policy(&["10.0.0.0/8"]);
        let before = policy.sets[0].prefixes.clone();
        let edit = SetEdit { remove: prefixes("::/0"), add: prefixes("10.0.0.0/8") };
        policy.edit_set(SetId(0), &edit).unwrap();
        assert!(Arc::ptr_eq(&before, &policy.sets[0].prefixes));
    }

    #[test]
    fn a_set_may_be_full() {
        let mut policy = policy(&[""]);
        let prefix = |number: u32| IpNet::new(std::net::Ipv4Addr::from(number).into(), 32).unwrap();
        let add = (0..=MAX_PREFIXES as u32).map(prefix).collect();
        let edit = SetEdit { remove: Vec::new(), add };
        let count = MAX_PREFIXES + 1;
        assert_eq!(policy.edit_set(SetId(0), &edit), Err(SetFull::One { count }));
        assert!(policy.sets[0].prefixes.is_empty());
    }
}
