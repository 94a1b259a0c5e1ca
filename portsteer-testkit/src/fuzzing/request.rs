//! Any bytes at the control socket: an answer in HTTP or none, and an agent that goes on answering.

use std::{
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
use tempfile::TempDir;

use crate::agent::PATIENCE;

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
    _state: TempDir,
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
        let state = tempfile::tempdir().expect("a directory for its state");
        let socket = state.path().join("agent.sock");
        let options = Options {
            policy: None,
            resume: true,
            instance: Instance::new("fuzzed").expect("a name"),
            lifetime: None,
            config: Config { socket: Some(socket.clone()), ..Config::default() },
            state: Some(state.path().join("state")),
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
        Self { socket, _namespace: namespace, _veth: veth, _state: state }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
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
        let parsed: Result<serde_json::Value, _> = serde_json::from_slice(body);
        assert!(parsed.is_ok(), "{}", shown());
    }
}

/// Makes a request's length right, so that its body is read.
pub fn repair(request: &mut Vec<u8>) {
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
