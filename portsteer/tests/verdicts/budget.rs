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
        let line = format!("{{ instructions = {instructions}, milliseconds = {milliseconds} }}");
        let _ = writeln!(std::io::stderr(), "budget.toml: \"{version}\" = {line}");

        let budgets: BTreeMap<String, Budget> = toml::from_str(BUDGETS).expect("budgets");
        let is_of = |name: &str| version == name || version.starts_with(&format!("{name}."));
        let Some((name, budget)) = budgets.iter().find(|(name, _)| is_of(name)) else {
            return skip(format!("no budget for Linux {version}: add the line above"));
        };
        let (least, most) = (budget.instructions / 2, budget.instructions * 3 / 2);
        assert!(
            (least..=most).contains(&instructions),
            "Linux {version} verifies {instructions} instructions, {name} in budget.toml says {}: \
             simplify, or put the line above there",
            budget.instructions
        );
    });
}
