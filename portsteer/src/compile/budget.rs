//! How much a policy may cost to compile, and which rules are to blame when it costs more.

use portsteer_common::node::{MAX_SEGMENTS, SEGMENT_WORDS};

use super::Interrupt;

/// How many words of tables a policy may have: 256 MiB, half of what can be addressed, so that two
/// policies fit beside each other.
pub(super) const MAX_WORDS: usize = MAX_SEGMENTS / 2 * SEGMENT_WORDS;

/// How many steps compiling may take. A policy of 100,000 rules with a prefix each takes some millions;
/// this is reached after seconds.
const MAX_STEPS: u64 = 200_000_000;

/// How many rules are blamed.
const BLAMED: usize = 4;

/// Why compiling ends early: which limit a policy goes beyond, or that nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OverBudget {
    Words,
    Steps,
    Interrupted,
}

/// What is left of it.
#[derive(Debug)]
pub(super) struct Budget {
    words: usize,
    steps: u64,
    interrupt: Interrupt,
    /// In how many parts of the tables each rule has had to be.
    parts: Vec<u32>,
}

impl Budget {
    pub(super) fn new(rules: usize, interrupt: Interrupt) -> Self {
        Self { words: MAX_WORDS - rules, steps: MAX_STEPS, interrupt, parts: vec![0; rules] }
    }

    /// What is left when so much has been taken for the same rules already.
    pub(super) fn resumed(rules: usize, words: usize, steps: u64, interrupt: Interrupt) -> Self {
        let new = Self::new(rules, interrupt);
        let (words, steps) = (new.words.saturating_sub(words), MAX_STEPS.saturating_sub(steps));
        Self { words, steps, ..new }
    }

    /// How many steps have been taken.
    pub(super) fn steps(&self) -> u64 {
        MAX_STEPS - self.steps
    }

    pub(super) fn take_words(&mut self, count: usize) -> Result<(), OverBudget> {
        self.words = self.words.checked_sub(count).ok_or(OverBudget::Words)?;
        Ok(())
    }

    pub(super) fn take_steps(&mut self, count: usize) -> Result<(), OverBudget> {
        self.steps = self.steps.checked_sub(count as u64).ok_or(OverBudget::Steps)?;
        if self.interrupt.is_set() { Err(OverBudget::Interrupted) } else { Ok(()) }
    }

    /// Notes that these rules are in one more part.
    pub(super) fn note(&mut self, rules: &[u32]) {
        for &rule in rules {
            self.parts[rule as usize] = self.parts[rule as usize].saturating_add(1);
        }
    }

    /// The rules that are in the most parts, the first of them first, with how many these are.
    pub(super) fn to_blame(&self) -> Vec<(usize, u32)> {
        let mut rules: Vec<(usize, u32)> = self.parts.iter().copied().enumerate().collect();
        rules.sort_by_key(|&(_, parts)| std::cmp::Reverse(parts));
        rules.truncate(BLAMED);
        rules.retain(|&(_, parts)| parts > 1);
        rules
    }
}
