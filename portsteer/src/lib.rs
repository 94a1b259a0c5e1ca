//! portsteer's user space as a library: the policy, its compiler, the dataplane in the kernel, and
//! the agent that keeps the two together. The binary `portsteer` is `cli` and nothing else.

pub mod agent;
pub mod api;
pub mod cli;
pub mod compile;
pub mod dataplane;
pub mod demo;
pub mod directory;
pub mod ethtool;
pub mod explain;
pub mod interrupt;
pub mod lab;
pub mod netlink;
pub mod oracle;
pub mod policy;
