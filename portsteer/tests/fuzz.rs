//! What the fuzzers are given and what they have found, tried again: the inputs in `fuzz/seeds` and
//! `fuzz/regressions`, and as many mutated frames as there is time for.

#[path = "fuzz/inputs.rs"]
mod inputs;
#[path = "fuzz/packets.rs"]
mod packets;
#[path = "fuzz/policies.rs"]
mod policies;
#[path = "fuzz/requests.rs"]
mod requests;
