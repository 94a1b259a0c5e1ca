//! HTTP over a Unix socket, by hand: whatever a client may send, and what comes back.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use portsteer_testkit::agent::{Agent, PATIENCE};
use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// `ETag`: the policy in force that it tells of.
    pub tag: Option<String>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The body, which has to be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("no JSON: {error}: {self:?} {}", String::from_utf8_lossy(&self.body))
        })
    }

    /// The refusal's kind and message, and all that it says beside.
    pub fn refusal(&self) -> (String, String) {
        let json = self.json();
        let text = |field: &str| json["error"][field].as_str().unwrap_or_default().to_owned();
        (text("kind"), [text("message"), text("help"), text("details")].join("\n"))
    }
}

pub const JSON: &str = "application/json";

/// Asks for something. Whoever has no body to send has no kind of it either.
pub fn ask(agent: &Agent, method: &str, path: &str, body: Option<(&str, &[u8])>) -> Reply {
    ask_with(&agent.socket(), method, path, &[], body)
}

/// The same with further headers, at any socket.
pub fn ask_with(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<(&str, &[u8])>,
) -> Reply {
    let mut stream = connect(socket);
    stream.write_all(&request(method, path, headers, body)).expect("a request can be sent");
    match method {
        "HEAD" => read_head(&[], &mut stream).map(|(reply, _)| reply),
        _ => read(&mut stream),
    }
    .expect("an answer")
}

/// A request as it is sent.
pub fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<(&str, &[u8])>,
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = match body {
        None => &[][..],
        Some((kind, body)) => {
            head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
            body
        }
    };
    [head.as_bytes(), b"\r\n", body].concat()
}

pub fn get(agent: &Agent, path: &str) -> Reply {
    ask(agent, "GET", path, None)
}

pub fn send_json(agent: &Agent, method: &str, path: &str, body: &Value) -> Reply {
    ask(agent, method, path, Some((JSON, body.to_string().as_bytes())))
}

/// A connection that is patient, and not for ever.
pub fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

/// Reads one answer.
pub fn read(stream: &mut UnixStream) -> io::Result<Reply> {
    read_after(&[], stream)
}

/// The same where its first bytes have been read.
pub fn read_after(first: &[u8], stream: &mut UnixStream) -> io::Result<Reply> {
    let (mut reply, len) = read_head(first, stream)?;
    reply.body = vec![0; len];
    stream.read_exact(&mut reply.body)?;
    Ok(reply)
}

/// Reads an answer's head. Returns how long the body is that follows.
fn read_head(first: &[u8], stream: &mut UnixStream) -> io::Result<(Reply, usize)> {
    let mut head = first.to_vec();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer in HTTP: {head:?}"));
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    let len = header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    Ok((Reply { status, tag: header("etag").map(str::to_owned), body: Vec::new() }, len))
}
