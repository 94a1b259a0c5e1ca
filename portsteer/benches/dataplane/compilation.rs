//! What it takes until a policy can be put in force: to read its files, to understand and check them,
//! and to compile the tables, and how large those are.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use portsteer::{
    compile::{Interrupt, compile, verdict},
    policy::Policy,
};
use portsteer_common::Decision;
use serde_json::json;

use crate::{
    Measured, Report, Result, Rounds,
    family::Family,
    policies::{Blocklist, DROP, Mixed, PolicyFile, ports},
    statistics::{median, spread},
};

/// The interface in the policies; nothing is attached.
const INTERFACE: &str = "rx0";

/// Makes a policy.
type Source = fn() -> Result<PolicyFile>;

pub struct Compilation {
    subjects: Vec<Subject>,
    absent: Vec<String>,
}

struct Subject {
    name: &'static str,
    source: Source,
    /// From the first batch on.
    file: Option<PolicyFile>,
    /// In bytes, all files together.
    file_len: usize,
    tables_len: usize,
    /// Milliseconds, one value per round.
    read: Vec<f64>,
    understand: Vec<f64>,
    compile: Vec<f64>,
}

/// Compiles a policy, and says how many bytes the tables have that go into the kernel, and how long it
/// took. The only place here that knows the compiler.
fn compiled(policy: &Policy) -> Result<(usize, Duration)> {
    let counters = 0..;
    let decisions: Vec<Decision> = policy
        .rules
        .iter()
        .zip(counters)
        .map(|(rule, counter)| Decision::new(verdict(rule.action), counter))
        .collect();
    let start = Instant::now();
    let compiled = compile(policy, &[], &decisions, &Interrupt::default())?;
    Ok((compiled.memory(), start.elapsed()))
}

impl Compilation {
    pub fn new() -> Self {
        let subject = |name, source: Source| Subject {
            name,
            source,
            file: None,
            file_len: 0,
            tables_len: 0,
            read: Vec::new(),
            understand: Vec::new(),
            compile: Vec::new(),
        };
        let subjects = vec![
            subject("65,535 rules by port", || ports(INTERFACE, 65_535, DROP, &[])),
            subject("10,000 mixed rules, IPv4", || Mixed::new(10_000, Family::V4)?.file(INTERFACE)),
            subject("10,000 mixed rules, IPv6", || Mixed::new(10_000, Family::V6)?.file(INTERFACE)),
            subject("100,000 mixed rules, IPv4", || {
                Mixed::new(100_000, Family::V4)?.file(INTERFACE)
            }),
            subject("a set of 1,000,000 prefixes, IPv4", || {
                Blocklist::new(1_000_000, Family::V4)?.file(INTERFACE)
            }),
            subject("a set of 1,000,000 prefixes, IPv6", || {
                Blocklist::new(1_000_000, Family::V6)?.file(INTERFACE)
            }),
        ];
        Self { subjects, absent: Vec::new() }
    }
}

impl Measured for Compilation {
    fn name(&self) -> &'static str {
        "compile"
    }

    fn rows(&self) -> Vec<String> {
        self.subjects.iter().map(|subject| subject.name.to_owned()).collect()
    }

    fn keep(&mut self, wanted: &dyn Fn(&str) -> bool) {
        self.subjects.retain(|subject| wanted(subject.name));
    }

    /// One round, whatever the others have.
    fn batch(&mut self, _number: usize, _rounds: &Rounds) -> Result<()> {
        for subject in &mut self.subjects {
            let file = match subject.file.take() {
                Some(file) => file,
                None => (subject.source)()?,
            };
            let measured = subject.measure(&file);
            subject.file = Some(file);
            if let Err(error) = measured {
                let absent = format!("{}: {error}", subject.name);
                if !self.absent.contains(&absent) {
                    self.absent.push(absent);
                }
            }
        }
        Ok(())
    }

    fn reports(&self) -> Result<Vec<Report>> {
        let measured: Vec<&Subject> =
            self.subjects.iter().filter(|subject| !subject.compile.is_empty()).collect();
        if measured.is_empty() {
            return Ok(Vec::new());
        }
        let mut text = format!(
            "until a policy can be put in force, ms\n  {:<36} {:>8} {:>10} {:>8} {:>15} {:>10} {:>11}\n",
            "", "read", "understand", "compile", "compile, spread", "files, KiB", "tables, KiB",
        );
        let mut policies = Vec::new();
        for subject in measured {
            let (read, understand) = (median(&subject.read), median(&subject.understand));
            let compile = spread(&subject.compile);
            let range = format!("{:.1} to {:.1}", compile.low, compile.high);
            let (files, tables) = (subject.file_len / 1024, subject.tables_len / 1024);
            writeln!(
                text,
                "  {:<36} {read:>8.1} {understand:>10.1} {:>8.1} {range:>15} {files:>10} {tables:>11}",
                subject.name, compile.median,
            )?;
            policies.push(json!({
                "policy": subject.name, "read_ms": read, "understand_ms": understand,
                "compile_ms": compile.median, "compile_quartiles_ms": [compile.low, compile.high],
                "file_bytes": subject.file_len, "table_bytes": subject.tables_len,
            }));
        }
        text.push('\n');
        let json = json!({ "policies": policies });
        Ok(vec![Report { list: "compilations", text, json }])
    }

    fn absent(&self) -> &[String] {
        &self.absent
    }
}

impl Subject {
    fn measure(&mut self, file: &PolicyFile) -> Result<()> {
        let start = Instant::now();
        let file_len = file.read()?;
        let read = start.elapsed();
        let start = Instant::now();
        let policy = file.load()?;
        let load = start.elapsed();
        let (tables_len, compile) = compiled(&policy)?;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        (self.file_len, self.tables_len) = (file_len, tables_len);
        self.read.push(milliseconds(read));
        // The files are read once more.
        self.understand.push(milliseconds(load.saturating_sub(read)));
        self.compile.push(milliseconds(compile));
        Ok(())
    }
}
