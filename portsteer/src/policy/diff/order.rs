//! Which of the old rules is which of the new ones, and which of those moved.

use std::collections::HashMap;

/// How two lists of keys go together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matched {
    /// What is in both: its index in the old list and in the new one, ascending by the new one.
    pub pairs: Vec<(usize, usize)>,
    /// What only the old list has, ascending.
    pub removed: Vec<usize>,
    /// What only the new list has, ascending.
    pub added: Vec<usize>,
}

impl Matched {
    /// Equal keys go together, the first with the first. So that one change among equal keys shows
    /// as one, what both lists begin and end with goes together first.
    pub(super) fn new(old: &[&str], new: &[&str]) -> Self {
        let first = old.iter().zip(new).take_while(|(old, new)| old == new).count();
        let (old_rest, new_rest) = (&old[first..], &new[first..]);
        let last = old_rest.iter().rev().zip(new_rest.iter().rev());
        let last = last.take_while(|(old, new)| old == new).count();
        let (old_end, new_end) = (old.len() - last, new.len() - last);

        // The indices of each key, the last one first.
        let mut unmatched: HashMap<&str, Vec<usize>> = HashMap::with_capacity(old_end - first);
        for index in (first..old_end).rev() {
            unmatched.entry(old[index]).or_default().push(index);
        }
        let mut is_matched = vec![false; old_end - first];
        let mut pairs: Vec<(usize, usize)> = (0..first).map(|index| (index, index)).collect();
        let mut added = Vec::new();
        for (index, key) in new.iter().enumerate().take(new_end).skip(first) {
            match unmatched.get_mut(key).and_then(Vec::pop) {
                Some(was) => {
                    is_matched[was - first] = true;
                    pairs.push((was, index));
                }
                None => added.push(index),
            }
        }
        pairs.extend((0..last).map(|index| (old_end + index, new_end + index)));
        let removed = (first..old_end).filter(|index| !is_matched[index - first]).collect();
        Self { pairs, removed, added }
    }

    /// The fewest of these pairs that have to move so that the old order becomes the new one. With
    /// other pairs of equal keys, it might take fewer.
    pub(super) fn moved(&self) -> Vec<(usize, usize)> {
        let mut stays = vec![false; self.pairs.len()];
        let olds: Vec<usize> = self.pairs.iter().map(|&(old, _)| old).collect();
        for index in longest_ascent(&olds) {
            stays[index] = true;
        }
        self.pairs.iter().zip(stays).filter(|(_, stays)| !stays).map(|(&pair, _)| pair).collect()
    }
}

/// The indices of a longest ascending part of different numbers, ascending.
fn longest_ascent(numbers: &[usize]) -> Vec<usize> {
    let mut before: Vec<Option<usize>> = vec![None; numbers.len()];
    // For each length, the index of the least number that an ascent of this length ends with.
    let mut ends: Vec<usize> = Vec::new();
    for (index, &number) in numbers.iter().enumerate() {
        let len = ends.partition_point(|&end| numbers[end] < number);
        before[index] = len.checked_sub(1).map(|shorter| ends[shorter]);
        if len < ends.len() {
            ends[len] = index;
        } else {
            ends.push(index);
        }
    }
    let mut ascent: Vec<usize> =
        std::iter::successors(ends.last().copied(), |&index| before[index]).collect();
    ascent.reverse();
    ascent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> Vec<&str> {
        text.split_terminator("").skip(1).collect()
    }

    #[test]
    fn matches() {
        // Old, new, what is removed, what is added, what moves.
        for (old, new, removed, added, moved) in [
            ("", "", "", "", ""),
            ("abc", "abc", "", "", ""),
            ("abc", "ac", "b", "", ""),
            ("ac", "abc", "", "b", ""),
            ("abc", "cab", "", "", "c"),
            ("abcd", "bcda", "", "", "a"),
            ("abcde", "axcbe", "d", "x", "b"),
            ("aba", "ba", "a", "", ""),
            ("aba", "ab", "a", "", ""),
            ("aab", "aaab", "", "a", ""),
            ("aabb", "bbaa", "", "", "bb"),
            // The first goes with the first: one move would do.
            ("abab", "baba", "", "", "bb"),
        ] {
            let (old, new) = (keys(old), keys(new));
            let matched = Matched::new(&old, &new);
            let text = |list: &[&str], indices: &[usize]| -> String {
                indices.iter().map(|&index| list[index]).collect()
            };
            assert_eq!(text(&old, &matched.removed), removed, "{old:?} {new:?}");
            assert_eq!(text(&new, &matched.added), added, "{old:?} {new:?}");
            let moves: Vec<usize> = matched.moved().iter().map(|&(_, new)| new).collect();
            assert_eq!(text(&new, &moves).len(), moved.len(), "{old:?} {new:?}");
        }
    }

    /// The longest ascent by trying all parts.
    fn longest_by_trying(numbers: &[usize]) -> usize {
        (0..1_u32 << numbers.len())
            .filter(|part| {
                let chosen = (0..numbers.len()).filter(|index| part >> index & 1 == 1);
                chosen.map(|index| numbers[index]).is_sorted()
            })
            .map(u32::count_ones)
            .max()
            .unwrap_or(0) as usize
    }

    proptest! {
        #[test]
        fn ascents_are_longest(numbers in Just((0..9_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let ascent = longest_ascent(&numbers);
            prop_assert!(ascent.is_sorted());
            prop_assert!(ascent.iter().map(|&index| numbers[index]).is_sorted());
            prop_assert_eq!(ascent.len(), longest_by_trying(&numbers));
        }

        #[test]
        fn everything_is_matched_added_or_removed(old in "[a-d]{0,9}", new in "[a-d]{0,9}") {
            let (old, new) = (keys(&old), keys(&new));
            let matched = Matched::new(&old, &new);
            prop_assert!(matched.pairs.iter().all(|&(was, is)| old[was] == new[is]));
            let mut olds: Vec<usize> = matched.pairs.iter().map(|pair| pair.0).collect();
            olds.extend(&matched.removed);
            olds.sort_unstable();
            prop_assert_eq!(olds, (0..old.len()).collect::<Vec<_>>());
            let mut news: Vec<usize> = matched.pairs.iter().map(|pair| pair.1).collect();
            prop_assert!(news.is_sorted());
            news.extend(&matched.added);
            news.sort_unstable();
            prop_assert_eq!(news, (0..new.len()).collect::<Vec<_>>());
            // No key is both removed and added.
            prop_assert!(matched.removed.iter().all(|&was| matched.added.iter().all(|&is| old[was] != new[is])));
        }
    }
}
