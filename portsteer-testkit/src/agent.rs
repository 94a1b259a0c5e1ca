//! portsteer as its users run it: a process.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use portsteer::lab::{self, Namespace};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up. Emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this machine is emulated, so that tests had better move less: `PORTSTEER_SLOW` is set.
#[must_use]
pub fn is_slow() -> bool {
    env::var_os("PORTSTEER_SLOW").is_some()
}

/// How many minutes a test that can go on is to go on: `PORTSTEER_SOAK_MINUTES`, if it is set.
///
/// # Panics
///
/// If it is no number, or not between 0 and a week.
#[must_use]
pub fn soak_minutes() -> Option<f64> {
    let text = env::var("PORTSTEER_SOAK_MINUTES").ok()?;
    let minutes = text.parse().ok().filter(|minutes| (0.0..=7.0 * 24.0 * 60.0).contains(minutes));
    Some(minutes.unwrap_or_else(|| panic!("PORTSTEER_SOAK_MINUTES={text}: no number of minutes")))
}

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

/// The binary of the version before, whose pins have another layout: `PORTSTEER_BEFORE`, which `cargo xtask test`
/// builds and sets. `None` where it is not set, which is said.
///
/// # Panics
///
/// If it is not set where everything has to be tried (`CI`), unless the checkout has no history (`PORTSTEER_SHALLOW`).
#[must_use]
pub fn binary_before() -> Option<PathBuf> {
    let path = env::var_os("PORTSTEER_BEFORE").map(PathBuf::from);
    if path.is_none() {
        let why = "PORTSTEER_BEFORE does not name the binary of the version before: `cargo xtask test` builds it";
        let is_shallow = env::var_os("PORTSTEER_SHALLOW").is_some();
        assert!(is_shallow || env::var_os("CI").is_none(), "{why}");
        crate::sandbox::skip(why);
    }
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

/// How a process ended, and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Runs a command to its end.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or does not end in time.
    #[must_use]
    pub fn of(command: &mut Command) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let [out, err] = ["stdout", "stderr"].map(|name| directory.path().join(name));
        let file = |path| fs::File::create(path).expect("a file for what it says");
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        let mut child = command.spawn().expect("the command can be started");
        let code = wait(&mut child).map(|status| status.code());
        let text = |path| String::from_utf8_lossy(&fs::read(path).expect("its words")).into_owned();
        let (stdout, stderr) = (text(&out), text(&err));
        let Some(code) = code else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it does not end: {stdout}{stderr}");
        };
        Self { code, stdout, stderr }
    }

    /// Asserts that it ended with this code and said all of this.
    ///
    /// # Panics
    ///
    /// If it did not.
    pub fn expect(&self, code: i32, said: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for said in said {
            let anywhere = self.stderr.contains(said) || self.stdout.contains(said);
            assert!(anywhere, "it did not say {said:?}: {self:#?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }
}

/// `portsteer ARGUMENTS` in a namespace, to its end, within a time limit.
///
/// # Panics
///
/// If it cannot be started, or does not end in time.
#[must_use]
pub fn run(namespace: &Namespace, arguments: &[&str]) -> Outcome {
    Outcome::of(namespace.command(binary()).args(arguments))
}

/// `portsteer agent` with this policy, expected to end by itself.
///
/// # Panics
///
/// If it does not end.
#[must_use]
pub fn run_agent(namespace: &Namespace, instance: &str, policy: &str) -> Outcome {
    let directory = TempDir::new().expect("a temporary directory");
    let path = policy_file(directory.path(), policy);
    let path = path.to_str().expect("a path of text");
    run(namespace, &["agent", "--ephemeral", "--instance", instance, "--policy", path])
}

/// How a child ended; none if it does not in time.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// A running agent, killed when dropped. Its dataplane outlives it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    /// What is started.
    program: PathBuf,
    namespace: Namespace,
    instance: String,
    arguments: Vec<String>,
    directory: TempDir,
    log: PathBuf,
    /// Where its socket and its state are, if it has them.
    home: Option<TempDir>,
}

impl Agent {
    /// Starts an agent and waits until its policy is in force.
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
        let mut agent = Self::launch(namespace, instance, policy, arguments);
        agent.wait_for_log("in force:", 1);
        agent
    }

    /// Starts an agent with a control socket and a state directory of its own, and waits until its policy is in
    /// force.
    ///
    /// # Panics
    ///
    /// With what the agent said, if it ends instead.
    #[must_use]
    pub fn serve(namespace: &Namespace, instance: &str, policy: &str) -> Self {
        Self::serve_with(namespace, instance, policy, &[])
    }

    /// The same with further arguments.
    ///
    /// # Panics
    ///
    /// With what the agent said, if it ends instead.
    #[must_use]
    pub fn serve_with(
        namespace: &Namespace,
        instance: &str,
        policy: &str,
        arguments: &[&str],
    ) -> Self {
        Self::serve_by(&binary(), namespace, instance, policy, arguments)
    }

    fn serve_by(
        program: &Path,
        namespace: &Namespace,
        instance: &str,
        policy: &str,
        arguments: &[&str],
    ) -> Self {
        let home = TempDir::new().expect("a temporary directory");
        let path = |name: &str| home.path().join(name).display().to_string();
        let (state, socket) = (path("state"), path("agent.sock"));
        let mut all = vec!["--state-dir", &state, "--socket", &socket];
        all.extend(arguments);
        let mut agent = Self::launch_by(program, namespace, instance, policy, &all);
        agent.home = Some(home);
        agent.wait_for_log("in force:", 1);
        agent
    }

    /// The same with another binary than that under test.
    ///
    /// # Panics
    ///
    /// With what the agent said, if it ends instead.
    #[must_use]
    pub fn serve_of(program: &Path, namespace: &Namespace, instance: &str, policy: &str) -> Self {
        Self::serve_by(program, namespace, instance, policy, &[])
    }

    /// The control socket.
    ///
    /// # Panics
    ///
    /// If the agent was not started by [`Agent::serve`].
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home().join("agent.sock")
    }

    /// Where the instance's policies are kept.
    ///
    /// # Panics
    ///
    /// If the agent was not started by [`Agent::serve`].
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.home().join("state").join(&self.instance)
    }

    fn home(&self) -> &Path {
        self.home.as_ref().expect("an agent that was started by `serve`").path()
    }

    /// `portsteer ARGUMENTS --instance ... --socket ...`, to its end.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or does not end in time.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Outcome {
        let socket = self.socket();
        let mut all = arguments.to_vec();
        all.extend(["--instance", &self.instance]);
        all.extend(["--socket", socket.to_str().expect("a path of text")]);
        let mut command = self.namespace.command(&self.program);
        // Whoever runs the tests may be here by SSH.
        command.env("SSH_CONNECTION", "").args(all);
        Outcome::of(&mut command)
    }

    /// What `portsteer ARGUMENTS --json` says.
    ///
    /// # Panics
    ///
    /// If it fails, or is no JSON.
    #[must_use]
    pub fn ask_json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let outcome = self.ask(&all);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("no JSON: {outcome:#?}"))
    }

    /// A policy file beside the agent's own.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    #[must_use]
    pub fn other_policy(&self, name: &str, policy: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, policy).expect("a policy file");
        path
    }

    /// `portsteer apply` of this policy, expected to succeed.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn apply(&self, policy: &str, arguments: &[&str]) -> Outcome {
        let path = self.other_policy("applied.toml", policy);
        let mut all = vec!["apply", path.to_str().expect("a path of text")];
        all.extend(arguments);
        let outcome = self.ask(&all);
        outcome.expect(0, &[]);
        outcome
    }

    /// Starts an agent that has ended again, which goes on with what is there. Waits until the policy is in
    /// force. The log goes on.
    ///
    /// # Panics
    ///
    /// If it runs already, or ends.
    pub fn resume(&mut self) {
        let before = self.log().matches("in force:").count();
        self.resume_without_waiting();
        self.wait_for_log("in force:", before + 1);
    }

    /// The same without waiting for a policy.
    ///
    /// # Panics
    ///
    /// If it runs already, or cannot be started.
    pub fn resume_without_waiting(&mut self) {
        let ended = self.child.try_wait().expect("the agent can be waited for");
        assert!(ended.is_some(), "the agent has not ended");
        if !self.arguments.contains(&"--resume".to_owned()) {
            self.arguments.push("--resume".to_owned());
        }
        self.child = spawn(&self.program, &self.namespace, &self.arguments, &self.log);
    }

    /// Ends the agent and has another version go on: the next start is that of `program`.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    pub fn kill_for(&mut self, program: &Path) {
        self.kill();
        program.clone_into(&mut self.program);
    }

    /// Starts an agent and does not wait for anything.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn launch(namespace: &Namespace, instance: &str, policy: &str, arguments: &[&str]) -> Self {
        Self::launch_by(&binary(), namespace, instance, policy, arguments)
    }

    fn launch_by(
        program: &Path,
        namespace: &Namespace,
        instance: &str,
        policy: &str,
        arguments: &[&str],
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let path = policy_file(directory.path(), policy);
        let log = directory.path().join("log");
        let mut all = vec!["agent".to_owned(), "--instance".to_owned(), instance.to_owned()];
        all.extend(["--policy".to_owned(), path.display().to_string()]);
        // Nobody's state is to be touched that a test has not made.
        if !arguments.contains(&"--state-dir") {
            all.push("--ephemeral".to_owned());
        }
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let program = program.to_owned();
        let child = spawn(&program, namespace, &all, &log);
        let (namespace, instance) = (namespace.clone(), instance.to_owned());
        Self { child, program, namespace, instance, arguments: all, directory, log, home: None }
    }

    /// Starts an agent that has ended again, with the same arguments and the policy file as it is
    /// now, and waits until the policy is in force. The log goes on.
    ///
    /// # Panics
    ///
    /// If it runs already, or ends.
    pub fn restart(&mut self) {
        let before = self.log().matches("in force:").count();
        let ended = self.child.try_wait().expect("the agent can be waited for");
        assert!(ended.is_some(), "the agent has not ended");
        self.child = spawn(&self.program, &self.namespace, &self.arguments, &self.log);
        self.wait_for_log("in force:", before + 1);
    }

    /// Ends the agent by SIGKILL.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().expect("the agent can be waited for");
    }

    /// The agent's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
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

    /// Forgets what the agent has said until now.
    ///
    /// # Panics
    ///
    /// If the log cannot be written.
    pub fn forget_log(&self) {
        fs::write(&self.log, "").expect("the log can be written");
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

    /// Writes another policy and has the agent read it; waits until it has refused it, and returns
    /// what it said.
    ///
    /// # Panics
    ///
    /// If it takes the policy, or does not answer in time.
    pub fn swap_refused(&mut self, policy: &str) -> String {
        self.write_policy(policy);
        self.hang_up_refused()
    }

    /// Has the agent read its policy file again; waits until it has refused it, and returns what
    /// it said.
    ///
    /// # Panics
    ///
    /// If it takes the policy, or does not answer in time.
    pub fn hang_up_refused(&mut self) -> String {
        const REFUSED: &str = "nothing was changed";
        let before = self.log();
        self.signal(libc::SIGHUP);
        self.wait_for_log(REFUSED, before.matches(REFUSED).count() + 1);
        let said = self.log().split_off(before.len());
        assert!(!said.contains("in force:"), "{said}");
        said
    }

    /// Sends a signal and waits for the agent's end.
    ///
    /// # Panics
    ///
    /// If it does not end in time.
    pub fn end(mut self, signal: libc::c_int) -> (ExitStatus, String) {
        let status = self.stop(signal);
        (status, self.log())
    }

    /// The same with an agent that may be started again.
    ///
    /// # Panics
    ///
    /// If it does not end in time.
    pub fn stop(&mut self, signal: libc::c_int) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Waits for the agent's end.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait(&mut self.child);
        status.unwrap_or_else(|| panic!("the agent does not end:\n{}", self.log()))
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

    /// Another number of an interface: `passed`, `dropped`, `bytes`, ...
    #[must_use]
    pub fn interface_number(&self, name: &str, field: &str) -> u64 {
        self.number("interfaces", field, |interface| interface["name"] == name)
    }

    /// A field of the only target.
    ///
    /// # Panics
    ///
    /// If there is not exactly one.
    #[must_use]
    pub fn target(&self, field: &str) -> &Value {
        let targets = self.0["targets"].as_array().expect("a list of targets");
        assert_eq!(targets.len(), 1, "{targets:?}");
        &targets[0][field]
    }

    /// How many packets the only target has lost in this way.
    ///
    /// # Panics
    ///
    /// If there is not exactly one.
    #[must_use]
    pub fn lost(&self, way: &str) -> u64 {
        self.target("lost")[way].as_u64().expect("a number")
    }

    /// Whether a rule is listed.
    #[must_use]
    pub fn has_rule(&self, name: &str) -> bool {
        self.list("rules").any(|rule| rule["name"] == name)
    }

    /// All packets that rules decided.
    #[must_use]
    pub fn all_rules(&self) -> u64 {
        self.sum("rules", |_| true)
    }

    /// All packets, by reasons.
    #[must_use]
    pub fn all_reasons(&self) -> u64 {
        self.sum("reasons", |_| true)
    }

    /// How many policies the instance has had.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0["policy"]["generation"].as_u64().unwrap_or(0)
    }

    /// Every counter under a name of its own.
    #[must_use]
    pub fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = Vec::new();
        let lists = [("rules", "name"), ("reasons", "reason"), ("interfaces", "name")];
        for (list, key) in lists {
            for entry in self.list(list) {
                for field in ["packets", "bytes"] {
                    let name = format!("{list} {} {} {field}", entry[key], entry["verdict"]);
                    counters.push((name, entry[field].as_u64().unwrap_or(0)));
                }
            }
        }
        counters
    }

    fn list(&self, list: &str) -> impl Iterator<Item = &Value> {
        self.0[list].as_array().into_iter().flatten()
    }

    fn sum(&self, list: &str, wanted: impl Fn(&Value) -> bool) -> u64 {
        self.number(list, "packets", wanted)
    }

    fn number(&self, list: &str, field: &str, wanted: impl Fn(&Value) -> bool) -> u64 {
        self.list(list)
            .filter(|entry| wanted(entry))
            .filter_map(|entry| entry[field].as_u64())
            .sum()
    }
}

/// Starts an agent that appends to its log.
fn spawn(program: &Path, namespace: &Namespace, arguments: &[String], log: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file");
    namespace
        .command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log file"))
        .stderr(log)
        .spawn()
        .expect("portsteer can be started")
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
