//! What the program decides about single packets, by the kernel's own test run.
//!
//! Every frame is judged four times: by the attached program in the kernel, by the same parser on the
//! host followed by the oracle, by a reading of the specification that shares no code with the parser,
//! and by hand (the tables) or by a property (the sweeps).

#[path = "verdicts/bench.rs"]
mod bench;
#[path = "verdicts/budget.rs"]
mod budget;
#[path = "verdicts/differential.rs"]
mod differential;
#[path = "verdicts/evasion.rs"]
mod evasion;
#[path = "verdicts/examples.rs"]
mod examples;
#[path = "verdicts/flow.rs"]
mod flow;
#[path = "verdicts/frames.rs"]
mod frames;
#[path = "verdicts/multi_buffer.rs"]
mod multi_buffer;
#[path = "verdicts/options.rs"]
mod options;
#[path = "verdicts/random.rs"]
mod random;
#[path = "verdicts/sweep.rs"]
mod sweep;
#[path = "verdicts/table.rs"]
mod table;
