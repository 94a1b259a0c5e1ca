//! Sets and targets that no rule names.

use std::collections::HashSet;

use crate::policy::{Action, AddressItem, Policy, TargetId, diagnostic::Diagnostic};

pub(super) fn sets(policy: &Policy) -> Vec<Diagnostic> {
    let mut is_used = vec![false; policy.sets.len()];
    for addresses in policy.rules.iter().flat_map(|rule| [&rule.src, &rule.dst]) {
        for item in addresses.positive.iter().chain(&addresses.negative) {
            if let AddressItem::Set(id) = item {
                is_used[id.0 as usize] = true;
            }
        }
    }
    let unused = policy.sets.iter().zip(is_used).filter(|(_, is_used)| !is_used);
    let warn = |set: &crate::policy::Set| {
        Diagnostic::warning(format!("no rule names the set `{}`", set.name))
            .at(set.span.clone())
            .label("unused")
            .help(format!("remove it, or name it in a rule: `src = \"@{}\"`", set.name))
    };
    unused.map(|(set, _)| warn(set)).collect()
}

pub(super) fn targets(policy: &Policy) -> impl Iterator<Item = Diagnostic> {
    let used: HashSet<TargetId> = policy
        .rules
        .iter()
        .filter_map(|rule| match rule.action {
            Action::Steer(id) => Some(id),
            Action::Pass | Action::Drop => None,
        })
        .collect();
    let is_unused = move |index| u16::try_from(index).is_ok_and(|id| !used.contains(&TargetId(id)));
    policy.targets.iter().enumerate().filter(move |&(index, _)| is_unused(index)).map(
        |(_, target)| {
            Diagnostic::warning(format!("no rule steers to the target `{}`", target.name))
                .at(target.span.clone())
                .label("unused")
                .help("remove it, or name it in a rule's action")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::short::{UNKNOWN_HOST, messages, policy};

    #[test]
    fn sets_that_no_rule_names() {
        let policy = policy(
            "set a 10.0.0.1\nset b 10.0.0.2\nset c 10.0.0.3\nset d\n\
             x - - pass src=@a\ny - - pass dst=!@c",
        );
        assert_eq!(
            messages(&policy, &UNKNOWN_HOST),
            ["no rule names the set `b`", "no rule names the set `d`"]
        );
    }
}
