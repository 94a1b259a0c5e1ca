//! Clients that mean ill, or do not know what they do: the agent lives, goes on answering others, takes no more
//! memory and descriptors than it has to, and what is in force stays so.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use portsteer_testkit::{
    agent::{Agent, is_slow},
    random::Random,
    sandbox::sandbox,
    site::{Site, wait_until},
};
use serde_json::{Value, json};

use crate::{
    HEAD, INSTANCE, assert_in_force,
    http::{self, connect, get, send_json},
    in_force, policy, rule,
};

pub(crate) const MIB: u64 = 1 << 20;

/// What the agent needs for a few requests after it has been measured: connections' buffers, threads that look,
/// and what the allocator keeps for later. Some 10 MiB were seen.
const FEW_REQUESTS: u64 = 48 * MIB;

/// An agent under siege.
pub(crate) struct Siege<'a> {
    site: &'a Site,
    pub(crate) agent: Agent,
    before: (u64, String),
    descriptors: usize,
    memory: u64,
}

impl<'a> Siege<'a> {
    pub(crate) fn begin(site: &'a Site, policy: &str) -> Self {
        let agent = Agent::serve(&site.host, INSTANCE, policy);
        let before = in_force(&agent);
        let mut siege = Self { site, agent, before, descriptors: 0, memory: 0 };
        assert_eq!(get(&siege.agent, "/v1/status").status, 200);
        siege.descriptors = siege.count_descriptors();
        siege.memory = siege.memory("VmRSS");
        // From here on, the peak is that of the siege (proc(5)).
        let process = siege.agent.pid();
        fs::write(format!("/proc/{process}/clear_refs"), "5").expect("a new peak");
        siege
    }

    fn count_descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.agent.pid());
        fs::read_dir(directory).expect("the agent's descriptors").count()
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid()));
        let status = status.expect("the agent lives");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.expect("a number of KiB") << 10
    }

    /// It has cost no more memory than this, nothing is left, and all is as it was.
    pub(crate) fn end(self, memory: u64) {
        let peak = self.memory("VmHWM").saturating_sub(self.memory);
        assert!(peak <= memory, "{} MiB more than before", peak / MIB);
        // A connection is given up when its end is read.
        wait_until("no descriptor is left", || self.count_descriptors() <= self.descriptors + 2);
        assert_eq!(in_force(&self.agent), self.before);
        assert_in_force(self.site, &self.agent);
        let log = self.agent.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

pub(crate) fn request(method: &str, path: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Requests that change nothing, whatever byte of them is another.
fn harmless() -> Vec<Vec<u8>> {
    let json = "Content-Type: application/json\r\n";
    let edit = br#"{"edits":[{"edit":"remove-rule","rule":"nobody-has-this-name"}]}"#;
    let chunked = "POST /v1/diff HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   b\r\nversion = 1\r\n1;a=b\r\n\n\r\n0\r\nTrailer: x\r\n\r\n";
    vec![
        request("GET", "/v1/status", "Accept: */*\r\n", b""),
        request("GET", "/v1/sets/some?x=%20", "", b""),
        request("PUT", "/v1/policy?confirm_seconds=60", "", b"version = 7\ninterfaces = [1]\n"),
        request("PUT", "/v1/policy", json, br#"{"policy":"version = 7","force":false,"files":[]}"#),
        request("POST", "/v1/edits", json, edit),
        request("POST", "/v1/edits", "Expect: 100-continue\r\n", edit),
        request("POST", "/v1/confirm", "Connection: upgrade\r\nUpgrade: h2c\r\n", b""),
        chunked.as_bytes().to_vec(),
    ]
}

/// Sends it, and takes a bit of whatever comes back.
fn throw(agent: &Agent, bytes: &[u8]) {
    let mut stream = connect(&agent.socket());
    // The agent may have hung up already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read(&mut [0; 256]);
}

#[test]
fn garbage_does_no_harm() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let mut random = Random::new(0x706f_7274_7374_6565);
        let harmless = harmless();
        let start = Instant::now();
        let most = if is_slow() { 300 } else { 6_000 };
        for round in 0..most {
            if start.elapsed() > Duration::from_secs(8) {
                break;
            }
            let base = &harmless[random.below(harmless.len())];
            let mut bytes = base.clone();
            match round % 4 {
                0 => {
                    let len = random.below(2_000);
                    bytes = random.bytes(len);
                }
                1 => {
                    let (at, len) = (random.below(base.len()), random.below(300));
                    bytes.truncate(at);
                    bytes.extend(random.bytes(len));
                }
                2 => {
                    for _ in 0..=random.below(4) {
                        let at = random.below(bytes.len());
                        bytes[at] = random.number() as u8;
                    }
                }
                _ => {
                    let other = &harmless[random.below(harmless.len())];
                    bytes.truncate(random.below(base.len()));
                    bytes.extend(&other[random.below(other.len())..]);
                }
            }
            throw(&siege.agent, &bytes);
        }
        assert_eq!(get(&siege.agent, "/v1/status").status, 200);
        siege.end(FEW_REQUESTS);
    });
}

#[test]
fn requests_that_are_cut_off_do_no_harm() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        for bytes in harmless() {
            let step = if is_slow() { 16 } else { 1 };
            for end in (0..bytes.len()).step_by(step) {
                throw(&siege.agent, &bytes[..end]);
                // The same without waiting for anything.
                let mut stream = connect(&siege.agent.socket());
                stream.write_all(&bytes[..end]).expect("a few bytes");
            }
        }
        assert_eq!(get(&siege.agent, "/v1/status").status, 200);
        siege.end(FEW_REQUESTS);
    });
}

#[test]
fn headers_have_their_limits() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let begin = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n".to_vec();
        let line = |len: usize| format!("X-Long: {}\r\n", "x".repeat(len)).into_bytes();
        for more in [line(1 << 20), line(4).repeat(10_000), vec![b'x'; 8 << 20]] {
            let mut stream = connect(&siege.agent.socket());
            // It hangs up in the middle.
            let sent = stream.write_all(&[&begin[..], &more, b"\r\n"].concat());
            let status = http::read(&mut stream).map(|reply| reply.status);
            assert!(sent.is_err() || matches!(status, Ok(400..=499)), "{sent:?} {status:?}");
        }
        let path = format!("/{}", "x".repeat(100_000));
        let mut stream = connect(&siege.agent.socket());
        let sent = stream.write_all(&request("GET", &path, "", b""));
        let status = http::read(&mut stream).map(|reply| reply.status);
        assert!(sent.is_err() || matches!(status, Ok(400..=499)), "{sent:?} {status:?}");
        // Those of a browser, say, are fine.
        let many = String::from_utf8(line(4_000).repeat(10)).expect("text");
        let mut stream = connect(&siege.agent.socket());
        stream.write_all(&request("GET", "/v1/status", &many, b"")).expect("a request");
        assert_eq!(http::read(&mut stream).expect("an answer").status, 200);
        siege.end(FEW_REQUESTS);
    });
}

/// A body of this many MiB, in chunks.
fn send_chunks(stream: &mut UnixStream, mib: usize) -> io::Result<()> {
    let chunk = [b"100000\r\n", &vec![b'#'; 1 << 20][..], b"\r\n"].concat();
    (0..mib).try_for_each(|_| stream.write_all(&chunk))
}

const CHUNKED: &[u8] = b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn bodies_have_their_limits() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        // With its length said, it need not be sent to be refused.
        for len in ["209715200", "18446744073709551615", "999999999999999999999999999999"] {
            let head =
                format!("PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n");
            let mut stream = connect(&siege.agent.socket());
            stream.write_all(head.as_bytes()).expect("a head");
            let reply = http::read(&mut stream).expect("an answer");
            assert!(matches!(reply.status, 400 | 413 | 431), "{len}: {}", reply.status);
            let body = vec![b'#'; 1 << 20];
            let sent = (0..200).try_for_each(|_| stream.write_all(&body));
            assert!(sent.is_err(), "nobody reads it");
        }
        let peak = siege.memory("VmHWM").saturating_sub(siege.memory);
        assert!(peak <= FEW_REQUESTS, "{} MiB more than before", peak / MIB);

        let mut stream = connect(&siege.agent.socket());
        stream.write_all(CHUNKED).expect("a head");
        let sent = send_chunks(&mut stream, 200);
        assert!(sent.is_err(), "nobody reads it");
        assert_eq!(http::read(&mut stream).expect("an answer").status, 413);

        // Many at once, which never end, get what there is and no more.
        let crowd: Vec<UnixStream> = thread::scope(|scope| {
            let send = || {
                let mut stream = connect(&siege.agent.socket());
                stream.write_all(CHUNKED).expect("a head");
                // Some are hung up on, as there is no room.
                let _ = send_chunks(&mut stream, 100);
                stream
            };
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(send)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
        });
        // Whoever has little to say is heard meanwhile, also with a body.
        siege.agent.ask(&["status"]).expect(0, &[]);
        siege.agent.ask(&["rule", "remove", "nobody"]).expect(2, &["no rule `nobody`"]);
        siege.agent.ask(&["diff", siege.agent.policy_path().to_str().unwrap()]).expect(0, &[]);
        drop(crowd);
        let long = policy() + &format!("# {}\n", "long ".repeat(20)).repeat(10_000);
        wait_until("there is room again", || {
            send_json(&siege.agent, "POST", "/v1/diff", &json!({ "policy": long })).status == 200
        });
        // Twice the longest request, and a bit for the buffers on the way there.
        siege.end(256 * MIB + FEW_REQUESTS);
    });
}

#[test]
fn what_is_nested_deeply_is_refused() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let deep = 200_000;
        let json_bodies = [
            "[".repeat(deep),
            "{\"edits\":".repeat(deep),
            format!("{{\"edits\":{}{}}}", "[".repeat(deep), "]".repeat(deep)),
            format!("{{\"policy\":\"\",\"x\":{}", "{\"x\":".repeat(deep)),
        ];
        for body in &json_bodies {
            for (method, path) in [
                ("PUT", "/v1/policy"),
                ("POST", "/v1/edits"),
                ("POST", "/v1/rollback"),
                ("POST", "/v1/diff"),
            ] {
                let reply =
                    http::ask(&siege.agent, method, path, Some((http::JSON, body.as_bytes())));
                assert_eq!(reply.status, 422, "{method} {path}");
                assert_eq!(reply.refusal().0, "bad-input");
            }
        }
        for text in [
            format!("version = {}", "[".repeat(deep)),
            format!("version = {}{}", "[".repeat(deep), "]".repeat(deep)),
            format!("version = {}", "{a=".repeat(deep)),
            format!("{}version = 1", "a.".repeat(deep)),
        ] {
            for (method, path) in [("PUT", "/v1/policy"), ("POST", "/v1/diff")] {
                let reply = http::ask(&siege.agent, method, path, Some(("", text.as_bytes())));
                assert_eq!(reply.status, 422, "{method} {path}");
                // An explanation is no copy of what is wrong.
                assert!(reply.body.len() < 100_000, "{} bytes", reply.body.len());
            }
        }
        siege.end(256 * MIB);
    });
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends a byte now and then, until it is told to stop, and comes again whenever it is thrown out.
fn dawdle(agent: &Agent, bytes: &[u8], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = connect(&agent.socket());
        for byte in bytes.chunks(1) {
            if stop.load(Ordering::Relaxed) || stream.write_all(byte).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Whoever has asked may close that half of the connection at once, as `nc -N` does.
#[test]
fn who_has_said_all_is_answered() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        for round in 0..50 {
            let mut stream = connect(&agent.socket());
            stream.write_all(&request("GET", "/v1/status", "", b"")).expect("a request");
            stream.shutdown(Shutdown::Write).expect("an end of requests");
            let answer = http::read(&mut stream);
            assert_eq!(answer.map(|it| it.status).ok(), Some(200), "round {round}");
        }
    });
}

#[test]
fn a_crowd_that_says_nothing_keeps_nobody_waiting() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let count = if is_slow() { 500 } else { 2_000 };
        let stop = AtomicBool::new(false);
        let agent = &siege.agent;
        let endless = [CHUNKED, b"fffffff\r\n", &[b'#'; 4_000]].concat();
        let promised = request("PUT", "/v1/policy", "", &[b'#'; 100_000]);
        let slow = [endless, promised, harmless().swap_remove(0)];
        thread::scope(|scope| {
            // Also where the test fails.
            let _end = SetOnDrop(&stop);
            for bytes in &slow {
                for _ in 0..8 {
                    let stop = &stop;
                    scope.spawn(move || dawdle(agent, bytes, stop));
                }
            }
            let idle: Vec<UnixStream> = (0..count).map(|_| connect(&agent.socket())).collect();
            assert!(
                siege.count_descriptors() <= siege.descriptors + 80,
                "no more than there is room for"
            );
            for round in 0..3 {
                agent.ask(&["status"]).expect(0, &["uplink"]);
                agent.apply(&(policy() + &rule("more", 2100 + round, "drop")), &[]);
                assert_eq!(agent.ask_json(&["rule", "list"])[1]["name"], "more");
                assert_in_force(&site, agent);
            }
            // A long policy as well, beside those that send theirs slowly.
            let long = policy() + &format!("# {}\n", "long ".repeat(20)).repeat(20_000);
            agent.apply(&long, &[]);
            agent.apply(&policy(), &[]);
            drop(idle);
        });
        let now = in_force(&siege.agent);
        assert_eq!(now.1, siege.before.1);
        Siege { before: now, ..siege }.end(128 * MIB);
    });
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let count = if is_slow() { 1_000 } else { 6_000 };
        for number in 0..count {
            let mut stream = connect(&siege.agent.socket());
            if number % 2 == 0 {
                stream.write_all(b"G").expect("a byte");
            }
        }
        assert_eq!(get(&siege.agent, "/v1/status").status, 200);
        siege.end(FEW_REQUESTS);
    });
}

#[test]
fn requests_in_one_go_are_answered_in_turn() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let same = policy();
        let turn = [
            request("GET", "/v1/policy", "", b""),
            request("POST", "/v1/diff", "", same.as_bytes()),
            request("GET", "/v1/nothing", "", b""),
            request("POST", "/v1/edits", "", b"{}"),
            request("POST", "/v1/confirm", "", b""),
        ];
        let mut stream = connect(&siege.agent.socket());
        stream.write_all(&turn.concat().repeat(20)).expect("requests");
        for round in 0..20 {
            let replies: Vec<_> =
                (0..5).map(|_| http::read(&mut stream).expect("an answer")).collect();
            let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
            assert_eq!(statuses, [200, 200, 404, 422, 404], "{round}");
            assert_eq!(replies[0].json()["policy"], same.as_str());
            assert_eq!(replies[1].json()["same"], true);
        }

        // Whoever takes no answers gets no more of them.
        let mut stream = connect(&siege.agent.socket());
        stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a time limit");
        let asked = request("GET", "/v1/openapi.json", "", b"").repeat(1_000);
        let mut sent = Ok(());
        for _ in 0..50 {
            sent = stream.write_all(&asked);
            if sent.is_err() {
                break;
            }
        }
        assert!(sent.is_err(), "50,000 requests were read, and their answers by nobody");
        siege.end(FEW_REQUESTS);
    });
}

/// Answers that nobody takes are there once, and not for everybody who asks.
#[test]
fn long_answers_that_nobody_takes_have_their_limit() {
    sandbox(|| {
        let site = Site::quiet();
        let mib = if is_slow() { 2 } else { 12 };
        let long = policy() + &format!("# {}\n", "long".repeat(24)).repeat(mib * 10_500);
        let siege = Siege::begin(&site, &long);
        let asked = request("GET", "/v1/policy", "", b"");
        let crowd: Vec<UnixStream> = (0..60)
            .map(|_| {
                let mut stream = connect(&siege.agent.socket());
                stream.write_all(&asked).expect("a request");
                stream
            })
            .collect();
        let replies = crowd.into_iter().map(|mut stream| {
            let mut first = [0; 12];
            stream.read_exact(&mut first).expect("the beginning of an answer");
            (stream, String::from_utf8_lossy(&first[9..]).into_owned())
        });
        let replies: Vec<(UnixStream, String)> = replies.collect();
        let count = |status: &str| replies.iter().filter(|(_, it)| it == status).count();
        assert_eq!(count("200") + count("503"), 60);
        assert_eq!(count("200") < 60, mib > 2, "{} were answered", count("200"));
        assert!(count("200") >= 5, "{} were answered", count("200"));
        // What is short is answered meanwhile.
        let status: Value = get(&siege.agent, "/v1/status").json();
        assert_eq!(status["agent"]["state"], "in force");
        drop(replies);
        wait_until("there is room again", || get(&siege.agent, "/v1/policy").status == 200);
        // What waits for clients, and what is being made: a text, and the JSON of it, which doubles as it grows.
        siege.end(128 * MIB + 8 * mib as u64 * MIB + FEW_REQUESTS);
    });
}

/// The commands say what is too long before they send it.
#[test]
fn a_policy_that_is_too_long_is_told_so() {
    sandbox(|| {
        let site = Site::quiet();
        let siege = Siege::begin(&site, &policy());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p.toml");
        let policy = HEAD.to_owned()
            + "[sets.a]\nfile = \"a.txt\"\n"
            + &rule("x", 2, "drop")
            + "src = \"@a\"\n";
        fs::write(&file, policy).unwrap();
        // One long comment: nothing that takes long to read.
        let list = [b"10.0.0.0/8 # ", &vec![b'x'; 130 << 20][..]].concat();
        fs::write(directory.path().join("a.txt"), list).unwrap();
        let file = file.to_str().unwrap();
        siege
            .agent
            .ask(&["apply", file])
            .expect(2, &["longer than 128 MiB", "portsteer agent --policy FILE"]);
        let long = "#".repeat(33 << 20);
        let reply = http::ask(&siege.agent, "PUT", "/v1/policy", Some(("", long.as_bytes())));
        assert_eq!(reply.status, 422);
        assert!(reply.refusal().1.contains("longer than 32 MiB"), "{:?}", reply.refusal());
        siege.end(128 * MIB);
    });
}

/// What a client calls its policy stands in logs and listings, which root reads at a terminal.
#[test]
fn no_client_writes_the_log_or_to_a_terminal() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let before = in_force(&agent);
        let text = policy();
        let kind = "application/toml";
        for path in [
            "%1b%5b2Jevil",
            "evil%0aportsteer%5Bmain%5D:%20taken%20off",
            "%c2%9b2J",
            &"long/".repeat(1000),
        ] {
            let at = format!("/v1/policy?path={path}");
            let reply = http::ask(&agent, "PUT", &at, Some((kind, text.as_bytes())));
            let (_, said) = reply.refusal();
            assert_eq!(reply.status, 422, "{said}");
            assert!(said.contains("the policy's path"), "{said}");
        }
        let json = serde_json::json!({ "policy": text, "path": "a\u{1b}[2Jb" });
        assert_eq!(send_json(&agent, "PUT", "/v1/policy", &json).status, 422);
        assert_eq!(in_force(&agent), before);
        // What changes the order in which text is read is shown for what it is.
        let at = "/v1/policy?path=/etc/%e2%80%aelmot.ycilop";
        let reply = http::ask(&agent, "PUT", at, Some((kind, text.as_bytes())));
        assert_eq!(reply.status, 200, "{reply:?}");
        for shown in [agent.ask(&["status"]).stdout, agent.log()] {
            assert!(shown.contains("\\u202elmot") && !shown.contains('\u{202e}'), "{shown}");
        }
        let log = agent.log();
        assert!(!log.contains('\u{1b}') && !log.contains("taken off"), "{log}");
    });
}
