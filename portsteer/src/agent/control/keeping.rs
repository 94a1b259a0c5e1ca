//! Keeps policies on disk, or says that they are not kept.

use std::time::Instant;

use super::{Control, Desired};
use crate::{
    agent::{
        Bundle, Error, LoadedPolicy, Reporter,
        loading::{interrupted, understand_until},
        store::{Record, StoreError, Which},
    },
    api::Refusal,
    compile::Interrupt,
};

impl Control {
    /// Keeps the history, if there is news.
    pub fn keep_history(&mut self) {
        if let Some(store) = &self.store {
            self.history.write(store, Instant::now());
        }
    }

    /// Keeps all of the history.
    pub fn keep_history_now(&mut self) {
        if let Some(store) = &self.store {
            self.history.write_now(store, Instant::now());
        }
    }

    /// Tries again to keep what could not be kept.
    pub fn keep_again(&mut self, reporter: &mut dyn Reporter) {
        if self.not_kept.is_none() || self.trial_ends.is_some() {
            return;
        }
        let Some(desired) = &mut self.desired else { return };
        let Some(bundle) = desired.unkept.take() else { return };
        let record = desired.record.clone();
        self.keep_now(&record, &bundle, reporter);
        if self.not_kept.is_some()
            && let Some(desired) = &mut self.desired
        {
            desired.unkept = Some(bundle);
        }
    }

    pub(super) fn keep_now(
        &mut self,
        record: &Record,
        bundle: &Bundle,
        reporter: &mut dyn Reporter,
    ) {
        let staged = self.stage(record, Some(bundle));
        let before = self.not_kept.take();
        if staged.is_err() && before.is_some() {
            // That was said already.
            self.not_kept = before;
            return;
        }
        self.note_staged(staged, &record.id, reporter);
        if before.is_some() && self.not_kept.is_none() {
            reporter.note("the policy in force is kept now");
        }
    }

    pub(super) fn stage(&self, record: &Record, bundle: Option<&Bundle>) -> Result<(), StoreError> {
        match (&self.store, bundle) {
            (Some(store), Some(bundle)) => store.stage(record, bundle),
            _ => Ok(()),
        }
    }

    /// Keeps a policy as the one to come. Where content that was kept is damaged, and is not at hand as it was
    /// written, it is made anew from the sets.
    pub(super) fn stage_or_mend(
        &self,
        next: &mut Desired,
        bundle: &mut Option<Bundle>,
        reporter: &mut dyn Reporter,
    ) -> Result<(), StoreError> {
        let staged = self.stage(&next.record, bundle.as_ref());
        let Err(damage @ StoreError::Damaged { .. }) = &staged else { return staged };
        if !next.is_whole || next.record.files.is_empty() {
            return staged;
        }
        reporter.note(&format!("{damage}; what its set has is kept anew, without comments"));
        let whole = next.to_keep();
        (next.record, *bundle) = (whole.record, whole.unkept);
        self.stage(&next.record, bundle.as_ref())
    }

    /// Stages the policy that was on trial, unless that is so already. What its set files have is on disk, or with it.
    pub(super) fn stage_confirmed(&self, desired: &Desired) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        if let Some(bundle) = &desired.unkept {
            return store.stage(&desired.record, bundle);
        }
        if store.read_record(Which::Pending)?.is_some_and(|it| it.id == desired.record.id) {
            return Ok(());
        }
        let text_alone = Bundle::of_text(&*desired.record.path, &*desired.text);
        store.stage(&desired.record, &text_alone)?;
        // What no record has named meanwhile may have been removed.
        store.read_bundle(&desired.record, &Interrupt::default()).map(drop)
    }

    /// Accepts what was staged, or says that it could not be.
    pub(super) fn note_staged(
        &mut self,
        staged: Result<(), StoreError>,
        id: &str,
        reporter: &mut dyn Reporter,
    ) {
        self.not_kept = None;
        match staged {
            Ok(()) => self.accept(id, reporter),
            Err(error) => self.note_not_kept(&error, reporter),
        }
    }

    /// Accepts what is staged, which has to be the policy with this id.
    pub(super) fn accept(&mut self, id: &str, reporter: &mut dyn Reporter) {
        let Some(store) = &self.store else { return };
        store.note_applied();
        if let Err(error) = store.accept(id) {
            self.note_not_kept(&error, reporter);
        }
    }

    fn note_not_kept(&mut self, error: &StoreError, reporter: &mut dyn Reporter) {
        reporter.note(&format!(
            "in force, but not kept: after a restart of the machine the policy before would be back: {error}"
        ));
        self.not_kept = Some(error.to_string());
    }

    /// Forgets what was staged.
    pub(super) fn discard(&self) {
        if let Some(store) = &self.store {
            // The next agent forgets it as well, since it is not in force.
            let _ = store.discard();
        }
    }

    pub(super) fn kept(&self, which: Which) -> Result<Option<Record>, StoreError> {
        self.store.as_ref().map_or(Ok(None), |store| store.read_record(which))
    }

    pub(super) fn kept_or_complain(
        &mut self,
        which: Which,
        reporter: &mut dyn Reporter,
    ) -> Option<Record> {
        match self.kept(which) {
            Ok(record) => record,
            Err(error) => {
                self.complain(&error.into(), reporter);
                None
            }
        }
    }

    /// A kept policy, to be put in force once more. Its content stays where it is, edits beside it.
    pub(super) fn load_desired(
        &self,
        record: Record,
        interrupt: &Interrupt,
    ) -> Result<Desired, Error> {
        let desired = Desired::of(self.load_kept(&record, interrupt)?);
        let text_alone = Bundle::of_text(&*record.path, &*desired.text);
        Ok(Desired { record, unkept: Some(text_alone), ..desired })
    }

    pub(super) fn load_kept(
        &self,
        record: &Record,
        interrupt: &Interrupt,
    ) -> Result<LoadedPolicy, Error> {
        let Some(store) = &self.store else {
            return Err(Error::Refused(Refusal::refused("nothing is kept")));
        };
        understand_until(store.read_bundle(record, interrupt)?, interrupt)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Interrupted { .. } => interrupted(),
            error => Self::Refused(Refusal::refused(error.to_string())),
        }
    }
}
