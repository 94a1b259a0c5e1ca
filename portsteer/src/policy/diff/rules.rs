//! What becomes of the rules.

use super::{Change, ListedRule, Matched, MovedRule, RuleChange, RuleChanges};
use crate::policy::{
    AddressItem, Addresses, InterfacePattern, NumberRange, Policy, Rule, icmp_text, protocol_name,
    vlan_text,
};

pub(super) fn changed_rules(old: &Policy, new: &Policy) -> RuleChanges {
    let (old_keys, new_keys) = (Keys::new(old), Keys::new(new));
    let matched = Matched::new(&old_keys.keys(), &new_keys.keys());
    let listed = |policy: &Policy, index: usize| {
        let rule = &policy.rules[index];
        ListedRule {
            position: index + 1,
            label: policy.label(rule),
            name: rule.name.clone(),
            matches: policy.matches(rule),
            action: policy.does(rule),
        }
    };
    let changed = |&(was, is): &(usize, usize)| {
        let (old_rule, new_rule) = (&old.rules[was], &new.rules[is]);
        // Without a name, rules that are matched say the same.
        new_rule.name.as_ref()?;
        let fields = changed_fields((old, old_rule), (new, new_rule));
        let label = new.label(new_rule);
        (!fields.is_empty()).then_some(RuleChange { position: is + 1, label, fields })
    };
    let moved = |(was, is): (usize, usize)| MovedRule {
        old_position: was + 1,
        new_position: is + 1,
        label: new.label(&new.rules[is]),
    };
    RuleChanges {
        added: matched.added.iter().map(|&index| listed(new, index)).collect(),
        removed: matched.removed.iter().map(|&index| listed(old, index)).collect(),
        changed: matched.pairs.iter().filter_map(changed).collect(),
        moved: matched.moved().into_iter().map(moved).collect(),
    }
}

/// What tells a policy's rules from each other.
struct Keys(Vec<String>);

impl Keys {
    /// With a sign, since a name may look like a label.
    fn new(policy: &Policy) -> Self {
        let key = |rule: &Rule| match &rule.name {
            Some(name) => format!("={name}"),
            None => policy.label(rule),
        };
        Self(policy.rules.iter().map(key).collect())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}

fn changed_fields(
    (old, old_rule): (&Policy, &Rule),
    (new, new_rule): (&Policy, &Rule),
) -> Vec<Change> {
    // Most rules have not changed at all, which takes no texts to tell.
    let ranges =
        |name: &str, of: fn(&Rule) -> &Vec<NumberRange>, text: fn(&NumberRange) -> String| {
            let (was, is) = (of(old_rule), of(new_rule));
            if was == is {
                return None;
            }
            Change::of_list(name, was.iter().map(text).collect(), is.iter().map(text).collect())
        };
    let addresses = |name: &str, of: fn(&Rule) -> &Addresses| {
        let (was, is) = (of(old_rule), of(new_rule));
        if was.is_any() && is.is_any() {
            return None;
        }
        Change::of_list(name, items(old, was), items(new, is))
    };
    let protocols = || {
        let names =
            |rule: &Rule| rule.protocols.iter().map(|&number| protocol_name(number)).collect();
        if old_rule.protocols == new_rule.protocols {
            return None;
        }
        Change::of_list("protocol", names(old_rule), names(new_rule))
    };
    let interfaces = || {
        let texts = |patterns: &[InterfacePattern]| {
            patterns.iter().map(|pattern| pattern.text.clone()).collect()
        };
        if old_rule.interfaces.is_empty() && new_rule.interfaces.is_empty() {
            return None;
        }
        Change::of_list("interface", texts(&old_rule.interfaces), texts(&new_rule.interfaces))
    };
    [
        protocols(),
        addresses("src", |rule| &rule.src),
        ranges("src_port", |rule| &rule.src_ports, NumberRange::to_string),
        addresses("dst", |rule| &rule.dst),
        ranges("dst_port", |rule| &rule.dst_ports, NumberRange::to_string),
        ranges("icmp_type", |rule| &rule.icmp_types, icmp_text),
        ranges("vlan", |rule| &rule.vlans, vlan_text),
        interfaces(),
        Change::of_word("action", &old.does(old_rule), &new.does(new_rule)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A rule's addresses, each as text.
fn items(policy: &Policy, addresses: &Addresses) -> Vec<String> {
    let text = |item: &AddressItem| {
        let alone = Addresses { positive: vec![*item], negative: Vec::new() };
        policy.addresses(&alone)
    };
    let negative = addresses.negative.iter().map(|item| format!("!{}", text(item)));
    addresses.positive.iter().map(text).chain(negative).collect()
}
