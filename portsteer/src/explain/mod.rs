//! Why a packet gets its verdict, in words: which rule decides, and which earlier ones nearly did.
//!
//! [`described`] reads a packet as people write it, [`captured`] reads its bytes. The decision is the
//! oracle's; what is said about the other rules is only said. Nothing in here does any I/O.

use portsteer_common::{Fault, PortProtocol, Reason};

use crate::{
    oracle::{self, Decision, Packet},
    policy::{Action, Policy, Rule, protocol_name},
};

pub mod captured;
pub mod described;

/// The most rules that are said to have come close.
const MAX_CLOSE: usize = 5;

/// Why a packet gets its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub action: Action,
    pub cause: Cause,
    /// Earlier rules that match in all but one field, the last of them: at most five.
    pub close: Vec<Miss>,
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The rule at this index.
    Rule(usize),
    /// `options.fragments`: the rule at this index would have to know the port, which a later fragment
    /// does not have.
    Fragments(usize),
    /// No rule matches: `default`.
    Default,
    /// The packet is one that `default = "drop"` spares, or one that the rules are not asked about.
    Reason(Reason),
}

/// A rule that does not match for one field alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The rule's index.
    pub rule: usize,
    pub field: &'static str,
    /// In words: `udp is not tcp`.
    pub why: String,
}

/// Explains what happens to a packet whose headers the rules see.
#[must_use]
pub fn explain(policy: &Policy, packet: &Packet<'_>) -> Explanation {
    let decision = oracle::judge(policy, packet);
    let cause = match decision {
        Decision::Rule(index) => Cause::Rule(index),
        Decision::Fragments => {
            let asks_for_ports =
                |rule: &Rule| protocol_miss(rule, packet).is_none() && !rule.dst_ports.is_empty();
            Cause::Fragments(policy.rules.iter().position(asks_for_ports).unwrap_or(0))
        }
        Decision::Default => Cause::Default,
        Decision::SparedDiscovery => Cause::Reason(Reason::NeighborDiscovery),
        Decision::SparedPathMtu => Cause::Reason(Reason::PathMtu),
    };
    let reached = match cause {
        Cause::Rule(index) | Cause::Fragments(index) => index,
        Cause::Default | Cause::Reason(_) => policy.rules.len(),
    };
    let close = policy.rules[..reached]
        .iter()
        .enumerate()
        .rev()
        .filter_map(|(index, rule)| near_miss(index, rule, packet))
        .take(MAX_CLOSE)
        .collect();
    Explanation { action: oracle::action(policy, decision), cause, close }
}

/// Explains what happens to a packet that has no headers for the rules to see.
#[must_use]
pub fn explain_reason(policy: &Policy, reason: Reason) -> Explanation {
    let action = match reason.fault() {
        Some(Fault::Malformed) => policy.options.malformed,
        Some(Fault::Unsupported) => policy.options.unsupported,
        None => Action::Pass,
    };
    Explanation { action, cause: Cause::Reason(reason), close: Vec::new() }
}

/// The fields in which a rule does not match, each with why.
#[must_use]
pub fn misses(rule: &Rule, packet: &Packet<'_>) -> Vec<(&'static str, String)> {
    let protocol = protocol_miss(rule, packet).map(|why| ("protocol", why));
    let port = port_miss(rule, packet).map(|why| ("dst_port", why));
    protocol.into_iter().chain(port).collect()
}

/// The rule's only miss, if it also asks for something that the packet has.
fn near_miss(index: usize, rule: &Rule, packet: &Packet<'_>) -> Option<Miss> {
    let asked = usize::from(!rule.protocols.is_empty()) + usize::from(!rule.dst_ports.is_empty());
    let mut misses = misses(rule, packet);
    match (asked, misses.pop(), misses.len()) {
        (2.., Some((field, why)), 0) => Some(Miss { rule: index, field, why }),
        _ => None,
    }
}

fn protocol_miss(rule: &Rule, packet: &Packet<'_>) -> Option<String> {
    let protocol = protocol_name(packet.protocol);
    if rule.protocols.is_empty() {
        let has_ports = PortProtocol::from_number(packet.protocol).is_some();
        return (!rule.dst_ports.is_empty() && !has_ports)
            .then(|| format!("{protocol} has no ports"));
    }
    (!rule.protocols.contains(&packet.protocol)).then(|| {
        let names: Vec<String> =
            rule.protocols.iter().map(|&number| protocol_name(number)).collect();
        format!("{protocol} is not {}", names.join(" or "))
    })
}

fn port_miss(rule: &Rule, packet: &Packet<'_>) -> Option<String> {
    if rule.dst_ports.is_empty() {
        return None;
    }
    let Some(port) = packet.dst_port else {
        return Some("the packet has no port".to_owned());
    };
    let is_in = rule.dst_ports.iter().any(|range| (range.first..=range.last).contains(&port));
    (!is_in).then(|| {
        let mut ranges: Vec<String> =
            rule.dst_ports.iter().take(8).map(ToString::to_string).collect();
        if rule.dst_ports.len() > ranges.len() {
            ranges.push("...".to_owned());
        }
        format!("{port} is not in {}", ranges.join(","))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{file, services::Services};

    fn policy(rules: &str) -> Policy {
        let text = format!("version = 1\ninterfaces = [\"eth0\"]\n{rules}");
        file::parse(&text, &Services::embedded()).expect("a policy").policy
    }

    fn explained(policy: &Policy, text: &str) -> Explanation {
        let described = described::parse(text, &Services::embedded()).expect("a packet");
        explain(policy, &described.headers())
    }

    #[test]
    fn the_nearest_misses_are_told() {
        let policy = policy(
            "[[rules]]\nprotocol = \"tcp\"\ndst_port = [80, \"8000-8080\"]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\ndst_port = 443\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\ndst_port = 53\naction = \"drop\"\n\
             [[rules]]\nname = \"https\"\nprotocol = \"tcp\"\ndst_port = 443\naction = \"pass\"\n",
        );
        let explanation = explained(&policy, "tcp 203.0.113.9:51000 -> 192.0.2.10:443");
        assert_eq!((explanation.action, explanation.cause), (Action::Pass, Cause::Rule(4)));
        let misses: Vec<(usize, &str, &str)> =
            explanation.close.iter().map(|miss| (miss.rule, miss.field, &*miss.why)).collect();
        assert_eq!(
            misses,
            [(1, "protocol", "tcp is not udp"), (0, "dst_port", "443 is not in 80,8000-8080")]
        );
    }

    #[test]
    fn fragments_stop_at_the_first_rule_that_asks_for_a_port() {
        let policy = policy(
            "[options]\nfragments = \"drop\"\n[[rules]]\nprotocol = \"tcp\"\ndst_port = 80\naction = \
             \"pass\"\n[[rules]]\ndst_port = 53\naction = \"pass\"\n",
        );
        let explanation = explained(&policy, "udp -> 192.0.2.10 later-fragment");
        assert_eq!((explanation.action, explanation.cause), (Action::Drop, Cause::Fragments(1)));
    }

    #[test]
    fn what_a_silent_default_spares_is_told() {
        let policy = policy("default = \"drop\"\n");
        let spared = explained(&policy, "icmpv6 fe80::1 -> ff02::1 type 135");
        assert_eq!(spared.cause, Cause::Reason(Reason::NeighborDiscovery));
        assert_eq!(spared.action, Action::Pass);
        let spared = explained(&policy, "icmp 192.0.2.1 -> 192.0.2.10 type 3 code 4");
        assert_eq!(spared.cause, Cause::Reason(Reason::PathMtu));
        let ping = explained(&policy, "icmp 192.0.2.1 -> 192.0.2.10");
        assert_eq!((ping.action, ping.cause), (Action::Drop, Cause::Default));
    }
}
