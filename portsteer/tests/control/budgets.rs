//! Requests that ask for too much: refused with the limit, read one at a time, and not waited for when the agent ends.

use std::{fs, io::Write as _, thread};

use portsteer_testkit::{
    agent::Agent,
    sandbox::sandbox,
    site::{Site, wait_until},
};
use serde_json::{Value, json};

use crate::{
    HEAD, INSTANCE,
    hostile::{MIB, Siege, request},
    http::{JSON, ask, connect, read, send_json},
    in_force, policy,
};

/// Edits that move two rules around.
fn moves(count: usize) -> Value {
    let edits = (0..count).map(|at| {
        let place = if at / 2 % 2 == 0 { "first" } else { "last" };
        json!({"edit": "move-rule", "rule": format!("r{}", at % 2), "place": place})
    });
    json!({"edits": edits.collect::<Vec<_>>()})
}

fn rules(count: usize) -> String {
    let rule = |at: usize| {
        let port = at + 1;
        format!(
            "[[rules]]\nname = \"r{at}\"\nprotocol = \"udp\"\ndst_port = {port}\naction = \"drop\"\n"
        )
    };
    format!("{HEAD}{}", (0..count).map(rule).collect::<String>())
}

#[test]
fn edits_have_a_limit_and_so_has_what_they_take_together() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &rules(20_000));
        let before = in_force(&agent).0;
        for (count, message, help) in [
            (4_000, "4000 edits, and at most 1000 are made together", "at most 1000"),
            (900, "900 edits of so long a policy would take too long together", "at most 1"),
        ] {
            let refused = send_json(&agent, "POST", "/v1/edits", &moves(count));
            let (kind, said) = refused.refusal();
            assert_eq!((refused.status, &*kind), (422, "bad-input"), "{said}");
            assert!(said.contains(message) && said.contains(help), "{said}");
        }
        assert_eq!(in_force(&agent).0, before);
    });
}

/// What the agent has taken of CPUs, in ticks (proc_pid_stat(5), utime).
fn ticks(agent: &Agent) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("the agent");
    let fields = stat.rsplit(')').next().expect("what comes after the name");
    fields.split_whitespace().nth(11).and_then(|ticks| ticks.parse().ok()).expect("a number")
}

#[test]
fn an_agent_that_is_to_end_leaves_edits_alone() {
    sandbox(|| {
        let site = Site::quiet();
        // More than half a minute, if it were waited for.
        let mut agent = Agent::serve(&site.host, INSTANCE, &rules(3_000));
        let before = in_force(&agent).1;
        let mut stream = connect(&agent.socket());
        let json = format!("Content-Type: {JSON}\r\n");
        let body = moves(1_000).to_string();
        let idle = ticks(&agent);
        stream.write_all(&request("POST", "/v1/edits", &json, body.as_bytes())).expect("a request");
        wait_until("it is at it", || ticks(&agent) > idle + 20);
        assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
        let answered = read(&mut stream).map(|reply| reply.status);
        assert!(!matches!(answered, Ok(200)), "{answered:?}");
        agent.resume();
        assert_eq!(in_force(&agent).1, before);
    });
}

#[test]
fn files_globs_and_interfaces_have_limits() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let files: Vec<Value> =
            (0..100_000).map(|at| json!({"name": format!("f{at}"), "content": ""})).collect();
        let request = json!({"policy": policy(), "files": files});
        let (_, said) = send_json(&siege.agent, "PUT", "/v1/policy", &request).refusal();
        assert!(said.contains("100000 set files") && said.contains("at most 4096"), "{said}");
        let list = |what: &dyn Fn(usize) -> String, count: usize| {
            let list: String = (0..count).map(|at| format!("\"{}\",", what(at))).collect();
            format!("version = 1\ninterfaces = [{list}]\n")
        };
        for (text, limit) in [
            (list(&|at| format!("h{at}*"), 300_000), "room for 1024"),
            (list(&|at| format!("h{at}*"), 1_000), "more than 256 different globs"),
            (list(&|at| format!("h{at}"), 2_000_000), "room for 1024"),
        ] {
            let body = Some(("application/toml", text.as_bytes()));
            let refused = ask(&siege.agent, "POST", "/v1/diff", body);
            let (_, said) = refused.refusal();
            assert!(refused.status == 422 && said.contains(limit), "{limit}: {said}");
        }
        siege.end(768 * MIB);
    });
}

#[test]
fn policies_full_of_errors_take_no_more_than_their_text() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let text = format!("{HEAD}{}", "a=1\n".repeat((31 << 20) / 4));
        thread::scope(|scope| {
            for (method, path) in
                [("POST", "/v1/diff"), ("POST", "/v1/diff"), ("PUT", "/v1/policy")]
            {
                let (agent, text) = (&siege.agent, text.as_bytes());
                scope.spawn(move || {
                    let refused = ask(agent, method, path, Some(("application/toml", text)));
                    assert!(matches!(refused.status, 422 | 503), "{}", refused.status);
                });
            }
        });
        siege.end(384 * MIB);
    });
}
