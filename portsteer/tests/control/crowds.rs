//! Crowds that ask: readers at the socket for monitoring do not keep the operator waiting, and clients that go take
//! their places in all queues with them.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use portsteer_testkit::{
    agent::{Agent, is_slow},
    sandbox::sandbox,
    site::{Site, wait_until},
};
use serde_json::json;

use crate::{
    HEAD, INSTANCE, Public, assert_in_force,
    http::{JSON, Reply, connect, read, read_after, request},
    in_force, policy, rule,
};

/// How long an operator waits at most before a test gives up. Some looks of a second each are far less.
const HANG: Duration = Duration::from_secs(10);

/// Looks at this take a while.
fn long_to_look_at() -> String {
    let mut text = HEAD.to_owned() + "[sets.many]\naddresses = [\n";
    for number in 0..if is_slow() { 5_000 } else { 80_000 } {
        writeln!(text, "\"10.{}.{}.1\",", number >> 8 & 0xff, number & 0xff).unwrap();
    }
    text += "]\n";
    for number in 0..if is_slow() { 100 } else { 1_000 } {
        text += &rule(&format!("rule-{number}"), 10_000 + number, "drop");
    }
    text + &rule("blocked", 2000, "drop")
}

#[test]
fn readers_of_the_monitor_socket_do_not_keep_the_operator_waiting() {
    sandbox(|| {
        let site = Site::quiet();
        let public = Public::new();
        let (monitor, config) = (public.path("monitor.sock"), public.path("agent.toml"));
        fs::write(&config, format!("monitor_socket = {monitor:?}\n")).unwrap();
        let arguments = ["--config", config.to_str().unwrap()];
        let agent = Agent::serve_with(&site.host, INSTANCE, &long_to_look_at(), &arguments);
        for path in ["/v1/status", "/v1/stats", "/v1/policy", "/v1/sets/many"] {
            let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
            thread::scope(|scope| {
                let _end = StopOnDrop(&stop);
                for reader in 0..100 {
                    // Some take their answers, and some are gone before they come.
                    let (stop, asked, monitor) = (&stop, &asked, &monitor);
                    scope.spawn(move || read_on(monitor, path, reader % 4 == 0, stop, asked));
                }
                wait_until("there is a crowd", || asked.load(Ordering::Relaxed) >= 200);
                for _ in 0..5 {
                    let mut stream = UnixStream::connect(agent.socket()).expect("the agent");
                    stream.set_read_timeout(Some(HANG)).expect("a time limit");
                    stream.write_all(&request("GET", "/v1/status", &[], None)).expect("a request");
                    let reply = read(&mut stream).expect("the operator is answered");
                    assert_eq!(reply.json()["agent"]["state"], "in force", "beside {path}");
                }
            });
        }
        assert_in_force(&site, &agent);
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks again and again.
fn read_on(monitor: &Path, path: &str, leaves: bool, stop: &AtomicBool, asked: &AtomicUsize) {
    let request = request("GET", path, &[("Connection", "close")], None);
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(monitor) else { continue };
        // The agent may have hung up on it, as others came.
        if stream.write_all(&request).is_err() {
            continue;
        }
        asked.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        let mut piece = vec![0; 1 << 20];
        while !leaves && !stop.load(Ordering::Relaxed) {
            match stream.read(&mut piece) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
    }
}

/// All rules overlap in both addresses: it takes some seconds to compile them.
fn slow_to_compile() -> String {
    let mut text = policy();
    for index in 0..90 {
        let (high, low) = (index / 256, index % 256);
        write!(
            text,
            "[[rules]]\nsrc = \"!10.{high}.{low}.0/24\"\ndst = \"!172.16.{high}.{low}\"\n\
             dst_port = {index}\naction = \"drop\"\n"
        )
        .unwrap();
    }
    text
}

/// A change waits for the one before it. Without a client that waits for its answer, it does not.
#[test]
fn changes_that_wait_go_with_their_clients() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let before = in_force(&agent);
        let put = |text: &str| {
            let body = json!({ "policy": text }).to_string();
            let mut stream = connect(&agent.socket());
            stream
                .write_all(&request("PUT", "/v1/policy", &[], Some((JSON, body.as_bytes()))))
                .expect("a request");
            stream
        };
        let mut slow = put(&slow_to_compile());
        // As soon as it is being made, others wait for it.
        wait_until("the first change is being made", || {
            let mut stream = connect(&agent.socket());
            stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
            stream.write_all(&request("POST", "/v1/confirm", &[], None)).expect("a request");
            read(&mut stream).is_err()
        });
        let other = policy().replace("2000", "2002");
        let mut waiting: Vec<UnixStream> = (0..20).map(|_| put(&other)).collect();
        wait_until("no more may wait", || {
            waiting.retain_mut(|stream| {
                let Some(reply) = read_if_there(stream) else { return true };
                assert_eq!(reply.status, 409, "{reply:?}");
                assert!(reply.refusal().1.contains("too many requests wait"), "{reply:?}");
                false
            });
            waiting.len() <= 16
        });
        // A client that has closed its own half alone still waits.
        let mut patient = waiting.remove(0);
        patient.shutdown(Shutdown::Write).expect("an end of requests");
        drop(waiting);
        // The others' places are free, while the first change is still being made.
        let mut late: Vec<UnixStream> = Vec::new();
        wait_until("there is room", || {
            late.push(put(&other));
            late.retain_mut(|stream| read_if_there(stream).is_none());
            late.len() >= 15
        });
        assert!(read_if_there(&mut slow).is_none(), "the first change was over too early");
        assert_eq!(in_force(&agent), before);

        // However it ends, after it only what has a client is done.
        let reply = read(&mut slow).expect("an answer");
        let made = late.len() as u64 + 1 + u64::from(reply.status == 200);
        for stream in late.iter_mut().chain([&mut patient]) {
            assert_eq!(read(stream).expect("an answer").status, 200);
        }
        assert_eq!(in_force(&agent).0, before.0 + made);
    });
}

/// An answer, if it has come.
fn read_if_there(stream: &mut UnixStream) -> Option<Reply> {
    stream.set_nonblocking(true).expect("a mode");
    let mut first = [0];
    let len = stream.read(&mut first);
    stream.set_nonblocking(false).expect("a mode");
    matches!(len, Ok(1)).then(|| read_after(&first, stream).expect("an answer"))
}
