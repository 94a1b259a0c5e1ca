//! A policy on trial: the kernel holds the deadline, and puts the policy before back in force by itself.
//!
//! Until the trial is confirmed or over, everything that either policy needs stays in place: the other bank,
//! the targets, the offloads, and the interfaces, of which those that only one policy names have a program
//! that judges by that policy or passes everything.

use std::{os::fd::AsFd, time::Duration};

use portsteer_common::{
    image::{BANKS, FIRST_BANK, SECOND_BANK},
    trial::{HeldTrial, Trial, state},
};

use super::{
    Concluded, Dataplane, Error, Manifest, Pinned, State,
    applying::Conclusion,
    following::Known,
    maps::Maps,
    object, pinned, read_manifest, repairs,
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

/// Starts the timer that puts a bank back in force.
pub(super) fn start(maps: &Maps, time: Duration, bank: usize) -> Result<(), Error> {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let trial = Trial { nanoseconds, back: word(bank), state: state::RUNNING };
    object::start_trial(maps, trial)
}

/// Stops the timer, if one runs. Whether one did.
pub(super) fn cancel(maps: &Maps) -> Result<bool, Error> {
    match maps.trial()? {
        Some(trial) if trial.state == state::RUNNING => {
            let ran = object::end_trial(maps)?;
            if ran {
                forget(maps)?;
            }
            Ok(ran)
        }
        _ => Ok(false),
    }
}

/// Writes down that there is no trial.
pub(super) fn forget(maps: &Maps) -> Result<(), Error> {
    match maps.trial()? {
        Some(trial) if trial.state != state::NONE => {
            maps.set_trial(Trial { state: state::NONE, ..trial })
        }
        _ => Ok(()),
    }
}

/// The word that names a bank.
fn word(bank: usize) -> u32 {
    if bank == 0 { FIRST_BANK } else { SECOND_BANK }
}

/// What has become of the trial, and the bank that comes back, or has.
pub(super) fn state(maps: &Maps, manifest: Option<&Manifest>) -> Result<TrialState, Error> {
    let Some(trial) = maps.trial()? else { return Ok(TrialState::None) };
    Ok(match trial.state {
        state::LAPSED => TrialState::Lapsed,
        // An agent was killed between starting the timer and the flip.
        state::RUNNING if trial.back == word(maps.active_bank()) => TrialState::None,
        state::RUNNING => {
            let ends = manifest.and_then(|manifest| manifest.trial).map_or(0, |trial| trial.ends);
            let now = sys::boot_time().map_err(Error::io("asking for the time"))?;
            TrialState::Running { left: Duration::from_nanos(ends.saturating_sub(now)) }
        }
        _ => TrialState::None,
    })
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
        let maps = Maps::open(&self.instance)?;
        let manifest = Manifest::read(&self.instance, maps.active_bank()).ok();
        state(&maps, manifest.as_ref())
    }

    /// Refuses to change anything while a policy is on trial.
    pub(super) fn refuse_trial(&self) -> Result<(), Error> {
        match self.trial()? {
            TrialState::Running { left } => {
                Err(Error::OnTrial { instance: self.instance.name().to_owned(), left })
            }
            // The policy before is in force; what the other needed is in the way.
            TrialState::Lapsed => self.drop_strangers(),
            TrialState::None if self.is_idle() => Ok(()),
            // An agent may have been killed between starting the timer and the flip.
            TrialState::None => cancel(&Maps::open(&self.instance)?).map(drop),
        }
    }

    /// Keeps the policy on trial for good. `policy` is that policy.
    ///
    /// # Errors
    ///
    /// [`Error::NoTrial`], or [`Error::TrialOver`] if the time was up before.
    pub fn confirm(&self, policy: &Policy) -> Result<Concluded, Error> {
        match self.trial()? {
            TrialState::Running { .. } => {}
            TrialState::Lapsed => return Err(Error::TrialOver),
            TrialState::None => return Err(Error::NoTrial),
        }
        let maps = Maps::open(&self.instance)?;
        let bank = maps.active_bank();
        if !cancel(&maps)? || maps.active_bank() != bank {
            // It was up just now; cancelling has waited for the flip.
            return Err(Error::TrialOver);
        }
        self.conclude_trial(Some(policy))
    }

    /// Ends a trial, now or after its time was up: the policy before is in force, and what only the other
    /// needed is given up. `before` is the policy before, `None` if there was none.
    ///
    /// # Errors
    ///
    /// [`Error::NoTrial`], or the kernel refuses.
    pub fn end_trial(&self, before: Option<&Policy>) -> Result<Concluded, Error> {
        let state = self.trial()?;
        if state == TrialState::None {
            return Err(Error::NoTrial);
        }
        let maps = Maps::open(&self.instance)?;
        let trial = maps.trial()?.ok_or(Error::NoTrial)?;
        cancel(&maps)?;
        maps.set_active_bank(usize::from(trial.back != FIRST_BANK));
        self.conclude_trial(before)
    }

    /// Takes off what an interface has of the policy that is not in force.
    fn drop_strangers(&self) -> Result<(), Error> {
        let maps = Maps::open(&self.instance)?;
        let pinned = pinned(&self.instance, &maps)?;
        let other = alone((maps.active_bank() + 1) % BANKS);
        let strangers: Vec<&Pinned> =
            pinned.iter().filter(|pinned| pinned.record.features & ALONE == other).collect();
        self.retire(&maps, &strangers)
    }

    /// Leaves the policy in force alone.
    fn conclude_trial(&self, policy: Option<&Policy>) -> Result<Concluded, Error> {
        let mut maps = Maps::open(&self.instance)?;
        let active = maps.active_bank();
        let (Ok(manifest), Some(policy)) = (read_manifest(&self.instance, active), policy) else {
            // There was no policy before.
            let detached = self.detach()?;
            return Ok(Concluded {
                detached: detached.interfaces,
                notes: detached.notes,
                removed: Vec::new(),
            });
        };
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let pinned = pinned(&self.instance, &maps)?;
        let other = alone((active + 1) % BANKS);
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
        let other_manifest = Manifest::read(&self.instance, (active + 1) % BANKS).ok();
        let conclusion = Conclusion {
            manifest: &manifest,
            other: other_manifest.as_ref(),
            kept: &slots,
            unwanted: &unwanted,
            settings: &repairs::wanted(policy, &modes, &links),
            switched: &[],
        };
        let concluded = self.conclude(&mut maps, &links, &conclusion)?;
        forget(&maps)?;
        *self.applied() = State {
            targets: manifest.targets,
            attached: Known::of(modes.iter().map(|(link, _)| link.name.as_str()), &links),
            repairs: Some(maps.repairs),
        };
        Ok(concluded)
    }
}

/// What the kernel has for the map's value.
pub(super) const VALUE_SIZE: usize = size_of::<HeldTrial>();

/// Reads the map's value through its descriptor.
pub(super) fn read(map: impl AsFd) -> Result<Trial, Error> {
    let mut held: HeldTrial = bytemuck::Zeroable::zeroed();
    sys::map_lookup(map.as_fd(), 0, bytemuck::bytes_of_mut(&mut held))
        .map_err(Error::io("reading the map `trial`"))?;
    Ok(held.trial)
}

/// Writes it; the kernel leaves the timer alone.
pub(super) fn write(map: impl AsFd, trial: Trial) -> Result<(), Error> {
    let held = HeldTrial { timer: [0; 2], trial };
    sys::map_update(map.as_fd(), 0, bytemuck::bytes_of(&held))
        .map_err(Error::io("writing the map `trial`"))
}
