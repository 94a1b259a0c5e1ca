//! Rules that match less than they seem to, because IPv4 and IPv6 are not the same.

use portsteer_common::wire::{ExtensionHeader, protocol};

use super::{
    ANY, describe,
    reach::{Key, Reach},
};
use crate::policy::{
    AddressItem, Addresses, Policy, Rule,
    diagnostic::Diagnostic,
    ranges::{Family, Ranges},
};

/// ICMP with addresses that only have the other ICMP.
pub(super) fn other_icmp(policy: &Policy, reach: &Reach<'_>) -> Vec<Diagnostic> {
    let warn = |(index, rule): (usize, &Rule)| {
        let (name, other, version, absent) = match rule.protocols[..] {
            [protocol::ICMP] => ("icmp", "icmpv6", "IPv6", Family::V4),
            [protocol::ICMPV6] => ("icmpv6", "icmp", "IPv4", Family::V6),
            _ => return None,
        };
        // Those with types match nothing, which is said elsewhere.
        if reach.is_idle[index] || reach.has_both(reach.keys[index], absent) {
            return None;
        }
        Some(
            Diagnostic::warning(format!(
                "{} asks for {name} in {version} alone, which has {other} in its place",
                describe(policy, index)
            ))
            .at(rule.span.clone())
            .label(format!("all of its addresses are {version}"))
            .help(format!("write `protocol = \"{other}\"`")),
        )
    };
    policy.rules.iter().enumerate().filter_map(warn).collect()
}

/// All of IPv4 and nothing of IPv6: whoever writes that thinks of everything. One warning, at the first
/// rule that it is about.
pub(super) fn only_ipv4(policy: &Policy, reach: &Reach<'_>) -> Option<Diagnostic> {
    // Whoever has thought of IPv6 somewhere knows what that means.
    if policy
        .rules
        .iter()
        .any(|rule| names_all(&rule.src, Family::V6) || names_all(&rule.dst, Family::V6))
    {
        return None;
    }
    policy.rules.iter().enumerate().find_map(|(index, rule)| {
        let Key { src, dst, .. } = reach.keys[index];
        let (field, asked, id) = match (src, dst) {
            (id, ANY) => ("src", &rule.src, id),
            (ANY, id) => ("dst", &rule.dst, id),
            _ => return None,
        };
        let is_all = |family| reach.addresses.ranges(id, family) == Some(&Ranges::all(family));
        let is_only_v4 = is_all(Family::V4) && !reach.addresses.may_have(id, Family::V6);
        if !is_only_v4
            || !names_all(asked, Family::V4)
            || rule.protocols == [protocol::ICMP]
            || reach.is_idle[index]
        {
            return None;
        }
        Some(
            Diagnostic::warning(format!("{} matches no IPv6", describe(policy, index)))
                .at(rule.span.clone())
                .label(format!("`{field}` is all of IPv4 and nothing else"))
                .help(format!("leave `{field}` out, which means everything, or add \"::/0\"")),
        )
    })
}

/// Whether a prefix of length 0 is asked for.
fn names_all(addresses: &Addresses, family: Family) -> bool {
    addresses.positive.iter().any(|item| match item {
        AddressItem::Prefix(prefix) => {
            prefix.prefix_len() == 0 && prefix.max_prefix_len() == family.bits()
        }
        AddressItem::Set(_) => false,
    })
}

pub(super) fn extension_headers(policy: &Policy) -> impl Iterator<Item = Diagnostic> {
    policy.rules.iter().enumerate().filter_map(|(index, rule)| {
        let numbers: Vec<String> = rule
            .protocols
            .iter()
            .filter(|&&number| ExtensionHeader::is_extension(number))
            .map(ToString::to_string)
            .collect();
        let (noun, verb) = match numbers.len() {
            0 => return None,
            1 => ("protocol", "is an extension header"),
            _ => ("protocols", "are extension headers"),
        };
        Some(
            Diagnostic::warning(format!(
                "{} matches {noun} {} in IPv4 only",
                describe(policy, index),
                numbers.join(", ")
            ))
            .at(rule.span.clone())
            .label(format!("in IPv6 {} {verb}", numbers.join(", ")))
            .help("IPv6 extension headers are skipped: rules see the protocol that follows them"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{
        lint,
        short::{UNKNOWN_HOST, messages, policy},
    };

    #[test]
    fn extension_headers_are_skipped_in_ipv6() {
        let all: Vec<String> = (0..=u8::MAX).map(|number| format!("- {number} - pass")).collect();
        let found: Vec<String> = lint(&policy(&all.join("\n")), &UNKNOWN_HOST)
            .into_iter()
            .filter_map(|warning| warning.label)
            .collect();
        let expected =
            [0, 43, 44, 51, 60].map(|number| format!("in IPv6 {number} is an extension header"));
        assert_eq!(found, expected);
        assert_eq!(
            messages(&policy("a 60,tcp,0 - pass"), &UNKNOWN_HOST),
            ["`a` (line 3) matches protocols 0, 60 in IPv4 only"]
        );
    }

    #[test]
    fn icmp_of_the_other_version() {
        for (rules, expected) in [
            (
                "a icmp - drop dst=fd00::/8",
                Some("`a` (line 3) asks for icmp in IPv6 alone, which has icmpv6 in its place"),
            ),
            (
                "a icmpv6 - drop src=10.0.0.0/8",
                Some("`a` (line 3) asks for icmpv6 in IPv4 alone, which has icmp in its place"),
            ),
            ("a icmp - drop dst=10.0.0.0/8", None),
            ("a icmp,icmpv6 - drop dst=10.0.0.0/8", None),
            ("a icmp - drop src=!10.0.0.0/8", None),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().find(|message| message.contains(" alone"));
            assert_eq!(found.map(String::as_str), expected, "{rules}");
        }
    }

    #[test]
    fn all_of_ipv4_is_not_everything() {
        for (rules, expected) in [
            ("a tcp 80 drop src=0.0.0.0/0", Some("`a` (line 3) matches no IPv6")),
            ("a tcp 80 drop dst=0.0.0.0/0", Some("`a` (line 3) matches no IPv6")),
            ("a tcp 80 drop dst=0.0.0.0/0,::/0", None),
            ("a tcp 80 drop dst=0.0.0.0/0\nb tcp 80 drop dst=::/0", None),
            ("a tcp 80 drop src=0.0.0.0/0 dst=10.0.0.1", None),
            ("a tcp 80 drop src=!::/0", None),
            ("a icmp - drop src=0.0.0.0/0", None),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().find(|message| message.contains("no IPv6"));
            assert_eq!(found.map(String::as_str), expected, "{rules}");
        }
    }
}
