//! What an agent begins with: what runs, what was accepted, a policy file, or nothing.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use portsteer_testkit::{
    agent::{Agent, run},
    sandbox::{assert_no_pins, sandbox},
    site::{HOST_V4, Site, wait_until},
};
use sha2::{Digest as _, Sha256};

use crate::{INSTANCE, attached, is_open, policy, rule, status};

/// Has nothing pinned any more, as after the machine has started anew.
fn reboot(site: &Site, agent: &mut Agent) {
    agent.kill();
    fs::remove_dir_all("/sys/fs/bpf/portsteer").unwrap();
    wait_until("nothing is attached", || attached(&site.host).is_empty());
}

#[test]
fn a_machine_starts_with_the_policy_that_was_accepted_last() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        reboot(&site, &mut agent);
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        assert_eq!(agent.ask(&["show"]).stdout, policy(&["uplink"], 3000));
        // What was accepted before can still be gone back to.
        agent.ask(&["rollback"]).expect(0, &[]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
    });
}

#[test]
fn without_anything_accepted_the_policy_file_is_what_there_is() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        reboot(&site, &mut agent);
        fs::remove_dir_all(agent.state()).unwrap();
        agent.resume();
        assert!(!is_open(&site, 2000));
        reboot(&site, &mut agent);
        fs::remove_dir_all(agent.state()).unwrap();
        fs::remove_file(agent.policy_path()).unwrap();
        agent.resume_without_waiting();
        agent.wait_for_log("nothing is in force yet", 1);
        wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
        assert_eq!(status(&agent)["state"], "nothing");
        assert!(is_open(&site, 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        assert!(!is_open(&site, 3000));
    });
}

#[test]
fn what_was_detached_by_hand_stays_off_until_somebody_applies() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        assert!(is_open(&site, 2000));
        assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
        agent.resume_without_waiting();
        agent.wait_for_log("taken off by hand since the machine started", 1);
        wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
        assert_eq!(status(&agent)["state"], "detached");
        assert_eq!(attached(&site.host), [] as [String; 0]);
        agent.signal(libc::SIGHUP);
        agent.wait_for_log("in force:", 2);
        assert!(!is_open(&site, 2000));
        // The machine's next start is another matter.
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        agent.kill();
        fs::write(agent.state().join("detached"), "\"an earlier boot\"").unwrap();
        agent.resume();
        assert!(!is_open(&site, 2000));
    });
}

/// A policy that drops UDP to this port from the addresses in a file.
fn with_set(port: u16) -> String {
    policy(&["uplink"], 2000)
        + "[sets.kept]\nfile = \"kept.txt\"\n"
        + &rule("kept", port)
        + "src = \"@kept\"\n"
}

/// An agent that has accepted the policy with the set, whose file is as it says.
fn with_kept_set(site: &Site, settings: &str, addresses: &str) -> (Agent, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agent.toml");
    fs::write(&config, settings).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let agent = Agent::serve_with(&site.host, INSTANCE, &policy(&["uplink"], 2000), &arguments);
    let list = agent.other_policy("kept.txt", addresses);
    let file = agent.other_policy("with-set.toml", &with_set(3000));
    agent.ask(&["apply", file.to_str().unwrap()]).expect(0, &["in force"]);
    // It is read at every start.
    let _kept = directory.keep();
    (agent, list)
}

/// The content that is kept of what begins like this.
fn content_of(agent: &Agent, begins: &str) -> PathBuf {
    let contents = fs::read_dir(agent.state().join("content")).unwrap();
    let mut paths = contents.map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| fs::read(path).unwrap().starts_with(begins.as_bytes());
    paths.find(is_it).expect("the content")
}

/// Changes a byte in the middle, as a disk does that is worn.
fn flip_a_bit(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
}

/// What is wrong, once the agent has begun.
fn problems(agent: &Agent) -> String {
    wait_until("the agent has begun", || status(agent)["state"] != "nothing");
    status(agent)["problems"].to_string()
}

/// Twenty thousand edits of a set, as a version before this one has kept them: one after the other, each of which
/// was a way through the whole file.
#[test]
fn edits_that_were_kept_one_by_one_are_made_together() {
    sandbox(|| {
        const EDITS: u32 = 20_000;
        let site = Site::quiet();
        let mut listed = String::from("198.51.100.7\n");
        for number in 0..100_000_u32 {
            let [_, a, b, c] = number.to_be_bytes();
            writeln!(listed, "10.{a}.{b}.{c}").unwrap();
        }
        let (mut agent, _) = with_kept_set(&site, "", &listed);
        agent.kill();
        let accepted = agent.state().join("accepted.json");
        let json = fs::read_to_string(&accepted).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&json).unwrap();
        // The first one comes and goes, and the client's address goes last.
        let edits: Vec<String> = (0..EDITS)
            .map(|number| {
                let [_, a, b, c] = number.to_be_bytes();
                let (adds, prefix) = match number {
                    1 => (false, "172.16.0.0/32".to_owned()),
                    _ if number == EDITS - 1 => (false, "198.51.100.7/32".to_owned()),
                    _ => (true, format!("172.{}.{b}.{c}/32", 16 + a)),
                };
                format!(r#"{{"adds":{adds},"prefixes":"{prefix}"}}"#)
            })
            .collect();
        let file = &record["files"][0];
        let files = format!(
            r#"[{{"name":{},"content":{},"edits":[{}]}}]"#,
            file["name"],
            file["content"],
            edits.join(",")
        );
        let sum = Sha256::digest(format!("[{},{files}]", record["text"]));
        let id: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        record["id"] = id.into();
        record["files"] = serde_json::from_str(&files).unwrap();
        fs::write(&accepted, record.to_string()).unwrap();
        reboot(&site, &mut agent);
        agent.resume();
        assert_eq!(problems(&agent), "[]");
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        let shown = agent.ask(&["show", "--set", "kept"]).stdout;
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 100_000 + EDITS as usize - 3);
        assert!(!lines.contains(&"172.16.0.0") && lines.contains(&"172.16.0.2"));

        // The next edit leaves two of them.
        agent.ask(&["set", "add", "kept", "198.51.100.7"]).expect(0, &["in force"]);
        assert!(!is_open(&site, 3000));
        let json = fs::read_to_string(&accepted).unwrap();
        let record: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(record["files"][0]["edits"].as_array().unwrap().len(), 2);
        reboot(&site, &mut agent);
        agent.resume();
        assert!(!is_open(&site, 3000));
    });
}

#[test]
fn damaged_content_is_written_anew_when_it_is_kept_again() {
    sandbox(|| {
        let site = Site::quiet();
        let (mut agent, _) = with_kept_set(&site, "", "# theirs\n198.51.100.7\n");
        let applied = agent.policy_path().with_file_name("with-set.toml");
        flip_a_bit(&content_of(&agent, "version"));
        flip_a_bit(&content_of(&agent, "# theirs"));
        agent.ask(&["apply", applied.to_str().unwrap()]).expect(0, &["in force"]);
        assert!(status(&agent)["not_kept"].is_null());
        reboot(&site, &mut agent);
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, false));
        assert_eq!(problems(&agent), "[]");

        // An edit has no more of a set's file than what it changes: the rest is made from what is in force.
        flip_a_bit(&content_of(&agent, "# theirs"));
        agent.ask(&["set", "add", "kept", "203.0.113.0/24"]).expect(0, &["in force"]);
        assert!(status(&agent)["not_kept"].is_null());
        assert!(agent.log().contains("kept anew, without comments"), "{}", agent.log());
        reboot(&site, &mut agent);
        agent.resume();
        assert!(!is_open(&site, 3000));
        let shown = agent.ask(&["show", "--set", "kept"]).stdout;
        assert_eq!(shown, "198.51.100.7\n203.0.113.0/24\n");
    });
}

/// What was accepted last is damaged: the policy before comes into force, and nobody overlooks that.
#[test]
fn where_what_was_accepted_is_damaged_the_policy_before_comes() {
    sandbox(|| {
        let site = Site::quiet();
        let (mut agent, _) = with_kept_set(&site, "", "198.51.100.7\n");
        flip_a_bit(&content_of(&agent, "198.51.100.7"));
        fs::remove_file(agent.policy_path()).unwrap();
        for boot in 1..=2 {
            reboot(&site, &mut agent);
            agent.resume();
            assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true), "boot {boot}");
            let said = "In force is the policy before that";
            for text in [problems(&agent), agent.log()] {
                assert!(text.contains("its sum is wrong") && text.contains(said), "{text}");
            }
            assert!(
                status(&agent)["not_kept"].as_str().is_some_and(|why| why.contains("accepted"))
            );
        }
        // Another agent goes on with it, and takes it for no more than it is.
        agent.kill();
        agent.resume();
        assert!(status(&agent)["not_kept"].as_str().is_some_and(|why| why.contains("accepted")));
        agent.ask(&["rollback"]).expect(3, &["its sum is wrong"]);
        let applied = agent.policy_path().with_file_name("with-set.toml");
        agent.ask(&["apply", applied.to_str().unwrap()]).expect(0, &["in force"]);
        assert!(status(&agent)["not_kept"].is_null());
        assert_eq!(problems(&agent), "[]");
        reboot(&site, &mut agent);
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, false));
    });
}

/// Damages all that is kept, and the policy file.
fn damage_all(agent: &Agent) {
    for entry in fs::read_dir(agent.state().join("content")).unwrap() {
        flip_a_bit(&entry.unwrap().path());
    }
    fs::write(agent.policy_path(), "version = 1\ninterfaces = ['uplink']\nnonsense\n").unwrap();
}

#[test]
fn without_any_policy_everything_passes_unless_the_settings_say_otherwise() {
    sandbox(|| {
        let site = Site::quiet();
        let (mut agent, _) = with_kept_set(&site, "on_failure = 'pass'\n", "198.51.100.7\n");
        damage_all(&agent);
        agent.kill();
        fs::remove_dir_all("/sys/fs/bpf/portsteer").unwrap();
        agent.forget_log();
        agent.resume_without_waiting();
        agent.wait_for_log("In force is no policy: everything passes", 1);
        wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
        let said = status(&agent)["problems"].to_string();
        for step in ["accepted last: ", "before that: ", "the policy file: "] {
            assert!(said.contains(step), "{step}: {said}");
        }
        assert!(is_open(&site, 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        assert_eq!(problems(&agent), "[]");
        assert!(!is_open(&site, 3000));
    });
}

#[test]
fn a_host_without_any_policy_is_closed_but_for_the_operator_if_the_settings_say_so() {
    sandbox(|| {
        let site = Site::quiet();
        let settings = "on_failure = 'closed-but-protected'\nprotect = ['udp -> :4001', 8443]\n";
        let (mut agent, _) = with_kept_set(&site, settings, "198.51.100.7\n");
        damage_all(&agent);
        // For every interface of Ethernet: nobody knows which ones were meant.
        let is_closed = |agent: &Agent| {
            let server = site.udp_server(HOST_V4, 4001);
            for port in [2001, 4001] {
                let client = site.udp_client(HOST_V4, port);
                client.send(&u16::to_be_bytes(port)).unwrap();
            }
            let mut heard = [0; 2];
            server.recv(&mut heard).unwrap();
            assert_eq!(heard, 4001_u16.to_be_bytes());
            site.tcp_echo(HOST_V4, 22);
            site.tcp_echo(HOST_V4, 8443);
            site.tcp_silence(HOST_V4, 80);
            let answer = status(agent);
            assert_eq!(answer["state"], "in force");
            assert!(problems(agent).contains("closed but protected"), "{answer}");
            assert!(answer["not_kept"].is_string(), "{answer}");
        };
        reboot(&site, &mut agent);
        agent.resume();
        is_closed(&agent);
        // Neither a restart of the agent nor one of the machine takes it for the policy that was accepted.
        agent.kill();
        agent.resume();
        is_closed(&agent);
        reboot(&site, &mut agent);
        agent.resume();
        is_closed(&agent);
        let shown = agent.ask(&["show"]).stdout;
        assert!(shown.contains("default = \"drop\""), "{shown}");
        // And once there is a policy again, an agent that starts puts that in force.
        agent.kill();
        fs::write(agent.policy_path(), policy(&["uplink"], 3000)).unwrap();
        agent.resume();
        assert!(problems(&agent).contains("In force is the policy file"), "{}", problems(&agent));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        assert_eq!((problems(&agent), is_open(&site, 3000)), ("[]".to_owned(), false));
        assert!(is_open(&site, 2001));
    });
}

/// Opening a pipe waits for whoever writes to it, for ever, and with it the agent.
#[test]
fn a_pipe_is_no_policy() {
    sandbox(|| {
        let site = Site::quiet();
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).display().to_string();
        assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
        let said = ["it is a pipe, no regular file"];
        let (state, socket) = (path("state"), path("agent.sock"));
        let start =
            ["agent", "--policy", &path("pipe"), "--socket", &socket, "--state-dir", &state];
        run(&site.host, &start).expect(2, &said);
        run(&site.host, &[&start[..], &["--resume"]].concat()).expect(2, &said);
        run(&site.host, &["check", &path("pipe")]).expect(2, &said);
        run(&site.host, &["agent", "--resume", "--config", &path("pipe")]).expect(2, &said);
        let save = format!("--save={}", path("pipe"));
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.ask(&["port", "drop", "80", &save]).expect(2, &said);
        agent.end(libc::SIGINT);
        run(&site.host, &["check", &path("")]).expect(2, &["it is a directory, no regular file"]);
        assert_no_pins();
    });
}

#[test]
fn every_thread_of_an_agent_is_confined_and_has_three_capabilities() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
        let mut count = 0;
        for thread in threads {
            // One that was idle for long may just have ended.
            let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else {
                continue;
            };
            count += 1;
            // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF (capabilities(7)).
            let three = format!("{:016x}", 1_u64 << 12 | 1 << 38 | 1 << 39);
            for (what, expected) in [
                ("Seccomp", "2"),
                ("NoNewPrivs", "1"),
                ("CapEff", three.as_str()),
                ("CapPrm", three.as_str()),
                ("CapInh", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
            ] {
                let line = format!("{what}:\t{expected}");
                assert!(status.lines().any(|it| it == line), "no {line:?} in {status}");
            }
        }
        assert!(count > 1, "the thread that has put the policy in force is missing");
    });
}
