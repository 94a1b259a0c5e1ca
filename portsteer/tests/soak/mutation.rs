//! Frames that nobody would send on purpose.

use portsteer_testkit::{
    fuzzing::mutation::{mutate, stack},
    random::Random,
};

/// Makes a frame of a seed, the same of the same, of whatever length.
pub type Mutator = fn(u64) -> Vec<u8>;

/// How long a frame may become, in bytes.
const LONGEST: usize = 1_400;

/// The ports that policies know, and some others.
const PORTS: [u16; 14] =
    [7, 53, 1001, 1002, 1003, 1004, 1005, 2001, 2002, 2003, 3000, 3004, 3005, 7000];

/// A frame as it should be, with a few things about it that are not.
pub fn mutated(seed: u64) -> Vec<u8> {
    let mut random = Random::sequence(seed, 0x6d75_7461);
    let mut frame = stack(&PORTS, &mut random);
    mutate(&mut frame, LONGEST, &mut random);
    frame
}
