//! Puts policies in force, or on trial.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{Control, Desired};
use crate::{
    agent::{
        Bundle, Error, LoadedPolicy, Reporter,
        loading::{load_own, understand_until},
        way_in,
    },
    api::{ApplyAnswer, Attachment, How, RemovedRule},
    compile::Interrupt,
    dataplane::{Applied, AttachedMode, Change, Error as DataplaneError, Interfaces},
};

impl Control {
    /// Reads the policy file again.
    pub fn reload(
        &mut self,
        path: &Path,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let loaded = load_own(path, interrupt)?;
        let how = How::default();
        self.put_in_force(loaded, &how, Interfaces::Required, interrupt, reporter).map(drop)
    }

    /// Puts a policy in force that came over the socket.
    pub fn apply(
        &mut self,
        bundle: Bundle,
        how: &How,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        let loaded = understand_until(bundle, interrupt)?;
        self.put_in_force(loaded, how, Interfaces::Required, interrupt, reporter)
    }

    pub(super) fn put_in_force(
        &mut self,
        loaded: LoadedPolicy,
        how: &How,
        interfaces: Interfaces,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        let warnings = render_warnings(&loaded);
        let next = Desired::of(loaded);
        self.swap(next, how, interfaces, warnings, interrupt, reporter)
    }

    /// Puts a policy in force that is made ready: kept first as the one to come, then in force, then accepted.
    pub(super) fn swap(
        &mut self,
        mut next: Desired,
        how: &How,
        interfaces: Interfaces,
        warnings: String,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        self.refuse_while_on_trial()?;
        if !how.force {
            let kept = match (&self.dataplane, interfaces) {
                (Some(dataplane), Interfaces::Kept) => dataplane.attached()?,
                _ => Vec::new(),
            };
            let ssh_connection = how.ssh_connection.as_deref();
            way_in::check(&next.policy, &kept, ssh_connection, &self.protected)?;
        }
        self.lock()?;
        let mut bundle = next.unkept.take();
        let staged = match &next.unkeepable {
            Some(_) => Ok(()),
            None => self.stage_or_mend(&mut next, &mut bundle, reporter),
        };
        let trial = how.confirm_seconds.map(Duration::from_secs);
        let order = next.order(trial, interfaces);
        let applied = match self.dataplane()?.apply(&order, interrupt) {
            Ok(applied) => applied,
            // All of them are missing.
            Err(DataplaneError::NoInterface { targets, .. })
                if interfaces != Interfaces::Required
                    && targets.is_empty()
                    && !self.is_attached() =>
            {
                let names = next.policy.interfaces.iter().map(|pattern| pattern.text.clone());
                Applied { waiting: names.collect(), ..Applied::default() }
            }
            Err(error) => {
                self.discard();
                return Err(error.into());
            }
        };
        next.generation = applied.generation;
        self.waiting.clone_from(&applied.waiting);
        self.was_detached = false;
        if trial.is_some() {
            self.trial_ends = trial.map(|time| Instant::now() + time);
            self.before_trial = self.desired.take();
            self.not_kept = Some("it is on trial".to_owned());
        } else if let Some(why) = &next.unkeepable {
            self.not_kept = Some(why.clone());
        } else {
            self.note_staged(staged, &next.record.id, reporter);
        }
        if self.not_kept.is_none() || next.unkeepable.is_some() {
            bundle = None;
        }
        self.start_problem = None;
        next.unkept = bundle;
        let mut answer = answer(&next, &applied, trial, warnings, self.not_kept.is_none());
        answer.notes.extend(waiting_notes(&applied.waiting));
        reporter.applied(&answer);
        self.history.add(None, &describe_swap(&answer));
        let before = self.desired.replace(next);
        if trial.is_none() {
            self.note_previous(before);
        }
        Ok(answer)
    }
}

/// What is to be said of interfaces that do not exist.
fn waiting_notes(waiting: &[String]) -> Vec<String> {
    if waiting.is_empty() {
        return Vec::new();
    }
    let links = crate::netlink::links().unwrap_or_default();
    let existing: Vec<String> = links.into_iter().map(|link| link.name).collect();
    let note = |name: &String| {
        let error =
            DataplaneError::UnknownInterface { name: name.clone(), existing: existing.clone() };
        let hint = error.help().map_or_else(String::new, |help| format!("; {help}"));
        format!("waiting for `{name}`, which does not exist{hint}")
    };
    waiting.iter().map(note).collect()
}

fn render_warnings(loaded: &LoadedPolicy) -> String {
    crate::agent::render_diagnostics(&loaded.bundle.path, loaded.text(), &loaded.warnings)
}

fn describe_swap(answer: &ApplyAnswer) -> String {
    match answer.trial_seconds {
        Some(seconds) => format!("{} on trial for {seconds} s", answer.path),
        None if answer.generation == 0 => format!("{} waits for its interfaces", answer.path),
        None => format!("{} in force", answer.path),
    }
}

pub(super) fn answer(
    desired: &Desired,
    applied: &Applied,
    trial: Option<Duration>,
    warnings: String,
    kept: bool,
) -> ApplyAnswer {
    let attached = applied.attached.iter().map(|attached| Attachment {
        name: attached.name.clone(),
        mode: AttachedMode::name(attached.mode).to_owned(),
        change: match attached.change {
            Change::New => "new",
            Change::Kept => "kept",
            Change::Upgraded => "upgraded",
        }
        .to_owned(),
        native_refused: attached.native_refused.clone(),
    });
    let removed = applied.removed.iter().map(|(name, counter)| RemovedRule {
        name: name.clone(),
        packets: counter.packets,
        bytes: counter.bytes,
    });
    ApplyAnswer {
        generation: desired.generation,
        path: desired.record.path.clone(),
        rules: desired.policy.rules.len(),
        default: desired.policy.default.name().to_owned(),
        trial_seconds: trial.map(|time| time.as_secs()),
        attached: attached.collect(),
        detached: applied.detached.clone(),
        waiting: applied.waiting.clone(),
        removed: removed.collect(),
        warnings,
        notes: applied.notes.clone(),
        kept,
    }
}
