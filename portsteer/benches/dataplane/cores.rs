//! How much more two cores take than one: a sender on each, whose frames come in at the receiver's queue of the
//! same CPU and are judged there.

use std::{
    fmt::Write as _,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use portsteer::lab;
use serde_json::json;

use crate::{
    Report, Result,
    arena::Arena,
    statistics::{ByName, median, spread},
    stream::Finish,
};

/// How long frames come. The senders do not end at the same moment, so this is much longer than [`CHUNK`].
const SLICE: Duration = Duration::from_millis(60);
/// Frames that a sender sends before it looks at the clock.
const CHUNK: u32 = 4_096;

pub struct Cores {
    frame: Vec<u8>,
    zero: &'static str,
    rows: ByName<Row>,
}

/// One value per round: Mpps, and the second over the first.
#[derive(Default)]
struct Row {
    one: Vec<f64>,
    two: Vec<f64>,
    ratios: Vec<f64>,
}

impl Cores {
    pub fn new(frame: Vec<u8>, zero: &'static str) -> Self {
        Self { frame, zero, rows: ByName::default() }
    }

    /// By whom the others are measured.
    pub fn zero(&self) -> &'static str {
        self.zero
    }

    /// Measures everyone in the arena.
    pub fn measure(&mut self, arena: &mut Arena, rounds: usize) -> Result<()> {
        let cpus = [arena.cpu, arena.other_cpu()?];
        for round in 0..rounds {
            for place in 0..arena.contestants.len() {
                let index = (place + round) % arena.contestants.len();
                let [one, two] = [&cpus[..1], &cpus[..]].map(|cpus| self.rate(arena, index, cpus));
                let (one, two) = (one?, two?);
                let row = self.rows.entry(&arena.contestants[index].name);
                row.one.push(one);
                row.two.push(two);
                row.ratios.push(two / one);
            }
        }
        Ok(())
    }

    /// Millions of packets per second with a sender on each of these CPUs.
    fn rate(&self, arena: &mut Arena, index: usize, cpus: &[u32]) -> Result<f64> {
        let Arena { contestants, generator, .. } = arena;
        let contestant = &mut contestants[index];
        contestant.engine.start()?;
        let lane = &contestant.lane;
        // Whoever is on another CPU has to warm up there, too.
        let mut before = Vec::new();
        let mut elapsed = Vec::new();
        for slice in [SLICE / 8, SLICE] {
            before = Finish::Receiver.settled(lane)?;
            let barrier = Barrier::new(cpus.len());
            let send = |cpu| -> Result<Duration> {
                let stays = lab::stay_on_cpu(cpu);
                lane.sender.namespace().run(|| {
                    let aims = generator.aim(&lane.sender);
                    // Whatever happens: the other one waits.
                    barrier.wait();
                    stays?;
                    aims?;
                    let start = Instant::now();
                    while start.elapsed() < slice {
                        generator.send_on(&self.frame, CHUNK)?;
                    }
                    Ok(start.elapsed())
                })
            };
            elapsed = thread::scope(|scope| {
                let senders: Vec<_> =
                    cpus.iter().map(|&cpu| scope.spawn(move || send(cpu))).collect();
                let join = |sender: thread::ScopedJoinHandle<'_, Result<Duration>>| {
                    sender.join().map_err(|_| "a sender panicked")?
                };
                senders.into_iter().map(join).collect::<Result<Vec<Duration>>>()
            })?;
        }
        let after = Finish::Receiver.settled(lane)?;
        contestant.engine.stop()?;
        let mean = elapsed.iter().sum::<Duration>().as_secs_f64() / elapsed.len() as f64;
        Ok((after[0] - before[0]) as f64 / mean / 1e6)
    }

    /// What was measured, as text and as JSON; nothing if nobody was.
    pub fn report(&self) -> Result<Option<Report>> {
        if self.rows.iter().next().is_none() {
            return Ok(None);
        }
        let mut text = format!(
            "live frames into veth with two queues, dropped on port 9, Mpps\n  {:<36} {:>8} {:>9} \
             {:>8} {:>14}\n",
            "", "one core", "two cores", "two/one", "spread"
        );
        let mut programs = Vec::new();
        for (name, row) in self.rows.iter() {
            let (one, two, ratio) = (median(&row.one), median(&row.two), spread(&row.ratios));
            let range = format!("{:.2} to {:.2}", ratio.low, ratio.high);
            writeln!(text, "  {name:<36} {one:>8.2} {two:>9.2} {:>8.2} {range:>14}", ratio.median)?;
            programs.push(json!({
                "program": name, "one_mpps": one, "two_mpps": two, "ratio": ratio.median,
                "quartiles": [ratio.low, ratio.high], "rounds": row.ratios.len(),
            }));
        }
        text.push('\n');
        Ok(Some(Report { list: "cores", text, json: json!({ "programs": programs }) }))
    }
}
