//! Policy files that cannot be used: exit code 2, a reason, and nothing attached.

use std::{fs, path::Path, process::Command};

use portsteer_testkit::{
    agent::{Agent, Outcome, run, run_agent},
    sandbox::{assert_no_pins, sandbox},
    site::Site,
};

use crate::{INSTANCE, assert_in_force, attached, policy};

fn run_with(site: &Site, path: &Path) -> Outcome {
    let path = path.to_str().unwrap();
    let outcome = run(&site.host, &["agent", "--instance", INSTANCE, "--policy", path]);
    let checked = run(&site.host, &["check", path]);
    assert_eq!(
        outcome.code, checked.code,
        "the agent and `check` agree: {outcome:#?} {checked:#?}"
    );
    nothing_is_left(site);
    outcome
}

fn nothing_is_left(site: &Site) {
    assert_eq!(attached(&site.host), [] as [String; 0]);
    assert_no_pins();
}

#[test]
fn a_policy_with_errors_is_refused_with_line_and_column() {
    sandbox(|| {
        let site = Site::quiet();
        for (wrong, said) in [
            ("[[rules]\n", ":4:"),
            ("[[rules]]\nname = \"x\"\ndst_port = 99999\naction = \"drop\"\n", ":6:12"),
            ("[[rules]]\nname = \"x\"\ndst_port = \"ssssh\"\naction = \"drop\"\n", ":6:12"),
            ("[[rules]]\nname = \"x\"\ndst_port = 22\naction = \"dropp\"\n", ":7:10"),
            ("[[rules]]\nname = \"x\"\ncolour = 22\naction = \"drop\"\n", ":6:1"),
        ] {
            let head = "version = 1\ninterfaces = [\"uplink\"]\nmode = \"native\"\n";
            let outcome = run_agent(&site.host, INSTANCE, &format!("{head}{wrong}"));
            outcome.expect(2, &["error", "policy.toml", said]);
            nothing_is_left(&site);
        }
    });
}

#[test]
fn a_policy_file_that_is_missing_is_bad_input() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing.toml");
        run_with(&site, &path).expect(2, &["missing.toml", "No such file"]);
    });
}

#[test]
fn a_directory_is_no_policy_file() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        run_with(&site, directory.path()).expect(2, &["it is a directory, no regular file"]);
    });
}

#[test]
fn a_policy_file_that_is_not_utf_8_says_where() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("latin1.toml");
        let mut bytes = policy(&["uplink"]).into_bytes();
        let len = bytes.len();
        bytes.extend(b"# stra\xdfe\n");
        fs::write(&path, bytes).unwrap();
        let said = format!("not UTF-8 from byte {}", len + 6);
        run_with(&site, &path).expect(2, &["latin1.toml", &said]);
    });
}

#[test]
fn an_empty_policy_file_is_refused() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("empty.toml");
        fs::write(&path, "").unwrap();
        run_with(&site, &path).expect(2, &["version"]);
    });
}

/// Reading it would wait for somebody to write to it, and the agent with it.
#[test]
fn a_pipe_is_not_read_again() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let path = agent.policy_path();
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        agent.signal(libc::SIGHUP);
        agent.wait_for_log("it is a pipe, no regular file", 1);
        agent.wait_for_log("nothing was changed", 1);
        assert_in_force(&site);
        fs::remove_file(&path).unwrap();
        agent.swap(&policy(&["uplink"]));
        agent.end(libc::SIGINT);
    });
}
