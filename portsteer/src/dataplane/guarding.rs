//! Whether the kernel still has what was put in force: a process with the right to it may change links, programs, the
//! word and tables behind the agent's back. What differs is said, and undone where that can be done here.
//!
//! Links, programs, the word and the trial's timer are looked at every time, the image in force once a minute, and the
//! tables in turn, some at a time: first to know them, then to compare them.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use portsteer_common::{Active, active::Phase};

use super::{
    Dataplane, Error, in_force,
    maps::{COUNTERS, Maps, TRIAL},
    pinned,
    pins::PinDir,
    slots::Slot,
    sys, trials,
};
use crate::netlink;

/// How often the image in force is looked at.
const IMAGE_INTERVAL: Duration = Duration::from_secs(60);

/// How many segments of the tables are looked at at a time, of 64 KiB each.
const SEGMENTS: usize = 4;

/// How long after its deadline a trial that still runs has no timer any more: one that is pinned, but was stopped. A
/// timer is started somewhat later than its deadline was written down.
const OVERDUE: Duration = Duration::from_secs(10);

/// What an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownLink {
    name: String,
    ifindex: u32,
    program_id: u32,
    /// The kernel's hash over the program's instructions, as hexadecimal digits.
    tag: Option<String>,
}

/// What the kernel has, as it was left by what was done last.
#[derive(Debug)]
pub(super) struct Belief {
    active: Active,
    links: HashMap<u32, KnownLink>,
    /// What is pinned besides links of interfaces, kept open so that it can be pinned again.
    pins: HashMap<String, OwnedFd>,
    /// The sum over the image in force, and when it was compared last.
    image: Option<(u64, Instant)>,
    /// The sums over the segments of the tables in force, as far as they were looked at.
    tables: HashMap<usize, u64>,
    /// The segment that is next.
    next: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What was changed from outside, in words.
    pub differences: Vec<String>,
    /// Whether interfaces have to be attached anew, or get their programs back.
    pub attach: bool,
    /// Whether the policy has to be applied anew: its image or its tables were changed.
    pub apply: bool,
}

impl Dataplane {
    /// Takes what the kernel has now for what it should have: at the end of everything that changes it.
    pub(super) fn believe(&self) {
        // Where it cannot be read, there is nothing to compare with, and the next look begins anew.
        let belief = Maps::open(self.pins()).and_then(|maps| self.read_belief(&maps)).ok();
        self.applied().belief = belief;
    }

    /// Says that the word was changed, by what is still at work.
    pub(super) fn believe_word(&self, active: Active) {
        if let Some(belief) = &mut self.applied().belief {
            belief.active = active;
        }
    }

    fn read_belief(&self, maps: &Maps) -> Result<Belief, Error> {
        let active = maps.active();
        let links = known_links(maps)?;
        let pins = open_pins(self.pins())?;
        Ok(Belief { active, links, pins, image: None, tables: HashMap::new(), next: 0 })
    }

    /// Compares what the kernel has with what it was left with. What is in one word is put right here.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn guard(&self) -> Result<Findings, Error> {
        let mut findings = Findings::default();
        if !self.holds_lock() {
            return Ok(findings);
        }
        let is_idle = self.is_idle();
        let mut state = self.applied();
        let Some(belief) = &mut state.belief else {
            if is_idle {
                return Ok(findings);
            }
            state.belief = Some(self.read_belief(&Maps::open(self.pins())?)?);
            return Ok(findings);
        };
        guard_pins(self.pins(), belief, &mut findings)?;
        let maps = Maps::open(self.pins())?;
        self.guard_word(&maps, belief, &mut findings)?;
        guard_links(&maps, belief, &mut findings)?;
        guard_contents(&maps, belief, &mut findings)?;
        Ok(findings)
    }

    /// The word, and the timer that may change it.
    fn guard_word(
        &self,
        maps: &Maps,
        belief: &mut Belief,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let active = maps.active();
        if active != belief.active {
            if belief.active.lapse() == Some(active) {
                // The deadline, or as good as that: the policy before is in force.
                belief.active = active;
                return Ok(());
            }
            findings.differences.push(format!(
                "the word that says which policy is in force was changed from outside, from {:#018x} to {:#018x}",
                belief.active.to_bits(),
                active.to_bits()
            ));
            // Where it has changed once more, that is seen next time.
            let _ = maps.swap_active(active, belief.active);
        }
        let active = belief.active;
        if active.phase() != Phase::Running {
            return Ok(());
        }
        let is_pinned = maps.pins().has(TRIAL)?;
        let ends = in_force(maps)?.1.and_then(|manifest| manifest.trial).map_or(0, |it| it.ends);
        let now = sys::boot_time().map_err(Error::io("asking for the time"))?;
        let is_overdue = Duration::from_nanos(now.saturating_sub(ends)) > OVERDUE;
        if is_pinned && !is_overdue {
            return Ok(());
        }
        findings
            .differences
            .push("the kernel's timer for the trial was removed from outside".to_owned());
        let left = Duration::from_nanos(ends.saturating_sub(now).max(1));
        // From the word to itself: nothing changes but that there is a timer again.
        trials::prepare(maps, left, active, active)?.begin()
    }
}

/// How many pins are kept open at most: every one is a descriptor.
const OPENED: usize = 200;

/// Opens what is pinned besides links of interfaces.
fn open_pins(pins: &PinDir) -> Result<HashMap<String, OwnedFd>, Error> {
    let mut names = pins.names()?;
    names.retain(|name| !name.starts_with("link_") && !name.ends_with("_new"));
    // Counters are the many; without the others, nothing can be read.
    names.sort_by_key(|name| name.starts_with(COUNTERS));
    names.truncate(OPENED);
    Ok(names.into_iter().filter_map(|name| pins.get(&name).ok().map(|fd| (name, fd))).collect())
}

/// Pins again what was removed. Links of interfaces are not among them: they end with their last pin, and are made anew.
fn guard_pins(pins: &PinDir, belief: &Belief, findings: &mut Findings) -> Result<(), Error> {
    for (name, object) in &belief.pins {
        if !pins.has(name)? {
            findings.differences.push(format!("the pin `{name}` was removed from outside"));
            pins.pin(object.as_fd(), name).map_err(Error::io(format!("pinning `{name}`")))?;
        }
    }
    Ok(())
}

fn known_links(maps: &Maps) -> Result<HashMap<u32, KnownLink>, Error> {
    let link = |pinned: super::Pinned| {
        let tag = sys::link_program_tag(pinned.link.as_fd()).ok();
        let (ifindex, program_id) = (pinned.ifindex, pinned.program_id);
        (pinned.slot, KnownLink { name: pinned.record.name(), ifindex, program_id, tag })
    };
    Ok(pinned(maps)?.into_iter().map(link).collect())
}

fn guard_links(maps: &Maps, belief: &mut Belief, findings: &mut Findings) -> Result<(), Error> {
    let now = known_links(maps)?;
    if now == belief.links {
        return Ok(());
    }
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    for (&slot, known) in &belief.links {
        let is_here = links.iter().any(|link| link.index == known.ifindex);
        let name = &known.name;
        match now.get(&slot) {
            // It went with its interface.
            Some(link) if link.ifindex == 0 && !is_here => {}
            None if !is_here => {}
            Some(link) if link.ifindex == 0 => {
                findings.differences.push(format!("the program was taken off {name} from outside"));
                findings.attach = true;
            }
            None => {
                findings.differences.push(format!("the pin of {name} was removed from outside"));
                findings.attach = true;
            }
            Some(link) if (link.program_id, &link.tag) != (known.program_id, &known.tag) => {
                findings
                    .differences
                    .push(format!("the program on {name} was replaced from outside"));
                // Whatever it is, it came from no object that is known.
                let mut record = Slot::read(maps.interfaces.as_fd(), slot)?;
                record.object = [0; 32];
                record.write(maps.interfaces.as_fd(), slot)?;
                findings.attach = true;
            }
            Some(_) => {}
        }
    }
    belief.links = now;
    Ok(())
}

/// The image in force, and some of its tables.
fn guard_contents(maps: &Maps, belief: &mut Belief, findings: &mut Findings) -> Result<(), Error> {
    match belief.image {
        Some((_, at)) if at.elapsed() < IMAGE_INTERVAL => {}
        known => {
            let sum = sum_of(&maps.image_bytes(belief.active.bank())?);
            if known.is_some_and(|(known, _)| known != sum) {
                findings.differences.push("the policy's image was changed from outside".to_owned());
                findings.apply = true;
            }
            belief.image = Some((sum, Instant::now()));
        }
    }
    let segments = maps.active_segments();
    for _ in 0..SEGMENTS.min(segments.len()) {
        let number = if segments.contains(&belief.next) { belief.next } else { segments.start };
        belief.next = number + 1;
        let sum = sum_of(&maps.segment_bytes(number)?);
        if belief.tables.insert(number, sum).is_some_and(|known| known != sum) {
            findings.differences.push("the policy's tables were changed from outside".to_owned());
            findings.apply = true;
        }
    }
    Ok(())
}

/// A sum that tells one content from another. Who may write to the maps may as well stop the agent: it need not withstand
/// more than chance.
fn sum_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
