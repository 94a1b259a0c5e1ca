//! Rules that match no packet at all.

use super::{
    describe,
    reach::{Nothing, Reach},
};
use crate::policy::{AddressItem, Addresses, Policy, Rule, diagnostic::Diagnostic, protocol_name};

pub(super) fn nothing(policy: &Policy, reach: &Reach<'_>) -> Vec<Diagnostic> {
    let warn = |&(index, why): &(usize, Nothing)| {
        let rule = &policy.rules[index];
        Diagnostic::warning(format!(
            "{} can match nothing: {}",
            describe(policy, index),
            because(policy, rule, why)
        ))
        .at(rule.span.clone())
        .label("without effect")
        .help(help(why))
    };
    reach.nothing.iter().map(warn).collect()
}

fn because(policy: &Policy, rule: &Rule, why: Nothing) -> String {
    match why {
        Nothing::Src => no_address(policy, "src", &rule.src),
        Nothing::Dst => no_address(policy, "dst", &rule.dst),
        Nothing::Versions => "`src` and `dst` have no IP version in common".to_owned(),
        Nothing::Interfaces => "the policy has none of its interfaces".to_owned(),
        Nothing::IcmpTypes => {
            let name =
                rule.protocols.first().map_or_else(String::new, |&number| protocol_name(number));
            format!(
                "it asks for types of {name}, and its addresses are all of the other IP version"
            )
        }
        Nothing::Protocols => "no protocol has all that it asks for".to_owned(),
    }
}

/// Why a list comes to no address.
fn no_address(policy: &Policy, field: &str, addresses: &Addresses) -> String {
    let mut empty = Vec::new();
    for item in &addresses.positive {
        match item {
            AddressItem::Set(id) if policy.set(*id).prefixes.is_empty() => {
                empty.push(format!("`{}`", policy.set(*id).name));
            }
            _ => return format!("its `{field}` excludes all that it asks for"),
        }
    }
    match &empty[..] {
        [] => format!("its `{field}` excludes every address"),
        [name] => format!("the set {name} is empty"),
        names => format!("the sets {} are empty", names.join(", ")),
    }
}

const fn help(why: Nothing) -> &'static str {
    match why {
        Nothing::Src | Nothing::Dst => "remove it, or give it addresses",
        Nothing::Versions => {
            "a packet's addresses are both IPv4 or both IPv6: write a rule for each"
        }
        Nothing::Interfaces => "it may name those under `interfaces`, or globs that match them",
        Nothing::IcmpTypes => "IPv4 has `icmp`, IPv6 has `icmpv6`",
        Nothing::Protocols => "remove it",
    }
}

#[cfg(test)]
mod tests {
    use super::super::short::{UNKNOWN_HOST, messages, policy};

    #[test]
    fn why_a_rule_matches_nothing_is_said() {
        for (rules, expected) in [
            ("a - - drop src=10.0.0.1 dst=fd00::1", "`src` and `dst` have no IP version in common"),
            ("a - - drop src=10.0.0.1,!10.0.0.0/8", "its `src` excludes all that it asks for"),
            ("a - - drop dst=!0.0.0.0/0,!::/0", "its `dst` excludes every address"),
            ("set s\na - - drop src=@s", "the set `s` is empty"),
            ("set s\nset t\na - - drop src=@s,@t", "the sets `s`, `t` are empty"),
            (
                "a icmp - drop icmp_type=8 src=fd00::1",
                "it asks for types of icmp, and its addresses are all of the other IP version",
            ),
            ("a - - drop interface=eth1", "the policy has none of its interfaces"),
        ] {
            let expected = format!("`a` (line 3) can match nothing: {expected}");
            assert_eq!(messages(&policy(rules), &UNKNOWN_HOST), [expected], "{rules}");
        }
    }
}
