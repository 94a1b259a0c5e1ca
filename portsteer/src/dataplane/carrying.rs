//! Carrying what is in force over from the layout of the version before: an agent that finds such pins builds the maps
//! of its own layout beside them, replaces the programs on the pinned links, and exchanges the two directories.
//!
//! ```text
//!  portsteer/NAME          layout 8, in force          ──┐
//!  portsteer/NAME+next    maps of layout 9               │  1. built from the others
//!                          the same links, pinned again   │  2. from here on, the next agent goes on where one was killed
//!  programs on the links   judge and count by layout 9    │  3. one after the other; both layouts have the same policies
//!                          what layout 8 has counted      │  4. when no program counts there any more
//!  renameat2(EXCHANGE)                                  ◀─┘  5. the one step that commits
//!  portsteer/NAME+next    layout 8: its pins are removed
//! ```
//!
//! Whenever the agent is killed, one of the two directories is `NAME`, and it is whole: its maps hold the policies in
//! force, and its links are attached. Tables, targets and their losses are the same in both layouts; what differs is
//! where the word is, which counter an outcome has, and how many interfaces there is room for. So nothing has to be
//! compiled, and nothing on disk is needed.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::Duration,
};

use bytemuck::{Pod, Zeroable};
use portsteer_common::{
    Active, CounterPage, Decision, LAYOUT_VERSION, PolicyBanks, Reason, Verdict,
    active::Phase,
    counters::{MAX_PAGES, OUTCOME_PAGES, PAGE_COUNTERS, outcome_counter},
    image::{BANKS, FIRST_BANK, Image},
    node::{SEGMENT_WORDS, Segment, SmallTables},
};

use super::{
    Error, Manifest, check_namespace,
    manifest::ManifestTarget,
    maps::{self, Maps, Snapshot, link_pin},
    object,
    pins::PinDir,
    slots::Slot,
    sys,
    targets::first_on_device,
    trials,
};
use crate::{netlink, policy::TargetKind};

/// The layout that is carried over.
const BEFORE: u32 = 8;
const _: () =
    assert!(BEFORE + 1 == LAYOUT_VERSION, "another layout is carried over in another way");

/// How many reasons an outcome's counter had room for in the layout before.
const REASONS_BEFORE: u32 = 32;

/// The value of the map `policy` in the layout before.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PolicyBefore {
    /// The word of the bank in force.
    active: u32,
    reserved: u32,
    banks: PolicyBanks,
}

/// The value of the map `trial` in the layout before.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TrialBefore {
    timer: [u64; 2],
    nanoseconds: u64,
    /// The word of the bank that comes back.
    back: u32,
    /// 0: none, 1: running, 2: lapsed.
    state: u32,
}

/// The pins of the layout before.
struct Before<'a> {
    pins: &'a PinDir,
    policy: OwnedFd,
    trial: Option<OwnedFd>,
    manifests: [Option<Manifest>; BANKS],
    interfaces: OwnedFd,
    links: Vec<Link>,
}

/// An interface that is attached.
struct Link {
    slot: u32,
    link: OwnedFd,
    id: u32,
    record: Slot,
    /// 0 if the interface is gone.
    ifindex: u32,
}

/// Carries an instance over that is of the layout before. Returns its pins as they are then; `None` if it is not of that
/// layout. The caller has the lock on `pins`.
///
/// # Errors
///
/// What was in force is in force, by whichever programs; the next attempt goes on where this one has ended.
pub(super) fn carry_over(pins: &PinDir) -> Result<Option<PinDir>, Error> {
    if pins.linked_slots()?.is_empty() || !is_of_layout_before(pins) {
        // What an agent left that was killed behind the last step.
        forget_next(pins)?;
        return Ok(None);
    }
    let before = Before::open(pins)?;
    let next = PinDir::make_next(pins.instance())?;
    let (maps, counted) = match before.find_whole(&next)? {
        Some(maps) => (maps, HashMap::new()),
        None => {
            let counted = counted_by_programs(&next)?;
            next.clear()?;
            (before.build(&next)?, counted)
        }
    };
    before.pin_links(&next)?;
    before.follow_trial(&maps)?;
    before.disown_programs()?;
    before.replace_programs(&maps)?;
    // From here on nothing is counted by the layout before.
    sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
    before.carry_counters(&maps, counted)?;
    before.follow_trial(&maps)?;
    if pins.is_marked_detached() {
        // `detach` was at work meanwhile, and an agent does not undo it.
        forget_next(pins)?;
        return Err(Error::Detached(pins.instance().name().to_owned()));
    }
    // No other process knows of this directory.
    next.try_lock()?;
    let (now, past) = PinDir::exchange(pins, &next)?;
    past.clear()?;
    past.remove_directory()?;
    Ok(Some(now))
}

/// Removes what stands ready to take an instance's place, or did so before. Its links are the instance's own.
pub(super) fn forget_next(pins: &PinDir) -> Result<(), Error> {
    let Some(next) = PinDir::open_next(pins.instance())? else { return Ok(()) };
    next.clear()?;
    next.remove_directory()
}

fn is_of_layout_before(pins: &PinDir) -> bool {
    (0..BANKS).any(|bank| Manifest::read_of(pins, bank, BEFORE).is_ok())
}

/// What programs have counted in maps that are to be removed, by slot.
fn counted_by_programs(next: &PinDir) -> Result<HashMap<u32, Snapshot>, Error> {
    let mut counted = HashMap::new();
    for slot in next.counted_slots()? {
        let mut sum = Snapshot::default();
        // Sums of what the layout before has counted are made anew.
        let own = maps::counters(next, slot)?.into_iter();
        for counters in own.filter(|counters| counters.pin != maps::carried_pin(slot)) {
            sum.add(counters.read(MAX_PAGES as u32)?);
        }
        counted.insert(slot, sum);
    }
    Ok(counted)
}

impl<'a> Before<'a> {
    fn open(pins: &'a PinDir) -> Result<Self, Error> {
        let opening =
            |name: &str| Error::io(format!("opening the map `{name}` of the layout before"));
        let get = |name: &str| pins.get(name).map_err(opening(name));
        let policy = get("policy")?;
        let trial = if pins.has(maps::TRIAL)? { Some(get(maps::TRIAL)?) } else { None };
        let manifests = [0, 1].map(|bank| Manifest::read_of(pins, bank, BEFORE).ok());
        let interfaces = get(maps::INTERFACES)?;
        let mut links = Vec::new();
        for slot in pins.linked_slots()? {
            let link = get(&link_pin(slot))?;
            let info = sys::xdp_link_info(link.as_fd()).map_err(opening(&link_pin(slot)))?;
            let record = Slot::read(interfaces.as_fd(), slot)?;
            let link = Link { slot, link, id: info.id, record, ifindex: info.ifindex };
            links.push((link, info.program_id));
        }
        let present = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let attached = links.iter().map(|(link, program)| (link.ifindex, *program));
        check_namespace(pins.instance(), attached, &present)?;
        let links = links.into_iter().map(|(link, _)| link).collect();
        Ok(Self { pins, policy, trial, manifests, interfaces, links })
    }

    fn read_policy(&self) -> Result<Box<PolicyBefore>, Error> {
        let mut policy: Box<PolicyBefore> = bytemuck::zeroed_box();
        sys::map_lookup(self.policy.as_fd(), 0, bytemuck::bytes_of_mut(&mut *policy))
            .map_err(Error::io("reading the policy of the layout before"))?;
        Ok(policy)
    }

    /// The bank in force.
    fn bank(&self) -> Result<usize, Error> {
        Ok(usize::from(self.read_policy()?.active != FIRST_BANK))
    }

    /// The bank in force, and what has become of a trial.
    fn state(&self) -> Result<(usize, Phase), Error> {
        let Some(trial) = &self.trial else { return Ok((self.bank()?, Phase::None)) };
        let mut patience = 100;
        loop {
            let bank = self.bank()?;
            let mut held = TrialBefore::zeroed();
            sys::map_lookup(trial.as_fd(), 0, bytemuck::bytes_of_mut(&mut held))
                .map_err(Error::io("reading the map `trial`"))?;
            let is_back = (held.back != FIRST_BANK) == (bank == 1);
            if self.bank()? != bank {
                continue;
            }
            match held.state {
                2 => return Ok((bank, Phase::Lapsed)),
                1 if !is_back => return Ok((bank, Phase::Running)),
                // The timer writes the bank first; or an agent was killed before the trial began.
                1 if patience > 0 => {
                    patience -= 1;
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return Ok((bank, Phase::None)),
            }
        }
    }

    /// The maps that stand ready, if an agent was killed after they were whole, and nothing has come into force since: the
    /// version before may have gone on in between.
    fn find_whole(&self, next: &PinDir) -> Result<Option<Maps>, Error> {
        let is_whole = !next.linked_slots()?.is_empty() && self.has_same_links(next);
        let Some(maps) = is_whole.then(|| Maps::open(next).ok()).flatten() else { return Ok(None) };
        let same_policy = |bank: usize| {
            let (before, now) = (&self.manifests[bank], Manifest::read(next, bank).ok());
            match (before, now) {
                (Some(before), Some(now)) => {
                    (before.generation, &before.id, &before.text)
                        == (now.generation, &now.id, &now.text)
                }
                (None, None) => true,
                _ => false,
            }
        };
        let active = maps.active();
        let (bank, phase) = self.state()?;
        let same_phase = match (phase, active.phase()) {
            // One of the two timers was quicker.
            (Phase::Lapsed, Phase::Running) | (Phase::Running, Phase::Lapsed) => {
                bank != active.bank()
            }
            (before, now) => before == now && bank == active.bank(),
        };
        Ok((same_phase && (0..BANKS).all(same_policy)).then_some(maps))
    }

    /// Whether the links that are pinned there are these, as far as they were pinned before an agent was killed.
    fn has_same_links(&self, next: &PinDir) -> bool {
        let is_same = |slot: u32| {
            let there = next.get(&link_pin(slot)).and_then(|link| sys::xdp_link_info(link.as_fd()));
            let here = self.links.iter().find(|link| link.slot == slot);
            matches!((there, here), (Ok(there), Some(here)) if there.id == here.id)
        };
        next.linked_slots().is_ok_and(|slots| slots.into_iter().all(is_same))
    }

    fn generation(&self, bank: usize) -> u64 {
        self.manifests[bank].as_ref().map_or(0, |manifest| manifest.generation)
    }

    /// Makes all maps of this layout. No program uses them yet.
    fn build(&self, next: &PinDir) -> Result<Maps, Error> {
        let mut manifests: [Option<Manifest>; BANKS] = self.manifests.clone();
        for manifest in manifests.iter_mut().flatten() {
            carry_manifest(self.pins, manifest)?;
        }
        let used = manifests.iter().flatten().map(Manifest::pages).max().unwrap_or(0);
        let retired = maps::retired(self.pins)?;
        let pages = used.next_power_of_two().max(retired.counters.pages).min(MAX_PAGES as u32);
        let tables = self.pins.get(maps::TABLES).map_err(Error::io("opening the map `tables`"))?;
        let shape =
            sys::map_shape(tables.as_fd()).map_err(Error::io("opening the map `tables`"))?;
        Maps::create_beside(next, self.pins, pages, shape.max_entries)?;
        let maps = Maps::open(next)?;
        self.fill(&maps, &tables, &manifests)?;
        for (bank, manifest) in manifests.iter().enumerate() {
            if let Some(manifest) = manifest {
                manifest.write(next, bank)?;
            }
        }
        for Link { slot, record, .. } in &self.links {
            record.write(maps.interfaces.as_fd(), *slot)?;
        }
        maps.repairs.copy_from(self.pins)?;
        let targets: Vec<ManifestTarget> =
            manifests.iter().flatten().flat_map(|manifest| manifest.targets.clone()).collect();
        for target in &targets {
            if let TargetKind::Interface { .. } = target.kind {
                let ifindex = maps.device(target.slot)?;
                if ifindex != 0 {
                    let first = first_on_device(&maps, &targets, ifindex)?;
                    maps.set_slot_of_device(ifindex, first)?;
                }
            }
        }
        self.decide(&maps)?;
        Ok(maps)
    }

    /// Copies the policies, and what they need of tables.
    fn fill(
        &self,
        maps: &Maps,
        tables: &OwnedFd,
        manifests: &[Option<Manifest>; BANKS],
    ) -> Result<(), Error> {
        let copying = || Error::io("copying the tables of the layout before");
        let before = self.read_policy()?;
        let mut policy: Box<PolicyBanks> = bytemuck::zeroed_box();
        bytemuck::bytes_of_mut(&mut *policy).copy_from_slice(bytemuck::bytes_of(&before.banks));
        // Where rules' decisions stand in the tables, in words.
        let mut decisions = Vec::new();
        for (image, manifest) in policy.banks.iter_mut().zip(manifests) {
            carry_image(image);
            if image.features != 0 {
                let rules = manifest.as_ref().map_or(0, |manifest| manifest.rules.len());
                decisions.push(image.decisions as usize..image.decisions as usize + rules);
            }
        }
        let mut small: Box<SmallTables> = bytemuck::zeroed_box();
        let from_small = self.pins.get(maps::SMALL_TABLES).map_err(copying())?;
        sys::map_lookup(from_small.as_fd(), 0, bytemuck::cast_slice_mut(&mut *small))
            .map_err(copying())?;
        let carry = |number: usize, segment: &mut Segment| {
            let words = number * SEGMENT_WORDS..(number + 1) * SEGMENT_WORDS;
            for range in &decisions {
                for word in range.start.max(words.start)..range.end.min(words.end) {
                    let decision = &mut segment[word - words.start];
                    *decision = carry_decision(*decision);
                }
            }
        };
        (0..).zip(&mut *small).for_each(|(number, segment)| carry(number, segment));
        let mut segment: Box<Segment> = bytemuck::zeroed_box();
        for number in 0..maps.segments() {
            let bytes = bytemuck::cast_slice_mut(&mut *segment);
            sys::map_lookup(tables.as_fd(), number as u32, bytes).map_err(copying())?;
            carry(number, &mut segment);
            maps.set_segment(number, &segment)?;
        }
        maps.set_policy(&policy, &small)
    }

    /// Says which policy is in force, and starts the deadline of one that is on trial anew, for what is left of it.
    fn decide(&self, maps: &Maps) -> Result<(), Error> {
        let (bank, phase) = self.state()?;
        let other = 1 - bank;
        let outdated = |_| Error::Outdated;
        match phase {
            Phase::None => {
                let active = Active::carried(bank, phase, self.generation(bank));
                maps.swap_active(Active::NOTHING, active).map_err(outdated)
            }
            Phase::Lapsed => {
                let active = Active::carried(bank, phase, self.generation(other));
                maps.swap_active(Active::NOTHING, active).map_err(outdated)
            }
            Phase::Running => {
                let before = Active::carried(other, Phase::None, self.generation(other));
                let running = before.begin_trial(self.generation(bank)).ok_or(Error::Outdated)?;
                maps.swap_active(Active::NOTHING, before).map_err(outdated)?;
                let manifest = self.manifests[bank].as_ref();
                let ends = manifest.and_then(|manifest| manifest.trial).map_or(0, |it| it.ends);
                let now = sys::boot_time().map_err(Error::io("asking for the time"))?;
                let left = Duration::from_nanos(ends.saturating_sub(now).max(1));
                trials::prepare(maps, left, before, running)?.begin()
            }
        }
    }

    /// Ends a trial that has ended in the layout before.
    fn follow_trial(&self, maps: &Maps) -> Result<(), Error> {
        let active = maps.active();
        if let Some(lapsed) = active.lapse()
            && self.state()?.1 != Phase::Running
        {
            // Where this fails, the new timer was as quick.
            let _ = maps.swap_active(active, lapsed);
        }
        Ok(())
    }

    fn pin_links(&self, next: &PinDir) -> Result<(), Error> {
        for name in self.pins.names()?.iter().filter(|name| name.starts_with("watch_")) {
            if !next.has(name)? {
                let link = self.pins.get(name).map_err(Error::io(format!("opening `{name}`")))?;
                next.pin(link.as_fd(), name).map_err(Error::io(format!("pinning `{name}`")))?;
            }
        }
        for Link { slot, link, .. } in &self.links {
            let name = link_pin(*slot);
            if !next.has(&name)? {
                next.pin(link.as_fd(), &name).map_err(Error::io(format!("pinning `{name}`")))?;
            }
        }
        Ok(())
    }

    /// Has an agent of the version before, should one go on here, put its own programs on the links: those that are about
    /// to be there judge by other maps than it changes.
    fn disown_programs(&self) -> Result<(), Error> {
        for Link { slot, record, .. } in &self.links {
            let mut disowned = *record;
            disowned.object = [0; 32];
            disowned.write(self.interfaces.as_fd(), *slot)?;
        }
        Ok(())
    }

    fn replace_programs(&self, maps: &Maps) -> Result<(), Error> {
        for Link { slot, link, record, .. } in self.links.iter().filter(|link| link.ifindex != 0) {
            let program = object::load(*slot, maps, record.features)?;
            sys::link_update(link.as_fd(), program.as_fd())
                .map_err(Error::io(format!("replacing the program on `{}`", record.name())))?;
            let mut record = *record;
            record.object = object::digest();
            (record.tables, record.pages) = (maps.tables_id()?, maps.pages);
            record.write(maps.interfaces.as_fd(), *slot)?;
        }
        Ok(())
    }

    /// Adds up what the layout before has counted, which is all of it now.
    fn carry_counters(
        &self,
        maps: &Maps,
        mut counted: HashMap<u32, Snapshot>,
    ) -> Result<(), Error> {
        let retired = maps::retired(self.pins)?;
        let mut gone = retired.counters.read(MAX_PAGES as u32)?;
        for slot in self.pins.counted_slots()? {
            let mut sum = Snapshot::default();
            for counters in maps::counters(self.pins, slot)? {
                if retired.newest != Some(counters.id()?) {
                    sum.add(counters.read(MAX_PAGES as u32)?);
                }
            }
            match self.links.iter().any(|link| link.slot == slot) {
                true => {
                    let mut carried = carry_pages(sum);
                    // By programs of this layout, before the version before has gone on for a while.
                    carried.add(counted.remove(&slot).unwrap_or_default());
                    maps.set_carried(slot, carried)?;
                }
                // An agent was killed while it let the interface go.
                false => gone.add(sum),
            }
        }
        let mut retired = carry_pages(gone);
        counted.into_values().for_each(|rest| retired.add(rest));
        maps.set_retired(retired)
    }
}

/// Gives a manifest's rules the counters that they have in this layout.
fn carry_manifest(pins: &PinDir, manifest: &mut Manifest) -> Result<(), Error> {
    manifest.layout = LAYOUT_VERSION;
    for share in manifest.rules.iter_mut().flat_map(|rule| &mut rule.shares) {
        share.counter = carry_counter(share.counter);
    }
    if manifest.pages() as usize > MAX_PAGES {
        return Err(Error::CountersFull {
            instance: pins.instance().name().to_owned(),
            rules: manifest.rules.len(),
            available: (MAX_PAGES - OUTCOME_PAGES) * PAGE_COUNTERS,
        });
    }
    Ok(())
}

/// The counter that stands for this one.
fn carry_counter(counter: u32) -> u32 {
    if counter as usize >= PAGE_COUNTERS {
        // The outcomes have one page more.
        return counter + ((OUTCOME_PAGES - 1) * PAGE_COUNTERS) as u32;
    }
    let (verdict, reason) = (counter / REASONS_BEFORE, counter % REASONS_BEFORE);
    let reason = Reason::ALL.get(reason as usize).copied().unwrap_or(Reason::Internal);
    outcome_counter(Verdict::from_number(verdict), reason)
}

fn carry_decision(bits: u32) -> u32 {
    let decision = Decision::from_bits(bits);
    decision.counted_in(carry_counter(decision.counter())).to_bits()
}

/// Makes an image count by this layout.
fn carry_image(image: &mut Image) {
    image.default = Decision::from_bits(carry_decision(image.default.to_bits()));
    image.fragments = Decision::from_bits(carry_decision(image.fragments.to_bits()));
    if image.features == 0 {
        let cells = image.by_port.as_flattened_mut().iter_mut().chain(&mut image.by_protocol);
        cells.for_each(|cell| cell.0 = carry_decision(cell.0));
    }
}

/// Puts what was counted where this layout has it.
fn carry_pages(before: Snapshot) -> Snapshot {
    let mut pages = vec![CounterPage::zeroed(); OUTCOME_PAGES];
    let mut old = before.pages.into_iter();
    if let Some(outcomes) = old.next() {
        for (counter, counted) in (0..).zip(outcomes.counters) {
            let carried = carry_counter(counter) as usize;
            let sum = &mut pages[carried / PAGE_COUNTERS].counters[carried % PAGE_COUNTERS];
            sum.packets = sum.packets.wrapping_add(counted.packets);
            sum.bytes = sum.bytes.wrapping_add(counted.bytes);
        }
    }
    pages.extend(old);
    Snapshot { pages }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_keep_their_meaning() {
        for verdict in Verdict::ALL {
            for &reason in Reason::ALL {
                let before = verdict as u32 * REASONS_BEFORE + reason as u32;
                assert_eq!(carry_counter(before), outcome_counter(verdict, reason));
            }
        }
        assert_eq!(carry_counter(256), 512);
        let steers = Decision::steer(2047, 300);
        let carried = Decision::from_bits(carry_decision(steers.to_bits()));
        assert_eq!((carried.slot(), carried.counter(), carried.steers()), (2047, 556, true));
        let drops = Decision::new(Verdict::Drop, 299);
        let carried = Decision::from_bits(carry_decision(drops.to_bits()));
        assert_eq!((carried.verdict(), carried.counter()), (Verdict::Drop, 555));
    }

    #[test]
    fn what_was_counted_is_counted_once() {
        let mut first = CounterPage::zeroed();
        first.counters[32 + 4].packets = 7;
        let mut rules = CounterPage::zeroed();
        rules.counters[3].packets = 5;
        let carried = carry_pages(Snapshot { pages: vec![first, rules] });
        assert_eq!(carried.pages.len(), OUTCOME_PAGES + 1);
        assert_eq!(carried.get(64 + 4).packets, 7);
        assert_eq!(carried.get((OUTCOME_PAGES * PAGE_COUNTERS) as u32 + 3).packets, 5);
        let all: u64 =
            carried.pages.iter().flat_map(|page| &page.counters).map(|it| it.packets).sum();
        assert_eq!(all, 12);
    }
}
