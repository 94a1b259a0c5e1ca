//! As many packets to a site's uplink as a CPU can send, and what became of them. Unlike the floods of the tests,
//! its program is attached, so that the kernel does not patch its dispatcher around every run.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portsteer::{lab, netlink::LinkCounters};
use portsteer_testkit::site::{Site, wait_until};

use crate::{Result, arena::Generator, family::Family, policies::Mixed};

/// Frames in a run of the kernel's: some milliseconds.
const CHUNK: u32 = 16_384;

pub struct Flood<'a> {
    site: &'a Site,
    generator: Generator,
    frame: Vec<u8>,
    /// Where the sender stays.
    cpu: Option<u32>,
    _link: OwnedFd,
}

/// What became of the packets: each was received, or the uplink's queue had no room for it.
pub struct Account {
    pub sent: u64,
    pub received: u64,
    pub overrun: u64,
}

impl<'a> Flood<'a> {
    /// With a sender that stays on this CPU, if it is one.
    pub fn new(site: &'a Site, cpu: Option<u32>) -> Result<Self> {
        let generator = Generator::new()?;
        let _link = generator.attach(&site.cable.left)?;
        site.client.run(|| generator.aim(&site.cable.left))?;
        let frame = Mixed::packet(Family::V4).frame();
        Ok(Self { site, generator, frame, cpu, _link })
    }

    /// Does something while packets come. It is an error if one is lost in another way.
    pub fn during<T>(&self, body: impl FnOnce() -> T) -> Result<(T, Account)> {
        let counters = || self.site.cable.right.link().map(|link| link.counters);
        let before = counters()?;
        let stop = AtomicBool::new(false);
        let (result, sent) = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                self.cpu.map_or(Ok(()), lab::stay_on_cpu)?;
                self.site.client.run(|| self.send_until(&stop))
            });
            let stopped = StopOnDrop(&stop);
            let result = body();
            drop(stopped);
            (result, sender.join().map_err(|_| "the sender panicked"))
        });
        let sent = sent??;
        let count = |now: LinkCounters| {
            (now.rx_packets - before.rx_packets, now.rx_dropped - before.rx_dropped)
        };
        wait_until("every packet is accounted for", || {
            counters().map(count).is_ok_and(|(received, overrun)| received + overrun >= sent)
        });
        let (received, overrun) = count(counters()?);
        if received + overrun != sent {
            return Err(
                format!("{sent} packets sent, {received} received, {overrun} refused").into()
            );
        }
        Ok((result, Account { sent, received, overrun }))
    }

    fn send_until(&self, stop: &AtomicBool) -> Result<u64> {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            self.generator.send_on(&self.frame, CHUNK)?;
            sent += u64::from(CHUNK);
            // Whoever shares the CPU is to get on, too.
            thread::yield_now();
        }
        Ok(sent)
    }
}

/// Ends the sender also when the caller's thread panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
