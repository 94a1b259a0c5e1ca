//! What the rules ask of a field with numbers (source ports, VLANs, ICMP types), each different list
//! of ranges once, and which of the lists hold all of another.

use std::{
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
};

use super::{ANY, Steps};
use crate::policy::NumberRange;

/// The lists of one field, known by their place; [`ANY`] is the field of a rule that asks nothing of it.
#[derive(Debug)]
pub(super) struct Numbers<'a> {
    ids: HashMap<&'a [NumberRange], u32>,
    lists: Vec<&'a [NumberRange]>,
    /// The lists with a range that has a block in it, by the block: its first number and how many of
    /// the low bits vary. Whoever has a number has one of the 17 blocks that it is in.
    by_block: HashMap<(u16, u32), Vec<u32>>,
    supersets: Vec<Option<Rc<[u32]>>>,
}

impl<'a> Numbers<'a> {
    /// The lists of all rules, of which those that `is_all` asks for nothing.
    pub fn new(
        lists: impl Iterator<Item = &'a [NumberRange]>,
        is_all: impl Fn(NumberRange) -> bool,
    ) -> (Self, Vec<u32>) {
        let mut numbers = Self {
            ids: HashMap::from([(&[][..], ANY)]),
            lists: vec![&[]],
            by_block: HashMap::new(),
            supersets: Vec::new(),
        };
        let ids = lists.map(|list| numbers.intern(list, &is_all)).collect();
        numbers.supersets = vec![None; numbers.lists.len()];
        (numbers, ids)
    }

    fn intern(&mut self, list: &'a [NumberRange], is_all: impl Fn(NumberRange) -> bool) -> u32 {
        let entry = match self.ids.entry(list) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(entry) => entry,
        };
        if list.iter().any(|&range| is_all(range)) {
            return *entry.insert(ANY);
        }
        let id = self.lists.len() as u32;
        entry.insert(id);
        self.lists.push(list);
        for range in list {
            for block in blocks(*range) {
                self.by_block.entry(block).or_default().push(id);
            }
        }
        id
    }

    /// The lists that hold all of another, as far as there are steps to find them.
    pub fn supersets(&mut self, id: u32, steps: &mut Steps) -> Rc<[u32]> {
        if let Some(known) = &self.supersets[id as usize] {
            return Rc::clone(known);
        }
        let mut found = vec![ANY];
        if id != ANY {
            found.push(id);
            let list = self.lists[id as usize];
            let first = list[0].first;
            for bits in 0..=16 {
                let block = (u32::from(first) & u32::MAX << bits) as u16;
                for &other in self.by_block.get(&(block, bits)).into_iter().flatten() {
                    if steps.spend(list.len()).is_none() {
                        break;
                    }
                    if other != id && covers(self.lists[other as usize], list) {
                        found.push(other);
                    }
                }
            }
        }
        let found: Rc<[u32]> = found.into();
        self.supersets[id as usize] = Some(Rc::clone(&found));
        found
    }
}

/// Whether `wide` has every number that `narrow` has.
fn covers(wide: &[NumberRange], narrow: &[NumberRange]) -> bool {
    narrow.iter().all(|range| {
        let after = wide.partition_point(|other| other.first <= range.first);
        after > 0 && range.last <= wide[after - 1].last
    })
}

/// A range as the fewest blocks, each with its first number and how many of the low bits vary.
fn blocks(range: NumberRange) -> impl Iterator<Item = (u16, u32)> {
    let mut from = u32::from(range.first);
    let end = u32::from(range.last) + 1;
    std::iter::from_fn(move || {
        if from >= end {
            return None;
        }
        let aligned = if from == 0 { 16 } else { from.trailing_zeros() };
        let bits = aligned.min((end - from).ilog2());
        let block = (from as u16, bits);
        from += 1 << bits;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_lists_are_found() {
        let range = |first, last| NumberRange { first, last };
        let lists = [
            vec![range(5, 5)],
            vec![range(4, 9)],
            vec![range(0, 3), range(5, 6)],
            vec![range(5, 5), range(9, 9)],
            vec![],
            vec![range(0, 4095)],
            vec![range(6, 6)],
            vec![range(0, 65_535)],
        ];
        let full = |range: NumberRange| range.first == 0 && range.last >= 4095;
        let (mut numbers, ids) = Numbers::new(lists.iter().map(Vec::as_slice), full);
        assert_eq!((ids[4], ids[5], ids[7]), (ANY, ANY, ANY));
        let mut wider = |index: usize| {
            let mut found = numbers.supersets(ids[index], &mut Steps(1000)).to_vec();
            found.sort_unstable();
            found
        };
        assert_eq!(wider(0), [ANY, ids[0], ids[1], ids[2], ids[3]]);
        assert_eq!(wider(3), [ANY, ids[1], ids[3]]);
        assert_eq!(wider(2), [ANY, ids[2]]);
        assert_eq!(wider(4), [ANY]);
    }

    #[test]
    fn blocks_are_the_range() {
        for (first, last) in [(0, 65_535), (1, 65_534), (7, 7), (3, 12), (65_535, 65_535)] {
            let mut next = u32::from(first);
            for (block, bits) in blocks(NumberRange { first, last }) {
                assert_eq!((u32::from(block), u32::from(block) % (1 << bits)), (next, 0));
                next += 1 << bits;
            }
            assert_eq!(next, u32::from(last) + 1);
        }
    }
}
