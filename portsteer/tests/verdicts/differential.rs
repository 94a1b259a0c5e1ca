//! Random policies and random frames: compiled tables, oracle and kernel agree.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    time::{Duration, Instant},
};

use portsteer::{
    compile::{Interrupt, compile, evaluate::Evaluator, verdict},
    explain::{Cause, Explainer, captured},
    oracle::{self, Packet},
    policy::{Action, Policy},
};
use portsteer_common::{
    Decision, Image, Reason,
    counters::outcome_counter,
    node::{SEGMENT_WORDS, Segment},
};
use portsteer_testkit::{agent::is_slow, packet::*};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    bench::on_bench,
    random::{Boundaries, Numbers, as_text, frame as as_frame, in_words, number, policy},
    table::{CANARY, POLICY},
};

/// How long to go on: for `cargo xtask test --soak MINUTES`, else not at all.
fn soak() -> Duration {
    let minutes = std::env::var("PORTSTEER_SOAK_MINUTES").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(60.0 * minutes.unwrap_or(0.0))
}

/// Runs a property so many times, and then for as long as the soak lasts. It returns how many pairs of a
/// policy and a packet it has compared, and all of them are told at the end.
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
            let _ = writeln!(
                std::io::stderr(),
                "compared: {count} pairs of a policy and a packet, {what}"
            );
            return;
        }
    }
}

/// A policy and a packet about which there is no agreement, to be pasted into a test.
fn disagreement(policy: &Policy, packet: &Packet<'_>, what: &str) -> TestCaseError {
    TestCaseError::fail(format!(
        "{what}\npacket: {}\npolicy:\n{}",
        in_words(packet),
        as_text(policy)
    ))
}

/// The slot of the first target: its bits, and those of the second, stand on both sides of the
/// counter.
const FIRST_SLOT: u16 = 1_023;

/// What the tables say, as the oracle would put it. The rule with index `i` counts in counter
/// `1000 + i`.
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

/// Which interface has which slot.
const SLOTS: &[(u32, &str)] = &[(1, "else0"), (3, "dut")];

/// A policy, compiled for these interfaces, for [`decision`] to read.
pub fn compiled(policy: &Policy, slots: &[(u32, &str)]) -> (Box<Image>, Vec<Segment>) {
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
    let compiled = compile(policy, slots, &decisions, &Interrupt::default()).unwrap();
    let mut segments = vec![[0xa5a5_a5a5; SEGMENT_WORDS]; FIRST_SEGMENT + compiled.segments()];
    compiled.write(&mut image, &mut segments[FIRST_SEGMENT..], FIRST_SEGMENT);
    (image, segments)
}

/// How many packets each random policy is asked about.
const PACKETS: usize = 2_500;

/// The compiled tables say what the oracle says: of a million packets at the boundaries of 400
/// policies.
#[test]
fn the_compiled_tables_agree_with_the_oracle() {
    // Nothing here depends on the kernel that an emulated guest has.
    let policies = if is_slow() { 20 } else { 400 };
    run("tables and oracle", policies, (policy(12), any::<u64>()), |(policy, seed)| {
        let (image, segments) = compiled(&policy, SLOTS);
        let evaluator = Evaluator { image: &image, segments: &segments };
        let boundaries = Boundaries::of(&policy);
        let mut numbers = Numbers(seed);
        for _ in 0..PACKETS {
            let packet = boundaries.packet(&mut numbers);
            let (judged, found) =
                (oracle::judge(&policy, &packet), decision(&policy, evaluator.decide(&packet, 3)));
            if judged != found {
                let what = format!("the tables say {found:?}, and the oracle {judged:?}");
                return Err(disagreement(&policy, &packet, &what));
            }
        }
        // The same policy gives the same bytes.
        let again = compiled(&policy, SLOTS);
        prop_assert!(bytemuck::bytes_of(&*image) == bytemuck::bytes_of(&*again.0));
        prop_assert!(segments == again.1);
        Ok(PACKETS)
    });
}

/// A frame that is right but for a few bytes.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let base = (0usize..12, number(), 0usize..40).prop_map(|(kind, port, len)| {
        let fill = vec![CANARY; len];
        match kind {
            0 => ethernet(IPV4, ipv4(UDP, udp(7, port, fill))),
            1 => ethernet(IPV4, ipv4(TCP, tcp(7, port, fill))),
            2 => ethernet(IPV6, ipv6(UDP, udp(7, port, fill))),
            3 => ethernet(IPV6, ipv6(TCP, tcp(7, port, fill))),
            4 => ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 1, udp(7, port, fill)))),
            5 => ethernet(IPV6, ipv6(FRAGMENT, fragment(TCP, 0, false, tcp(7, port, fill)))),
            6 => ethernet(VLAN, vlan(12, IPV4, ipv4(SCTP, sctp(7, port, fill)))),
            7 => ethernet(IPV4, ipv4(DCCP, dccp(7, port, fill))),
            8 => ethernet(IPV4, ipv4(UDPLITE, udplite(7, port, fill))),
            9 => ethernet(IPV4, ipv4(ICMP, icmp(8, 0, fill))),
            10 => ethernet(IPV6, ipv6(ICMPV6, icmp(135, 0, fill))),
            _ => ethernet(
                IPV6,
                ipv6(DESTINATION_OPTIONS, options(AH, 1, authentication(UDP, udp(7, port, fill)))),
            ),
        }
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 0..4);
    (base, changes, prop::option::of(any::<prop::sample::Index>())).prop_map(
        |(mut frame, changes, cut)| {
            for (at, value, how) in changes {
                // Nearly all that matters stands in the first 80 bytes.
                let at = at.index(frame.len().min(80));
                frame[at] = match how {
                    0 => value,
                    1 => frame[at].wrapping_add(1),
                    _ => frame[at] ^ (1 << (value % 8)),
                };
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len() + 1).max(14));
            }
            frame
        },
    )
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

/// The kernel and the host agree on frames that nobody thought of.
#[test]
fn the_kernel_agrees_with_the_host_on_mutated_frames() {
    on_bench(POLICY, |bench| {
        let seen = RefCell::new(std::collections::BTreeMap::new());
        let config = Config { cases: 3_000, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&frame(), |frame| {
                let outcome = bench.agree(&frame);
                *seen.borrow_mut().entry(format!("{:?}", outcome.cause)).or_insert(0) += 1;
                Ok(())
            })
            .unwrap();
        // Mutations that never get anywhere would prove nothing.
        assert!(seen.borrow().len() >= 8, "{seen:?}");
    });
}

/// The kernel and the oracle agree on random policies: on packets at the boundaries of their rules, at
/// least 10,000 pairs.
#[test]
fn the_kernel_agrees_with_the_oracle_on_random_policies() {
    let policies = if is_slow() { 12 } else { 60 };
    const PACKETS: usize = 170;
    on_bench(POLICY, |bench| {
        let bench = RefCell::new(bench);
        run("kernel and oracle", policies, (policy(12), any::<u64>()), |(policy, seed)| {
            let mut bench = bench.borrow_mut();
            bench.swap_to(policy.clone(), &as_text(&policy));
            let boundaries = Boundaries::of(&policy);
            let mut numbers = Numbers(seed);
            for _ in 0..PACKETS {
                let packet = boundaries.packet(&mut numbers);
                let frame = as_frame(&packet);
                let (judged, expected) = (bench.judge(&frame), bench.expect(&frame));
                if judged != expected {
                    let what = format!("the kernel says {judged:?}, and the oracle {expected:?}");
                    return Err(disagreement(&policy, &packet, &what));
                }
            }
            Ok(PACKETS)
        });
    });
}
