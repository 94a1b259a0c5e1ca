//! The word that says which policy is in force: the one value of the map `active`, and all that may become of it.
//!
//! ```text
//!   bit 63            34 33      32 31             0
//!      ├────────────────┼──────────┼───────────────┤
//!      │   generation   │  phase   │     bank      │
//!      └────────────────┴──────────┴───────────────┘
//! ```
//!
//! Everything that decides about what is in force stands in these 64 bits, and whoever changes them (the agent, the
//! kernel's timer at a trial's deadline) does so by a compare-and-swap from the whole word that it knows.
//! A generation is given to one policy alone, so a deadline can end the trial that it was set for and no other, and a
//! write that comes late changes nothing.
//!
//! The functions here are the only transitions that there are. Both sides use them.
//!
//! ```text
//!              put_in_force                     begin_trial
//!   (b, none, g) ──────▶ (b', none, g')   (b, none, g) ──────▶ (b', running, g')
//!
//!                     confirm                              lapse
//!   (b', running, g') ──────▶ (b', none, g')    (b', running, g') ──────▶ (b, lapsed, g')
//!
//!                      settle
//!   (b, lapsed, g') ──────▶ (b, none, g)
//! ```

use bytemuck::{Pod, Zeroable};

use crate::image::{FIRST_BANK, SECOND_BANK};

/// Whether a policy is on trial.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No policy is.
    None = 0,
    /// The policy in force is, and the kernel holds its deadline.
    Running = 1,
    /// The trial is over, and the policy before is in force; what the other needed is still in place.
    Lapsed = 2,
}

/// Which policy is in force, and whether it is on trial.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Active(u64);

impl Active {
    const PHASE_AT: u32 = 32;
    const GENERATION_AT: u32 = 34;
    /// The part of a policy's number that the word has room for: 30 bits, which one host does not use up.
    pub const GENERATIONS: u64 = (1 << (u64::BITS - Self::GENERATION_AT)) - 1;

    /// What a new instance has: the first bank, which is empty.
    pub const NOTHING: Self = Self(0);

    const fn new(bank: u32, phase: Phase, generation: u64) -> Self {
        Self(
            (generation & Self::GENERATIONS) << Self::GENERATION_AT
                | (phase as u64) << Self::PHASE_AT
                | bank as u64,
        )
    }

    /// The word of an instance that is carried over from another layout, where it is said in another way. `bank` is
    /// 0 or 1.
    #[must_use]
    pub const fn carried(bank: usize, phase: Phase, generation: u64) -> Self {
        Self::new(if bank == 0 { FIRST_BANK } else { SECOND_BANK }, phase, generation)
    }

    /// From [`Active::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As the map has it.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The word of the bank in force: [`FIRST_BANK`] or [`SECOND_BANK`].
    #[inline(always)]
    #[must_use]
    pub const fn bank_word(self) -> u32 {
        self.0 as u32
    }

    /// The index of the bank in force: 0 or 1.
    #[must_use]
    pub const fn bank(self) -> usize {
        (self.bank_word() != FIRST_BANK) as usize
    }

    /// The index of the other bank.
    #[must_use]
    pub const fn other_bank(self) -> usize {
        1 - self.bank()
    }

    /// Whether a policy is on trial.
    #[inline(always)]
    #[must_use]
    pub const fn phase(self) -> Phase {
        match (self.0 >> Self::PHASE_AT) & 0b11 {
            1 => Phase::Running,
            2 => Phase::Lapsed,
            _ => Phase::None,
        }
    }

    /// The number of the policy in force, or of the one whose trial has lapsed, as far as there is room.
    #[must_use]
    pub const fn generation(self) -> u64 {
        self.0 >> Self::GENERATION_AT
    }

    /// Whether the generation is that of a policy with this number.
    #[must_use]
    pub const fn is_of(self, generation: u64) -> bool {
        self.generation() == generation & Self::GENERATIONS
    }

    /// Puts the other bank in force, for good. `None` while a trial runs or is to be tidied up after.
    #[must_use]
    pub const fn put_in_force(self, generation: u64) -> Option<Self> {
        match self.phase() {
            Phase::None => Some(Self::new(!self.bank_word(), Phase::None, generation)),
            Phase::Running | Phase::Lapsed => None,
        }
    }

    /// Puts the other bank in force, on trial. `None` while another trial runs or is to be tidied up after.
    #[must_use]
    pub const fn begin_trial(self, generation: u64) -> Option<Self> {
        match self.phase() {
            Phase::None => Some(Self::new(!self.bank_word(), Phase::Running, generation)),
            Phase::Running | Phase::Lapsed => None,
        }
    }

    /// Puts the bank before in force again: what the deadline does, and a rollback. `None` if no trial runs.
    #[inline(always)]
    #[must_use]
    pub const fn lapse(self) -> Option<Self> {
        match self.phase() {
            Phase::Running => Some(Self::new(!self.bank_word(), Phase::Lapsed, self.generation())),
            Phase::None | Phase::Lapsed => None,
        }
    }

    /// Keeps the policy on trial for good. `None` if no trial runs.
    #[must_use]
    pub const fn confirm(self) -> Option<Self> {
        match self.phase() {
            Phase::Running => Some(Self::new(self.bank_word(), Phase::None, self.generation())),
            Phase::None | Phase::Lapsed => None,
        }
    }

    /// Says that all has been tidied up after a trial that has lapsed; `generation` is the number of the policy in
    /// force, 0 if there is none. `None` if no trial has lapsed.
    #[must_use]
    pub const fn settle(self, generation: u64) -> Option<Self> {
        match self.phase() {
            Phase::Lapsed => Some(Self::new(self.bank_word(), Phase::None, generation)),
            Phase::None | Phase::Running => None,
        }
    }
}

// What is not a bank's word is its opposite.
const _: () = assert!(!FIRST_BANK == SECOND_BANK);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_word_do_not_touch_each_other() {
        for (bank, word) in [(0, FIRST_BANK), (1, SECOND_BANK)] {
            for phase in [Phase::None, Phase::Running, Phase::Lapsed] {
                for generation in [0, 1, 0x1234_5678, Active::GENERATIONS] {
                    let active = Active::new(word, phase, generation);
                    assert_eq!((active.bank(), active.bank_word()), (bank, word));
                    assert_eq!((active.phase(), active.generation()), (phase, generation));
                    assert!(active.is_of(generation) && active.is_of(generation + (1 << 30)));
                    assert!(!active.is_of(generation ^ 1));
                }
            }
        }
        assert_eq!(Active::NOTHING, Active::new(FIRST_BANK, Phase::None, 0));
    }

    #[test]
    fn a_trial_goes_one_way_or_the_other() {
        let before = Active::new(SECOND_BANK, Phase::None, 7);
        let running = before.begin_trial(8).unwrap();
        assert_eq!((running.bank(), running.phase(), running.generation()), (0, Phase::Running, 8));
        assert_eq!(running.put_in_force(9), None);
        assert_eq!(running.begin_trial(9), None);
        let confirmed = running.confirm().unwrap();
        assert_eq!(confirmed, Active::new(FIRST_BANK, Phase::None, 8));
        let lapsed = running.lapse().unwrap();
        assert_eq!(lapsed, Active::new(SECOND_BANK, Phase::Lapsed, 8));
        assert_eq!((lapsed.lapse(), lapsed.confirm(), lapsed.put_in_force(9)), (None, None, None));
        assert_eq!(lapsed.settle(7), Some(before));
        assert_eq!((before.settle(7), before.lapse(), before.confirm()), (None, None, None));
    }
}
