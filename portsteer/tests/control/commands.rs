//! The commands about a running policy: what they do, what they say, and their exit codes.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixDatagram, UnixListener},
    thread,
    time::Duration,
};

use portsteer::lab::{Device, End, Veth};
use portsteer_testkit::{
    agent::{Agent, Outcome, binary, policy_file, run},
    sandbox::{assert_no_pins, sandbox},
    site::{HOST_V4, Site, wait_until},
};
use serde_json::{Value, json};

use crate::{
    HEAD, INSTANCE, NOBODY, Public, assert_all_off, assert_dropped, assert_in_force, assert_off,
    command,
    http::{ask, get, send_json},
    in_force, policy, rule,
};

/// The port of `blocked` is open, and another one closed.
fn other_policy() -> String {
    HEAD.to_owned() + &rule("other", 2002, "drop")
}

fn assert_other_in_force(site: &Site, agent: &Agent) {
    assert_dropped(site, agent, "other", 2002);
    site.udp_echo(HOST_V4, 2000, 1);
}

#[test]
fn policies_are_tried_kept_and_taken_back() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let other = agent.other_policy("other.toml", &other_policy());
        let other = other.to_str().unwrap();
        agent.ask(&["confirm"]).expect(1, &["no policy is on trial"]);
        agent.ask(&["rollback"]).expect(1, &["no policy to go back to"]);

        let said = ["still on uplink (native mode)", "on trial for 1m", "portsteer confirm"];
        agent.ask(&["apply", other, "--confirm", "60s"]).expect(0, &said);
        assert_other_in_force(&site, &agent);
        agent.ask(&["status"]).expect(0, &["on trial", "portsteer rollback"]);
        agent.ask(&["apply", other]).expect(3, &["has a policy on trial", "portsteer confirm"]);
        agent.ask(&["rollback"]).expect(0, &["in force: 1 rule"]);
        assert_in_force(&site, &agent);
        agent.ask(&["confirm"]).expect(1, &["no policy is on trial"]);
        // A trial that was ended is nothing to go back to.
        agent.ask(&["rollback"]).expect(1, &["no policy to go back to"]);

        agent.ask(&["apply", other, "--confirm", "1m 30s"]).expect(0, &["on trial for 1m 30s"]);
        agent.ask(&["confirm"]).expect(0, &["confirmed: the policy stays in force"]);
        assert_other_in_force(&site, &agent);
        agent.ask(&["status"]).expect(0, &["in force"]);

        // Twice back is where one was.
        for _ in 0..2 {
            agent.ask(&["rollback"]).expect(0, &["in force: 1 rule", "rule `other` is gone"]);
            assert_in_force(&site, &agent);
            agent.ask(&["rollback"]).expect(0, &["in force: 1 rule", "rule `blocked` is gone"]);
            assert_other_in_force(&site, &agent);
        }
        // The same once more is no other policy.
        agent.ask(&["apply", other]).expect(0, &[]);
        agent.ask(&["rollback"]).expect(0, &[]);
        assert_in_force(&site, &agent);
    });
}

#[test]
fn what_cannot_be_applied_changes_nothing() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let before = in_force(&agent);
        let apply = |text: &str, more: &[&str]| {
            let path = agent.other_policy("wrong.toml", text);
            agent.ask(&[&["apply", path.to_str().unwrap()], more].concat())
        };
        apply(&policy().replace("2000", "70000"), &[]).expect(2, &["wrong.toml:7:12", "70000"]);
        apply("", &[]).expect(2, &["version"]);
        apply(&(policy() + "[sets.a]\nfile = \"none.txt\"\n"), &[])
            .expect(2, &["none.txt", "No such"]);
        apply(&policy().replace("uplink", "uplnik"), &[]).expect(3, &["did you mean `uplink`"]);
        apply(&policy(), &["--confirm", "0s"]).expect(2, &["a time of zero"]);
        apply(&policy(), &["--confirm", "8d"]).expect(2, &["604800 seconds at most"]);
        apply(&policy(), &["--confirm", "soon"]).expect(2, &["soon"]);
        agent.ask(&["apply", "/nowhere.toml"]).expect(2, &["/nowhere.toml", "No such file"]);
        agent.ask(&["apply"]).expect(2, &["<FILE>"]);
        let rejected = site.cable.right.name();
        assert_eq!(rejected, "uplink");
        assert_eq!(in_force(&agent), before);
        assert_in_force(&site, &agent);
        // A warning is no reason not to, and is said once.
        let late = apply(&(policy() + &rule("late", 2000, "pass")), &[]);
        assert_eq!(late.expect(0, &["late"]).stderr.matches("warning").count(), 1, "{late:?}");
    });
}

#[test]
fn policies_are_compared_and_shown() {
    sandbox(|| {
        let site = Site::quiet();
        let text =
            policy() + "# the end\n[sets.few]\naddresses = [\"192.0.2.1\", \"10.0.0.0/8\"]\n";
        let agent = Agent::serve(&site.host, INSTANCE, &text);
        let outcome = agent.ask(&["show"]);
        assert_eq!(outcome.expect(0, &[]).stdout, text);
        let outcome = agent.ask(&["show", "--set", "few"]);
        assert_eq!(outcome.expect(0, &[]).stdout, "192.0.2.1\n10.0.0.0/8\n");
        agent.ask(&["show", "--set", "many"]).expect(1, &["no set `many`"]);
        agent.ask(&["show", "--set", "a/../b ü"]).expect(1, &["no set `a/../b ü`"]);
        let same = agent.policy_path();
        let same = same.to_str().unwrap();
        agent.ask(&["diff", same]).expect(0, &["the policy in force means the same"]);
        let other = agent.other_policy("other.toml", &other_policy());
        let other = other.to_str().unwrap();
        agent.ask(&["diff", other]).expect(1, &["- ", "blocked", "+ ", "other"]);
        let wrong = agent.other_policy("wrong.toml", "version = 3\n");
        agent.ask(&["diff", wrong.to_str().unwrap()]).expect(2, &["wrong.toml:1:11"]);
        agent.ask(&["diff", "/nowhere.toml"]).expect(2, &["No such file"]);

        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        assert_off(&site);
        for command in
            [&["show"][..], &["show", "--set", "few"], &["diff", same], &["rule", "list"]]
        {
            agent.ask(command).expect(1, &["nothing is in force", "portsteer apply FILE"]);
        }
        agent.ask(&["rule", "remove", "blocked"]).expect(1, &["nothing is in force"]);
        agent.ask(&["port", "drop", "80", "--save"]).expect(1, &["nothing is in force"]);
        agent.ask(&["status"]).expect(1, &["attached to nothing", "detached"]);
        agent.ask(&["stats"]).expect(1, &["not attached to anything"]);
        agent.ask(&["detach"]).expect(1, &["not attached to anything"]);
        agent.ask(&["apply", same]).expect(0, &["attached to uplink (native mode)"]);
        assert_in_force(&site, &agent);
    });
}

/// The names of an object's fields.
fn fields(json: &Value) -> Vec<String> {
    json.as_object().expect("an object").keys().cloned().collect()
}

#[test]
fn json_is_what_the_socket_answers() {
    sandbox(|| {
        let site = Site::quiet();
        let text = policy() + "[sets.few]\naddresses = [\"192.0.2.1\"]\n";
        let agent = Agent::serve(&site.host, INSTANCE, &text);
        assert_eq!(agent.ask_json(&["show"]), get(&agent, "/v1/policy").json());
        assert_eq!(agent.ask_json(&["show", "--set", "few"]), get(&agent, "/v1/sets/few").json());
        assert_eq!(agent.ask_json(&["rule", "list"]), get(&agent, "/v1/policy").json()["rules"]);
        let (stats, answered) = (agent.ask_json(&["stats"]), get(&agent, "/v1/stats").json());
        assert_eq!(stats, answered);
        let (status, mut answered) =
            (agent.ask_json(&["status"]), get(&agent, "/v1/status").json());
        // What is attached stands beside what the agent knows, as it does without one.
        let mut expected = answered["dataplane"].take();
        expected["agent"] = answered["agent"].take();
        assert_eq!(status, expected);
        let other = agent.other_policy("other.toml", &other_policy());
        let other = other.to_str().unwrap();
        let answered = send_json(&agent, "POST", "/v1/diff", &json!({ "policy": other_policy() }));
        assert_eq!(agent.ask_json(&["diff", other]), answered.json());

        // What changes something cannot be had twice; the fields are the same.
        let answered = send_json(&agent, "PUT", "/v1/policy", &json!({ "policy": text })).json();
        let applied = agent.ask_json(&["apply", other, "--confirm", "1h"]);
        assert_eq!(fields(&applied), fields(&answered));
        assert_eq!((&applied["trial_seconds"], &applied["path"]), (&3600.into(), &other.into()));
        let confirmed = agent.ask_json(&["confirm"]);
        assert_eq!(confirmed, json!({ "detached": [], "notes": [] }));
        let applied = agent.ask_json(&["rollback"]);
        assert_eq!((fields(&applied), &applied["rules"]), (fields(&answered), &1.into()));
        let edited = agent.ask_json(&["port", "drop", "80"]);
        assert_eq!((fields(&edited), &edited["rules"]), (fields(&answered), &2.into()));
        assert_eq!(agent.ask_json(&["detach"]), json!({ "detached": ["uplink"], "notes": [] }));
        // Refusals are for people.
        for command in [&["rollback", "--json", "--force"][..], &["confirm", "--json"]] {
            let refused = agent.ask(command);
            assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
        }
    });
}

/// Every command that needs an agent, with arguments that make sense.
fn needing_an_agent(file: &str) -> Vec<Vec<&str>> {
    [
        &["apply", file][..],
        &["confirm"],
        &["rollback"],
        &["diff", file],
        &["show"],
        &["show", "--set", "few"],
        &["rule", "list"],
        &["rule", "add", "drop"],
        &["rule", "remove", "blocked"],
        &["rule", "move", "blocked", "--last"],
        &["set", "add", "few", "192.0.2.1"],
        &["set", "remove", "few", "192.0.2.1"],
        &["port", "drop", "80"],
        &["port", "drop", "80", "--save"],
    ]
    .map(<[&str]>::to_vec)
    .to_vec()
}

#[test]
fn without_an_agent_some_commands_work_and_the_others_say_so() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let file = policy_file(directory.path(), &policy());
        let file = file.to_str().unwrap();
        for command in needing_an_agent(file) {
            let said =
                ["no agent answers at /run/portsteer/agent.sock", "portsteer agent --resume"];
            run(&site.host, &command).expect(3, &said);
        }
        let said = ["/run/portsteer/other/agent.sock"];
        run(&site.host, &["show", "--instance", "other"]).expect(3, &said);

        let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
        assert_in_force(&site, &agent);
        agent.kill();
        for command in needing_an_agent(file) {
            agent.ask(&command).expect(3, &["no agent answers at", "agent.sock"]);
        }
        assert_in_force(&site, &agent);
        let stats = run(&site.host, &["stats", "--json"]);
        let stats: Value = serde_json::from_str(&stats.expect(0, &[]).stdout).unwrap();
        assert_eq!(stats["rules"][0]["packets"], 2);
        run(&site.host, &["status"]).expect(0, &["uplink", "attached", "no agent runs"]);
        let status = run(&site.host, &["status", "--json"]);
        let status: Value = serde_json::from_str(&status.expect(0, &[]).stdout).unwrap();
        assert_eq!((&status["agent"], &status["instance"]), (&Value::Null, &INSTANCE.into()));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        assert_all_off(&site);
        agent.ask(&["detach"]).expect(1, &["not attached to anything"]);
    });
}

/// Where nothing says otherwise, agent and commands meet.
#[test]
fn agents_are_found_where_they_usually_are() {
    sandbox(|| {
        let site = Site::quiet();
        let home = tempfile::tempdir().unwrap();
        let state = home.path().display().to_string();
        for (instance, socket) in
            [(INSTANCE, "/run/portsteer/agent.sock"), ("other", "/run/portsteer/other/agent.sock")]
        {
            let mut agent =
                Agent::launch(&site.host, instance, &policy(), &["--state-dir", &state]);
            agent.wait_for_log("in force:", 1);
            assert!(fs::metadata(socket).is_ok(), "{socket}");
            let ask = |arguments: &[&str]| {
                let arguments = [arguments, &["--instance", instance]].concat();
                Outcome::of(site.host.command(binary()).args(arguments).env("SSH_CONNECTION", ""))
            };
            ask(&["show"]).expect(0, &["blocked"]);
            ask(&["rule", "add", "drop", "--name", "all", "--src", "10.0.0.0/8"]).expect(0, &[]);
            ask(&["status"]).expect(0, &[&format!("agent: process {}", agent.pid())]);
            ask(&["detach"]).expect(0, &["detached from uplink"]);
            assert_off(&site);
            assert_eq!(agent.end(libc::SIGTERM).0.code(), Some(0));
            assert!(fs::metadata(socket).is_err(), "{socket} goes with the agent");
            assert_no_pins();
        }
    });
}

#[test]
fn without_privileges_every_command_says_what_is_needed() {
    sandbox(|| {
        let site = Site::quiet();
        let public = Public::new();
        let file = policy_file(public.directory.path(), &policy());
        let file = file.to_str().unwrap();
        let home = tempfile::tempdir().unwrap();
        let state = home.path().display().to_string();
        let mut agent = Agent::launch(&site.host, INSTANCE, &policy(), &["--state-dir", &state]);
        agent.wait_for_log("in force:", 1);
        for command in needing_an_agent(file) {
            let said = ["Permission denied", "run portsteer as root", "`socket_group`"];
            public.run_as_nobody(&site, NOBODY, &command).expect(3, &said);
        }
        for command in ["status", "stats", "detach"] {
            let said = ["not permitted", "run portsteer as root"];
            public.run_as_nobody(&site, NOBODY, &[command]).expect(3, &said);
        }
        assert_in_force(&site, &agent);
    });
}

#[test]
fn a_socket_that_is_something_else_is_told_from_an_agent() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let file = policy_file(directory.path(), &policy());
        fs::write(path("file"), "").unwrap();
        let _deaf = UnixDatagram::bind(path("datagrams")).unwrap();
        let ask = |socket: &str| {
            let command = ["show", "--socket", &path(socket)];
            run(&site.host, &command)
        };
        for socket in ["missing", "file", "datagrams", ".", "file/file"] {
            ask(socket).expect(3, &["no agent answers at", &path(socket)]);
        }
        let status = ["status", "--socket", &path("missing")];
        run(&site.host, &status).expect(3, &["no agent answers at"]);

        for (socket, answer) in [
            ("silent", ""),
            ("ssh", "SSH-2.0-OpenSSH_9.2\r\n"),
            ("web", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
            ("other-web", "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"),
            ("cut", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"policy\""),
        ] {
            let listener = UnixListener::bind(path(socket)).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let _ = stream.read(&mut [0; 4096]);
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                let said = [path(socket)];
                ask(socket).expect(3, &[&said[0], "answer"]);
            });
        }
        drop(file);
    });
}

#[test]
fn what_is_detached_stays_off_until_somebody_applies_again() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
        let off = |agent: &Agent| {
            let status = get(agent, "/v1/status").json();
            assert_eq!(status["agent"]["state"], "detached", "{status}");
            assert_off(&site);
        };
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        off(&agent);
        // Neither changes of the network nor a new agent attach anything.
        let noise = Veth::between(End::new(&site.client, "there"), End::new(&site.host, "here"));
        let noise = noise.create().unwrap();
        Device::delete(noise.right).unwrap();
        site.cable.right.set_mtu(1400).unwrap();
        for _ in 0..2 {
            off(&agent);
            agent.kill();
            agent.resume_without_waiting();
            wait_until("it answers", || agent.ask(&["status"]).code == Some(1));
        }
        off(&agent);
        let before = agent.log().matches("in force:").count();
        agent.signal(libc::SIGHUP);
        agent.wait_for_log("in force:", before + 1);
        assert_in_force(&site, &agent);
        // What is detached has no counters any more.
        assert_eq!(agent.stats(&site.host).rule("blocked"), 1);

        agent.ask(&["detach"]).expect(0, &[]);
        off(&agent);
        agent.apply(&policy(), &[]);
        assert_in_force(&site, &agent);
        agent.kill();
        agent.resume();
        assert_in_force(&site, &agent);

        // A policy on trial is off as well, and nothing comes back when its time is up.
        agent.apply(&other_policy(), &["--confirm", "2s"]);
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        thread::sleep(Duration::from_secs(3));
        off(&agent);
        agent.ask(&["confirm"]).expect(1, &["no policy is on trial"]);
        assert_eq!(agent.end(libc::SIGTERM).0.code(), Some(0));
        assert_all_off(&site);
    });
}

#[test]
fn policies_are_applied_from_anywhere() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("etc/lists")).unwrap();
        fs::create_dir_all(path("home")).unwrap();
        let listed = HEAD.to_owned()
            + "[sets.bad]\nfile = \"lists/bad.txt\"\n"
            + &rule("listed", 2003, "drop")
            + "src = \"@bad\"\n";
        fs::write(path("etc/p.toml"), &listed).unwrap();
        // Comments may be in whatever encoding somebody had.
        let list = b"\xef\xbb\xbf# d\xe9j\xe0 vu\n198.51.100.0/24 # \xff\xfe\n\n2001:db8::/32\n";
        fs::write(path("etc/lists/bad.txt"), list).unwrap();
        let from = |directory: &str, file: &str| {
            let mut command = command(&site, &agent, &["apply", file]);
            Outcome::of(command.current_dir(path(directory)))
        };
        for (directory, file) in
            [("home", "../etc/p.toml"), ("etc", "p.toml"), ("etc/lists", "../p.toml")]
        {
            agent.apply(&policy(), &[]);
            from(directory, file).expect(0, &["in force: 1 rule"]);
            assert_dropped(&site, &agent, "listed", 2003);
            let shown = agent.ask_json(&["show"]);
            assert_eq!(
                shown["sets"],
                json!([{ "name": "bad", "file": "lists/bad.txt", "prefixes": 2 }])
            );
            let listed = shown["path"].as_str().unwrap();
            assert!(listed.starts_with('/') && listed.ends_with("p.toml"), "{listed}");
        }
        agent.ask(&["set", "add", "bad", "10.0.0.0/8", "--save"]).expect(0, &["saved to"]);
        assert_eq!(
            fs::read(path("etc/lists/bad.txt")).unwrap(),
            [&list[..], b"10.0.0.0/8\n"].concat()
        );
        from("etc", "p.toml").expect(0, &[]);

        // Files that nobody has sent are not looked for where the agent is.
        let reply = ask(&agent, "PUT", "/v1/policy", Some(("", listed.as_bytes())));
        assert!(reply.refusal().1.contains("lists/bad.txt"), "{:?}", reply.refusal());
    });
}

/// Whoever listens at no socket, or at another one, is not taken for nobody.
#[test]
fn an_agent_that_does_not_answer_is_not_denied() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::launch(&site.host, INSTANCE, &policy(), &["--for", "5m"]);
        wait_until("it is in force", || agent.log().contains("in force:"));
        let who = format!("an agent runs (process {})", agent.pid());
        run(&site.host, &["status"]).expect(0, &["uplink", &who, "`--for`"]);
        agent.kill();
        run(&site.host, &["status"]).expect(0, &["uplink", "no agent runs"]);
        let nowhere = ["--socket", "/nowhere/at/all.sock"];
        for command in ["status", "stats"] {
            run(&site.host, &[&[command][..], &nowhere].concat()).expect(0, &["uplink"]);
        }
        run(&site.host, &["detach"]).expect(0, &[]);
        let outcome = run(&site.host, &[&["status"][..], &nowhere].concat());
        outcome.expect(3, &["no agent answers at /nowhere/at/all.sock"]);
    });
}

/// An instance and a socket that do not belong together are nobody's.
#[test]
fn the_wrong_agent_does_nothing() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
        let socket = agent.socket();
        let socket = socket.to_str().unwrap();
        let file = agent.policy_path();
        for command in needing_an_agent(file.to_str().unwrap())
            .iter()
            .chain([&vec!["detach"], &vec!["status"]])
        {
            let command = [command, &["--instance", "other", "--socket", socket][..]].concat();
            let said = ["the agent here runs instance `main`", "--instance"];
            run(&site.host, &command).expect(3, &said);
        }
        assert_in_force(&site, &agent);
        agent.kill();
        let said = ["no agent answers at"];
        run(&site.host, &["detach", "--socket", socket]).expect(3, &said);
        assert_in_force(&site, &agent);
        let state = agent.state();
        let directory = state.parent().unwrap().to_str().unwrap();
        run(&site.host, &["detach", "--state-dir", directory]).expect(0, &["detached from uplink"]);
        agent.resume_without_waiting();
        agent.wait_for_log("taken off by hand", 1);
        assert_off(&site);
    });
}
