//! What the policy does to traffic of the host that the rules do not speak of: its own connections, and
//! what passes through.

use portsteer_common::PortProtocol;

use super::{
    ANY, HostFacts,
    addresses::Lists,
    at_rules,
    cells::{Protocols, Wanted},
    list_rules,
    reach::{Key, Reach},
};
use crate::policy::{Action, Policy, PortRange, Rule, diagnostic::Diagnostic, ranges::Family};

/// Rules that drop what passes through. One with `dst` is taken to mean it, unless `dst` is a good part
/// of all addresses.
pub(super) fn forwarding(
    policy: &Policy,
    host: &HostFacts,
    reach: &Reach<'_>,
) -> Option<Diagnostic> {
    let drops = |&index: &usize| {
        let is_wide = |family| {
            reach.has_both(reach.keys[index], family)
                && is_wide(&reach.addresses, reach.keys[index].dst, family)
        };
        policy.rules[index].action == Action::Drop
            && !reach.is_idle[index]
            && Family::ALL.into_iter().any(is_wide)
    };
    if host.forwards != Some(true) {
        return None;
    }
    let rules: Vec<usize> = (0..policy.rules.len()).filter(drops).collect();
    if rules.is_empty() && policy.default != Action::Drop {
        return None;
    }
    let mut what = Vec::new();
    if !rules.is_empty() {
        what.push(list_rules(policy, &rules, true));
    }
    if policy.default == Action::Drop {
        what.push("the default".to_owned());
    }
    let warning = Diagnostic::warning(
        "this host forwards packets, and what the policy drops it drops on their way through too",
    )
    .help(format!(
        "without a `dst` that says which addresses are meant, traffic that merely passes through is \
         taken as well: look at {}",
        what.join(", and ")
    ));
    Some(at_rules(warning, policy, &rules, "drops"))
}

/// Rules that drop replies to the host's own connections: those that [`replies`] picked.
pub(super) fn ephemeral_ports(
    policy: &Policy,
    ephemeral: PortRange,
    reach: &Reach<'_>,
) -> Option<Diagnostic> {
    let rules = &reach.watched;
    if rules.is_empty() {
        return None;
    }
    let warning = Diagnostic::warning(format!(
        "this host's own connections start from ports {ephemeral}, and rules drop what comes there"
    ))
    .help(format!(
        "replies to them arrive at these ports (net.ipv4.ip_local_port_range): look at {}",
        list_rules(policy, rules, true)
    ));
    Some(at_rules(warning, policy, rules, "drops some of them"))
}

/// The protocols and ports by which a rule drops replies from anywhere to the host's own connections. A
/// rule for few sources or few destinations is taken to mean it.
pub(super) fn replies(
    addresses: &Lists<'_>,
    key: Key,
    rule: &Rule,
    family: Family,
    ephemeral: PortRange,
) -> Option<(Protocols, Vec<PortRange>)> {
    const REPLYING: [u8; 2] = [PortProtocol::Tcp.number(), PortProtocol::Udp.number()];
    if rule.action != Action::Drop
        || key.src_ports != ANY
        || !is_wide(addresses, key.src, family)
        || !is_wide(addresses, key.dst, family)
    {
        return None;
    }
    let Wanted { protocols, ports } = Wanted::of(rule);
    let clipped = ports.iter().map(|range| PortRange {
        first: range.first.max(ephemeral.first),
        last: range.last.min(ephemeral.last),
    });
    let ports: Vec<PortRange> = clipped.filter(|range| range.first <= range.last).collect();
    let protocols = protocols.and(REPLYING);
    (!ports.is_empty() && !protocols.is_empty()).then_some((protocols, ports))
}

/// Whether a list has a good part of an IP version's addresses.
fn is_wide(addresses: &Lists<'_>, id: u32, family: Family) -> bool {
    addresses.ranges(id, family).is_some_and(|ranges| ranges.is_wide(family))
}

#[cfg(test)]
mod tests {
    use super::super::{
        lint,
        short::{UNKNOWN_HOST, messages, policy},
    };
    use super::*;

    #[test]
    fn ephemeral_ports_that_are_dropped() {
        let host = HostFacts {
            ephemeral_ports: Some(PortRange { first: 32_768, last: 60_999 }),
            forwards: None,
        };
        for (rules, expected) in [
            ("a tcp 40000 drop", Some("`a` (line 3)")),
            ("a udp 60999-65535 drop", Some("`a` (line 3)")),
            ("a - dynamic drop\nb tcp - drop", Some("`a` (line 3) and `b` (line 7)")),
            ("a tcp 32767 drop\nb tcp 61000-65535 drop", None),
            ("a tcp 40000 pass", None),
            ("a sctp 40000 drop", None),
            ("a tcp,udp 30000-61000 pass\nb tcp - drop", None),
            ("a tcp,udp 30000-61000 pass\nb icmp - drop", None),
            (
                "a tcp 40000 drop\nb tcp 40001 drop\nc tcp 40002 drop\nd tcp 40003 drop\n\
                 e tcp 40004 drop\nf tcp 40005 drop",
                Some("`a` (line 3), `b` (line 8), `c` (line 13), `d` (line 18) and 2 more"),
            ),
        ] {
            let warnings = lint(&policy(rules), &host);
            let found = warnings.iter().find(|warning| warning.message.contains("32768-60999"));
            let rules_named =
                found.and_then(|warning| warning.help.as_deref()?.split("look at ").nth(1));
            assert_eq!(rules_named, expected, "{rules}");
            assert_eq!(
                messages(&policy(rules), &UNKNOWN_HOST).len(),
                warnings.len() - usize::from(expected.is_some())
            );
        }
    }

    #[test]
    fn hosts_that_forward() {
        let forwards = |forwards| HostFacts { ephemeral_ports: None, forwards };
        for (rules, host, expected) in [
            ("a tcp 80 drop", Some(true), 1),
            ("a tcp 80 drop", Some(false), 0),
            ("a tcp 80 drop", None, 0),
            ("a tcp 80 pass", Some(true), 0),
            ("default - - drop\na tcp 80 pass", Some(true), 1),
            ("a - - pass\nb tcp 80 drop", Some(true), 0),
        ] {
            let messages = messages(&policy(rules), &forwards(host));
            let found = messages.iter().filter(|message| message.contains("forwards"));
            assert_eq!(found.count(), expected, "{rules}");
        }
    }

    #[test]
    fn whoever_asks_for_few_addresses_means_it() {
        let host = HostFacts {
            ephemeral_ports: Some(PortRange { first: 32_768, last: 60_999 }),
            forwards: Some(true),
        };
        // Whether it is said of replies, and of what passes through.
        for (rules, expected) in [
            ("a - - drop", (true, true)),
            ("a tcp - drop src=192.0.2.0/24", (false, true)),
            ("a tcp - drop dst=192.0.2.1", (false, false)),
            ("a tcp - drop dst=0.0.0.0/0", (true, true)),
            ("a tcp - drop src=2000::/3 dst=2000::/3", (true, true)),
            ("a tcp - drop src=!192.0.2.0/24 dst=!192.0.2.1", (true, true)),
            ("a tcp - drop src=0.0.0.0/0 dst=fd00::/8", (false, false)),
            ("a tcp - drop src=2000::/3 dst=!192.0.2.1", (true, true)),
            ("a tcp - drop src=192.0.2.0/24 dst=::/0,192.0.2.1", (false, false)),
            ("a udp - drop src_port=53", (false, true)),
            ("a tcp - drop interface=eth0 vlan=7", (true, true)),
            ("a tcp - pass src=0.0.0.0/0\nb tcp - drop src=0.0.0.0/0", (false, false)),
            ("a tcp - pass src=::/0\nb tcp - drop", (true, true)),
            ("a tcp 40000 pass\nb tcp 40000 drop vlan=7", (false, false)),
            ("a tcp 40000 pass vlan=7\nb tcp 40000 drop vlan=7-8", (true, true)),
        ] {
            let messages = messages(&policy(rules), &host);
            let said = |what| messages.iter().any(|message| message.contains(what));
            assert_eq!((said("own connections start"), said("forwards")), expected, "{rules}");
        }
    }
}
