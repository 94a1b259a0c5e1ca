//! A frame, judged by three policies in the kernel and by a reading of the specification.

#![no_main]

use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use portsteer::lab;
use portsteer_testkit::{
    fuzzing::{mutation::mutate, packet::Judges},
    random::Random,
};

/// Made on the thread that fuzzes, whose private mounts have the pins.
static JUDGES: LazyLock<Mutex<Judges>> = LazyLock::new(|| {
    lab::private_mounts().expect("root is needed: the programs are pinned in private mounts");
    Mutex::new(Judges::new())
});

fuzz_target!(|frame: &[u8]| {
    JUDGES.lock().expect("nothing was found before").packet(frame);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Now and then without knowing what a frame is.
    if seed.is_multiple_of(16) {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut frame = data[..size].to_vec();
    mutate(&mut frame, max_size, &mut Random::new(u64::from(seed)));
    data[..frame.len()].copy_from_slice(&frame);
    frame.len()
});
