//! As many packets as the machine sends, and what became of each.

use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portsteer::{
    dataplane::sys::{self, Instruction, TestRun},
    netlink::LinkCounters,
};

use crate::{
    agent::Stats,
    packet::{IPV4, UDP, ethernet, ipv4, udp},
    site::{Site, wait_until},
};

/// The port that the packets go to.
pub const FLOODED_PORT: u16 = 53;

/// What became of the packets of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub sent: u64,
    /// That the uplink has received.
    pub received: u64,
    /// That the uplink's queue had no room for.
    pub overrun: u64,
}

/// Does something while packets come to the uplink, all of them UDP to [`FLOODED_PORT`], and says what became of
/// them: each was received, or there was no room for it. Nothing else may be on the cable.
///
/// # Panics
///
/// If one is lost in another way.
pub fn under_flood<T>(site: &Site, body: impl FnOnce() -> T) -> (T, Account) {
    let counters = || site.cable.right.link().expect("the uplink").counters;
    let before = counters();
    let stop = AtomicBool::new(false);
    let (sent, result) = thread::scope(|scope| {
        let generator = scope.spawn(|| site.client.run(|| send_until(&stop, site)));
        let stopped = StopOnDrop(&stop);
        let result = body();
        drop(stopped);
        (generator.join().expect("the generator"), result)
    });
    let count = |now: LinkCounters| {
        (now.rx_packets - before.rx_packets, now.rx_dropped - before.rx_dropped)
    };
    wait_until("every packet is accounted for", || {
        let (received, overrun) = count(counters());
        received + overrun >= sent
    });
    let (received, overrun) = count(counters());
    assert_eq!(sent, received + overrun, "packets that nobody has sent");
    (result, Account { sent, received, overrun })
}

/// Waits until an instance has counted as many packets on the uplink as it has received since it was attached, and
/// asserts that a rule has decided about all of them.
///
/// # Panics
///
/// If it does not in time.
pub fn assert_all_judged(site: &Site, instance: &str, rule: &str, received: u64) {
    let stats = || Stats::read(&site.host, instance);
    wait_until("all packets are counted", || stats().interface("uplink") >= received);
    let stats = stats();
    assert_eq!(stats.interface("uplink"), received, "{stats:?}");
    assert_eq!(stats.rule(rule), received, "{stats:?}");
}

/// Sends the packet out of the client's end of the cable, without the client's stack. Returns how many.
fn send_until(stop: &AtomicBool, site: &Site) -> u64 {
    const BATCH: u32 = 1 << 10;
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
    let frame = ethernet(IPV4, ipv4(UDP, udp(7, FLOODED_PORT, [0; 18])));
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let run = TestRun { frame: &frame, repeat: BATCH, live: true, first_buffer: None };
        sys::test_run(program.as_fd(), run).expect("live frames");
        sent += u64::from(BATCH);
        // The agent is to get on, too.
        thread::yield_now();
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
