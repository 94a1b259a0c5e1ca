//! `status` and `stats`: read from the pinned state, and from the agent where that may not be looked at.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Listing, NEGATIVE, REFUSED,
    client::{AgentArgument, Client, Failure, agent_elsewhere},
    complain, fail, listings, print,
};
use crate::{
    api::AgentAnswer,
    dataplane::{self, Error as DataplaneError, Stats, Status, TrialState},
};

/// What the agent answers to `GET /v1/status`.
#[derive(Debug, Deserialize)]
struct Answer {
    dataplane: Option<Status>,
    agent: AgentAnswer,
}

/// `status --json`.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    status: Option<&'a Status>,
    /// None where no agent answers.
    agent: Option<&'a AgentAnswer>,
}

/// How long the agent may take to say how things are, before that is read from the pins. It answers beside whatever it
/// does.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn status(listing: &Listing) -> u8 {
    let client = Client::new(&listing.agent).waiting(PATIENCE);
    let answer = client.get::<Answer>("/v1/status");
    let is_silent = matches!(answer, Err(Failure::Silent { .. }));
    let (status, agent) = match answer {
        Ok(Answer { dataplane, agent }) => (dataplane, Some(agent)),
        Err(failure @ (Failure::NoAgent { .. } | Failure::Silent { .. })) => {
            match dataplane::read_status(&listing.agent.instance.get()) {
                Ok(status) => (Some(status), None),
                // It was asked for by name.
                Err(_) if listing.agent.socket.is_some() => return failure.show(),
                Err(error) => return fail(&error),
            }
        }
        Err(failure) => return failure.show(),
    };
    let is_attached = status
        .as_ref()
        .is_some_and(|status| status.interfaces.iter().any(|interface| interface.attached));
    let code = if is_attached { 0 } else { NEGATIVE };
    if listing.json {
        return print_json(&Told { status: status.as_ref(), agent: agent.as_ref() }, code);
    }
    let mut text = match &status {
        Some(status) => listings::status(status),
        None => {
            format!("instance {}: attached to nothing\n", listing.agent.instance.get().name())
        }
    };
    match &agent {
        Some(agent) => text.push_str(&format!("\n{}", listings::agent(agent))),
        None if is_silent => text.push_str(&format!("\n{}\n", hanging_agent(&listing.agent))),
        None => text.push_str(&format!("\n{}\n", without_agent(&listing.agent))),
    }
    print(&text, code)
}

/// What there is to say where an agent is connected to and does not answer.
fn hanging_agent(agent: &AgentArgument) -> String {
    let process = agent.instance.get().holder();
    let process = process.map_or_else(String::new, |process| format!(" (process {process})"));
    format!(
        "the agent{process} has not answered for {} s: is it stopped? What is in force stays so, and `portsteer \
         detach{}` takes it off without the agent",
        PATIENCE.as_secs(),
        agent.again()
    )
}

/// What there is to say where no agent answers.
fn without_agent(agent: &AgentArgument) -> String {
    let instance = agent.instance.get();
    if let Some(process) = instance.holder() {
        return agent_elsewhere(process);
    }
    let again = agent.again();
    match dataplane::read_trial(&instance) {
        Ok(TrialState::Running { left }) => format!(
            "no agent runs; the policy is on trial, and the kernel puts the one before back in {}: `portsteer agent \
             --resume{again}`, then `portsteer confirm{again}` keeps it",
            humantime::format_duration(Duration::from_secs(left.as_secs()))
        ),
        _ => "no agent runs: what is in force stays so, and follows nothing".to_owned(),
    }
}

pub(super) fn stats(listing: &Listing) -> u8 {
    let client = Client::new(&listing.agent).waiting(PATIENCE);
    let read = || dataplane::read_stats(&listing.agent.instance.get());
    let asked = || client.get::<Stats>("/v1/stats");
    let stats = match listing.agent.socket {
        Some(_) => match asked() {
            Err(failure @ (Failure::NoAgent { .. } | Failure::Silent { .. })) => {
                read().map_err(|_| failure)
            }
            answer => answer,
        },
        None => match read() {
            Ok(stats) => Ok(stats),
            Err(error @ DataplaneError::NotPermitted { .. }) => match asked() {
                Err(Failure::NoAgent { .. } | Failure::Silent { .. }) => return fail(&error),
                answer => answer,
            },
            Err(error) => return fail(&error),
        },
    };
    match stats {
        Ok(stats) if listing.json => print_json(&stats, 0),
        Ok(stats) => print(&listings::stats(&stats), 0),
        Err(failure) => failure.show(),
    }
}

fn print_json(value: &impl Serialize, code: u8) -> u8 {
    match serde_json::to_string_pretty(value) {
        Ok(json) => print(&format!("{json}\n"), code),
        Err(error) => {
            complain(&format!("writing JSON: {error}"), None);
            REFUSED
        }
    }
}
