//! Targets that come and go while packets are on their way: each packet is accounted for.

use std::{
    fs,
    sync::{
        PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use portsteer::{lab::incoming_cpu, netlink::XdpMode};
use portsteer_testkit::{
    agent::{Agent, Stats, is_slow},
    sandbox::{sandbox, skip},
    site::{CLIENT_V4, HOST_V4, SILENCE, wait_until},
};

use crate::{
    CPUS, INSTANCE, head,
    steering::{PORT, SERVICE_V4, Town, VIA},
};

#[test]
fn flaps_under_load_lose_no_packet_in_silence_in_native_mode() {
    sandbox(|| flaps_under_load(XdpMode::Native));
}

#[test]
fn flaps_under_load_lose_no_packet_in_silence_in_generic_mode() {
    sandbox(|| flaps_under_load(XdpMode::Generic));
}

fn flaps_under_load(mode: XdpMode) {
    let town = Town::new();
    let agent = town.agent(mode, VIA);
    let server = town.udp_server();
    town.arrives(&server);
    let before = town.site.settled(INSTANCE).0;
    server.set_read_timeout(Some(SILENCE)).expect("a time limit");
    let client = town.site.udp_client(SERVICE_V4, PORT);
    while server.recv(&mut [0; 64]).is_ok() {}

    let (is_over, is_sent) = (AtomicBool::new(false), AtomicBool::new(false));
    let (sent, received, flaps) = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut received = 0;
            loop {
                match server.recv(&mut [0; 64]) {
                    Ok(_) => received += 1,
                    Err(_) if is_sent.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !is_over.load(Ordering::Relaxed) {
                // Bursts that fit into any queue on the way.
                for _ in 0..8 {
                    client.send(b"numbered in silence").expect("a datagram can be sent");
                    sent += 1;
                }
                thread::sleep(Duration::from_millis(2));
            }
            sent
        });
        let (start, mut flaps) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(3) {
            town.street.left.set_down().expect("it can be set down");
            thread::sleep(Duration::from_millis(30));
            town.street.left.set_up().expect("it can be set up");
            // Long enough for the neighbour to be found again now and then.
            thread::sleep(Duration::from_millis(30 + 100 * (flaps % 3)));
            flaps += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        let sent: u64 = sender.join().expect("a sender");
        is_sent.store(true, Ordering::Relaxed);
        (sent, receiver.join().expect("a receiver"), flaps)
    });
    let stats = town.site.settled(INSTANCE).0;
    let lost = |field| stats.lost(field) - before.lost(field);
    let steered = stats.rule("web") - before.rule("web");
    let known = lost("gone") + lost("down") + lost("mtu") + lost("unresolved");
    let unknown = lost("refused") + lost("device") + lost("queue");
    // Where the device is set down in the very moment that a packet is handed over in generic mode,
    // the kernel tells of it in the interface's own counter alone, whoever sent the packet.
    let dropped = |stats: &Stats| stats.target("interface_dropped").as_u64().unwrap_or(0);
    let told_by_the_interface = match mode {
        XdpMode::Generic => dropped(&stats) - dropped(&before),
        _ => 0,
    };
    assert_eq!(steered + known, sent, "{stats:?}");
    let at_most = steered - unknown;
    assert!(
        (at_most - told_by_the_interface..=at_most).contains(&received),
        "{received}: {stats:?}"
    );
    assert!(flaps > 5 && known > 0 && received > 0, "{flaps} flaps: {stats:?}");
    // It comes to itself again.
    wait_until("the target is ready", || town.state() == "ready");
    town.arrives(&server);
    agent.end(libc::SIGINT);
}

/// The ports of as many flows.
const FLOWS: std::ops::Range<u16> = 8000..8032;

/// A policy that spreads [`FLOWS`] over CPUs.
fn spread(cpus: &str) -> String {
    format!(
        "{}[targets.web]\ncpus = {cpus}\n[[rules]]\nname = \"web\"\nprotocol = \"udp\"\n\
         dst_port = \"{}-{}\"\naction = {{ steer = \"web\" }}\n",
        head(XdpMode::Native),
        FLOWS.start,
        FLOWS.end - 1
    )
}

/// The CPU that each of [`FLOWS`] is taken in on: always the same.
fn cpus_of_flows(town: &Town) -> Vec<u32> {
    use std::os::fd::AsFd as _;

    FLOWS
        .map(|port| {
            let server = town.site.udp_server(HOST_V4, port);
            let client = town.site.udp_client(HOST_V4, port);
            // The kernel notes the CPU for connected sockets alone.
            let from = client.local_addr().expect("an address").port();
            server.connect((CLIENT_V4, from)).expect("a peer");
            let mut cpus = (0..5).map(|number| {
                client.send(b"where am I?").expect("a datagram can be sent");
                let received = server.recv(&mut [0; 64]);
                assert!(received.is_ok(), "datagram {number} of {port}: {:?}", town.stats());
                incoming_cpu(server.as_fd()).expect("a number")
            });
            let first = cpus.next().expect("a CPU");
            assert!(cpus.all(|cpu| cpu == first), "port {port} moves between CPUs");
            first
        })
        .collect()
}

#[test]
fn a_flow_stays_on_one_of_several_cpus() {
    let _shared = CPUS.read().unwrap_or_else(PoisonError::into_inner);
    sandbox(|| {
        let cpus = thread::available_parallelism().expect("a number").get() as u32;
        let town = Town::new();
        let all: Vec<u32> = (0..cpus.min(4)).collect();
        let agent = Agent::start(&town.site.host, INSTANCE, &spread(&format!("{all:?}")));
        let mut used = cpus_of_flows(&town);
        let stats = town.site.settled(INSTANCE).0;
        assert_eq!(stats.target("packets").as_u64(), Some(5 * FLOWS.len() as u64), "{stats:?}");
        assert_eq!(stats.lost("queue") + stats.lost("refused"), 0, "{stats:?}");
        used.sort_unstable();
        used.dedup();
        assert_eq!(used, all, "32 flows leave no CPU out");
        agent.end(libc::SIGINT);
    });
}

#[test]
fn a_cpu_that_goes_offline_is_left_out_until_it_is_back() {
    if !is_slow() {
        return skip("a CPU that others use; `cargo xtask vm` has one that may go offline");
    }
    let _alone = CPUS.write().unwrap_or_else(PoisonError::into_inner);
    sandbox(|| {
        let set_online = |on: &str| {
            fs::write("/sys/devices/system/cpu/cpu1/online", on).expect("the guest has two CPUs");
        };
        let town = Town::new();
        let mut agent = Agent::start(&town.site.host, INSTANCE, &spread("[0, 1]"));
        assert!(cpus_of_flows(&town).contains(&1));
        set_online("0");
        wait_until("no flow is left on it", || !cpus_of_flows(&town).contains(&1));
        assert_eq!(town.state(), "ready");

        agent.swap(&spread("[1]"));
        assert!(agent.log().contains("none of its CPUs is online"), "{}", agent.log());
        assert_eq!(town.state(), "gone");
        let before = town.stats();
        town.site.udp_client(HOST_V4, FLOWS.start).send(b"lost").expect("it can be sent");
        wait_until("it is counted", || town.stats().lost("gone") == before.lost("gone") + 1);
        set_online("1");
        wait_until("ready", || town.state() == "ready");
        assert!(cpus_of_flows(&town).iter().all(|cpu| *cpu == 1));
        agent.end(libc::SIGINT);
    });
}
