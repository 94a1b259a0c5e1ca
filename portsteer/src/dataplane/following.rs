//! Keeping what is in force right while the network changes: targets, and interfaces that come, go and are
//! renamed.

use std::os::fd::AsFd;

use portsteer_common::active::Phase;

use super::{
    Applied, AttachedMode, Change, Concluded, Dataplane, Error, Manifest, Pinned, State,
    TargetChange, TargetState, TrialState,
    applying::{Conclusion, expected_mode, place_interfaces},
    attaching::Attaching,
    attachments,
    capabilities::Capabilities,
    check_namespace, describe_switched, in_force, in_force_now,
    interfaces::{self, Selected},
    maps::Maps,
    object, pinned,
    reading::running,
    repairs,
    slots::{ALONE, alone},
    targets::{self, Ask, Attachments},
    trials,
};
use crate::{
    netlink::{self, Link},
    policy::Policy,
};

/// What [`Dataplane::refresh_targets`] found and did.
#[derive(Debug, Clone, Default)]
pub struct Refreshed {
    pub changes: Vec<TargetChange>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// What is known of an attached interface since it was looked at last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    index: u32,
    name: String,
    up: bool,
    mtu: u32,
    /// The name of the bond or bridge that it is part of.
    master: Option<String>,
}

impl Known {
    fn new(link: &Link, links: &[Link]) -> Self {
        let with_index = |index: u32| links.iter().find(|link| link.index == index);
        Self {
            index: link.index,
            name: link.name.clone(),
            up: link.up,
            mtu: link.mtu,
            master: link.master.and_then(with_index).map(|master| master.name.clone()),
        }
    }

    /// Those of these names.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>, links: &[Link]) -> Vec<Self> {
        let with_name = |name: &str| links.iter().find(|link| link.name == name);
        names.filter_map(with_name).map(|link| Self::new(link, links)).collect()
    }

    /// What has changed since, each under the name that it had.
    fn compare(&self, before: &Self) -> Vec<(String, String)> {
        let mut changes = Vec::new();
        if self.name != before.name {
            changes.push(format!("is called {} now", self.name));
        }
        if self.up != before.up {
            changes.push(if self.up { "is up" } else { "is down" }.to_owned());
        }
        if self.mtu != before.mtu {
            changes.push(format!("has an MTU of {} now", self.mtu));
        }
        if self.master != before.master {
            changes.extend(before.master.iter().map(|master| format!("has left {master}")));
            changes.extend(self.master.iter().map(|master| format!("has joined {master}")));
        }
        changes.into_iter().map(|what| (before.name.clone(), what)).collect()
    }
}

/// How the interfaces differ from what they were, and from what the policy asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Those that have gone since this was asked last.
    pub gone: Vec<String>,
    /// Attached ones that are not what they were, by the name that they had, and in words what has changed.
    pub changed: Vec<(String, String)>,
    /// Those that the policy means, and that are here and not attached.
    pub missing: Vec<String>,
    /// Those that the policy names and that do not exist.
    pub waiting: Vec<String>,
}

/// What is in force, from one moment.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The policy in force; none where nothing is, or where a first policy's trial has lapsed.
    pub manifest: Option<Manifest>,
    /// What comes back when the trial that runs is over; none where nothing was in force before.
    pub before_trial: Option<Manifest>,
    pub trial: TrialState,
}

impl Dataplane {
    /// What is in force. The kernel's word decides.
    ///
    /// # Errors
    ///
    /// The pins are of another layout, or not all of them are there.
    pub fn in_force(&self) -> Result<InForce, Error> {
        if self.is_idle() {
            return Ok(InForce { manifest: None, before_trial: None, trial: TrialState::None });
        }
        let maps = Maps::open(self.pins())?;
        loop {
            let (active, manifest) = in_force(&maps)?;
            let trial = trials::state(active, manifest.as_ref())?;
            let before_trial = match active.phase() {
                Phase::Running => Manifest::read(self.pins(), active.other_bank()).ok(),
                Phase::None | Phase::Lapsed => None,
            };
            // All of it from one moment.
            if maps.active() == active {
                return Ok(InForce { manifest, before_trial, trial });
            }
        }
    }

    /// Goes on where another agent has ended: what that left undone is done, and programs of another object
    /// are replaced. `policy` is the one in force, of whose sets only the names matter. While it is on trial
    /// nothing is changed.
    ///
    /// # Errors
    ///
    /// The pins are of another layout, or the kernel refuses. The policy stays in force.
    pub fn take_over(&self, policy: &Policy) -> Result<(Concluded, Applied), Error> {
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let mut maps = Maps::open(self.pins())?;
        let (active, manifest) = in_force_now(&maps)?;
        let attached = pinned(&maps)?;
        check_namespace(&self.instance, attachments(&attached), &links)?;
        let with_index = |index: u32| links.iter().find(|link| link.index == index);
        let present = attached.iter().filter_map(|pinned| with_index(pinned.ifindex));
        let present = present.map(|link| Known::new(link, &links)).collect();
        let before = match active.phase() {
            Phase::Running => Manifest::read(self.pins(), active.other_bank()).ok(),
            Phase::None | Phase::Lapsed => None,
        };
        let others = before.iter().flat_map(|before| before.targets.clone());
        let is_new = |target: &super::ManifestTarget| {
            manifest.targets.iter().all(|own| own.slot != target.slot)
        };
        *self.applied() = State {
            targets: manifest.targets.iter().cloned().chain(others.filter(is_new)).collect(),
            attached: present,
            repairs: repairs::Repairs::open(self.pins()),
            belief: None,
        };
        self.believe();
        // A trial is left alone until it is over, and so is what is left of one that is.
        if active.phase() != Phase::None {
            return Ok(Default::default());
        }
        Maps::forget_new_tables(self.pins());
        // What another policy had attached that never came into force, and what the policy in force had yet to
        // let go.
        let other = alone(active.other_bank());
        let (unwanted, kept): (Vec<&Pinned>, Vec<&Pinned>) = attached.iter().partition(|pinned| {
            // What has gone may be all that keeps the instance, and gets no other program.
            let is_older = pinned.record.generation < manifest.generation && pinned.ifindex != 0;
            pinned.record.features & ALONE == other || is_older
        });
        let slots: Vec<u32> = kept
            .iter()
            // The others get another program anyway.
            .filter(|pinned| pinned.record.object == object::digest())
            .map(|pinned| pinned.slot)
            .collect();
        let modes: Vec<(&Link, AttachedMode)> = kept
            .iter()
            .filter_map(|pinned| {
                let link = links.iter().find(|link| link.index == pinned.ifindex)?;
                Some((link, pinned.record.mode()))
            })
            .collect();
        let other = Manifest::read(self.pins(), active.other_bank()).ok();
        let conclusion = Conclusion {
            manifest: &manifest,
            other: other.as_ref(),
            kept: &slots,
            unwanted: &unwanted,
            settings: &repairs::wanted(policy, &modes, &links),
            switched: &[],
        };
        // What had gone long before is no news.
        let concluded = match unwanted.is_empty() {
            true => {
                Concluded { removed: Vec::new(), ..self.conclude(&mut maps, &links, &conclusion)? }
            }
            false => self.conclude(&mut maps, &links, &conclusion)?,
        };
        let applied = self.attach_missing(policy)?;
        Ok((concluded, applied))
    }

    /// Attaches what the policy in force means and what is not attached, and replaces programs of another
    /// object. Interfaces that are attached stay so, whatever they are called now.
    ///
    /// # Errors
    ///
    /// The kernel refuses. What was attached stays so.
    pub fn attach_missing(&self, policy: &Policy) -> Result<Applied, Error> {
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let maps = Maps::open(self.pins())?;
        let (_, mut manifest) = in_force_now(&maps)?;
        let attached = pinned(&maps)?;
        check_namespace(&self.instance, attachments(&attached), &links)?;
        let is_attached = |link: &Link| attached.iter().any(|pinned| pinned.ifindex == link.index);
        let Selected { links: selected, waiting } = self.selected(policy, &links)?;
        let mut wanted: Vec<Link> =
            links.iter().filter(|link| is_attached(link)).cloned().collect();
        wanted.extend(selected.into_iter().filter(|link| !is_attached(link)));
        let mut notes = targets::check(&self.instance, policy, &wanted, &links)?;
        let expected: Vec<(&Link, AttachedMode)> =
            wanted.iter().map(|link| (link, expected_mode(policy, link, &attached))).collect();
        let mut switched = Vec::new();
        let settings = repairs::wanted(policy, &expected, &links);
        notes.extend(maps.repairs.make(&settings, &links, &mut switched)?);
        let capabilities = Capabilities::find(policy, &links, &maps, &mut manifest.targets)?;
        let placed = place_interfaces(&wanted, &attached)?;
        let features = maps.active_features();
        let mut work = Attaching::new(self, &maps, &capabilities, features, &manifest);
        let done = match work.attach_all(policy, &wanted, &placed, &attached) {
            Ok(done) => done,
            Err(error) => {
                work.undo();
                self.believe();
                let needed = repairs::wanted(policy, &expected, &links);
                let _ = maps.repairs.undo(&links, |setting| {
                    needed.contains(setting) && !switched.contains(setting)
                });
                return Err(error);
            }
        };
        notes.extend(describe_switched(&switched, &[]));
        if done.iter().any(|attached| attached.change == Change::New) {
            // What has gone makes room, now that others are there to keep the instance.
            let gone: Vec<&Pinned> = attached.iter().filter(|pinned| pinned.ifindex == 0).collect();
            self.retire(&maps, &gone)?;
        }
        self.applied().attached =
            Known::of(done.iter().map(|attached| attached.name.as_str()), &links);
        self.believe();
        Ok(Applied {
            generation: manifest.generation,
            attached: done,
            waiting,
            notes,
            ..Applied::default()
        })
    }

    /// Attaches what is missing while a policy is on trial: what `policy`, which is that one, means, and is judged
    /// by both if the one before, `before`, means it too, else by that one alone. What only the one before means
    /// has to wait for the trial's end.
    ///
    /// # Errors
    ///
    /// The kernel refuses. What was attached stays so.
    pub fn attach_missing_on_trial(
        &self,
        policy: &Policy,
        before: Option<&Policy>,
    ) -> Result<Applied, Error> {
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let maps = Maps::open(self.pins())?;
        let (active, mut manifest) = in_force_now(&maps)?;
        if active.phase() != Phase::Running {
            // Its time was up just now: what is missing belongs to the policy before, once this is tidied up.
            return Ok(Applied { generation: manifest.generation, ..Applied::default() });
        }
        let attached = pinned(&maps)?;
        check_namespace(&self.instance, attachments(&attached), &links)?;
        let is_attached = |link: &Link| attached.iter().any(|pinned| pinned.ifindex == link.index);
        let Selected { links: mut wanted, waiting } = self.selected(policy, &links)?;
        wanted.retain(|link| !is_attached(link));
        let meant_before = match before {
            Some(before) => self.selected(before, &links)?.links,
            None => Vec::new(),
        };
        let is_of_both = |link: &Link| meant_before.iter().any(|other| other.index == link.index);
        wanted.sort_by_key(|link| !is_of_both(link));
        let mut notes = targets::check(&self.instance, policy, &wanted, &links)?;
        let expected: Vec<(&Link, AttachedMode)> =
            wanted.iter().map(|link| (link, expected_mode(policy, link, &attached))).collect();
        let mut switched = Vec::new();
        for policy in [policy].into_iter().chain(before) {
            let settings = repairs::wanted(policy, &expected, &links);
            notes.extend(maps.repairs.make(&settings, &links, &mut switched)?);
        }
        let capabilities = Capabilities::find(policy, &links, &maps, &mut manifest.targets)?;
        let placed = place_interfaces(&wanted, &attached)?;
        let both = wanted.iter().filter(|link| is_of_both(link)).count();
        let mut work = Attaching::new(self, &maps, &capabilities, maps.all_features(), &manifest);
        let done = work.attach_all(policy, &wanted[..both], &placed[..both], &attached).and_then(
            |mut done| {
                work.only_for_bank(active.bank());
                let rest = work.attach_all(policy, &wanted[both..], &placed[both..], &attached)?;
                done.extend(rest);
                Ok(done)
            },
        );
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                work.undo();
                return Err(error);
            }
        };
        notes.extend(describe_switched(&switched, &[]));
        let new = Known::of(done.iter().map(|attached| attached.name.as_str()), &links);
        self.applied().attached.extend(new);
        self.believe();
        let generation = manifest.generation;
        Ok(Applied { generation, attached: done, waiting, notes, ..Applied::default() })
    }

    /// What the policy's patterns name now.
    fn selected(&self, policy: &Policy, links: &[Link]) -> Result<Selected, Error> {
        match interfaces::select(&policy.interfaces, links, &policy.targets, true) {
            Err(Error::NoInterface { .. }) => Ok(Selected::nothing(policy)),
            result => result,
        }
    }

    /// Compares the interfaces with what they were, and with what the policy asks for.
    ///
    /// # Errors
    ///
    /// The kernel does not tell, or nothing is in force.
    pub fn survey(&self, policy: &Policy) -> Result<Survey, Error> {
        let mut applied = self.applied();
        let maps = running(self.pins())?;
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let pinned = pinned(&maps)?;
        let is_here = |pinned: &&Pinned| {
            check_namespace(&self.instance, attachments(std::slice::from_ref(*pinned)), &links)
                .is_ok()
                && pinned.ifindex != 0
        };
        let mut survey = Survey::default();
        let mut present = Vec::new();
        for pinned in pinned.iter().filter(is_here) {
            let Some(link) = links.iter().find(|link| link.index == pinned.ifindex) else {
                continue;
            };
            if link.name != pinned.record.name() {
                let mut record = pinned.record;
                record.set_name(&link.name);
                record.write(maps.interfaces.as_fd(), pinned.slot)?;
            }
            let now = Known::new(link, &links);
            if let Some(before) = applied.attached.iter().find(|known| known.index == now.index) {
                survey.changed.extend(now.compare(before));
            }
            present.push(now);
        }
        let before = std::mem::replace(&mut applied.attached, present);
        let is_gone = |known: &Known| applied.attached.iter().all(|now| now.index != known.index);
        survey.gone = before.into_iter().filter(is_gone).map(|known| known.name).collect();
        let selected = self.selected(policy, &links)?;
        let is_attached =
            |link: &&Link| pinned.iter().filter(is_here).any(|pinned| pinned.ifindex == link.index);
        let missing = selected.links.iter().filter(|link| !is_attached(link));
        survey.missing = missing.map(|link| link.name.clone()).collect();
        survey.waiting = selected.waiting;
        Ok(survey)
    }

    /// Makes the program know how the targets of the policy that was applied last are now, and says
    /// which have changed. `ask_again`: also ask neighbours that have not answered before.
    ///
    /// # Errors
    ///
    /// The kernel does not tell, or nothing is in force.
    pub fn refresh_targets(&self, ask_again: bool) -> Result<Refreshed, Error> {
        let applied = self.applied();
        if applied.targets.is_empty() {
            return Ok(Refreshed::default());
        }
        let mut maps = running(self.pins())?;
        let attachments = Attachments::new(&pinned(&maps)?);
        let ask = if ask_again { Ask::Again } else { Ask::First };
        let found = targets::refresh(&mut maps, &applied.targets, &attachments, ask)?;
        let (mut changes, mut notes) = (found.changes, Vec::new());
        let is_refusing = |change: &TargetChange| change.state == TargetState::Refusing;
        if found.has_untried_devices || changes.iter().any(is_refusing) {
            // A veth pair that was made anew, perhaps.
            let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
            let wanted =
                repairs::wanted_of(applied.targets.iter().map(|target| &target.kind), &links);
            let mut switched = Vec::new();
            notes = maps.repairs.make(&wanted, &links, &mut switched)?;
            notes.extend(describe_switched(&switched, &[]));
            let again = targets::refresh(&mut maps, &applied.targets, &attachments, ask)?;
            for change in again.changes {
                changes.retain(|before| before.name != change.name);
                changes.push(change);
            }
        }
        Ok(Refreshed { changes, notes })
    }
}
