//! SCTP, by its ports: real sockets, where the kernel knows the protocol.

use std::{
    io::{Read as _, Write as _},
    net::IpAddr,
};

use portsteer::{lab::ethtool::Offload, netlink::XdpMode};
use portsteer_testkit::{
    agent::{Agent, PATIENCE, is_slow},
    sandbox::{sandbox, skip},
    sctp,
    site::{HOST_V4, SILENCE, Site, wait_until},
};

use crate::{INSTANCE, head, rule};

const PASSED: u16 = 5001;
const DROPPED: u16 = 5000;

#[test]
fn associations_are_judged_by_port_in_native_mode() {
    sandbox(|| associations_are_judged_by_port(XdpMode::Native));
}

#[test]
fn associations_are_judged_by_port_in_generic_mode() {
    sandbox(|| associations_are_judged_by_port(XdpMode::Generic));
}

fn associations_are_judged_by_port(mode: XdpMode) {
    let site = Site::new();
    // On a wire, SCTP has its checksum.
    site.cable.left.set_offload(Offload::TxChecksum, false).expect("the offload can be switched");
    let IpAddr::V4(host) = HOST_V4 else { unreachable!("an IPv4 address") };
    let server = match sctp::listen(&site.host, host, PASSED) {
        // The kernels that `cargo xtask vm` boots know it.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) && !is_slow() => {
            return skip("this kernel has no SCTP");
        }
        server => server.expect("a server"),
    };
    let _deaf = sctp::listen(&site.host, host, DROPPED).expect("a server");
    let policy = [
        head(mode),
        rule("yes", "sctp", PASSED, "pass"),
        // The same ports of another protocol are other ports.
        rule("tcp", "tcp", PASSED, "drop"),
        rule("no", "sctp", DROPPED, "drop"),
    ]
    .concat();
    let agent = Agent::start(&site.host, INSTANCE, &policy);

    let mut client = sctp::connect(&site.client, host, PASSED, PATIENCE).expect("an association");
    let (mut accepted, _) = server.accept().expect("an association");
    client.write_all(b"over SCTP").expect("words can be sent");
    let mut words = [0; 9];
    accepted.read_exact(&mut words).expect("words arrive");
    assert_eq!(&words, b"over SCTP");
    accepted.write_all(b"and back").expect("words can be sent");
    client.read_exact(&mut words[..8]).expect("words arrive");

    sctp::connect(&site.client, host, DROPPED, SILENCE).expect_err("nobody answers");
    wait_until("what is dropped is counted", || agent.stats(&site.host).rule("no") > 0);
    let stats = agent.stats(&site.host);
    // INIT, COOKIE ECHO, DATA.
    assert!(stats.rule("yes") >= 3 && stats.rule("tcp") == 0, "{stats:?}");
    agent.end(libc::SIGINT);
}
