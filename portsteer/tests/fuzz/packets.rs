//! Frames: in the kernel, by the program's parser on the host, and by a reading of the specification.

use std::collections::BTreeMap;

use portsteer_testkit::{
    agent::is_slow,
    fuzzing::{
        mutation::{PORTS, mutate, stack},
        packet::Judges,
    },
    outcome::Cause,
    random::Random,
    sandbox::sandbox,
};

use crate::inputs;

#[test]
fn kept_frames_are_judged_alike() {
    sandbox(|| {
        let mut judges = Judges::new();
        for (name, frame) in inputs::of("packet") {
            eprintln!("{name}");
            judges.packet(&frame);
        }
    });
}

/// How often a frame is mutated before the next one is made from nothing.
const MUTATIONS: usize = 8;

/// A short run of the fuzzer, without what it learns.
#[test]
fn mutated_frames_are_judged_alike() {
    let frames = if is_slow() { 4_000 } else { 40_000 };
    sandbox(|| {
        let mut judges = Judges::new();
        let seed = 7;
        let mut random = Random::new(seed);
        let mut frame = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for round in 0..frames {
            if round % MUTATIONS == 0 {
                frame = stack(&PORTS, &mut random);
            } else {
                mutate(&mut frame, 512, &mut random);
            }
            for cause in judges.packet(&frame) {
                let cause = match cause {
                    Cause::Rule(name) => name,
                    Cause::Reason(reason) => reason.name().to_owned(),
                };
                *seen.entry(cause).or_default() += 1;
            }
        }
        // Frames that all meet the same fate would prove nothing: every rule but the one for another interface
        // and the canaries decides about some, and every fault is found.
        assert!(seen.len() >= 30, "{seen:?}");
        assert_eq!(seen.get("internal"), None);
    });
}
