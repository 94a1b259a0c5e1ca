//! How an agent begins: with a policy, or with what it finds.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Control, Desired, report_concluded, starting::NOT_ACCEPTED};
use crate::{
    agent::{
        Bundle, Error, LoadedPolicy, Reporter, built_in,
        bundle::lost_files,
        loading::services,
        store::{Record, Store, Which},
    },
    api::How,
    compile::Interrupt,
    dataplane::{Dataplane, Error as DataplaneError, InForce, Interfaces, Manifest, TrialState},
    policy::{self, Policy},
};

/// Whether what is reconstructed is put on disk where it is missing there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// It is in force for good.
    InForce,
    /// It is on trial, or the policy before: what was confirmed or has lapsed is kept by whoever ends the trial.
    Nothing,
}

impl Control {
    /// Starts with a policy, whatever is in force.
    pub fn start_with(
        &mut self,
        loaded: LoadedPolicy,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let dataplane = self.lock()?;
        note_carried_over(dataplane, reporter);
        let InForce { manifest, before_trial, trial } = dataplane.in_force()?;
        if trial != TrialState::None {
            // What has lapsed is over, and the policy before is in force.
            let before = if trial == TrialState::Lapsed { manifest } else { before_trial };
            let before = before.and_then(|manifest| policy_of(&manifest));
            dataplane.end_trial(before.as_ref())?;
            self.discard();
            reporter.note("a trial that was under way is over");
        }
        self.put_in_force(loaded, &How::default(), Interfaces::Awaited, interrupt, reporter)
            .map(drop)
    }

    /// Goes on with what is in force, else with what was accepted last, else with a policy file.
    pub fn resume(
        &mut self,
        path: Option<&Path>,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let dataplane = self.lock()?;
        note_carried_over(dataplane, reporter);
        // From one moment: the word that the kernel judges by decides what is in force, and whether it is on trial.
        let in_force = dataplane.in_force()?;
        match (in_force.manifest, in_force.trial) {
            // It stands in for a policy, which is tried again.
            (Some(manifest), _) if built_in::is_in_force(&manifest) => {}
            (Some(manifest), state) => {
                let before_trial = in_force.before_trial;
                let result = self.take_over(&manifest, before_trial, state, interrupt, reporter);
                // Whatever it was, the policy is in force.
                if let Err(error) = result {
                    self.complain(&error, reporter);
                }
                return Ok(());
            }
            (None, TrialState::Lapsed) => {
                dataplane.end_trial(None)?;
                self.discard();
                reporter.note("the trial of a first policy was over; taken off");
                self.lock()?;
            }
            _ => {}
        }
        if self.dataplane.as_ref().is_some_and(Dataplane::has_finished_a_detach) {
            // It was asked for, and the one who asked was killed.
            self.note_detached(reporter);
            reporter.note("a `portsteer detach` that was interrupted is done: `portsteer apply` puts a policy in force");
            return Ok(());
        }
        if self.store.as_ref().is_some_and(Store::was_detached) {
            self.was_detached = true;
            reporter.note("taken off by hand since the machine started: `portsteer apply` puts a policy in force");
            return Ok(());
        }
        self.start_anew(path, interrupt, reporter)
    }

    /// Takes over what another agent has left in force.
    fn take_over(
        &mut self,
        manifest: &Manifest,
        before_trial: Option<Manifest>,
        state: TrialState,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let manifest = manifest.clone();
        let accepted = self.kept_or_complain(Which::Accepted, reporter);
        let pending = self.kept_or_complain(Which::Pending, reporter);
        let is = |record: &Option<Record>, manifest: &Manifest| {
            record.as_ref().is_some_and(|record| record.id == manifest.id)
        };
        match state {
            TrialState::Running { left } => {
                let record = pending.filter(|record| record.id == manifest.id);
                // Nothing is kept before it is known which of the two stays.
                let keeps = Keeps::Nothing;
                self.desired =
                    Some(self.reconstruct(&manifest, record, keeps, interrupt, reporter));
                self.before_trial = before_trial.map(|before| {
                    let record = accepted.filter(|record| record.id == before.id);
                    self.reconstruct(&before, record, keeps, interrupt, reporter)
                });
                self.not_kept = Some("it is on trial".to_owned());
                self.trial_ends = Some(Instant::now() + left);
                // Nobody knows what the agent before has attached meanwhile.
                self.is_stale = true;
                reporter.note(&format!(
                    "{} is on trial for {} more",
                    manifest.path,
                    humantime::format_duration(Duration::from_secs(left.as_secs()))
                ));
            }
            TrialState::Lapsed => {
                let record = accepted.filter(|record| record.id == manifest.id);
                let keeps = Keeps::InForce;
                let desired = self.reconstruct(&manifest, record, keeps, interrupt, reporter);
                let concluded = self.dataplane()?.end_trial(Some(&desired.policy))?;
                self.desired = Some(desired);
                self.discard();
                reporter.note(&format!(
                    "the trial was over while no agent ran: {} is back in force",
                    manifest.path
                ));
                self.history.add(None, "a trial was over; the policy before is back");
                report_concluded(&concluded, reporter);
            }
            TrialState::None => {
                let record = if is(&accepted, &manifest) {
                    if pending.is_some() {
                        self.discard();
                        reporter.note(
                            "an apply that was interrupted had changed nothing, and is forgotten",
                        );
                    }
                    accepted
                } else if is(&pending, &manifest) {
                    reporter.note("an apply that was interrupted was complete, and is accepted");
                    self.accept(&manifest.id, reporter);
                    pending
                } else if let Some(previous) = self
                    .kept_or_complain(Which::Previous, reporter)
                    .filter(|it| it.id == manifest.id)
                {
                    self.not_kept = Some(NOT_ACCEPTED.to_owned());
                    Some(previous)
                } else {
                    if self.store.is_some() && accepted.is_some() {
                        reporter.note("what is in force is not what was kept");
                    }
                    None
                };
                let keeps = Keeps::InForce;
                self.desired =
                    Some(self.reconstruct(&manifest, record, keeps, interrupt, reporter));
            }
        }
        let desired = self.desired.clone();
        let policy = desired.as_ref().map(|desired| Arc::clone(&desired.policy));
        let policy = policy.ok_or(DataplaneError::NoTrial)?;
        let (concluded, applied) = self.dataplane()?.take_over(&policy)?;
        self.waiting.clone_from(&applied.waiting);
        report_concluded(&concluded, reporter);
        if let Some(desired) = desired {
            reporter.taken_over(&desired, &applied);
        }
        Ok(())
    }

    /// What is in force, as far as it can be known.
    fn reconstruct(
        &mut self,
        manifest: &Manifest,
        record: Option<Record>,
        keeps: Keeps,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Desired {
        let mut loaded = None;
        if let Some(record) = &record {
            match self.load_kept(record, interrupt) {
                Ok(found) => loaded = Some(found),
                Err(error) => self.complain(&error, reporter),
            }
        }
        let mut unkept = None;
        let (policy, is_whole, record) = match (loaded, record) {
            (Some(loaded), Some(record)) => (loaded.policy, true, record),
            // The kernel has the text, and not what files had.
            (_, record) => {
                let whole = policy::file::parse(&manifest.text, &services());
                let is_whole = whole.is_ok();
                let parsed = whole.ok().map(|parsed| parsed.policy);
                let policy = parsed.or_else(|| policy_of(manifest));
                let bundle = Bundle::of_text(&*manifest.path, &*manifest.text);
                let record = record.unwrap_or_else(|| Record::of(&bundle));
                if built_in::is_in_force(manifest) {
                    self.not_kept = Some(NOT_ACCEPTED.to_owned());
                } else if is_whole && keeps == Keeps::Nothing {
                    unkept = Some(bundle);
                } else if is_whole {
                    self.not_kept = None;
                    self.keep_now(&record, &bundle, reporter);
                    unkept = self.not_kept.is_some().then_some(bundle);
                } else {
                    self.not_kept = Some("the content of its set files is lost".to_owned());
                    reporter.note(
                        "the content of the policy's set files is lost: it stays in force as it is; \
                         apply it again to change anything",
                    );
                }
                (policy.unwrap_or_else(nothing), is_whole, record)
            }
        };
        Desired {
            record,
            text: manifest.text.as_str().into(),
            policy: Arc::new(policy),
            generation: manifest.generation,
            is_whole,
            unkept,
            unkeepable: built_in::is_in_force(manifest).then(|| NOT_ACCEPTED.to_owned()),
        }
    }
}

fn note_carried_over(dataplane: &Dataplane, reporter: &mut dyn Reporter) {
    if dataplane.was_carried_over() {
        reporter.note("what the version before had in force was carried over, with its counters");
    }
}

/// The policy of a text whose set files are not at hand.
fn policy_of(manifest: &Manifest) -> Option<Policy> {
    let parsed = policy::file::parse_with(&manifest.text, &services(), &mut lost_files);
    parsed.ok().map(|parsed| parsed.policy)
}

/// A policy for no interface, where nothing better is known.
pub(super) fn nothing() -> Policy {
    Policy {
        interfaces: Vec::new(),
        mode: policy::Mode::Auto,
        default: policy::Action::Pass,
        options: policy::Options::default(),
        targets: Vec::new(),
        sets: Vec::new(),
        rules: Vec::new(),
    }
}
