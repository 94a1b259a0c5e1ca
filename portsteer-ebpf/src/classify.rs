//! Headers to the rule that decides. One or two loads, whatever the number of rules.

use portsteer_common::{
    Reason, Rule, Verdict,
    image::{PortKey, Special},
    verdict::VerdictCode,
    wire::icmp,
};
use portsteer_ebpf::parse::{Headers, Kind};

use crate::maps::Policy;

/// The rule that decides about a packet with these headers.
#[inline(always)]
pub fn classify(policy: Policy, headers: &Headers) -> Rule {
    match headers.kind {
        Kind::Ports => classify_ports(policy, headers.key),
        Kind::Portless => policy.rule(policy.by_protocol(headers.protocol)),
        Kind::Icmp => {
            let needed = headers.icmp_type == icmp::UNREACHABLE
                && headers.icmp_code == icmp::FRAGMENTATION_NEEDED;
            unless_spared(policy, headers.protocol, needed.then_some(Reason::PathMtu))
        }
        Kind::Icmpv6 => {
            let spared = match headers.icmp_type {
                icmp::V6_PACKET_TOO_BIG => Some(Reason::PathMtu),
                icmp::V6_DISCOVERY_FIRST..=icmp::V6_DISCOVERY_LAST => {
                    Some(Reason::NeighborDiscovery)
                }
                _ => None,
            };
            unless_spared(policy, headers.protocol, spared)
        }
    }
}

/// The rule that decides about a packet with ports.
#[inline(always)]
pub fn classify_ports(policy: Policy, key: PortKey) -> Rule {
    policy.rule(policy.by_port(key))
}

/// The rule for a protocol, but a pass for the messages that `default = "drop"` spares.
#[inline(always)]
fn unless_spared(policy: Policy, protocol: u8, spared: Option<Reason>) -> Rule {
    let number = policy.by_protocol(protocol);
    let rule = policy.rule(number);
    match spared {
        Some(reason)
            if number == Special::Default as u32 && rule.verdict == Verdict::Drop.code() =>
        {
            Rule::new(Verdict::Pass, reason, Rule::UNLISTED_COUNTER)
        }
        _ => rule,
    }
}

/// What decides about a packet that has no headers to judge it by.
#[inline(always)]
pub fn without_headers(policy: Policy, reason: Reason) -> Rule {
    use portsteer_common::Fault;
    let verdict = match reason.fault() {
        Some(Fault::Malformed) => policy.special(Special::Malformed).verdict,
        Some(Fault::Unsupported) => policy.special(Special::Unsupported).verdict,
        None => VerdictCode(Verdict::Pass as u8),
    };
    Rule { verdict, reason: reason as u8, counter: Rule::UNLISTED_COUNTER, target: 0 }
}
