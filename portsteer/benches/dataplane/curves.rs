//! What a packet costs against the number of rules: live frames, so that those can take part whom no test run
//! reaches. A packet's cost is the time from one to the next, and so has the sender's part in it, which is
//! the same for everybody and is all that an empty program has.

use std::{fmt::Write as _, time::Duration};

use portsteer::dataplane::sys::{self, TestRun};
use serde_json::{Value, json};

use crate::{
    Report, Result,
    arena::{Arena, Contestant},
    growth::Point,
    probes::Probe,
    programs::XDP_PASS,
    statistics::{ByName, by_round, median, spread},
    stream::{Amount, Finish, Frames, Stream},
};

/// How long a run is. A packet that goes through 10,000 rules takes a hundred microseconds.
const SLICE: Duration = Duration::from_millis(10);

/// What one kind of packet costs everyone.
pub struct Curves {
    title: String,
    /// What its picture is called.
    picture: String,
    stream: Stream,
    /// The packet, where it is always the same.
    packet: Option<Probe>,
    /// What becomes of the packets. Whoever would do something else with them does not take part.
    action: u32,
    /// Who runs before and after everyone else.
    zero: &'static str,
    zero_amount: Amount,
    zero_costs: Vec<f64>,
    rows: ByName<Row>,
    /// Who could not be measured, and why.
    pub absent: Vec<String>,
    /// Who has done something else than it had to.
    pub failures: Vec<String>,
}

/// One value per round, in nanoseconds per packet.
struct Row {
    point: Option<Point>,
    amount: Amount,
    costs: Vec<f64>,
    /// The zero's, before and after.
    zero: Vec<f64>,
}

impl Default for Row {
    fn default() -> Self {
        let amount = Amount::Lasting(SLICE);
        Self { point: None, amount, costs: Vec::new(), zero: Vec::new() }
    }
}

impl Curves {
    pub fn new(
        title: String,
        picture: String,
        frames: Frames,
        packet: Option<Probe>,
        action: u32,
        zero: &'static str,
    ) -> Self {
        let stream = Stream { frames, finish: Finish::Receiver };
        let zero_amount = Amount::Lasting(SLICE);
        let (zero_costs, rows) = (Vec::new(), ByName::default());
        Self {
            title,
            picture,
            stream,
            packet,
            action,
            zero,
            zero_amount,
            zero_costs,
            rows,
            absent: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Who runs before and after everyone else.
    pub fn zero(&self) -> &'static str {
        self.zero
    }

    /// Measures everyone in the arena who takes part.
    pub fn measure(&mut self, arena: &mut Arena, rounds: usize) -> Result<()> {
        let zero = arena.find(self.zero)?;
        let mut others = Vec::new();
        for index in 0..arena.contestants.len() {
            if self.takes_part(&arena.contestants[index]) {
                match self.verify(&arena.contestants[index]) {
                    Ok(()) => others.push(index),
                    Err(error) => {
                        let failure = self.note(&arena.contestants[index].name, &*error);
                        self.failures.push(failure);
                    }
                }
            }
        }
        // How many frames a run has is found out anew in every batch.
        self.zero_amount = Amount::Lasting(SLICE);
        for index in &others {
            self.rows.entry(&arena.contestants[*index].name).amount = Amount::Lasting(SLICE);
        }
        let mut before = cost(&self.stream, arena, zero, &mut self.zero_amount)?;
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..others.len() {
                let index = others[(place + round) % others.len()];
                let Contestant { name, point, .. } = &arena.contestants[index];
                let (name, point) = (name.clone(), *point);
                let row = self.rows.entry(&name);
                row.point = point;
                let with = cost(&self.stream, arena, index, &mut row.amount);
                let after = cost(&self.stream, arena, zero, &mut self.zero_amount)?;
                match with {
                    Ok(with) => {
                        let row = self.rows.entry(&name);
                        row.costs.push(with);
                        row.zero.push(f64::midpoint(before, after));
                        self.zero_costs.push(after);
                    }
                    Err(error) => {
                        let absent = self.note(&name, &*error);
                        self.absent.push(absent);
                    }
                }
                if let Err(error) = self.confirm(&arena.contestants[index]) {
                    let failure = self.note(&name, &*error);
                    self.failures.push(failure);
                }
                before = after;
            }
        }
        Ok(())
    }

    /// How somebody's error is told.
    fn note(&self, name: &str, error: &(dyn std::error::Error + Send + Sync)) -> String {
        format!("{name}, {}: {error}", self.title)
    }

    fn takes_part(&self, contestant: &Contestant) -> bool {
        let does_so = |packet| contestant.engine.judges(&packet) == Some(self.action);
        !contestant.is_empty() && self.stream.suits(contestant) && self.packet.is_none_or(does_so)
    }

    /// Makes sure that a program returns what it has to.
    fn verify(&self, contestant: &Contestant) -> Result<()> {
        if let (Frames::One(frame), Some(program)) =
            (&self.stream.frames, contestant.engine.program())
        {
            let run = TestRun { frame, repeat: 1, live: false, first_buffer: None };
            let returned = sys::test_run(program, run)?.action;
            if returned != self.action {
                return Err(format!("it returned {returned}, not {}", self.action).into());
            }
        }
        Ok(())
    }

    /// Makes sure that what is no program let frames into the stack if it had to, and otherwise did not. Frames
    /// with the interface's own address are not counted there.
    fn confirm(&self, contestant: &Contestant) -> Result<()> {
        if contestant.engine.program().is_some() || contestant.addressed {
            return Ok(());
        }
        let passed = contestant.lane.receiver.link()?.counters.rx_otherhost_dropped;
        let before = contestant.passed.replace(passed);
        if (passed > before) == (self.action == XDP_PASS) {
            return Ok(());
        }
        Err(format!("{} frames came into the stack", passed - before).into())
    }

    /// What was measured, as text and as JSON; nothing if nobody was.
    pub fn report(&self) -> Result<Option<Report>> {
        if self.zero_costs.is_empty() {
            return Ok(None);
        }
        let zero = spread(&self.zero_costs);
        let mut text = format!("{}, live frames into veth, ns per packet\n", self.title);
        writeln!(
            text,
            "  {:<52} {:>9} {:>9} {:>20} {:>8}",
            "", "gross", "net", "net, spread", "x empty"
        )?;
        writeln!(text, "  {:<52} {:>9.1}", self.zero, zero.median)?;
        let mut rows = Vec::new();
        for (name, row) in self.rows.iter().filter(|(_, row)| !row.costs.is_empty()) {
            let gross = spread(&row.costs);
            let net = spread(&by_round(&row.costs, &row.zero, |with, without| with - without));
            let times = spread(&by_round(&row.costs, &row.zero, |with, without| with / without));
            let range = format!("{:.1} to {:.1}", net.low, net.high);
            writeln!(
                text,
                "  {name:<52} {:>9.1} {:>9.1} {range:>20} {:>8.2}",
                gross.median, net.median, times.median
            )?;
            let (curve, size) = match row.point {
                Some(point) => (json!(point.series.name), json!(point.size)),
                None => (Value::Null, Value::Null),
            };
            rows.push(json!({
                "row": name, "curve": curve, "size": size, "rounds": row.costs.len(),
                "gross_ns": gross.median, "gross_quartiles_ns": [gross.low, gross.high],
                "net_ns": net.median, "net_quartiles_ns": [net.low, net.high],
                "times_zero": times.median, "times_zero_quartiles": [times.low, times.high],
            }));
        }
        text.push('\n');
        let json = json!({
            "title": self.title, "picture": self.picture, "zero": self.zero,
            "zero_ns": zero.median, "zero_quartiles_ns": [zero.low, zero.high], "rows": rows,
        });
        Ok(Some(Report { list: "curves", text, json }))
    }
}

/// Nanoseconds per packet.
fn cost(stream: &Stream, arena: &mut Arena, index: usize, amount: &mut Amount) -> Result<f64> {
    let rates = stream.rates(arena, index, amount)?;
    Ok(1e3 / median(&rates))
}
