//! A policy on trial: the value of the map `trial`, in which the kernel itself holds the deadline. Every trial has
//! a map of its own.
//!
//! User space writes what is to happen and runs a program that puts the policy in force and starts the timer, in one
//! go, so that no policy is on trial without a deadline. Whatever becomes of all processes meanwhile, the timer ends
//! the trial when its time is up ([`Active::lapse`]), unless the word is another one by then.
//!
//! [`Active::lapse`]: crate::active::Active::lapse

use bytemuck::{Pod, Zeroable};

use crate::active::Active;

/// What is to happen.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Trial {
    /// How long the trial lasts from the moment at which the timer is started, in nanoseconds of a clock that
    /// no program sets and that goes on while the machine sleeps (`CLOCK_BOOTTIME`).
    pub nanoseconds: u64,
    /// The word before the trial: it does not begin if that is another one by then.
    pub before: Active,
    /// The word while the trial runs, from which it lapses.
    pub running: Active,
}

/// What the program returns where the kernel refuses: this, and the number of its error.
pub const REFUSED: u32 = 1 << 16;

/// The value of the map `trial`. The kernel hides its timer: it reads as zeroes. A write to the value cancels
/// the timer, so there is none while a trial runs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct HeldTrial {
    /// `struct bpf_timer` (include/uapi/linux/bpf.h).
    pub timer: [u64; 2],
    pub trial: Trial,
}
