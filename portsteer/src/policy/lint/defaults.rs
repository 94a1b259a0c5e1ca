//! What the default decides, and what rules decide that the default would decide better.

use portsteer_common::wire::protocol;

use super::{
    addresses::Lists,
    cells::Protocols,
    describe,
    reach::{Key, Reach, matches_all},
};
use crate::policy::{Action, Policy, Rule, diagnostic::Diagnostic, ranges::Family};

pub(super) fn default_drop(policy: &Policy) -> Option<Diagnostic> {
    (policy.default == Action::Drop).then(|| {
        Diagnostic::warning(
            "default = \"drop\" also drops the replies to this host's own connections",
        )
        .help(
            "there is no reply tracking yet, so pass what the host must receive with rules; the \
             default spares only what is not IP, IPv6 neighbour and router discovery, and ICMP \
             messages that a packet is too big",
        )
    })
}

/// A rule that leaves the default nothing to decide, and says otherwise.
pub(super) fn idle_default(policy: &Policy, reach: &Reach<'_>) -> Option<Diagnostic> {
    let mut rules = policy.rules.iter().zip(&reach.keys);
    let index = rules.position(|(rule, &key)| matches_all(key, rule))?;
    let rule = &policy.rules[index];
    if rule.action == policy.default {
        return None;
    }
    let warning = Diagnostic::warning(format!(
        "default = \"{}\" never decides: {} matches every IP packet",
        policy.default.name(),
        describe(policy, index)
    ))
    .at(rule.span.clone())
    .label("matches whatever the rules before it leave");
    match rule.action {
        Action::Drop => Some(warning.help(
            "write `default = \"drop\"` instead of the rule: it spares neighbour discovery and packet \
             too big, which a rule does not",
        )),
        Action::Pass => {
            Some(warning.help("write `default = \"pass\"` instead of the rule, or beside it"))
        }
        // No default can do that.
        Action::Steer(_) => None,
    }
}

/// IPv6 addresses as numbers, both ends included.
type Span = (u128, u128);

/// What neighbour discovery cannot do without: the type, and whole ranges of addresses, source and
/// destination. A neighbour's address is asked for by multicast and told to whoever asked (RFC 4861).
const DISCOVERY: [(u8, Span, Span); 2] =
    [(135, LINK_LOCAL, SOLICITED_NODES), (136, LINK_LOCAL, LINK_LOCAL)];
/// fe80::/10.
const LINK_LOCAL: Span = (0xfe80 << 112, (0xfec0 << 112) - 1);
/// ff02::1:ff00:0/104.
const SOLICITED_NODES: Span = (0xff02 << 112 | 0x1_ff00_0000, 0xff02 << 112 | 0x1_ffff_ffff);

/// The first rule that drops all packets of a kind that neighbour discovery needs, unless one before it
/// does something else with some of them.
pub(super) fn neighbor_discovery(policy: &Policy, reach: &Reach<'_>) -> Option<Diagnostic> {
    let rules = policy.rules.iter().enumerate().filter(|(index, rule)| {
        !reach.is_idle[*index] && Protocols::of(rule).contains(protocol::ICMPV6)
    });
    let mut first = None;
    for (kind, src, dst) in DISCOVERY {
        for (index, rule) in rules.clone() {
            let touched = touches(rule, reach.keys[index], &reach.addresses, kind, src, dst);
            match (touched, rule.action) {
                (Touched::No, _) | (Touched::Part, Action::Drop) => {}
                (Touched::All, Action::Drop) => {
                    first = Some(first.map_or(index, |first: usize| first.min(index)));
                    break;
                }
                _ => break,
            }
        }
    }
    let index = first?;
    let rule = &policy.rules[index];
    let Key { src, dst, icmp_types, vlans, interfaces, .. } = reach.keys[index];
    let what = if [src, dst, icmp_types].iter().all(|&id| id == super::ANY) {
        "drops all of ICMPv6, neighbour discovery included"
    } else {
        "drops neighbour discovery"
    };
    let where_ = if [vlans, interfaces].iter().all(|&id| id == super::ANY) { "" } else { " there" };
    Some(
        Diagnostic::warning(format!("{} {what}: IPv6 stops{where_}", describe(policy, index)))
            .at(rule.span.clone())
            .label("rules spare nothing, unlike the default")
            .help(
                "put a rule with `protocol = \"icmpv6\"` and `action = \"pass\"` before it; packet \
                 too big, which connections need, is ICMPv6 as well",
            ),
    )
}

/// How much of some packets a rule matches, apart from their tags and interfaces.
enum Touched {
    No,
    Part,
    All,
}

fn touches(
    rule: &Rule,
    key: Key,
    addresses: &Lists<'_>,
    kind: u8,
    src: Span,
    dst: Span,
) -> Touched {
    let value = u16::from(kind) << 8;
    let has_type = |range: &crate::policy::IcmpRange| (range.first..=range.last).contains(&value);
    if !rule.icmp_types.is_empty() && !rule.icmp_types.iter().any(has_type) {
        return Touched::No;
    }
    let mut is_all = true;
    for (id, range) in [(key.src, src), (key.dst, dst)] {
        let Some(ranges) = addresses.ranges(id, Family::V6) else {
            is_all = false;
            continue;
        };
        if !ranges.touches_range(range) {
            return Touched::No;
        }
        is_all &= ranges.covers_range(range);
    }
    if is_all { Touched::All } else { Touched::Part }
}

#[cfg(test)]
mod tests {
    use super::super::{
        lint,
        short::{UNKNOWN_HOST, messages, policy},
    };

    #[test]
    fn default_drop_is_loud() {
        let warnings = lint(&policy("default - - drop\na tcp 22 pass"), &UNKNOWN_HOST);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.message.contains("replies to this host's own connections"));
        let help = warning.help.as_deref().unwrap();
        assert!(help.contains("neighbour") && help.contains("too big"), "{help}");
    }

    #[test]
    fn neighbour_discovery() {
        for (rules, expected) in [
            ("a icmpv6 - drop", true),
            ("a - - drop", true),
            ("a icmpv6 - pass\nb - - drop", false),
            ("a icmp - drop", false),
            ("a - 80 drop", false),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().any(|message| message.contains("neighbour discovery"));
            assert_eq!(found, expected, "{rules}");
        }
    }

    #[test]
    fn a_default_that_never_decides() {
        for (rules, expected) in [
            ("a - - drop", true),
            ("default - - drop\na - - pass", true),
            ("a - - pass", false),
            ("a - - steer:web", false),
            ("a tcp - drop", false),
            ("a - 80 drop", false),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().any(|message| message.contains("never decides"));
            assert_eq!(found, expected, "{rules}");
        }
    }

    #[test]
    fn discovery_is_dropped_by_all_fields() {
        for (rules, expected) in [
            (
                "a icmpv6 - drop icmp_type=133-136",
                Some("`a` (line 3) drops neighbour discovery: IPv6 stops"),
            ),
            ("a icmpv6 - drop icmp_type=128", None),
            ("a icmpv6 - drop src=2001:db8::/32", None),
            (
                "a icmpv6 - drop src=fe80::/10",
                Some("`a` (line 3) drops neighbour discovery: IPv6 stops"),
            ),
            ("a - - drop src=0.0.0.0/0", None),
            (
                "a - - drop src=!192.0.2.0/24",
                Some("`a` (line 3) drops neighbour discovery: IPv6 stops"),
            ),
            ("a - - drop dst=192.0.2.1", None),
            ("a icmpv6 - pass icmp_type=135-136\nb - - drop", None),
            ("a icmpv6 - pass icmp_type=135\nb icmpv6 - pass icmp_type=136\nc - - drop", None),
            (
                "a icmpv6 - pass icmp_type=135\nb icmpv6 - drop",
                Some("`b` (line 7) drops all of ICMPv6, neighbour discovery included: IPv6 stops"),
            ),
            ("a icmpv6 - pass src=fe80::1\nb - - drop", None),
            ("a - - pass vlan=7\nb icmpv6 - drop", None),
            (
                "a tcp - pass src=fe80::/10\nb icmpv6 - drop vlan=7",
                Some(
                    "`b` (line 7) drops all of ICMPv6, neighbour discovery included: IPv6 stops there",
                ),
            ),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().find(|message| message.contains("neighbour discovery"));
            assert_eq!(found.map(String::as_str), expected, "{rules}");
        }
    }

    #[test]
    fn a_default_has_something_to_decide_where_a_rule_asks_for_more() {
        for (rules, expected) in [
            ("a - - drop src=10.0.0.0/8", false),
            ("a - - drop src=0.0.0.0/0", false),
            ("a - - drop src=0.0.0.0/0,::/0", true),
            ("a - - drop vlan=7", false),
            ("a - - drop src_port=0-65535", false),
            ("a - - drop interface=eth1", false),
            ("a - - drop interface=eth0", true),
            ("interfaces eth0,eth1\na - - drop interface=eth0", false),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().any(|message| message.contains("never decides"));
            assert_eq!(found, expected, "{rules}");
        }
    }
}
