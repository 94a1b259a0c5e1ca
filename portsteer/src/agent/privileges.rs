//! What the agent may do, reduced to what it needs as soon as it has its sockets.

use std::collections::HashSet;

use caps::{CapSet, Capability};

/// What an agent goes on with, and what for.
pub const KEPT: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "loads programs, makes maps and reads them"),
    (
        Capability::CAP_NET_ADMIN,
        "attaches programs to interfaces, switches offloads and asks for neighbours",
    ),
    (
        Capability::CAP_PERFMON,
        "lets programs compare addresses, and watches the kernel's redirect tracepoints",
    ),
];

/// Gives up all other capabilities, for good. Only for the thread that calls it and those that it starts later.
///
/// # Errors
///
/// The kernel refuses, in words. Then some may be left.
pub fn give_up() -> Result<(), String> {
    let kept: HashSet<Capability> = KEPT.iter().map(|(capability, _)| *capability).collect();
    let failed = |error: caps::errors::CapsError| format!("giving up capabilities: {error}");
    let present = caps::read(None, CapSet::Permitted).map_err(failed)?;
    if present.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
        }
    }
    let rest: HashSet<Capability> = present.intersection(&kept).copied().collect();
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    caps::set(None, CapSet::Effective, &rest).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &rest).map_err(failed)
}
