//! An agent that puts many policies in force one after the other does not grow.

use std::fs;

use portsteer_testkit::{agent::Agent, sandbox::sandbox, site::Site};

use crate::{INSTANCE, policy, rule};

/// What is resident of the agent's own memory, in KiB: without what it maps (proc_pid_status(5)).
fn resident(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number of KiB")
}

#[test]
fn many_small_policies_take_no_more_memory_than_a_few() {
    sandbox(|| {
        let site = Site::quiet();
        let text = |at: usize| {
            let address = if at % 2 == 0 { "" } else { "src = \"10.0.0.0/8\"\n" };
            format!("{}{}{address}", policy(&["uplink"], 2000), rule(&format!("r{at}"), 3000))
        };
        let agent = Agent::serve(&site.host, INSTANCE, &text(0));
        let apply = |at| {
            agent.apply(&text(at), &[]).expect(0, &[]);
        };
        (1..10).for_each(apply);
        let before = resident(&agent);
        (10..110).for_each(apply);
        let after = resident(&agent);
        // A policy's image takes 4 MiB, and two are there at a time.
        assert!(after < before + (16 << 10), "{before} KiB, then {after} KiB");
    });
}
