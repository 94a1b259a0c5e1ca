//! Addresses as ranges: what a rule's `src` or `dst` comes to.

use ipnet::IpNet;

use crate::policy::{AddressItem, Addresses, Policy};

/// The IP versions, as indexes.
pub(super) const V4: usize = 0;
/// See [`V4`].
pub(super) const V6: usize = 1;

/// How many bits an address has, by IP version.
pub(super) const BITS: [u32; 2] = [32, 128];

/// Addresses of one IP version, as numbers: ascending ranges, neither overlapping nor adjacent, first
/// and last included.
pub(super) type Ranges = Vec<(u128, u128)>;

/// Addresses by IP version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AddressRanges(pub(super) [Ranges; 2]);

/// The greatest address.
const fn last(version: usize) -> u128 {
    u128::MAX >> (128 - BITS[version])
}

impl AddressRanges {
    fn of_prefixes<'a>(prefixes: impl Iterator<Item = &'a IpNet>) -> Self {
        let mut ranges = [Vec::new(), Vec::new()];
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => ranges[V4]
                    .push((u32::from(net.network()).into(), u32::from(net.broadcast()).into())),
                IpNet::V6(net) => {
                    ranges[V6].push((u128::from(net.network()), u128::from(net.broadcast())));
                }
            }
        }
        Self(ranges.map(merged))
    }

    fn everything() -> Self {
        Self([vec![(0, last(V4))], vec![(0, last(V6))]])
    }

    /// What is in these and not in others.
    fn without(&self, others: &Self) -> Self {
        let mut left = [Vec::new(), Vec::new()];
        for version in [V4, V6] {
            let mut others = others.0[version].iter().peekable();
            for &(first, end) in &self.0[version] {
                let mut at = Some(first);
                while let Some(&&(from, to)) = others.peek() {
                    let Some(start) = at.filter(|_| from <= end) else { break };
                    if to >= start {
                        if from > start {
                            left[version].push((start, from - 1));
                        }
                        at = (to < end).then(|| to + 1);
                    }
                    if to > end {
                        break; // it may reach into the next range
                    }
                    others.next();
                }
                if let Some(start) = at {
                    left[version].push((start, end));
                }
            }
        }
        Self(left)
    }
}

fn merged(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut merged: Ranges = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first == 0 || first - 1 <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Works out ranges, those of a set once.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    policy: &'a Policy,
    sets: Vec<Option<AddressRanges>>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(policy: &'a Policy) -> Self {
        Self { policy, sets: vec![None; policy.sets.len()] }
    }

    /// The addresses that a rule asks for, which asks for some.
    pub(super) fn resolve(&mut self, addresses: &Addresses) -> AddressRanges {
        let positive = match &addresses.positive[..] {
            [] => AddressRanges::everything(),
            items => self.union(items),
        };
        match &addresses.negative[..] {
            [] => positive,
            items => positive.without(&self.union(items)),
        }
    }

    fn union(&mut self, items: &[AddressItem]) -> AddressRanges {
        if let &[AddressItem::Set(id)] = items {
            return self.set(id.0 as usize).clone();
        }
        let prefixes = items.iter().filter_map(|item| match item {
            AddressItem::Prefix(prefix) => Some(prefix),
            AddressItem::Set(_) => None,
        });
        let mut union = AddressRanges::of_prefixes(prefixes);
        for item in items {
            if let AddressItem::Set(id) = item {
                let set = self.set(id.0 as usize);
                for (ranges, more) in union.0.iter_mut().zip(&set.0) {
                    ranges.extend(more);
                }
            }
        }
        AddressRanges(union.0.map(merged))
    }

    fn set(&mut self, index: usize) -> &AddressRanges {
        let prefixes = &self.policy.sets[index].prefixes;
        self.sets[index].get_or_insert_with(|| AddressRanges::of_prefixes(prefixes.iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> AddressRanges {
        let prefixes: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
        AddressRanges::of_prefixes(prefixes.iter())
    }

    #[test]
    fn prefixes_that_overlap_and_touch_are_one_range() {
        let ranges = ranges(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25", "0.0.0.0/32", "::/0"]);
        assert_eq!(ranges.0[V4], [(0, 0), (0x0a00_0000, 0x0a00_01ff)]);
        assert_eq!(ranges.0[V6], [(0, u128::MAX)]);
        assert_eq!(super::merged(vec![(5, 9), (0, 3), (4, 4)]), [(0, 9)]);
    }

    #[test]
    fn what_is_taken_away_is_gone() {
        let all = AddressRanges::everything();
        let left = all.without(&ranges(&["0.0.0.0/8", "255.255.255.255/32", "10.0.0.0/8"]));
        assert_eq!(left.0[V4], [(0x0100_0000, 0x09ff_ffff), (0x0b00_0000, 0xffff_fffe)]);
        assert_eq!(left.0[V6], [(0, u128::MAX)]);
        assert_eq!(ranges(&["10.0.0.0/8"]).without(&all).0, [vec![], vec![]]);
        // One that reaches over two.
        let two = ranges(&["10.0.0.0/24", "10.0.2.0/24"]);
        let left = two.without(&ranges(&["10.0.0.128/25", "10.0.1.0/24", "10.0.2.0/25"]));
        assert_eq!(left.0[V4], [(0x0a00_0000, 0x0a00_007f), (0x0a00_0280, 0x0a00_02ff)]);
    }
}
