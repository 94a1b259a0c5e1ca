//! The dataplane in the kernel: load, attach, pin, swap, read, detach. The kernel is the store:
//! everything that is in force is pinned, and this module reads it back from there.
//!
//! [`Dataplane`] is the right to change an instance, [`read_status`] and [`read_stats`] need no
//! agent, and [`detach`] needs nothing but the pins.

use std::{
    collections::HashSet,
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use portsteer_common::{Counter, CounterPage, INTERFACE_SLOTS, Reason, counters::outcome_counter};

use crate::{
    compile::{CompileError, Compiler, Interrupt},
    netlink::{self, Link},
    policy::{Mode, Policy},
};

mod btf;
mod capabilities;
mod error;
mod instance;
mod interfaces;
pub mod kernel;
mod manifest;
mod maps;
mod object;
mod repairs;
mod report;
mod slots;
pub mod sys;
mod targets;

pub use error::Error;
pub use instance::{Instance, Lock};
pub use manifest::{Manifest, ManifestRule, ManifestTarget};
pub use object::DIGEST as OBJECT_DIGEST;
pub use report::{
    InterfaceStats, InterfaceStatus, OffloadStatus, PolicyInfo, ReasonStats, RuleStats, Stats,
    Status, TargetLosses, TargetStats, TargetStatus,
};
pub use slots::AttachedMode;
pub use targets::{TargetChange, TargetState, online_cpus};

use capabilities::{Capabilities, generic_obstacle};
use maps::{Maps, Snapshot};
use repairs::{Repairs, Setting};
use slots::Slot;
use targets::{Ask, Attachments};

/// The exclusive right to change an instance's dataplane, which lives on without it.
#[derive(Debug)]
pub struct Dataplane {
    instance: Instance,
    lock: Lock,
    applied: Mutex<State>,
    /// Has what it made of the last policy, so that an edit of a large set is quick.
    compiler: Mutex<Compiler>,
}

/// What was applied last.
#[derive(Debug, Default)]
struct State {
    targets: Vec<ManifestTarget>,
    /// The names of the interfaces that were attached when that was looked at last.
    attached: Vec<String>,
    /// Kept open: somebody may take the dataplane off from another network namespace.
    repairs: Option<Repairs>,
}

/// What [`Dataplane::apply`] did.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// The interfaces that are attached now, in the order of their slots.
    pub attached: Vec<Attached>,
    /// The interfaces that were taken off.
    pub detached: Vec<String>,
    /// The rules that are gone, with what they had counted.
    pub removed: Vec<(String, Counter)>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// What [`Dataplane::refresh_targets`] found and did.
#[derive(Debug, Clone, Default)]
pub struct Refreshed {
    pub changes: Vec<TargetChange>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// What [`detach`] did.
#[derive(Debug, Clone, Default)]
pub struct Detached {
    /// The interfaces that were taken off.
    pub interfaces: Vec<String>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// An interface that a policy was applied to.
#[derive(Debug, Clone)]
pub struct Attached {
    pub name: String,
    pub mode: AttachedMode,
    pub change: Change,
    /// Why native mode could not be had, where `mode = "auto"` asked for it first.
    pub native_refused: Option<String>,
}

/// What happened to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was attached.
    New,
    /// It was attached already, with this program.
    Kept,
    /// It was attached already, and its program was replaced by this portsteer's.
    Upgraded,
}

/// An interface that an instance's pins say is attached.
struct Pinned {
    slot: u32,
    link: OwnedFd,
    record: Slot,
    /// 0 if the interface or the attachment is gone.
    ifindex: u32,
    program_id: u32,
}

impl Dataplane {
    /// Takes the right to change an instance.
    ///
    /// # Errors
    ///
    /// The kernel lacks what is needed, or another agent has the instance.
    pub fn lock(instance: Instance) -> Result<Self, Error> {
        kernel::check()?;
        let lock = instance.lock()?;
        Ok(Self { instance, lock, applied: Mutex::default(), compiler: Mutex::default() })
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Puts a policy in force on its interfaces and takes all others off. `path` and `text` are
    /// the policy file, for the listings. Setting `interrupt` from another thread takes effect
    /// while the policy is compiled: then it is an error, and soon.
    ///
    /// # Errors
    ///
    /// What was in force before stays in force, on the same interfaces.
    pub fn apply(
        &self,
        policy: &Policy,
        path: &str,
        text: &str,
        interrupt: &Interrupt,
    ) -> Result<Applied, Error> {
        if interrupt.is_set() {
            return Err(CompileError::Interrupted.into());
        }
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let wanted = interfaces::select(&policy.interfaces, &links, &policy.targets)?;
        let mut notes = targets::check(&self.instance, policy, &wanted, &links)?;
        self.remove_debris(&links)?;
        let mut begun = Begun::default();
        match self.apply_to(policy, (path, text), &wanted, &links, &mut begun, interrupt) {
            Ok(applied) => {
                notes.extend(applied.notes);
                Ok(Applied { notes, ..applied })
            }
            Err(error) => {
                // Whatever was begun on an instance with no interface is debris now.
                self.remove_debris(&links)?;
                // What fails now is left to the error that is already on its way.
                let _ = self.undo(begun, &links);
                Err(error)
            }
        }
    }

    fn apply_to(
        &self,
        policy: &Policy,
        source: (&str, &str),
        wanted: &[Link],
        links: &[Link],
        begun: &mut Begun,
        interrupt: &Interrupt,
    ) -> Result<Applied, Error> {
        let running = !self.instance.linked_slots()?.is_empty();
        if !running {
            Maps::create(&self.instance, maps::pages_for(policy.rules.len()))?;
        }
        let mut maps = Maps::open(&self.instance)?;
        let bank = maps.active_bank();
        let previous = if running { Some(read_manifest(&self.instance, bank)?) } else { None };
        let pinned = pinned(&self.instance, &maps)?;
        check_namespace(&self.instance, &pinned, links)?;
        begun.is_under_way = true;

        // From here on no program reads the idle bank, nor counts for a rule that only it knew.
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        let counted = if running { snapshots(&maps, &pinned, maps.pages)? } else { Vec::new() };
        let placed = manifest::place_targets(policy, previous.as_ref(), links, |slot, kind| {
            targets::losses(&maps, slot, kind)
        })?;
        let mut manifest = Manifest::describe(
            &self.instance,
            policy,
            source,
            previous.as_ref(),
            placed,
            |counter| total(&counted, counter),
        )?;
        if !manifest.targets.is_empty() {
            // Those of the policy before are still in use.
            let before = previous.iter().flat_map(|previous| &previous.targets);
            targets::watch(&self.instance, &maps, before.chain(&manifest.targets))?;
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
        let features_until_then = features | before;
        manifest.write(&self.instance, idle)?;
        if !running {
            // Before the first interface is attached: no packet meets the empty bank, and an agent
            // that is killed between two interfaces leaves a policy that is whole.
            maps.settle_tables()?;
            maps.set_active_bank(idle);
        }

        let mut work =
            Attaching::new(self, &maps, &capabilities, features_until_then, manifest.pages());
        let result = work.attach_all(policy, wanted, &placed, &pinned).and_then(|attached| {
            let modes: Vec<(&Link, AttachedMode)> =
                wanted.iter().zip(&attached).map(|(link, done)| (link, done.mode)).collect();
            let settings = repairs::wanted(policy, &modes, links);
            notes.extend(maps.repairs.make(&settings, links, &mut begun.switched)?);
            Ok((attached, settings))
        });
        let (attached, settings) = match result {
            Ok(done) => done,
            Err(error) => {
                work.undo();
                return Err(error);
            }
        };
        // Before the flip: from then on only these have the policy that is in force.
        maps.settle_tables()?;
        maps.set_active_bank(idle);
        for (link, &slot) in wanted.iter().zip(&placed) {
            if let Err(error) = self.specialise(&maps, slot, features) {
                notes.push(format!(
                    "`{}` keeps a program that can do more than the policy needs: {error}",
                    link.name
                ));
            }
        }

        let unwanted: Vec<&Pinned> = pinned
            .iter()
            .filter(|pinned| !wanted.iter().any(|link| link.index == pinned.ifindex))
            .collect();
        self.retire(&maps, &unwanted)?;
        if let Some(previous) = &previous
            && !previous.targets.is_empty()
        {
            // A program that still judges by the policy before may yet steer.
            sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
            targets::clear(&maps, &previous.targets, &manifest.targets)?;
        }
        targets::watch(&self.instance, &maps, manifest.targets.iter())?;
        let back = maps.repairs.undo(links, |setting| settings.contains(setting))?;
        let switched = begun.switched.iter().filter(|setting| settings.contains(setting)).cloned();
        notes.extend(describe_switched(&switched.collect::<Vec<_>>(), &back));
        let detached = unwanted
            .iter()
            .filter(|pinned| pinned.ifindex != 0)
            .map(|pinned| pinned.record.name())
            .collect();
        let removed = match previous {
            Some(previous) => self.removed(&maps, &previous, &manifest)?,
            None => Vec::new(),
        };
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
        *self.applied() = State {
            targets: manifest.targets,
            attached: attached.iter().map(|attached| attached.name.clone()).collect(),
            repairs: Some(maps.repairs),
        };
        Ok(Applied { attached, detached, removed, notes })
    }

    /// Replaces a program that has more features than the policy in force needs.
    fn specialise(&self, maps: &Maps, slot: u32, features: u32) -> Result<(), Error> {
        let mut record = Slot::read(maps.interfaces.as_fd(), slot)?;
        if record.features == features {
            return Ok(());
        }
        let program = object::load(&self.instance, slot, maps, features)?;
        let replacing = || Error::io(format!("replacing the program on `{}`", record.name()));
        let link = sys::open_pin(&self.instance.link_pin(slot)).map_err(replacing())?;
        sys::link_update(link.as_fd(), program.as_fd()).map_err(replacing())?;
        (record.features, record.pages) = (features, maps.pages);
        record.write(maps.interfaces.as_fd(), slot)
    }

    /// Takes back what a policy that is not put in force has changed of what is.
    fn undo(&self, begun: Begun, links: &[Link]) -> Result<(), Error> {
        Maps::forget_new_tables(&self.instance);
        if !begun.is_under_way || self.is_idle() {
            return Ok(());
        }
        let mut maps = Maps::open(&self.instance)?;
        maps.repairs.undo(links, |setting| !begun.switched.contains(setting))?;
        let targets = read_manifest(&self.instance, maps.active_bank())?.targets;
        targets::clear(&maps, &begun.targets, &targets)?;
        let attachments = Attachments::new(&pinned(&self.instance, &maps)?);
        // The queues of CPUs have the lengths back that these targets want.
        targets::refresh(&mut maps, &targets, &attachments, Ask::First)?;
        targets::watch(&self.instance, &maps, targets.iter())
    }

    /// Takes interfaces off whose counts are to stay.
    fn retire(&self, maps: &Maps, unwanted: &[&Pinned]) -> Result<(), Error> {
        if unwanted.is_empty() {
            return Ok(());
        }
        for pinned in unwanted {
            force_detach(&pinned.link, pinned.slot)?;
        }
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        for pinned in unwanted {
            // Missing if an agent was killed right here.
            for counters in maps.counters(pinned.slot)? {
                maps.retire(&counters)?;
                let pin = self.instance.counters_pin(pinned.slot, counters.pages);
                remove_pin(&self.instance, &pin)?;
            }
            remove_slot(&self.instance, pinned.slot)?;
        }
        Ok(())
    }

    /// The rules of the policy before that are not in this one, with their last counts.
    fn removed(
        &self,
        maps: &Maps,
        previous: &Manifest,
        manifest: &Manifest,
    ) -> Result<Vec<(String, Counter)>, Error> {
        let kept: HashSet<(bool, &str)> =
            manifest.rules.iter().map(|rule| (rule.named, &*rule.label)).collect();
        let is_gone = |rule: &&ManifestRule| !kept.contains(&(rule.named, &*rule.label));
        let gone: Vec<&ManifestRule> = previous.rules.iter().filter(is_gone).collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        // A program that still judges by the policy before may yet count.
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        let counted = snapshots(maps, &pinned(&self.instance, maps)?, previous.pages())?;
        let mut seen = HashSet::new();
        let mut removed = Vec::new();
        for rule in gone {
            if seen.insert(rule.shares[0].counter) {
                removed.push((rule.label.clone(), rule.count(&counted)));
            }
        }
        Ok(removed)
    }

    /// Takes the dataplane off all interfaces.
    ///
    /// # Errors
    ///
    /// [`Error::NotAttached`] if there is none.
    pub fn detach(&self) -> Result<Detached, Error> {
        detach(&self.instance)
    }

    fn applied(&self) -> MutexGuard<'_, State> {
        // It is replaced whole, so whoever panicked left it whole.
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compiler(&self) -> MutexGuard<'_, Compiler> {
        // It knows nothing while it compiles, so whoever panicked left it with nothing.
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut maps = running(&self.instance)?;
        let attachments = Attachments::new(&pinned(&self.instance, &maps)?);
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

    /// The interfaces that have gone since this was asked last.
    ///
    /// # Errors
    ///
    /// The kernel does not tell, or nothing is in force.
    pub fn gone_interfaces(&self) -> Result<Vec<String>, Error> {
        let mut applied = self.applied();
        let maps = running(&self.instance)?;
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let is_here = |pinned: &&Pinned| {
            check_namespace(&self.instance, std::slice::from_ref(*pinned), &links).is_ok()
                && pinned.ifindex != 0
        };
        let pinned = pinned(&self.instance, &maps)?;
        let present: Vec<String> =
            pinned.iter().filter(is_here).map(|pinned| pinned.record.name()).collect();
        let before = std::mem::replace(&mut applied.attached, present);
        Ok(before.into_iter().filter(|name| !applied.attached.contains(name)).collect())
    }

    /// Switches offloads back that whoever has taken the dataplane off could not reach. Returns in
    /// words what was.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn switch_back(&self) -> Result<Vec<String>, Error> {
        let Some(repairs) = self.applied().repairs.take() else { return Ok(Vec::new()) };
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        Ok(describe_switched(&[], &repairs.undo(&links, |_| false)?))
    }

    /// Whether somebody has taken the dataplane off behind this value's back.
    #[must_use]
    pub fn was_detached(&self) -> bool {
        !self.lock.holds() || self.is_idle()
    }

    /// Whether no interface is attached.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.instance.linked_slots().is_ok_and(|slots| slots.is_empty())
    }

    /// Gives an instance with no interface back without a trace.
    pub fn abandon(self) {
        // An empty directory does no harm, so nothing is said if it stays.
        let _ = self.instance.remove_directory();
    }

    /// Removes what a process that was killed between its first map and its first link left.
    fn remove_debris(&self, links: &[Link]) -> Result<(), Error> {
        if self.instance.linked_slots()?.is_empty() {
            if let Some(repairs) = Repairs::open(&self.instance) {
                repairs.undo(links, |_| false)?;
            }
            for name in self.instance.pins()? {
                remove_pin(&self.instance, &self.instance.pin(&name))?;
            }
        }
        Ok(())
    }
}

/// What a policy that is being put in force has changed already besides the attachments.
#[derive(Debug, Default)]
struct Begun {
    /// Whether anything may have been changed.
    is_under_way: bool,
    targets: Vec<ManifestTarget>,
    switched: Vec<Setting>,
}

/// The slots of interfaces: those that they have, or free ones.
fn place_interfaces(wanted: &[Link], pinned: &[Pinned]) -> Result<Vec<u32>, Error> {
    let is_used = |slot: &u32| pinned.iter().any(|pinned| pinned.slot == *slot);
    let mut free = (0..INTERFACE_SLOTS).filter(|slot| !is_used(slot));
    let place = |link: &Link| match pinned.iter().find(|pinned| pinned.ifindex == link.index) {
        Some(pinned) => Ok(pinned.slot),
        None => free.next().ok_or(Error::TooManyInterfaces { count: INTERFACE_SLOTS as usize + 1 }),
    };
    wanted.iter().map(place).collect()
}

/// The mode that an interface will have, as far as can be told before it is attached.
fn expected_mode(policy: &Policy, link: &Link, pinned: &[Pinned]) -> AttachedMode {
    let known = pinned.iter().find(|pinned| pinned.ifindex == link.index);
    match known {
        Some(pinned) => pinned.record.mode(),
        None if policy.mode == Mode::Generic => AttachedMode::Generic,
        None => AttachedMode::Native,
    }
}

/// Offloads that were switched, and that were switched back, in words.
fn describe_switched(switched: &[Setting], back: &[Setting]) -> Vec<String> {
    let mut notes = Vec::new();
    if !switched.is_empty() {
        let text = repairs::describe(switched);
        notes.push(format!("switched for the policy, and back when it ends: {text}"));
    }
    if !back.is_empty() {
        notes.push(format!("switched back: {}", repairs::describe(back)));
    }
    notes
}

fn read_manifest(instance: &Instance, bank: usize) -> Result<Manifest, Error> {
    Manifest::read(instance, bank).map_err(|detail| Error::OtherLayout {
        instance: instance.name().to_owned(),
        directory: instance.directory(),
        detail,
    })
}

fn pinned(instance: &Instance, maps: &Maps) -> Result<Vec<Pinned>, Error> {
    let mut pinned = Vec::new();
    for slot in instance.linked_slots()? {
        let path = instance.link_pin(slot);
        let opening = || Error::io(format!("opening {}", path.display()));
        let link = match sys::open_pin(&path) {
            // Detached a moment ago.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            result => result.map_err(opening())?,
        };
        let info = sys::xdp_link_info(link.as_fd()).map_err(opening())?;
        let record = Slot::read(maps.interfaces.as_fd(), slot)?;
        let (ifindex, program_id) = (info.ifindex, info.program_id);
        pinned.push(Pinned { slot, link, record, ifindex, program_id });
    }
    Ok(pinned)
}

/// Interface indices mean something only in their own network namespace: each link must show up
/// on the interface of this one that has its index.
fn check_namespace(instance: &Instance, pinned: &[Pinned], links: &[Link]) -> Result<(), Error> {
    let strange = |pinned: &&Pinned| {
        let here = links.iter().any(|link| {
            link.index == pinned.ifindex
                && link.xdp.is_some_and(|xdp| xdp.program_id == Some(pinned.program_id))
        });
        pinned.ifindex != 0 && !here
    };
    match pinned.iter().find(strange) {
        Some(_) => Err(Error::OtherNamespace { instance: instance.name().to_owned() }),
        None => Ok(()),
    }
}

/// What all interfaces have counted in the first `pages` pages: first those that are no longer
/// attached, then the others in the order of `pinned`. A slot that is just being given up may have
/// no counters any more.
fn snapshots(maps: &Maps, pinned: &[Pinned], pages: u32) -> Result<Vec<Snapshot>, Error> {
    let mut snapshots = vec![maps.retired()?.read(pages)?];
    for pinned in pinned {
        let counters = maps.counters(pinned.slot)?;
        if counters.is_empty() && pinned.ifindex != 0 {
            return Err(maps.missing_counters(pinned.slot));
        }
        let mut sum = Snapshot::default();
        for counters in counters {
            sum.add(counters.read(pages)?);
        }
        snapshots.push(sum);
    }
    Ok(snapshots)
}

fn total(snapshots: &[Snapshot], counter: u32) -> Counter {
    let mut total = Counter::default();
    for snapshot in snapshots {
        let counter = snapshot.get(counter);
        total.packets = total.packets.wrapping_add(counter.packets);
        total.bytes = total.bytes.wrapping_add(counter.bytes);
    }
    total
}

impl ManifestRule {
    /// What the rule has counted since it came into being.
    fn count(&self, snapshots: &[Snapshot]) -> Counter {
        let mut count = Counter::default();
        for share in &self.shares {
            let total = total(snapshots, share.counter);
            count.packets += total.packets.wrapping_sub(share.base_packets);
            count.bytes += total.bytes.wrapping_sub(share.base_bytes);
        }
        count
    }
}

/// What was counted by verdict and reason, laid out as page 0 is.
fn outcomes(snapshots: &[Snapshot], manifest: &Manifest) -> Box<CounterPage> {
    let mut outcomes: Box<CounterPage> = bytemuck::zeroed_box();
    for snapshot in snapshots {
        for (number, page) in snapshot.pages.iter().enumerate() {
            // In the pages of rules, all counters have one verdict.
            let rules = manifest
                .page_verdict(number)
                .map(|verdict| outcome_counter(verdict, Reason::Rule) as usize);
            for (index, counter) in page.counters.iter().enumerate() {
                let sum = &mut outcomes.counters[rules.unwrap_or(index)];
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            }
        }
    }
    outcomes
}

/// Interfaces being attached, and what it takes to undo that.
struct Attaching<'a> {
    dataplane: &'a Dataplane,
    maps: &'a Maps,
    new_slots: Vec<u32>,
    /// Links whose program was replaced, with their slot's record and program before.
    replaced: Vec<(OwnedFd, u32, Slot, OwnedFd)>,
    capabilities: &'a Capabilities,
    /// What the programs have to be able to do.
    features: u32,
    /// How many pages of counters they need.
    pages: u32,
}

impl<'a> Attaching<'a> {
    fn new(
        dataplane: &'a Dataplane,
        maps: &'a Maps,
        capabilities: &'a Capabilities,
        features: u32,
        pages: u32,
    ) -> Self {
        let (new_slots, replaced) = (Vec::new(), Vec::new());
        Self { dataplane, maps, new_slots, replaced, capabilities, features, pages }
    }

    fn attach_all(
        &mut self,
        policy: &Policy,
        wanted: &[Link],
        placed: &[u32],
        pinned: &[Pinned],
    ) -> Result<Vec<Attached>, Error> {
        let mut attached = Vec::new();
        for (link, &slot) in wanted.iter().zip(placed) {
            let done = match pinned.iter().find(|pinned| pinned.ifindex == link.index) {
                Some(pinned) => self.keep(policy.mode, link, pinned)?,
                None => match (policy.mode, self.capabilities.native_obstacle(link)) {
                    (Mode::Auto, Some(why)) => Attached {
                        native_refused: Some(why.to_string()),
                        ..self.attach(Mode::Generic, link, slot)?
                    },
                    (mode, _) => self.attach(mode, link, slot)?,
                },
            };
            let obstacle = match done.mode {
                AttachedMode::Native => self.capabilities.native_obstacle(link),
                AttachedMode::Generic => generic_obstacle(policy, &link.name)?,
            };
            if let Some(obstacle) = obstacle {
                return Err(obstacle);
            }
            attached.push(done);
        }
        Ok(attached)
    }

    /// An interface that is attached already: at most its program is replaced.
    fn keep(&mut self, mode: Mode, link: &Link, pinned: &Pinned) -> Result<Attached, Error> {
        let obtained = pinned.record.mode();
        let fits = match mode {
            Mode::Auto => true,
            Mode::Native => obtained == AttachedMode::Native,
            Mode::Generic => obtained == AttachedMode::Generic,
        };
        if !fits {
            return Err(Error::ModeChange {
                name: link.name.clone(),
                obtained: obtained.name(),
                wanted: mode.name(),
            });
        }
        let (digest, tables) = (object::digest(), self.maps.tables_id()?);
        let mut record = Slot::new(link.index, &link.name, obtained);
        let before = pinned.record;
        (record.object, record.features, record.tables, record.pages) =
            (before.object, before.features, before.tables, before.pages);
        let upgrade = before.object != digest;
        let lacks = self.features & !before.features != 0
            || before.tables != tables
            || before.pages < self.pages;
        if upgrade || lacks {
            let replacing = || Error::io(format!("replacing the program on `{}`", link.name));
            let program_before = sys::program_by_id(pinned.program_id).map_err(replacing())?;
            let program = self.load(pinned.slot)?;
            let handle = pinned.link.try_clone().map_err(replacing())?;
            sys::link_update(handle.as_fd(), program.as_fd()).map_err(replacing())?;
            self.replaced.push((handle, pinned.slot, before, program_before));
            (record.object, record.features) = (digest, self.features);
            (record.tables, record.pages) = (tables, self.maps.pages);
        }
        // Written even if nothing but the interface's name has changed.
        record.write(self.maps.interfaces.as_fd(), pinned.slot)?;
        let change = if upgrade { Change::Upgraded } else { Change::Kept };
        Ok(Attached { name: link.name.clone(), mode: obtained, change, native_refused: None })
    }

    fn load(&self, slot: u32) -> Result<OwnedFd, Error> {
        object::load(&self.dataplane.instance, slot, self.maps, self.features)
    }

    fn attach(&mut self, mode: Mode, link: &Link, slot: u32) -> Result<Attached, Error> {
        if let Some(xdp) = link.xdp {
            let (name, program_id) = (link.name.clone(), xdp.program_id);
            let instance = program_id.and_then(instance_of);
            return Err(Error::InterfaceBusy { name, program_id, instance });
        }
        let instance = &self.dataplane.instance;
        // What an agent left that was killed before it came to the link.
        remove_counters(instance, slot)?;
        let program = self.load(slot)?;
        self.new_slots.push(slot);
        let (handle, obtained, native_refused) = interfaces::attach(&program, link, mode)?;

        // From here on the interface is attached until the handle is closed: pinning it is what
        // makes it stay.
        let mut record = Slot::new(link.index, &link.name, obtained);
        (record.object, record.features) = (object::digest(), self.features);
        (record.tables, record.pages) = (self.maps.tables_id()?, self.maps.pages);
        record.write(self.maps.interfaces.as_fd(), slot)?;
        sys::pin(handle.as_fd(), &instance.link_pin(slot))
            .map_err(Error::io(format!("pinning the link of `{}`", link.name)))?;
        let name = link.name.clone();
        Ok(Attached { name, mode: obtained, change: Change::New, native_refused })
    }

    /// Takes everything back. What fails now is left to the error that is already on its way.
    fn undo(self) {
        for slot in self.new_slots {
            let _ = detach_slot(&self.dataplane.instance, slot);
        }
        for (link, slot, record, before) in self.replaced {
            let _ = sys::link_update(link.as_fd(), before.as_fd());
            let _ = record.write(self.maps.interfaces.as_fd(), slot);
        }
    }
}

/// The instance that has pinned a link with this program.
fn instance_of(program_id: u32) -> Option<String> {
    let found = Instance::all().into_iter().find(|instance| {
        let holds = |slot: &u32| {
            let info = sys::open_pin(&instance.link_pin(*slot))
                .and_then(|link| sys::xdp_link_info(link.as_fd()));
            info.is_ok_and(|info| info.program_id == program_id)
        };
        instance.linked_slots().is_ok_and(|slots| slots.iter().any(holds))
    });
    found.map(|instance| instance.name().to_owned())
}

/// Takes an instance's dataplane off all interfaces, switches offloads back and removes the pins,
/// whatever their layout and whether or not an agent runs.
///
/// # Errors
///
/// [`Error::NotAttached`] if there are no pins.
pub fn detach(instance: &Instance) -> Result<Detached, Error> {
    kernel::check()?;
    if !instance.exists()? {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    let slots = instance.linked_slots()?;
    let interfaces = sys::open_pin(&instance.pin("interfaces")).ok();
    let name = |slot: u32| {
        let map = interfaces.as_ref()?;
        let name = Slot::read(map.as_fd(), slot).ok()?.name();
        (!name.is_empty()).then_some(name)
    };
    let mut detached = Detached::default();
    for slot in slots {
        detached.interfaces.push(name(slot).unwrap_or_else(|| format!("(slot {slot})")));
        detach_slot(instance, slot)?;
    }
    if let Some(repairs) = Repairs::open(instance) {
        detached.notes = describe_switched(&[], &repairs.undo(&links, |_| false)?);
        let elsewhere = repairs.present()?;
        if !elsewhere.is_empty() {
            detached.notes.push(format!(
                "still switched, in another network namespace: {}",
                repairs::describe(&elsewhere)
            ));
        }
    }
    for name in instance.pins()? {
        remove_pin(instance, &instance.pin(&name))?;
    }
    instance.remove_directory()?;
    if detached.interfaces.is_empty() {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    Ok(detached)
}

/// Takes one interface off and forgets what it has counted.
fn detach_slot(instance: &Instance, slot: u32) -> Result<(), Error> {
    let path = instance.link_pin(slot);
    match sys::open_pin(&path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(Error::io(format!("opening {}", path.display()))(error)),
        // No link at all: not ours, but in our way.
        Ok(link) if sys::xdp_link_info(link.as_fd()).is_err() => {}
        Ok(link) => force_detach(&link, slot)?,
    }
    remove_slot(instance, slot)
}

/// Detaches a link for good: somebody else may hold it, and removing a pin would take effect only
/// a moment later.
fn force_detach(link: &OwnedFd, slot: u32) -> Result<(), Error> {
    sys::link_detach(link.as_fd()).map_err(Error::io(format!("detaching slot {slot}")))
}

/// Removes a slot's pins, that of the link last: as long as it is there, the slot is taken.
fn remove_slot(instance: &Instance, slot: u32) -> Result<(), Error> {
    remove_counters(instance, slot)?;
    remove_pin(instance, &instance.link_pin(slot))
}

/// Removes the pins of a slot's counters.
fn remove_counters(instance: &Instance, slot: u32) -> Result<(), Error> {
    maps::sizes().try_for_each(|pages| remove_pin(instance, &instance.counters_pin(slot, pages)))
}

/// Removes a pin, or whatever else somebody has put in its place.
fn remove_pin(instance: &Instance, path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let name = instance.name();
            Err(Error::io(format!("removing {} of instance {name}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Opens what an instance has in force.
fn running(instance: &Instance) -> Result<Maps, Error> {
    kernel::check()?;
    if !instance.exists()? || instance.linked_slots()?.is_empty() {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    Maps::open(instance)
}

/// How often a reader starts again when a policy is swapped under it.
const READ_ATTEMPTS: usize = 20;

/// The manifest in force and what `read` makes of it, from a moment without a swap.
fn consistently<T>(
    instance: &Instance,
    maps: &Maps,
    mut read: impl FnMut(&Manifest) -> Result<T, Error>,
) -> Result<(Manifest, T), Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let bank = maps.active_bank();
        let manifest = read_manifest(instance, bank)?;
        let value = read(&manifest)?;
        let bank = maps.active_bank();
        let unchanged = read_manifest(instance, bank)?.generation == manifest.generation;
        if unchanged || attempt == READ_ATTEMPTS {
            return Ok((manifest, value));
        }
    }
}

/// What is attached where. Needs no agent.
///
/// # Errors
///
/// [`Error::NotAttached`] if nothing is.
pub fn read_status(instance: &Instance) -> Result<Status, Error> {
    let maps = running(instance)?;
    let (manifest, ()) = consistently(instance, &maps, |_| Ok(()))?;
    let targets = manifest.targets.iter().map(|target| TargetStatus::new(target, &maps)).collect();
    let interfaces = pinned(instance, &maps)?.iter().map(InterfaceStatus::new).collect();
    let offloads = maps.repairs.present()?.iter().map(OffloadStatus::new).collect();
    Ok(Status {
        instance: instance.name().to_owned(),
        policy: PolicyInfo::new(&manifest),
        interfaces,
        targets,
        offloads,
    })
}

/// What was counted. Needs no agent.
///
/// # Errors
///
/// [`Error::NotAttached`] if nothing is attached.
pub fn read_stats(instance: &Instance) -> Result<Stats, Error> {
    let maps = running(instance)?;
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    let (manifest, (rules, targets, reasons, interfaces)) =
        consistently(instance, &maps, |manifest| {
            let pinned = pinned(instance, &maps)?;
            // Those of another network namespace say nothing.
            let is_here = check_namespace(instance, &pinned, &links).is_ok();
            let links = if is_here { &links[..] } else { &[] };
            // Everything is told from the same snapshots, so that it adds up.
            let counted = snapshots(&maps, &pinned, manifest.pages())?;
            let rules: Vec<RuleStats> = manifest
                .rules
                .iter()
                .map(|rule| RuleStats::new(rule, rule.count(&counted)))
                .collect();
            let reasons = ReasonStats::all(&outcomes(&counted, manifest));
            let interfaces: Vec<InterfaceStats> = pinned
                .iter()
                .zip(counted[1..].chunks(1))
                .map(|(pinned, counted)| InterfaceStats::new(pinned, &outcomes(counted, manifest)))
                .collect();
            let targets = manifest
                .targets
                .iter()
                .map(|target| TargetStats::new(target, manifest, &counted, &maps, links))
                .collect::<Result<Vec<_>, Error>>()?;
            Ok((rules, targets, reasons, interfaces))
        })?;
    Ok(Stats {
        instance: instance.name().to_owned(),
        policy: PolicyInfo::new(&manifest),
        rules,
        targets,
        reasons,
        interfaces,
    })
}

/// The program that is attached to an interface slot, for test runs.
///
/// # Errors
///
/// Nothing is attached there.
pub fn program_in_slot(instance: &Instance, slot: u32) -> Result<OwnedFd, Error> {
    let maps = running(instance)?;
    let not_attached = || Error::NotAttached(instance.name().to_owned());
    let pinned = pinned(instance, &maps)?;
    let pinned = pinned.iter().find(|pinned| pinned.slot == slot).ok_or_else(not_attached)?;
    sys::program_by_id(pinned.program_id).map_err(Error::io("opening the attached program"))
}
