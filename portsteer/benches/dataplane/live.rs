//! How many packets per second get where they belong: live frames, contestant by contestant.

use std::fmt::Write as _;

use serde_json::json;

use crate::{
    Report, Result,
    arena::{Arena, Contestant},
    statistics::{ByName, Spread, by_round, median, spread},
    stream::{Amount, Finish, Frames, Stream},
};

/// Packets per second.
pub struct Live {
    title: &'static str,
    stream: Stream,
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
        let stream = Stream { frames: Frames::One(frame), finish };
        Self { title, stream, zero, peers, zero_rates, rows: ByName::default() }
    }

    /// Who runs before and after everyone else.
    pub fn zero(&self) -> &'static str {
        self.zero
    }

    /// Measures everyone in the arena.
    pub fn measure(&mut self, arena: &mut Arena, rounds: usize) -> Result<()> {
        let zero = arena.find(self.zero)?;
        // What an empty program judges goes nowhere.
        let takes_part = |contestant: &Contestant| {
            contestant.name != self.zero
                && (self.stream.finish == Finish::Receiver || !contestant.is_empty())
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
        let frames = arena.contestants[index].frames;
        self.stream.rates(arena, index, &mut Amount::Frames(frames))
    }

    /// What was measured, as text and as JSON; nothing if nobody was.
    pub fn report(&self) -> Result<Option<Report>> {
        if self.zero_rates[0].is_empty() {
            return Ok(None);
        }
        let stages = self.stream.finish.stages();
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
        Some((0..self.stream.finish.stages().len()).map(ratios).collect())
    }
}

/// A ratio, and between what it lies half of the time, both in percent.
fn percent(ratio: &Spread) -> (String, String) {
    let range = format!("{:.1} to {:.1}", ratio.low * 100.0, ratio.high * 100.0);
    (format!("{:.1} %", ratio.median * 100.0), range)
}
