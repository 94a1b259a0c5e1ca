//! The least that there can be: programs that do nothing, and programs that do nothing but redirect.

use super::{Goal, QUEUE};
use crate::{
    Result,
    arena::{Arena, Attached, Lane, attach},
    programs::{self, XDP_DROP, XDP_PASS, XDP_REDIRECT},
};

pub const EMPTY_DROP: &str = "empty XDP_DROP";
pub const EMPTY_PASS: &str = "empty XDP_PASS";
pub const EMPTY_REDIRECT: &str = "empty XDP_REDIRECT";

/// `bpf_redirect_map` and nothing else.
pub const MINIMAL: &str = "minimal redirect";
/// The same and the MAC addresses: the least that gets a packet to another interface's neighbour.
pub const MINIMAL_MACS: &str = "minimal redirect, MACs written";

/// A program that returns an action. Attached, as all others are: the kernel patches its dispatcher
/// around each test run of a program that is not, and that costs milliseconds.
pub fn empty(arena: &mut Arena, name: &str) -> Result<()> {
    let action = match name {
        EMPTY_DROP => XDP_DROP,
        EMPTY_PASS => XDP_PASS,
        _ => XDP_REDIRECT,
    };
    let lane = arena.lane()?;
    let engine = attach(programs::returning("empty", action)?, &lane)?;
    arena.add(name, lane, engine);
    Ok(())
}

/// [`MINIMAL`] or [`MINIMAL_MACS`].
pub fn minimal(arena: &mut Arena, name: &str, goal: Goal) -> Result<()> {
    let lane = arena.lane()?;
    let engine = redirecting(arena, &lane, name, goal)?;
    arena.add(name, lane, engine);
    Ok(())
}

/// The program of [`minimal`], attached to a lane.
pub fn redirecting(arena: &Arena, lane: &Lane, name: &str, goal: Goal) -> Result<Attached> {
    let addresses = (name == MINIMAL_MACS).then(|| lane.addresses_to_sink());
    let (map, key) = match goal {
        Goal::Sink => {
            let exit = lane.exit.index();
            (arena.namespace.run(|| programs::map_of_device(exit))?, 0)
        }
        Goal::OtherCpu => {
            let cpu = arena.other_cpu()?;
            (programs::map_of_cpu(cpu, QUEUE)?, cpu)
        }
    };
    attach(programs::redirect_map(&map, key, addresses)?, lane)
}
