//! portsteer, with policies of any size.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use portsteer::{
    compile::Interrupt,
    dataplane::{Dataplane, Instance, Order, TargetStats, program_in_slot, read_stats},
    lab::Namespace,
    policy::Policy,
};

use super::{Goal, QUEUE};
use crate::{
    Result,
    arena::{Arena, Engine, Lane},
    family::Family,
    growth::Point,
    policies::{Blocklist, DROP, Mixed, STEER, dropped_ports, ports, ports_of},
    probes::{self, Probe, Probes},
};

pub const WITHOUT_TARGETS: &str = "portsteer, policy without targets";
pub const WITH_TARGETS: &str = "portsteer, policy with targets";

/// portsteer on a lane.
pub struct Portsteer {
    namespace: Namespace,
    dataplane: Dataplane,
    program: OwnedFd,
    policy: Policy,
    /// In force while others are measured, where the policy has targets: as long as there are any,
    /// the kernel's tracepoints call portsteer for everybody's redirects.
    idle: Option<Policy>,
    /// What [`arriving`](Self::arriving) was at the start.
    arriving_before: u64,
}

impl Portsteer {
    /// With rules that have a port each.
    fn by_ports(lane: &Lane, rules: usize, action: &str, targets: &[String]) -> Result<Self> {
        let interface = lane.receiver.name();
        let policy = ports(interface, rules, action, targets)?.load()?;
        let idle =
            if targets.is_empty() { None } else { Some(ports(interface, 1, DROP, &[])?.load()?) };
        Self::new(lane, policy, idle)
    }

    fn new(lane: &Lane, policy: Policy, idle: Option<Policy>) -> Result<Self> {
        let namespace = lane.receiver.namespace().clone();
        let instance = Instance::new(&format!("bench-{}", lane.receiver.name()))?;
        let dataplane = Dataplane::lock(instance.clone())?;
        // The first policy makes room for the counters of all that follow.
        namespace
            .run(|| dataplane.apply(&Order::new(&policy, "bench", ""), &Interrupt::default()))?;
        let program = program_in_slot(&instance, 0)?;
        let mut new = Self { namespace, dataplane, program, policy, idle, arriving_before: 0 };
        new.stop()?;
        Ok(new)
    }

    /// With a policy that steers to this goal.
    pub fn steering(arena: &Arena, lane: &Lane, rules: usize, goal: Goal) -> Result<Self> {
        Self::by_ports(lane, rules, STEER, &[target(arena, lane, goal)?])
    }

    fn apply(&self, policy: &Policy) -> Result<()> {
        self.namespace.run(|| {
            self.dataplane.apply(&Order::new(policy, "bench", ""), &Interrupt::default())
        })?;
        Ok(())
    }

    /// Packets that were steered to the first target and, as far as is known, were not lost there.
    fn arriving(&self) -> Result<Option<u64>> {
        let stats = read_stats(self.dataplane.instance())?;
        // What the program itself has dropped is not among the packets.
        let arriving = |target: &TargetStats| {
            target.packets - target.lost.refused - target.lost.device - target.lost.queue
        };
        Ok(stats.targets.first().map(arriving))
    }
}

impl Engine for Portsteer {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        Some(self.program.as_fd())
    }

    fn judges(&self, probe: &Probe) -> Option<u32> {
        Some(probe.judged_by(&self.policy))
    }

    fn start(&mut self) -> Result<()> {
        if self.idle.is_some() {
            self.apply(&self.policy)?;
            self.arriving_before = self.arriving()?.unwrap_or_default();
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.idle.as_ref().map_or(Ok(()), |idle| self.apply(idle))
    }

    fn sent(&self) -> Result<Option<u64>> {
        Ok(self.arriving()?.map(|packets| packets - self.arriving_before))
    }
}

/// A target's lines in the policy file.
fn target(arena: &Arena, lane: &Lane, goal: Goal) -> Result<String> {
    match goal {
        Goal::Sink => {
            let mac = lane.sink.mac().map(|byte| format!("{byte:02x}")).join(":");
            Ok(format!("interface = \"{}\"\nmac = \"{mac}\"", lane.exit.name()))
        }
        Goal::OtherCpu => Ok(format!("cpus = [{}]\nqueue = {QUEUE}", arena.other_cpu()?)),
    }
}

/// With a policy of so many rules, none of which steers.
pub fn dropping(arena: &mut Arena, rules: usize) -> Result<()> {
    let lane = arena.lane()?;
    let engine = Portsteer::by_ports(&lane, rules, DROP, &[])?;
    let name = format!("portsteer, {rules} rules");
    arena.add_rotating(&name, lane, engine, probes::random(Family::V4));
    Ok(())
}

/// With a policy of so many rules of all kinds.
pub fn mixed(arena: &mut Arena, rules: usize, family: Family) -> Result<()> {
    let mixed = Mixed::new(rules, family)?;
    let lane = arena.lane()?;
    let policy = mixed.file(lane.receiver.name())?.load();
    add(arena, &format!("portsteer, {rules} rules"), lane, policy, mixed.probes())
}

/// With a policy that drops so many sources.
pub fn blocking(arena: &mut Arena, count: usize, family: Family) -> Result<()> {
    let blocklist = Blocklist::new(count, family)?;
    let lane = arena.lane()?;
    let policy = blocklist.file(lane.receiver.name())?.load();
    add(arena, &format!("portsteer, set of {count}"), lane, policy, blocklist.probes())
}

/// As a point of a curve: with so many rules that have a port each.
pub fn dropping_ports(arena: &mut Arena, point: Point) -> Result<()> {
    let lane = arena.lane()?;
    let policy = dropped_ports(lane.receiver.name(), &ports_of(point.size))?.load()?;
    let engine = Portsteer::new(&lane, policy, None)?;
    arena.add_point(point, lane, engine);
    Ok(())
}

/// As a point of a curve: with so many rules of all kinds.
pub fn judging_mixed(arena: &mut Arena, point: Point, family: Family) -> Result<()> {
    let mixed = Mixed::new(point.size, family)?;
    let lane = arena.lane()?;
    let policy = mixed.file(lane.receiver.name())?.load()?;
    let engine = Portsteer::new(&lane, policy, None)?;
    let dropped = probes::dropped(engine.program.as_fd(), &mixed.probes())?;
    arena.add_point(point, lane, engine);
    arena.last()?.probes = Some(Probes::new(dropped));
    Ok(())
}

/// As a point of a curve: with these sources.
pub fn blocking_sources(arena: &mut Arena, point: Point, blocklist: &Blocklist) -> Result<()> {
    let lane = arena.lane()?;
    let policy = blocklist.file(lane.receiver.name())?.load()?;
    let engine = Portsteer::new(&lane, policy, None)?;
    arena.add_point(point, lane, engine);
    Ok(())
}

/// Adds portsteer with a policy, unless that is refused: then that is noted.
fn add(
    arena: &mut Arena,
    name: &str,
    lane: Lane,
    policy: Result<Policy>,
    probes: Vec<Probe>,
) -> Result<()> {
    match policy.and_then(|policy| Portsteer::new(&lane, policy, None)) {
        Ok(engine) => arena.add_rotating(name, lane, engine, probes),
        Err(error) => {
            let ip = probes[0].family().name();
            arena.absent.push(format!("{name}, {ip}: {error}"));
        }
    }
    Ok(())
}

/// With a policy of so many rules, the last of which steers.
pub fn steering(arena: &mut Arena, rules: usize, goal: Goal) -> Result<()> {
    let lane = arena.lane()?;
    let engine = Portsteer::steering(arena, &lane, rules, goal)?;
    arena.add(&format!("portsteer, {rules} rules"), lane, engine);
    Ok(())
}

/// With a policy of so many rules of all kinds and one more, the last two of which steer.
pub fn steering_mixed(arena: &mut Arena, rules: usize, goal: Goal) -> Result<()> {
    let lane = arena.lane()?;
    let interface = lane.receiver.name();
    let mixed = Mixed::new(rules, Family::V4)?;
    let policy = mixed.steering_file(interface, &target(arena, &lane, goal)?)?.load()?;
    let idle = ports(interface, 1, DROP, &[])?.load()?;
    let engine = Portsteer::new(&lane, policy, Some(idle))?;
    arena.add(&format!("portsteer, {rules} mixed rules"), lane, engine);
    Ok(())
}

/// [`WITHOUT_TARGETS`], or [`WITH_TARGETS`] of all kinds that there can be here.
pub fn dropping_beside(arena: &mut Arena, name: &str) -> Result<()> {
    let lane = arena.lane()?;
    let mut targets = Vec::new();
    if name == WITH_TARGETS {
        targets.push(target(arena, &lane, Goal::Sink)?);
        if arena.other_cpu.is_some() {
            targets.push(target(arena, &lane, Goal::OtherCpu)?);
        }
    }
    let engine = dropping_beside_targets(&lane, &targets)?;
    arena.add(name, lane, engine);
    Ok(())
}

/// With a policy of 1,000 rules and these targets, to which the last rule does not steer: it drops.
pub fn dropping_beside_targets(lane: &Lane, targets: &[String]) -> Result<Portsteer> {
    Portsteer::by_ports(lane, 1_000, DROP, targets)
}
