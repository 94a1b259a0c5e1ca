//! Headers to the decision about them. One load, whatever the number of rules.

use portsteer_common::{Decision, Fault, Reason, Verdict, wire::icmp};
use portsteer_ebpf::parse::{Headers, Kind};

use crate::maps::Policy;

/// A defect in this program.
pub const BROKEN: Decision = Decision::without_rule(Verdict::Abort, Reason::Internal);

/// What is decided about a packet with these headers.
#[inline(always)]
pub fn classify(policy: Policy, headers: &Headers) -> Decision {
    match headers.kind {
        Kind::Ports => policy.by_port(headers.key).unwrap_or(BROKEN),
        Kind::Portless => policy.by_protocol(headers.protocol),
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

/// What is decided about a protocol, but a pass for the messages that `default = "drop"` spares.
#[inline(always)]
fn unless_spared(policy: Policy, protocol: u8, spared: Option<Reason>) -> Decision {
    const DEFAULT_DROP: Decision = Decision::without_rule(Verdict::Drop, Reason::NoRule);
    let decision = policy.by_protocol(protocol);
    match spared {
        Some(reason) if decision == DEFAULT_DROP => Decision::without_rule(Verdict::Pass, reason),
        _ => decision,
    }
}

/// What is decided about a packet that has no headers to judge it by.
#[inline(always)]
pub fn without_headers(policy: Policy, reason: Reason) -> Decision {
    let verdict = match reason.fault() {
        Some(Fault::Malformed) => policy.malformed(),
        Some(Fault::Unsupported) => policy.unsupported(),
        None => Verdict::Pass,
    };
    Decision::without_rule(verdict, reason)
}
