//! Putting a policy in force: everything is made ready beside what is in force, then one word is flipped,
//! then what only the policy before needed is given up.

use std::{collections::HashSet, os::fd::AsFd, time::Duration};

use portsteer_common::{Counter, INTERFACE_SLOTS, image::BANKS};

use super::{
    Attached, AttachedMode, Change, Dataplane, Error, Manifest, ManifestRule, ManifestTarget,
    Pinned, State,
    attaching::Attaching,
    attachments,
    capabilities::Capabilities,
    check_namespace, describe_switched,
    detaching::{force_detach, remove_slot},
    following::Known,
    in_force, in_force_now,
    interfaces::{self, Selected},
    manifest::{self, Context},
    maps::{self, Maps, link_pin},
    object, pinned,
    repairs::{self, Repairs, Setting},
    slots::Slot,
    snapshots, sys,
    targets::{self, Ask, Attachments},
    total, trials,
};
use crate::{
    compile::{CompileError, Interrupt},
    netlink::{self, Link},
    policy::{Mode, Policy},
};

/// A policy that is to be put in force, and how.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    pub policy: &'a Policy,
    /// The policy file's path, for listings.
    pub path: &'a str,
    /// The policy file's text, for listings.
    pub text: &'a str,
    /// By which whoever keeps policies recognises this one. May be empty.
    pub id: &'a str,
    /// Put it on trial for this time, after which the policy before comes back by itself.
    pub trial: Option<Duration>,
    pub interfaces: Interfaces,
}

/// Which interfaces a policy is put in force on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interfaces {
    /// Those that it names, all of which have to exist.
    Required,
    /// Those that it names and that exist; the others are waited for.
    Awaited,
    /// As [`Interfaces::Awaited`], and what is attached stays so, whatever it is called now: for a policy that
    /// is for the same interfaces as the one before.
    Kept,
}

impl<'a> Order<'a> {
    /// A policy for good, on interfaces that have to be there.
    #[must_use]
    pub const fn new(policy: &'a Policy, path: &'a str, text: &'a str) -> Self {
        Self { policy, path, text, id: "", trial: None, interfaces: Interfaces::Required }
    }
}

/// What [`Dataplane::apply`] did.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Counts the policies that were put in force.
    pub generation: u64,
    /// The interfaces that are attached now, in the order of their slots.
    pub attached: Vec<Attached>,
    /// The interfaces that were taken off.
    pub detached: Vec<String>,
    /// The interfaces that the policy names and that do not exist.
    pub waiting: Vec<String>,
    /// The rules that are gone, with what they had counted.
    pub removed: Vec<(String, Counter)>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// What was given up when a policy was left alone in force.
#[derive(Debug, Clone, Default)]
pub struct Concluded {
    /// The interfaces that were taken off.
    pub detached: Vec<String>,
    /// The rules that are gone, with what they had counted.
    pub removed: Vec<(String, Counter)>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// What a policy that is being put in force has changed already besides the attachments.
#[derive(Debug, Default)]
struct Begun {
    /// Whether anything may have been changed.
    is_under_way: bool,
    targets: Vec<ManifestTarget>,
    switched: Vec<Setting>,
}

/// What is to be given up, and what is to be left.
pub(super) struct Conclusion<'a> {
    /// The policy in force.
    pub(super) manifest: &'a Manifest,
    /// The policy that was in force before, or on trial.
    pub(super) other: Option<&'a Manifest>,
    /// The slots of the interfaces that the policy in force is for.
    pub(super) kept: &'a [u32],
    pub(super) unwanted: &'a [&'a Pinned],
    /// What the policy in force needs of devices.
    pub(super) settings: &'a [Setting],
    /// Devices that were switched for it just now.
    pub(super) switched: &'a [Setting],
}

impl Dataplane {
    /// Puts a policy in force on its interfaces and takes all others off. Setting `interrupt` from another
    /// thread takes effect while the policy is compiled: then it is an error, and soon.
    ///
    /// A policy on trial comes into force as any other does, and the one before stays ready beside it:
    /// interfaces that only that one names pass everything meanwhile, but stay attached.
    ///
    /// # Errors
    ///
    /// What was in force before stays in force, on the same interfaces. [`Error::OnTrial`] while another is
    /// on trial.
    pub fn apply(&self, order: &Order<'_>, interrupt: &Interrupt) -> Result<Applied, Error> {
        if interrupt.is_set() {
            return Err(CompileError::Interrupted.into());
        }
        if !self.holds_lock() {
            return Err(Error::Detached(self.instance().name().to_owned()));
        }
        self.refuse_trial()?;
        let policy = order.policy;
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let Selected { links: wanted, waiting } = self.select(order, &links)?;
        let mut notes = targets::check(&self.instance, policy, &wanted, &links)?;
        self.remove_debris(&links)?;
        let mut begun = Begun::default();
        match self.apply_to(order, &wanted, &links, &mut begun, interrupt) {
            Ok(applied) => {
                notes.extend(applied.notes);
                Ok(Applied { notes, waiting, ..applied })
            }
            Err(error) => {
                // Whatever was begun on an instance with no interface is debris now.
                self.remove_debris(&links)?;
                // What fails now is left to the error that is already on its way.
                let _ = self.undo(begun, &links);
                self.believe();
                Err(error)
            }
        }
    }

    /// The interfaces that a policy is to be on. There is at least one, unless all that it is on have gone.
    fn select(&self, order: &Order<'_>, links: &[Link]) -> Result<Selected, Error> {
        let policy = order.policy;
        let waits = order.interfaces != Interfaces::Required;
        let selected = interfaces::select(&policy.interfaces, links, &policy.targets, waits);
        if order.interfaces != Interfaces::Kept || self.is_idle() {
            return selected;
        }
        let mut selected = match selected {
            Err(Error::NoInterface { .. }) => Selected::nothing(policy),
            result => result?,
        };
        let mut stay = self.attached()?;
        stay.retain(|link| selected.links.iter().all(|chosen| chosen.index != link.index));
        selected.links.extend(stay);
        Ok(selected)
    }

    fn apply_to(
        &self,
        order: &Order<'_>,
        wanted: &[Link],
        links: &[Link],
        begun: &mut Begun,
        interrupt: &Interrupt,
    ) -> Result<Applied, Error> {
        let policy = order.policy;
        let running = !self.pins().linked_slots()?.is_empty();
        if !running {
            Maps::create(self.pins(), maps::pages_for(policy.rules.len()))?;
        }
        let mut maps = Maps::open(self.pins())?;
        let (active, previous) = in_force(&maps)?;
        let bank = active.bank();
        let pinned = pinned(&maps)?;
        check_namespace(&self.instance, attachments(&pinned), links)?;
        begun.is_under_way = true;

        // From here on no program reads the idle bank, nor counts for a rule that only it knew.
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        let counted = if running { snapshots(&maps, &pinned, maps.pages)? } else { Vec::new() };
        let placed = manifest::place_targets(policy, previous.as_ref(), links, |slot, kind| {
            targets::losses(&maps, slot, kind)
        })?;
        let context = Context {
            instance: &self.instance,
            order,
            previous: previous.as_ref(),
            generation: self.next_generation(),
        };
        let mut manifest =
            Manifest::describe(&context, placed, |counter| total(&counted, counter))?;
        if !manifest.targets.is_empty() {
            // Those of the policy before are still in use.
            let before = previous.iter().flat_map(|previous| &previous.targets);
            targets::watch(&maps, before.chain(&manifest.targets))?;
        }
        let attachments = Attachments::new(&pinned);
        begun.targets.clone_from(&manifest.targets);
        targets::prepare(&mut maps, &manifest.targets, &attachments)?;
        // The modes are those that are to be had as a rule; what comes of it is looked at later.
        let expected: Vec<(&Link, AttachedMode)> =
            wanted.iter().map(|link| (link, expected_mode(policy, link, &pinned))).collect();
        let settings = repairs::wanted(policy, &expected, links);
        let mut notes = maps.repairs.make(&settings, links, &mut begun.switched)?;
        let capabilities = Capabilities::find(policy, links, &maps, &mut manifest.targets)?;
        let placed = place_interfaces(wanted, &pinned)?;
        let names: Vec<(u32, &str)> =
            placed.iter().zip(wanted).map(|(&slot, link)| (slot, link.name.as_str())).collect();
        let compiled =
            self.compiler().compile(policy, &names, &manifest.decisions(policy), interrupt)?;
        maps.make_room(manifest.pages())?;
        // Programs judge by the policy before as well until the word is flipped.
        let before = if running { maps.active_features() } else { 0 };
        let (idle, features) = maps.fill(&compiled)?;
        manifest.write(self.pins(), idle)?;
        let outdated = || Error::Outdated;
        let next = match order.trial {
            Some(_) => active.begin_trial(manifest.generation),
            None => active.put_in_force(manifest.generation),
        };
        let next = next.ok_or_else(outdated)?;
        // What has gone keeps the instance while nothing else does.
        let is_unwanted = |pinned: &&Pinned| {
            !wanted.is_empty() && !wanted.iter().any(|link| link.index == pinned.ifindex)
        };
        let unwanted: Vec<&Pinned> = pinned.iter().filter(is_unwanted).collect();
        if !running {
            // Before the first interface is attached: no packet meets the empty bank, and an agent
            // that is killed between two interfaces leaves a policy that is whole.
            maps.settle_tables()?;
            match order.trial {
                Some(time) => trials::prepare(&maps, time, active, next)?.begin()?,
                None => maps.swap_active(active, next).map_err(|_| Error::Outdated)?,
            }
        }

        let mut work = Attaching::new(self, &maps, &capabilities, features | before, &manifest);
        if running || order.trial.is_some() {
            // Until the flip, nothing is judged there; and an agent that is killed before it leaves a program
            // that the next one knows not to belong there.
            work.only_for_bank(idle);
        }
        let result = work.attach_all(policy, wanted, &placed, &pinned).and_then(|attached| {
            let modes: Vec<(&Link, AttachedMode)> =
                wanted.iter().zip(&attached).map(|(link, done)| (link, done.mode)).collect();
            let settings = repairs::wanted(policy, &modes, links);
            notes.extend(maps.repairs.make(&settings, links, &mut begun.switched)?);
            let trial = match order.trial {
                Some(time) => {
                    work.confine(&unwanted, bank)?;
                    // A first policy's trial has begun.
                    running.then(|| trials::prepare(&maps, time, active, next)).transpose()?
                }
                None => None,
            };
            Ok((attached, settings, trial))
        });
        let (attached, settings, trial) = match result {
            Ok(done) => done,
            Err(error) => {
                work.undo();
                return Err(error);
            }
        };
        if running {
            let flip = maps
                // Before the flip: from then on only these have the policy that is in force.
                .settle_tables()
                .and_then(|()| match trial {
                    // With its deadline, at once.
                    Some(trial) => trial.begin(),
                    None => maps.swap_active(active, next).map_err(|_| Error::Outdated),
                });
            if let Err(error) = flip {
                work.undo();
                return Err(error);
            }
        }

        for (link, _) in wanted.iter().zip(&attached).filter(|(_, done)| done.change == Change::New)
        {
            if !manifest.targets.is_empty() && repairs::sender_is_elsewhere(link) {
                notes.push(format!(
                    "steered packets leave as they came, so whoever sends to `{name}` at its other \
                     end must finish them: `ethtool -K DEVICE tx off tso off gso off txvlan off` \
                     there, unless it only passes on what came over a wire",
                    name = link.name
                ));
            }
        }
        notes.extend(targets::unready(&maps, &manifest.targets));
        let mut done = Applied { generation: manifest.generation, attached, ..Applied::default() };
        let mut followed = manifest.targets.clone();
        if order.trial.is_some() {
            notes.extend(describe_switched(&begun.switched, &[]));
            // Those of the policy before have to be right when it comes back.
            let before = previous.iter().flat_map(|previous| &previous.targets);
            followed.extend(
                before
                    .filter(|target| !manifest.targets.iter().any(|own| own.slot == target.slot))
                    .cloned(),
            );
        } else {
            let conclusion = Conclusion {
                manifest: &manifest,
                other: previous.as_ref(),
                kept: &placed,
                unwanted: &unwanted,
                settings: &settings,
                switched: &begun.switched,
            };
            debug_assert_eq!(maps.active_features(), features, "the bank's features");
            let concluded = self.conclude(&mut maps, links, &conclusion)?;
            notes.extend(concluded.notes);
            (done.detached, done.removed) = (concluded.detached, concluded.removed);
        }
        *self.applied() = State {
            targets: followed,
            attached: Known::of(done.attached.iter().map(|done| done.name.as_str()), links),
            repairs: Some(maps.repairs),
            belief: None,
        };
        self.believe();
        Ok(Applied { notes, ..done })
    }

    /// The number of the next policy: greater than those of both banks, since one that was on trial has had
    /// its number.
    fn next_generation(&self) -> u64 {
        let generation = |bank| Manifest::read(self.pins(), bank).map_or(0, |it| it.generation);
        1 + generation(0).max(generation(1))
    }

    /// Gives up what only another policy needed than the one in force.
    pub(super) fn conclude(
        &self,
        maps: &mut Maps,
        links: &[Link],
        conclusion: &Conclusion<'_>,
    ) -> Result<Concluded, Error> {
        let Conclusion { manifest, other, kept, unwanted, settings, switched } = *conclusion;
        let mut notes = Vec::new();
        let features = maps.active_features();
        for &slot in kept {
            if let Err((name, error)) = self.specialise(maps, slot, features) {
                notes.push(format!(
                    "`{name}` keeps a program that can do more than the policy needs: {error}"
                ));
            }
        }
        self.retire(maps, unwanted)?;
        if let Some(other) = other
            && !other.targets.is_empty()
        {
            // A program that still judges by the other policy may yet steer.
            sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
            targets::clear(maps, &other.targets, &manifest.targets)?;
        }
        targets::watch(maps, manifest.targets.iter())?;
        let back = maps.repairs.undo(links, |setting| settings.contains(setting))?;
        let switched = switched.iter().filter(|setting| settings.contains(setting)).cloned();
        notes.extend(describe_switched(&switched.collect::<Vec<_>>(), &back));
        let detached = unwanted
            .iter()
            .filter(|pinned| pinned.ifindex != 0)
            .map(|pinned| pinned.record.name())
            .collect();
        let removed = match other {
            Some(other) => self.removed(maps, other, manifest)?,
            None => Vec::new(),
        };
        Ok(Concluded { detached, removed, notes })
    }

    /// Replaces a program that has more features than the policy in force needs. Says what the interface is
    /// called if that fails.
    fn specialise(&self, maps: &Maps, slot: u32, features: u32) -> Result<(), (String, Error)> {
        let mut record = Slot::read(maps.interfaces.as_fd(), slot)
            .map_err(|error| (format!("slot {slot}"), error))?;
        if record.features == features {
            return Ok(());
        }
        let mut replace = || {
            let program = object::load(slot, maps, features)?;
            let replacing = || Error::io(format!("replacing the program on `{}`", record.name()));
            let link = self.pins().get(&link_pin(slot)).map_err(replacing())?;
            sys::link_update(link.as_fd(), program.as_fd()).map_err(replacing())?;
            (record.features, record.pages) = (features, maps.pages);
            record.write(maps.interfaces.as_fd(), slot)
        };
        replace().map_err(|error| (record.name(), error))
    }

    /// Takes back what a policy that is not put in force has changed of what is.
    fn undo(&self, begun: Begun, links: &[Link]) -> Result<(), Error> {
        Maps::forget_new_tables(self.pins());
        if !begun.is_under_way || self.is_idle() {
            return Ok(());
        }
        let mut maps = Maps::open(self.pins())?;
        maps.repairs.undo(links, |setting| !begun.switched.contains(setting))?;
        let targets = in_force_now(&maps)?.1.targets;
        targets::clear(&maps, &begun.targets, &targets)?;
        // It was never in force, and neither was its number.
        let idle = (maps.active_bank() + 1) % BANKS;
        self.pins().remove(&manifest::pin_name(idle))?;
        let attachments = Attachments::new(&pinned(&maps)?);
        // The queues of CPUs have the lengths back that these targets want.
        targets::refresh(&mut maps, &targets, &attachments, Ask::First)?;
        targets::watch(&maps, targets.iter())
    }

    /// Takes interfaces off whose counts are to stay.
    pub(super) fn retire(&self, maps: &Maps, unwanted: &[&Pinned]) -> Result<(), Error> {
        if unwanted.is_empty() {
            return Ok(());
        }
        for pinned in unwanted {
            force_detach(&pinned.link, pinned.slot)?;
        }
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        for pinned in unwanted {
            // Missing if an agent was killed right here.
            self.retire_counters(maps, pinned.slot)?;
            remove_slot(self.pins(), pinned.slot)?;
        }
        Ok(())
    }

    /// Keeps what a slot has counted whose program runs no more.
    pub(super) fn retire_counters(&self, maps: &Maps, slot: u32) -> Result<(), Error> {
        for counters in maps.counters(slot)? {
            maps.retire(&counters)?;
            self.pins().remove(&counters.pin)?;
        }
        Ok(())
    }

    /// The rules of the other policy that are not in this one, with their last counts.
    fn removed(
        &self,
        maps: &Maps,
        other: &Manifest,
        manifest: &Manifest,
    ) -> Result<Vec<(String, Counter)>, Error> {
        let kept: HashSet<(bool, &str)> =
            manifest.rules.iter().map(|rule| (rule.named, &*rule.label)).collect();
        let is_gone = |rule: &&ManifestRule| !kept.contains(&(rule.named, &*rule.label));
        let gone: Vec<&ManifestRule> = other.rules.iter().filter(is_gone).collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        // A program that still judges by the other policy may yet count.
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        let counted = snapshots(maps, &pinned(maps)?, other.pages())?;
        let mut seen = HashSet::new();
        let mut removed = Vec::new();
        for rule in gone {
            if seen.insert(rule.shares[0].counter) {
                removed.push((rule.label.clone(), rule.count(&counted)));
            }
        }
        Ok(removed)
    }

    /// Removes what a process that was killed between its first map and its first link left.
    pub(super) fn remove_debris(&self, links: &[Link]) -> Result<(), Error> {
        if self.pins().linked_slots()?.is_empty() {
            if let Some(repairs) = Repairs::open(self.pins()) {
                repairs.undo(links, |_| false)?;
            }
            self.pins().clear()?;
        }
        Ok(())
    }
}

/// The slots of interfaces: those that they have, or free ones.
pub(super) fn place_interfaces(wanted: &[Link], pinned: &[Pinned]) -> Result<Vec<u32>, Error> {
    let is_used = |slot: &u32| pinned.iter().any(|pinned| pinned.slot == *slot);
    let mut free = (0..INTERFACE_SLOTS).filter(|slot| !is_used(slot));
    let place = |link: &Link| match pinned.iter().find(|pinned| pinned.ifindex == link.index) {
        Some(pinned) => Ok(pinned.slot),
        None => free.next().ok_or(Error::TooManyInterfaces { count: INTERFACE_SLOTS as usize + 1 }),
    };
    wanted.iter().map(place).collect()
}

/// The mode that an interface will have, as far as can be told before it is attached.
pub(super) fn expected_mode(policy: &Policy, link: &Link, pinned: &[Pinned]) -> AttachedMode {
    let known = pinned.iter().find(|pinned| pinned.ifindex == link.index);
    match known {
        Some(pinned) => pinned.record.mode(),
        None if policy.mode == Mode::Generic => AttachedMode::Generic,
        None => AttachedMode::Native,
    }
}
