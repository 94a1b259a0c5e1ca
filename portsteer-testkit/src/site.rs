//! A client and a host, joined by a cable, and what real sockets experience between them.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use portsteer::{
    dataplane::sys::{self, Instruction},
    lab::{Device, End, Namespace, Veth},
    netlink::{AttachedXdp, XdpMode},
};

use crate::agent::{PATIENCE, Stats};

pub const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
pub const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
pub const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// The host's addresses.
pub const HOST: [IpAddr; 2] = [HOST_V4, HOST_V6];

/// How long a client waits for an answer that must not come.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A client and a host. The host's end of the cable is `uplink`, the client's `client`.
#[derive(Debug)]
pub struct Site {
    pub client: Namespace,
    pub host: Namespace,
    pub cable: Veth,
}

impl Site {
    /// A site with both families, whose ends find each other by ARP and neighbour discovery.
    ///
    /// # Panics
    ///
    /// If the kernel refuses it.
    #[must_use]
    pub fn new() -> Self {
        let (client, host) = namespaces();
        let cable = Veth::between(
            End::new(&client, "client").address(CLIENT_V4, 24).address(CLIENT_V6, 64),
            End::new(&host, "uplink").address(HOST_V4, 24).address(HOST_V6, 64),
        )
        .create()
        .expect("a veth pair");
        Self { client, host, cable }
    }

    /// A site with IPv4 only and fixed neighbours: nothing is on the cable but what a test sends.
    ///
    /// # Panics
    ///
    /// If the kernel refuses it.
    #[must_use]
    pub fn quiet() -> Self {
        let (client, host) = namespaces();
        for namespace in [&client, &host] {
            for interface in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
                namespace.run(|| fs::write(path, "1")).expect("IPv6 can be switched off");
            }
        }
        let cable = Veth::between(
            End::new(&client, "client").address(CLIENT_V4, 24),
            End::new(&host, "uplink").address(HOST_V4, 24),
        )
        .static_neighbors()
        .create()
        .expect("a veth pair");
        Self { client, host, cable }
    }

    /// What is attached to the uplink.
    ///
    /// # Panics
    ///
    /// If it is gone.
    #[must_use]
    pub fn xdp(&self) -> Option<AttachedXdp> {
        self.cable.right.link().expect("the uplink").xdp
    }

    /// In which mode something is attached to the uplink.
    #[must_use]
    pub fn xdp_mode(&self) -> Option<XdpMode> {
        self.xdp().map(|xdp| xdp.mode)
    }

    /// A UDP socket of the host, on all its addresses of the family.
    ///
    /// # Panics
    ///
    /// If there can be none.
    #[must_use]
    pub fn udp_server(&self, address: IpAddr, port: u16) -> UdpSocket {
        let start = Instant::now();
        let socket = loop {
            match self.host.run(|| UdpSocket::bind((address, port))) {
                // A test beside this one may have forked while it was bound before, and hold it until its exec.
                Err(error)
                    if error.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE =>
                {
                    thread::sleep(Duration::from_millis(1));
                }
                result => break result.expect("a UDP server"),
            }
        };
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        socket
    }

    /// A UDP socket of the client, connected to the host.
    ///
    /// # Panics
    ///
    /// If there can be none.
    #[must_use]
    pub fn udp_client(&self, address: IpAddr, port: u16) -> UdpSocket {
        let unspecified = if address.is_ipv4() {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        };
        let socket = self.client.run(|| UdpSocket::bind(unspecified)).expect("a UDP client");
        socket.connect((address, port)).expect("a UDP client");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        socket
    }

    /// Sends datagrams to a port and back, one after the other.
    ///
    /// # Panics
    ///
    /// If one gets lost.
    pub fn udp_echo(&self, address: IpAddr, port: u16, count: usize) {
        let (server, client) = (self.udp_server(address, port), self.udp_client(address, port));
        let mut buffer = [0; 64];
        for number in 0..count {
            let text = format!("datagram {number}");
            client.send(text.as_bytes()).expect("a datagram can be sent");
            let (len, sender) = server.recv_from(&mut buffer).expect("a datagram arrives");
            assert_eq!(&buffer[..len], text.as_bytes());
            server.send_to(&buffer[..len], sender).expect("an answer can be sent");
            let len = client.recv(&mut buffer).expect("an answer arrives");
            assert_eq!(&buffer[..len], text.as_bytes());
        }
    }

    /// Connects to a port of the host, by default with patience.
    ///
    /// # Errors
    ///
    /// As connecting goes.
    pub fn connect(&self, address: IpAddr, port: u16, within: Duration) -> io::Result<TcpStream> {
        let stream = self
            .client
            .run(|| TcpStream::connect_timeout(&SocketAddr::from((address, port)), within))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A TCP server of the host.
    ///
    /// # Panics
    ///
    /// If there can be none.
    #[must_use]
    pub fn tcp_server(&self, address: IpAddr, port: u16) -> TcpListener {
        self.host.run(|| TcpListener::bind((address, port))).expect("a TCP server")
    }

    /// Connects to a port, says something and gets it back.
    ///
    /// # Panics
    ///
    /// If that does not work.
    pub fn tcp_echo(&self, address: IpAddr, port: u16) {
        let server = self.tcp_server(address, port);
        let mut client = self.connect(address, port, PATIENCE).expect("the port answers");
        let (mut served, _) = server.accept().expect("a connection");
        client.write_all(b"hello").expect("it can be said");
        let mut heard = [0; 5];
        served.read_exact(&mut heard).expect("it is heard");
        served.write_all(&heard).expect("it can be said back");
        client.read_exact(&mut heard).expect("it comes back");
        assert_eq!(&heard, b"hello");
    }

    /// Connects to a port behind which somebody listens, and gets no answer.
    ///
    /// # Panics
    ///
    /// If an answer comes, of whatever kind.
    pub fn tcp_silence(&self, address: IpAddr, port: u16) {
        let _server = self.tcp_server(address, port);
        let error = self.connect(address, port, SILENCE).expect_err("the port is silent");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{address} {port}: {error}");
    }

    /// Connects to a port on which nobody listens, and is told so.
    ///
    /// # Panics
    ///
    /// If another answer comes, or none.
    pub fn tcp_refused(&self, address: IpAddr, port: u16) {
        let error = self.connect(address, port, PATIENCE).expect_err("the port is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address} {port}: {error}");
    }

    /// The stats once nothing moves any more, and what the kernel itself says that the uplink
    /// has received.
    ///
    /// # Panics
    ///
    /// If it never comes to rest.
    #[must_use]
    pub fn settled(&self, instance: &str) -> (Stats, u64) {
        let read = || {
            let stats = Stats::read(&self.host, instance);
            (stats, self.cable.right.link().expect("the uplink").counters.rx_packets)
        };
        let start = Instant::now();
        let mut before = read();
        while start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
            let now = read();
            if (&before.0.0, before.1) == (&now.0.0, now.1) {
                return now;
            }
            // `in force for` and the like are not in it, so only counters can differ.
            before = now;
        }
        panic!("the uplink does not come to rest: {before:?}");
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

fn namespaces() -> (Namespace, Namespace) {
    (Namespace::new().expect("a namespace"), Namespace::new().expect("a namespace"))
}

/// Asserts that a socket has nothing to read. Call it when what must not arrive has been counted.
///
/// # Panics
///
/// If something is there.
pub fn assert_nothing_arrived(socket: &UdpSocket) {
    socket.set_nonblocking(true).expect("a socket that does not wait");
    let error = socket.recv(&mut [0; 2048]).expect_err("nothing arrives");
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    socket.set_nonblocking(false).expect("a socket that waits");
}

/// Waits until something is so.
///
/// # Panics
///
/// If it is not in time.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited for this: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Attaches somebody else's XDP program, which passes everything, until the descriptor is closed.
///
/// # Panics
///
/// If the kernel refuses it.
#[must_use]
pub fn attach_other_program(device: &Device, mode: XdpMode) -> OwnedFd {
    // include/uapi/linux/if_link.h
    let flags = if mode == XdpMode::Native { 1 << 2 } else { 1 << 1 };
    let instruction = |code, immediate| Instruction { code, registers: 0, offset: 0, immediate };
    // r0 = XDP_PASS; exit
    let program = [instruction(0xb7, 2), instruction(0x95, 0)];
    let program = sys::load_xdp("somebody_else", &program).expect("a program");
    let attach = || sys::link_xdp(program.as_fd(), device.index(), flags);
    device.namespace().run(attach).expect("the other program can be attached")
}
