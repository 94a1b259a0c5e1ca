//! The layout of targets: where the packets go that a rule steers.
//!
//! Targets stand beside the two banks, not in them: what is known about a neighbour changes at any
//! time, with or without a new policy. A *target slot* belongs to one definition of a target for
//! as long as any policy that may be in force uses it, so a swap of policies never changes what a
//! slot means.
//!
//! ```text
//! Decision (verdict: steer) ──slot──▶ targets[slot], and spreads[slot] if it is one of CPUs
//! ```

use bytemuck::{Pod, Zeroable};

/// How many targets a policy can have.
pub const MAX_TARGETS: usize = 1024;

/// How many target slots there are: enough for a policy whose targets are all new beside the one
/// that it replaces. A power of two, of which [`Decision`](crate::Decision) has the bits.
pub const TARGET_SLOTS: usize = 2 * MAX_TARGETS;

/// The places over which the flows to a target of CPUs are spread; each names a CPU.
pub const SPREAD_PLACES: usize = 128;

/// What the program is to do with packets for a target: the numbers of [`Target::state`].
pub mod state {
    /// Drop: the interface does not exist, or none of the CPUs is online. Memory that was never
    /// written to says so too.
    pub const GONE: u32 = 0;
    /// Drop: the interface is down, or has no carrier.
    pub const DOWN: u32 = 1;
    /// Drop: the next hop's MAC address is not known.
    pub const UNRESOLVED: u32 = 2;
    /// Send out of the interface, with the MAC addresses of [`Target::macs`](super::Target::macs)
    /// at index 0.
    pub const READY_0: u32 = 3;
    /// The same, with those at index 1.
    pub const READY_1: u32 = 4;
    /// Send out of the interface as it is.
    pub const READY_KEEP: u32 = 5;
    /// Hand over to one of the CPUs.
    pub const READY_CPUS: u32 = 6;

    /// Hand over to the CPU at place 0, the only one.
    pub const READY_CPU: u32 = 7;

    /// The bits that have the number. The others are user space's own notes.
    pub const NUMBER: u32 = 0xff;
    /// A note: the device refuses frames that are redirected in native mode. They are tried all the
    /// same, since that may change at any time, and generic mode is not concerned.
    pub const REFUSING: u32 = 1 << 8;
}

/// The two MAC addresses of an Ethernet header, as they stand there.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MacAddresses {
    pub destination: [u8; 6],
    pub source: [u8; 6],
}

/// What the program knows of a target.
///
/// User space changes it while programs read it: the MAC addresses that are not in use first, then
/// the state, with a grace period before the same addresses are changed again.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Target {
    /// One of the numbers in [`state`], and notes.
    pub state: u32,
    /// The longest frame that the interface takes, in bytes, Ethernet header and VLAN tag
    /// included.
    pub max_len: u32,
    pub macs: [MacAddresses; 2],
}

/// Over which CPUs the flows to a target are spread: CPU numbers.
pub type Spread = [u16; SPREAD_PLACES];

/// All targets, by slot.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
#[expect(missing_debug_implementations, reason = "as for the image")]
pub struct Targets {
    pub targets: [Target; TARGET_SLOTS],
    /// For targets of CPUs.
    pub spreads: [Spread; TARGET_SLOTS],
}

/// Packets that were steered to a target and did not get there, by what became of them. Per CPU.
///
/// The map has one for each target slot, and after those one for each CPU that packets can be
/// handed to, since the kernel's queues are shared by all targets that name a CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Losses {
    /// The program knew: no such interface, no CPU online.
    pub gone: u64,
    /// The program knew: the interface is down, or has no carrier.
    pub down: u64,
    /// The program knew: the frame is too long, or, where the kernel loses such frames, in several
    /// buffers.
    pub mtu: u64,
    /// The program knew: the next hop is not resolved.
    pub unresolved: u64,
    /// The kernel refused the redirect after the program had decided it (tracepoint
    /// `xdp_redirect_err`).
    pub refused: u64,
    /// The CPU's queue was full (tracepoint `xdp_cpumap_enqueue`).
    pub queue: u64,
    /// The device did not take the frame (tracepoint `xdp_devmap_xmit`). Where several targets send
    /// out of one device, they count for the first.
    pub device: u64,
    /// Those of `device` for which the driver gave an error: it takes no frames at all, rather than
    /// having no room for more.
    pub unable: u64,
}
