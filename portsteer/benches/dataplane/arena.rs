//! A network of its own for those who are compared. Each contest has another one, so that nobody
//! pays for what is attached for somebody else: the kernel dispatches to XDP programs by comparing
//! addresses, and its tracepoints call everyone who listens.

use std::{
    cell::Cell,
    fs,
    io::ErrorKind,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use portsteer::{
    dataplane::{
        online_cpus,
        sys::{self, TestRun},
    },
    lab::{self, Device, End, Namespace, Veth},
};

use crate::{
    Result,
    family::Family,
    growth::Point,
    probes::{Probe, Probes},
    programs::{self, MacAddresses, XDP_DROP},
    rotation::Rotation,
};

/// The XDP mode of a link: native.
const NATIVE: u32 = 1 << 2;

/// How many packets of a rotation are judged one by one before anything is measured, and how many where whoever
/// judges them beside takes long for each.
const CHECKED: usize = 512;
const FEW_CHECKED: usize = 64;

/// What a contestant is made of.
pub trait Engine {
    /// Its XDP program, if it is one. [`start`](Self::start) comes before.
    fn program(&self) -> Option<BorrowedFd<'_>>;

    /// Called right before it is measured. What would slow down others begins here, and not before.
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Called right after it was measured. What would slow down others ends here.
    fn stop(&mut self) -> Result<()> {
        Ok(())
    }

    /// How many packets it has steered to their target since the start and does not know to be lost
    /// on the way. `None` if it does not say.
    fn sent(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// What it has to return for a packet. `None` if nobody knows.
    fn judges(&self, _probe: &Probe) -> Option<u32> {
        None
    }
}

/// A program that is attached for as long as this lives.
pub struct Attached {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Engine for Attached {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        Some(self.program.as_fd())
    }
}

/// One of those who are compared, on a lane of its own.
pub struct Contestant {
    pub name: String,
    pub lane: Lane,
    pub engine: Box<dyn Engine>,
    /// How many live frames it gets in a run.
    pub frames: u32,
    /// What it gets where the packets rotate: those of its policy. None if it never does.
    pub probes: Option<Probes>,
    /// What it gets where packets rotate that its policy does not match.
    pub others: Option<Probes>,
    /// Which curve it is a point of.
    pub point: Option<Point>,
    /// Whether frames must come with its own Ethernet address: of others nothing gets to where it judges.
    pub addressed: bool,
    /// What part of those it drops, as far as they were [checked](Arena::check).
    pub dropped: f64,
    /// How many of its frames the stack had dropped at its door when somebody looked last.
    pub passed: Cell<u64>,
}

impl Contestant {
    /// Somebody who gets so many live frames in a run.
    pub fn new(name: &str, lane: Lane, engine: impl Engine + 'static, frames: u32) -> Self {
        Self {
            name: name.to_owned(),
            lane,
            engine: Box::new(engine),
            frames,
            probes: None,
            others: None,
            point: None,
            addressed: false,
            dropped: 0.0,
            passed: Cell::new(0),
        }
    }

    /// Whether it does nothing at all, and so is not one of those who are compared.
    pub fn is_empty(&self) -> bool {
        self.name.starts_with("empty ")
    }
}

/// Two veth pairs for one contestant: on one of them, frames come to its program, and on the other they
/// can be steered to a sink, where every frame is dropped.
pub struct Lane {
    /// Where the program is.
    pub receiver: Device,
    /// The near end of the way to the sink.
    pub exit: Device,
    /// Its far end.
    pub sink: Device,
    /// Where the frames are sent.
    pub sender: Device,
    _links: [OwnedFd; 2],
}

impl Lane {
    /// What an Ethernet header says on the way to the sink.
    pub fn addresses_to_sink(&self) -> MacAddresses {
        let mut addresses = MacAddresses::default();
        addresses[..6].copy_from_slice(&self.sink.mac());
        addresses[6..].copy_from_slice(&self.exit.mac());
        addresses
    }
}

/// Sends live frames: a program that redirects them, run by the kernel.
///
/// It is attached, to all sending ends, though no frame ever comes in there: around a test run of a
/// program that is not, the kernel patches its dispatcher, and that takes 20 to 40 milliseconds.
pub struct Generator {
    program: OwnedFd,
    /// Where it sends them.
    map: OwnedFd,
}

impl Generator {
    pub fn new() -> Result<Self> {
        let map = programs::map(sys::map_type::DEVMAP, 1)?;
        Ok(Self { program: programs::redirect_map(&map, 0, None)?, map })
    }

    /// Sends frames to a lane's receiver, and says how long that took.
    pub fn send(&self, lane: &Lane, frame: &[u8], repeat: u32) -> Result<Duration> {
        lane.sender.namespace().run(|| {
            self.aim(&lane.sender)?;
            self.send_on(frame, repeat)
        })
    }

    /// The same for frames that the rotation rewrites.
    pub fn send_in_turn(
        &self,
        rotation: &Rotation,
        lane: &Lane,
        frame: &[u8],
        repeat: u32,
    ) -> Result<Duration> {
        rotation.lead_to(self.program.as_fd())?;
        lane.sender.namespace().run(|| {
            self.aim(&lane.sender)?;
            shoot(rotation.rewound()?, frame, repeat)
        })
    }

    /// Attaches it to a sending end, for as long as what is returned lives.
    pub fn attach(&self, sender: &Device) -> Result<OwnedFd> {
        link(&self.program, sender)
    }

    /// Lets all frames from now on leave by a sending end. Called in its namespace.
    pub fn aim(&self, sender: &Device) -> Result<()> {
        Ok(sys::map_update(self.map.as_fd(), 0, &sender.index().to_ne_bytes())?)
    }

    /// Sends frames to where the generator is aimed. Called in the sender's namespace.
    pub fn send_on(&self, frame: &[u8], repeat: u32) -> Result<Duration> {
        shoot(self.program.as_fd(), frame, repeat)
    }
}

fn shoot(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<Duration> {
    let run = TestRun { frame, repeat, live: true, first_buffer: None };
    let start = Instant::now();
    sys::test_run(program, run)?;
    Ok(start.elapsed())
}

pub struct Arena {
    pub namespace: Namespace,
    pub contestants: Vec<Contestant>,
    /// Who could not be had, and why.
    pub absent: Vec<String>,
    /// The CPU where everything runs.
    pub cpu: u32,
    /// A CPU where nothing of the benchmark runs, if there is one.
    pub other_cpu: Option<u32>,
    pub generator: Generator,
    /// Where the packets rotate.
    pub rotation: Option<Rotation>,
    /// One for all sinks: a program costs the others as much whether it is attached once or often.
    drop: OwnedFd,
    /// How many queues the receivers have, if the kernel is not to decide.
    queues: Option<u32>,
    lanes: usize,
    frames: u32,
}

impl Arena {
    /// An arena on the calling thread, whose mounts it makes private: it ends with the thread.
    /// Contestants get so many live `frames` in a run.
    pub fn new(frames: u32) -> Result<Self> {
        lab::private_mounts()?;
        // Sender and receiver share it; moving between CPUs would cost half the rate.
        let here = lab::stay_on_this_cpu()?;
        let namespace = Namespace::new()?;
        // With IPv6 the devices would send frames of their own.
        namespace.run(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))?;
        Ok(Self {
            cpu: here,
            other_cpu: online_cpus()?.into_iter().find(|&cpu| cpu != here),
            generator: Generator::new()?,
            rotation: None,
            drop: programs::returning("sink", XDP_DROP)?,
            namespace,
            contestants: Vec::new(),
            absent: Vec::new(),
            queues: None,
            lanes: 0,
            frames,
        })
    }

    /// Gives the receivers so many queues from now on: frames come in where the sender's CPU is the queue's.
    pub fn set_queues(&mut self, queues: u32) {
        self.queues = Some(queues);
    }

    /// One more lane, with nobody on it.
    pub fn lane(&mut self) -> Result<Lane> {
        let namespace = self.namespace.clone();
        self.lane_into(&namespace)
    }

    /// The same with the receiver in a namespace of its own, where nobody else's packets come.
    pub fn lane_apart(&mut self) -> Result<Lane> {
        self.lane_into(&Namespace::new()?)
    }

    fn lane_into(&mut self, namespace: &Namespace) -> Result<Lane> {
        let number = self.lanes;
        self.lanes += 1;
        let end = |name: &str| End::new(&self.namespace, &format!("{name}{number}"));
        let pair = Veth::between(end("tx"), End::new(namespace, &format!("rx{number}")));
        let pair = match self.queues {
            Some(queues) => pair.queues(queues),
            None => pair,
        };
        let Veth { left: sender, right: receiver } = pair.create()?;
        let Veth { left: exit, right: sink } = Veth::between(end("exit"), end("sink")).create()?;
        Ok(Lane {
            _links: [self.generator.attach(&sender)?, link(&self.drop, &sink)?],
            sender,
            receiver,
            exit,
            sink,
        })
    }

    /// Lets packets of this IP version rotate.
    pub fn rotate(&mut self, family: Family) -> Result<()> {
        let lane = self.lane()?;
        self.rotation = Some(Rotation::new(family, lane)?);
        Ok(())
    }

    pub fn add(&mut self, name: &str, lane: Lane, engine: impl Engine + 'static) {
        self.add_slow(name, lane, engine, self.frames);
    }

    /// Adds somebody who gets these packets where they rotate.
    pub fn add_rotating(
        &mut self,
        name: &str,
        lane: Lane,
        engine: impl Engine + 'static,
        probes: Vec<Probe>,
    ) {
        let probes = Some(Probes::new(probes));
        let contestant = Contestant::new(name, lane, engine, self.frames);
        self.contestants.push(Contestant { probes, ..contestant });
    }

    /// Adds somebody who would take too long for as many `frames` as the others get.
    pub fn add_slow(&mut self, name: &str, lane: Lane, engine: impl Engine + 'static, frames: u32) {
        self.contestants.push(Contestant::new(name, lane, engine, frames));
    }

    /// Adds a point of a curve.
    pub fn add_point(&mut self, point: Point, lane: Lane, engine: impl Engine + 'static) {
        let contestant = Contestant::new(&point.name(), lane, engine, self.frames);
        self.contestants.push(Contestant { point: Some(point), ..contestant });
    }

    /// Who was added last.
    pub fn last(&mut self) -> Result<&mut Contestant> {
        self.contestants.last_mut().ok_or_else(|| "nobody is here".into())
    }

    /// Has everyone judge some of the packets that it gets where they rotate, one by one. With `verify`,
    /// makes sure that the verdicts are right.
    pub fn check(&mut self, verify: bool) -> Result<()> {
        let Some(rotation) = &self.rotation else { return Ok(()) };
        for Contestant { name, engine, probes, point, dropped, .. } in &mut self.contestants {
            let is_large = point.is_some_and(|point| point.size > 10_000);
            let checked = if is_large { FEW_CHECKED } else { CHECKED };
            let (Some(probes), Some(program)) = (&*probes, engine.program()) else { continue };
            rotation.fill(probes)?;
            match rotation.lead_to(program) {
                // It takes no frames in several buffers, and such programs call each other only.
                Err(error) if error.kind() == ErrorKind::InvalidInput => continue,
                led => led?,
            }
            let verdicts = rotation.verdicts(&rotation.frame(), checked)?;
            for (&returned, probe) in verdicts.iter().zip(&probes.list).filter(|_| verify) {
                if let Some(wanted) = engine.judges(probe)
                    && returned != wanted
                {
                    let error = format!("{name} returned {returned}, not {wanted}: {probe:?}");
                    return Err(error.into());
                }
            }
            let count = verdicts.iter().filter(|&&verdict| verdict == XDP_DROP).count();
            *dropped = count as f64 / checked as f64;
        }
        Ok(())
    }

    /// A CPU where nothing of the benchmark runs.
    pub fn other_cpu(&self) -> Result<u32> {
        self.other_cpu.ok_or_else(|| "there is only one CPU".into())
    }

    pub fn find(&self, name: &str) -> Result<usize> {
        let found = self.contestants.iter().position(|contestant| contestant.name == name);
        found.ok_or_else(|| format!("there is no {name}").into())
    }
}

/// Attaches a program to a lane's receiving end.
pub fn attach(program: OwnedFd, lane: &Lane) -> Result<Attached> {
    let _link = link(&program, &lane.receiver)?;
    Ok(Attached { program, _link })
}

fn link(program: &OwnedFd, device: &Device) -> Result<OwnedFd> {
    let link = || sys::link_xdp(program.as_fd(), device.index(), NATIVE);
    Ok(device.namespace().run(link)?)
}
