//! What the XDP program and its user space agree on: the compiled policy's layout, the counters'
//! layout, and the names of verdicts and reasons. No logic of either side lives here.
//!
//! Everything in this crate is part of the *layout*: the maps are pinned, and a later portsteer
//! may find the maps of an earlier one. Whoever changes the size, order or meaning of anything
//! here raises [`LAYOUT_VERSION`].
#![no_std]

pub mod active;
pub mod counters;
pub mod image;
pub mod node;
pub mod reason;
pub mod steering;
pub mod trial;
pub mod verdict;
pub mod wire;

pub use active::Active;
pub use counters::{Counter, CounterPage};
pub use image::{Decision, Image, PolicyBanks, PortKey, PortProtocol};
pub use node::Node;
pub use reason::{Fault, Reason};
pub use verdict::Verdict;

/// The version of everything that lives in pinned maps. An agent that finds pins of the version before carries them
/// over; whoever finds pins of another version leaves them alone and says so.
pub const LAYOUT_VERSION: u32 = 9;

/// How many interfaces one instance can be attached to at the same time. Each has a *slot*, a
/// number below this.
pub const INTERFACE_SLOTS: u32 = 256;
