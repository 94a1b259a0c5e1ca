//! The servers of the host and of the namespaces behind it: real sockets, small protocols. All say
//! who they are.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    network::{HOST, HOST_NAME, Network},
    rows::{Protocol, ROWS, Row, Server},
};
use crate::lab;

/// Running servers. They stop when this is dropped.
#[derive(Debug)]
pub(super) struct Servers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long a server waits for a client that says nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the servers look whether they are to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// A server on one socket.
struct Listener {
    socket: Socket,
    server: Server,
    /// Who it says it is.
    name: String,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }
}

impl Servers {
    /// Starts all rows' servers on the host, and those of the rows that lead to another place there
    /// as well. Servers that tell CPUs apart know these.
    pub(super) fn start(network: &Network, cpus: &[u32]) -> io::Result<Self> {
        let on_host = ROWS.iter().map(|row| (&network.host, HOST_NAME, row));
        let elsewhere = network.places.iter().flat_map(|place| {
            ROWS.iter()
                .filter(|row| row.group.target() == Some(place.name))
                .map(|row| (place.eth0.namespace(), place.name, row))
        });
        let mut listeners = Vec::new();
        for (namespace, name, row) in on_host.chain(elsewhere) {
            for address in HOST {
                let address = SocketAddr::new(address, row.port);
                listeners.extend(namespace.run(|| listen(address, row, name, cpus))?);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || serve(&listeners, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Opens what the row's server listens on, if it has one.
fn listen(address: SocketAddr, row: &Row, name: &str, cpus: &[u32]) -> io::Result<Vec<Listener>> {
    let Some(server) = row.server else { return Ok(Vec::new()) };
    let listener = |socket, name| Listener { socket, server, name };
    let udp = |socket: UdpSocket, name| {
        socket.set_nonblocking(true)?;
        Ok(listener(Socket::Udp(socket), name))
    };
    match (row.protocol, server) {
        (Protocol::Tcp, _) => {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(vec![listener(Socket::Tcp(socket), name.to_owned())])
        }
        (Protocol::Udp, Server::Dns) => lab::udp_sockets_by_cpu(address, cpus)?
            .into_iter()
            .enumerate()
            .map(|(number, socket)| udp(socket, on_cpu(name, cpus.get(number).copied())))
            .collect(),
        (Protocol::Udp, _) => Ok(vec![udp(UdpSocket::bind(address)?, name.to_owned())?]),
    }
}

/// What a server says that tells one CPU, or several, from all others.
pub(super) fn on_cpu(name: &str, cpu: Option<u32>) -> String {
    match cpu {
        Some(cpu) => format!("{name}, CPU {cpu}"),
        None => format!("{name}, another CPU"),
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked was seen by its client: it did not answer.
            let _ = thread.join();
        }
    }
}

fn serve(listeners: &[Listener], stop: &AtomicBool) {
    let polled: Vec<_> = listeners.iter().map(|listener| listener.socket.as_fd()).collect();
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok(ready) = lab::poll_readable(&polled, STOP_CHECK) else { return };
            for Listener { socket, server, name } in ready.iter().map(|&index| &listeners[index]) {
                // What goes wrong here, the client experiences, and the demo tells.
                match socket {
                    Socket::Tcp(listener) => {
                        if let Ok((stream, _)) = listener.accept() {
                            scope.spawn(move || {
                                let _ = converse(stream, *server, name);
                            });
                        }
                    }
                    Socket::Udp(socket) => {
                        let _ = answer_datagram(socket, *server, name);
                    }
                }
            }
        }
    });
}

fn converse(mut stream: TcpStream, server: Server, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    match server {
        Server::Http => {
            while !lines.next().transpose()?.is_none_or(|line| line.is_empty()) {}
            let length = name.len();
            stream.write_all(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
                     Connection: close\r\n\r\n{name}"
                )
                .as_bytes(),
            )
        }
        Server::Lines { greeting, request, reply } => {
            stream.write_all(format!("{greeting} {name}\r\n").as_bytes())?;
            let said = lines.next().transpose()?;
            let reply = if said.as_deref() == Some(request) { reply } else { "what?" };
            stream.write_all(format!("{reply}\r\n").as_bytes())
        }
        Server::Dns | Server::Datagrams => Ok(()),
    }
}

fn answer_datagram(socket: &UdpSocket, server: Server, name: &str) -> io::Result<usize> {
    let mut buffer = [0; 512];
    let (len, client) = socket.recv_from(&mut buffer)?;
    let request = &buffer[..len];
    match server {
        Server::Dns => socket.send_to(&dns::answer(request, name), client),
        _ => socket.send_to(name.as_bytes(), client),
    }
}

/// As much of DNS (RFC 1035) as it takes to ask a name server who it is (RFC 4892).
pub(super) mod dns {
    const HEADER_LEN: usize = 12;
    /// TXT, CHAOS.
    const TYPE_AND_CLASS: [u8; 4] = [0, 16, 0, 3];
    /// Where the question's name stands, as a pointer (RFC 1035 section 4.1.4).
    const SAME_NAME: [u8; 2] = [0xc0, HEADER_LEN as u8];

    /// Asks for the text of `id.server`.
    pub(crate) fn question(id: u16) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        // No flags; one question.
        message.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(b"\x02id\x06server\x00");
        message.extend(TYPE_AND_CLASS);
        message
    }

    /// That text, of at most 254 bytes.
    pub(super) fn answer(question: &[u8], text: &str) -> Vec<u8> {
        let mut message = question.to_vec();
        if message.len() >= HEADER_LEN {
            message[2] |= 0x84; // a response, authoritative
            message[7] = 1; // one answer
            message.extend(record(text));
        }
        message
    }

    fn record(text: &str) -> Vec<u8> {
        let len = text.len() as u8;
        let mut record = [&SAME_NAME[..], &TYPE_AND_CLASS].concat();
        // TTL 0, the record's length, the text's.
        record.extend([0, 0, 0, 0, 0, len + 1, len]);
        record.extend(text.bytes());
        record
    }

    /// The text in the answer to that question; `None` where it answers something else.
    pub(crate) fn text(question: &[u8], answer: &[u8]) -> Option<String> {
        let (header, rest) = answer.split_at_checked(HEADER_LEN)?;
        let is_answer = header[..2] == question[..2] && header[2] & 0x80 != 0 && header[7] == 1;
        let found = rest.strip_prefix(&question[HEADER_LEN..])?;
        let text = str::from_utf8(found.get(record("").len()..)?).ok()?;
        (is_answer && found == record(text)).then(|| text.to_owned())
    }

    #[cfg(test)]
    #[test]
    fn an_answer_fits_its_question_only() {
        let question = question(7);
        let answer = answer(&question, "host, CPU 1");
        assert_eq!(text(&question, &answer).as_deref(), Some("host, CPU 1"));
        assert_eq!(text(&question, &answer[..answer.len() - 1]), None);
        assert_eq!(text(&question, &question), None);
        assert_eq!(text(&self::question(8), &answer), None);
        assert_eq!(text(&question, &[]), None);
    }
}
