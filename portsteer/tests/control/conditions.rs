//! Changes that are meant for one policy: they are made while it is in force, and refused as soon as it is not.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use portsteer_testkit::{
    agent::{Agent, Outcome, binary, policy_file, run},
    sandbox::sandbox,
    site::{HOST_V4, Site, wait_until},
};
use serde_json::json;

use crate::{
    HEAD, INSTANCE, Public, assert_dropped, assert_in_force,
    http::{JSON, Reply, ask, ask_with, connect, get, read, request, send_json},
    in_force, policy, rule,
};

fn tag(agent: &Agent) -> Option<String> {
    get(agent, "/v1/policy").tag
}

/// A policy for the uplink that drops UDP to this port.
fn dropping(port: u16) -> String {
    HEAD.to_owned() + &rule("blocked", port, "drop")
}

/// Asks for a change under a condition.
fn change(agent: &Agent, change: &Change, condition: (&str, &str)) -> Reply {
    let Change { method, path, body } = change;
    ask_with(&agent.socket(), method, path, &[condition], Some((JSON, body.as_bytes())))
}

#[derive(Debug, Clone)]
struct Change {
    method: &'static str,
    path: &'static str,
    body: String,
}

impl Change {
    fn put(policy: &str) -> Self {
        let body = json!({ "policy": policy }).to_string();
        Self { method: "PUT", path: "/v1/policy", body }
    }

    fn post(path: &'static str) -> Self {
        Self { method: "POST", path, body: "{}".to_owned() }
    }

    fn edit() -> Self {
        let add = json!({ "edit": "add-rule", "rule": { "dst_port": ["9"], "action": "pass" } });
        Self { body: json!({ "edits": [add] }).to_string(), ..Self::post("/v1/edits") }
    }
}

/// Puts a policy on trial for longer than any test takes.
fn try_out(agent: &Agent, policy: &str) -> Reply {
    let reply = send_json(
        agent,
        "PUT",
        "/v1/policy",
        &json!({ "policy": policy, "confirm_seconds": 3_600 }),
    );
    assert_eq!(reply.status, 200, "{reply:?}");
    reply
}

#[test]
fn answers_name_the_policy_in_force() {
    sandbox(|| {
        let site = Site::quiet();
        let public = Public::new();
        let monitor = public.path("monitor.sock");
        let config = public.path("agent.toml");
        fs::write(&config, format!("monitor_socket = {monitor:?}\n")).unwrap();
        let arguments = ["--config", config.to_str().unwrap()];
        let sets = "[sets.few]\naddresses = [\"192.0.2.1\"]\n";
        let first = HEAD.to_owned() + sets + &rule("blocked", 2000, "drop");
        let mut agent = Agent::serve_with(&site.host, INSTANCE, &first, &arguments);
        let all_tags = |agent: &Agent| {
            let mut tags = Vec::new();
            for socket in [&agent.socket(), &monitor] {
                for path in ["/v1/policy", "/v1/status", "/v1/stats", "/v1/sets/few"] {
                    tags.push(ask_with(socket, "GET", path, &[], None).tag);
                }
                tags.push(ask_with(socket, "HEAD", "/v1/policy", &[], None).tag);
            }
            tags.push(send_json(agent, "POST", "/v1/diff", &json!({ "policy": first })).tag);
            let one = tags[0].clone();
            assert!(tags.iter().all(|tag| *tag == one), "{tags:?}");
            one
        };
        let begun = all_tags(&agent).expect("a tag");
        // The policy's id, in quotes: as it is kept.
        let kept = fs::read_to_string(agent.state().join("accepted.json")).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
        assert_eq!(begun, format!("\"{}\"", kept["id"].as_str().expect("an id")));
        assert_eq!(get(&agent, "/v1/openapi.json").tag, None);

        let other = first.replace("2000", "2002");
        let on_trial = try_out(&agent, &other).tag.expect("a tag");
        assert_eq!(all_tags(&agent).as_ref(), Some(&on_trial));
        let confirmed = ask(&agent, "POST", "/v1/confirm", None).tag.expect("a tag");
        assert_eq!(all_tags(&agent).as_ref(), Some(&confirmed));
        assert!(on_trial != confirmed && confirmed != begun, "{begun} {on_trial} {confirmed}");
        // Once more the same on trial is another trial.
        let again = try_out(&agent, &other).tag.expect("a tag");
        assert!(again != on_trial && again != confirmed, "{on_trial} {again}");
        let back = ask(&agent, "POST", "/v1/rollback", None).tag;
        assert_eq!(back.as_ref(), Some(&confirmed));
        // Refusals tell of it, too.
        let refused = ask(&agent, "POST", "/v1/confirm", None);
        assert_eq!((refused.status, refused.tag.as_ref()), (404, Some(&confirmed)));
        // The same text from elsewhere is the same policy.
        let put = send_json(&agent, "PUT", "/v1/policy", &json!({ "policy": other, "path": "/x" }));
        assert_eq!(put.tag.as_ref(), Some(&confirmed));
        let back = ask(&agent, "POST", "/v1/rollback", None).tag;
        assert_eq!(back.as_ref(), Some(&begun), "the same once more was no step");

        // The next agent names them alike.
        agent.signal(libc::SIGTERM);
        agent.wait();
        agent.resume();
        assert_eq!(all_tags(&agent).as_ref(), Some(&begun));
        let on_trial = try_out(&agent, &other).tag.expect("a tag");
        agent.kill();
        agent.resume();
        assert_eq!(all_tags(&agent), Some(on_trial));

        assert_eq!(ask(&agent, "POST", "/v1/detach", None).tag, None);
        assert_eq!(all_tags(&agent), None);
    });
}

#[test]
fn changes_are_made_for_their_policy_alone() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &dropping(2001));
        let old = tag(&agent).expect("a tag");
        agent.apply(&policy(), &[]);
        let now = tag(&agent).expect("a tag");
        let before = in_force(&agent);
        let changes = [
            Change::put(&dropping(2002)),
            Change::edit(),
            Change::post("/v1/rollback"),
            Change::post("/v1/confirm"),
            Change::post("/v1/detach"),
        ];
        let weak = format!("W/{now}");
        let not_met = [
            ("If-Match", old.as_str()),
            ("If-Match", &weak),
            ("If-None-Match", &now),
            ("If-None-Match", &weak),
            ("If-None-Match", "*"),
        ];
        for each in &changes {
            for condition in not_met {
                let reply = change(&agent, each, condition);
                assert_eq!(reply.status, 412, "{each:?} {condition:?}: {reply:?}");
                assert_eq!(reply.tag.as_ref(), Some(&now));
                let (kind, words) = reply.refusal();
                assert_eq!(kind, "refused");
                assert!(words.contains(&now) && words.contains("in force"), "{words}");
            }
            for condition in [("If-Match", "x"), ("If-Match", "\"x"), ("If-None-Match", "")] {
                let reply = change(&agent, each, condition);
                assert_eq!(reply.status, 422, "{each:?} {condition:?}: {reply:?}");
                assert!(reply.refusal().1.contains(condition.0), "{:?}", reply.refusal());
            }
        }
        assert_eq!(in_force(&agent), before);
        assert_in_force(&site, &agent);

        // Met, in all the ways that there are.
        let both = format!("{old}, {now}");
        for condition in [("If-Match", both.as_str()), ("If-Match", "*"), ("If-None-Match", &old)] {
            assert_eq!(change(&agent, &Change::put(&policy()), condition).status, 200);
        }
        let edited = change(&agent, &Change::edit(), ("If-Match", &now));
        let edited = (edited.status, edited.tag.expect("a tag"));
        assert_eq!((edited.0, Some(&edited.1)), (200, tag(&agent).as_ref()));
        let reply = change(&agent, &Change::post("/v1/rollback"), ("If-Match", &edited.1));
        assert_eq!((reply.status, reply.tag.as_ref()), (200, Some(&now)));
        let trial = try_out(&agent, &dropping(2003)).tag.expect("a tag");
        let confirm = Change::post("/v1/confirm");
        let confirmed = trial.split('.').next().expect("an id").to_owned() + "\"";
        // What is on trial is not yet what it is to be.
        assert_eq!(change(&agent, &confirm, ("If-Match", &confirmed)).status, 412);
        assert_eq!(change(&agent, &confirm, ("If-Match", &trial)).status, 200);
        assert_eq!(change(&agent, &confirm, ("If-Match", &trial)).status, 412, "once more");
        assert_eq!(tag(&agent).as_ref(), Some(&confirmed));
        let detach = Change::post("/v1/detach");
        assert_eq!(change(&agent, &detach, ("If-Match", &confirmed)).status, 200);

        // Nothing is in force.
        let put = Change::put(&policy());
        for condition in [("If-Match", "*"), ("If-Match", &confirmed)] {
            let reply = change(&agent, &put, condition);
            assert_eq!((reply.status, reply.tag.as_ref()), (412, None), "{condition:?}");
            assert!(reply.refusal().1.contains("nothing is in force"), "{:?}", reply.refusal());
        }
        assert_eq!(change(&agent, &put, ("If-None-Match", "*")).status, 200);
        assert_in_force(&site, &agent);
    });
}

/// Changes that come at the same time for the same policy: the first one makes it another one.
#[test]
fn of_changes_for_the_same_policy_one_is_made() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
        let now = tag(&agent).expect("a tag");
        // All of them are there when the agent looks at the first one.
        agent.signal(libc::SIGSTOP);
        let send = |number: u16| {
            let Change { method, path, body } = Change::put(&dropping(3_000 + number));
            let body = Some((JSON, body.as_bytes()));
            let mut stream = connect(&agent.socket());
            let request = request(method, path, &[("If-Match", &now)], body);
            stream.write_all(&request).expect("a request");
            stream
        };
        let clients: Vec<UnixStream> = (0..12).map(send).collect();
        agent.signal(libc::SIGCONT);
        let replies = clients.into_iter().map(|mut client| read(&mut client).expect("an answer"));
        let replies: Vec<Reply> = replies.collect();
        let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 11, "{statuses:?}");
        let made = statuses.iter().position(|status| *status == 200).expect("one");
        let now = tag(&agent);
        assert!(replies.iter().all(|reply| reply.tag == now), "{now:?} {replies:?}");
        assert_dropped(&site, &agent, "blocked", 3_000 + made as u16);
    });
}

/// The kernel ends a trial by itself. Right afterwards, before the agent knows, a request is still meant for the
/// trial.
#[test]
fn a_trial_that_the_kernel_has_ended_is_not_in_force() {
    sandbox(|| {
        let site = Site::quiet();
        for method in ["rollback", "detach"] {
            let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
            let before = tag(&agent).expect("a tag");
            let on_trial = json!({ "policy": dropping(2001), "confirm_seconds": 2 });
            let trial = send_json(&agent, "PUT", "/v1/policy", &on_trial).tag.expect("a tag");
            agent.signal(libc::SIGSTOP);
            let body = Some((JSON, &b"{}"[..]));
            let path = format!("/v1/{method}");
            let request = request("POST", &path, &[("If-Match", &trial)], body);
            let mut client = connect(&agent.socket());
            client.write_all(&request).expect("a request");
            let server = site.udp_server(HOST_V4, 2001);
            let asks = site.udp_client(HOST_V4, 2001);
            wait_until("the policy before is back", || {
                asks.send(b"anybody?").expect("a datagram can be sent");
                thread::sleep(Duration::from_millis(20));
                server.set_nonblocking(true).expect("a mode");
                server.recv(&mut [0; 16]).is_ok()
            });
            drop(server);
            agent.signal(libc::SIGCONT);
            let reply = read(&mut client).expect("an answer");
            assert_eq!((reply.status, reply.tag.as_ref()), (412, Some(&before)), "{reply:?}");
            assert_in_force(&site, &agent);
            ask(&agent, "POST", "/v1/detach", None);
        }
    });
}

/// What stands between a command and the agent, and lets something happen between two of its requests.
fn between(
    agent: &Agent,
    path: &Path,
    mut happen: impl FnMut(&str) + Send + 'static,
) -> mpsc::Sender<()> {
    let (listener, real) = (UnixListener::bind(path).expect("a socket"), agent.socket());
    let (end, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            if !matches!(ended.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                return;
            }
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            happen(text.lines().next().unwrap_or_default());
            let mut agent = UnixStream::connect(&real).expect("the agent");
            agent.write_all(&head).expect("a head");
            // The rest both ways, until the client has what it wants.
            thread::scope(|scope| {
                let (mut from, mut to) = (client.try_clone().unwrap(), agent.try_clone().unwrap());
                scope.spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let _ = std::io::copy(&mut agent, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    end
}

/// `portsteer ARGUMENTS`, with something that happens after it has looked and before it changes anything.
fn run_with(
    site: &Site,
    agent: &Agent,
    arguments: &[&str],
    mut happen: impl FnMut() + Send + 'static,
) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("between.sock");
    let mut has_happened = false;
    let _end = between(agent, &path, move |request| {
        if request.starts_with("POST") && !std::mem::replace(&mut has_happened, true) {
            happen();
        }
    });
    let mut command = site.host.command(binary());
    command.args(arguments).args(["--instance", INSTANCE, "--socket"]).arg(&path);
    Outcome::of(command.env("SSH_CONNECTION", ""))
}

/// Asks at a socket, for use in another thread.
fn send_to(socket: &Path, method: &str, path: &str, body: &serde_json::Value) {
    let body = body.to_string();
    let reply = ask_with(socket, method, path, &[], Some((JSON, body.as_bytes())));
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn confirm_keeps_what_was_on_trial_when_it_began_and_nothing_else() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let socket = agent.socket();
        const SAID: [&str; 4] =
            ["nothing is confirmed", "is not what", "portsteer status", "once more"];

        // Another trial begins, of another policy and of the same one.
        for other in [dropping(2002), dropping(2001)] {
            try_out(&agent, &dropping(2001));
            let (socket, text) = (socket.clone(), other.clone());
            let outcome = run_with(&site, &agent, &["confirm"], move || {
                send_to(&socket, "POST", "/v1/rollback", &json!({}));
                let trial = json!({ "policy": text, "confirm_seconds": 3_600 });
                send_to(&socket, "PUT", "/v1/policy", &trial);
            });
            outcome.expect(3, &SAID).expect(3, &["is on trial"]);
            assert_eq!(get(&agent, "/v1/status").json()["agent"]["state"], "on trial");
            agent.ask(&["rollback"]).expect(0, &[]);
        }

        // A trial begins where there was none, over a policy and over nothing.
        let trial = json!({ "policy": dropping(2002), "confirm_seconds": 3_600 });
        for detaches in [false, true] {
            if detaches {
                agent.ask(&["detach"]).expect(0, &[]);
            }
            let (socket, trial) = (socket.clone(), trial.clone());
            let outcome = run_with(&site, &agent, &["confirm"], move || {
                send_to(&socket, "PUT", "/v1/policy", &trial);
            });
            outcome.expect(3, &SAID);
            assert_eq!(get(&agent, "/v1/status").json()["agent"]["state"], "on trial");
            agent.ask(&["rollback"]).expect(0, &[]);
        }
        agent.ask(&["confirm"]).expect(1, &["no policy is on trial"]);

        // Nothing happens.
        try_out(&agent, &policy());
        run_with(&site, &agent, &["confirm"], || ()).expect(0, &["confirmed"]);
        assert_in_force(&site, &agent);
    });
}

#[test]
fn rollback_goes_back_from_what_was_in_force_when_it_began_and_nothing_else() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &dropping(2001));
        agent.apply(&policy(), &[]);
        let socket = agent.socket();

        // A trial that somebody else confirms is not undone.
        try_out(&agent, &dropping(2002));
        let outcome = run_with(&site, &agent, &["rollback"], {
            let socket = socket.clone();
            move || send_to(&socket, "POST", "/v1/confirm", &json!({}))
        });
        outcome.expect(3, &["nothing is undone", "is in force", "portsteer status"]);
        assert_dropped(&site, &agent, "blocked", 2002);
        // Nor is another policy that has come.
        let outcome = run_with(&site, &agent, &["rollback", "--json"], move || {
            send_to(&socket, "PUT", "/v1/policy", &json!({ "policy": dropping(2003) }));
        });
        outcome.expect(3, &["nothing is undone"]);
        assert_dropped(&site, &agent, "blocked", 2003);
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_dropped(&site, &agent, "blocked", 2002);
    });
}

#[test]
fn numbers_of_rules_that_are_saved_mean_the_policy_that_was_looked_at() {
    sandbox(|| {
        let site = Site::quiet();
        let unnamed = |port: u16| rule("x", port, "drop").replace("name = \"x\"\n", "");
        let text = HEAD.to_owned() + &unnamed(2001) + &unnamed(2002) + &unnamed(2003);
        let agent = Agent::serve(&site.host, INSTANCE, &text);
        let directory = tempfile::tempdir().unwrap();
        let file = policy_file(directory.path(), &text);
        let save = format!("--save={}", file.display());
        let insert = |socket: &Path, port: u16| {
            let rule = json!({ "dst_port": [port.to_string()], "action": "pass" });
            let edit = json!({ "edit": "add-rule", "rule": rule, "place": "first" });
            send_to(socket, "POST", "/v1/edits", &json!({ "edits": [edit] }));
        };

        // Another rule comes first: number 2 is not what it was.
        let socket = agent.socket();
        let outcome = run_with(&site, &agent, &["rule", "remove", "#2", &save], {
            let socket = socket.clone();
            move || insert(&socket, 9)
        });
        outcome.expect(3, &["nothing is edited", "portsteer rule list"]);
        assert_eq!(agent.ask_json(&["rule", "list"]).as_array().map(Vec::len), Some(4));
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "nor is the file");

        // What has no number means the same, and is made all the same.
        let add = ["rule", "add", "drop", "--dst-port", "2009", "--name", "new", &save];
        run_with(&site, &agent, &add, move || insert(&socket, 10)).expect(0, &["saved to"]);
        assert_eq!(agent.ask_json(&["rule", "list"]).as_array().map(Vec::len), Some(6));
        assert!(fs::read_to_string(&file).unwrap().contains("name = \"new\""));
    });
}

/// The commands do what they did with an agent that names no policy.
#[test]
fn an_agent_without_tags_is_asked_without_conditions() {
    sandbox(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("old.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (seen, requests) = mpsc::channel();
        thread::spawn(move || {
            for client in listener.incoming().take(2) {
                let mut client = client.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let body =
                    if head.starts_with("HEAD") { "" } else { r#"{"detached":[],"notes":[]}"# };
                seen.send(head).unwrap();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                client.write_all(answer.as_bytes()).unwrap();
            }
        });
        let site = Site::quiet();
        let socket = path.to_str().unwrap();
        run(&site.host, &["confirm", "--socket", socket]).expect(0, &["confirmed"]);
        let requests: Vec<String> = requests.iter().collect();
        assert!(requests[1].starts_with("POST /v1/confirm "), "{requests:?}");
        assert!(!requests[1].to_lowercase().contains("match"), "{requests:?}");
    });
}
