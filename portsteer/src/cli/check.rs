//! `portsteer check`: whether a policy can be used, what is hardly meant, and what it takes. The policy is
//! compiled too, so that one that is beyond the budget is refused here and not by the agent.

use std::{fmt::Write as _, path::PathBuf};

use portsteer_common::{Decision, INTERFACE_SLOTS, image::feature, node::Segment};

use super::{
    BAD_INPUT, NEGATIVE, complain, listings, print, show_diagnostics, show_error,
    table::{Align, table},
};
use crate::{
    agent,
    compile::{CompileError, Compiled, Interrupt, compile, verdict},
    policy::{Action, Policy, Rule, Set},
};

/// What to check.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The policy file.
    file: PathBuf,
    /// Let warnings count as a negative answer.
    #[arg(long)]
    strict: bool,
    /// Say what the policy takes in the kernel, and what of.
    #[arg(long, short)]
    verbose: bool,
}

pub(super) fn run(options: &Options) -> u8 {
    let file = options.file.display();
    let loaded = match agent::load_policy(&options.file) {
        Ok(loaded) => loaded,
        Err(error) => {
            show_error(&error);
            return BAD_INPUT;
        }
    };
    show_diagnostics(loaded.path(), loaded.text(), &loaded.warnings);
    let policy = &loaded.policy;
    let compiled = match compile_offline(policy) {
        Ok(compiled) => compiled,
        Err(error) => {
            complain(&format!("{file}: {error}"), None);
            return BAD_INPUT;
        }
    };
    let warnings = loaded.warnings.len();
    let mut text = format!(
        "{file}: {}, default {}, {}\n",
        listings::count(policy.rules.len(), "rule"),
        policy.default.name(),
        if warnings == 0 { "fine".to_owned() } else { listings::count(warnings, "warning") },
    );
    if options.verbose {
        text.push_str(&takes(policy, &compiled));
    }
    print(&text, if options.strict && warnings > 0 { NEGATIVE } else { 0 })
}

/// Compiles a policy as an agent would that starts with nothing, on a host of which nothing is known but
/// the interfaces that the policy names: those that globs match are not there.
fn compile_offline(policy: &Policy) -> Result<Compiled, CompileError> {
    let decisions: Vec<Decision> = (0..)
        .zip(&policy.rules)
        .map(|(counter, rule)| match rule.action {
            Action::Steer(target) => Decision::steer(target.0, counter),
            action => Decision::new(verdict(action), counter),
        })
        .collect();
    compile(policy, &interfaces(policy), &decisions, &Interrupt::default())
}

/// The interfaces that the policy or one of its rules names, each in a slot.
fn interfaces(policy: &Policy) -> Vec<(u32, &str)> {
    let mut names: Vec<&str> = Vec::new();
    let patterns = policy.rules.iter().flat_map(|rule| &rule.interfaces);
    for pattern in policy.interfaces.iter().chain(patterns).filter(|pattern| !pattern.is_glob) {
        if names.len() < INTERFACE_SLOTS as usize && !names.contains(&&*pattern.text) {
            names.push(&pattern.text);
        }
    }
    (0..).zip(names).collect()
}

/// What a policy takes in the kernel, and what of.
fn takes(policy: &Policy, compiled: &Compiled) -> String {
    let tables = compiled.segments() * size_of::<Segment>();
    let mut text = format!(
        "\nmemory in the kernel: {}, tables {} of it\n",
        size(compiled.memory()),
        size(tables)
    );
    let rows = features(compiled.features());
    if rows.is_empty() {
        text.push_str("features: none, protocol and destination port say all\n");
    } else {
        let columns = [("FEATURE", Align::Left), ("IN USE, BECAUSE", Align::Left)];
        let _ = write!(text, "\n{}", table(&columns, &rows));
    }
    let columns = [("ADDRESSES", Align::Left), ("RULES", Align::Right)];
    let _ = write!(text, "\n{}", table(&columns, &rules_by_addresses(policy)));
    let columns = [("SET", Align::Left), ("PREFIXES", Align::Right), ("FROM", Align::Left)];
    let row = |set: &Set| {
        let from = set.file.as_deref().unwrap_or("the policy");
        vec![set.name.clone(), set.prefixes.len().to_string(), from.to_owned()]
    };
    let rows: Vec<Vec<String>> = policy.sets.iter().map(row).collect();
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(&columns, &rows));
    }
    text
}

/// The features in use, each with its name and why it is.
fn features(features: u32) -> Vec<Vec<String>> {
    let in_use = feature::NAMES.iter().filter(|(bit, _)| features & bit != 0);
    in_use.map(|(bit, name)| vec![(*name).to_owned(), because(*bit).to_owned()]).collect()
}

/// Why a feature is in use.
const fn because(bit: u32) -> &'static str {
    match bit {
        feature::RULES => "rules ask for more than protocol and destination port",
        feature::SRC => "rules ask for source addresses",
        feature::DST => "rules ask for destination addresses",
        feature::BOTH => "rules ask for source and destination addresses at once",
        feature::EXTRAS => "rules ask for VLANs, interfaces or source ports",
        feature::LARGE => "the tables are larger than 4 MiB",
        _ => "",
    }
}

/// How many rules ask for which addresses.
fn rules_by_addresses(policy: &Policy) -> Vec<Vec<String>> {
    let row = |(name, src, dst): (&str, bool, bool)| {
        let has = |rule: &&Rule| rule.src.is_any() != src && rule.dst.is_any() != dst;
        vec![name.to_owned(), policy.rules.iter().filter(has).count().to_string()]
    };
    [
        ("none", false, false),
        ("src", true, false),
        ("dst", false, true),
        ("src and dst", true, true),
    ]
    .map(row)
    .to_vec()
}

/// A number of bytes in KiB or MiB.
fn size(bytes: usize) -> String {
    const MIB: f64 = 1_048_576.0;
    let bytes = bytes as f64;
    if bytes < MIB {
        format!("{:.0} KiB", bytes / 1024.0)
    } else {
        format!("{:.1} MiB", bytes / MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{file::parse, services::Services};

    fn taken(rules: &str) -> String {
        let text = format!("version = 1\ninterfaces = [\"eth0\", \"wan*\"]\n{rules}");
        let policy = parse(&text, &Services::embedded()).expect("a policy").policy;
        takes(&policy, &compile_offline(&policy).expect("within the budget"))
    }

    #[test]
    fn a_policy_of_ports_takes_no_tables() {
        assert_eq!(
            taken("[[rules]]\ndst_port = 80\naction = \"drop\"\n"),
            "\nmemory in the kernel: 1.3 MiB, tables 0 KiB of it\n\
             features: none, protocol and destination port say all\n\n\
             ADDRESSES    RULES\nnone             1\nsrc              0\ndst              0\n\
             src and dst      0\n"
        );
    }

    #[test]
    fn what_a_policy_takes_is_told() {
        let told = taken(
            "[sets.a]\naddresses = [\"10.0.0.0/8\", \"fd00::/8\"]\n\
             [targets.t]\ncpus = 0\n\
             [[rules]]\nsrc = \"@a\"\naction = { steer = \"t\" }\n\
             [[rules]]\nsrc = \"10.0.0.1\"\ndst = \"10.0.0.2\"\naction = \"drop\"\n\
             [[rules]]\ndst = \"10.0.0.2\"\ninterface = \"wan7\"\naction = \"drop\"\n\
             [[rules]]\ndst = \"!10.0.0.2\"\naction = \"drop\"\n",
        );
        let (_, told) = told.split_once("of it\n").expect("memory");
        assert_eq!(
            told,
            "
FEATURE  IN USE, BECAUSE
rules    rules ask for more than protocol and destination port
src      rules ask for source addresses
dst      rules ask for destination addresses
src-dst  rules ask for source and destination addresses at once
extras   rules ask for VLANs, interfaces or source ports

ADDRESSES    RULES
none             0
src              1
dst              2
src and dst      1

SET  PREFIXES  FROM
a           2  the policy
"
        );
    }

    #[test]
    fn every_feature_has_its_reason() {
        for (bit, name) in feature::NAMES {
            assert_ne!(because(bit), "", "{name}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size(0), "0 KiB");
        assert_eq!(size(65_536), "64 KiB");
        assert_eq!(size(1_048_575), "1024 KiB");
        assert_eq!(size(1_572_864), "1.5 MiB");
    }
}
