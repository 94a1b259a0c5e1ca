//! Where the sets of two policies differ.

use std::sync::Arc;

use ipnet::IpNet;

use super::ranges::AddressRanges;
use crate::policy::Set;

/// What became of sets.
#[derive(Debug)]
pub(super) struct Changes {
    /// Which sets are others, by their number.
    pub(super) sets: Vec<bool>,
    /// Addresses outside of these are in a set now if they were in it before.
    pub(super) ranges: AddressRanges,
}

/// How far to look for a prefix when prefixes were put in or taken out before it.
const SIGHT: usize = 4096;

impl Changes {
    /// None if there are other sets, or too many changes to make use of what they were.
    pub(super) fn between(old: &[Arc<Vec<IpNet>>], new: &[Set]) -> Option<Self> {
        if old.len() != new.len() {
            return None;
        }
        let mut prefixes = Vec::new();
        let mut sets = Vec::with_capacity(new.len());
        for (old, new) in old.iter().zip(new) {
            let count = prefixes.len();
            if !Arc::ptr_eq(old, &new.prefixes) {
                let limit = 64 + old.len().max(new.prefixes.len()) / 4;
                add_changes(old, &new.prefixes, count + limit, &mut prefixes)?;
            }
            sets.push(prefixes.len() > count);
        }
        Some(Self { sets, ranges: AddressRanges::of(prefixes.iter()) })
    }
}

/// Adds the prefixes of two lists but for some that stand in both, in the same order. That finds what was
/// put in and taken out here and there; of what was moved, or of a list in another order, it makes too
/// much. None if that gets more than `limit`.
fn add_changes<'a>(
    mut old: &'a [IpNet],
    mut new: &'a [IpNet],
    limit: usize,
    changes: &mut Vec<IpNet>,
) -> Option<()> {
    // How often something was to be found far ahead and was not.
    let mut misses = 0;
    loop {
        let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
        (old, new) = (&old[same..], &new[same..]);
        let ([first_old, ..], [first_new, ..]) = (old, new) else { break };
        let sight = if misses < 64 { SIGHT } else { 8 };
        // What was taken out here, or put in, or else one gave way to another.
        let (mut taken, mut put) = (1, 1);
        let ahead = (1..sight.min(old.len().max(new.len()))).find_map(|distance| {
            let is_taken = old.get(distance) == Some(first_new);
            let is_put = new.get(distance) == Some(first_old);
            (is_taken || is_put).then_some((distance, is_taken))
        });
        match ahead {
            Some((distance, true)) => (taken, put) = (distance, 0),
            Some((distance, false)) => (taken, put) = (0, distance),
            None => misses += 1,
        }
        changes.extend(&old[..taken]);
        changes.extend(&new[..put]);
        (old, new) = (&old[taken..], &new[put..]);
        if changes.len() > limit {
            return None;
        }
    }
    changes.extend(old);
    changes.extend(new);
    (changes.len() <= limit).then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixes(numbers: &[u8]) -> Vec<IpNet> {
        numbers.iter().map(|&last| IpNet::new([10, 0, 0, last].into(), 32).unwrap()).collect()
    }

    fn changes(old: &[u8], new: &[u8]) -> Vec<IpNet> {
        let mut changes = Vec::new();
        add_changes(&prefixes(old), &prefixes(new), 1_000, &mut changes).unwrap();
        changes
    }

    #[test]
    fn changes_here_and_there_are_found() {
        let old = [1, 2, 3, 4, 5, 6, 7];
        for (new, expected) in [
            (&[1, 2, 3, 4, 5, 6, 7][..], &[][..]),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[8, 9]),
            (&[1, 3, 4, 7, 8], &[2, 5, 6, 8]),
            (&[0, 1, 2, 9, 3, 4, 5, 6, 7], &[0, 9]),
            (&[1, 2, 9, 4, 5, 6, 7], &[3, 9]),
            (&[], &old),
        ] {
            assert_eq!(changes(&old, new), prefixes(expected), "{new:?}");
        }
        assert_eq!(add_changes(&prefixes(&old), &[], 6, &mut Vec::new()), None);
    }

    proptest! {
        /// What is in one list alone is always among the changes.
        #[test]
        fn nothing_is_missed(
            old in prop::collection::vec(0..12_u8, 0..20),
            new in prop::collection::vec(0..12_u8, 0..20),
        ) {
            let changes = changes(&old, &new);
            let (old, new) = (prefixes(&old), prefixes(&new));
            for prefix in old.iter().chain(&new) {
                let is_same = old.contains(prefix) == new.contains(prefix);
                prop_assert!(is_same || changes.contains(prefix), "{prefix}");
            }
        }
    }
}
