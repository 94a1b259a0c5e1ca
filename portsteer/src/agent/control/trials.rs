//! Ends trials, for good or back; and goes back to what was accepted before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Control, Desired, applying::answer, report_concluded};
use crate::{
    agent::{
        Error, Reporter,
        store::{Record, Which},
    },
    api::{ApplyAnswer, DoneAnswer, How, Refusal},
    compile::Interrupt,
    dataplane::{Applied, Concluded, Error as DataplaneError, InForce, Interfaces, TrialState},
    policy::Policy,
};

/// Why a trial is over whose time was up.
const NOT_CONFIRMED: &str = "not confirmed in time";

/// How long the agent waits before it tidies up after a trial once more, if that has failed.
const RETRY: Duration = Duration::from_secs(1);

impl Control {
    /// Keeps the policy on trial for good.
    pub fn confirm(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let Some(desired) = self.desired.clone().filter(|_| self.trial_ends.is_some()) else {
            return Err(DataplaneError::NoTrial.into());
        };
        match self.dataplane()?.confirm(&desired.policy) {
            Ok(concluded) => {
                self.keep_confirmed(reporter);
                Ok(done(&concluded))
            }
            Err(DataplaneError::TrialOver) => {
                self.end_trial(NOT_CONFIRMED, reporter)?;
                Err(DataplaneError::TrialOver.into())
            }
            // The kernel has it: what could not be given up goes with the next change.
            Err(error) if self.is_confirmed() => {
                self.keep_confirmed(reporter);
                let note = format!("what only the policy before needed is still there: {error}");
                reporter.note(&note);
                Ok(DoneAnswer { detached: Vec::new(), notes: vec![note] })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the kernel says that the policy which was on trial is in force for good: not where nothing is attached.
    fn is_confirmed(&self) -> bool {
        let in_force = self.dataplane().and_then(|dataplane| Ok(dataplane.in_force()?));
        let Ok(InForce { manifest: Some(manifest), trial: TrialState::None, .. }) = in_force else {
            return false;
        };
        self.desired.as_ref().is_some_and(|desired| desired.generation == manifest.generation)
    }

    /// Keeps what the kernel says is confirmed.
    fn keep_confirmed(&mut self, reporter: &mut dyn Reporter) {
        self.trial_ends = None;
        let before = self.before_trial.take();
        self.note_previous(before);
        let Some(desired) = self.desired.clone() else { return };
        let staged = self.stage_confirmed(&desired);
        self.note_staged(staged, &desired.record.id, reporter);
        if self.not_kept.is_none()
            && let Some(desired) = &mut self.desired
        {
            desired.unkept = None;
        }
        self.history.add(None, "the policy on trial was confirmed");
        reporter.note("confirmed: the policy stays in force");
    }

    /// Ends a trial whose time is up, if that is so.
    pub fn look_at_trial(&mut self, reporter: &mut dyn Reporter) -> Result<(), Error> {
        if self.trial_ends.is_none() {
            return Ok(());
        }
        self.try_to_look_at_trial(reporter).inspect_err(|_| {
            // Tried again, but not without a pause.
            self.trial_ends = Some(Instant::now() + RETRY);
        })
    }

    fn try_to_look_at_trial(&mut self, reporter: &mut dyn Reporter) -> Result<(), Error> {
        match self.dataplane()?.trial()? {
            TrialState::Lapsed => self.end_trial(NOT_CONFIRMED, reporter).map(drop),
            TrialState::Running { left } => {
                // The kernel's clock is the one that counts; a moment more, so that it is over then.
                let left = left.max(Duration::from_millis(20));
                self.trial_ends = Some(Instant::now() + left);
                Ok(())
            }
            TrialState::None if self.is_confirmed() => {
                self.keep_confirmed(reporter);
                Ok(())
            }
            TrialState::None => {
                self.trial_ends = None;
                Ok(())
            }
        }
    }

    /// Ends a trial, for this reason.
    pub(super) fn end_trial(
        &mut self,
        why: &str,
        reporter: &mut dyn Reporter,
    ) -> Result<DoneAnswer, Error> {
        let before = self.before_trial.clone();
        let policy = before.as_ref().map(|before| Arc::clone(&before.policy));
        let concluded = self.dataplane()?.end_trial(policy.as_deref())?;
        self.trial_ends = None;
        self.desired = self.before_trial.take();
        self.discard();
        self.not_kept = self.desired.as_ref().and_then(|desired| desired.unkeepable.clone());
        if self.not_kept.is_none() && self.desired.as_ref().is_some_and(|it| it.unkept.is_some()) {
            // It could not be kept before the trial, or was found in the kernel alone.
            self.not_kept = Some("it is not on disk".to_owned());
            self.keep_again(reporter);
        }
        let text = match &self.desired {
            Some(before) => {
                format!("the trial is over: {} is back in force ({why})", before.record.path)
            }
            None => format!("the trial is over: nothing is in force, as before ({why})"),
        };
        reporter.note(&text);
        self.history.add(None, &text);
        report_concluded(&concluded, reporter);
        Ok(done(&concluded))
    }

    /// Ends a trial now, or goes back to the policy that was accepted before.
    pub fn rollback(
        &mut self,
        how: &How,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        if self.trial_ends.is_some() {
            let done = self.end_trial("rolled back", reporter)?;
            let mut answer = match &self.desired {
                Some(desired) => answer(desired, &Applied::default(), None, String::new(), true),
                None => ApplyAnswer::nothing(),
            };
            (answer.detached, answer.notes) = (done.detached, done.notes);
            return Ok(answer);
        }
        let Some(desired) = &self.desired else {
            let refusal = Refusal::negative("nothing is in force to go back from");
            let help = "`portsteer apply FILE` puts a policy in force";
            return Err(Error::Refused(refusal.help(help)));
        };
        let patterns = |policy: &Policy| -> Vec<String> {
            policy.interfaces.iter().map(|pattern| pattern.text.clone()).collect()
        };
        let now = patterns(&desired.policy);
        let previous = self.find_previous(interrupt)?;
        let interfaces = match patterns(&previous.policy) == now {
            true => Interfaces::Kept,
            false => Interfaces::Awaited,
        };
        self.swap(previous, how, interfaces, String::new(), interrupt, reporter)
    }

    /// Remembers what was in force before.
    pub(super) fn note_previous(&mut self, before: Option<Desired>) {
        let is_other = |before: &Desired| {
            self.desired.as_ref().is_none_or(|now| now.record.id != before.record.id)
        };
        // The same policy once more is no step.
        if let Some(before) = before.filter(is_other) {
            self.previous = Some(before);
        }
    }

    /// The policy to go back to.
    fn find_previous(&self, interrupt: &Interrupt) -> Result<Desired, Error> {
        // What is not kept has not made the one before the previous one.
        let which = if self.not_kept.is_some() { Which::Accepted } else { Which::Previous };
        let kept = self.kept(which);
        // Whoever was there knows best; the disk has the files as they were written.
        if let Some(previous) = self.previous.as_ref().filter(|previous| previous.is_whole) {
            return Ok(match kept {
                Ok(Some(record)) if record.id == previous.record.id => {
                    self.load_desired(record, interrupt).unwrap_or_else(|_| previous.to_keep())
                }
                _ => previous.to_keep(),
            });
        }
        let is_other = |record: &Record| {
            self.desired.as_ref().is_none_or(|desired| desired.record.id != record.id)
        };
        match kept? {
            Some(record) if is_other(&record) => self.load_desired(record, interrupt),
            _ => {
                let refusal = Refusal::negative("there is no policy to go back to");
                Err(Error::Refused(match &self.not_kept {
                    Some(why) => refusal.help(format!("policies are not kept on disk: {why}")),
                    None => refusal,
                }))
            }
        }
    }
}

fn done(concluded: &Concluded) -> DoneAnswer {
    DoneAnswer { detached: concluded.detached.clone(), notes: concluded.notes.clone() }
}
