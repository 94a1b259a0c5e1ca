//! What rules decide: which are reached by no packet, because earlier ones match all that they match.
//!
//! Rules that ask for the same in all fields but the protocol and the destination port form a *group*,
//! and between them they take [`Cells`], exactly. A rule is shadowed if the groups that ask for nothing
//! narrower than it does, in any other field, have taken all of its cells; that is asked for each IP
//! version by itself. Whatever is said to be shadowed is; what only several groups shadow that are each
//! narrower than the rule is not found.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use super::{
    ANY, Steps,
    addresses::Lists,
    cells::{Cells, Protocols, Wanted, add_owners, is_taken},
    interfaces::Interfaces,
    numbers::Numbers,
};
use crate::policy::{NumberRange, Policy, Rule, ranges::Family};

/// How many steps are spent on comparing rules with each other, over the whole policy. Beyond this,
/// a rule is only known to be shadowed by those that ask for protocols and destination ports alone.
const MAX_COMPARED: usize = 16_000_000;

/// How many steps are spent on finding out which rules shadow the others, over the whole policy.
/// Beyond this, not all are named that shadow a rule.
const MAX_NAMING: usize = 4_000_000;

/// How many ranges of addresses are made of the rules' lists, over the whole policy. Beyond this, what
/// a list comes to is not known.
const MAX_RANGES: usize = 16_000_000;

/// The highest VLAN id that a tag can have.
const MAX_VLAN: u16 = 4095;

/// What a rule asks for apart from protocols and destination ports, each by its place among what all
/// rules ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub src: u32,
    pub dst: u32,
    pub src_ports: u32,
    pub icmp_types: u32,
    pub vlans: u32,
    pub interfaces: u32,
}

impl Key {
    /// What a rule asks for that asks for none of it.
    pub const ANY: Self =
        Self { src: ANY, dst: ANY, src_ports: ANY, icmp_types: ANY, vlans: ANY, interfaces: ANY };
}

/// A rule that earlier ones shadow.
#[derive(Debug)]
pub(super) struct Shadowed {
    pub rule: usize,
    /// The rules that match first.
    pub by: BTreeSet<usize>,
    /// Whether these are all that do.
    pub is_complete: bool,
}

/// Why a rule matches no packet at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nothing {
    /// `src` comes to no address.
    Src,
    /// `dst` comes to no address.
    Dst,
    /// `src` has only addresses of one IP version and `dst` only of the other.
    Versions,
    /// The policy has none of the interfaces.
    Interfaces,
    /// ICMP types, of IPv4 or of IPv6, with addresses of the other version alone.
    IcmpTypes,
    /// None of the protocols has what else is asked for.
    Protocols,
}

/// What the rules of a policy decide.
#[derive(Debug)]
pub(super) struct Reach<'a> {
    /// By rule.
    pub keys: Vec<Key>,
    pub addresses: Lists<'a>,
    /// The rules that earlier ones shadow, ascending.
    pub shadowed: Vec<Shadowed>,
    /// The rules that match nothing, ascending, with why.
    pub nothing: Vec<(usize, Nothing)>,
    /// By rule, whether it is one of either.
    pub is_idle: Vec<bool>,
    /// The rules that `watch` picked, ascending.
    pub watched: Vec<usize>,
}

impl<'a> Reach<'a> {
    /// Works out the reach of every rule. `watch` says which of a rule's protocols and ports matter, if
    /// any, among packets of one IP version: the rule is picked where it decides about one of them.
    pub fn new(
        policy: &'a Policy,
        watch: impl Fn(&Lists<'_>, Key, &Rule, Family) -> Option<(Protocols, Vec<NumberRange>)>,
    ) -> Self {
        let (addresses, ends) = Lists::new(policy, &mut Steps(MAX_RANGES));
        let mut steps = Steps(MAX_COMPARED);
        let (interfaces, interface_ids) = Interfaces::new(policy, &mut steps);
        let rules = || policy.rules.iter();
        let all_ports = |range: NumberRange| range.first == 0 && range.last == u16::MAX;
        let all_vlans = |range: NumberRange| range.first == 0 && range.last >= MAX_VLAN;
        let (src_ports, src_port_ids) =
            Numbers::new(rules().map(|rule| &rule.src_ports[..]), all_ports);
        let (vlans, vlan_ids) = Numbers::new(rules().map(|rule| &rule.vlans[..]), all_vlans);
        // A packet of either ICMP over the other IP version has no type: no list is all.
        let (icmp_types, icmp_ids) =
            Numbers::new(rules().map(|rule| &rule.icmp_types[..]), |_| false);
        let keys = (0..policy.rules.len()).map(|index| Key {
            src: ends[index][0],
            dst: ends[index][1],
            src_ports: src_port_ids[index],
            icmp_types: icmp_ids[index],
            vlans: vlan_ids[index],
            interfaces: interface_ids[index],
        });
        let keys: Vec<Key> = keys.collect();
        let mut reach = Self {
            keys,
            addresses,
            shadowed: Vec::new(),
            nothing: Vec::new(),
            is_idle: vec![false; policy.rules.len()],
            watched: Vec::new(),
        };
        let mut fields = Fields { src_ports, icmp_types, vlans, interfaces };
        let mut groups = Groups::default();
        let mut naming = Steps(MAX_NAMING);
        for (index, rule) in policy.rules.iter().enumerate() {
            let key = reach.keys[index];
            let wanted = Wanted::of(rule);
            if let Some(why) = reach.why_nothing(key, rule, wanted, &fields) {
                reach.nothing.push((index, why));
                reach.is_idle[index] = true;
                continue;
            }
            let families: Vec<Family> =
                Family::ALL.into_iter().filter(|&family| reach.has_both(key, family)).collect();
            let mut wider: Vec<Vec<u32>> = Vec::new();
            for &family in &families {
                wider.push(groups.wider(
                    key,
                    family,
                    &mut reach.addresses,
                    &mut fields,
                    &mut steps,
                ));
            }
            // Whatever it costs: the groups that ask for nothing else.
            let plain = groups.by_key.get(&Key::ANY).map(|&group| &*groups.cells[group as usize]);
            let is_shadowed = plain.is_some_and(|plain| {
                is_taken(&[plain], wanted, &mut Steps(usize::MAX)) == Some(true)
            }) || wider.iter().enumerate().all(|(at, group)| {
                wider[..at].contains(group)
                    || is_taken(&groups.some(group), wanted, &mut steps) == Some(true)
            });
            if is_shadowed {
                let (mut by, mut is_complete) = (BTreeSet::new(), true);
                for (at, group) in wider.iter().enumerate() {
                    if !wider[..at].contains(group) {
                        is_complete &=
                            add_owners(&groups.some(group), wanted, &mut by, &mut naming);
                    }
                }
                reach.shadowed.push(Shadowed { rule: index, by, is_complete });
                reach.is_idle[index] = true;
                continue;
            }
            let decides_any = families.iter().zip(&wider).any(|(&family, group)| {
                watch(&reach.addresses, key, rule, family).is_some_and(|(protocols, ports)| {
                    let watched = Wanted { protocols, ports: &ports };
                    is_taken(&groups.some(group), watched, &mut steps) == Some(false)
                })
            });
            if decides_any {
                reach.watched.push(index);
            }
            groups.of(key).take(wanted, index as u32);
        }
        reach
    }

    /// Whether packets of an IP version can have both the source and the destination.
    pub fn has_both(&self, key: Key, family: Family) -> bool {
        self.addresses.may_have(key.src, family) && self.addresses.may_have(key.dst, family)
    }

    /// Why a rule matches nothing, if that is certain.
    fn why_nothing(
        &self,
        key: Key,
        rule: &Rule,
        wanted: Wanted<'_>,
        fields: &Fields<'_>,
    ) -> Option<Nothing> {
        let has_any = |id: u32| Family::ALL.into_iter().any(|one| self.addresses.may_have(id, one));
        if !has_any(key.src) {
            return Some(Nothing::Src);
        }
        if !has_any(key.dst) {
            return Some(Nothing::Dst);
        }
        let [v4, v6] = Family::ALL.map(|family| self.has_both(key, family));
        if !v4 && !v6 {
            return Some(Nothing::Versions);
        }
        if fields.interfaces.is_nothing(key.interfaces) {
            return Some(Nothing::Interfaces);
        }
        let [icmp, icmpv6] = [1, 58].map(|number| wanted.protocols.contains(number));
        if wanted.protocols.is_empty() {
            return Some(Nothing::Protocols);
        }
        let has_types = icmp && v4 || icmpv6 && v6;
        (!rule.icmp_types.is_empty() && !has_types).then_some(Nothing::IcmpTypes)
    }
}

/// What the rules ask for in the fields that are no addresses.
struct Fields<'a> {
    src_ports: Numbers<'a>,
    icmp_types: Numbers<'a>,
    vlans: Numbers<'a>,
    interfaces: Interfaces,
}

#[derive(Default)]
struct Groups {
    by_key: HashMap<Key, u32>,
    keys: Vec<Key>,
    cells: Vec<Box<Cells>>,
}

impl Groups {
    /// The cells of the rules that ask for just that.
    fn of(&mut self, key: Key) -> &mut Cells {
        let group = *self.by_key.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.cells.push(Box::default());
            self.keys.len() as u32 - 1
        });
        &mut self.cells[group as usize]
    }

    fn some(&self, groups: &[u32]) -> Vec<&Cells> {
        groups.iter().map(|&group| &*self.cells[group as usize]).collect()
    }

    /// The groups that ask for nothing narrower, among packets of one IP version, as far as there are
    /// steps to find them; ascending.
    fn wider(
        &self,
        key: Key,
        family: Family,
        addresses: &mut Lists<'_>,
        fields: &mut Fields<'_>,
        steps: &mut Steps,
    ) -> Vec<u32> {
        let lists: [Rc<[u32]>; 6] = [
            addresses.supersets(key.src, family, steps),
            addresses.supersets(key.dst, family, steps),
            fields.src_ports.supersets(key.src_ports, steps),
            fields.icmp_types.supersets(key.icmp_types, steps),
            fields.vlans.supersets(key.vlans, steps),
            fields.interfaces.supersets(key.interfaces, steps),
        ];
        let combinations = lists.iter().fold(1_usize, |all, list| all.saturating_mul(list.len()));
        let mut found = Vec::new();
        if combinations > self.keys.len() {
            // Fewer groups than combinations.
            for (group, other) in self.keys.iter().enumerate() {
                if *other != Key::ANY && steps.spend(1).is_none() {
                    continue;
                }
                let asked = [
                    other.src,
                    other.dst,
                    other.src_ports,
                    other.icmp_types,
                    other.vlans,
                    other.interfaces,
                ];
                if lists.iter().zip(asked).all(|(list, id)| list.contains(&id)) {
                    found.push(group as u32);
                }
            }
            return found;
        }
        // The first of them asks for nothing, and is tried whatever it costs.
        for mut at in 0..combinations {
            if at > 0 && steps.spend(1).is_none() {
                break;
            }
            let [src, dst, src_ports, icmp_types, vlans, interfaces] =
                lists.each_ref().map(|list| {
                    let id = list[at % list.len()];
                    at /= list.len();
                    id
                });
            let other = Key { src, dst, src_ports, icmp_types, vlans, interfaces };
            found.extend(self.by_key.get(&other));
        }
        found.sort_unstable();
        found
    }
}

/// Whether a rule matches whatever there is.
pub(super) fn matches_all(key: Key, rule: &Rule) -> bool {
    key == Key::ANY && rule.dst_ports.is_empty() && Protocols::of(rule).is_all()
}
