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
const MAX_RANGES: usize = 8_000_000;

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
    /// Rules before it that match all that it matches, between them.
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
            let plain = groups.by_key.get(&Key::ANY).map(|&group| &groups.cells[group as usize]);
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
    cells: Vec<Cells>,
}

impl Groups {
    /// The cells of the rules that ask for just that.
    fn of(&mut self, key: Key) -> &mut Cells {
        let group = *self.by_key.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.cells.push(Cells::default());
            self.keys.len() as u32 - 1
        });
        &mut self.cells[group as usize]
    }

    fn some(&self, groups: &[u32]) -> Vec<&Cells> {
        groups.iter().map(|&group| &self.cells[group as usize]).collect()
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use globset::Glob;
    use proptest::prelude::*;

    use super::{
        super::short::{policy, reach, shadows},
        *,
    };
    use crate::{
        oracle::{Decision, Packet, judge},
        policy::{Action, AddressItem, Addresses, InterfacePattern, Set, SetId, random},
    };

    #[test]
    fn rules_that_ask_for_more_shadow_less() {
        for (rules, expected) in [
            // Whoever asks for nothing else shadows whatever asks for more.
            ("a tcp 80 pass\nb tcp 80 drop src=10.0.0.0/8 vlan=12", "b<a"),
            ("a tcp 80 pass src=10.0.0.0/8\nb tcp 80 drop", ""),
            ("a tcp 80 pass src=10.0.0.0/8\nb tcp 80 drop dst=10.0.0.0/8", ""),
            ("a tcp - pass\nb tcp 80 drop src_port=7 interface=eth0", "b<a"),
            ("a tcp 80 pass\nb tcp 81 pass\nc tcp 80-81 drop dst=::/0", "c<a,b"),
            // By address.
            ("a - - pass src=10.0.0.0/8\nb tcp 80 drop src=10.1.0.0/16", "b<a"),
            ("a - - pass src=10.1.0.0/16\nb tcp 80 drop src=10.0.0.0/8", ""),
            ("a - - pass src=10.0.0.0/9,10.128.0.0/9\nb - - drop src=10.0.0.0/8", "b<a"),
            ("a - - pass dst=10.0.0.0/8\nb - - drop src=10.1.0.0/16", ""),
            ("a - - pass src=10.0.0.0/8\nb - - drop src=10.1.1.1 dst=10.2.2.2", "b<a"),
            ("a - - pass src=0.0.0.0/0\nb - - drop src=10.1.1.1", "b<a"),
            ("a - - pass src=0.0.0.0/0\nb - - drop src=fd00::1", ""),
            ("a - - pass src=0.0.0.0/0\nb - - drop dst=10.1.1.1", "b<a"),
            ("a - - pass src=0.0.0.0/0\nb - - pass src=::/0\nc tcp 80 drop", "c<a,b"),
            ("a - - pass src=0.0.0.0/0,::/0\nb tcp 80 drop", "b<a"),
            ("a - - pass src=!10.0.0.0/8\nb tcp 80 drop src=11.0.0.1,fd00::1", "b<a"),
            ("a - - pass src=!10.0.0.0/8\nb tcp 80 drop src=10.0.0.1", ""),
            ("a - - pass src=10.0.0.0/8,!10.0.0.1\nb - - drop src=10.0.0.1", ""),
            ("a - - pass src=10.0.0.0/8,!10.0.0.1\nb - - drop src=10.0.0.2", "b<a"),
            // By set.
            ("set s 10.0.0.0/8,fd00::/8\na - - pass src=@s\nb - - drop src=10.0.0.1", "b<a"),
            ("set s 10.0.0.0/8,fd00::/8\na - - pass src=@s\nb - - drop src=@s,!fd00::1", "b<a"),
            ("set s 10.0.0.0/8,fd00::/8\na - - pass src=@s,!fd00::1\nb - - drop src=@s", ""),
            ("set s\na - - pass src=!@s\nb - - drop", "b<a"),
            // Those that ask for the same elsewhere, between them.
            (
                "a tcp 1-5 pass src=10.0.0.1\nb tcp 6-9 pass src=10.0.0.0/8\nc tcp 2-8 drop src=10.0.0.1",
                "c<a,b",
            ),
            // The other fields.
            ("a udp - pass src_port=1-9\nb udp 53 drop src_port=2-3,5", "b<a"),
            ("a udp - pass src_port=1-9\nb udp 53 drop src_port=2-3,10", ""),
            ("a udp - pass src_port=0-65535\nb udp - drop", "b<a"),
            ("a - - pass src_port=0-65535\nb udp - drop\nc - - drop", "b<a"),
            (
                "a - - pass vlan=0-5\nb - - drop vlan=0\nc - - drop vlan=0-5\nd - - drop vlan=6",
                "b<a c<a",
            ),
            ("a - - pass vlan=0-4095\nb - - drop", "b<a"),
            ("a icmp - pass icmp_type=3-8\nb icmp - drop icmp_type=8", "b<a"),
            ("a icmp - pass icmp_type=3-8\nb icmpv6 - drop icmp_type=8", ""),
            ("a icmp - pass icmp_type=0-255\nb icmp - drop", ""),
            ("a icmp - pass\nb icmp - drop icmp_type=8", "b<a"),
            // Interfaces: `eth0` is all that the policy has.
            ("a - - pass interface=eth0\nb - - drop", "b<a"),
            ("interfaces eth0,eth1\na - - pass interface=eth0\nb - - drop", ""),
            ("interfaces eth0,eth1\na - - pass interface=eth0\nb - - drop interface=*0", "b<a"),
            ("interfaces eth0,eth1\na - - pass interface=eth?\nb - - drop", "b<a"),
            ("interfaces e*\na - - pass interface=eth*\nb - - drop interface=eth1*", "b<a"),
            ("interfaces e*\na - - pass interface=eth?\nb - - drop interface=eth1*", ""),
            ("interfaces e*\na - - pass interface=eth?\nb - - drop interface=eth1", "b<a"),
            ("interfaces e*\na - - pass interface=*\nb - - drop", "b<a"),
        ] {
            assert_eq!(shadows(rules), expected, "{rules}");
        }
    }

    #[test]
    fn rules_that_match_nothing() {
        use Nothing::{Dst, IcmpTypes, Interfaces, Src, Versions};
        for (rules, expected) in [
            ("a - - drop src=10.0.0.1 dst=fd00::1", Some(Versions)),
            ("a - - drop src=10.0.0.1,fd00::1 dst=fd00::1", None),
            ("a - - drop src=10.0.0.1 dst=!10.0.0.1", None),
            ("a - - drop src=10.0.0.1 dst=!0.0.0.0/0", Some(Versions)),
            ("a - - drop src=10.0.0.1,!10.0.0.0/8", Some(Src)),
            ("a - - drop dst=!0.0.0.0/0,!::/0", Some(Dst)),
            ("set s\na - - drop src=@s", Some(Src)),
            ("set s\na - - drop src=!@s", None),
            ("set s\na - - drop src=@s,10.0.0.1", None),
            ("a icmp - drop icmp_type=8 src=fd00::1", Some(IcmpTypes)),
            ("a icmpv6 - drop icmp_type=128 dst=10.0.0.1", Some(IcmpTypes)),
            ("a icmp - drop icmp_type=8 dst=10.0.0.1", None),
            ("a icmp - drop src=fd00::1", None),
            ("a - - drop interface=eth1", Some(Interfaces)),
            ("a - - drop interface=eth1,eth*", None),
            ("interfaces eth0,veth-*\na - - drop interface=wlan*", Some(Interfaces)),
            ("interfaces eth0,veth-*\na - - drop interface=*-1", None),
            ("interfaces eth0,veth-*\na - - drop interface=veth-1", None),
        ] {
            let policy = policy(rules);
            let why = reach(&policy).nothing.first().map(|(_, why)| *why);
            assert_eq!(why, expected, "{rules}");
        }
    }

    /// Rule `index` names one prefix, one port, and a VLAN.
    fn many(count: u32) -> Policy {
        let rules = (0..count).map(|index| {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + index * 16);
            let prefix = ipnet::Ipv4Net::new(address, 28).unwrap().into();
            Rule {
                src: Addresses { positive: vec![AddressItem::Prefix(prefix)], negative: vec![] },
                dst_ports: vec![NumberRange::single(80)],
                vlans: vec![NumberRange::single((index % 4094) as u16)],
                ..Rule::any(Action::Drop)
            }
        });
        Policy { rules: rules.collect(), ..policy("") }
    }

    // Seconds at most even unoptimised, here and below; what is quadratic takes minutes.
    #[test]
    fn many_rules_with_a_prefix_each() {
        let start = Instant::now();
        let mut policy = many(20_000);
        // Shadowed by one of them.
        policy.rules.push(policy.rules[10_000].clone());
        let reach = reach(&policy);
        let [shadowed] = &reach.shadowed[..] else { panic!("{:?}", reach.shadowed) };
        assert_eq!((shadowed.rule, shadowed.by.first()), (20_000, Some(&10_000)));
        assert!(start.elapsed().as_secs() < 30);
    }

    /// What no index helps with: every rule has to be compared with every other.
    #[test]
    fn what_takes_too_long_is_not_looked_for() {
        let start = Instant::now();
        let mut policy = many(10_000);
        for (rule, index) in policy.rules.iter_mut().zip(0_u32..) {
            let everywhere = |text: &str| AddressItem::Prefix(text.parse().unwrap());
            rule.src.positive.push(everywhere("192.0.2.0/24"));
            rule.dst.negative.push(everywhere("192.0.2.0/24"));
            let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + index);
            rule.dst.negative.push(AddressItem::Prefix(std::net::IpAddr::from(address).into()));
            rule.src_ports = vec![NumberRange { first: (index % 9_000) as u16, last: 60_000 }];
        }
        assert!(reach(&policy).shadowed.is_empty());
        assert!(start.elapsed().as_secs() < 30);
    }

    #[test]
    fn large_sets_with_exceptions() {
        let start = Instant::now();
        let mut policy = many(200);
        // All different, and in no order.
        let prefix = |index: u32| {
            let address = std::net::Ipv4Addr::from_bits(index.wrapping_mul(2_654_435_761));
            std::net::IpAddr::from(address).into()
        };
        let prefixes = (0..200_000).map(prefix).collect::<Vec<_>>().into();
        policy.sets.push(Set { name: "big".into(), prefixes, file: None, span: 0..0, line: 0 });
        for (index, rule) in policy.rules.iter_mut().enumerate() {
            rule.src = Addresses { positive: vec![AddressItem::Set(SetId(0))], negative: vec![] };
            if index % 2 == 0 {
                // Each of these comes to ranges of its own.
                rule.src.negative.push(prefix_of(index as u32));
            }
        }
        let reach = reach(&policy);
        assert!(reach.shadowed.is_empty());
        assert!(start.elapsed().as_secs() < 30);
    }

    fn prefix_of(index: u32) -> AddressItem {
        AddressItem::Prefix(std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(index)).into())
    }

    /// Each rule by itself: what does not meet it is left to the default.
    fn alone(policy: &Policy) -> Vec<Policy> {
        let alone = |rule: &Rule| Policy {
            rules: vec![rule.clone()],
            default: Action::Pass,
            ..policy.clone()
        };
        policy.rules.iter().map(alone).collect()
    }

    fn is_met(alone: &Policy, packet: &Packet<'_>) -> bool {
        judge(alone, packet) != Decision::Default
    }

    fn is_attached(interfaces: &[InterfacePattern], name: &str) -> bool {
        interfaces.iter().any(|pattern| match pattern.is_glob {
            true => Glob::new(&pattern.text).unwrap().compile_matcher().is_match(name),
            false => pattern.text == name,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// No rule that decides something is said not to.
        #[test]
        fn idle_rules_decide_nothing(
            policy in random::policy(8),
            packets in prop::collection::vec(random::packet(), 60),
        ) {
            let (reach, alone) = (reach(&policy), alone(&policy));
            for packet in packets {
                if !packet.interface.is_some_and(|name| is_attached(&policy.interfaces, name)) {
                    continue;
                }
                if let Some(index) = alone.iter().position(|alone| is_met(alone, &packet)) {
                    // That of matching nothing is said of whole packets.
                    let types = reach.nothing.contains(&(index, Nothing::IcmpTypes));
                    let is_excused = types && packet.later_fragment;
                    prop_assert!(!reach.is_idle[index] || is_excused, "{} {:?}", index, packet);
                }
                for shadowed in reach.shadowed.iter().filter(|shadowed| shadowed.is_complete) {
                    let is_met = |&index: &usize| is_met(&alone[index], &packet);
                    let is_excused = shadowed.by.iter().any(is_met);
                    prop_assert!(is_excused || !is_met(&shadowed.rule), "{shadowed:?} {packet:?}");
                }
            }
        }

        /// Whatever a rule asks for, one before it that asks for less, or the same, shadows it.
        #[test]
        fn a_wider_rule_shadows(policy in random::policy(6), rule in random::rule(), freed in 0_u8..8) {
            let mut policy = policy;
            let mut wider = rule.clone();
            match freed {
                0 => wider.protocols.clear(),
                1 => wider.src = Addresses::default(),
                2 => wider.dst = Addresses::default(),
                3 => wider.src_ports.clear(),
                4 => wider.dst_ports.clear(),
                5 => wider.icmp_types.clear(),
                6 => wider.vlans.clear(),
                _ => wider.interfaces.clear(),
            }
            policy.rules.insert(0, wider);
            policy.rules.push(rule);
            let reach = reach(&policy);
            prop_assert_eq!(reach.is_idle.last(), Some(&true));
        }

        /// Among rules that ask for protocols and destination ports alone, none is missed.
        #[test]
        fn plain_rules_are_judged_exactly(policy in random::policy(8)) {
            let mut policy = policy;
            for rule in &mut policy.rules {
                let Rule { protocols, dst_ports, .. } = rule.clone();
                *rule = Rule { protocols, dst_ports, ..Rule::any(Action::Drop) };
            }
            let (reach, alone) = (reach(&policy), alone(&policy));
            let mut is_idle = vec![true; policy.rules.len()];
            let ports = || (0..8).chain(65_530..=65_535);
            for number in 0..=u8::MAX {
                let has_ports = [6, 17, 33, 132, 136].contains(&number);
                let bare = Packet::new(number);
                let mut packets = vec![Packet { later_fragment: has_ports, ..bare }];
                if has_ports {
                    packets.extend(ports().map(|port| Packet { dst_port: Some(port), ..bare }));
                }
                for packet in packets {
                    let reached = alone.iter().position(|alone| is_met(alone, &packet));
                    if let Some(index) = reached {
                        is_idle[index] = false;
                    }
                }
            }
            prop_assert_eq!(reach.is_idle, is_idle);
        }
    }
}
