//! What a policy takes of the machine's memory: in the kernel, as it says itself of maps and programs, and in the
//! agent.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use portsteer::dataplane::sys;
use portsteer_testkit::{agent::Agent, sandbox, sandbox::sandbox, site::Site};
use serde_json::{Value, json};

use crate::{
    Measured, Report, Result, Rounds,
    commands::{self, INSTANCE},
    contained,
    contestants::trie,
    family::Family,
    policies::{Blocklist, DROP, Mixed, PolicyFile, ports},
};

const INTERFACE: &str = "uplink";
/// How long the agent is left alone after a policy came into force, to let go of what it needed for that.
const REST: Duration = Duration::from_secs(5);

/// Who takes memory.
enum Subject {
    /// portsteer, with a policy.
    Policy(fn() -> Result<PolicyFile>),
    /// The kernel's LPM trie with so many prefixes.
    Trie(usize, Family),
}

/// In bytes.
struct Found {
    maps: u64,
    programs: u64,
    /// The agent's, at rest and at most.
    resident: Option<[u64; 2]>,
}

pub struct Memory {
    rows: Vec<(&'static str, Subject, Option<Found>)>,
    absent: Vec<String>,
}

impl Memory {
    pub fn new() -> Self {
        let policy = |name, policy| (name, Subject::Policy(policy), None);
        let trie = |name, family| (name, Subject::Trie(1_000_000, family), None);
        let rows = vec![
            policy("portsteer, 1 rule by port", || ports(INTERFACE, 1, DROP, &[])),
            policy("portsteer, 10,000 rules by port", || ports(INTERFACE, 10_000, DROP, &[])),
            policy("portsteer, 10,000 mixed rules, IPv4", || {
                Mixed::new(10_000, Family::V4)?.file(INTERFACE)
            }),
            policy("portsteer, 100,000 mixed rules, IPv4", || {
                Mixed::new(100_000, Family::V4)?.file(INTERFACE)
            }),
            policy("portsteer, 100,000 mixed rules, IPv6", || {
                Mixed::new(100_000, Family::V6)?.file(INTERFACE)
            }),
            policy("portsteer, set of 1,000,000 prefixes, IPv4", || {
                Blocklist::new(1_000_000, Family::V4)?.file(INTERFACE)
            }),
            policy("portsteer, set of 1,000,000 prefixes, IPv6", || {
                Blocklist::new(1_000_000, Family::V6)?.file(INTERFACE)
            }),
            trie("kernel LPM trie, 1,000,000 prefixes, IPv4", Family::V4),
            trie("kernel LPM trie, 1,000,000 prefixes, IPv6", Family::V6),
        ];
        Self { rows, absent: Vec::new() }
    }
}

impl Measured for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn rows(&self) -> Vec<String> {
        self.rows.iter().map(|(name, ..)| (*name).to_owned()).collect()
    }

    fn keep(&mut self, wanted: &dyn Fn(&str) -> bool) {
        self.rows.retain(|(name, ..)| wanted(name));
    }

    /// All at once, the first time: it is the same every time.
    fn batch(&mut self, number: usize, _rounds: &Rounds) -> Result<()> {
        if number > 0 {
            return Ok(());
        }
        for (name, subject, found) in &mut self.rows {
            match subject.measure() {
                Ok(measured) => *found = Some(measured),
                Err(error) => self.absent.push(format!("{name}: {error}")),
            }
        }
        Ok(())
    }

    fn reports(&self) -> Result<Vec<Report>> {
        let mut text = format!(
            "memory, MiB\n  {:<48} {:>9} {:>9} {:>14} {:>14}\n",
            "", "maps", "programs", "agent, at rest", "agent, at most"
        );
        let mut rows: Vec<Value> = Vec::new();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for (name, _, found) in &self.rows {
            let Some(found) = found else { continue };
            write!(text, "  {name:<48} {:>9.2} {:>9.2}", mib(found.maps), mib(found.programs))?;
            for bytes in found.resident.iter().flatten() {
                write!(text, " {:>14.1}", mib(*bytes))?;
            }
            text.push('\n');
            rows.push(json!({
                "row": name, "map_bytes": found.maps, "program_bytes": found.programs,
                "agent_resident_bytes": found.resident.map(|[rest, _]| rest),
                "agent_peak_bytes": found.resident.map(|[_, peak]| peak),
            }));
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        text.push('\n');
        Ok(vec![Report { list: "memory", text, json: json!({ "rows": rows }) }])
    }

    fn absent(&self) -> &[String] {
        &self.absent
    }
}

impl Subject {
    fn measure(&self) -> Result<Found> {
        match self {
            Self::Policy(policy) => {
                let mut found = Err("not measured".into());
                contained(|| {
                    sandbox(|| found = of_policy(*policy));
                    Ok(())
                })?;
                found
            }
            Self::Trie(count, family) => {
                let trie = trie(&Blocklist::new(*count, *family)?.prefixes, *family)?;
                let (maps, _) = charged(&trie, &mut HashSet::new())?;
                Ok(Found { maps, programs: 0, resident: None })
            }
        }
    }
}

fn of_policy(policy: fn() -> Result<PolicyFile>) -> Result<Found> {
    let site = Site::quiet();
    let small = fs::read_to_string(ports(INTERFACE, 1, DROP, &[])?.policy())?;
    let agent = Agent::serve(&site.host, INSTANCE, &small);
    let file = policy()?;
    commands::time(&site, &agent, &["apply", commands::text(&file.policy())?], None)?;
    thread::sleep(REST);
    let resident = Some([
        commands::memory(&agent, "VmRSS")? * 1024,
        commands::memory(&agent, "VmHWM")? * 1024,
    ]);
    // Whatever an instance has is pinned.
    let mut known = HashSet::new();
    let (mut maps, mut programs) = (0, 0);
    for pin in sandbox::pins().into_iter().filter(|pin| !pin.is_dir()) {
        let (map, program) = charged(&sys::open_pin(&pin)?, &mut known)?;
        maps += map;
        programs += program;
    }
    agent.end(libc::SIGINT);
    Ok(Found { maps, programs, resident })
}

/// What the kernel says that a map takes, or a program, or the program that a link holds, in bytes: maps, programs.
/// Nothing if it is `known` already.
fn charged(object: &OwnedFd, known: &mut HashSet<String>) -> Result<(u64, u64)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let line = |name: &str| info.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    match (line("memlock:"), line("map_id:"), line("prog_id:")) {
        (Some(bytes), Some(map), _) if known.insert(format!("map {map}")) => {
            Ok((bytes.parse()?, 0))
        }
        (Some(bytes), None, Some(program)) if known.insert(format!("program {program}")) => {
            Ok((0, bytes.parse()?))
        }
        (None, None, Some(program)) => charged(&sys::program_by_id(program.parse()?)?, known),
        _ => Ok((0, 0)),
    }
}
