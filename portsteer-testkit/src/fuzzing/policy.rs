//! Any bytes as a policy file: an error or a policy.

use std::sync::OnceLock;

use portsteer::{
    compile::evaluate::Evaluator,
    oracle,
    policy::{
        NumberRange, Policy,
        diagnostic::{Diagnostic, Source, render},
        edit::{Edit, Edited, RuleRef, edit_text},
        file,
        lint::{HostFacts, lint},
        services::Services,
    },
};

use crate::{
    boundaries::Boundaries,
    random::Random,
    tables::{compiled, decision},
};

/// How many packets every policy is asked about.
const PACKETS: usize = 64;

/// The interfaces that policies are compiled for, with their slots.
const SLOTS: &[(u32, &str)] = &[(1, "eth1"), (3, "eth0")];

/// What is beyond the first byte 0 is what every file holds that a set names: no policy has that byte.
///
/// # Panics
///
/// If the parser or the compiler is wrong: an error without a word, a place in the text that is not there, tables
/// that judge otherwise than the oracle, an edit that breaks a policy.
pub fn policy(input: &[u8]) {
    let (text, file) = match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[][..]),
    };
    // The agent and the commands refuse anything else before they parse it.
    let Ok(text) = str::from_utf8(text) else { return };
    let read = |text: &str| file::parse_with(text, services(), &mut |_: &str| Ok(file.to_vec()));
    match read(text) {
        Err(errors) => {
            assert!(!errors.is_empty(), "it is refused without a word");
            see(text, &errors);
        }
        Ok(parsed) => {
            see(text, &parsed.warnings);
            let facts = HostFacts {
                ephemeral_ports: Some(NumberRange { first: 32_768, last: 60_999 }),
                forwards: Some(true),
            };
            see(text, &lint(&parsed.policy, &facts));
            compare(&parsed.policy);
            without_first_rule(text, &parsed.policy, |text| read(text).map(|parsed| parsed.policy));
        }
    }
}

fn services() -> &'static Services {
    static SERVICES: OnceLock<Services> = OnceLock::new();
    SERVICES.get_or_init(Services::embedded)
}

/// Has diagnostics shown to people.
fn see(text: &str, diagnostics: &[Diagnostic]) {
    let source = Source { name: "policy.toml".to_owned(), text: text.to_owned() };
    let shown = render(&source, diagnostics, false);
    assert_eq!(shown.is_empty(), diagnostics.is_empty());
}

/// The compiled tables and the oracle are of one opinion.
fn compare(policy: &Policy) {
    let (image, segments) = match compiled(policy, SLOTS) {
        Ok(compiled) => compiled,
        // Beyond the budget.
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let evaluator = Evaluator { image: &image, segments: &segments };
    let boundaries = Boundaries::of(policy);
    let mut random = Random::new(policy.rules.len() as u64);
    for _ in 0..PACKETS {
        let mut packet = boundaries.packet(&mut random);
        packet.interface = Some("eth0");
        let found = decision(policy, evaluator.decide(&packet, 3));
        assert_eq!(found, oracle::judge(policy, &packet), "tables (left), oracle: {packet:?}");
    }
}

/// A policy without its first rule is a policy, with the other rules.
fn without_first_rule<E: std::fmt::Debug>(
    text: &str,
    policy: &Policy,
    read: impl Fn(&str) -> Result<Policy, E>,
) {
    if policy.rules.is_empty() {
        return;
    }
    let edit = Edit::RemoveRule { rule: RuleRef::Number(1) };
    let edited = match edit_text(text, &edit) {
        Ok(Edited::Text(text)) => text,
        other => panic!("{other:?}"),
    };
    let left = read(&edited).unwrap_or_else(|errors| panic!("{errors:?}\n{edited}"));
    let labels = |policy: &Policy, skipped: usize| -> Vec<String> {
        policy.rules.iter().skip(skipped).map(|rule| policy.label(rule)).collect()
    };
    assert_eq!(labels(&left, 0), labels(policy, 1), "{edited}");
}
