//! What one policy changes about another, as to what they mean.
//!
//! Comments, where things stand in the file and the order in lists do not matter; the order of the
//! rules does. A rule is the same rule if its name is, or, without one, its label, which its counter
//! belongs to as well; of several with the same label, the first is the first. It takes little longer
//! than to sort what the policies have.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::{order::Matched, sets::changed_sets};
use super::{Action, NextHop, Policy, Target, TargetKind};

mod order;
mod render;
mod rules;
mod sets;
#[cfg(test)]
mod tests;

/// How many prefixes a [`SetChange`] lists of those that come, and of those that go.
pub const MAX_LISTED: usize = 16;

/// All that changes. What is listed is in the order of the new policy, and what is gone in that of
/// the old one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Difference {
    pub settings: Vec<Change>,
    pub targets: TargetChanges,
    pub sets: SetChanges,
    pub rules: RuleChanges,
}

/// A value that changes, as text. `any` where a rule leaves a field out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The key in the policy file, with `options.` before those of that section.
    pub name: String,
    pub old: String,
    pub new: String,
    /// If the value is a list: what it has now and had not.
    pub added: Vec<String>,
    /// If the value is a list: what it had and has no more.
    pub removed: Vec<String>,
}

/// What becomes of the targets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TargetChanges {
    pub added: Vec<NamedTarget>,
    pub removed: Vec<NamedTarget>,
    /// Targets that lead elsewhere now; `name` is the target's.
    pub changed: Vec<Change>,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTarget {
    pub name: String,
    /// Where it leads: `veth-web via 10.0.80.2`, `cpus 2,3 queue 2048`.
    pub leads_to: String,
}

/// What becomes of the sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SetChanges {
    pub added: Vec<SetChange>,
    pub removed: Vec<SetChange>,
    pub changed: Vec<SetChange>,
}

/// What becomes of a set's prefixes, as they are written: whether some are part of others is not
/// looked at. Prefixes that it has twice count once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetChange {
    pub name: String,
    /// How many prefixes the old set has, 0 if there is none.
    pub old_count: usize,
    /// How many prefixes the new set has, 0 if there is none.
    pub new_count: usize,
    /// How many of the new ones the old set does not have.
    pub added_count: usize,
    /// How many of the old ones the new set does not have.
    pub removed_count: usize,
    /// The first of those that are added, in ascending order, at most [`MAX_LISTED`].
    pub added: Vec<String>,
    /// The first of those that are removed, likewise.
    pub removed: Vec<String>,
}

/// What becomes of the rules. One that changes and moves is in both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleChanges {
    /// With positions in the new policy.
    pub added: Vec<ListedRule>,
    /// With positions in the old policy.
    pub removed: Vec<ListedRule>,
    pub changed: Vec<RuleChange>,
    /// As few as can be taken out and put in elsewhere to get the new order.
    pub moved: Vec<MovedRule>,
}

/// A rule as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListedRule {
    /// From 1.
    pub position: usize,
    /// As [`Policy::label`] has it.
    pub label: String,
    /// `None` if the label stands for match and action.
    pub name: Option<String>,
    /// As [`Policy::matches`] has it.
    pub matches: String,
    /// As [`Policy::does`] has it.
    pub action: String,
}

/// A rule of which the match or the action changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleChange {
    /// In the new policy, from 1.
    pub position: usize,
    pub label: String,
    /// Named as the keys of `[[rules]]`, at least one.
    pub fields: Vec<Change>,
}

/// A rule that comes earlier or later among the others than it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MovedRule {
    /// In the old policy, from 1.
    pub old_position: usize,
    /// In the new policy, from 1.
    pub new_position: usize,
    pub label: String,
}

/// What `new` changes about `old`.
#[must_use]
pub fn diff(old: &Policy, new: &Policy) -> Difference {
    Difference {
        settings: changed_settings(old, new),
        targets: changed_targets(old, new),
        sets: changed_sets(old, new),
        rules: rules::changed_rules(old, new),
    }
}

impl Difference {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn changed_settings(old: &Policy, new: &Policy) -> Vec<Change> {
    let interfaces =
        |policy: &Policy| policy.interfaces.iter().map(|pattern| pattern.text.clone()).collect();
    let action = |name: &str, of: fn(&Policy) -> Action| {
        Change::of_word(name, of(old).name(), of(new).name())
    };
    [
        Change::of_list("interfaces", interfaces(old), interfaces(new)),
        Change::of_word("mode", old.mode.name(), new.mode.name()),
        action("default", |policy| policy.default),
        action("options.fragments", |policy| policy.options.fragments),
        action("options.malformed", |policy| policy.options.malformed),
        action("options.unsupported", |policy| policy.options.unsupported),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn changed_targets(old: &Policy, new: &Policy) -> TargetChanges {
    let named = |target: &Target| NamedTarget {
        name: target.name.clone(),
        leads_to: leads_to(&target.kind),
    };
    let by_name = by_name(&old.targets, |target| &target.name);
    let mut changes = TargetChanges::default();
    let mut stays = vec![false; old.targets.len()];
    for target in &new.targets {
        let Some(&index) = by_name.get(target.name.as_str()) else {
            changes.added.push(named(target));
            continue;
        };
        stays[index] = true;
        let (was, is) = (leads_to(&old.targets[index].kind), leads_to(&target.kind));
        changes.changed.extend(Change::of_word(&target.name, &was, &is));
    }
    let gone = old.targets.iter().zip(stays).filter(|(_, stays)| !stays);
    changes.removed = gone.map(|(target, _)| named(target)).collect();
    changes
}

/// Where a target leads, in all that it has.
fn leads_to(kind: &TargetKind) -> String {
    match kind {
        TargetKind::Interface { interface, next_hop: NextHop::Via(address) } => {
            format!("{interface} via {address}")
        }
        TargetKind::Interface { interface, next_hop: NextHop::Mac(mac) } => {
            let digits: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{interface} mac {}", digits.join(":"))
        }
        TargetKind::Interface { interface, next_hop: NextHop::Keep } => {
            format!("{interface} mac keep")
        }
        TargetKind::Cpus { cpus, queue } => {
            format!(
                "cpus {} queue {queue}",
                super::comma_list(cpus.iter().map(ToString::to_string))
            )
        }
    }
}

fn by_name<T>(list: &[T], name: impl Fn(&T) -> &str) -> HashMap<&str, usize> {
    let mut indices = HashMap::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        indices.insert(name(item), index);
    }
    indices
}

impl Change {
    fn of_word(name: &str, old: &str, new: &str) -> Option<Self> {
        let (old, new) = (old.to_owned(), new.to_owned());
        let name = name.to_owned();
        (old != new).then(|| Self { name, old, new, added: Vec::new(), removed: Vec::new() })
    }

    /// A list's change. Its order does not matter, nor does what it has twice.
    fn of_list(name: &str, old: Vec<String>, new: Vec<String>) -> Option<Self> {
        let missing = |from: &[String], others: &[String]| -> Vec<String> {
            let others: HashSet<&String> = others.iter().collect();
            from.iter().filter(|item| !others.contains(item)).cloned().collect()
        };
        let (added, removed) = (missing(&new, &old), missing(&old, &new));
        if added.is_empty() && removed.is_empty() {
            return None;
        }
        let text =
            |items: Vec<String>| if items.is_empty() { "any".to_owned() } else { items.join(",") };
        Some(Self { name: name.to_owned(), old: text(old), new: text(new), added, removed })
    }
}
