//! portsteer's user space as a library: the policy, its compiler, the dataplane in the kernel, and
//! the agent that keeps the two together. The binary `portsteer` is `cli` and nothing else.

pub mod policy;
