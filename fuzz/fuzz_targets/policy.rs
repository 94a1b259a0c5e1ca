//! Any bytes as a policy file, and as a file of a set.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portsteer_testkit::fuzzing::policy::policy;

fuzz_target!(|input: &[u8]| policy(input));
