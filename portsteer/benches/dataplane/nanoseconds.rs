//! What one packet costs, by test runs: nanoseconds per run, contestant by contestant.

use std::{fmt::Write as _, os::fd::BorrowedFd, time::Instant};

use portsteer::dataplane::sys::{self, TestRun};
use serde_json::json;

use crate::{
    Report, Result,
    arena::Arena,
    statistics::{ByName, by_round, median, spread},
};

/// Test runs in a round: short slices, so that both halves of a pair see the same machine.
///
/// A packet is fed back as the program has left it. Steering leaves it with other MAC addresses, which
/// nobody looks at, and the redirect itself is not done in a test run: so every run judges the same
/// headers, however many there are.
const REPEAT: u32 = 500_000;

/// What one kind of packet costs everyone.
pub struct Table {
    packet: &'static str,
    frame: Vec<u8>,
    /// What all programs return for it.
    action: u32,
    /// Who runs before and after everyone else: the others' net is what they take beyond that.
    zero: &'static str,
    /// Who does the least that there is to do, where that is more than the zero does.
    twin: Option<&'static str>,
    zero_gross: Vec<f64>,
    rows: ByName<Row>,
}

/// One value per round.
#[derive(Default)]
struct Row {
    gross: Vec<f64>,
    net: Vec<f64>,
}

impl Table {
    pub fn new(
        packet: &'static str,
        frame: Vec<u8>,
        action: u32,
        zero: &'static str,
        twin: Option<&'static str>,
    ) -> Self {
        Self { packet, frame, action, zero, twin, zero_gross: Vec::new(), rows: ByName::default() }
    }

    /// Measures everyone in the arena. They are all started.
    pub fn measure(&mut self, arena: &Arena, rounds: usize) -> Result<()> {
        let zero = arena.contestants[arena.find(self.zero)?].engine.program();
        let zero = zero.ok_or("the zero is no program")?;
        let contestants: Vec<(&str, BorrowedFd<'_>)> = arena
            .contestants
            .iter()
            .filter(|contestant| !contestant.is_empty() && contestant.name != self.zero)
            .filter_map(|contestant| Some((contestant.name.as_str(), contestant.engine.program()?)))
            .collect();
        // The zero runs right before and right after each, so that both see the same machine.
        let mut before = self.time(self.zero, zero)?;
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..contestants.len() {
                let (name, program) = contestants[(place + round) % contestants.len()];
                let with = self.time(name, program)?;
                let after = self.time(self.zero, zero)?;
                let without = f64::midpoint(before, after);
                before = after;
                self.zero_gross.push(after);
                let row = self.rows.entry(name);
                row.gross.push(with);
                row.net.push(with - without);
            }
        }
        Ok(())
    }

    /// Nanoseconds per run.
    fn time(&self, name: &str, program: BorrowedFd<'_>) -> Result<f64> {
        let start = Instant::now();
        let run = TestRun { frame: &self.frame, repeat: REPEAT, live: false, first_buffer: None };
        let result = sys::test_run(program, run)?;
        let elapsed = start.elapsed();
        if result.action != self.action {
            let (returned, wanted) = (result.action, self.action);
            return Err(format!("{name} returned {returned}, not {wanted}: {}", self.packet).into());
        }
        Ok(elapsed.as_secs_f64() * 1e9 / f64::from(REPEAT))
    }

    /// What was measured, as text and as JSON; nothing if nobody was.
    pub fn report(&self) -> Result<Option<Report>> {
        if self.zero_gross.is_empty() {
            return Ok(None);
        }
        let bytes = self.frame.len();
        let twin = self.twin.and_then(|twin| self.rows.get(twin));
        let mut text = format!("{} ({bytes} bytes), ns per packet\n", self.packet);
        write!(text, "  {:<36} {:>8} {:>8} {:>15}", "", "gross", "net", "net, spread")?;
        if twin.is_some() {
            write!(text, " {:>8} {:>15}", "beyond *", "spread")?;
        }
        let zero_gross = median(&self.zero_gross);
        writeln!(text, "\n  {:<36} {zero_gross:>8.1}", self.zero)?;
        let mut programs = Vec::new();
        for (name, row) in self.rows.iter() {
            let (gross, net) = (median(&row.gross), spread(&row.net));
            let range = format!("{:.1} to {:.1}", net.low, net.high);
            let star = if self.twin == Some(name) { " *" } else { "" };
            let label = format!("{name}{star}");
            write!(text, "  {label:<36} {gross:>8.1} {:>8.1} {range:>15}", net.median)?;
            let mut program = json!({
                "program": name, "gross_ns": gross, "net_ns": net.median,
                "quartiles_ns": [net.low, net.high],
            });
            if let Some(twin) = twin {
                let beyond = spread(&by_round(&row.net, &twin.net, |net, twin| net - twin));
                let range = format!("{:.1} to {:.1}", beyond.low, beyond.high);
                write!(text, " {:>8.1} {range:>15}", beyond.median)?;
                program["beyond_twin_ns"] = json!(beyond.median);
                program["beyond_twin_quartiles_ns"] = json!([beyond.low, beyond.high]);
            }
            text.push('\n');
            programs.push(program);
        }
        let mut json = json!({
            "packet": self.packet, "bytes": bytes, "zero": self.zero, "zero_ns": zero_gross,
            "twin": self.twin, "programs": programs,
        });
        let row = |wanted: &str| self.rows.get(wanted);
        if let (Some(one), Some(many)) = (row("portsteer, 1 rules"), row("portsteer, 65535 rules"))
        {
            let flat = median(&by_round(&many.gross, &one.gross, |many, one| many / one));
            writeln!(text, "  gross with 65,535 rules / with 1 rule: {flat:.3}")?;
            json["many_rules_to_one"] = json!(flat);
        }
        text.push('\n');
        Ok(Some(Report { text, json }))
    }
}
