//! Random policies and random frames: compiled tables, oracle and kernel agree.

use std::cell::RefCell;

use portsteer::{
    compile::{compile, verdict},
    explain::{Cause, Explainer, captured},
    oracle::{self, Packet},
    policy::{
        Action, InterfacePattern, Mode, Options, Policy, PortRange, Rule, Target, TargetId, file,
        services::Services,
    },
};
use portsteer_common::{
    Decision, Image, PortProtocol, Reason, counters::outcome_counter, image::column,
};
use portsteer_testkit::packet::*;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    bench::{TARGET_NAMES, TARGETS, on_bench},
    table::{CANARY, POLICY},
};

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Pass), Just(Action::Drop)]
}

/// What a rule may do; the targets are those of [`TARGETS`].
fn rule_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => action(),
        1 => (0..TARGET_NAMES.len() as u16).prop_map(|index| Action::Steer(TargetId(index))),
    ]
}

/// Ports that meet at their boundaries more often than chance would have it.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u16::MAX),
        Just(u16::MAX - 1),
        20u16..30,
        255u16..258,
        any::<u16>()
    ]
}

fn ranges() -> impl Strategy<Value = Vec<PortRange>> {
    prop::collection::vec((port(), port()), 0..4).prop_map(|pairs| {
        let mut ranges: Vec<PortRange> =
            pairs.into_iter().map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) }).collect();
        ranges.sort();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        merged
    })
}

const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

fn rule() -> impl Strategy<Value = Rule> {
    let any_protocol = prop_oneof![
        prop::sample::select(&WITH_PORTS[..]),
        prop::sample::select(&[0u8, 1, 47, 58, 255][..]),
    ];
    let protocols = prop::collection::vec(any_protocol, 0..4);
    (protocols, ranges(), rule_action()).prop_map(|(mut protocols, dst_ports, action)| {
        if !dst_ports.is_empty() {
            protocols.retain(|protocol| WITH_PORTS.contains(protocol));
        }
        protocols.sort_unstable();
        protocols.dedup();
        Rule { protocols, dst_ports, ..Rule::any(action) }
    })
}

/// [`TARGETS`], as a policy has them.
fn targets() -> Vec<Target> {
    let text = format!("version = 1\ninterfaces = [\"dut\"]\n{TARGETS}");
    file::parse(&text, &Services::embedded()).expect("a policy").policy.targets
}

fn policy() -> impl Strategy<Value = Policy> {
    let options = (action(), action(), action()).prop_map(|(fragments, malformed, unsupported)| {
        Options { fragments, malformed, unsupported }
    });
    (prop::collection::vec(rule(), 0..12), action(), options).prop_map(
        |(rules, default, options)| Policy {
            interfaces: vec![InterfacePattern {
                text: "dut".to_owned(),
                is_glob: false,
                span: 0..0,
            }],
            mode: Mode::Auto,
            default,
            options,
            targets: targets(),
            sets: Vec::new(),
            rules,
        },
    )
}

/// The slot of the first target: its bits, and those of the second, stand on both sides of the
/// counter.
const FIRST_SLOT: u16 = 1_023;

/// What the image says, as the oracle would put it. The rule with index `i` counts in counter
/// `1000 + i`.
fn decision(policy: &Policy, cell: Decision) -> oracle::Decision {
    let decision = match cell.counter() {
        counter if counter == outcome_counter(cell.verdict(), Reason::NoRule) => {
            oracle::Decision::Default
        }
        counter if counter == outcome_counter(cell.verdict(), Reason::FragmentWithoutPorts) => {
            oracle::Decision::Fragments
        }
        counter => oracle::Decision::Rule(counter as usize - 1_000),
    };
    if let Action::Steer(target) = oracle::action(policy, decision) {
        assert_eq!(cell.slot(), u32::from(FIRST_SLOT + target.0));
    }
    assert_eq!(cell.verdict(), verdict(oracle::action(policy, decision)));
    decision
}

fn compiled(policy: &Policy) -> Box<Image> {
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
    compile(policy, &decisions, &mut image).unwrap();
    image
}

/// Every cell of the tables is what the oracle says, for all ports and all protocols.
#[test]
fn the_compiled_tables_agree_with_the_oracle() {
    let mut runner =
        TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    runner
        .run(&policy(), |policy| {
            let image = compiled(&policy);
            let bare = Packet::new(0);
            for protocol in PortProtocol::ALL {
                for port in 0..=u16::MAX {
                    let packet =
                        Packet { protocol: protocol.number(), dst_port: Some(port), ..bare };
                    let cell =
                        image.by_port[protocol as usize][usize::from(column(port.to_be_bytes()))];
                    prop_assert_eq!(decision(&policy, cell), oracle::judge(&policy, &packet));
                }
            }
            for protocol in 0..=u8::MAX {
                let later_fragment = WITH_PORTS.contains(&protocol);
                let packet = Packet { protocol, later_fragment, ..bare };
                let cell = image.by_protocol[usize::from(protocol)];
                let judged = oracle::judge(&policy, &packet);
                prop_assert_eq!(decision(&policy, cell), judged, "protocol {}", protocol);
            }
            // The same policy gives the same bytes.
            prop_assert!(bytemuck::bytes_of(&*image) == bytemuck::bytes_of(&*compiled(&policy)));
            Ok(())
        })
        .unwrap();
}

/// A frame that is right but for a few bytes.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let base = (0usize..12, port(), 0usize..40).prop_map(|(kind, port, len)| {
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
        .run(&(policy(), frames), |(policy, frames)| {
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
                        prop_assert_eq!(missing.len(), 1);
                        prop_assert_eq!(missing[0].0, "dst_port");
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

/// The kernel and the oracle agree on random policies, at the boundaries of their rules.
#[test]
fn the_kernel_agrees_with_the_oracle_on_random_policies() {
    on_bench(POLICY, |bench| {
        let bench = RefCell::new(bench);
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&policy(), |policy| {
                let mut bench = bench.borrow_mut();
                bench.swap(&as_text(&policy));
                let mut ports = vec![0, u16::MAX];
                for range in policy.rules.iter().flat_map(|rule| &rule.dst_ports) {
                    ports.extend([
                        range.first.saturating_sub(1),
                        range.first,
                        range.last,
                        range.last.saturating_add(1),
                    ]);
                }
                ports.sort_unstable();
                ports.dedup();
                for port in ports {
                    bench.agree(&ethernet(IPV4, ipv4(TCP, tcp(7, port, []))));
                    bench.agree(&ethernet(IPV6, ipv6(UDP, udp(7, port, []))));
                    bench.agree(&ethernet(IPV4, ipv4(SCTP, sctp(7, port, []))));
                }
                let later = Ipv4 { fragment_offset: 64, ..Ipv4::default() };
                for protocol in WITH_PORTS.into_iter().chain([GRE, 255]) {
                    bench.agree(&ethernet(IPV4, later.packet(protocol, [CANARY; 8])));
                }
                bench.agree(&ethernet(IPV6, ipv6(ICMPV6, icmp(136, 0, [0; 16]))));
                bench.agree(&ethernet(IPV4, ipv4(ICMP, icmp(3, 4, [0; 16]))));
                Ok(())
            })
            .unwrap();
    });
}

/// The policy file that means this policy. Rules are named by their place, so that each counts
/// for itself.
fn as_text(policy: &Policy) -> String {
    use std::fmt::Write;
    let options = policy.options;
    let mut text = format!(
        "version = 1\ninterfaces = [\"dut\"]\ndefault = \"{}\"\n[options]\nfragments = \"{}\"\n\
         malformed = \"{}\"\nunsupported = \"{}\"\n",
        policy.default.name(),
        options.fragments.name(),
        options.malformed.name(),
        options.unsupported.name()
    );
    text.push_str(TARGETS);
    for (index, rule) in policy.rules.iter().enumerate() {
        let action = match rule.action {
            Action::Steer(id) => format!("{{ steer = \"{}\" }}", TARGET_NAMES[usize::from(id.0)]),
            plain => format!("\"{}\"", plain.name()),
        };
        write!(text, "[[rules]]\nname = \"rule-{index}\"\naction = {action}\n").unwrap();
        if !rule.protocols.is_empty() {
            writeln!(text, "protocol = {:?}", rule.protocols).unwrap();
        }
        if !rule.dst_ports.is_empty() {
            let ranges: Vec<String> = rule
                .dst_ports
                .iter()
                .map(|range| format!("\"{}-{}\"", range.first, range.last))
                .collect();
            writeln!(text, "dst_port = [{}]", ranges.join(", ")).unwrap();
        }
    }
    text
}
