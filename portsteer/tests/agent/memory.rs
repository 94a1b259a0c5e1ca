//! An agent that puts many policies in force one after the other does not grow.

use std::fs;

use portsteer_testkit::{
    agent::{Agent, is_slow},
    sandbox::sandbox,
    site::Site,
};

use crate::{INSTANCE, policy, rule};

/// A number from what the kernel tells of the agent (proc_pid_status(5)).
fn number(agent: &Agent, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn many_small_policies_take_no_more_memory_and_threads_than_a_few() {
    sandbox(|| {
        let site = Site::quiet();
        let text = |at: usize| {
            let address = if at.is_multiple_of(2) { "" } else { "src = \"10.0.0.0/8\"\n" };
            format!("{}{}{address}", policy(&["uplink"], 2000), rule(&format!("r{at}"), 3000))
        };
        let agent = Agent::serve(&site.host, INSTANCE, &text(0));
        let rounds = |from: usize, to: usize| {
            for at in from..to {
                agent.apply(&text(at), &["--confirm", "60s"]).expect(0, &[]);
                let end = if at.is_multiple_of(2) { "confirm" } else { "rollback" };
                agent.ask(&[end]).expect(0, &[]);
                agent
                    .ask(&["rule", "add", "drop", "--protocol", "udp", "--dst-port", "4000"])
                    .expect(0, &[]);
            }
        };
        let figures = || (number(&agent, "Threads:"), number(&agent, "RssAnon:"));
        rounds(1, 10);
        let before = figures();
        rounds(10, if is_slow() { 20 } else { 40 });
        let after = figures();
        // One that works, some that look: the kernel's answers to both are there before.
        assert!(after.0 <= before.0 + 1, "{before:?}, then {after:?} threads and KiB");
        // A policy's image is 4 MiB long, and there are two at a time.
        assert!(after.1 < before.1 + (24 << 10), "{before:?}, then {after:?} threads and KiB");
    });
}
