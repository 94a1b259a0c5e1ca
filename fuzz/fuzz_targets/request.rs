//! Any bytes at the control socket of an agent that runs in this process.

#![no_main]

use std::{cell::RefCell, mem, ptr, sync::OnceLock, time::Instant};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use portsteer_testkit::fuzzing::request::{ASKED_EVERY, Agent, repair, request, still_answers};

static AGENT: OnceLock<Agent> = OnceLock::new();

thread_local! {
    static ASKED: RefCell<Instant> = RefCell::new(Instant::now());
}

fuzz_target!(
    init: {
        AGENT.get_or_init(Agent::start);
        give_signals_back();
    },
    |input: &[u8]| {
        let socket = AGENT.get_or_init(Agent::start).socket();
        request(socket, input);
        ASKED.with_borrow_mut(|asked| {
            if asked.elapsed() >= ASKED_EVERY {
                still_answers(socket);
                *asked = Instant::now();
            }
        });
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut len = fuzzer_mutate(data, size, max_size);
    // Mostly, what is said is to be heard.
    if !seed.is_multiple_of(8) {
        let mut request = data[..len].to_vec();
        repair(&mut request);
        len = request.len().min(max_size);
        data[..len].copy_from_slice(&request[..len]);
    }
    len
});

/// The agent listens for signals that libFuzzer needs: the alarm that tells it of an input that takes too long,
/// and those that end it. It takes those that nobody else listens for.
fn give_signals_back() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGALRM, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: the structure is plain data, for which zeroes are the default action and no signals blocked,
        // and the pointers are to it and to nothing.
        let result = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &action, ptr::null_mut())
        };
        assert_eq!(result, 0, "signal {signal} can be given back");
    }
}
