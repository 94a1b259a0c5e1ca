//! The real agent, as a child process, driven the way a user does.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{DemoError, Interrupt};
use crate::{
    dataplane::TargetState,
    lab::{self, Namespace},
};

/// A running `portsteer agent`. It is killed when this is dropped, and when this thread ends.
#[derive(Debug)]
pub(super) struct Agent {
    namespace: Namespace,
    instance: String,
    child: Child,
    /// What it has said so far, on standard output and standard error.
    said: Arc<Mutex<Vec<u8>>>,
}

/// This very program, also when its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";
/// Loading and verifying takes its time on an emulated or a crowded machine.
const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

impl Agent {
    /// Starts an agent in the namespace.
    pub(super) fn start(namespace: &Namespace, policy: &Path) -> io::Result<Self> {
        let instance = format!("demo-{}", std::process::id());
        let mut child = namespace
            .command(PROGRAM)
            .arg0("portsteer")
            .arg("agent")
            .arg("--policy")
            .arg(policy)
            .args(["--instance", &instance, "--ephemeral"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is meant for the demo, which then stops the agent.
            .process_group(0)
            .spawn()?;
        let said = Arc::default();
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, &said);
        }
        if let Some(stderr) = child.stderr.take() {
            collect(stderr, &said);
        }
        Ok(Self { namespace: namespace.clone(), instance, child, said })
    }

    /// Waits until the agent has attached the program and found the way to all targets.
    pub(super) fn wait_until_ready(&mut self, interrupt: &Interrupt) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            interrupt.check()?;
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(status));
            }
            let asked = Instant::now();
            let answer = self.ask("status")?;
            let attached = answer.status.success();
            if attached && read::<Status>("status", &answer)?.is_ready() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(DemoError::Broken(format!(
                    "the agent {} within {} s; status says: {}; the agent says: {}",
                    if attached { "did not find its targets" } else { "did not attach" },
                    READY_WITHIN.as_secs(),
                    words(&answer),
                    self.said(),
                )));
            }
            // Asking is to leave the agent at least half of a CPU.
            thread::sleep(asked.elapsed().max(PAUSE));
        }
    }

    /// The kernel's counters.
    pub(super) fn stats(&self) -> Result<Stats, DemoError> {
        let answer = self.ask("stats")?;
        if !answer.status.success() {
            return Err(DemoError::Broken(format!("portsteer stats: {}", words(&answer))));
        }
        read("stats", &answer)
    }

    /// Stops the agent as Ctrl-C in its terminal would, and returns how it ended.
    pub(super) fn stop(&mut self) -> Result<ExitStatus, DemoError> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.ended(status));
        }
        lab::send_signal(&mut self.child, libc::SIGINT)?;
        self.wait_until_ended()?.ok_or_else(|| {
            DemoError::Broken(format!(
                "the agent did not end within {} s of Ctrl-C; it says: {}",
                STOPPED_WITHIN.as_secs(),
                self.said(),
            ))
        })
    }

    /// What the agent has said so far.
    pub(super) fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&said).trim().to_owned();
        if text.is_empty() { "(nothing)".to_owned() } else { text }
    }

    fn wait_until_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + STOPPED_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(PAUSE);
        }
        Ok(None)
    }

    /// The agent ended by itself.
    fn ended(&self, status: ExitStatus) -> DemoError {
        // Its last words may still be in the pipe.
        thread::sleep(5 * PAUSE);
        let message = format!("the agent ended ({status}): {}", self.said());
        match status.code() {
            Some(3) => DemoError::Refused(message),
            _ => DemoError::Broken(message),
        }
    }

    fn ask(&self, command: &str) -> io::Result<Output> {
        let mut asked: Command = self.namespace.command(PROGRAM);
        asked.arg0("portsteer").args([command, "--json", "--instance", &self.instance]);
        asked.stdin(Stdio::null()).process_group(0).output()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Orderly where possible. Either way nothing of it stays: the pins go with the mounts.
        let stopped = matches!(self.child.try_wait(), Ok(Some(_)))
            || (lab::send_signal(&mut self.child, libc::SIGINT).is_ok()
                && matches!(self.wait_until_ended(), Ok(Some(_))));
        if !stopped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(mut from: impl Read + Send + 'static, said: &Arc<Mutex<Vec<u8>>>) {
    let said = Arc::clone(said);
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            said.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..len]);
        }
    });
}

fn words(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    let text =
        if error.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { error };
    format!("{} ({})", text.trim(), output.status)
}

/// Reads what a command answered with `--json`.
fn read<T: DeserializeOwned>(command: &str, answer: &Output) -> Result<T, DemoError> {
    serde_json::from_slice(&answer.stdout)
        .map_err(|error| DemoError::Broken(format!("portsteer {command} --json: {error}")))
}

/// What `portsteer status --json` prints, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    targets: Vec<TargetStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TargetStatus {
    state: String,
}

impl Status {
    fn is_ready(&self) -> bool {
        self.targets.iter().all(|target| target.state == TargetState::Ready.name())
    }
}

/// What `portsteer stats --json` prints, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    rules: Vec<RuleCount>,
    pub(super) targets: Vec<TargetCount>,
    reasons: Vec<ReasonCount>,
    interfaces: Vec<InterfaceCount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuleCount {
    name: String,
    packets: u64,
}

/// One target's counters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct TargetCount {
    pub(super) name: String,
    /// In words.
    pub(super) to: String,
    pub(super) packets: u64,
    pub(super) lost: Losses,
}

/// Lost packets by what lost them.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Losses(BTreeMap<String, u64>);

impl Losses {
    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReasonCount {
    reason: String,
    packets: u64,
}

/// One interface's counters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct InterfaceCount {
    name: String,
    pub(super) mode: String,
    pub(super) packets: u64,
    pub(super) passed: u64,
    pub(super) steered: u64,
    pub(super) dropped: u64,
    pub(super) aborted: u64,
}

impl Stats {
    /// The packets that the rule decided.
    pub(super) fn rule(&self, name: &str) -> u64 {
        self.rules.iter().filter(|rule| rule.name == name).map(|rule| rule.packets).sum()
    }

    pub(super) fn target(&self, name: &str) -> TargetCount {
        self.targets.iter().find(|count| count.name == name).cloned().unwrap_or_default()
    }

    /// The packets that no rule decided.
    pub(super) fn no_rule(&self) -> u64 {
        let name = portsteer_common::Reason::NoRule.name();
        self.reasons.iter().filter(|count| count.reason == name).map(|count| count.packets).sum()
    }

    /// The packets of all reasons.
    pub(super) fn all_reasons(&self) -> u64 {
        self.reasons.iter().map(|count| count.packets).sum()
    }

    pub(super) fn interface(&self, name: &str) -> InterfaceCount {
        self.interfaces.iter().find(|count| count.name == name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_read_leniently() {
        let stats: Stats = serde_json::from_str(
            r#"{"instance":"main","new":{"key":1},
                "rules":[{"name":"web","line":12,"packets":3,"bytes":180}],
                "targets":[{"name":"web","to":"to-web via 10.0.1.2","packets":2,
                            "lost":{"gone":1,"queue":3}}],
                "reasons":[{"reason":"rule","verdict":"pass","packets":3,"bytes":180},
                           {"reason":"no-rule","verdict":"pass","packets":4,"bytes":1}],
                "interfaces":[{"name":"uplink","mode":"native","packets":7,"passed":7}]}"#,
        )
        .expect("stats");
        assert_eq!((stats.rule("web"), stats.rule("other")), (3, 0));
        assert_eq!((stats.target("web").packets, stats.target("web").lost.total()), (2, 4));
        assert_eq!((stats.target("mail").packets, stats.target("mail").lost.total()), (0, 0));
        assert_eq!((stats.no_rule(), stats.all_reasons()), (4, 7));
        assert_eq!((stats.interface("uplink").passed, stats.interface("eth0").passed), (7, 0));
    }
}
