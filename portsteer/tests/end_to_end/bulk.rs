//! Much data over a passed port, there and back, with what offloads make of it.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpStream},
    thread,
};

use portsteer::netlink::XdpMode;
use portsteer_testkit::{
    agent::{Agent, PATIENCE, is_slow},
    sandbox::sandbox,
    site::{HOST_V4, HOST_V6, Site},
};

use crate::{INSTANCE, head, rule};

const PORT: u16 = 8080;
const BLOCK: usize = 64 * 1024;

#[test]
fn bulk_data_passes_native_mode_over_ipv4() {
    sandbox(|| bulk_data_passes(XdpMode::Native, HOST_V4));
}

#[test]
fn bulk_data_passes_native_mode_over_ipv6() {
    sandbox(|| bulk_data_passes(XdpMode::Native, HOST_V6));
}

#[test]
fn bulk_data_passes_generic_mode_over_ipv4() {
    sandbox(|| bulk_data_passes(XdpMode::Generic, HOST_V4));
}

#[test]
fn bulk_data_passes_generic_mode_over_ipv6() {
    sandbox(|| bulk_data_passes(XdpMode::Generic, HOST_V6));
}

fn bulk_data_passes(mode: XdpMode, address: IpAddr) {
    let megabytes = if is_slow() { 16 } else { 64 };
    let blocks = megabytes * 1024 * 1024 / BLOCK;
    let site = Site::new();
    let policy = [head(mode), rule("web", "tcp", PORT, "pass")].concat();
    let _agent = Agent::start(&site.host, INSTANCE, &policy);
    assert_eq!(site.xdp_mode(), Some(mode));
    let (before, received_before) = site.settled(INSTANCE);

    let listener = site.tcp_server(address, PORT);
    let client = site.connect(address, PORT, PATIENCE).expect("the port answers");
    let (server, _) = listener.accept().expect("a connection");
    server.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    server.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    transfer(&client, &server, blocks, 1);
    transfer(&server, &client, blocks, 2);

    let (after, received) = site.settled(INSTANCE);
    assert_eq!(after.interface("uplink") - before.interface("uplink"), received - received_before);
    // What came back was answered with acknowledgements only.
    let bytes = after.interface_number("uplink", "bytes");
    assert!(bytes >= (blocks * BLOCK) as u64, "{after:?}");
    assert_eq!(after.interface_number("uplink", "dropped"), 0, "{after:?}");
    assert!(after.rule("web") > 0);
}

/// Sends numbered blocks from one to the other, and compares what was sent with what came.
fn transfer(from: &TcpStream, to: &TcpStream, blocks: usize, seed: u64) {
    let (sent, came) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(from, blocks, seed));
        let came = receive(to);
        (sender.join().expect("the sender"), came)
    });
    assert_eq!(came, (sent, (blocks * BLOCK) as u64));
}

fn send(mut to: &TcpStream, blocks: usize, seed: u64) -> u64 {
    let (mut block, mut state, mut hash) = (vec![0; BLOCK], seed, Hash::default());
    for _ in 0..blocks {
        for word in block.chunks_exact_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes());
        }
        hash.add(&block);
        to.write_all(&block).expect("it can be sent");
    }
    to.shutdown(Shutdown::Write).expect("the end can be told");
    hash.0
}

/// The hash and the number of bytes until the end.
fn receive(mut from: &TcpStream) -> (u64, u64) {
    let (mut block, mut hash, mut total) = (vec![0; BLOCK], Hash::default(), 0);
    loop {
        let mut len = 0;
        while len < BLOCK {
            match from.read(&mut block[len..]).expect("it arrives") {
                0 => break,
                read => len += read,
            }
        }
        hash.add(&block[..len]);
        total += len as u64;
        if len < BLOCK {
            return (hash.0, total);
        }
    }
}

/// Depends on every word and on its place.
#[derive(Default)]
struct Hash(u64);

impl Hash {
    fn add(&mut self, block: &[u8]) {
        for word in block.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            let word = u64::from_ne_bytes(bytes);
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
