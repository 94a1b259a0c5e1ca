//! What the program decided about a packet.

use bytemuck::{Pod, Zeroable};

/// The number of verdicts that the counters have room for. A power of two.
pub const VERDICT_SLOTS: usize = 8;

/// A verdict as a number, as it stands in a [`crate::Rule`]. Any byte is a valid value; one that
/// names no verdict is a broken invariant, and the program answers it with [`Verdict::Abort`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct VerdictCode(pub u8);

/// What happens to a packet.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// On to the host's own network stack: `XDP_PASS`.
    Pass = 0,
    /// Discarded: `XDP_DROP`.
    Drop = 1,
    /// An invariant of the program is broken: `XDP_ABORTED`, so that the kernel's
    /// `xdp_exception` tracepoint shows it.
    Abort = 2,
}

impl Verdict {
    /// Every verdict, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Pass, Self::Drop, Self::Abort];

    /// The verdict's number.
    #[must_use]
    pub const fn code(self) -> VerdictCode {
        VerdictCode(self as u8)
    }

    /// The word for it in listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Abort => "abort",
        }
    }
}

impl VerdictCode {
    /// The verdict that this number names, [`Verdict::Abort`] if it names none.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self.0 {
            0 => Verdict::Pass,
            1 => Verdict::Drop,
            _ => Verdict::Abort,
        }
    }
}
