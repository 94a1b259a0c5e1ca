//! Policy to image. A pure function: no system calls, and the same policy and counters give the
//! same bytes.
//!
//! Every cell of the tables gets the decision of the first rule that matches it. Rules are taken in
//! order and a cell, once taken, is skipped by all later rules ([`Row`] finds the next free cell),
//! so the work grows with cells plus rules, not with their product.

use portsteer_common::{
    Decision, Image, PortProtocol, Reason, Verdict,
    image::{MAX_RULES, column},
};

use crate::policy::{Action, Policy, PortRange, Rule};

/// Why a policy cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More rules than an image holds.
    #[error("the policy has {count} rules, and this portsteer takes at most {MAX_RULES}")]
    TooManyRules { count: usize },
}

/// Compiles a policy into an image, whatever that held before. Packets that rule `i` matches get
/// `decisions[i]`, of which only the counter and the target's slot are news: the verdict is the
/// rule's own.
///
/// # Errors
///
/// The policy is beyond the image's budget; the image is as it was.
///
/// # Panics
///
/// If there are not as many decisions as rules, or one has another verdict than its rule.
pub fn compile(
    policy: &Policy,
    decisions: &[Decision],
    image: &mut Image,
) -> Result<(), CompileError> {
    assert_eq!(policy.rules.len(), decisions.len(), "each rule has a decision");
    if policy.rules.len() > MAX_RULES {
        return Err(CompileError::TooManyRules { count: policy.rules.len() });
    }
    let rules: Vec<(&Rule, Decision)> = policy
        .rules
        .iter()
        .zip(decisions)
        .map(|(rule, &decision)| {
            assert_eq!(verdict(rule.action), decision.verdict(), "a rule's decision is its own");
            (rule, decision)
        })
        .collect();
    let default = Decision::without_rule(verdict(policy.default), Reason::NoRule);
    let fragments =
        Decision::without_rule(verdict(policy.options.fragments), Reason::FragmentWithoutPorts);

    for protocol in PortProtocol::ALL {
        fill_ports(&rules, default, protocol, &mut image.by_port[protocol as usize]);
    }
    for (number, cell) in (0..=u8::MAX).zip(&mut image.by_protocol) {
        *cell = without_ports(&rules, default, fragments, number);
    }
    image.malformed = verdict(policy.options.malformed) as u32;
    image.unsupported = verdict(policy.options.unsupported) as u32;
    Ok(())
}

/// The verdict that an action asks for.
#[must_use]
pub const fn verdict(action: Action) -> Verdict {
    match action {
        Action::Pass => Verdict::Pass,
        Action::Drop => Verdict::Drop,
        Action::Steer(_) => Verdict::Steer,
    }
}

/// What a rule says about one protocol.
fn matches_protocol(rule: &Rule, protocol: u8) -> bool {
    rule.protocols.is_empty() || rule.protocols.binary_search(&protocol).is_ok()
}

fn fill_ports(
    rules: &[(&Rule, Decision)],
    default: Decision,
    protocol: PortProtocol,
    cells: &mut [Decision; 65_536],
) {
    const ALL: PortRange = PortRange { first: 0, last: u16::MAX };
    cells.fill(default);
    let mut row = Row::new();
    for &(rule, decision) in rules {
        if !matches_protocol(rule, protocol.number()) {
            continue;
        }
        let ranges = if rule.dst_ports.is_empty() { &[ALL][..] } else { &rule.dst_ports };
        for &range in ranges {
            row.take(range, |port| {
                cells[usize::from(column(port.to_be_bytes()))] = decision;
            });
        }
        if row.is_full() {
            break;
        }
    }
}

/// The decision about packets of a protocol that have no ports: the first rule that matches
/// decides, unless one with ports comes first, which these packets do not have.
fn without_ports(
    rules: &[(&Rule, Decision)],
    default: Decision,
    fragments: Decision,
    protocol: u8,
) -> Decision {
    let has_ports = PortProtocol::from_number(protocol).is_some();
    for &(rule, decision) in rules {
        if !matches_protocol(rule, protocol) {
            continue;
        }
        if rule.dst_ports.is_empty() {
            return decision;
        }
        if has_ports {
            return fragments;
        }
    }
    default
}

/// Which ports of one protocol are still free: a union-find forest in which every port points to
/// the next free one at or after it.
struct Row {
    next: Vec<u32>,
}

impl Row {
    const END: u32 = 65_536;

    fn new() -> Self {
        Self { next: (0..=Self::END).collect() }
    }

    /// The first free port at or after `port`, or [`Row::END`].
    fn next_free(&mut self, port: u32) -> u32 {
        let mut free = port;
        while self.next[free as usize] != free {
            free = self.next[free as usize];
        }
        let mut at = port;
        while at != free {
            at = std::mem::replace(&mut self.next[at as usize], free);
        }
        free
    }

    /// Takes all free ports of a range.
    fn take(&mut self, range: PortRange, mut taken: impl FnMut(u16)) {
        let mut free = self.next_free(u32::from(range.first));
        while free <= u32::from(range.last) {
            // Below END, so a port.
            taken(free as u16);
            self.next[free as usize] = free + 1;
            free = self.next_free(free + 1);
        }
    }

    fn is_full(&mut self) -> bool {
        self.next_free(0) == Self::END
    }
}
