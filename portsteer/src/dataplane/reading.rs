//! What is in force and what was counted, read from the pins.

use std::os::fd::OwnedFd;

use portsteer_common::{CounterPage, Reason, counters::outcome_counter};

use super::{
    Error, Instance, InterfaceStats, InterfaceStatus, Manifest, OffloadStatus, PolicyInfo,
    ReasonStats, RuleStats, Stats, Status, TargetStats, TargetStatus, TrialState, check_namespace,
    kernel,
    maps::{Maps, Snapshot},
    pinned, read_manifest, snapshots, sys, trials,
};
use crate::netlink;

/// What has become of a trial.
///
/// # Errors
///
/// Nothing is in force, or the kernel does not tell.
pub fn read_trial(instance: &Instance) -> Result<TrialState, Error> {
    let maps = running(instance)?;
    let manifest = Manifest::read(instance, maps.active_bank()).ok();
    trials::state(&maps, manifest.as_ref())
}

/// Opens what an instance has in force.
pub(super) fn running(instance: &Instance) -> Result<Maps, Error> {
    kernel::check()?;
    if !instance.exists()? || instance.linked_slots()?.is_empty() {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    let maps = Maps::open(instance)?;
    // A first policy's trial is over, and nobody has taken it off: everything passes, as if nothing were there.
    if trials::state(&maps, None)? == TrialState::Lapsed
        && !instance.manifest_pin(maps.active_bank()).exists()
    {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    Ok(maps)
}

/// Whether the policy in force is on trial.
fn is_on_trial(maps: &Maps, manifest: &Manifest) -> Result<bool, Error> {
    Ok(matches!(trials::state(maps, Some(manifest))?, TrialState::Running { .. }))
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
    let (manifest, on_trial) =
        consistently(instance, &maps, |manifest| is_on_trial(&maps, manifest))?;
    let targets = manifest.targets.iter().map(|target| TargetStatus::new(target, &maps)).collect();
    let interfaces = pinned(instance, &maps)?.iter().map(InterfaceStatus::new).collect();
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
    let maps = running(instance)?;
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    let (manifest, (rules, targets, reasons, interfaces, on_trial)) =
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
            let on_trial = is_on_trial(&maps, manifest)?;
            Ok((rules, targets, reasons, interfaces, on_trial))
        })?;
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
    let maps = running(instance)?;
    let not_attached = || Error::NotAttached(instance.name().to_owned());
    let pinned = pinned(instance, &maps)?;
    let pinned = pinned.iter().find(|pinned| pinned.slot == slot).ok_or_else(not_attached)?;
    sys::program_by_id(pinned.program_id).map_err(Error::io("opening the attached program"))
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
