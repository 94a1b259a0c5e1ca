//! Numbers that look random and are the same on every machine, so that whatever was found with them can be
//! found again.

use std::{ops::RangeInclusive, time::Duration};

/// splitmix64 (Steele, Lea and Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of several sequences of a seed.
    #[must_use]
    pub const fn sequence(seed: u64, number: u64) -> Self {
        Self(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number from 0 to less than `end`, which is far below 2^64: no bias that would show. 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// Whether something happens that happens so often: once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these, of which there must be some.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of these, of which there must be some, where it stands.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// One of these numbers.
    pub fn within(&mut self, range: RangeInclusive<u16>) -> u16 {
        range.start() + self.below(usize::from(range.end() - range.start()) + 1) as u16
    }

    /// Any port.
    pub fn port(&mut self) -> u16 {
        self.number() as u16
    }

    /// Less than so long.
    pub fn milliseconds(&mut self, most: usize) -> Duration {
        Duration::from_micros(self.below(1_000 * most) as u64)
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }
}
