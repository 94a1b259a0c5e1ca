//! What the fuzzers in `fuzz/` do with each input: one function for each of them. The tests do the same with the
//! inputs that are kept there, and with some of their own.

pub mod mutation;
pub mod packet;
pub mod policy;
pub mod request;
