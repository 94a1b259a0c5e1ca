//! What figures are worth nothing without: the machine, its kernel, the day, and whose versions were compared.

use std::{fmt::Write as _, fs, path::Path, process::Command, time::SystemTime};

use portsteer::dataplane::online_cpus;
use serde_json::{Map, Value, json};

use crate::Result;

pub struct Machine {
    pub text: String,
    pub json: Value,
}

/// How to ask peers for their version. xdp-tools do not say theirs, so Debian's package is asked.
const PEERS: [(&str, &[&str]); 3] = [
    ("nft", &["--version"]),
    ("iptables", &["--version"]),
    ("dpkg-query", &["--show", "--showformat=xdp-tools ${Version}", "xdp-tools"]),
];

impl Machine {
    pub fn here() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let cpu = cpu_model()?;
        let cpus = online_cpus()?.len();
        let hypervisor = is_virtual()?;
        let memory = total_memory()?;
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let commit = commit();
        let mitigations = mitigations()?;
        let peers: Vec<String> =
            PEERS.iter().filter_map(|(command, arguments)| version(command, arguments)).collect();
        let mut text = format!(
            "Linux {kernel}; {cpus} CPUs, {cpu}{}; {memory} MiB; {date}; commit {}\n",
            if hypervisor { ", virtual" } else { "" },
            commit.as_deref().unwrap_or("unknown"),
        );
        for (vulnerability, state) in &mitigations {
            writeln!(text, "  {vulnerability}: {state}")?;
        }
        for version in &peers {
            writeln!(text, "  {version}")?;
        }
        let weaknesses = mitigations.iter().map(|(name, state)| (name.clone(), json!(state)));
        let json = json!({
            "kernel": kernel, "cpu": cpu, "cpus": cpus, "virtual": hypervisor, "memory_mib": memory,
            "date": date, "commit": commit, "mitigations": weaknesses.collect::<Map<String, Value>>(), "peers": peers,
        });
        Ok(Self { text, json })
    }
}

fn cpu_model() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    // Not all architectures have the line.
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
    Ok(model
        .map_or("of unknown model", |model| model.trim_start_matches([' ', '\t', ':']))
        .to_owned())
}

fn is_virtual() -> Result<bool> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let flags = cpus.lines().find_map(|line| line.strip_prefix("flags"));
    Ok(flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")))
}

fn total_memory() -> Result<u64> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no MemTotal")?;
    Ok(kib.parse::<u64>()? / 1024)
}

/// What the kernel does about the CPU's weaknesses, of those that it has.
fn mitigations() -> Result<Vec<(String, String)>> {
    let directory = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let state = fs::read_to_string(entry.path())?.trim().to_owned();
        if state != "Not affected" {
            found.push((entry.file_name().to_string_lossy().into_owned(), state));
        }
    }
    found.sort();
    Ok(found)
}

/// The commit that is checked out, and whether files differ from it.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit} and changes") })
}

/// The first line of what it says; none if it is not installed.
fn version(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned)
}
