//! Any bytes at the control socket: an answer in HTTP or none, and an agent that goes on answering.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use portsteer::{
    agent::{self, Config, Desired, Options, Reporter},
    api::ApplyAnswer,
    dataplane::{Applied, Instance},
    lab::{self, End, Namespace, Veth},
};
use serde_json::Value;

use crate::{agent::PATIENCE, random::Random};

/// The longest answer that is read. A client that takes no more of it than that is one of those that may be.
const MAX_ANSWER: u64 = 1 << 20;

/// How a request's head ends.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// An agent in a thread of this process, so that a fuzzer sees what a request leads to. It has a namespace with the
/// interfaces `uplink` and `other`, and private mounts.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    _namespace: Namespace,
    _veth: Veth,
}

impl Agent {
    /// Starts it, with nothing in force.
    ///
    /// # Panics
    ///
    /// If it does not come up, and in its own thread if it ends.
    #[must_use]
    pub fn start() -> Self {
        let namespace = Namespace::new().expect("root is needed: the agent has a namespace");
        let veth =
            Veth::between(End::new(&namespace, "uplink"), End::new(&namespace, "other")).create();
        let veth = veth.expect("a veth pair");
        let state = directory();
        let socket = state.join("agent.sock");
        let options = Options {
            policy: None,
            resume: true,
            instance: Instance::new("fuzzed").expect("a name"),
            lifetime: None,
            config: Config { socket: Some(socket.clone()), ..Config::default() },
            state: Some(state.join("state")),
        };
        let inside = namespace.clone();
        thread::spawn(move || {
            lab::private_mounts().expect("root is needed: the agent has private mounts");
            inside.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let ended =
                    runtime.expect("a runtime").block_on(agent::run(options, Box::new(Mute)));
                panic!("the agent has ended: {ended:?}");
            });
        });
        crate::site::wait_until("the agent listens", || UnixStream::connect(&socket).is_ok());
        Self { socket, _namespace: namespace, _veth: veth }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// An empty directory for the agent of this process. A fuzzer ends without tidying up, so whoever is next removes
/// what those have left that run no more.
fn directory() -> PathBuf {
    let all = std::env::temp_dir().join("portsteer-fuzz");
    for old in fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(old.file_name()).exists() {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    let _ = fs::remove_dir_all(&own);
    fs::create_dir_all(&own).expect("a directory for the agent's state");
    own
}

/// Nobody hears what the agent says.
#[derive(Debug)]
struct Mute;

impl Reporter for Mute {
    fn applied(&mut self, _: &ApplyAnswer) {}
    fn taken_over(&mut self, _: &Desired, _: &Applied) {}
    fn refused(&mut self, _: &agent::Error) {}
    fn note(&mut self, _: &str) {}
}

/// Sends some bytes to an agent, with nothing behind them.
///
/// # Panics
///
/// If it does not end the connection in time, or answers with what is no HTTP, no JSON where it says so, or a fault of
/// its own.
pub fn request(socket: &Path, bytes: &[u8]) {
    let answer = exchange(socket, bytes).expect("the agent ends the connection by itself");
    check(&answer, bytes);
}

/// Makes sure that the agent still answers, and ends a trial, during which it would refuse nearly everything.
///
/// # Panics
///
/// If it does not.
pub fn still_answers(socket: &Path) {
    let answer = exchange(socket, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = answer.expect("the agent answers");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    request(socket, b"POST /v1/confirm HTTP/1.1\r\nHost: x\r\n\r\n");
}

fn exchange(socket: &Path, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // It may have heard enough before the end.
    let is_over = |error: &io::Error| {
        [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind())
    };
    match stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write)) {
        Err(error) if !is_over(&error) => return Err(error),
        _ => {}
    }
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER).read_to_end(&mut answer) {
        Err(error) if !is_over(&error) => Err(error),
        _ => Ok(answer),
    }
}

/// The first of the answers; a request can be followed by another one.
fn check(answer: &[u8], request: &[u8]) {
    if answer.is_empty() {
        return;
    }
    let shown = || {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        format!("{}\n\nwas the answer to\n\n{}", text(answer), text(request))
    };
    let end = answer.windows(4).position(|bytes| bytes == END_OF_HEAD);
    let (head, body) = answer.split_at(end.unwrap_or_else(|| panic!("no head: {}", shown())) + 4);
    let head = str::from_utf8(head).unwrap_or_else(|_| panic!("no text: {}", shown()));
    let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "));
    let status: Option<u16> = status.and_then(|rest| rest.get(..3)?.parse().ok());
    assert!(status.is_some_and(|status| status < 500 || status == 503), "{}", shown());
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    let len = field("content-length").and_then(|len| len.parse::<usize>().ok());
    if let (Some("application/json"), Some(len)) = (field("content-type"), len)
        && let Some(body) = body.get(..len).filter(|body| !body.is_empty())
    {
        let parsed: Result<Value, _> = serde_json::from_slice(body);
        assert!(parsed.is_ok(), "{}", shown());
    }
}

/// Changes something that a request says: a value in its JSON, or a word of its query. What has neither stays as it
/// is.
pub fn mutate(request: &mut Vec<u8>, random: &mut Random) {
    let Some(end) = request.windows(4).position(|bytes| bytes == END_OF_HEAD) else { return };
    let body = end + END_OF_HEAD.len();
    if let Ok(mut value) = serde_json::from_slice::<Value>(&request[body..]) {
        change(&mut value, random);
        request.truncate(body);
        request.extend(value.to_string().into_bytes());
    } else if let Some(query) = request[..end].iter().position(|byte| *byte == b'?')
        && let Some(len) = request[query..end].iter().position(|byte| *byte == b' ')
    {
        let text = String::from_utf8_lossy(&request[query + 1..query + len]).into_owned();
        let changed = change_words(&text, &['&', '=', '+'], random);
        request.splice(query + 1..query + len, changed.into_bytes());
    }
    repair(request);
}

/// Changes one value somewhere in this one.
fn change(value: &mut Value, random: &mut Random) {
    match value {
        Value::Array(items) if !items.is_empty() && !random.once_in(6) => {
            let index = random.below(items.len());
            match random.below(6) {
                0 => drop(items.remove(index)),
                1 => items.insert(index, items[index].clone()),
                _ => change(&mut items[index], random),
            }
        }
        Value::Object(fields) if !fields.is_empty() && !random.once_in(8) => {
            let index = random.below(fields.len());
            let Some(name) = fields.keys().nth(index).cloned() else { return };
            if random.once_in(8) {
                fields.remove(&name);
            } else {
                change(&mut fields[&name], random);
            }
        }
        Value::String(text) if !random.once_in(8) => {
            *text = if text.contains('\n') && random.once_in(2) {
                change_words(text, &['\n'], random)
            } else {
                change_words(text, &[' ', '\n', '"', '/', '.', ':', ','], random)
            };
        }
        Value::Bool(is_so) => *is_so = !*is_so,
        _ => {
            *value = match random.below(6) {
                0 => Value::Null,
                1 => Value::from(random.pick(&[0u64, 1, 2, 60, 4_294_967_296, u64::MAX])),
                2 => Value::from(random.once_in(2)),
                3 => Value::from(random.pick(&["", "#1", "#0", "r", "first", "10.0.0.0/8", "::1"])),
                4 => Value::Array(Vec::new()),
                _ => Value::from(-1),
            }
        }
    }
}

/// Takes a word out of a text, or repeats it, or puts another one in its place.
fn change_words(text: &str, between: &[char], random: &mut Random) -> String {
    let mut words: Vec<&str> = text.split_inclusive(between).collect();
    if words.is_empty() {
        return "x".to_owned();
    }
    let index = random.below(words.len());
    let other = words[random.below(words.len())];
    match random.below(5) {
        0 => drop(words.remove(index)),
        1 => words.insert(index, other),
        2 => words[index] = other,
        3 => words.truncate(index),
        _ => {
            let odd = ["", "0", "65535", "65536", "%", "@a", "!", "é", "\0", "\"", "[", "]", "#"];
            words[index] = random.pick(&odd);
        }
    }
    words.concat()
}

/// Makes a request's length right, so that its body is read.
fn repair(request: &mut Vec<u8>) {
    const FIELD: &[u8] = b"content-length:";
    let Some(end) = request.windows(4).position(|bytes| bytes == END_OF_HEAD) else { return };
    let len = request.len() - end - END_OF_HEAD.len();
    let Some(start) =
        request[..end].windows(FIELD.len()).position(|bytes| bytes.eq_ignore_ascii_case(FIELD))
    else {
        return;
    };
    let start = start + FIELD.len();
    let line = request[start..].windows(2).position(|bytes| bytes == b"\r\n").unwrap_or(0);
    request.splice(start..start + line, format!(" {len}").into_bytes());
}

/// How long a fuzzer does not ask whether it still answers.
pub const ASKED_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// All parts of a request change at some time, and its length is right each time.
    #[test]
    fn every_part_of_a_request_is_changed() {
        let body = r#"{"edits":[{"edit":"remove-rule","rule":"r"}],"ssh_connection":"a b c d"}"#;
        let request = format!("POST /v1/edits HTTP/1.1\r\nContent-Length: 0\r\n\r\n{body}");
        let mut random = Random::new(3);
        let mut gone = [false; 4];
        for _ in 0..500 {
            let mut changed = request.clone().into_bytes();
            mutate(&mut changed, &mut random);
            let changed = String::from_utf8(changed).expect("text");
            let (head, body) = changed.split_once("\r\n\r\n").expect("a body");
            assert!(head.ends_with(&format!(": {}", body.len())), "{changed}");
            for (gone, part) in
                gone.iter_mut().zip(["remove-rule", "\"r\"", "\"ssh_connection\"", "a b c d"])
            {
                *gone |= !body.contains(part);
            }
        }
        assert_eq!(gone, [true; 4]);
        let mut query = b"PUT /v1/policy?a=1 HTTP/1.1\r\nContent-Length: 9\r\n\r\nversion".to_vec();
        mutate(&mut query, &mut random);
        assert!(query.ends_with(b"Content-Length: 7\r\n\r\nversion"));
    }

    #[test]
    fn lengths_are_made_right() {
        let mut request = b"PUT / HTTP/1.1\r\ncontent-LENGTH: 999\r\nA: b\r\n\r\nbody".to_vec();
        repair(&mut request);
        assert_eq!(request, b"PUT / HTTP/1.1\r\ncontent-LENGTH: 4\r\nA: b\r\n\r\nbody");
        let before = request.clone();
        repair(&mut request);
        assert_eq!(request, before);
        for other in [&b""[..], b"\r\n\r\n", b"x\r\n\r\ncontent-length: 7"] {
            let mut unchanged = other.to_vec();
            repair(&mut unchanged);
            assert_eq!(unchanged, other);
        }
    }
}
