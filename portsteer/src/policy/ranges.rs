//! Addresses as sorted ranges: what prefixes, sets and their negations come to, in a form that is
//! searched and compared quickly however many prefixes there are.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Policy;

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// An address's version, and the address as a number.
    #[must_use]
    pub fn number(address: IpAddr) -> (Self, u128) {
        match address {
            IpAddr::V4(address) => (Self::V4, u128::from(address.to_bits())),
            IpAddr::V6(address) => (Self::V6, address.to_bits()),
        }
    }

    /// The highest address as a number; the lowest is 0.
    #[must_use]
    pub const fn last(self) -> u128 {
        match self {
            Self::V4 => u32::MAX as u128,
            Self::V6 => u128::MAX,
        }
    }

    /// How many bits an address has.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Addresses of one version as numbers: ranges with both ends, ascending, neither overlapping nor
/// adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// All addresses of a version.
    #[must_use]
    pub fn all(family: Family) -> Self {
        Self(vec![(0, family.last())])
    }

    /// Merges ranges in any order.
    #[must_use]
    pub fn merged(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let touches = last.1.checked_add(1).is_none_or(|after| next.0 <= after);
            if touches {
                last.1 = last.1.max(next.1);
            }
            touches
        });
        Self(ranges)
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[(u128, u128)] {
        &self.0
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of them.
    #[must_use]
    pub fn contains(&self, address: u128) -> bool {
        self.covers_range((address, address))
    }

    /// Whether every address of `other` is in one of them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|&range| self.covers_range(range))
    }

    /// Whether every address of a range is in one of them.
    #[must_use]
    pub fn covers_range(&self, (first, last): (u128, u128)) -> bool {
        let after = self.0.partition_point(|range| range.0 <= first);
        after > 0 && last <= self.0[after - 1].1
    }

    /// Whether any address of a range is in one of them.
    #[must_use]
    pub fn touches_range(&self, (first, last): (u128, u128)) -> bool {
        let after = self.0.partition_point(|range| range.0 <= last);
        after > 0 && first <= self.0[after - 1].1
    }

    /// What is left of them without `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut others = other.0.iter().copied().peekable();
        for &(first, last) in &self.0 {
            let mut from = Some(first);
            // One that reaches beyond this range may take from the next as well.
            while let Some((taken_first, taken_last)) = others.peek().copied() {
                let Some(start) = from.filter(|_| taken_first <= last) else { break };
                if taken_last >= start {
                    if taken_first > start {
                        left.push((start, taken_first - 1));
                    }
                    from = taken_last.checked_add(1).filter(|after| *after <= last);
                }
                if taken_last > last {
                    break;
                }
                others.next();
            }
            left.extend(from.map(|from| (from, last)));
        }
        Self(left)
    }

    /// Whether they hold more than a sixteenth of a version's addresses.
    #[must_use]
    pub fn is_wide(&self, family: Family) -> bool {
        let sixteenth = family.last() >> 4;
        let mut sum = 0_u128;
        self.0.iter().any(|(first, last)| {
            sum = sum.saturating_add(last - first).saturating_add(1);
            sum > sixteenth + 1
        })
    }
}

/// Addresses of both IP versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressRanges {
    v4: Ranges,
    v6: Ranges,
}

impl AddressRanges {
    /// All addresses.
    #[must_use]
    pub fn all() -> Self {
        Self { v4: Ranges::all(Family::V4), v6: Ranges::all(Family::V6) }
    }

    /// The addresses of any of the prefixes.
    #[must_use]
    pub fn of_prefixes<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut ranges = [Vec::new(), Vec::new()];
        for prefix in prefixes {
            let (family, first) = Family::number(prefix.network());
            let (_, last) = Family::number(prefix.broadcast());
            ranges[family as usize].push((first, last));
        }
        let [v4, v6] = ranges.map(Ranges::merged);
        Self { v4, v6 }
    }

    /// The addresses of each of a policy's sets, in the policy's order.
    #[must_use]
    pub fn of_sets(policy: &Policy) -> Vec<Self> {
        policy.sets.iter().map(|set| Self::of_prefixes(set.prefixes.iter())).collect()
    }

    /// The addresses that any of the parts has.
    #[must_use]
    pub fn union<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut ranges = [Vec::new(), Vec::new()];
        for part in parts {
            for family in Family::ALL {
                ranges[family as usize].extend_from_slice(part.of(family).as_slice());
            }
        }
        let [v4, v6] = ranges.map(Ranges::merged);
        Self { v4, v6 }
    }

    /// What is left of them without `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self { v4: self.v4.without(&other.v4), v6: self.v6.without(&other.v6) }
    }

    /// Those of one version.
    #[must_use]
    pub const fn of(&self, family: Family) -> &Ranges {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether an address is among them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (family, number) = Family::number(address);
        self.of(family).contains(number)
    }

    /// How many ranges there are, of both versions.
    #[must_use]
    pub fn count(&self) -> usize {
        self.v4.0.len() + self.v6.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_merge() {
        let prefixes: Vec<IpNet> = ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "::/0", "::1/128"]
            .map(|prefix| prefix.parse().unwrap())
            .into();
        let ranges = AddressRanges::of_prefixes(&prefixes);
        assert_eq!(ranges.of(Family::V4).as_slice(), [(0x0a00_0000, 0x0aff_ffff)]);
        assert_eq!(*ranges.of(Family::V6), Ranges::all(Family::V6));
        assert!(ranges.contains("10.255.255.255".parse().unwrap()));
        assert!(!ranges.contains("11.0.0.0".parse().unwrap()));
        assert_eq!(ranges.count(), 2);
    }

    #[test]
    fn wide_is_more_than_a_sixteenth() {
        for (prefix, expected) in [
            ("0.0.0.0/0", true),
            ("0.0.0.0/3", true),
            ("224.0.0.0/4", false),
            ("10.0.0.0/8", false),
            ("2000::/3", true),
            ("f000::/4", false),
        ] {
            let prefix: IpNet = prefix.parse().unwrap();
            let ranges = AddressRanges::of_prefixes([&prefix]);
            let is_wide = |family: Family| ranges.of(family).is_wide(family);
            assert_eq!(Family::ALL.into_iter().any(is_wide), expected, "{prefix}");
        }
    }

    /// Ranges among the lowest and the highest 24 addresses of IPv6.
    fn ranges() -> impl Strategy<Value = Ranges> {
        let end = (0..48_u128).prop_map(|end| if end < 24 { end } else { u128::MAX - (end - 24) });
        prop::collection::vec((end.clone(), end), 0..6).prop_map(|ends| {
            Ranges::merged(ends.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect())
        })
    }

    proptest! {
        #[test]
        fn ranges_are_what_they_contain(a in ranges(), b in ranges()) {
            let left = a.without(&b);
            let probes = (0..25).chain((0..25).map(|from_end| u128::MAX - from_end));
            let mut is_covered = true;
            for address in probes {
                let is_in = |ranges: &Ranges| {
                    ranges.as_slice().iter().any(|(first, last)| (first..=last).contains(&&address))
                };
                prop_assert_eq!(a.contains(address), is_in(&a));
                prop_assert_eq!(left.contains(address), is_in(&a) && !is_in(&b));
                is_covered &= is_in(&a) || !is_in(&b);
            }
            prop_assert_eq!(a.covers(&b), is_covered);
            prop_assert_eq!(left.is_empty(), b.covers(&a));
            prop_assert_eq!(Ranges::merged(left.as_slice().to_vec()), left);
        }
    }
}
