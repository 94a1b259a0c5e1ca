//! A policy on trial: the value of the map `trial`, in which the kernel itself holds the deadline.
//!
//! User space writes what is to happen and runs the program that starts the timer. Whatever becomes of all
//! processes meanwhile, the timer puts the bank before back in force when its time is up, unless it was
//! cancelled before.

use bytemuck::{Pod, Zeroable};

/// What is to happen when the time is up.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Trial {
    /// How long the trial lasts from the moment at which the timer is started, in nanoseconds of a clock that
    /// nobody sets and that goes on while the machine sleeps (`CLOCK_BOOTTIME`).
    pub nanoseconds: u64,
    /// What [`PolicyBanks::active`](crate::PolicyBanks::active) is to be then.
    pub back: u32,
    /// One of the numbers in [`state`].
    pub state: u32,
}

/// What has become of a trial.
pub mod state {
    /// There is none: it was ended before its time, or there never was one.
    pub const NONE: u32 = 0;
    /// The timer runs.
    pub const RUNNING: u32 = 1;
    /// The time was up, and the bank before is in force.
    pub const LAPSED: u32 = 2;
}

/// What the programs return where the kernel refuses: this, and the number of its error.
pub const REFUSED: u32 = 1 << 16;

/// The value of the map `trial`. The kernel hides its timer: it reads as zeroes, and writing leaves it alone.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct HeldTrial {
    /// `struct bpf_timer` (include/uapi/linux/bpf.h).
    pub timer: [u64; 2],
    pub trial: Trial,
}
