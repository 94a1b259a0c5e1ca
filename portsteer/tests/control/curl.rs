//! The README's examples for the control socket, as they are printed.

use std::{
    fs,
    process::{Command, Stdio},
};

use portsteer_testkit::{
    agent::{Agent, Outcome},
    sandbox::{sandbox, skip},
    site::Site,
};
use serde_json::Value;

use crate::{HEAD, INSTANCE, assert_dropped, policy, rule};

const README: &str = include_str!("../../../README.md");

/// A policy that has the rules that the examples are about.
fn readme_policy() -> String {
    HEAD.to_owned()
        + &rule("blocked", 2000, "drop")
        + "[[rules]]\nname = \"web\"\nprotocol = \"tcp\"\ndst_port = \"http\"\naction = \"pass\"\n"
}

/// The section's blocks of this kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let section = README.split("\n## ").find(|it| it.starts_with("The control socket\n"));
    let section = section.expect("a section about the control socket");
    let fence = format!("```{kind}\n");
    let blocks = section.split(&fence).skip(1);
    blocks.filter_map(|block| block.split("\n```").next()).collect()
}

/// What is typed, command by command: what follows a prompt up to the next one.
fn commands() -> Vec<&'static str> {
    blocks("console")
        .iter()
        .flat_map(|block| block.trim_start_matches("# ").split("\n# "))
        .collect()
}

/// Runs what somebody typed where the policy is.
fn type_in(agent: &Agent, directory: &std::path::Path, typed: &str) -> Value {
    let socket = agent.socket();
    let usual = "/run/portsteer/agent.sock";
    assert!(typed.contains(usual), "{typed}");
    let typed = typed.replace(usual, socket.to_str().expect("a path of text"));
    let mut shell = Command::new("sh");
    let outcome = Outcome::of(shell.args(["-c", &typed]).current_dir(directory));
    outcome.expect(0, &[]);
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{typed}: {outcome:?}"))
}

#[test]
fn the_readmes_examples_work_as_printed() {
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    if curl.is_err() {
        return skip("curl is not installed: `apt-get install curl`");
    }
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("policy.toml"), readme_policy()).unwrap();
        let commands = commands();
        let [status, put, confirm, edits, stats, openapi, tag, if_match] = commands[..] else {
            panic!("other examples: {commands:#?}");
        };
        let curl = |typed| type_in(&agent, directory.path(), typed);
        assert_eq!(curl(status)["agent"]["state"], "in force");
        let answer = curl(put);
        assert_eq!((&answer["trial_seconds"], &answer["rules"]), (&60.into(), &2.into()));
        assert_eq!(curl(status)["agent"]["state"], "on trial");
        assert_eq!(curl(confirm)["detached"], Value::Array(Vec::new()));
        assert_eq!(curl(status)["agent"]["state"], "in force");
        assert_eq!(curl(edits)["rules"], 3);
        let names: Vec<String> = agent
            .ask_json(&["rule", "list"])
            .as_array()
            .expect("rules")
            .iter()
            .map(|rule| rule["name"].as_str().expect("a name").to_owned())
            .collect();
        assert_eq!(names, ["blocked", "no-telnet", "web"]);
        assert_dropped(&site, &agent, "blocked", 2000);
        let counted = curl(stats);
        let blocked = counted["rules"].as_array().expect("rules").iter();
        let blocked: Vec<_> = blocked.filter(|rule| rule["name"] == "blocked").collect();
        assert_eq!(blocked[0]["packets"], 1, "{counted}");
        assert!(curl(openapi)["paths"]["/v1/edits"].is_object());

        // A change for the policy in force alone: the second time, that is another one.
        let socket = agent.socket();
        let socket = socket.to_str().expect("a path of text");
        let back =
            format!("{tag}\n{if_match}\n{if_match}").replace("/run/portsteer/agent.sock", socket);
        let twice = Outcome::of(Command::new("sh").args(["-c", &back]));
        twice.expect(0, &[]);
        let answers: Vec<Value> = serde_json::Deserializer::from_str(&twice.stdout)
            .into_iter()
            .map(|answer| answer.expect("JSON"))
            .collect();
        assert_eq!((answers.len(), &answers[0]["rules"]), (2, &2.into()), "{answers:?}");
        let refused = answers[1]["error"]["message"].as_str().expect("a refusal");
        assert!(refused.contains("is not what the request is meant for"), "{refused}");

        // What is refused looks as it is said to.
        let refused = curl(confirm);
        let [printed] = blocks("json")[..] else { panic!("one refusal") };
        assert_eq!(refused, serde_json::from_str::<Value>(printed).expect("JSON"));
        let failed = format!("{confirm} --fail-with-body");
        let failed = failed
            .replace("/run/portsteer/agent.sock", agent.socket().to_str().expect("a path of text"));
        Outcome::of(Command::new("sh").args(["-c", &failed])).expect(22, &["negative"]);
    });
}

/// Another way to send a file, which comes with a kind of its own.
#[test]
fn a_policy_may_come_as_data() {
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    if curl.is_err() {
        return skip("curl is not installed: `apt-get install curl`");
    }
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let directory = tempfile::tempdir().unwrap();
        // Long enough that curl asks whether it may go on.
        let comment = format!("# {}\n", "long ".repeat(20)).repeat(12_000);
        fs::write(directory.path().join("policy.toml"), readme_policy() + &comment).unwrap();
        for how in ["-X PUT --data-binary @policy.toml", "-T policy.toml", "-T - <policy.toml"] {
            let typed = format!(
                "curl -s --unix-socket /run/portsteer/agent.sock {how} \
                 'http://localhost/v1/policy?path=/etc/p.toml'"
            );
            let answer = type_in(&agent, directory.path(), &typed);
            assert_eq!((&answer["rules"], &answer["path"]), (&2.into(), &"/etc/p.toml".into()));
            assert_dropped(&site, &agent, "blocked", 2000);
        }
    });
}
