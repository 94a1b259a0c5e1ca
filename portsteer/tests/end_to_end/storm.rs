//! A swap storm: policies swapped a thousand times under as many packets as the machine can send,
//! each packet judged by exactly one of them.

use std::{
    fmt::Write as _,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use portsteer::{
    compile::Interrupt,
    dataplane::{
        Dataplane, Instance, Order, Stats, read_stats,
        sys::{self, Instruction, TestRun},
    },
    policy::{Policy, file, services::Services},
};
use portsteer_testkit::{
    agent::is_slow,
    packet::{IPV4, UDP, ethernet, ipv4, udp},
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::INSTANCE;

/// The addresses of the packets that [`ipv4`] makes.
const SRC: &str = "198.51.100.7";
const DST: &str = "192.0.2.1";

/// Two policies for one packet, of which either drops it by a rule of its own. What decides is found by
/// the source in the one and by the destination in the other, at different rule numbers, which in the
/// other policy belong to a rule that passes; and so does the default. So whoever looks up in one and
/// decides by the other, in whatever mixture, passes the packet.
fn policies() -> [Policy; 2] {
    let head = "version = 1\ninterfaces = [\"uplink\"]\ndefault = \"pass\"\n";
    let rule = |name: &str, field: &str, address: &str, action: &str| {
        format!("[[rules]]\nname = \"{name}\"\n{field} = \"{address}\"\naction = \"{action}\"\n")
    };
    let mut by_src = [head, &rule("by-src", "src", SRC, "drop")].concat();
    by_src += &rule("third-1", "dst", "203.0.113.1", "pass");
    let mut by_dst = [head, &rule("third-2", "src", "203.0.113.2", "pass")].concat();
    by_dst += &rule("by-dst", "dst", DST, "drop");
    // So many others that the tables fill several segments, and others in each policy.
    for index in 0..900u32 {
        let [_, _, a, b] = index.to_be_bytes();
        let policy = if index % 3 == 0 { &mut by_src } else { &mut by_dst };
        let field = if index % 2 == 0 { "src" } else { "dst" };
        let address = format!("10.{a}.{b}.0/24");
        policy.push_str(&rule(&format!("other-{index}"), field, &address, "pass"));
    }
    [by_src, by_dst].map(|text| parse(&text))
}

fn parse(text: &str) -> Policy {
    file::parse(text, &Services::embedded()).expect("a policy").policy
}

#[test]
fn no_packet_sees_a_mixture_of_policies() {
    let swaps = if is_slow() { 100 } else { 1_000 };
    sandbox(|| storm(&policies(), swaps, &["by-src", "by-dst"]));
}

/// The same where each swap replaces the program as well: one policy asks for nothing but ports.
#[test]
fn no_packet_sees_a_mixture_of_programs() {
    let swaps = if is_slow() { 20 } else { 100 };
    let [by_src, _] = policies();
    let by_port = parse(
        "version = 1\ninterfaces = [\"uplink\"]\ndefault = \"pass\"\n\
         [[rules]]\nname = \"third-1\"\ndst_port = 9\naction = \"pass\"\n\
         [[rules]]\nname = \"by-port\"\ndst_port = 53\naction = \"drop\"\n",
    );
    sandbox(|| storm(&[by_src, by_port], swaps, &["by-src", "by-port"]));
}

/// Swaps the policies in turn, while packets come that each drops by a rule of its own.
fn storm(policies: &[Policy; 2], swaps: usize, deciding: &[&str; 2]) {
    let site = Site::quiet();
    let instance = Instance::new(INSTANCE).unwrap();
    let dataplane = site.host.run(|| Dataplane::lock(instance.clone())).expect("an instance");
    let apply = |policy: &Policy| {
        site.host
            .run(|| dataplane.apply(&Order::new(policy, "storm.toml", ""), &Interrupt::default()))
            .expect("a policy in force")
    };
    apply(&policies[0]);
    let link = || site.cable.right.link().expect("the uplink").counters;
    let before = link();
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (sent, removed) = thread::scope(|scope| {
        let generator = scope.spawn(|| site.client.run(|| send_until(&stop, &site)));
        let mut removed = [0; 2];
        let stopped = StopOnDrop(&stop);
        for swap in 1..=swaps {
            // What was removed is told with its last count.
            for (name, counter) in apply(&policies[swap % 2]).removed {
                if let Some(at) = deciding.iter().position(|deciding| *deciding == name) {
                    removed[at] += counter.packets;
                }
                assert!(!name.starts_with("third") || counter.packets == 0, "{name} has matched");
            }
        }
        drop(stopped);
        (generator.join().expect("the generator"), removed)
    });
    let seconds = start.elapsed().as_secs_f64();

    let judged =
        |stats: &Stats| -> u64 { stats.interfaces.iter().map(|interface| interface.packets).sum() };
    let stats = || site.host.run(|| read_stats(&instance)).expect("stats");
    wait_until("all packets are counted", || {
        judged(&stats()) == link().rx_packets - before.rx_packets
    });
    let (stats, after) = (stats(), link());
    let (received, dropped) =
        (after.rx_packets - before.rx_packets, after.rx_dropped - before.rx_dropped);
    let mut report = String::new();
    let _ = write!(
        report,
        "swap storm: {swaps} swaps in {seconds:.1} s ({:.0} a second), {sent} packets sent, \
         {received} judged ({:.2} million a second), {dropped} dropped by the veth queue",
        swaps as f64 / seconds,
        received as f64 / seconds / 1e6,
    );
    eprintln!("{report}");
    // Every packet arrived, or the queue of the veth says that it did not.
    assert_eq!(sent, received + dropped, "{report}");
    // Every packet was judged once, and dropped by one of the two rules.
    let by_rules: u64 = stats.rules.iter().map(|rule| rule.packets).sum();
    assert_eq!(by_rules + removed.iter().sum::<u64>(), received, "{report}");
    for interface in &stats.interfaces {
        assert_eq!((interface.dropped, interface.passed), (received, 0), "{report}");
    }
    for rule in &stats.rules {
        assert!(rule.packets == 0 || deciding.contains(&rule.name.as_str()), "{}", rule.name);
    }
    assert!(removed.iter().all(|&packets| packets > 0), "both have judged: {removed:?}");
}

/// Sends the packet out of the client's end of the cable, without the client's stack. Returns how many.
fn send_until(stop: &AtomicBool, site: &Site) -> u64 {
    const BATCH: u32 = 1 << 14;
    const BPF_REDIRECT: i32 = 23;
    let instruction =
        |code, registers, immediate| Instruction { code, registers, offset: 0, immediate };
    // return bpf_redirect(ifindex, 0);
    let program = [
        instruction(0xb7, 1, site.cable.left.index() as i32),
        instruction(0xb7, 2, 0),
        instruction(0x85, 0, BPF_REDIRECT),
        instruction(0x95, 0, 0),
    ];
    let program = sys::load_xdp("generator", &program).expect("a program");
    let mut ip = ipv4(UDP, udp(7, 53, [0; 18]));
    ip[12..16].copy_from_slice(&SRC.parse::<std::net::Ipv4Addr>().unwrap().octets());
    ip[16..20].copy_from_slice(&DST.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let frame = ethernet(IPV4, ip);
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let run = TestRun { frame: &frame, repeat: BATCH, live: true, first_buffer: None };
        sys::test_run(program.as_fd(), run).expect("live frames");
        sent += u64::from(BATCH);
    }
    sent
}

/// Ends the other thread also when this one panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
