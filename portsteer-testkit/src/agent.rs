//! portsteer as its users run it: a process.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use portsteer::lab::{self, Namespace};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up. Emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test: `PORTSTEER_BIN`, else the one beside this test's own executable.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("PORTSTEER_BIN") {
        return path.into();
    }
    let mut path = env::current_exe().expect("a test has an executable");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("portsteer");
    assert!(path.exists(), "{} is missing: cargo build -p portsteer", path.display());
    path
}

/// `portsteer ARGUMENTS` in a namespace, to its end.
///
/// # Panics
///
/// If it cannot be started.
pub fn portsteer<S: AsRef<OsStr>>(namespace: &Namespace, arguments: &[S]) -> Output {
    namespace
        .command(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("portsteer can be started")
}

/// A running agent, killed when dropped. Its dataplane outlives it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    instance: String,
    directory: TempDir,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent with this policy and waits until the policy is in force.
    ///
    /// # Panics
    ///
    /// With what the agent said, if it ends instead.
    #[must_use]
    pub fn start(namespace: &Namespace, instance: &str, policy: &str) -> Self {
        Self::start_with(namespace, instance, policy, &[])
    }

    /// The same with further arguments.
    ///
    /// # Panics
    ///
    /// With what the agent said, if it ends instead.
    #[must_use]
    pub fn start_with(
        namespace: &Namespace,
        instance: &str,
        policy: &str,
        arguments: &[&str],
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("policy.toml");
        fs::write(&path, policy).expect("a policy file");
        let log = directory.path().join("log");
        let log_file = fs::File::create(&log).expect("a log file");
        let mut command: Command = namespace.command(binary());
        command
            .args(["agent", "--instance", instance, "--policy"])
            .arg(&path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().expect("a log file"))
            .stderr(log_file);
        let child = command.spawn().expect("portsteer can be started");
        let mut agent = Self { child, instance: instance.to_owned(), directory, log };
        agent.wait_for_log("in force:", 1);
        agent
    }

    /// Waits until `text` stands in the log `times` times.
    ///
    /// # Panics
    ///
    /// If it does not in time, or the agent ends.
    pub fn wait_for_log(&mut self, text: &str, times: usize) {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.matches(text).count() >= times {
                return;
            }
            let ended = self.child.try_wait().expect("the agent can be waited for");
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "waited for {text:?} {times} times, the agent {ended:?} said:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the agent has said.
    ///
    /// # Panics
    ///
    /// If the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log can be read")
    }

    /// The policy file.
    #[must_use]
    pub fn policy_path(&self) -> PathBuf {
        self.directory.path().join("policy.toml")
    }

    /// Writes another policy and has the agent read it; waits until it is in force.
    ///
    /// # Panics
    ///
    /// If it is not in time.
    pub fn swap(&mut self, policy: &str) {
        let before = self.log().matches("in force:").count();
        self.write_policy(policy);
        self.signal(libc::SIGHUP);
        self.wait_for_log("in force:", before + 1);
    }

    /// Writes another policy file as a whole, as a careful editor does.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn write_policy(&self, policy: &str) {
        let new = self.directory.path().join("policy.new");
        fs::write(&new, policy).expect("a policy file");
        fs::rename(&new, self.policy_path()).expect("a policy file");
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// If the agent has been waited for already.
    pub fn signal(&mut self, signal: libc::c_int) {
        lab::send_signal(&mut self.child, signal).expect("the agent takes signals");
    }

    /// Sends a signal and waits for the agent's end.
    ///
    /// # Panics
    ///
    /// If it does not end in time.
    pub fn end(mut self, signal: libc::c_int) -> (ExitStatus, String) {
        self.signal(signal);
        let status = self.wait();
        (status, self.log())
    }

    /// Waits for the agent's end.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the agent can be waited for") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the agent does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `portsteer stats --json` of the agent's instance.
    ///
    /// # Panics
    ///
    /// If there are none.
    #[must_use]
    pub fn stats(&self, namespace: &Namespace) -> Stats {
        Stats::read(namespace, &self.instance)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `portsteer stats --json` said.
#[derive(Debug, Clone)]
pub struct Stats(pub Value);

impl Stats {
    /// Asks for an instance's stats.
    ///
    /// # Panics
    ///
    /// If there are none.
    #[must_use]
    pub fn read(namespace: &Namespace, instance: &str) -> Self {
        let output = portsteer(namespace, &["stats", "--json", "--instance", instance]);
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "portsteer stats: {error}");
        Self(serde_json::from_str(&text).expect("stats are JSON"))
    }

    /// The packets that a rule has counted.
    #[must_use]
    pub fn rule(&self, name: &str) -> u64 {
        self.sum("rules", |rule| rule["name"] == name)
    }

    /// The packets with this verdict and reason.
    #[must_use]
    pub fn reason(&self, verdict: &str, reason: &str) -> u64 {
        self.sum("reasons", |entry| entry["verdict"] == verdict && entry["reason"] == reason)
    }

    /// The packets that an interface has received.
    #[must_use]
    pub fn interface(&self, name: &str) -> u64 {
        self.sum("interfaces", |interface| interface["name"] == name)
    }

    fn sum(&self, list: &str, wanted: impl Fn(&Value) -> bool) -> u64 {
        let entries = self.0[list].as_array().into_iter().flatten();
        entries.filter(|entry| wanted(entry)).filter_map(|entry| entry["packets"].as_u64()).sum()
    }
}

/// Reads all that a process prints until it ends.
///
/// # Errors
///
/// As reading goes.
pub fn read_all(mut from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a policy to a file in a directory.
///
/// # Panics
///
/// If it cannot be written.
#[must_use]
pub fn policy_file(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("policy.toml");
    fs::write(&path, text).expect("a policy file");
    path
}
