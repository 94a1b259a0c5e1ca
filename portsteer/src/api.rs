//! What goes over the control socket: JSON in HTTP, below `/v1`. The agent answers, the commands ask, and so can
//! `curl --unix-socket`. Fields are only ever added; what a client does not know it ignores.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    dataplane::Instance,
    policy::{diff::Difference, edit::Edit},
};

/// Where the agents' sockets are.
pub const RUN_DIRECTORY: &str = "/run/portsteer";

/// Where an instance's control socket is, unless the agent is told otherwise.
#[must_use]
pub fn default_socket(instance: &Instance) -> PathBuf {
    let directory = PathBuf::from(RUN_DIRECTORY);
    match instance.name() {
        Instance::DEFAULT => directory.join("agent.sock"),
        name => directory.join(name).join("agent.sock"),
    }
}

/// A request with this header is for the agent of the instance that it names, and any other refuses it.
pub const INSTANCE_HEADER: &str = "portsteer-instance";

/// The longest request that the agent reads, in bytes: a policy and the files of its sets.
pub const MAX_REQUEST_LEN: usize = 128 << 20;

/// A policy, and how it is to be put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The policy file's text.
    pub policy: String,
    /// The policy file's path, for listings.
    #[serde(default)]
    pub path: Option<String>,
    /// The files that its sets name.
    #[serde(default)]
    #[schema(max_items = 4096)]
    pub files: Vec<File>,
    #[serde(flatten)]
    pub how: How,
}

/// How something is to be put in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct How {
    /// Put it on trial: unless it is confirmed within so many seconds, the policy before comes back by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub confirm_seconds: Option<u64>,
    /// Put it in force even if it cuts the operator's own connection, or a packet that the agent is told to
    /// protect.
    #[serde(default)]
    pub force: bool,
    /// The operator's own connection, as OpenSSH puts it into `SSH_CONNECTION`: client address and port, server
    /// address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "198.51.100.7 51000 192.0.2.1 22")]
    pub ssh_connection: Option<String>,
}

/// How to go back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    #[serde(flatten)]
    pub how: How,
}

/// A file that a set of the policy names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// As the policy names it.
    pub name: String,
    /// One address or prefix a line.
    pub content: String,
}

/// Edits of the policy in force, made together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// In this order. They are refused where they would go through more than 256 MiB of policy together.
    #[schema(min_items = 1, max_items = 1000)]
    pub edits: Vec<Edit>,
    #[serde(flatten)]
    pub how: How,
}

/// What was put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApplyAnswer {
    /// Counts the policies that the instance has had in force.
    pub generation: u64,
    pub path: String,
    pub rules: usize,
    /// `pass` or `drop`.
    pub default: String,
    /// How long the policy is on trial, if it is.
    pub trial_seconds: Option<u64>,
    /// The interfaces that are attached now.
    pub attached: Vec<Attachment>,
    /// The interfaces that were taken off.
    pub detached: Vec<String>,
    /// The interfaces that the policy names and that do not exist: they are attached as soon as they do.
    pub waiting: Vec<String>,
    /// The rules that are gone, with what they had counted.
    pub removed: Vec<RemovedRule>,
    /// What the lints have to say, rendered for people.
    pub warnings: String,
    /// What else the operator should know.
    pub notes: Vec<String>,
    /// Whether the policy would be back after the machine was started anew. On trial it never is.
    pub kept: bool,
}

impl ApplyAnswer {
    /// Nothing is in force.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            generation: 0,
            path: String::new(),
            rules: 0,
            default: String::new(),
            trial_seconds: None,
            attached: Vec::new(),
            detached: Vec::new(),
            waiting: Vec::new(),
            removed: Vec::new(),
            warnings: String::new(),
            notes: Vec::new(),
            kept: true,
        }
    }
}

/// An interface that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
    /// `new`, `kept` or `upgraded`.
    pub change: String,
    /// Why native mode could not be had.
    pub native_refused: Option<String>,
}

/// A rule that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedRule {
    pub name: String,
    pub packets: u64,
    pub bytes: u64,
}

/// What was done where there is little to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoneAnswer {
    /// The interfaces that were taken off.
    pub detached: Vec<String>,
    /// What else the operator should know.
    pub notes: Vec<String>,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyAnswer {
    pub generation: u64,
    /// Where the policy came from, as its client called it.
    pub path: String,
    /// The file that the commands' `--save` writes to when no other is named: `path`, if root or the agent
    /// itself has said so.
    #[serde(default)]
    pub saves_to: Option<String>,
    /// Its text, edits at the prompt included.
    pub policy: String,
    /// How long it is on trial yet, if it is.
    pub trial_seconds_left: Option<u64>,
    pub rules: Vec<RuleAnswer>,
    pub sets: Vec<SetAnswer>,
}

/// A rule of the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleAnswer {
    /// From 1, in the order in which rules are tried.
    pub number: usize,
    pub name: Option<String>,
    #[serde(rename = "match")]
    pub matches: String,
    pub action: String,
}

/// A set of the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetAnswer {
    pub name: String,
    /// The file that it was read from, as the policy names it.
    pub file: Option<String>,
    pub prefixes: usize,
}

/// All prefixes of a set of the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrefixesAnswer {
    pub name: String,
    pub prefixes: Vec<String>,
}

/// How the policy in force differs from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffAnswer {
    /// Whether they mean the same.
    pub same: bool,
    /// For people: `-` is in force, `+` would come.
    pub text: String,
    #[schema(value_type = Difference)]
    pub changes: serde_json::Value,
}

/// What the agent itself knows, beside what the pinned state tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentAnswer {
    pub process: u32,
    pub version: String,
    /// `nothing`, `in force`, `on trial`, `detached` or `waiting`.
    pub state: String,
    /// Seconds since 1970.
    pub started_at: u64,
    /// How long the policy in force is on trial yet, if it is.
    pub trial_seconds_left: Option<u64>,
    /// The interfaces that the policy names and that do not exist.
    pub waiting: Vec<String>,
    /// Why the policy in force would not be back after the machine was started anew, if it would not.
    pub not_kept: Option<String>,
    /// What else is wrong at the moment.
    pub problems: Vec<String>,
    /// What happened to interfaces and policies, the latest last.
    pub history: Vec<Event>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Seconds since 1970.
    pub at: u64,
    /// The interface that it happened to, if it did to one.
    pub interface: Option<String>,
    /// In words.
    pub what: String,
}

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    pub error: Refusal,
}

/// What was wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    pub kind: Kind,
    pub message: String,
    pub help: Option<String>,
    /// Errors in a policy, rendered with the lines that they are about.
    pub details: Option<String>,
}

/// Which kind of refusal: the commands' exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The answer is no: nothing is in force, on trial, or there to go back to. Exit code 1.
    Negative,
    /// What was asked for makes no sense. Exit code 2.
    BadInput,
    /// The kernel or the agent refused. Exit code 3.
    Refused,
}

impl Refusal {
    /// Bad input.
    #[must_use]
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self { kind: Kind::BadInput, message: message.into(), help: None, details: None }
    }

    /// A refusal.
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self { kind: Kind::Refused, ..Self::bad_input(message) }
    }

    /// A negative answer.
    #[must_use]
    pub fn negative(message: impl Into<String>) -> Self {
        Self { kind: Kind::Negative, ..Self::bad_input(message) }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}
