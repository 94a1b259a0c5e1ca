//! For tests and benchmarks only: packets, a network of two hosts, and an agent as a process.

pub mod agent;
pub mod arrivals;
pub mod flood;
pub mod packet;
pub mod raw_socket;
pub mod sandbox;
pub mod sctp;
pub mod site;
