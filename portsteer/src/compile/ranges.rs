//! Addresses as ranges: what a rule's `src` or `dst` comes to.

use std::{collections::HashMap, rc::Rc};

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
    /// The addresses of prefixes that are in a region.
    fn of_prefixes<'a>(prefixes: impl Iterator<Item = &'a IpNet>, region: &Region) -> Self {
        let mut ranges = [Vec::new(), Vec::new()];
        let count = prefixes.size_hint().0;
        for prefix in prefixes {
            let (version, range) = range_of(prefix);
            if ranges[version].is_empty() && matches!(region, Region::Everywhere) {
                // A million are not to be moved every time that there are twice as many.
                ranges[version].reserve(count);
            }
            region.cut(version, range, &mut ranges[version]);
        }
        Self(ranges.map(merged))
    }

    /// The addresses of prefixes.
    pub(super) fn of<'a>(prefixes: impl Iterator<Item = &'a IpNet>) -> Self {
        Self::of_prefixes(prefixes, &Region::Everywhere)
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
    sort(&mut ranges);
    ranges.dedup_by(|next, before| {
        let touches = next.0 == 0 || next.0 - 1 <= before.1;
        if touches {
            before.1 = before.1.max(next.1);
        }
        touches
    });
    ranges
}

/// Sorts ranges, those of IPv4 as one number each.
fn sort(ranges: &mut Ranges) {
    let last = last(V4);
    if !ranges.iter().all(|range| range.1 <= last) {
        return ranges.sort_unstable();
    }
    let mut numbers: Vec<u64> =
        ranges.iter().map(|range| (range.0 as u64) << 32 | range.1 as u64).collect();
    numbers.sort_unstable();
    for (range, number) in ranges.iter_mut().zip(numbers) {
        *range = ((number >> 32).into(), (number as u32).into());
    }
}

/// The IP version of a prefix, and its first and last address.
fn range_of(prefix: &IpNet) -> (usize, (u128, u128)) {
    // No host bits are set.
    match prefix {
        IpNet::V4(net) => {
            let first = net.addr().to_bits();
            let last = first | u32::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0);
            (V4, (first.into(), last.into()))
        }
        IpNet::V6(net) => {
            let first = net.addr().to_bits();
            (V6, (first, first | u128::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0)))
        }
    }
}

/// Where addresses are asked for.
#[derive(Debug)]
pub(super) enum Region {
    Everywhere,
    /// Nowhere but here.
    Within(Box<[Pieces; 2]>),
}

impl Region {
    pub(super) fn within(ranges: AddressRanges) -> Self {
        let AddressRanges([v4, v6]) = ranges;
        Self::Within(Box::new([Pieces::new(V4, v4), Pieces::new(V6, v6)]))
    }

    /// All of its addresses.
    pub(super) fn ranges(&self) -> AddressRanges {
        match self {
            Self::Everywhere => AddressRanges([vec![(0, last(V4))], vec![(0, last(V6))]]),
            Self::Within(pieces) => AddressRanges(pieces.each_ref().map(|one| one.ranges.clone())),
        }
    }

    /// Adds what of a range is in the region.
    fn cut(&self, version: usize, range: (u128, u128), to: &mut Ranges) {
        match self {
            Self::Everywhere => to.push(range),
            Self::Within(pieces) => pieces[version].cut(range, to),
        }
    }
}

/// Ranges that a million others are held against, of which few touch them.
#[derive(Debug)]
pub(super) struct Pieces {
    version: usize,
    ranges: Ranges,
    /// The first and the last address, by [`upper`].
    ends: (u64, u64),
    /// By how many bits to shift the distance from the first one to have a number of a bit of:
    shift: u32,
    /// Where there is any range. It fits into the processor's nearest cache.
    occupied: Vec<u64>,
}

impl Pieces {
    /// How many distances are told apart at most.
    const DISTANCES: u32 = 1 << 16;

    fn new(version: usize, ranges: Ranges) -> Self {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Self { version, ranges, ends: (0, 0), shift: 0, occupied: Vec::new() };
        };
        let upper = |address| upper(version, address);
        let ends = (upper(first.0), upper(last.1));
        let bits = u64::BITS - (ends.1 - ends.0).leading_zeros();
        let shift = bits.saturating_sub(Self::DISTANCES.trailing_zeros());
        let mut occupied = vec![0; ((ends.1 - ends.0) >> shift) as usize / 64 + 1];
        for range in &ranges {
            let distance = |address| (upper(address) - ends.0) >> shift;
            for distance in distance(range.0)..=distance(range.1) {
                occupied[distance as usize / 64] |= 1u64 << (distance % 64);
            }
        }
        Self { version, ranges, ends, shift, occupied }
    }

    #[inline]
    fn cut(&self, (first, last): (u128, u128), to: &mut Ranges) {
        if self.may_touch(upper(self.version, first), upper(self.version, last)) {
            self.cut_slowly((first, last), to);
        }
    }

    #[inline]
    fn may_touch(&self, first: u64, last: u64) -> bool {
        if self.occupied.is_empty() || last < self.ends.0 || first > self.ends.1 {
            return false;
        }
        let distance = |at: u64| (at.clamp(self.ends.0, self.ends.1) - self.ends.0) >> self.shift;
        let (from, to) = (distance(first), distance(last));
        from != to || self.occupied[from as usize / 64] >> (from % 64) & 1 != 0
    }

    fn cut_slowly(&self, (first, last): (u128, u128), to: &mut Ranges) {
        let rest = &self.ranges[self.ranges.partition_point(|range| range.1 < first)..];
        for range in rest.iter().take_while(|range| range.0 <= last) {
            to.push((range.0.max(first), range.1.min(last)));
        }
    }
}

/// What is looked at of an address first: all of IPv4, the upper half of IPv6.
const fn upper(version: usize, address: u128) -> u64 {
    (if version == V4 { address } else { address >> 64 }) as u64
}

/// Works out ranges in a region, those of a set once.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    policy: &'a Policy,
    region: Region,
    sets: Vec<Option<Rc<AddressRanges>>>,
    known: HashMap<&'a Addresses, Rc<AddressRanges>>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(policy: &'a Policy, region: Region) -> Self {
        Self { policy, region, sets: vec![None; policy.sets.len()], known: HashMap::new() }
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// The addresses that a rule asks for, which asks for some.
    pub(super) fn resolved(&mut self, addresses: &'a Addresses) -> Rc<AddressRanges> {
        if let Some(known) = self.known.get(addresses) {
            return known.clone();
        }
        let resolved = self.resolve(addresses);
        self.known.insert(addresses, resolved.clone());
        resolved
    }

    fn resolve(&mut self, addresses: &Addresses) -> Rc<AddressRanges> {
        let positive = match &addresses.positive[..] {
            [] => Rc::new(self.region.ranges()),
            items => self.union(items),
        };
        match &addresses.negative[..] {
            [] => positive,
            items => Rc::new(positive.without(&self.union(items))),
        }
    }

    fn union(&mut self, items: &[AddressItem]) -> Rc<AddressRanges> {
        if let &[AddressItem::Set(id)] = items {
            return self.set(id.0 as usize);
        }
        let prefixes = items.iter().filter_map(|item| match item {
            AddressItem::Prefix(prefix) => Some(prefix),
            AddressItem::Set(_) => None,
        });
        let mut union = AddressRanges::of_prefixes(prefixes, &self.region);
        for item in items {
            if let AddressItem::Set(id) = item {
                let set = self.set(id.0 as usize);
                for (ranges, more) in union.0.iter_mut().zip(&set.0) {
                    ranges.extend(more);
                }
            }
        }
        Rc::new(AddressRanges(union.0.map(merged)))
    }

    fn set(&mut self, index: usize) -> Rc<AddressRanges> {
        let prefixes = &self.policy.sets[index].prefixes;
        let of_prefixes = || Rc::new(AddressRanges::of_prefixes(prefixes.iter(), &self.region));
        self.sets[index].get_or_insert_with(of_prefixes).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> AddressRanges {
        let prefixes: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
        AddressRanges::of(prefixes.iter())
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
        let all = Region::Everywhere.ranges();
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
