//! portsteer, with policies of any size.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use portsteer::{
    dataplane::{Dataplane, Instance, TargetStats, program_in_slot, read_stats},
    lab::Namespace,
    policy::Policy,
};

use super::{Goal, QUEUE};
use crate::{
    Result,
    arena::{Arena, Engine, Lane},
    policies::{DROP, STEER, policy},
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
    fn new(lane: &Lane, rules: usize, action: &str, targets: &[String]) -> Result<Self> {
        let interface = lane.receiver.name();
        let namespace = lane.receiver.namespace().clone();
        let instance = Instance::new(&format!("bench-{interface}"))?;
        let dataplane = Dataplane::lock(instance.clone())?;
        let policy = policy(interface, rules, action, targets)?;
        let idle =
            if targets.is_empty() { None } else { Some(self::policy(interface, 1, DROP, &[])?) };
        // The first policy makes room for the counters of all that follow.
        namespace.run(|| dataplane.apply(&policy, "bench", ""))?;
        let program = program_in_slot(&instance, 0)?;
        let mut new = Self { namespace, dataplane, program, policy, idle, arriving_before: 0 };
        new.stop()?;
        Ok(new)
    }

    /// With a policy that steers to this goal.
    pub fn steering(arena: &Arena, lane: &Lane, rules: usize, goal: Goal) -> Result<Self> {
        Self::new(lane, rules, STEER, &[target(arena, lane, goal)?])
    }

    fn apply(&self, policy: &Policy) -> Result<()> {
        self.namespace.run(|| self.dataplane.apply(policy, "bench", ""))?;
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
    let engine = Portsteer::new(&lane, rules, DROP, &[])?;
    arena.add(&format!("portsteer, {rules} rules"), lane, engine);
    Ok(())
}

/// With a policy of so many rules, the last of which steers.
pub fn steering(arena: &mut Arena, rules: usize, goal: Goal) -> Result<()> {
    let lane = arena.lane()?;
    let engine = Portsteer::steering(arena, &lane, rules, goal)?;
    arena.add(&format!("portsteer, {rules} rules"), lane, engine);
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
    Portsteer::new(lane, 1_000, DROP, targets)
}
