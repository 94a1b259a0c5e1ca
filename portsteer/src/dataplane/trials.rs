//! A policy on trial: the kernel holds the deadline, and puts the policy before back in force by itself.
//!
//! Until the trial is confirmed or over, everything that either policy needs stays in place: the other bank,
//! the targets, the offloads, and the interfaces, of which those that only one policy names have a program
//! that judges by that policy or passes everything.
//!
//! What becomes of a trial stands in one word ([`portsteer_common::active`]), which is only ever changed from what it is
//! known to be. So a trial is confirmed or over, whoever comes first, and never both.

use std::{os::fd::AsFd as _, time::Duration};

use portsteer_common::{Active, active::Phase, trial::Trial};

use super::{
    Concluded, Dataplane, Error, Manifest, Pinned, State,
    applying::Conclusion,
    following::Known,
    in_force,
    maps::{Maps, TRIAL},
    object::{Begun, TrialProgram},
    pinned, repairs,
    slots::{ALONE, alone},
    sys,
};
use crate::{
    netlink::{self, Link},
    policy::Policy,
};

/// What has become of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialState {
    /// Nothing is on trial.
    None,
    /// The policy in force is, for this time to come.
    Running { left: Duration },
    /// The time was up: the policy before is in force, and [`Dataplane::end_trial`] was not called yet.
    Lapsed,
}

/// A trial that is ready to begin.
pub(super) struct Prepared(TrialProgram);

/// Makes a trial ready: from `before` to `running`. Nothing is changed by it but a pin that no word refers to.
pub(super) fn prepare(
    maps: &Maps,
    time: Duration,
    before: Active,
    running: Active,
) -> Result<Prepared, Error> {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let program = TrialProgram::load(maps, Trial { nanoseconds, before, running })?;
    // The timer lives as long as the map is pinned; that of an earlier trial ends here.
    maps.pins().replace(program.map.as_fd(), TRIAL)?;
    Ok(Prepared(program))
}

impl Prepared {
    /// Puts the policy in force and starts its deadline, both at once.
    pub(super) fn begin(self) -> Result<(), Error> {
        match self.0.run()? {
            Begun::Running => Ok(()),
            Begun::Outdated => Err(Error::Outdated),
        }
    }
}

/// What has become of the trial. `manifest` is that of the policy in force.
pub(super) fn state(active: Active, manifest: Option<&Manifest>) -> Result<TrialState, Error> {
    Ok(match active.phase() {
        Phase::None => TrialState::None,
        Phase::Lapsed => TrialState::Lapsed,
        Phase::Running => {
            let ends = manifest.and_then(|manifest| manifest.trial).map_or(0, |trial| trial.ends);
            let now = sys::boot_time().map_err(Error::io("asking for the time"))?;
            TrialState::Running { left: Duration::from_nanos(ends.saturating_sub(now)) }
        }
    })
}

/// Says that all has been tidied up after a trial that has lapsed, if there is one.
pub(super) fn settle(maps: &Maps) -> Result<(), Error> {
    let active = maps.active();
    let generation = Manifest::read(maps.pins(), active.bank()).map_or(0, |it| it.generation);
    match active.settle(generation) {
        // No other process changes a word in this phase: the lock keeps agents out, and no timer has it.
        Some(settled) => maps.swap_active(active, settled).map_err(|_| Error::Outdated),
        None => Ok(()),
    }
}

impl Dataplane {
    /// What has become of a trial.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn trial(&self) -> Result<TrialState, Error> {
        if self.is_idle() {
            return Ok(TrialState::None);
        }
        let (active, manifest) = in_force(&Maps::open(self.pins())?)?;
        state(active, manifest.as_ref())
    }

    /// Refuses to change anything while a policy is on trial.
    pub(super) fn refuse_trial(&self) -> Result<(), Error> {
        match self.trial()? {
            TrialState::Running { left } => {
                Err(Error::OnTrial { instance: self.instance().name().to_owned(), left })
            }
            // The policy before is in force; what the other needed is in the way.
            TrialState::Lapsed => {
                self.drop_strangers()?;
                settle(&Maps::open(self.pins())?)
            }
            TrialState::None => Ok(()),
        }
    }

    /// Keeps the policy on trial for good. `policy` is that policy.
    ///
    /// # Errors
    ///
    /// [`Error::NoTrial`], or [`Error::TrialOver`] if the time was up before.
    pub fn confirm(&self, policy: &Policy) -> Result<Concluded, Error> {
        let maps = Maps::open(self.pins())?;
        let active = maps.active();
        let confirmed = active.confirm().ok_or(match active.phase() {
            Phase::Lapsed => Error::TrialOver,
            _ => Error::NoTrial,
        })?;
        // Where the kernel was faster, the word is another one.
        maps.swap_active(active, confirmed).map_err(|_| Error::TrialOver)?;
        self.believe_word(confirmed);
        self.conclude_trial(Some(policy)).inspect_err(|_| self.believe())
    }

    /// Ends a trial, now or after its time was up: the policy before is in force, and what only the other
    /// needed is given up. `before` is the policy before, `None` if there was none.
    ///
    /// # Errors
    ///
    /// [`Error::NoTrial`], or the kernel refuses.
    pub fn end_trial(&self, before: Option<&Policy>) -> Result<Concluded, Error> {
        if self.is_idle() {
            return Err(Error::NoTrial);
        }
        let maps = Maps::open(self.pins())?;
        let active = maps.active();
        match (active.phase(), active.lapse()) {
            (Phase::None, _) => return Err(Error::NoTrial),
            // Where this fails, the kernel has done it.
            (_, Some(lapsed)) => {
                let _ = maps.swap_active(active, lapsed);
                self.believe_word(maps.active());
            }
            (_, None) => {}
        }
        self.conclude_trial(before).inspect_err(|_| self.believe())
    }

    /// Takes off what an interface has of the policy that is not in force.
    fn drop_strangers(&self) -> Result<(), Error> {
        let maps = Maps::open(self.pins())?;
        let pinned = pinned(&maps)?;
        let other = alone(maps.active().other_bank());
        let strangers: Vec<&Pinned> =
            pinned.iter().filter(|pinned| pinned.record.features & ALONE == other).collect();
        self.retire(&maps, &strangers)
    }

    /// Leaves the policy in force alone.
    fn conclude_trial(&self, policy: Option<&Policy>) -> Result<Concluded, Error> {
        let mut maps = Maps::open(self.pins())?;
        let (active, manifest) = in_force(&maps)?;
        let manifest = match (manifest, policy) {
            (Some(manifest), _) => manifest,
            // Its pin was removed: what is attached judges by the image all the same, and stays.
            (None, Some(_)) => {
                let detail = "the manifest of the policy in force is missing".to_owned();
                return Err(Error::other_layout(self.pins(), detail));
            }
            (None, None) => {
                // There was no policy before.
                let detached = self.detach()?;
                return Ok(Concluded {
                    detached: detached.interfaces,
                    notes: detached.notes,
                    removed: Vec::new(),
                });
            }
        };
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let pinned = pinned(&maps)?;
        let other = alone(active.other_bank());
        let (unwanted, kept): (Vec<&Pinned>, Vec<&Pinned>) =
            pinned.iter().partition(|pinned| pinned.record.features & ALONE == other);
        let present = kept.iter().filter(|pinned| pinned.ifindex != 0);
        let slots: Vec<u32> = present.map(|pinned| pinned.slot).collect();
        let modes: Vec<(&Link, super::AttachedMode)> = kept
            .iter()
            .filter_map(|pinned| {
                let link = links.iter().find(|link| link.index == pinned.ifindex)?;
                Some((link, pinned.record.mode()))
            })
            .collect();
        let other_manifest = Manifest::read(self.pins(), active.other_bank()).ok();
        let conclusion = Conclusion {
            manifest: &manifest,
            other: other_manifest.as_ref(),
            kept: &slots,
            unwanted: &unwanted,
            settings: &policy.map_or_else(Vec::new, |it| repairs::wanted(it, &modes, &links)),
            switched: &[],
        };
        let concluded = self.conclude(&mut maps, &links, &conclusion)?;
        settle(&maps)?;
        *self.applied() = State {
            targets: manifest.targets,
            attached: Known::of(modes.iter().map(|(link, _)| link.name.as_str()), &links),
            repairs: Some(maps.repairs),
            belief: None,
        };
        self.believe();
        Ok(concluded)
    }
}
