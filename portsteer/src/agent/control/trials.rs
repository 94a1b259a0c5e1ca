//! Ends trials, for good or back; and goes back to what was accepted before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Control, Missing, applying::answer, report_concluded};
use crate::{
    agent::{Error, Reporter, store::Which},
    api::{ApplyAnswer, DoneAnswer, How, Refusal},
    compile::Interrupt,
    dataplane::{Applied, Concluded, Error as DataplaneError, TrialState},
};

impl Control {
    /// Keeps the policy on trial for good.
    pub fn confirm(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let Some(desired) = self.desired.clone().filter(|_| self.trial_ends.is_some()) else {
            return Err(DataplaneError::NoTrial.into());
        };
        match self.dataplane()?.confirm(&desired.policy) {
            Ok(concluded) => {
                self.trial_ends = None;
                self.before_trial = None;
                let staged = match &desired.unkept {
                    // Staged once before, unless that failed.
                    Some(bundle) => self.stage(&desired.record, Some(bundle)),
                    None => Ok(()),
                };
                self.note_staged(staged, reporter);
                if self.not_kept.is_none()
                    && let Some(desired) = &mut self.desired
                {
                    desired.unkept = None;
                }
                self.history.add(None, "the policy on trial was confirmed");
                reporter.note("confirmed: the policy stays in force");
                Ok(done(&concluded))
            }
            Err(DataplaneError::TrialOver) => {
                self.end_trial(reporter)?;
                Err(DataplaneError::TrialOver.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a trial whose time is up, if that is so.
    pub fn look_at_trial(&mut self, reporter: &mut dyn Reporter) -> Result<(), Error> {
        if self.trial_ends.is_none() {
            return Ok(());
        }
        match self.dataplane()?.trial()? {
            TrialState::Lapsed => self.end_trial(reporter).map(drop),
            TrialState::Running { left } => {
                // The kernel's clock is the one that counts; a moment more, so that it is over then.
                let left = left.max(Duration::from_millis(20));
                self.trial_ends = Some(Instant::now() + left);
                Ok(())
            }
            TrialState::None => {
                self.trial_ends = None;
                Ok(())
            }
        }
    }

    pub(super) fn end_trial(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let before = self.before_trial.clone();
        let policy = before.as_ref().map(|before| Arc::clone(&before.policy));
        let concluded = self.dataplane()?.end_trial(policy.as_deref())?;
        self.trial_ends = None;
        self.desired = self.before_trial.take();
        self.discard();
        self.not_kept = None;
        let text = match &self.desired {
            Some(before) => format!("the trial is over: {} is back in force", before.record.path),
            None => "the trial is over: nothing is in force, as before".to_owned(),
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
            let done = self.end_trial(reporter)?;
            let mut answer = match &self.desired {
                Some(desired) => answer(desired, &Applied::default(), None, String::new(), true),
                None => ApplyAnswer::nothing(),
            };
            (answer.detached, answer.notes) = (done.detached, done.notes);
            return Ok(answer);
        }
        let record = self.kept(Which::Previous)?;
        let record = record
            .ok_or_else(|| Error::Refused(Refusal::negative("there is no policy to go back to")))?;
        let loaded = self.load_kept(&record)?;
        self.put_in_force(loaded, how, Missing::Refused, interrupt, reporter)
    }
}

fn done(concluded: &Concluded) -> DoneAnswer {
    DoneAnswer { detached: concluded.detached.clone(), notes: concluded.notes.clone() }
}
