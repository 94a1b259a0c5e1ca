//! What the program decided about a packet.

/// The number of verdicts that the counters have room for. A power of two.
pub const VERDICT_SLOTS: usize = 8;

/// What happens to a packet. The numbers are those of the XDP actions (include/uapi/linux/bpf.h),
/// so that a verdict which is nothing but an action costs nothing to carry out.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// An invariant of the program is broken: `XDP_ABORTED`, so that the kernel's
    /// `xdp_exception` tracepoint shows it. Memory that was never written to says so too.
    Abort = 0,
    /// Discarded: `XDP_DROP`.
    Drop = 1,
    /// On to the host's own network stack: `XDP_PASS`.
    Pass = 2,
    /// To a target: `XDP_REDIRECT`.
    Steer = 4,
}

impl Verdict {
    /// Every verdict, in the order of listings.
    pub const ALL: [Self; 4] = [Self::Pass, Self::Steer, Self::Drop, Self::Abort];

    /// The verdict with this number. A number that names none is a broken invariant, which
    /// [`Verdict::Abort`] makes visible.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Drop,
            2 => Self::Pass,
            4 => Self::Steer,
            _ => Self::Abort,
        }
    }

    /// The word for it in listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Steer => "steer",
            Self::Drop => "drop",
            Self::Abort => "abort",
        }
    }
}
