//! How an agent begins: with a policy, or with what it finds.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Control, Desired, report_concluded};
use crate::{
    agent::{
        Bundle, Error, LoadedPolicy, Reporter,
        bundle::lost_files,
        loading::{load_own, services},
        store::{Record, Store, Which},
    },
    api::How,
    compile::Interrupt,
    dataplane::{Error as DataplaneError, Interfaces, Manifest, TrialState},
    policy::{self, Policy},
};

impl Control {
    /// Starts with a policy, whatever is in force.
    pub fn start_with(
        &mut self,
        loaded: LoadedPolicy,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let dataplane = self.lock()?;
        if dataplane.trial()? != TrialState::None {
            let before = dataplane.manifest_before_trial()?;
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
        match (dataplane.manifest()?, dataplane.trial()?) {
            (Some(manifest), state) => {
                let result = self.take_over(&manifest, state, reporter);
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
        if self.store.as_ref().is_some_and(Store::was_detached) {
            self.was_detached = true;
            reporter.note("taken off by hand since the machine started: `portsteer apply` puts a policy in force");
            return Ok(());
        }
        match self.kept(Which::Accepted) {
            Ok(Some(record)) => match self.load_desired(record) {
                Ok(desired) => {
                    // It was accepted before, by whoever forced it if it had to be.
                    let how = How { force: true, ..How::default() };
                    let (interfaces, warnings) = (Interfaces::Awaited, String::new());
                    self.swap(desired, &how, interfaces, warnings, interrupt, reporter)?;
                    return Ok(());
                }
                Err(error) => self.complain(&error, reporter),
            },
            Ok(None) => {}
            Err(error) => self.complain(&error.into(), reporter),
        }
        match path {
            Some(path) if path.exists() => {
                self.start_with(load_own(path, interrupt)?, interrupt, reporter)
            }
            _ => {
                reporter
                    .note("nothing is in force yet: `portsteer apply FILE` puts a policy in force");
                Ok(())
            }
        }
    }

    /// Takes over what another agent has left in force.
    fn take_over(
        &mut self,
        manifest: &Manifest,
        state: TrialState,
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
                self.desired = Some(self.reconstruct(&manifest, record, reporter));
                let before = self.dataplane()?.manifest_before_trial()?;
                self.before_trial = before.map(|before| {
                    let record = accepted.filter(|record| record.id == before.id);
                    self.reconstruct(&before, record, reporter)
                });
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
                let desired = self.reconstruct(&manifest, record, reporter);
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
                    self.accept(reporter);
                    pending
                } else {
                    if self.store.is_some() && accepted.is_some() {
                        reporter.note("what is in force is not what was kept");
                    }
                    None
                };
                self.desired = Some(self.reconstruct(&manifest, record, reporter));
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
        reporter: &mut dyn Reporter,
    ) -> Desired {
        let mut loaded = None;
        if let Some(record) = &record {
            match self.load_kept(record) {
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
                if is_whole {
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
        }
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
