//! What portsteer costs by being there. As long as its policy has targets, it listens on the kernel's
//! tracepoints, which all redirects pass: not only its own, also those of the generator, which stands
//! for a wire that has no tracepoints. So the live frames of a contestant with targets are slowed down
//! twice, and those here only that way: what is left between the two is what its program does.

use std::os::fd::BorrowedFd;

use super::{
    Goal,
    minimal::{MINIMAL, MINIMAL_MACS, redirecting},
    portsteer::{self, Portsteer},
};
use crate::{
    Result,
    arena::{Arena, Engine, Lane},
};

pub const MINIMAL_WATCHED: &str = "minimal beside portsteer's watchers";
pub const WITHOUT_TARGETS_WATCHED: &str = "the same beside portsteer's watchers";

/// The minimal program that does what portsteer does for this goal.
pub fn minimal_watched(arena: &mut Arena, goal: Goal) -> Result<()> {
    let lane = arena.lane()?;
    let name = if goal == Goal::Sink { MINIMAL_MACS } else { MINIMAL };
    let engine = redirecting(arena, &lane, name, goal)?;
    add(arena, MINIMAL_WATCHED, lane, engine, goal)
}

/// [`WITHOUT_TARGETS`](super::WITHOUT_TARGETS), beside a portsteer that has some.
pub fn without_targets_watched(arena: &mut Arena) -> Result<()> {
    let lane = arena.lane()?;
    let engine = portsteer::dropping_beside_targets(&lane, &[])?;
    add(arena, WITHOUT_TARGETS_WATCHED, lane, engine, Goal::Sink)
}

fn add(
    arena: &mut Arena,
    name: &str,
    lane: Lane,
    engine: impl Engine + 'static,
    goal: Goal,
) -> Result<()> {
    let watchers_lane = arena.lane()?;
    let watcher = Portsteer::steering(arena, &watchers_lane, 1, goal)?;
    arena.add(name, lane, Watched { _engine: engine, watcher, _watchers_lane: watchers_lane });
    Ok(())
}

/// Somebody who does not know of the portsteer on the other lane.
struct Watched<T> {
    _engine: T,
    watcher: Portsteer,
    _watchers_lane: Lane,
}

impl<T: Engine> Engine for Watched<T> {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        // No test run passes a tracepoint.
        None
    }

    fn start(&mut self) -> Result<()> {
        self.watcher.start()
    }

    fn stop(&mut self) -> Result<()> {
        self.watcher.stop()
    }
}
