//! What the rules ask of source and destination addresses, each different list once, and which of the
//! lists hold all of another.

use std::{
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
};

use super::{ANY, Steps};
use crate::policy::{
    AddressItem, Addresses, Policy, SetId,
    ranges::{AddressRanges, Family, Ranges},
};

/// The lists of addresses, known by their place; [`ANY`] is every address.
#[derive(Debug)]
pub(super) struct Lists<'a> {
    lists: Vec<List<'a>>,
    ids: HashMap<&'a Addresses, u32>,
    /// By set; only of those that some rule names.
    sets: Vec<Option<Rc<AddressRanges>>>,
    /// The lists that ask for a prefix, by its first address and its length.
    by_prefix: HashMap<(Family, u128, u8), Vec<u32>>,
    /// The lengths of these prefixes, by version.
    lengths: [Vec<u8>; 2],
    /// The lists that ask for a set, by set.
    by_set: Vec<(SetId, Vec<u32>)>,
    /// The lists that only have exceptions.
    only_negative: Vec<u32>,
}

#[derive(Debug)]
struct List<'a> {
    asked: &'a Addresses,
    /// What it comes to; `None` if that took too many steps.
    ranges: Option<Rc<AddressRanges>>,
    /// By version: the lists that hold all of it.
    supersets: [Option<Rc<[u32]>>; 2],
}

const NO_LISTS: &Vec<u32> = &Vec::new();

const NO_CONSTRAINT: &Addresses = &Addresses { positive: Vec::new(), negative: Vec::new() };

impl<'a> Lists<'a> {
    /// The lists of all rules, source and destination, in the policy's order.
    pub fn new(policy: &'a Policy, steps: &mut Steps) -> (Self, Vec<[u32; 2]>) {
        let mut lists = Self {
            lists: Vec::new(),
            ids: HashMap::from([(NO_CONSTRAINT, ANY)]),
            sets: vec![None; policy.sets.len()],
            by_prefix: HashMap::new(),
            lengths: [Vec::new(), Vec::new()],
            by_set: Vec::new(),
            only_negative: Vec::new(),
        };
        lists.push(NO_CONSTRAINT, Some(Rc::new(AddressRanges::all())));
        let ids = policy
            .rules
            .iter()
            .map(|rule| [&rule.src, &rule.dst].map(|asked| lists.intern(policy, asked, steps)))
            .collect();
        lists.index();
        (lists, ids)
    }

    /// What a list comes to in one IP version; `None` if that is not known.
    pub fn ranges(&self, id: u32, family: Family) -> Option<&Ranges> {
        self.lists[id as usize].ranges.as_ref().map(|ranges| ranges.of(family))
    }

    /// Whether a list has addresses of a version, or may have.
    pub fn may_have(&self, id: u32, family: Family) -> bool {
        self.ranges(id, family).is_none_or(|ranges| !ranges.is_empty())
    }

    /// The lists that hold all of another's addresses of one version, as far as there are steps to find
    /// them.
    pub fn supersets(&mut self, id: u32, family: Family, steps: &mut Steps) -> Rc<[u32]> {
        let list = &self.lists[id as usize];
        if let Some(known) = &list.supersets[family as usize] {
            return Rc::clone(known);
        }
        let mut found = vec![ANY];
        if id != ANY {
            found.push(id);
        }
        if let Some(ranges) = self.ranges(id, family).filter(|ranges| !ranges.is_empty()) {
            let (first, _) = ranges.as_slice()[0];
            for other in self.candidates(family, first, steps) {
                if other == id {
                    continue;
                }
                if steps.spend(ranges.as_slice().len()).is_none() {
                    break;
                }
                if self.ranges(other, family).is_some_and(|others| others.covers(ranges)) {
                    found.push(other);
                }
            }
        }
        let found: Rc<[u32]> = found.into();
        self.lists[id as usize].supersets[family as usize] = Some(Rc::clone(&found));
        found
    }

    /// All lists that may hold an address, apart from [`ANY`], as far as there are steps to find them.
    fn candidates(&self, family: Family, address: u128, steps: &mut Steps) -> Vec<u32> {
        let prefixes = self.lengths[family as usize].iter().filter_map(|&length| {
            self.by_prefix.get(&(family, first_of(family, address, length), length))
        });
        let has_it = |set: &SetId| {
            let ranges = self.sets[set.0 as usize].as_ref();
            ranges.is_some_and(|ranges| ranges.of(family).contains(address))
        };
        let sets =
            self.by_set.iter().map(|(set, lists)| if has_it(set) { lists } else { NO_LISTS });
        let mut found = Vec::new();
        for lists in prefixes.chain([&self.only_negative]).chain(sets) {
            if steps.spend(lists.len() + 1).is_none() {
                break;
            }
            found.extend_from_slice(lists);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn intern(&mut self, policy: &Policy, asked: &'a Addresses, steps: &mut Steps) -> u32 {
        if let Entry::Occupied(known) = self.ids.entry(asked) {
            return *known.get();
        }
        let ranges = self.resolve(policy, asked, steps);
        let is_all = |ranges: &Rc<AddressRanges>| **ranges == AddressRanges::all();
        let id = if ranges.as_ref().is_some_and(is_all) { ANY } else { self.push(asked, ranges) };
        self.ids.insert(asked, id);
        id
    }

    fn push(&mut self, asked: &'a Addresses, ranges: Option<Rc<AddressRanges>>) -> u32 {
        self.lists.push(List { asked, ranges, supersets: [None, None] });
        self.lists.len() as u32 - 1
    }

    /// What a list comes to.
    fn resolve(
        &mut self,
        policy: &Policy,
        asked: &Addresses,
        steps: &mut Steps,
    ) -> Option<Rc<AddressRanges>> {
        for item in asked.positive.iter().chain(&asked.negative) {
            if let AddressItem::Set(id) = item {
                self.sets[id.0 as usize].get_or_insert_with(|| {
                    Rc::new(AddressRanges::of_prefixes(policy.set(*id).prefixes.iter()))
                });
            }
        }
        let positive = match &asked.positive[..] {
            [] => Rc::new(AddressRanges::all()),
            items => self.union(items, steps)?,
        };
        if asked.negative.is_empty() {
            return Some(positive);
        }
        let negative = self.union(&asked.negative, steps)?;
        steps.spend(positive.count() + negative.count())?;
        Some(Rc::new(positive.without(&negative)))
    }

    /// What all of the items come to, whose sets are resolved.
    fn union(&self, items: &[AddressItem], steps: &mut Steps) -> Option<Rc<AddressRanges>> {
        let (mut sets, mut prefixes) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                AddressItem::Set(id) => sets.extend(&self.sets[id.0 as usize]),
                AddressItem::Prefix(prefix) => prefixes.push(prefix),
            }
        }
        if let ([set], []) = (&sets[..], &prefixes[..]) {
            return Some(Rc::clone(set));
        }
        steps.spend(prefixes.len() + sets.iter().map(|set| set.count()).sum::<usize>())?;
        let own = AddressRanges::of_prefixes(prefixes);
        Some(Rc::new(if sets.is_empty() {
            own
        } else {
            AddressRanges::union(sets.into_iter().map(Rc::as_ref).chain([&own]))
        }))
    }

    fn index(&mut self) {
        let mut by_set: HashMap<SetId, Vec<u32>> = HashMap::new();
        let mut has_length = [[false; 129]; 2];
        for (id, list) in self.lists.iter().enumerate().skip(1) {
            let id = id as u32;
            if list.asked.positive.is_empty() {
                self.only_negative.push(id);
            }
            for item in &list.asked.positive {
                match item {
                    AddressItem::Set(set) => by_set.entry(*set).or_default().push(id),
                    AddressItem::Prefix(prefix) => {
                        let (family, first) = Family::number(prefix.network());
                        let length = prefix.prefix_len();
                        has_length[family as usize][usize::from(length)] = true;
                        self.by_prefix.entry((family, first, length)).or_default().push(id);
                    }
                }
            }
        }
        let lengths = |has: [bool; 129]| (0..=128).filter(|&at| has[usize::from(at)]).collect();
        self.lengths = has_length.map(lengths);
        self.by_set = by_set.into_iter().collect();
        self.by_set.sort_unstable_by_key(|(set, _)| *set);
    }
}

/// The first address of the prefix of that length that an address is in.
fn first_of(family: Family, address: u128, length: u8) -> u128 {
    let host_bits = u32::from(family.bits() - length);
    address & u128::MAX.checked_shl(host_bits).unwrap_or(0)
}
