//! The dataplane in the kernel: load, attach, pin, swap, read, detach. The kernel is the store:
//! everything that is in force is pinned, and this module reads it back from there.
//!
//! [`Dataplane`] is the right to change an instance, [`read_status`] and [`read_stats`] need no
//! agent, and [`detach`] needs nothing but the pins.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use portsteer_common::{Active, Counter, active::Phase};

use crate::{
    compile::Compiler,
    netlink::{self, Link},
    policy::Policy,
};

mod applying;
mod attaching;
mod btf;
mod capabilities;
mod carrying;
mod detaching;
mod error;
mod following;
mod guarding;
mod instance;
mod interfaces;
pub mod kernel;
mod manifest;
mod maps;
mod object;
mod pins;
mod reading;
mod repairs;
mod report;
mod slots;
pub mod sys;
mod targets;
mod trials;

pub use applying::{Applied, Concluded, Interfaces, Order};
pub use detaching::{Detached, detach};
pub use error::Error;
pub use following::{InForce, Refreshed, Survey};
pub use guarding::Findings;
pub use instance::{Instance, Lock};
pub use manifest::{Manifest, ManifestRule, ManifestTarget, ManifestTrial};
pub use object::DIGEST as OBJECT_DIGEST;
pub use reading::{Reader, program_in_slot, read_stats, read_status, read_trial};
pub use report::{
    InterfaceStats, InterfaceStatus, OffloadStatus, PolicyInfo, ReasonStats, RuleStats, Stats,
    Status, TargetLosses, TargetStats, TargetStatus,
};
pub use slots::AttachedMode;
pub use targets::{TargetChange, TargetState, online_cpus};
pub use trials::TrialState;

use following::Known;
use guarding::Belief;
use maps::{Maps, Snapshot, link_pin};
use pins::PinDir;
use repairs::{Repairs, Setting};
use slots::Slot;

/// The exclusive right to change an instance's dataplane, which lives on without it.
#[derive(Debug)]
pub struct Dataplane {
    instance: Instance,
    lock: Lock,
    /// Whether its pins were of the layout before.
    was_carried_over: bool,
    /// Whether a `detach` had begun here that was killed, and has been ended.
    has_finished_a_detach: bool,
    applied: Mutex<State>,
    /// Has what it made of the last policy, so that an edit of a large set is quick.
    compiler: Mutex<Compiler>,
}

/// What was applied last.
#[derive(Debug, Default)]
struct State {
    targets: Vec<ManifestTarget>,
    /// The interfaces that were attached when that was looked at last.
    attached: Vec<Known>,
    /// Kept open: somebody may take the dataplane off from another network namespace.
    repairs: Option<Repairs>,
    /// What the kernel was left with.
    belief: Option<Belief>,
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
        let mut lock = instance.lock()?;
        lock.pins().refuse_other_user()?;
        let has_finished_a_detach = detaching::finish(lock.pins())?.is_some();
        let carried = carrying::carry_over(lock.pins())?;
        let was_carried_over = carried.is_some();
        if let Some(pins) = carried {
            lock = Lock::of(pins);
        }
        Ok(Self {
            instance,
            lock,
            was_carried_over,
            has_finished_a_detach,
            applied: Mutex::default(),
            compiler: Mutex::default(),
        })
    }

    /// Whether what is in force was carried over from the layout of the version before.
    #[must_use]
    pub fn was_carried_over(&self) -> bool {
        self.was_carried_over
    }

    /// Whether a `detach` had begun that was killed, and was ended when the lock was taken.
    #[must_use]
    pub fn has_finished_a_detach(&self) -> bool {
        self.has_finished_a_detach
    }

    /// Whether a `detach` is at work here, or was killed at it: it has left its mark, and not removed the directory yet.
    #[must_use]
    pub fn is_being_detached(&self) -> bool {
        self.pins().is_marked_detached()
    }

    /// Ends a `detach` that was killed and has left its mark. Returns the interfaces that were attached still.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn finish_detach(&self) -> Result<Vec<String>, Error> {
        Ok(detaching::finish(self.pins())?.unwrap_or_default())
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    fn pins(&self) -> &PinDir {
        self.lock.pins()
    }

    /// Takes the dataplane off all interfaces.
    ///
    /// # Errors
    ///
    /// [`Error::NotAttached`] if there is none.
    pub fn detach(&self) -> Result<Detached, Error> {
        detaching::take_off(self.pins())
    }

    /// The pins, for those who only look.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(self.pins().clone())
    }

    /// Whether the pins cannot be seen where they belong, because something was mounted over them. The agent
    /// goes on with those that it has opened.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.lock.holds() && !self.pins().is_in_place()
    }

    fn applied(&self) -> MutexGuard<'_, State> {
        // It is replaced whole, so whoever panicked left it whole.
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compiler(&self) -> MutexGuard<'_, Compiler> {
        // It knows nothing while it compiles, so whoever panicked left it with nothing.
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether this is still the right to change the instance: `detach` ends it.
    #[must_use]
    pub fn holds_lock(&self) -> bool {
        self.lock.holds()
    }

    /// The interfaces that a policy means, of those that there are.
    ///
    /// # Errors
    ///
    /// The kernel does not tell, or one of them carries no Ethernet frames.
    pub fn meant(policy: &Policy) -> Result<Vec<Link>, Error> {
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        match interfaces::select(&policy.interfaces, &links, &policy.targets, true) {
            Ok(selected) => Ok(selected.links),
            Err(Error::NoInterface { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The interfaces that are attached, whatever they are called now.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn attached(&self) -> Result<Vec<Link>, Error> {
        if self.is_idle() {
            return Ok(Vec::new());
        }
        let attached = pinned(&Maps::open(self.pins())?)?;
        let mut links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        links.retain(|link| attached.iter().any(|pinned| pinned.ifindex == link.index));
        Ok(links)
    }

    /// Whether somebody has taken the dataplane off behind this value's back.
    #[must_use]
    pub fn was_detached(&self) -> bool {
        !self.lock.holds()
    }

    /// Whether no interface is attached.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pins().linked_slots().is_ok_and(|slots| slots.is_empty())
    }

    /// Gives an instance with no interface back without a trace.
    pub fn abandon(self) {
        // An empty directory does no harm, so nothing is said if it stays.
        let _ = self.pins().remove_directory();
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

/// Which policy is in force, from one moment: the word, and the manifest that belongs to it. There is no manifest
/// where a first policy's trial has lapsed, and where nothing has come into force yet.
///
/// # Errors
///
/// The manifest is missing or is another policy's.
fn in_force(maps: &Maps) -> Result<(Active, Option<Manifest>), Error> {
    loop {
        let active = maps.active();
        let read = Manifest::read(maps.pins(), active.bank());
        if maps.active() != active {
            // The deadline of a trial, just now.
            continue;
        }
        let may_be_missing = active == Active::NOTHING || active.phase() == Phase::Lapsed;
        return match read {
            Ok(manifest)
                if active.phase() == Phase::Lapsed || active.is_of(manifest.generation) =>
            {
                Ok((active, Some(manifest)))
            }
            Ok(manifest) => Err(Error::other_layout(
                maps.pins(),
                format!(
                    "the map `active` names policy {}, and the manifest is that of policy {}",
                    active.generation(),
                    manifest.generation
                ),
            )),
            Err(_) if may_be_missing && !maps.pins().has(&manifest::pin_name(active.bank()))? => {
                Ok((active, None))
            }
            Err(detail) => Err(Error::other_layout(maps.pins(), detail)),
        };
    }
}

/// The same where a policy must be in force.
fn in_force_now(maps: &Maps) -> Result<(Active, Manifest), Error> {
    let (active, manifest) = in_force(maps)?;
    match manifest {
        Some(manifest) => Ok((active, manifest)),
        None => Err(Error::NotAttached(maps.pins().instance().name().to_owned())),
    }
}

fn pinned(maps: &Maps) -> Result<Vec<Pinned>, Error> {
    let pins = maps.pins();
    let mut pinned = Vec::new();
    for slot in pins.linked_slots()? {
        let name = link_pin(slot);
        let opening = || Error::io(format!("opening `{name}`"));
        let link = match pins.get(&name) {
            // Detached a moment ago.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
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
fn check_namespace(
    instance: &Instance,
    mut attached: impl Iterator<Item = (u32, u32)>,
    links: &[Link],
) -> Result<(), Error> {
    let is_here = |(ifindex, program_id): (u32, u32)| {
        ifindex == 0
            || links.iter().any(|link| {
                link.index == ifindex
                    && link.xdp.is_some_and(|xdp| xdp.program_id == Some(program_id))
            })
    };
    match attached.all(is_here) {
        true => Ok(()),
        false => Err(Error::OtherNamespace { instance: instance.name().to_owned() }),
    }
}

/// The interface and the program of each, as [`check_namespace`] asks for them.
fn attachments(pinned: &[Pinned]) -> impl Iterator<Item = (u32, u32)> {
    pinned.iter().map(|pinned| (pinned.ifindex, pinned.program_id))
}

/// What all interfaces have counted in the first `pages` pages: first those that are no longer
/// attached, then the others in the order of `pinned`. A slot that is just being given up may have
/// no counters any more.
fn snapshots(maps: &Maps, pinned: &[Pinned], pages: u32) -> Result<Vec<Snapshot>, Error> {
    loop {
        let retired = maps.retired()?;
        let mut snapshots = vec![retired.counters.read(pages)?];
        for pinned in pinned {
            let counters = maps.counters(pinned.slot)?;
            if counters.is_empty() && pinned.ifindex != 0 {
                return Err(maps.missing_counters(pinned.slot));
            }
            let mut sum = Snapshot::default();
            for counters in counters {
                // Its pin is about to be removed.
                if retired.newest != Some(counters.id()?) {
                    sum.add(counters.read(pages)?);
                }
            }
            snapshots.push(sum);
        }
        // What was retired meanwhile may be in neither.
        if maps.retired()?.counters.id()? == retired.counters.id()? {
            return Ok(snapshots);
        }
    }
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
