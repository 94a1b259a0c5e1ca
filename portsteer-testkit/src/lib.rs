//! For tests and benchmarks only: packets and a reading of them, a network of two hosts, and an agent as a
//! process.

pub mod agent;
pub mod boundaries;
pub mod flood;
pub mod fuzzing;
pub mod ledger;
pub mod outcome;
pub mod packet;
pub mod random;
pub mod raw_socket;
pub mod reading;
pub mod sandbox;
pub mod sctp;
pub mod site;
pub mod tables;
