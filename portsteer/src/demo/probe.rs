//! The client: tries a port and tells what came of it.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::{
    rows::{Expected, Protocol, Row, Server},
    servers::dns,
};
use crate::lab::Namespace;

/// What the client experienced.
#[derive(Debug, Clone)]
pub(super) struct Experience {
    pub(super) outcome: Outcome,
    /// How long it took.
    pub(super) milliseconds: f64,
    /// The packets that the client sent for it, at the least.
    pub(super) sent_at_least: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Answered {
        /// Who the server says it is; none where this is not the answer that such a server gives.
        by: Option<String>,
        text: String,
    },
    /// A TCP reset or an ICMP port unreachable.
    Refused,
    Silence,
    /// None of these, in the kernel's words.
    Failed(String),
}

impl Outcome {
    /// The word for it in JSON.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "answered",
            Self::Refused => "refused",
            Self::Silence => "silence",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Experience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.milliseconds;
        match &self.outcome {
            Outcome::Answered { by, text } => {
                write!(f, "{} in {milliseconds:.1} ms", by.as_ref().unwrap_or(text))
            }
            Outcome::Refused => write!(f, "refused in {milliseconds:.1} ms"),
            Outcome::Silence => write!(f, "silence for {milliseconds:.0} ms"),
            Outcome::Failed(text) => f.write_str(text),
        }
    }
}

/// How long silence has to last where it is expected: shorter than the second after which TCP
/// tries again, so that each attempt is one packet.
const SILENCE: Duration = Duration::from_millis(400);
/// How long to wait for what should come at once, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tries the row's port at the address, from inside the namespace.
pub(super) fn probe(client: &Namespace, from: IpAddr, to: IpAddr, row: &Row) -> Experience {
    let to = SocketAddr::new(to, row.port);
    let patience = if row.expected() == Expected::Silence { SILENCE } else { PATIENCE };
    client.run(|| {
        let started = Instant::now();
        let attempt = match row.protocol {
            Protocol::Tcp => connect(to, row.server, patience),
            Protocol::Udp => ask(from, to, row.server, patience),
        };
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        let outcome = attempt.unwrap_or_else(|error| match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silence,
            _ => Outcome::Failed(error.to_string()),
        });
        // A conversation over TCP takes a SYN, an ACK, and a packet with the request.
        let sent_at_least = match (row.protocol, &outcome) {
            (Protocol::Tcp, Outcome::Answered { .. }) => 3,
            _ => 1,
        };
        Experience { outcome, milliseconds, sent_at_least }
    })
}

fn connect(to: SocketAddr, server: Option<Server>, patience: Duration) -> io::Result<Outcome> {
    let stream = TcpStream::connect_timeout(&to, patience)?;
    // From here on, silence and refusal would be something else than the policy's doing.
    Ok(converse(stream, to, server)
        .unwrap_or_else(|error| Outcome::Failed(format!("connected, then: {error}"))))
}

fn converse(mut stream: TcpStream, to: SocketAddr, server: Option<Server>) -> io::Result<Outcome> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match server {
        Some(Server::Http) => {
            stream.write_all(
                format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes(),
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let status = answer.lines().next().unwrap_or_default();
            let status = status.strip_prefix("HTTP/1.1 ").unwrap_or(status).to_owned();
            let page = answer.split_once("\r\n\r\n").map(|(_, page)| page.to_owned());
            Ok(Outcome::Answered { by: page.filter(|_| status == "200 OK"), text: status })
        }
        Some(Server::Lines { greeting, request, reply }) => {
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let mut next = || lines.next().transpose().map(Option::unwrap_or_default);
            let greeted = next()?;
            stream.write_all(format!("{request}\r\n").as_bytes())?;
            let text = next()?;
            // To the end, so that nothing is under way when the counters are read.
            while lines.next().transpose()?.is_some() {}
            let by = greeted.strip_prefix(greeting).map(|name| name.trim().to_owned());
            Ok(Outcome::Answered { by: by.filter(|_| text == reply), text })
        }
        Some(Server::Dns | Server::Datagrams) | None => {
            Ok(Outcome::Failed("connected, though nothing listens".to_owned()))
        }
    }
}

fn ask(
    from: IpAddr,
    to: SocketAddr,
    server: Option<Server>,
    patience: Duration,
) -> io::Result<Outcome> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    let question = dns::question(socket.local_addr()?.port());
    socket.send(&question)?;
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer)?;
    let answer = &buffer[..len];
    let by = match server {
        Some(Server::Dns) => dns::text(&question, answer),
        _ => String::from_utf8(answer.to_vec()).ok(),
    };
    let text = by.clone().unwrap_or_else(|| "nonsense".to_owned());
    Ok(Outcome::Answered { by, text })
}
