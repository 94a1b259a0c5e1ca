//! Random policies and random frames: compiled tables, oracle and kernel agree, and parser and reading.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, Instant},
};

use portsteer::{
    compile::evaluate::Evaluator,
    explain::{Cause, Explainer, captured},
    oracle,
    policy::Policy,
};
use portsteer_common::Reason;
use portsteer_testkit::{
    agent::{is_slow, soak_minutes},
    boundaries::{Boundaries, frame as as_frame},
    fuzzing::packet::parsed,
    random::Random,
    reading,
    tables::{compiled, decision},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    bench::on_bench,
    frames::frame,
    random::{as_text, in_words, policy},
    table::POLICY,
};

/// How long to go on: for `cargo xtask test --soak MINUTES`, else not at all.
fn soak() -> Duration {
    Duration::from_secs_f64(60.0 * soak_minutes().unwrap_or(0.0))
}

/// Runs a property so many times, and then for as long as the soak lasts. It returns how many frames,
/// or pairs of a policy and a packet, it has compared, and all of them are told at the end.
fn run<S: Strategy>(
    what: &str,
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<usize, TestCaseError>,
) where
    S::Value: std::fmt::Debug,
{
    let end = Instant::now() + soak();
    let pairs = Cell::new(0);
    loop {
        let config = Config {
            cases,
            failure_persistence: None,
            max_shrink_iters: 4_000,
            ..Config::default()
        };
        let result = TestRunner::new(config).run(&strategy, |value| {
            pairs.set(pairs.get() + test(value)?);
            Ok(())
        });
        if let Err(proptest::test_runner::TestError::Fail(why, _)) = result {
            // What failed says itself what it was, as a policy file and a packet.
            panic!("{why}");
        }
        result.unwrap();
        if Instant::now() >= end {
            // Not with `eprintln!`, which the test harness keeps to itself.
            let count = pairs.get();
            let _ = writeln!(std::io::stderr(), "compared: {count} {what}");
            return;
        }
    }
}

/// A policy and a packet about which there is no agreement, to be pasted into a test.
fn disagreement(policy: &Policy, packet: &str, what: &str) -> TestCaseError {
    TestCaseError::fail(format!("{what}\npacket: {packet}\npolicy:\n{}", as_text(policy)))
}

/// Which interface has which slot.
const SLOTS: &[(u32, &str)] = &[(1, "else0"), (3, "dut")];

/// How many packets each random policy is asked about.
const PACKETS: usize = 2_500;

/// The compiled tables say what the oracle says: of a million packets at the boundaries of 400
/// policies.
#[test]
fn the_compiled_tables_agree_with_the_oracle() {
    // Nothing here depends on the kernel that an emulated guest has.
    let policies = if is_slow() { 20 } else { 400 };
    run(
        "pairs of a policy and a packet, tables and oracle",
        policies,
        (policy(12), any::<u64>()),
        |(policy, seed)| {
            let (image, segments) = compiled(&policy, SLOTS).unwrap();
            let evaluator = Evaluator { image: &image, segments: &segments };
            let boundaries = Boundaries::of(&policy);
            let mut random = Random::new(seed);
            for _ in 0..PACKETS {
                let packet = boundaries.packet(&mut random);
                let (judged, found) = (
                    oracle::judge(&policy, &packet),
                    decision(&policy, evaluator.decide(&packet, 3)),
                );
                if judged != found {
                    let what = format!("the tables say {found:?}, and the oracle {judged:?}");
                    return Err(disagreement(&policy, &in_words(&packet), &what));
                }
            }
            // The same policy gives the same bytes.
            let again = compiled(&policy, SLOTS).unwrap();
            prop_assert!(bytemuck::bytes_of(&*image) == bytemuck::bytes_of(&*again.0));
            prop_assert!(segments == again.1);
            Ok(PACKETS)
        },
    );
}

/// What `explain` says of the rules is what the oracle found: none that it passed over matches, and the
/// one that decides does.
#[test]
fn explanations_agree_with_the_oracle() {
    let mut runner =
        TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let frames = prop::collection::vec(frame(), 20);
    runner
        .run(&(policy(12), frames), |(policy, frames)| {
            let explainer = Explainer::new(&policy);
            for frame in frames {
                let Ok(headers) = captured::read(&frame, frame.len()) else { continue };
                let packet = captured::packet(&frame, headers);
                let (decision, explanation) =
                    (oracle::judge(&policy, &packet), explainer.explain(&packet));
                prop_assert_eq!(explanation.action, oracle::action(&policy, decision));
                let matches = |index: usize| explainer.misses(index, &packet).is_empty();
                let reached = match (explanation.cause, decision) {
                    (Cause::Rule(index), oracle::Decision::Rule(decided)) => {
                        prop_assert_eq!(index, decided);
                        prop_assert!(matches(index));
                        index
                    }
                    (Cause::Fragments(index), oracle::Decision::Fragments) => {
                        let missing = explainer.misses(index, &packet);
                        let is_lacking = |(field, _): &(&str, _)| {
                            ["src_port", "dst_port", "icmp_type"].contains(field)
                        };
                        prop_assert!(!missing.is_empty() && missing.iter().all(is_lacking));
                        index
                    }
                    (Cause::Rule(_) | Cause::Fragments(_), _) => {
                        return Err(TestCaseError::fail(format!("{explanation:?} {decision:?}")));
                    }
                    _ => policy.rules.len(),
                };
                prop_assert!((0..reached).all(|index| !matches(index)));
                prop_assert!(explanation.close.iter().all(|miss| miss.rule < reached));
            }
            Ok(())
        })
        .unwrap();
}

/// The kernel, the host and the reading agree on frames that nobody thought of.
#[test]
fn the_kernel_agrees_with_the_host_on_odd_frames() {
    on_bench(POLICY, |bench| {
        let seen = RefCell::new(BTreeMap::new());
        run("frames, kernel and reading", 1_500, frame(), |frame| {
            let outcome = bench.agree(&frame);
            *seen.borrow_mut().entry(format!("{:?}", outcome.cause)).or_insert(0) += 1;
            Ok(1)
        });
        // Frames that never get anywhere would prove nothing.
        assert!(seen.borrow().len() >= 16, "{seen:?}");
    });
}

/// The program's parser, on the host, agrees with the reading of the specification in everything that
/// rules can ask for, or in why they cannot.
#[test]
fn the_parser_agrees_with_the_reading_on_odd_frames() {
    let frames = if is_slow() { 10_000 } else { 100_000 };
    let seen = RefCell::new(BTreeMap::new());
    run("frames, parser and reading", frames, frame(), |frame| {
        let read = reading::read(&frame);
        if parsed(&frame) != read {
            let parsed = parsed(&frame);
            return Err(TestCaseError::fail(format!(
                "the parser says {parsed:?}, and the reading {read:?}\nframe: {}",
                hex(&frame)
            )));
        }
        *seen.borrow_mut().entry(read.err()).or_insert(0u32) += 1;
        Ok(1)
    });
    // All that a parser can say, except of frames in several buffers.
    let reasons = Reason::ALL.iter().filter(|reason| {
        **reason == Reason::NotIp
            || reason.fault().is_some() && **reason != Reason::BeyondFirstBuffer
    });
    for reason in reasons {
        assert!(seen.borrow().contains_key(&Some(*reason)), "{reason:?} never came: {seen:?}");
    }
}

/// As `portsteer explain --hex` takes it.
fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The kernel and the oracle agree on random policies: on packets at the boundaries of their rules, at
/// least 10,000 pairs, and on odd frames, read by the parser or by the specification.
#[test]
fn the_kernel_agrees_with_the_oracle_on_random_policies() {
    let policies = if is_slow() { 12 } else { 60 };
    const PACKETS: usize = 170;
    const ODD: usize = 20;
    on_bench(POLICY, |bench| {
        let bench = RefCell::new(bench);
        run(
            "pairs of a policy and a packet, kernel and oracle",
            policies,
            (policy(12), any::<u64>(), prop::collection::vec(frame(), ODD)),
            |(policy, seed, odd)| {
                let mut bench = bench.borrow_mut();
                bench.swap_to(policy.clone(), &as_text(&policy));
                let boundaries = Boundaries::of(&policy);
                let mut random = Random::new(seed);
                let right = (0..PACKETS).map(|_| {
                    let packet = boundaries.packet(&mut random);
                    (in_words(&packet), as_frame(&packet))
                });
                // A longer one would be lost where it is steered to an interface.
                let odd = odd.into_iter().filter(|odd| odd.len() <= 1_500);
                for (packet, frame) in right.chain(odd.map(|odd| (hex(&odd), odd))) {
                    let judged = bench.judge(&frame);
                    let (expected, read) = (bench.expect(&frame), bench.expect_read(&frame));
                    if judged != expected || judged != read {
                        let what = format!(
                            "kernel: {judged:?}\nparser and oracle: {expected:?}\nreading and oracle: {read:?}"
                        );
                        return Err(disagreement(&policy, &packet, &what));
                    }
                }
                Ok(PACKETS + ODD)
            },
        );
    });
}
