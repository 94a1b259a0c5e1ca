//! What is in force and what was counted, read from the pins.

use std::os::fd::OwnedFd;

use portsteer_common::{
    Active, Counter, Reason, Verdict,
    active::Phase,
    counters::{OUTCOME_PAGES, PAGE_COUNTERS, outcome_counter},
};

use super::{
    Error, Instance, InterfaceStats, InterfaceStatus, Manifest, OffloadStatus, PolicyInfo,
    ReasonStats, RuleStats, Stats, Status, TargetStats, TargetStatus, TrialState, attachments,
    check_namespace, in_force, in_force_now, kernel,
    maps::{Maps, Snapshot},
    pinned,
    pins::PinDir,
    snapshots, sys, trials,
};
use crate::netlink;

/// What has become of a trial.
///
/// # Errors
///
/// Nothing is in force, or the kernel does not tell.
pub fn read_trial(instance: &Instance) -> Result<TrialState, Error> {
    let (active, manifest) = in_force(&running(&open(instance)?)?)?;
    trials::state(active, manifest.as_ref())
}

/// The pins of an instance, opened for reading: also where they are reached by no path any more.
#[derive(Debug, Clone)]
pub struct Reader(PinDir);

impl Reader {
    pub(super) const fn new(pins: PinDir) -> Self {
        Self(pins)
    }

    /// What is attached where.
    ///
    /// # Errors
    ///
    /// [`Error::NotAttached`] if nothing is.
    pub fn status(&self) -> Result<Status, Error> {
        status_of(&self.0)
    }

    /// What was counted.
    ///
    /// # Errors
    ///
    /// [`Error::NotAttached`] if nothing is attached.
    pub fn stats(&self) -> Result<Stats, Error> {
        stats_of(&self.0)
    }
}

/// Opens the pins of an instance that has any.
fn open(instance: &Instance) -> Result<PinDir, Error> {
    kernel::check()?;
    PinDir::open(instance)?.ok_or_else(|| Error::NotAttached(instance.name().to_owned()))
}

/// Opens what an instance has in force.
pub(super) fn running(pins: &PinDir) -> Result<Maps, Error> {
    let not_attached = || Error::NotAttached(pins.instance().name().to_owned());
    if pins.linked_slots()?.is_empty() {
        return Err(not_attached());
    }
    let maps = Maps::open(pins)?;
    // A first policy's trial is over, and it was not taken off yet: everything passes, as if nothing were there.
    if in_force(&maps)?.1.is_none() {
        return Err(not_attached());
    }
    Ok(maps)
}

/// How often a reader starts again when a policy is swapped under it.
const READ_ATTEMPTS: usize = 20;

/// The manifest in force and what `read` makes of it, from a moment without a swap.
fn consistently<T>(
    maps: &Maps,
    mut read: impl FnMut(&Manifest) -> Result<T, Error>,
) -> Result<(Active, Manifest, T), Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let (active, manifest) = in_force_now(maps)?;
        let value = read(&manifest)?;
        if maps.active() == active || attempt == READ_ATTEMPTS {
            return Ok((active, manifest, value));
        }
    }
}

/// What is attached where. Needs no agent.
///
/// # Errors
///
/// [`Error::NotAttached`] if nothing is.
pub fn read_status(instance: &Instance) -> Result<Status, Error> {
    status_of(&open(instance)?)
}

fn status_of(pins: &PinDir) -> Result<Status, Error> {
    let instance = pins.instance();
    let maps = running(pins)?;
    let (active, manifest, ()) = consistently(&maps, |_| Ok(()))?;
    let on_trial = active.phase() == Phase::Running;
    let targets = manifest.targets.iter().map(|target| TargetStatus::new(target, &maps)).collect();
    let interfaces = pinned(&maps)?.iter().map(InterfaceStatus::new).collect();
    let offloads = maps.repairs.present()?.iter().map(OffloadStatus::new).collect();
    Ok(Status {
        instance: instance.name().to_owned(),
        policy: PolicyInfo::new(&manifest, on_trial),
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
    stats_of(&open(instance)?)
}

fn stats_of(pins: &PinDir) -> Result<Stats, Error> {
    let instance = pins.instance();
    let maps = running(pins)?;
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    let (active, manifest, (rules, targets, reasons, interfaces)) =
        consistently(&maps, |manifest| {
            let pinned = pinned(&maps)?;
            // Those of another network namespace say nothing.
            let is_here = check_namespace(instance, attachments(&pinned), &links).is_ok();
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
    let on_trial = active.phase() == Phase::Running;
    Ok(Stats {
        instance: instance.name().to_owned(),
        policy: PolicyInfo::new(&manifest, on_trial),
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
    let pins = open(instance)?;
    let maps = running(&pins)?;
    let not_attached = || Error::NotAttached(instance.name().to_owned());
    let pinned = pinned(&maps)?;
    let pinned = pinned.iter().find(|pinned| pinned.slot == slot).ok_or_else(not_attached)?;
    sys::program_by_id(pinned.program_id).map_err(Error::io("opening the attached program"))
}

/// What was counted by verdict and reason, laid out as the first pages are.
fn outcomes(snapshots: &[Snapshot], manifest: &Manifest) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for snapshot in snapshots {
        for (number, page) in snapshot.pages.iter().enumerate() {
            // In the pages of rules, all counters have one verdict.
            let rules = manifest
                .page_verdict(number)
                .map(|verdict| outcome_counter(verdict, Reason::Rule) as usize);
            for (index, counter) in page.counters.iter().enumerate() {
                let own = number * PAGE_COUNTERS + index;
                outcomes.add(rules.unwrap_or(own), *counter);
            }
        }
    }
    outcomes
}

/// What was counted, by verdict and reason.
#[derive(Debug)]
pub(super) struct Outcomes(Vec<Counter>);

impl Default for Outcomes {
    fn default() -> Self {
        Self(vec![Counter::default(); OUTCOME_PAGES * PAGE_COUNTERS])
    }
}

impl Outcomes {
    fn add(&mut self, index: usize, counter: Counter) {
        // A page of rules that the manifest does not know has counted nothing.
        if let Some(sum) = self.0.get_mut(index) {
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        }
    }

    /// All of it.
    pub(super) fn total(&self) -> Counter {
        let mut total = Counter::default();
        for counter in &self.0 {
            total.packets += counter.packets;
            total.bytes += counter.bytes;
        }
        total
    }

    /// What was counted with this verdict for this reason.
    pub(super) fn get(&self, verdict: Verdict, reason: Reason) -> Counter {
        self.0.get(outcome_counter(verdict, reason) as usize).copied().unwrap_or_default()
    }
}
