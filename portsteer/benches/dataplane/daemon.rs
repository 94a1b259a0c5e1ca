//! What the agent takes, and how long its clients wait: the real agent as a process, asked by the real commands
//! over its socket.

use std::{fmt::Write as _, fs, thread, time::Duration};

use portsteer_testkit::{agent::Agent, sandbox::sandbox, site::Site};
use serde_json::json;

use crate::{
    Measured, Report, Result, Rounds,
    commands::{self, INSTANCE},
    family::Family,
    policies::{Blocklist, Mixed, PolicyFile},
    statistics::{median, spread},
};

const ROW: &str = "the agent as a process";
const INTERFACE: &str = "uplink";
const SMALL: &str = "version = 1\ninterfaces = [\"uplink\"]\n\
                     [[rules]]\nname = \"one\"\nprotocol = \"tcp\"\ndst_port = 9\naction = \"drop\"\n";
/// How long an agent is left alone to see what it does by itself.
const IDLE: Duration = Duration::from_secs(60);
const RULES: usize = 10_000;
const MANY_RULES: usize = 100_000;
const PREFIXES: usize = 1_000_000;
const CHANGED: usize = 1_000;

#[derive(Default)]
pub struct Daemon {
    absent: Vec<String>,
    found: Option<Found>,
}

/// What was measured. Times in milliseconds, memory in KiB.
#[derive(Default)]
struct Found {
    /// Processor time in [`IDLE`].
    idle: f64,
    small_resident: u64,
    /// With 100,000 rules and a set of a million prefixes, at rest, and at most until then.
    large_resident: u64,
    large_peak: u64,
    apply: Vec<f64>,
    /// By address family.
    add: [Vec<f64>; 2],
    remove: [Vec<f64>; 2],
}

impl Measured for Daemon {
    fn name(&self) -> &'static str {
        "daemon"
    }

    fn rows(&self) -> Vec<String> {
        vec![ROW.to_owned()]
    }

    fn keep(&mut self, _wanted: &dyn Fn(&str) -> bool) {}

    /// All at once, the first time.
    fn batch(&mut self, number: usize, rounds: &Rounds) -> Result<()> {
        if number > 0 {
            return Ok(());
        }
        let mut found = Ok(Found::default());
        sandbox(|| found = measure(rounds.test_runs * rounds.batches));
        self.found = Some(found?);
        Ok(())
    }

    fn reports(&self) -> Result<Vec<Report>> {
        let Some(found) = &self.found else { return Ok(Vec::new()) };
        let mut text = format!("{ROW}\n");
        let mib = |kib: u64| kib as f64 / 1024.0;
        writeln!(
            text,
            "  one rule: {:.1} MiB resident, {:.0} ms of processor time in {} s of doing nothing",
            mib(found.small_resident),
            found.idle,
            IDLE.as_secs()
        )?;
        writeln!(
            text,
            "  {MANY_RULES} mixed rules and a set of {PREFIXES} prefixes: {:.1} MiB resident, {:.1} \
             MiB at most until then",
            mib(found.large_resident),
            mib(found.large_peak)
        )?;
        writeln!(
            text,
            "  ms from the command's start to its end                      median   spread"
        )?;
        let mut times = Vec::new();
        let mut row = |name: String, values: &[f64]| -> Result<()> {
            let measured = spread(values);
            let range = format!("{:.1} to {:.1}", measured.low, measured.high);
            writeln!(text, "    {name:<56} {:>7.1}   {range}", median(values))?;
            times.push(json!({
                "what": name, "median_ms": measured.median, "quartiles_ms": [measured.low, measured.high],
            }));
            Ok(())
        };
        row(format!("apply, {RULES} mixed rules"), &found.apply)?;
        for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            row(format!("set add, {CHANGED} to {PREFIXES}, {family}"), &found.add[index])?;
            row(format!("set remove, {CHANGED} of {PREFIXES}, {family}"), &found.remove[index])?;
        }
        text.push('\n');
        let json = json!({
            "small_resident_kib": found.small_resident, "idle_ms": found.idle,
            "idle_seconds": IDLE.as_secs(), "large_resident_kib": found.large_resident,
            "large_peak_kib": found.large_peak, "times": times,
        });
        Ok(vec![Report { list: "daemon", text, json }])
    }

    fn absent(&self) -> &[String] {
        &self.absent
    }
}

fn measure(rounds: usize) -> Result<Found> {
    let mut found = Found::default();
    let site = Site::quiet();
    {
        let agent = Agent::serve(&site.host, INSTANCE, SMALL);
        thread::sleep(Duration::from_secs(2));
        let before = processor_time(&agent)?;
        thread::sleep(IDLE);
        found.idle = processor_time(&agent)? - before;
        found.small_resident = commands::memory(&agent, "VmRSS")?;
        let policies = [Mixed::new(RULES, Family::V4)?, Mixed::new(RULES, Family::V6)?];
        let files = policies
            .iter()
            .map(|policy| policy.file(INTERFACE))
            .collect::<Result<Vec<PolicyFile>>>()?;
        for round in 0..rounds {
            let path = files[round % 2].policy();
            found.apply.push(commands::time(
                &site,
                &agent,
                &["apply", commands::text(&path)?],
                None,
            )?);
        }
        agent.end(libc::SIGINT);
    }
    for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let agent = Agent::serve(&site.host, INSTANCE, SMALL);
        let set = Blocklist::new(PREFIXES, family)?;
        let file = set.file(INTERFACE)?;
        commands::time(&site, &agent, &["apply", commands::text(&file.policy())?], None)?;
        let more = Blocklist::new(PREFIXES + rounds * CHANGED, family)?;
        for added in more.prefixes[PREFIXES..].chunks(CHANGED) {
            let lines: String = added.iter().map(|prefix| format!("{prefix}\n")).collect();
            let lines = Some(lines.as_str());
            found.add[index].push(commands::time(
                &site,
                &agent,
                &["set", "add", "blocklist", "-"],
                lines,
            )?);
            let removed =
                commands::time(&site, &agent, &["set", "remove", "blocklist", "-"], lines)?;
            found.remove[index].push(removed);
        }
        agent.end(libc::SIGINT);
    }
    let agent = Agent::serve(&site.host, INSTANCE, SMALL);
    let mut large = Mixed::new(MANY_RULES, Family::V4)?.file(INTERFACE)?;
    let set = Blocklist::new(PREFIXES, Family::V4)?.file(INTERFACE)?;
    large.add("blocklist.txt", &fs::read_to_string(set.path("blocklist.txt"))?)?;
    let policy = fs::read_to_string(large.policy())?;
    large.add(
        PolicyFile::NAME,
        &format!(
            "{policy}\n[sets.blocklist]\nfile = \"blocklist.txt\"\n\
             [[rules]]\nname = \"blocked\"\nsrc = [\"@blocklist\"]\naction = \"drop\"\n"
        ),
    )?;
    commands::time(&site, &agent, &["apply", commands::text(&large.policy())?], None)?;
    thread::sleep(Duration::from_secs(15));
    found.large_resident = commands::memory(&agent, "VmRSS")?;
    found.large_peak = commands::memory(&agent, "VmHWM")?;
    agent.end(libc::SIGINT);
    Ok(found)
}

/// How long an agent has kept processors busy, in milliseconds: threads that have ended included, which
/// /proc/PID/task knows nothing of.
fn processor_time(agent: &Agent) -> Result<f64> {
    // Fields 14 and 15 (proc_pid_stat(5)), in hundredths of a second; their sum is by the scheduler's clock,
    // not by who runs when the clock ticks (cputime_adjust in kernel/sched/cputime.c).
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("a line of stat")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    Ok(10.0 * (fields[11].parse::<f64>()? + fields[12].parse::<f64>()?))
}
