//! Who takes part, and how each is loaded.

mod iptables;
mod lpm_trie;
mod matched;
mod minimal;
mod nftables;
mod portsteer;
mod watched;
mod xdp_bench;
mod xdp_filter;

pub use iptables::iptables;
pub use lpm_trie::{lpm_trie, lpm_trie_of, trie, trie_of};
pub use matched::Matched;
pub use minimal::{EMPTY_DROP, EMPTY_PASS, EMPTY_REDIRECT, MINIMAL, MINIMAL_MACS, empty, minimal};
pub use nftables::{
    Lookup, MANY_RULES, ONE_RULE, SET_OF_PORTS, nftables, nftables_ports, nftables_sources,
    no_filter,
};
pub use portsteer::{
    WITH_TARGETS, WITHOUT_TARGETS, blocking, blocking_sources, dropping, dropping_beside,
    dropping_ports, judging_mixed, mixed, steering, steering_mixed,
};
pub use watched::{
    MINIMAL_WATCHED, WITHOUT_TARGETS_WATCHED, minimal_watched, without_targets_watched,
};
pub use xdp_bench::{REDIRECTS, REDIRECTS_TO_CPU, xdp_bench};
pub use xdp_filter::{XDP_FILTER, xdp_filter, xdp_filter_ports};

use std::process::{Command, Stdio};

use ::portsteer::lab::Namespace;

use crate::{Result, arena::Arena};

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

/// Runs a peer's command to its end.
pub fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<()> {
    let output = namespace.command(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    Err(format!("{program} {}: {error}{said}", arguments.join(" ")).into())
}
