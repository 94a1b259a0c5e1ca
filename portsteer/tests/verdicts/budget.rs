//! What the verifier makes of the program: a change that doubles its work shows here, kernel by kernel.

use std::{collections::BTreeMap, fs, io::Write as _, time::Instant};

use portsteer_testkit::sandbox::skip;
use serde::Deserialize;

use crate::{bench::on_bench, table::POLICY};

const BUDGETS: &str = include_str!("budget.toml");

/// What one kernel's verifier made of the program when somebody looked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// How many instructions it followed.
    instructions: u32,
    /// The same for a policy that asks for everything that a rule can ask for.
    rules: u32,
    /// From nothing to a policy in force. For the reader.
    #[serde(rename = "milliseconds")]
    _milliseconds: u32,
}

#[test]
fn the_verifier_has_no_more_work_than_it_had() {
    let started = Instant::now();
    on_bench(POLICY, |bench| {
        let milliseconds = started.elapsed().as_millis();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
        let version = release.split(['-', '+']).next().expect("a version").trim();
        let instructions = bench.verified_instructions();
        bench.swap(EVERYTHING);
        let rules = bench.verified_instructions();
        let line = format!(
            "{{ instructions = {instructions}, rules = {rules}, milliseconds = {milliseconds} }}"
        );
        let _ = writeln!(std::io::stderr(), "budget.toml: \"{version}\" = {line}");

        let budgets: BTreeMap<String, Budget> = toml::from_str(BUDGETS).expect("budgets");
        let is_of = |name: &str| version == name || version.starts_with(&format!("{name}."));
        let Some((name, budget)) = budgets.iter().find(|(name, _)| is_of(name)) else {
            return skip(format!("no budget for Linux {version}: add the line above"));
        };
        for (found, known) in [(instructions, budget.instructions), (rules, budget.rules)] {
            assert!(
                (known / 2..=known * 3 / 2).contains(&found),
                "Linux {version} verifies {found} instructions, {name} in budget.toml says {known}: \
                 simplify, or put the line above there"
            );
        }
    });
}

/// A policy for which the program has to be able to do everything.
const EVERYTHING: &str = "version = 1\ninterfaces = [\"dut\"]\n\
    [[rules]]\nname = \"src\"\nsrc = \"192.0.2.0/24\"\naction = \"drop\"\n\
    [[rules]]\nname = \"dst\"\ndst = \"2001:db8::/32\"\naction = \"drop\"\n\
    [[rules]]\nname = \"both\"\nsrc = \"10.0.0.0/8\"\ndst = \"192.0.2.0/24\"\naction = \"drop\"\n\
    [[rules]]\nname = \"extras\"\nvlan = 12\nsrc_port = 7\naction = \"drop\"\n";
