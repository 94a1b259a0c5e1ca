//! The real commands, asked by name as people ask them, and how long they take.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use portsteer_testkit::{
    agent::{Agent, binary},
    site::Site,
};

use crate::Result;

/// The agents' instance.
pub const INSTANCE: &str = "bench";

/// A path in a command.
pub fn text(path: &Path) -> Result<&str> {
    Ok(path.to_str().ok_or("a path of text")?)
}

/// How long a command takes, in milliseconds.
pub fn time(site: &Site, agent: &Agent, arguments: &[&str], input: Option<&str>) -> Result<f64> {
    let mut command: Command = site.host.command(binary());
    command
        .args(arguments)
        .args(["--instance", INSTANCE, "--socket", text(&agent.socket())?])
        .env("SSH_CONNECTION", "")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let took = start.elapsed();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("portsteer {arguments:?}: {said}").into());
    }
    Ok(took.as_secs_f64() * 1e3)
}

/// A line of /proc/PID/status, in KiB.
pub fn memory(agent: &Agent, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or("memory")?;
    Ok(number.parse()?)
}
