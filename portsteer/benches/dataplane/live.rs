//! How many packets per second get where they belong: live frames, contestant by contestant.

use std::{
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Report, Result,
    arena::{Arena, Contestant, Lane},
    statistics::{ByName, Spread, by_round, median, spread},
};

/// Runs in a round, of which the median counts: short ones, so that what a neighbour of this machine
/// does for some milliseconds spoils one of them and not the round.
const SLICES: usize = 3;
/// How long the counters must have stood still before everything has arrived. A queue to another CPU
/// is worked off in one or two milliseconds, if that CPU has nothing else to do.
const QUIET: Duration = Duration::from_millis(4);
/// How long the first or the last frame may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Frames that are sent, as often as it takes, before anything counts.
const WARM_UP: u32 = 64;

/// Where the frames end, and so where they are counted. Never at the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// With the verdict.
    Receiver,
    /// At the sink.
    Sink,
    /// In the receiver's network stack, on whatever CPU, which drops them at its door: their Ethernet
    /// address is nobody's.
    Stack,
}

impl Finish {
    /// What is counted on the way: frames that the program has judged, and then those that arrive.
    fn stages(self) -> &'static [&'static str] {
        match self {
            Self::Receiver => &["judged"],
            Self::Sink => &["arrived"],
            Self::Stack => &["judged", "taken"],
        }
    }

    /// Frames so far, at every stage.
    fn counts(self, lane: &Lane) -> Result<Vec<u64>> {
        // The driver counts what its poll function has taken from the ring, which is what the
        // program gets to see; for the sink it is what the sink's program has dropped.
        let receiver = lane.receiver.link()?.counters;
        Ok(match self {
            Self::Receiver => vec![receiver.rx_packets],
            Self::Sink => vec![lane.sink.link()?.counters.rx_packets],
            Self::Stack => vec![receiver.rx_packets, receiver.rx_otherhost_dropped],
        })
    }
}

/// Packets per second.
pub struct Live {
    title: &'static str,
    frame: Vec<u8>,
    finish: Finish,
    /// Who runs before and after everyone else: the others' rates are parts of this one's.
    zero: &'static str,
    /// With whom portsteer is compared.
    peers: &'static [&'static str],
    zero_rates: Vec<Vec<f64>>,
    rows: ByName<Row>,
}

/// By stage, and there one value per round: the rate in Mpps, and what part of the zero's that is.
#[derive(Default)]
struct Row {
    rates: Vec<Vec<f64>>,
    ratios: Vec<Vec<f64>>,
}

impl Live {
    pub fn new(
        title: &'static str,
        frame: Vec<u8>,
        finish: Finish,
        zero: &'static str,
        peers: &'static [&'static str],
    ) -> Self {
        let zero_rates = vec![Vec::new(); finish.stages().len()];
        Self { title, frame, finish, zero, peers, zero_rates, rows: ByName::default() }
    }

    /// Measures everyone in the arena.
    pub fn measure(&mut self, arena: &mut Arena, rounds: usize) -> Result<()> {
        let zero = arena.find(self.zero)?;
        // What an empty program judges goes nowhere.
        let takes_part = |contestant: &Contestant| {
            contestant.name != self.zero
                && (self.finish == Finish::Receiver || !contestant.is_empty())
        };
        let others: Vec<usize> = (0..arena.contestants.len())
            .filter(|&index| takes_part(&arena.contestants[index]))
            .collect();
        // The zero runs right before and right after each, so that both see the same machine.
        let mut before = self.rates(arena, zero)?;
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..others.len() {
                let index = others[(place + round) % others.len()];
                let with = self.rates(arena, index)?;
                let after = self.rates(arena, zero)?;
                let row = self.rows.entry(&arena.contestants[index].name);
                row.rates.resize_with(with.len(), Vec::new);
                row.ratios.resize_with(with.len(), Vec::new);
                for stage in 0..with.len() {
                    let without = f64::midpoint(before[stage], after[stage]);
                    row.rates[stage].push(with[stage]);
                    row.ratios[stage].push(with[stage] / without);
                    self.zero_rates[stage].push(after[stage]);
                }
                before = after;
            }
        }
        Ok(())
    }

    /// Millions of packets per second, at every stage.
    fn rates(&self, arena: &mut Arena, index: usize) -> Result<Vec<f64>> {
        let Arena { contestants, generator, .. } = arena;
        let contestant = &mut contestants[index];
        let lane = &contestant.lane;
        contestant.engine.start()?;
        let started = self.finish.counts(lane)?;
        // Somebody else's program may still be waiting for its maps.
        let begin = Instant::now();
        let mut before = loop {
            generator.send(lane, &self.frame, WARM_UP)?;
            let counts = self.settled(lane)?;
            if counts.iter().zip(&started).all(|(now, before)| now > before) {
                break counts;
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("{}: no frame has arrived", contestant.name).into());
            }
        };
        let mut slices = vec![Vec::new(); before.len()];
        for _ in 0..SLICES {
            let elapsed = generator.send(lane, &self.frame, contestant.frames)?;
            let after = self.settled(lane)?;
            for (stage, slices) in slices.iter_mut().enumerate() {
                let packets = after[stage] - before[stage];
                slices.push(packets as f64 / elapsed.as_secs_f64() / 1e6);
            }
            before = after;
        }
        self.confirm(contestant, &started)?;
        contestant.engine.stop()?;
        Ok(slices.iter().map(|slices| median(slices)).collect())
    }

    /// The counters when they stand still, because nothing is on its way any more.
    fn settled(&self, lane: &Lane) -> Result<Vec<u64>> {
        let mut counts = self.finish.counts(lane)?;
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            thread::sleep(Duration::from_millis(1));
            let now = self.finish.counts(lane)?;
            if now != counts {
                (counts, since) = (now, Instant::now());
            }
        }
        Ok(counts)
    }

    /// Makes sure that as many frames have arrived since the contestant was `started` as it has sent,
    /// where it says how many that is.
    fn confirm(&self, contestant: &Contestant, started: &[u64]) -> Result<()> {
        if self.finish == Finish::Receiver {
            return Ok(());
        }
        let begin = Instant::now();
        loop {
            let Some(sent) = contestant.engine.sent()? else { return Ok(()) };
            let counts = self.finish.counts(&contestant.lane)?;
            let arrived = counts[counts.len() - 1] - started[started.len() - 1];
            if arrived == sent {
                return Ok(());
            }
            // A queue may take longer where another CPU is busy.
            if begin.elapsed() > PATIENCE {
                let name = &contestant.name;
                return Err(format!("{name} has sent {sent} frames, {arrived} arrived").into());
            }
        }
    }

    /// What was measured, as text and as JSON; nothing if nobody was.
    pub fn report(&self) -> Result<Option<Report>> {
        if self.zero_rates[0].is_empty() {
            return Ok(None);
        }
        let stages = self.finish.stages();
        let mut text = format!("live frames {}, Mpps\n  {:<36}", self.title, "");
        for stage in stages {
            write!(text, " {stage:>7} {:>8} {:>13}", "of first", "spread, %")?;
        }
        write!(text, "\n  {:<36}", self.zero)?;
        let zero_rates: Vec<f64> = self.zero_rates.iter().map(|rates| median(rates)).collect();
        for rate in &zero_rates {
            write!(text, " {rate:>7.2} {:>22}", "")?;
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        let mut programs = Vec::new();
        for (name, row) in self.rows.iter() {
            write!(text, "  {name:<36}")?;
            let mut program = json!({ "program": name });
            for (number, stage) in stages.iter().enumerate() {
                let (rate, ratio) = (median(&row.rates[number]), spread(&row.ratios[number]));
                let (part, range) = percent(&ratio);
                write!(text, " {rate:>7.2} {part:>8} {range:>13}")?;
                program[stage] = json!({
                    "mpps": rate, "of_zero": ratio.median, "quartiles": [ratio.low, ratio.high],
                });
            }
            text.push('\n');
            programs.push(program);
        }
        let mut ours = json!({});
        for peer in self.peers {
            if let Some(ratios) = self.ours_to(peer) {
                let mut parts = Vec::new();
                for (stage, ratios) in stages.iter().zip(ratios) {
                    let ratio = spread(&ratios);
                    let (part, range) = percent(&ratio);
                    parts.push(format!("{stage} {part} ({range})"));
                    ours[peer][stage] = json!(ratio.median);
                }
                writeln!(text, "  portsteer / {peer}: {}", parts.join(", "))?;
            }
        }
        text.push('\n');
        let json = json!({
            "title": self.title, "zero": self.zero, "zero_mpps": zero_rates, "programs": programs,
            "portsteer_to": ours,
        });
        Ok(Some(Report { list: "live_frames", text, json }))
    }

    /// By stage, what part of this peer's rate portsteer has, with any number of rules; round by round.
    fn ours_to(&self, peer: &str) -> Option<Vec<Vec<f64>>> {
        let theirs = self.rows.get(peer);
        if theirs.is_none() && peer != self.zero {
            return None;
        }
        let ratios = |stage: usize| {
            let ratios = |ours: &Row| match theirs {
                Some(theirs) => by_round(&ours.ratios[stage], &theirs.ratios[stage], |a, b| a / b),
                None => ours.ratios[stage].clone(),
            };
            self.rows.ours().flat_map(ratios).collect()
        };
        Some((0..self.finish.stages().len()).map(ratios).collect())
    }
}

/// A ratio, and between what it lies half of the time, both in percent.
fn percent(ratio: &Spread) -> (String, String) {
    let range = format!("{:.1} to {:.1}", ratio.low * 100.0, ratio.high * 100.0);
    (format!("{:.1} %", ratio.median * 100.0), range)
}
