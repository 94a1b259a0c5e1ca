//! A stream of live frames to one contestant, and how fast it takes them.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    arena::{Arena, Contestant, Generator, Lane},
    probes::{Probe, Probes},
    rotation::Rotation,
    statistics::median,
};

/// Runs in a round, of which the median counts: short ones, so that what a neighbour of this machine
/// does for some milliseconds spoils one of them and not the round.
const SLICES: usize = 3;
/// How long the counters must have stood still before everything has arrived. A queue to another CPU
/// is worked off in one or two milliseconds, if that CPU has nothing else to do.
const QUIET: Duration = Duration::from_millis(4);
/// How long the first or the last frame may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Frames that are sent, as often as it takes, before anything counts.
const WARM_UP: u32 = 64;
/// Frames of which nobody gets more in a run, however quick it is.
const MOST: u32 = 400_000;

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
    pub fn stages(self) -> &'static [&'static str] {
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

    /// The counters when they stand still, because nothing is on its way any more.
    pub fn settled(self, lane: &Lane) -> Result<Vec<u64>> {
        let mut counts = self.counts(lane)?;
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            thread::sleep(Duration::from_millis(1));
            let now = self.counts(lane)?;
            if now != counts {
                (counts, since) = (now, Instant::now());
            }
        }
        Ok(counts)
    }
}

/// Which frames come.
#[derive(Debug, Clone)]
pub enum Frames {
    /// This one, again and again.
    One(Vec<u8>),
    /// The contestant's [probes](Contestant::probes) in turn.
    InTurn,
    /// Those in turn that its rules [do not match](Contestant::others).
    OthersInTurn,
}

impl Frames {
    /// The table that a contestant's frames are in, if they are in one.
    fn table<'a>(&self, contestant: &'a Contestant) -> Option<&'a Probes> {
        match self {
            Self::One(_) => None,
            Self::InTurn => contestant.probes.as_ref(),
            Self::OthersInTurn => contestant.others.as_ref(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Stream {
    pub frames: Frames,
    pub finish: Finish,
}

impl Stream {
    /// Whether there are such frames for somebody. Who does nothing takes everybody's.
    pub fn suits(&self, contestant: &Contestant) -> bool {
        matches!(self.frames, Frames::One(_))
            || contestant.is_empty()
            || self.frames.table(contestant).is_some()
    }

    /// Millions of packets per second, at every stage. So many frames come in a run; without a number, as many
    /// as the contestant takes in about this time, which is asked for once and then remembered.
    pub fn rates(&self, arena: &mut Arena, index: usize, amount: &mut Amount) -> Result<Vec<f64>> {
        let Arena { contestants, generator, rotation, .. } = arena;
        let contestant = &mut contestants[index];
        contestant.engine.start()?;
        let source = Source::new(self, contestant, generator, rotation.as_ref());
        let rates = source.and_then(|source| self.started_rates(&source, contestant, amount));
        let stopped = contestant.engine.stop();
        let rates = rates?;
        stopped?;
        Ok(rates)
    }

    fn started_rates(
        &self,
        source: &Source<'_>,
        contestant: &Contestant,
        amount: &mut Amount,
    ) -> Result<Vec<f64>> {
        let lane = &contestant.lane;
        let started = self.finish.counts(lane)?;
        // Somebody else's program may still be waiting for its maps.
        let begin = Instant::now();
        let mut before = loop {
            source.send(WARM_UP)?;
            let counts = self.finish.settled(lane)?;
            if counts.iter().zip(&started).all(|(now, before)| now > before) {
                break counts;
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("{}: no frame has arrived", contestant.name).into());
            }
        };
        let frames = match *amount {
            Amount::Frames(frames) => frames,
            Amount::Lasting(time) => {
                let frames = source.frames_in(time)?;
                *amount = Amount::Frames(frames);
                before = self.finish.settled(lane)?;
                frames
            }
        };
        let mut slices = vec![Vec::new(); before.len()];
        for _ in 0..SLICES {
            let elapsed = source.send(frames)?;
            let after = self.finish.settled(lane)?;
            for (stage, slices) in slices.iter_mut().enumerate() {
                let packets = after[stage] - before[stage];
                slices.push(packets as f64 / elapsed.as_secs_f64() / 1e6);
            }
            before = after;
        }
        self.confirm(contestant, &started)?;
        Ok(slices.iter().map(|slices| median(slices)).collect())
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
}

/// How many frames come in a run.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    Frames(u32),
    /// As many as are taken in this time.
    Lasting(Duration),
}

/// What sends the frames of a stream to somebody.
struct Source<'a> {
    generator: &'a Generator,
    lane: &'a Lane,
    frame: Vec<u8>,
    rotation: Option<&'a Rotation>,
}

impl<'a> Source<'a> {
    fn new(
        stream: &Stream,
        contestant: &'a Contestant,
        generator: &'a Generator,
        rotation: Option<&'a Rotation>,
    ) -> Result<Self> {
        let (mut frame, rotation) = match &stream.frames {
            Frames::One(frame) => (frame.clone(), None),
            frames => {
                let rotation = rotation.ok_or("nothing rotates")?;
                // Who does nothing takes what was there before.
                if let Some(table) = frames.table(contestant) {
                    rotation.fill(table)?;
                }
                (rotation.frame(), Some(rotation))
            }
        };
        if contestant.addressed {
            frame[..6].copy_from_slice(&contestant.lane.receiver.mac());
        }
        Ok(Self { generator, lane: &contestant.lane, frame, rotation })
    }

    fn send(&self, frames: u32) -> Result<Duration> {
        match self.rotation {
            None => self.generator.send(self.lane, &self.frame, frames),
            Some(rotation) => self.generator.send_in_turn(rotation, self.lane, &self.frame, frames),
        }
    }

    /// How many frames are taken in about this time.
    fn frames_in(&self, time: Duration) -> Result<u32> {
        let mut frames = WARM_UP;
        loop {
            // The quickest of some: too few frames would be those of a moment in which somebody else ran, and then
            // what a run itself takes would count as theirs.
            let mut elapsed = Duration::MAX;
            for _ in 0..SLICES {
                elapsed = elapsed.min(self.send(frames)?);
            }
            if elapsed * 4 > time || frames == MOST {
                let fitting = f64::from(frames) * time.as_secs_f64() / elapsed.as_secs_f64();
                return Ok((fitting as u32).clamp(WARM_UP, MOST));
            }
            frames = (frames * 4).min(MOST);
        }
    }
}

impl From<&Probe> for Frames {
    fn from(probe: &Probe) -> Self {
        Self::One(probe.frame())
    }
}
