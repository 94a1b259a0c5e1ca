//! Who takes part, and how each is loaded.

mod lpm_trie;
mod minimal;
mod peers;
mod portsteer;
mod watched;
mod xdp_bench;

pub use lpm_trie::lpm_trie;
pub use minimal::{EMPTY_DROP, EMPTY_PASS, EMPTY_REDIRECT, MINIMAL, MINIMAL_MACS, empty, minimal};
pub use peers::{XDP_FILTER, nftables, xdp_filter};
pub use portsteer::{
    WITH_TARGETS, WITHOUT_TARGETS, blocking, dropping, dropping_beside, mixed, steering,
};
pub use watched::{
    MINIMAL_WATCHED, WITHOUT_TARGETS_WATCHED, minimal_watched, without_targets_watched,
};
pub use xdp_bench::xdp_bench;

use std::process::{Command, Stdio};

use crate::arena::Arena;

/// Where packets are steered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The lane's sink.
    Sink,
    /// The CPU on which nothing of the benchmark runs.
    OtherCpu,
}

/// How many packets may wait for a CPU: portsteer's default, and that of xdp-bench.
const QUEUE: u32 = 2048;

/// Whether a peer's program can be called; if not, that is noted.
fn installed(arena: &mut Arena, program: &str, package: &str) -> bool {
    let mut command = Command::new(program);
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        arena.absent.push(format!("{program} (apt-get install {package})"));
    }
    found.is_ok()
}
