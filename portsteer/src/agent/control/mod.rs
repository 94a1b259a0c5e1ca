//! What the agent can do, one thing at a time: put policies in force, on trial or back, edit them, and follow
//! the network. Everything here blocks; [`super::run`] gives it a thread.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    Bundle, Error, LoadedPolicy, Reporter,
    bundle::SetFile,
    conditions::{Condition, Tag},
    config::{OnFailure, Protected},
    history::History,
    store::{Record, Store},
};
use crate::{
    api::Refusal,
    dataplane::{
        Concluded, Dataplane, Error as DataplaneError, Instance, Interfaces, Order, Reader,
    },
    policy::{NextHop, Policy, TargetKind},
};

mod applying;
mod detaching;
mod edits;
mod following;
mod guarding;
mod keeping;
mod resuming;
mod starting;
mod telling;
mod trials;

pub use edits::MAX_EDITS;
use telling::Telling;

/// A policy that is in force, or waits for its interfaces.
#[derive(Debug, Clone)]
pub struct Desired {
    pub record: Record,
    pub text: Arc<str>,
    pub policy: Arc<Policy>,
    pub generation: u64,
    /// Whether the content of its sets is known. It is not where the state directory was lost: then the policy
    /// stays in force, and cannot be compiled anew.
    pub is_whole: bool,
    /// What could not be kept, to be kept later.
    unkept: Option<Bundle>,
    /// Why it is not to be kept at all: it stands in for the policy that was accepted.
    unkeepable: Option<String>,
}

/// Where nobody knows what the sets of the policy in force have.
pub fn content_is_lost() -> Refusal {
    Refusal::refused("the content of the policy's set files is lost")
        .help("apply the policy again from its file")
}

impl Desired {
    /// What conditions of requests name it by.
    fn tag(&self, is_on_trial: bool) -> Tag {
        Tag::new(&self.record.id, is_on_trial.then_some(self.generation))
    }

    /// Has it put in force.
    fn order(&self, trial: Option<Duration>, interfaces: Interfaces) -> Order<'_> {
        Order {
            policy: &self.policy,
            path: &self.record.path,
            text: &self.text,
            id: &self.record.id,
            trial,
            interfaces,
        }
    }

    /// A policy that is to be put in force.
    fn of(loaded: LoadedPolicy) -> Self {
        Self {
            record: Record::of(&loaded.bundle),
            text: loaded.bundle.text.as_str().into(),
            policy: Arc::new(loaded.policy),
            generation: 0,
            is_whole: true,
            unkept: Some(loaded.bundle),
            unkeepable: None,
        }
    }

    /// The same policy, with all that it takes to keep it: the content of set files is made from the sets.
    fn to_keep(&self) -> Self {
        let sets = self.policy.sets.iter();
        let sets: HashMap<&str, &[IpNet]> =
            sets.filter_map(|set| Some((set.file.as_deref()?, &set.prefixes[..]))).collect();
        let content = |name: &str| {
            let prefixes = sets.get(name).copied().unwrap_or_default();
            prefixes.iter().map(|prefix| format!("{prefix}\n")).collect::<String>().into_bytes()
        };
        let bundle = match &self.unkept {
            Some(bundle) if bundle.files.len() == self.record.files.len() => bundle.clone(),
            _ => Bundle {
                path: self.record.path.clone(),
                is_path_trusted: self.record.is_path_trusted,
                text: self.text.to_string(),
                files: self
                    .record
                    .files
                    .iter()
                    .map(|file| SetFile { name: file.name.clone(), content: content(&file.name) })
                    .collect(),
            },
        };
        let record = Record::of(&bundle);
        Self { record, generation: 0, unkept: Some(bundle), ..self.clone() }
    }
}

/// What others may look at while something is done.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The pins that the agent has opened.
    pub reader: Option<Reader>,
    pub desired: Option<Desired>,
    pub is_attached: bool,
    /// When the trial ends, and by which clock nobody sets.
    pub trial_ends: Option<Instant>,
    pub was_detached: bool,
    pub waiting: Vec<String>,
    pub not_kept: Option<String>,
    pub problems: Vec<String>,
}

impl View {
    /// What conditions of requests name the policy in force by.
    pub fn tag(&self) -> Option<Tag> {
        self.desired.as_ref().map(|desired| desired.tag(self.trial_ends.is_some()))
    }
}

/// The agent's hands.
#[derive(Debug)]
pub struct Control {
    instance: Instance,
    dataplane: Option<Dataplane>,
    desired: Option<Desired>,
    /// What comes back when the trial is over.
    before_trial: Option<Desired>,
    /// What was in force before, for `portsteer rollback` where the disk does not have it.
    previous: Option<Desired>,
    trial_ends: Option<Instant>,
    /// None where nothing is to be kept.
    store: Option<Store>,
    not_kept: Option<String>,
    protected: Vec<Protected>,
    on_failure: OnFailure,
    waiting: Vec<String>,
    /// Whether interfaces were attached during a trial, for which rules by interface were not compiled.
    is_stale: bool,
    was_detached: bool,
    /// Since when a `detach` without the agent is at work.
    mark_seen: Option<Instant>,
    /// What was said last of what could not be done, so that it is said once.
    last_problem: Option<String>,
    /// What was changed behind the agent's back, in words, the latest last.
    tampered: Vec<String>,
    /// Whether another file system hides the pins.
    is_hidden: bool,
    /// What is in force since the start instead of what should be, until something else is.
    start_problem: Option<String>,
    /// What was said of what keeps changing.
    telling: Telling,
    pub history: History,
}

impl Control {
    pub fn new(
        instance: Instance,
        store: Option<Store>,
        protected: Vec<Protected>,
        on_failure: OnFailure,
    ) -> Self {
        let history = store.as_ref().map_or_else(History::default, History::read);
        Self {
            instance,
            dataplane: None,
            desired: None,
            before_trial: None,
            previous: None,
            trial_ends: None,
            store,
            not_kept: None,
            protected,
            on_failure,
            waiting: Vec::new(),
            is_stale: false,
            was_detached: false,
            mark_seen: None,
            last_problem: None,
            tampered: Vec::new(),
            is_hidden: false,
            start_problem: None,
            telling: Telling::default(),
            history,
        }
    }

    /// What others may look at.
    pub fn view(&self) -> View {
        View {
            reader: self.dataplane.as_ref().map(Dataplane::reader),
            desired: self.desired.clone(),
            is_attached: self.is_attached(),
            trial_ends: self.trial_ends,
            was_detached: self.was_detached,
            waiting: self.waiting.clone(),
            not_kept: self.not_kept.clone(),
            problems: self.problems(),
        }
    }

    fn problems(&self) -> Vec<String> {
        let hidden = || {
            format!(
                "another file system is mounted over {}: the policy is in force, and only this agent can reach it",
                self.instance.directory().display()
            )
        };
        let hidden = self.is_hidden.then(hidden);
        let tampered = self.tampered.iter().map(|what| format!("{what}, and was put right"));
        let known = self.start_problem.iter().chain(&self.last_problem).cloned();
        known.chain(hidden).chain(tampered).collect()
    }

    /// What conditions of requests name the policy in force by.
    pub fn tag(&self) -> Option<Tag> {
        self.desired.as_ref().map(|desired| desired.tag(self.trial_ends.is_some()))
    }

    /// Why a change is not made whose condition does not hold now.
    pub fn unmet(&mut self, condition: &Condition, reporter: &mut dyn Reporter) -> Option<Refusal> {
        if condition.is_none() {
            return None;
        }
        // The kernel may have ended a trial a moment ago.
        if let Err(error) = self.look_at_trial(reporter) {
            reporter.refused(&error);
        }
        let tag = self.tag();
        if condition.holds(tag.as_ref()) {
            return None;
        }
        let now = match (&self.desired, tag) {
            (Some(desired), Some(tag)) => {
                let trial = if self.trial_ends.is_some() { " on trial" } else { " in force" };
                format!("{} is{trial}, with the tag {tag}", desired.record.path)
            }
            _ => "nothing is in force".to_owned(),
        };
        let refusal = Refusal::refused(format!(
            "what is in force is not what the request is meant for: {now}"
        ));
        Some(refusal.help(
            "look at what is in force (`portsteer show`), and ask again with its tag if the change is still meant",
        ))
    }

    /// Whether any interface is attached.
    pub fn is_attached(&self) -> bool {
        self.dataplane.as_ref().is_some_and(|dataplane| !dataplane.is_idle())
    }

    /// When the trial ends.
    pub fn trial_ends(&self) -> Option<Instant> {
        self.trial_ends
    }

    /// Takes the instance's lock, unless this has it.
    fn lock(&mut self) -> Result<&Dataplane, Error> {
        // A lock on a directory that `portsteer detach` has removed keeps nobody out.
        if self.dataplane.as_ref().is_some_and(|dataplane| !dataplane.holds_lock()) {
            self.dataplane = None;
        }
        if self.dataplane.is_none() {
            self.dataplane = Some(Dataplane::lock(self.instance.clone())?);
        }
        // Just made.
        self.dataplane.as_ref().ok_or_else(|| Error::Refused(Refusal::refused("no lock")))
    }

    /// Gives an instance with nothing in it back without a trace.
    pub fn abandon_idle(&mut self) {
        if let Some(idle) = self.dataplane.take_if(|dataplane| dataplane.is_idle()) {
            idle.abandon();
        }
    }

    /// Takes the right to change the instance.
    pub fn lock_instance(&mut self) -> Result<(), Error> {
        self.lock().map(drop)
    }

    /// Whether the policy steers.
    pub fn has_targets(&self) -> bool {
        let has = |desired: &Option<Desired>| {
            desired.as_ref().is_some_and(|desired| !desired.policy.targets.is_empty())
        };
        has(&self.desired) || has(&self.before_trial)
    }

    /// Whether the policy steers to neighbours, whose addresses may change.
    pub fn has_neighbours(&self) -> bool {
        let is_neighbour = |kind: &TargetKind| {
            matches!(kind, TargetKind::Interface { next_hop: NextHop::Via(_), .. })
        };
        let has = |desired: &Option<Desired>| {
            let targets = desired.iter().flat_map(|desired| &desired.policy.targets);
            targets.into_iter().any(|target| is_neighbour(&target.kind))
        };
        has(&self.desired) || has(&self.before_trial)
    }

    fn dataplane(&self) -> Result<&Dataplane, Error> {
        let name = || self.instance.name().to_owned();
        self.dataplane.as_ref().ok_or_else(|| DataplaneError::NotAttached(name()).into())
    }

    fn refuse_while_on_trial(&self) -> Result<(), Error> {
        match self.trial_ends {
            Some(ends) => Err(DataplaneError::OnTrial {
                instance: self.instance.name().to_owned(),
                left: ends.saturating_duration_since(Instant::now()),
            }
            .into()),
            None => Ok(()),
        }
    }

    /// Says what is wrong, once.
    pub fn complain(&mut self, error: &Error, reporter: &mut dyn Reporter) {
        let text = error.to_refusal().message;
        if self.last_problem.as_ref() != Some(&text) {
            self.say("what could not be done", &text, &text, reporter);
            self.last_problem = Some(text);
        }
    }

    /// Says what has become of something that others may change as often as they like. Returns whether it did:
    /// of many changes, most are only counted.
    fn say(&mut self, thing: &str, what: &str, note: &str, reporter: &mut dyn Reporter) -> bool {
        let is_said = self.telling.may_say(thing, what, Instant::now());
        if is_said {
            reporter.note(note);
        }
        is_said
    }

    /// Says what has become of an interface, and keeps it in the history.
    fn tell(&mut self, interface: &str, what: &str, note: &str, reporter: &mut dyn Reporter) {
        if self.say(interface, what, note, reporter) {
            self.history.add(Some(interface), what);
        }
    }

    /// Says how many changes were left out, now and then.
    fn tell_left_out(&mut self, reporter: &mut dyn Reporter) {
        for left_out in self.telling.left_out(Instant::now()) {
            let words = left_out.words();
            let thing = left_out.thing.as_deref().unwrap_or("others");
            let text = format!("{thing}: {words}");
            reporter.note(&text);
            self.history.add(None, &text);
        }
    }
}

fn report_concluded(concluded: &Concluded, reporter: &mut dyn Reporter) {
    for name in &concluded.detached {
        reporter.note(&format!("detached from {name}"));
    }
    concluded.notes.iter().for_each(|note| reporter.note(note));
}
