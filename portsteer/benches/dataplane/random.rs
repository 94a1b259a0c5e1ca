//! Numbers that look random and are the same on every machine, so that a figure can be had again.

use std::ops::RangeInclusive;

/// splitmix64 (Steele, Lea and Flood: "Fast splittable pseudorandom number generators", 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number from 0 to less than `end`, which is far below 2^64: no bias that would show.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn within(&mut self, range: RangeInclusive<u16>) -> u16 {
        range.start() + self.below(usize::from(range.end() - range.start()) + 1) as u16
    }

    pub fn port(&mut self) -> u16 {
        self.next() as u16
    }
}
