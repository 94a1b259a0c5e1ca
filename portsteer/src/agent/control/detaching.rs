//! Takes the dataplane off, and notices when somebody else does.

use std::time::{Duration, Instant};

use super::Control;
use crate::{
    agent::{Error, Reporter},
    api::DoneAnswer,
    dataplane::{Dataplane, Error as DataplaneError},
};

/// How long a `detach` that has left its mark may take, before the agent ends what it has begun.
const PATIENCE: Duration = Duration::from_secs(3);

impl Control {
    /// Takes the dataplane off, until the next apply.
    pub fn detach(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let detached = match &self.dataplane {
            Some(dataplane) => dataplane.detach(),
            // Whatever is there all the same.
            None => crate::dataplane::detach(&self.instance),
        };
        let detached = match detached {
            Err(DataplaneError::NotAttached(_)) if self.desired.is_some() => Default::default(),
            result => result?,
        };
        self.note_detached(reporter);
        let text = match detached.interfaces.is_empty() {
            true => "detached".to_owned(),
            false => format!("detached from {}", detached.interfaces.join(", ")),
        };
        reporter.note(&format!("{text}; `portsteer apply` attaches again"));
        self.history.add(None, "detached");
        Ok(DoneAnswer { detached: detached.interfaces, notes: detached.notes })
    }

    pub(super) fn note_detached(&mut self, reporter: &mut dyn Reporter) {
        self.dataplane = None;
        (self.desired, self.before_trial, self.trial_ends) = (None, None, None);
        self.previous = None;
        (self.was_detached, self.not_kept) = (true, None);
        self.waiting.clear();
        if let Some(store) = &self.store
            && let Err(error) = store.note_detached()
        {
            reporter.note(&format!("that it is detached cannot be kept: {error}"));
        }
        self.discard();
    }

    /// Ends the agent's own dataplane.
    pub fn take_off(&mut self) -> Result<Option<crate::dataplane::Detached>, Error> {
        let Some(dataplane) = self.dataplane.take() else { return Ok(None) };
        match dataplane.detach() {
            Ok(detached) => Ok(Some(detached)),
            Err(DataplaneError::NotAttached(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether somebody else has taken the dataplane off. A quick look.
    pub fn is_detached_outside(&self) -> bool {
        self.has_attached_before() && self.dataplane.as_ref().is_some_and(Dataplane::was_detached)
    }

    /// After `portsteer detach` without the agent's doing, the agent keeps its hands off until it is told to
    /// apply again.
    pub fn notice_detach(&mut self, reporter: &mut dyn Reporter) {
        if !self.has_attached_before() {
            return;
        }
        if self.dataplane.as_ref().is_some_and(Dataplane::is_being_detached) {
            // It may be just at it.
            let since = *self.mark_seen.get_or_insert_with(Instant::now);
            if since.elapsed() < PATIENCE {
                return;
            }
        }
        self.mark_seen = None;
        if let Some(dataplane) = self.dataplane.take_if(|dataplane| dataplane.was_detached()) {
            let how = if self.store.is_some() { "SIGHUP or `portsteer apply`" } else { "SIGHUP" };
            reporter.note(&format!("detached from outside; {how} attaches again"));
            // One that was killed in the midst of it has left its mark, and interfaces perhaps.
            match dataplane.finish_detach() {
                Ok(interfaces) => {
                    for name in interfaces {
                        reporter.note(&format!("detached from {name}"));
                    }
                }
                Err(error) => reporter.note(&format!("detaching what is left: {error}")),
            }
            match dataplane.switch_back() {
                Ok(notes) => notes.iter().for_each(|note| reporter.note(note)),
                Err(error) => reporter.note(&format!("switching offloads back: {error}")),
            }
            drop(dataplane);
            self.history.add(None, "detached from outside");
            self.note_detached(reporter);
        }
    }

    /// Whether the policy was ever on an interface: while it waits for its first one, no link is no sign.
    pub(super) fn has_attached_before(&self) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.generation != 0)
    }
}
