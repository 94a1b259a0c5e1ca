//! The commands about a running policy: `apply`, `confirm`, `rollback`, `diff`, `show`, `detach`.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    BAD_INPUT, NEGATIVE, REFUSED,
    client::{AgentArgument, Client, Failure},
    complain, fail, lifetime, listings, print, print_error, print_policy, show_diagnostics,
    show_error,
    way_here::ssh_connection,
};
use crate::{
    agent::{self, LoadedPolicy},
    api::{
        ApplyAnswer, ApplyRequest, DiffAnswer, DoneAnswer, File, How, PolicyAnswer, PrefixesAnswer,
    },
    dataplane::{self, Detached},
};

/// How something is to be put in force.
#[derive(Debug, Args)]
pub(super) struct HowArguments {
    /// Put it on trial: unless `portsteer confirm` comes within this time, such as 60s or 5m, the policy before
    /// comes back by itself, whatever becomes of the agent.
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    confirm: Option<Duration>,
    /// Put it in force even if it cuts your own connection, or what the agent is told to protect.
    #[arg(long)]
    force: bool,
}

impl HowArguments {
    pub fn how(&self) -> How {
        How {
            // A started second counts.
            confirm_seconds: self.confirm.map(|time| time.as_millis().div_ceil(1000) as u64),
            force: self.force,
            ssh_connection: ssh_connection(),
        }
    }
}

/// What to apply.
#[derive(Debug, Args)]
pub(super) struct ApplyOptions {
    /// The policy file.
    file: PathBuf,
    #[command(flatten)]
    how: HowArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

pub(super) fn apply(options: &ApplyOptions) -> u8 {
    let loaded = match load(&options.file) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    show_diagnostics(loaded.path(), loaded.text(), &loaded.warnings);
    let request = request(loaded, options.how.how());
    let answer = Client::new(&options.agent).put::<ApplyAnswer>("/v1/policy", &request);
    tell(answer, options.json, |answer| applied(answer, Warnings::AreKnown, &options.agent))
}

/// Reads a policy; what is wrong with it is said.
fn load(file: &Path) -> Result<LoadedPolicy, u8> {
    agent::load_policy(file).map_err(|error| {
        show_error(&error);
        BAD_INPUT
    })
}

fn request(loaded: LoadedPolicy, how: How) -> ApplyRequest {
    let path = PathBuf::from(&loaded.bundle.path);
    // The agent is somewhere else, and listings are read from anywhere. A link stays one: set files are beside it.
    let path = std::path::absolute(&path).unwrap_or(path).display().to_string();
    let files = loaded.bundle.files.into_iter().map(|file| File {
        name: file.name,
        // Only comments may have anything else than ASCII.
        content: String::from_utf8(file.content)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    });
    let files = files.collect();
    ApplyRequest { policy: loaded.bundle.text, path: Some(path), files, how }
}

/// Whether warnings were shown before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warnings {
    AreKnown,
    AreNew,
}

/// What was put in force, in words.
pub(super) fn applied(answer: &ApplyAnswer, warnings: Warnings, agent: &AgentArgument) -> String {
    if warnings == Warnings::AreNew && !answer.warnings.is_empty() {
        print_error(&answer.warnings);
    }
    let mut text = String::new();
    for line in listings::applied(answer) {
        let _ = writeln!(text, "{line}");
    }
    if answer.trial_seconds.is_some() {
        let again = agent.again();
        let _ = writeln!(
            text,
            "`portsteer confirm{again}` keeps it, `portsteer rollback{again}` ends the trial"
        );
    } else if !answer.kept {
        text.push_str(
            "it is not kept on disk, and would be gone after a restart of the machine: `portsteer \
             status` says why\n",
        );
    }
    text
}

/// Prints an answer, or says why there is none.
pub(super) fn tell<T: Serialize>(
    answer: Result<T, Failure>,
    json: bool,
    words: impl FnOnce(&T) -> String,
) -> u8 {
    let answer = match answer {
        Ok(answer) => answer,
        Err(failure) => return failure.show(),
    };
    if !json {
        return print(&words(&answer), 0);
    }
    match serde_json::to_string_pretty(&answer) {
        Ok(json) => print(&format!("{json}\n"), 0),
        Err(error) => {
            complain(&format!("writing JSON: {error}"), None);
            REFUSED
        }
    }
}

/// What there is to say where there is little to do.
#[derive(Debug, Args)]
pub(super) struct DoneOptions {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

/// Has a change made that is meant for what is in force now, and for nothing that comes before it is made.
fn change_in_force<T: DeserializeOwned>(
    agent: &AgentArgument,
    path: &str,
    body: &impl Serialize,
    what: &str,
) -> Result<T, Failure> {
    let client = Client::new(agent);
    let answer = client.in_force().and_then(|meant| client.post_meant(path, body, &meant));
    let help = format!(
        "`portsteer status{}` tells what is in force; the same command once more is meant for that",
        agent.again()
    );
    answer.map_err(|failure| failure.for_another(what, &help))
}

pub(super) fn confirm(options: &DoneOptions) -> u8 {
    let answer =
        change_in_force::<DoneAnswer>(&options.agent, "/v1/confirm", &(), "nothing is confirmed");
    tell(answer, options.json, |answer| {
        format!("confirmed: the policy stays in force\n{}", rest(&answer.detached, &answer.notes))
    })
}

fn rest(detached: &[String], notes: &[String]) -> String {
    let mut text = String::new();
    for name in detached {
        let _ = writeln!(text, "detached from {name}");
    }
    notes.iter().for_each(|note| text.extend([note, "\n"]));
    text
}

/// What to go back to.
#[derive(Debug, Args)]
pub(super) struct RollbackOptions {
    /// Go back even if that cuts your own connection, or what the agent is told to protect.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

pub(super) fn rollback(options: &RollbackOptions) -> u8 {
    let how = How { confirm_seconds: None, force: options.force, ssh_connection: ssh_connection() };
    let answer =
        change_in_force::<ApplyAnswer>(&options.agent, "/v1/rollback", &how, "nothing is undone");
    tell(answer, options.json, |answer| match answer.generation {
        0 => format!("nothing is in force any more\n{}", rest(&answer.detached, &answer.notes)),
        _ => applied(answer, Warnings::AreNew, &options.agent),
    })
}

/// What to compare with.
#[derive(Debug, Args)]
pub(super) struct DiffOptions {
    /// The policy file.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

pub(super) fn diff(options: &DiffOptions) -> u8 {
    let loaded = match load(&options.file) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let client = Client::new(&options.agent);
    let answer = client.post::<DiffAnswer>("/v1/diff", &request(loaded, How::default()));
    let is_same = answer.as_ref().is_ok_and(|answer| answer.same);
    let code = tell(answer, options.json, |answer| match answer.same {
        true => "the policy in force means the same\n".to_owned(),
        false => answer.text.clone(),
    });
    if code == 0 && !is_same { NEGATIVE } else { code }
}

/// What to show.
#[derive(Debug, Args)]
pub(super) struct ShowOptions {
    /// The addresses of this set instead, one a line.
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

pub(super) fn show(options: &ShowOptions) -> u8 {
    let client = Client::new(&options.agent);
    match &options.set {
        Some(name) => {
            let answer = client.get::<PrefixesAnswer>(&format!("/v1/sets/{}", escaped(name)));
            tell(answer, options.json, |answer| {
                answer.prefixes.iter().flat_map(|prefix| [prefix, "\n"]).collect()
            })
        }
        None => {
            let answer = client.get::<PolicyAnswer>("/v1/policy");
            match answer {
                Ok(answer) if !options.json => {
                    let end = if answer.policy.ends_with('\n') { "" } else { "\n" };
                    print_policy(&format!("{}{end}", answer.policy))
                }
                answer => tell(answer, options.json, |_| String::new()),
            }
        }
    }
}

/// As it stands in a URL (RFC 3986 section 2.1).
fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

/// What to detach.
#[derive(Debug, Args)]
pub(super) struct DetachOptions {
    /// Where the agent keeps its policies, if that is somewhere else: without an agent, it is noted there that the
    /// next one is not to attach again.
    #[arg(long, value_name = "DIRECTORY", default_value = agent::DEFAULT_DIRECTORY)]
    state_dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

/// How long the agent may take to take the dataplane off, before that is done without it. It may be in the midst of a
/// policy that takes seconds.
const DETACH_PATIENCE: Duration = Duration::from_secs(15);

/// Takes the dataplane off: the agent does if there is one, so that it does not attach again.
pub(super) fn detach(options: &DetachOptions) -> u8 {
    let DetachOptions { state_dir, json, agent } = options;
    let answer = Client::new(agent).waiting(DETACH_PATIENCE).post::<DoneAnswer>("/v1/detach", &());
    let instance = agent.instance.get();
    let mut hangs = None;
    match answer {
        // Nobody can say whose socket that was.
        Err(failure)
            if failure.is_no_agent()
                && agent.socket.is_some()
                && agent.instance.instance.is_none() =>
        {
            return failure.show();
        }
        Err(failure) if failure.is_no_agent() => {}
        Err(Failure::Silent { patience, .. }) => {
            hangs = Some(format!(
                "the agent did not answer for {} s, and finds out when it goes on",
                patience.as_secs()
            ));
        }
        answer => return tell(answer, *json, detached),
    }
    match dataplane::detach(&instance) {
        Ok(Detached { interfaces: detached_from, mut notes }) => {
            notes.extend(hangs);
            // The next agent is to know.
            let store = agent::Store::new(state_dir, &instance);
            if store.exists() {
                let _ = store.note_detached();
            }
            tell(Ok(DoneAnswer { detached: detached_from, notes }), *json, detached)
        }
        Err(error) => fail(&error),
    }
}

fn detached(answer: &DoneAnswer) -> String {
    let mut text = match answer.detached.is_empty() {
        true => "detached\n".to_owned(),
        false => format!("detached from {}\n", answer.detached.join(", ")),
    };
    answer.notes.iter().for_each(|note| text.extend([note, "\n"]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_for_urls() {
        assert_eq!(escaped("block-list_1.x"), "block-list_1.x");
        assert_eq!(escaped("a b/ü"), "a%20b%2F%C3%BC");
    }
}
