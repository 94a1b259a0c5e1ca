//! Follows the network: attaches interfaces that come, and tells what goes and changes.

use std::sync::Arc;

use super::{Control, Desired, applying::answer};
use crate::{
    agent::{Error, Reporter},
    compile::Interrupt,
    dataplane::{
        Error as DataplaneError, Interfaces, Refreshed, Survey, TargetChange, TargetState,
    },
};

impl Control {
    /// Follows interfaces: attaches what comes, and tells what goes and changes.
    pub fn follow_interfaces(&mut self, interrupt: &Interrupt, reporter: &mut dyn Reporter) {
        if let Err(error) = self.try_to_follow(interrupt, reporter) {
            self.complain(&error, reporter);
        } else {
            self.last_problem = None;
        }
        self.tell_left_out(reporter);
        self.keep_history();
    }

    fn try_to_follow(
        &mut self,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let Some(desired) = self.desired.clone() else { return Ok(()) };
        if !self.has_attached_before() {
            return self.try_to_begin(desired, interrupt, reporter);
        }
        let survey = match self.dataplane()?.survey(&desired.policy) {
            // Detached a moment ago: the next look at that says so.
            Err(DataplaneError::NotAttached(_)) => return Ok(()),
            result => result?,
        };
        let Survey { gone, changed, missing, waiting } = survey;
        for name in &gone {
            let note = format!(
                "{name} is gone from here, and the policy with it; it is attached again when it is back"
            );
            self.tell(name, "gone", &note, reporter);
        }
        for (name, what) in &changed {
            self.tell(name, what, &format!("{name} {what}"), reporter);
        }
        self.waiting = waiting;
        if missing.is_empty() && (!self.is_stale || self.trial_ends.is_some()) {
            return Ok(());
        }
        let by_interface = desired.policy.rules.iter().any(|rule| !rule.interfaces.is_empty());
        let applied = if self.trial_ends.is_some() {
            // Nothing is compiled anew before it is known which of the two stays.
            self.is_stale = true;
            let before = self.before_trial.as_ref().map(|before| Arc::clone(&before.policy));
            self.dataplane()?.attach_missing_on_trial(&desired.policy, before.as_deref())?
        } else if by_interface && desired.is_whole {
            // Which interface a rule means is compiled in.
            let order = desired.order(None, Interfaces::Kept);
            let applied = self.dataplane()?.apply(&order, interrupt)?;
            if let Some(desired) = &mut self.desired {
                desired.generation = applied.generation;
            }
            self.is_stale = false;
            applied
        } else {
            self.is_stale = false;
            self.dataplane()?.attach_missing(&desired.policy)?
        };
        self.waiting.clone_from(&applied.waiting);
        for attached in applied.attached.iter().filter(|attached| missing.contains(&attached.name))
        {
            let (name, mode) = (&attached.name, attached.mode.name());
            let what = format!("attached ({mode} mode)");
            self.tell(name, &what, &format!("attached to {name} ({mode} mode)"), reporter);
        }
        for note in &applied.notes {
            self.say("notes", note, note, reporter);
        }
        Ok(())
    }

    /// A policy that waits for its first interface.
    fn try_to_begin(
        &mut self,
        desired: Desired,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let order = desired.order(None, Interfaces::Awaited);
        let applied = match self.lock()?.apply(&order, interrupt) {
            Err(DataplaneError::NoInterface { .. }) => return Ok(()),
            result => result?,
        };
        for attached in &applied.attached {
            self.history.add(Some(&attached.name), "attached");
        }
        self.waiting.clone_from(&applied.waiting);
        let mut desired = desired;
        desired.generation = applied.generation;
        let kept = self.not_kept.is_none();
        reporter.applied(&answer(&desired, &applied, None, String::new(), kept));
        self.desired = Some(desired);
        Ok(())
    }

    /// Follows neighbours, CPUs and the interfaces of targets.
    pub fn refresh_targets(&mut self, ask_again: bool, reporter: &mut dyn Reporter) {
        let Some(dataplane) = &self.dataplane else { return };
        match dataplane.refresh_targets(ask_again) {
            Ok(Refreshed { changes, notes }) => {
                for note in &notes {
                    self.say("notes", note, note, reporter);
                }
                for TargetChange { name, state } in changes {
                    let hint = match state {
                        TargetState::Refusing => {
                            ": its interface takes no frames from native mode (of a veth pair, the \
                             other end needs GRO on: `ethtool -K DEVICE gro on`)"
                        }
                        _ => "",
                    };
                    let thing = format!("target `{name}`");
                    let note = format!("{thing} is {}{hint}", state.name());
                    self.say(&thing, state.name(), &note, reporter);
                }
            }
            // Detached a moment ago: the next look at that says so.
            Err(DataplaneError::NotAttached(_)) => {}
            Err(error) => {
                let note = format!("following the targets: {error}");
                self.say("following the targets", &note, &note, reporter);
            }
        }
    }
}
