//! Agents that are killed at any moment, or end, or read their policy file again, and their successors.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portsteer_testkit::{agent::Agent, site::wait_until};
use serde_json::Value;

use portsteer_testkit::random::Random;

use crate::deeds::Deeds;

pub fn kill_until(over: &AtomicBool, agent: &mut Agent, deeds: &Deeds, random: &mut Random) {
    while !over.load(Ordering::Relaxed) {
        thread::sleep(random.milliseconds(1_000));
        match random.below(10) {
            0 => {
                deeds.add("hang-ups", "done");
                agent.signal(libc::SIGHUP);
                continue;
            }
            1 => {
                deeds.add("agents ended by SIGTERM", "done");
                let status = agent.stop(libc::SIGTERM);
                assert_eq!(status.code(), Some(0), "{}", agent.log());
            }
            _ => {
                deeds.add("agents killed", "done");
                agent.kill();
            }
        }
        if random.once_in(3) {
            thread::sleep(random.milliseconds(400));
        }
        start_again(agent);
    }
}

/// Another agent in place of one that has ended. It may not say that a policy is in force: an interface that vanishes
/// while it begins is an error, after which it goes on.
pub fn start_again(agent: &mut Agent) {
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    agent.forget_log();
    agent.resume_without_waiting();
    wait_until("the agent answers", || !state(agent).is_null());
}

/// What the agent says is the state of its policy; nothing if there is no agent that answers.
pub fn state(agent: &Agent) -> Value {
    let said = agent.ask(&["status", "--json"]).stdout;
    serde_json::from_str::<Value>(&said).map_or(Value::Null, |it| it["agent"]["state"].clone())
}
