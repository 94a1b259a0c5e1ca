//! What it takes until an edit of a large set can be put in force, beside what it takes to compile the
//! same policy from the beginning, in the same rounds.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use portsteer::{
    compile::{self, Compiler, Interrupt, verdict},
    policy::{AddressItem, Policy, Rule, SetId, set_edit::SetEdit},
};
use portsteer_common::{
    Decision, Image,
    node::{SEGMENT_WORDS, Segment},
};
use serde_json::json;

use crate::{
    Measured, Report, Result, Rounds,
    family::Family,
    policies::{Blocklist, Mixed},
    statistics::{median, spread},
};

/// The interface in the policies; nothing is attached.
const INTERFACE: &str = "rx0";
const PREFIXES: usize = 1_000_000;
const CHANGED: usize = 1_000;

pub struct Edits {
    subjects: Vec<Subject>,
}

/// A policy with a set that is edited all the time.
struct Subject {
    name: &'static str,
    family: Family,
    /// How many mixed rules there are besides.
    rules: usize,
    /// From the first batch on.
    state: Option<State>,
    /// Milliseconds, one value per round.
    add: Times,
    remove: Times,
}

struct State {
    policy: Policy,
    set: SetId,
    /// To be added next.
    others: Vec<Vec<ipnet::IpNet>>,
    compiler: Compiler,
    image: Box<Image>,
    segments: Vec<Segment>,
}

#[derive(Default)]
struct Times {
    edit: Vec<f64>,
    compile: Vec<f64>,
    write: Vec<f64>,
    /// All of these.
    sum: Vec<f64>,
    /// Compiling from the beginning.
    anew: Vec<f64>,
}

impl Edits {
    pub fn new() -> Self {
        let subject = |name, family, rules| Subject {
            name,
            family,
            rules,
            state: None,
            add: Times::default(),
            remove: Times::default(),
        };
        let subjects = vec![
            subject("IPv4", Family::V4, 0),
            subject("IPv6", Family::V6, 0),
            subject("IPv4, and 5,000 mixed rules", Family::V4, 5_000),
            subject("IPv6, and 5,000 mixed rules", Family::V6, 5_000),
        ];
        Self { subjects }
    }
}

impl Measured for Edits {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn rows(&self) -> Vec<String> {
        self.subjects.iter().map(|subject| subject.name.to_owned()).collect()
    }

    fn keep(&mut self, wanted: &dyn Fn(&str) -> bool) {
        self.subjects.retain(|subject| wanted(subject.name));
    }

    fn batch(&mut self, _number: usize, rounds: &Rounds) -> Result<()> {
        for subject in &mut self.subjects {
            let mut state = match subject.state.take() {
                Some(state) => state,
                None => State::new(subject.family, subject.rules)?,
            };
            for _ in 0..rounds.test_runs {
                let add = state.others.pop().ok_or("all prefixes are used up")?;
                state.measure(&SetEdit { add, ..SetEdit::default() }, &mut subject.add)?;
                // From everywhere in the set.
                let prefixes = &state.policy.set(state.set).prefixes;
                let remove = prefixes.iter().step_by(prefixes.len() / CHANGED).take(CHANGED);
                let remove = remove.copied().collect();
                state.measure(&SetEdit { remove, ..SetEdit::default() }, &mut subject.remove)?;
            }
            subject.state = Some(state);
        }
        Ok(())
    }

    fn reports(&self) -> Result<Vec<Report>> {
        if self.subjects.iter().all(|subject| subject.add.sum.is_empty()) {
            return Ok(Vec::new());
        }
        let mut text = format!(
            "until an edit of a set can be put in force, ms\n  {:<62} {:>5} {:>8} {:>6} {:>6} {:>13} \
             {:>6} {:>8}\n",
            "", "edit", "compile", "write", "sum", "sum, spread", "anew", "sum/anew",
        );
        let mut edits = Vec::new();
        for subject in &self.subjects {
            for (what, times) in [
                ("add 1,000 to 1,000,000", &subject.add),
                ("remove 1,000 of 1,000,000", &subject.remove),
            ] {
                let name = format!("{what}, {}", subject.name);
                let [edit, compile, write, anew] =
                    [&times.edit, &times.compile, &times.write, &times.anew].map(|one| median(one));
                let sum = spread(&times.sum);
                let ratios: Vec<f64> =
                    times.sum.iter().zip(&times.anew).map(|(sum, anew)| sum / anew).collect();
                let range = format!("{:.1} to {:.1}", sum.low, sum.high);
                writeln!(
                    text,
                    "  {name:<62} {edit:>5.1} {compile:>8.1} {write:>6.1} {:>6.1} {range:>13} \
                     {anew:>6.1} {:>8.2}",
                    sum.median,
                    median(&ratios),
                )?;
                edits.push(json!({
                    "edit": name, "edit_ms": edit, "compile_ms": compile, "write_ms": write,
                    "sum_ms": sum.median, "sum_quartiles_ms": [sum.low, sum.high],
                    "anew_ms": anew, "ratio": median(&ratios),
                }));
            }
        }
        text.push_str("  write: to memory; anew: compile alone, nothing kept\n\n");
        Ok(vec![Report { list: "edits", text, json: json!({ "edits": edits }) }])
    }

    fn absent(&self) -> &[String] {
        &[]
    }
}

impl State {
    fn new(family: Family, rules: usize) -> Result<Self> {
        // Enough for many more rounds than there are.
        let mut prefixes = Blocklist::new(PREFIXES + 100 * CHANGED, family)?.prefixes;
        let others = prefixes.split_off(PREFIXES);
        let mut policy = match rules {
            0 => Blocklist::new(1, family)?.file(INTERFACE)?.load()?,
            rules => {
                let mut policy = Mixed::new(rules, family)?.file(INTERFACE)?.load()?;
                let blocklist = Blocklist::new(1, family)?.file(INTERFACE)?.load()?;
                let id = SetId(policy.sets.len() as u32);
                policy.sets.extend(blocklist.sets);
                let [rule]: [Rule; 1] = blocklist.rules.try_into().map_err(|_| "one rule")?;
                policy.rules.insert(0, rule);
                policy.rules[0].src.positive = vec![AddressItem::Set(id)];
                policy
            }
        };
        let set = SetId(policy.sets.len() as u32 - 1);
        policy.sets[set.0 as usize].prefixes = prefixes.into();
        let mut compiler = Compiler::default();
        compiler.compile(&policy, &[], &decisions(&policy), &Interrupt::default())?;
        Ok(Self {
            policy,
            set,
            others: others.chunks(CHANGED).map(<[_]>::to_vec).collect(),
            compiler,
            image: bytemuck::zeroed_box(),
            segments: Vec::new(),
        })
    }

    fn measure(&mut self, edit: &SetEdit, times: &mut Times) -> Result<()> {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let start = Instant::now();
        let edited = self.policy.edit_set(self.set, edit)?;
        let edit = start.elapsed();
        if edited.added.len() + edited.removed.len() != CHANGED {
            return Err("the edit is another one".into());
        }
        let decisions = decisions(&self.policy);
        let start = Instant::now();
        let compiled =
            self.compiler.compile(&self.policy, &[], &decisions, &Interrupt::default())?;
        let compile = start.elapsed();
        self.segments.resize(compiled.segments(), [1; SEGMENT_WORDS]);
        let start = Instant::now();
        compiled.write(&mut self.image, &mut self.segments, 0);
        let write = start.elapsed();
        let memory = compiled.memory();
        drop(compiled);
        let start = Instant::now();
        let anew = compile::compile(&self.policy, &[], &decisions, &Interrupt::default())?;
        let time_anew = start.elapsed();
        if anew.memory() != memory {
            return Err("the tables are not those of a new compilation".into());
        }
        times.edit.push(milliseconds(edit));
        times.compile.push(milliseconds(compile));
        times.write.push(milliseconds(write));
        times.sum.push(milliseconds(edit + compile + write));
        times.anew.push(milliseconds(time_anew));
        Ok(())
    }
}

fn decisions(policy: &Policy) -> Vec<Decision> {
    let rules = (0..).zip(&policy.rules);
    rules.map(|(counter, rule)| Decision::new(verdict(rule.action), counter)).collect()
}
