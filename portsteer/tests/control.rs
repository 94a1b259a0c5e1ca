//! The control socket, and the commands that ask at it. Needs root.

#[path = "control/access.rs"]
mod access;
#[path = "control/budgets.rs"]
mod budgets;
#[path = "control/commands.rs"]
mod commands;
#[path = "control/conditions.rs"]
mod conditions;
#[path = "control/crowds.rs"]
mod crowds;
#[path = "control/curl.rs"]
mod curl;
#[path = "control/edits.rs"]
mod edits;
#[path = "control/hostile.rs"]
mod hostile;
#[path = "control/http.rs"]
mod http;
#[path = "control/openapi.rs"]
mod openapi;
#[path = "control/way_in.rs"]
mod way_in;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use portsteer::{lab::Namespace, netlink};
use portsteer_testkit::{
    agent::{Agent, Outcome, binary},
    sandbox::assert_no_pins,
    site::{HOST_V4, Site, assert_nothing_arrived, wait_until},
};

/// The name that every test's instance can have: its pins are its own.
const INSTANCE: &str = "main";

/// The user and the group of nobody.
const NOBODY: u32 = 65_534;

/// How a policy for the uplink begins.
const HEAD: &str = "version = 1\ninterfaces = [\"uplink\"]\nmode = \"native\"\n";

/// A policy for the uplink that drops UDP to port 2000.
fn policy() -> String {
    HEAD.to_owned() + &rule("blocked", 2000, "drop")
}

/// A rule for one UDP port.
fn rule(name: &str, port: u16, action: &str) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nprotocol = \"udp\"\ndst_port = {port}\n\
         action = \"{action}\"\n"
    )
}

/// The devices of a namespace that have an XDP program.
fn attached(namespace: &Namespace) -> Vec<String> {
    let links = namespace.run(netlink::links).expect("the links");
    links.into_iter().filter(|link| link.xdp.is_some()).map(|link| link.name).collect()
}

/// A datagram to this UDP port is dropped and counted under the rule.
fn assert_dropped(site: &Site, agent: &Agent, rule: &str, port: u16) {
    let (server, client) = (site.udp_server(HOST_V4, port), site.udp_client(HOST_V4, port));
    let counted = || agent.stats(&site.host).rule(rule);
    let before = counted();
    client.send(b"anybody?").expect("a datagram can be sent");
    wait_until("it is counted", || counted() == before + 1);
    assert_nothing_arrived(&server);
}

/// UDP port 2000 is silent and counted under `blocked`, and another port answers.
fn assert_in_force(site: &Site, agent: &Agent) {
    assert_dropped(site, agent, "blocked", 2000);
    site.udp_echo(HOST_V4, 2001, 1);
}

/// UDP port 2000 answers, and nothing is attached.
fn assert_off(site: &Site) {
    assert_eq!(attached(&site.host), [] as [String; 0]);
    site.udp_echo(HOST_V4, 2000, 1);
}

/// The same, and nothing is pinned either.
fn assert_all_off(site: &Site) {
    assert_off(site);
    assert_no_pins();
}

/// What an agent has in force, for comparing.
fn in_force(agent: &Agent) -> (u64, String) {
    let answer = agent.ask_json(&["show"]);
    let text = answer["policy"].as_str().expect("a text").to_owned();
    (answer["generation"].as_u64().expect("a number"), text)
}

/// `portsteer ARGUMENTS` as the agent's own instance and socket, to be changed before it runs.
fn command(site: &Site, agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = site.host.command(binary());
    command.args(arguments).args(["--instance", INSTANCE, "--socket"]).arg(agent.socket());
    command.env("SSH_CONNECTION", "");
    command
}

/// A copy of portsteer where everybody may run it, and a directory that everybody may enter.
#[derive(Debug)]
struct Public {
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Public {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mode = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
        };
        mode(directory.path());
        let program = directory.path().join("portsteer");
        fs::copy(binary(), &program).expect("a copy");
        mode(&program);
        // A test beside this one may have forked while the copy was open for writing, and hold it until its
        // exec.
        wait_until("the copy can be run", || {
            Command::new(&program).arg("--version").output().is_ok()
        });
        Self { directory, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `portsteer ARGUMENTS` as nobody, of this group.
    fn run_as_nobody(&self, site: &Site, group: u32, arguments: &[&str]) -> Outcome {
        // From a thread inside the namespace: nobody may not enter it.
        site.host.run(|| {
            let mut command = Command::new(&self.program);
            command.args(arguments).uid(NOBODY).gid(group).env("SSH_CONNECTION", "");
            Outcome::of(&mut command)
        })
    }
}
