//! xdp-filter, of xdp-tools: a table by port, whatever the number of ports.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use portsteer::dataplane::sys;

use super::{Matched, installed, run};
use crate::{
    PORT, Result,
    arena::{Arena, Engine},
    growth::Point,
    policies::ports_of,
    probes::Probe,
};

pub const XDP_FILTER: &str = "xdp-filter, 1 port";

/// Where it pins its maps.
const PINS: &str = "/sys/fs/bpf/xdp-filter";

struct XdpFilter {
    program: OwnedFd,
    matched: Matched,
    /// The ports besides [`PORT`], and the map that they are in while this is measured: all interfaces share it.
    others: Vec<u16>,
    ports: OwnedFd,
}

impl XdpFilter {
    /// Gives all ports but [`PORT`] the same value in the map.
    fn set(&self, value: &[u8]) -> Result<()> {
        for &port in &self.others {
            sys::map_update(self.ports.as_fd(), map_key(port), value)?;
        }
        Ok(())
    }

    /// What the map has for a port, on every CPU.
    fn value(&self, port: u16) -> Result<Vec<u8>> {
        let mut value = vec![0; 8 * possible_cpus()?];
        sys::map_lookup(self.ports.as_fd(), map_key(port), &mut value)?;
        Ok(value)
    }
}

impl Engine for XdpFilter {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        Some(self.program.as_fd())
    }

    fn start(&mut self) -> Result<()> {
        if self.others.is_empty() { Ok(()) } else { self.set(&self.value(PORT)?) }
    }

    fn stop(&mut self) -> Result<()> {
        if self.others.is_empty() { Ok(()) } else { self.set(&vec![0; 8 * possible_cpus()?]) }
    }

    fn judges(&self, probe: &Probe) -> Option<u32> {
        Some(self.matched.verdict(probe))
    }
}

/// With one port.
pub fn xdp_filter(arena: &mut Arena) -> Result<()> {
    let Some((lane, engine)) = load(arena, 1)? else { return Ok(()) };
    arena.add(XDP_FILTER, lane, engine);
    Ok(())
}

/// With so many ports. Its command takes one at a time, so the others are copies of the first in its map.
pub fn xdp_filter_ports(arena: &mut Arena, point: Point) -> Result<()> {
    let Some((lane, engine)) = load(arena, point.size)? else { return Ok(()) };
    arena.add_point(point, lane, engine);
    Ok(())
}

fn load(arena: &mut Arena, count: usize) -> Result<Option<(crate::arena::Lane, XdpFilter)>> {
    if !installed(arena, "xdp-filter", "xdp-tools") {
        return Ok(None);
    }
    let lane = arena.lane()?;
    let name = lane.receiver.name();
    run(&arena.namespace, "xdp-filter", &["load", name, "--mode", "native"])?;
    run(&arena.namespace, "xdp-filter", &["port", &PORT.to_string(), "--mode", "dst"])?;
    let id = lane.receiver.link()?.xdp.and_then(|xdp| xdp.program_id);
    let program = sys::program_by_id(id.ok_or("xdp-filter has attached nothing")?)?;
    let ports = sys::open_pin(&Path::new(PINS).join("filter_ports"))?;
    let all = ports_of(count);
    let others = all.iter().copied().filter(|&port| port != PORT).collect();
    let matched = Matched::ports(&all);
    Ok(Some((lane, XdpFilter { program, matched, others, ports })))
}

/// Its table is in the order of the wire.
fn map_key(port: u16) -> u32 {
    u32::from(port.to_be())
}

/// How many CPUs there may ever be: as many values as a map per CPU has.
fn possible_cpus() -> Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    Ok(last.parse::<usize>()? + 1)
}
