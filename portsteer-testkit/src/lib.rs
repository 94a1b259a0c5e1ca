//! For tests and benchmarks only: packets, and an agent as a process.

pub mod agent;
pub mod packet;
