//! What became of a packet, in the terms in which judges are compared.

use portsteer::{
    oracle::{self, Decision},
    policy::{Action, Policy},
};
use portsteer_common::{Fault, Reason};

/// Why a packet got its verdict, and from which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The rule of this name.
    Rule(String),
    /// Anything else.
    Reason(Reason),
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub cause: Cause,
}

impl Outcome {
    /// Of a packet about which the rules have been asked.
    #[must_use]
    pub fn decided(policy: &Policy, decision: Decision) -> Self {
        let cause = match decision {
            Decision::Rule(index) => Cause::Rule(policy.label(&policy.rules[index])),
            Decision::Fragments => Cause::Reason(Reason::FragmentWithoutPorts),
            Decision::Default => Cause::Reason(Reason::NoRule),
            Decision::SparedDiscovery => Cause::Reason(Reason::NeighborDiscovery),
            Decision::SparedPathMtu => Cause::Reason(Reason::PathMtu),
        };
        Self { action: oracle::action(policy, decision), cause }
    }

    /// Of a frame that the rules cannot judge, for this reason.
    #[must_use]
    pub fn not_judged(policy: &Policy, reason: Reason) -> Self {
        let action = match reason.fault() {
            Some(Fault::Malformed) => policy.options.malformed,
            Some(Fault::Unsupported) => policy.options.unsupported,
            None => Action::Pass,
        };
        Self { action, cause: Cause::Reason(reason) }
    }
}
