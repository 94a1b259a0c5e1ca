//! A policy's compiled tables, for tests to read as the program in the kernel does.

use portsteer::{
    compile::{CompileError, Interrupt, compile, verdict},
    oracle,
    policy::{Action, Policy},
};
use portsteer_common::{
    Decision, Image, Reason,
    counters::outcome_counter,
    node::{SEGMENT_WORDS, Segment},
};

/// The slot of the first target: its bits, and those of the second, stand on both sides of the
/// counter.
const FIRST_SLOT: u16 = 1_023;

/// What the tables say, as the oracle would put it. The rule with index `i` counts in counter
/// `1000 + i`.
///
/// # Panics
///
/// If it is not what [`compiled`] writes for this policy.
#[must_use]
pub fn decision(policy: &Policy, cell: Decision) -> oracle::Decision {
    let is = |reason| cell.counter() == outcome_counter(cell.verdict(), reason);
    let decision = if is(Reason::NoRule) {
        oracle::Decision::Default
    } else if is(Reason::FragmentWithoutPorts) {
        oracle::Decision::Fragments
    } else if is(Reason::NeighborDiscovery) {
        oracle::Decision::SparedDiscovery
    } else if is(Reason::PathMtu) {
        oracle::Decision::SparedPathMtu
    } else {
        oracle::Decision::Rule(cell.counter() as usize - 1_000)
    };
    if let Action::Steer(target) = oracle::action(policy, decision) {
        assert_eq!(cell.slot(), u32::from(FIRST_SLOT + target.0));
    }
    assert_eq!(cell.verdict(), verdict(oracle::action(policy, decision)));
    decision
}

/// Where the tables begin: not at the start.
const FIRST_SEGMENT: usize = 2;

/// A policy, compiled for these interfaces, for [`decision`] to read.
///
/// # Errors
///
/// The policy is beyond the budget.
pub fn compiled(
    policy: &Policy,
    slots: &[(u32, &str)],
) -> Result<(Box<Image>, Vec<Segment>), CompileError> {
    let decisions: Vec<Decision> = (1_000..)
        .zip(&policy.rules)
        .map(|(counter, rule)| match rule.action {
            Action::Steer(target) => Decision::steer(FIRST_SLOT + target.0, counter),
            _ => Decision::new(verdict(rule.action), counter),
        })
        .collect();
    // Whatever stood there before is gone.
    let mut image: Box<Image> = bytemuck::zeroed_box();
    bytemuck::bytes_of_mut(&mut *image).fill(0xa5);
    let compiled = compile(policy, slots, &decisions, &Interrupt::default())?;
    let mut segments = vec![[0xa5a5_a5a5; SEGMENT_WORDS]; FIRST_SEGMENT + compiled.segments()];
    compiled.write(&mut image, &mut segments[FIRST_SEGMENT..], FIRST_SEGMENT);
    Ok((image, segments))
}
