//! The host's servers: real sockets, small protocols.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::rows::{Protocol, Row, Server};
use crate::lab::{self, Namespace};

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
    /// Starts the rows' servers in the namespace, on each of the addresses.
    pub(super) fn start(
        namespace: &Namespace,
        addresses: [IpAddr; 2],
        rows: &[Row],
    ) -> io::Result<Self> {
        let sockets: Vec<(Socket, Server)> = namespace.run(|| {
            let mut sockets = Vec::new();
            for row in rows {
                let Some(server) = row.server else { continue };
                for address in addresses {
                    let address = (address, row.port);
                    let socket = match row.protocol {
                        Protocol::Tcp => {
                            let listener = TcpListener::bind(address)?;
                            listener.set_nonblocking(true)?;
                            Socket::Tcp(listener)
                        }
                        Protocol::Udp => {
                            let socket = UdpSocket::bind(address)?;
                            socket.set_nonblocking(true)?;
                            Socket::Udp(socket)
                        }
                    };
                    sockets.push((socket, server));
                }
            }
            Ok::<_, io::Error>(sockets)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || serve(&sockets, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
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

fn serve(sockets: &[(Socket, Server)], stop: &AtomicBool) {
    let polled: Vec<_> = sockets.iter().map(|(socket, _)| socket.as_fd()).collect();
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok(ready) = lab::poll_readable(&polled, STOP_CHECK) else { return };
            for (socket, server) in ready.into_iter().map(|index| &sockets[index]) {
                // What goes wrong here, the client experiences, and the demo tells.
                match socket {
                    Socket::Tcp(listener) => {
                        if let Ok((stream, _)) = listener.accept() {
                            scope.spawn(move || {
                                let _ = converse(stream, *server);
                            });
                        }
                    }
                    Socket::Udp(socket) => {
                        let _ = answer_datagram(socket, *server);
                    }
                }
            }
        }
    });
}

fn converse(mut stream: TcpStream, server: Server) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    match server {
        Server::Http(text) => {
            while !lines.next().transpose()?.is_none_or(|line| line.is_empty()) {}
            let length = text.len();
            stream.write_all(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
                     Connection: close\r\n\r\n{text}"
                )
                .as_bytes(),
            )
        }
        Server::Lines { greeting, request, reply } => {
            stream.write_all(format!("{greeting}\r\n").as_bytes())?;
            let said = lines.next().transpose()?;
            let reply = if said.as_deref() == Some(request) { reply } else { "what?" };
            stream.write_all(format!("{reply}\r\n").as_bytes())
        }
        Server::Dns | Server::Echo => Ok(()),
    }
}

fn answer_datagram(socket: &UdpSocket, server: Server) -> io::Result<usize> {
    let mut buffer = [0; 512];
    let (len, client) = socket.recv_from(&mut buffer)?;
    let request = &buffer[..len];
    match server {
        Server::Dns => socket.send_to(&dns::answer(request), client),
        _ => socket.send_to(request, client),
    }
}

/// As much of DNS (RFC 1035) as one question takes.
pub(super) mod dns {
    use super::Ipv4Addr;

    /// What the name server says about every name.
    pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const HEADER_LEN: usize = 12;

    /// Asks for the IPv4 address of `demo.example`.
    pub(crate) fn question(id: u16) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        // Recursion desired; one question.
        message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(b"\x04demo\x07example\x00");
        message.extend([0, 1, 0, 1]); // A, IN
        message
    }

    pub(super) fn answer(question: &[u8]) -> Vec<u8> {
        let mut message = question.to_vec();
        if message.len() >= HEADER_LEN {
            message[2] |= 0x84; // a response, authoritative
            message[7] = 1; // one answer
            // The question's name, A, IN, TTL 60, 4 bytes.
            message.extend([0xc0, HEADER_LEN as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            message.extend(ADDRESS.octets());
        }
        message
    }

    /// The address in the answer to that question; `None` where it answers something else.
    pub(crate) fn address(question: &[u8], answer: &[u8]) -> Option<Ipv4Addr> {
        let is_answer = answer.get(..2)? == &question[..2] && answer.get(2)? & 0x80 != 0;
        let address: [u8; 4] = *answer.last_chunk()?;
        (is_answer && answer.len() == question.len() + 16).then(|| address.into())
    }

    #[cfg(test)]
    #[test]
    fn an_answer_fits_its_question_only() {
        let question = question(7);
        let answer = answer(&question);
        assert_eq!(address(&question, &answer), Some(ADDRESS));
        assert_eq!(address(&question, &question), None);
        assert_eq!(address(&self::question(8), &answer), None);
        assert_eq!(address(&question, &[]), None);
    }
}
