//! What one packet costs, by test runs: nanoseconds per run, contestant by contestant.

use std::{fmt::Write as _, os::fd::BorrowedFd, time::Instant};

use portsteer::dataplane::sys::{self, TestRun};
use serde_json::json;

use crate::{
    Report, Result,
    arena::{Arena, Contestant},
    probes::PROBES,
    programs::{XDP_DROP, XDP_PASS},
    statistics::{ByName, by_round, median, spread},
};

/// Test runs in a round: short slices, so that both halves of a pair see the same machine.
///
/// A packet is fed back as the program has left it. Steering leaves it with other MAC addresses, which
/// nobody looks at, and the redirect itself is not done in a test run: so every run judges the same
/// headers, however many there are.
const REPEAT: u32 = 500_000;

/// The same where packets rotate: each of them as often as any other.
const ROTATED: u32 = 4 * PROBES as u32;

/// Whose figures are compared, in every table that has both.
const COMPARISONS: [Comparison; 12] = [
    gross("gross with 65,535 rules / with 1 rule", "portsteer, 65535 rules", "portsteer, 1 rules"),
    gross("gross with 10,000 rules / with 10", "portsteer, 10000 rules", "portsteer, 10 rules"),
    net("net with 10,000 rules / with 10", "portsteer, 10000 rules", "portsteer, 10 rules"),
    gross("gross with 100,000 rules / with 10", "portsteer, 100000 rules", "portsteer, 10 rules"),
    net("net with 100,000 rules / with 10", "portsteer, 100000 rules", "portsteer, 10 rules"),
    net(
        "net, portsteer / LPM trie, 10,000",
        "portsteer, set of 10000",
        "kernel LPM trie, set of 10000",
    ),
    net(
        "net, portsteer / LPM trie, 100,000",
        "portsteer, set of 100000",
        "kernel LPM trie, set of 100000",
    ),
    net(
        "net, portsteer / LPM trie, 1,000,000",
        "portsteer, set of 1000000",
        "kernel LPM trie, set of 1000000",
    ),
    gross(
        "gross with 100,000 prefixes / with 10,000",
        "portsteer, set of 100000",
        "portsteer, set of 10000",
    ),
    net(
        "net with 100,000 prefixes / with 10,000",
        "portsteer, set of 100000",
        "portsteer, set of 10000",
    ),
    gross(
        "gross with 1,000,000 prefixes / with 10,000",
        "portsteer, set of 1000000",
        "portsteer, set of 10000",
    ),
    net(
        "net with 1,000,000 prefixes / with 10,000",
        "portsteer, set of 1000000",
        "portsteer, set of 10000",
    ),
];

struct Comparison {
    label: &'static str,
    of: &'static str,
    to: &'static str,
    ratio: fn(&Row, &Row) -> f64,
}

const fn gross(label: &'static str, of: &'static str, to: &'static str) -> Comparison {
    let ratio = |of: &Row, to: &Row| median(&by_round(&of.gross, &to.gross, |of, to| of / to));
    Comparison { label, of, to, ratio }
}

/// The net of a single round may be next to nothing, so here only medians are compared.
const fn net(label: &'static str, of: &'static str, to: &'static str) -> Comparison {
    let ratio = |of: &Row, to: &Row| median(&of.net) / median(&to.net);
    Comparison { label, of, to, ratio }
}

/// What one kind of packet costs everyone.
pub struct Table {
    packet: String,
    frame: Vec<u8>,
    /// What all programs return for it. `None` where packets rotate: then each has its own verdict.
    action: Option<u32>,
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
    /// Where packets rotate, what part of them is dropped.
    dropped: f64,
}

impl Table {
    /// With one packet.
    pub fn new(
        packet: impl Into<String>,
        frame: Vec<u8>,
        action: u32,
        zero: &'static str,
        twin: Option<&'static str>,
    ) -> Self {
        Self {
            packet: packet.into(),
            frame,
            action: Some(action),
            zero,
            twin,
            zero_gross: Vec::new(),
            rows: ByName::default(),
        }
    }

    /// With those packets that each contestant has, in turn; the frame is that of any of them.
    pub fn rotating(packets: impl Into<String>, frame: Vec<u8>, zero: &'static str) -> Self {
        Self { action: None, ..Self::new(packets, frame, XDP_PASS, zero, None) }
    }

    /// Those without whom the others tell nothing.
    pub fn needed(&self) -> impl Iterator<Item = &'static str> {
        [self.zero].into_iter().chain(self.twin)
    }

    /// Measures everyone in the arena. They are all started.
    pub fn measure(&mut self, arena: &Arena, rounds: usize) -> Result<()> {
        let zero = &arena.contestants[arena.find(self.zero)?];
        let contestants: Vec<&Contestant> = arena
            .contestants
            .iter()
            .filter(|contestant| !contestant.is_empty() && contestant.name != self.zero)
            .filter(|contestant| contestant.engine.program().is_some())
            .collect();
        // The zero runs right before and right after each, so that both see the same machine.
        let mut before = self.time(arena, zero)?;
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..contestants.len() {
                let contestant = contestants[(place + round) % contestants.len()];
                let with = self.time(arena, contestant)?;
                let after = self.time(arena, zero)?;
                let without = f64::midpoint(before, after);
                before = after;
                self.zero_gross.push(after);
                let row = self.rows.entry(&contestant.name);
                row.gross.push(with);
                row.net.push(with - without);
                row.dropped = contestant.dropped;
            }
        }
        Ok(())
    }

    /// Nanoseconds per run.
    fn time(&self, arena: &Arena, contestant: &Contestant) -> Result<f64> {
        let name = &contestant.name;
        let program = contestant.engine.program().ok_or_else(|| format!("{name} is no program"))?;
        let (nanoseconds, returned) = match self.action {
            Some(_) => self.time_program(program, REPEAT)?,
            None => {
                let rotation = arena.rotation.as_ref().ok_or("nothing rotates")?;
                if let Some(probes) = &contestant.probes {
                    rotation.fill(probes)?;
                }
                rotation.lead_to(program)?;
                let program = rotation.rewound()?;
                // Once through all packets, so that nobody is measured while the memory is cold.
                self.time_program(program, PROBES as u32)?;
                self.time_program(program, ROTATED)?
            }
        };
        let is_right = match self.action {
            Some(action) => returned == action,
            None => [XDP_DROP, XDP_PASS].contains(&returned),
        };
        if !is_right {
            return Err(format!("{name} returned {returned}: {}", self.packet).into());
        }
        Ok(nanoseconds)
    }

    /// The same, and what was returned the last time.
    fn time_program(&self, program: BorrowedFd<'_>, repeat: u32) -> Result<(f64, u32)> {
        let run = TestRun { frame: &self.frame, repeat, live: false, first_buffer: None };
        let start = Instant::now();
        let result = sys::test_run(program, run)?;
        let elapsed = start.elapsed();
        Ok((elapsed.as_secs_f64() * 1e9 / f64::from(repeat), result.action))
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
        if self.action.is_none() {
            write!(text, " {:>8}", "dropped")?;
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
            if self.action.is_none() {
                write!(text, " {:>6.1} %", row.dropped * 100.0)?;
                program["dropped"] = json!(row.dropped);
            }
            text.push('\n');
            programs.push(program);
        }
        let mut json = json!({
            "packet": self.packet, "bytes": bytes, "zero": self.zero, "zero_ns": zero_gross,
            "twin": self.twin, "programs": programs,
        });
        let mut comparisons = Vec::new();
        for Comparison { label, of, to, ratio } in &COMPARISONS {
            if let (Some(of), Some(to)) = (self.rows.get(of), self.rows.get(to)) {
                let ratio = ratio(of, to);
                writeln!(text, "  {label}: {ratio:.3}")?;
                comparisons.push(json!({ "label": label, "ratio": ratio }));
            }
        }
        json["comparisons"] = comparisons.into();
        text.push('\n');
        Ok(Some(Report { list: "test_runs", text, json }))
    }
}
