//! What an image was compiled from: the names of its rules and where they count. It is pinned
//! beside the image, so that listings are right without an agent and after any renumbering.
//!
//! A manifest is JSON in an array map of chunks, the first eight bytes being its length.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use portsteer_common::{
    Counter, Decision, LAYOUT_VERSION, Verdict,
    counters::{MAX_PAGES, OUTCOME_PAGES, PAGE_COUNTERS},
    steering::{Losses, TARGET_SLOTS},
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Order,
    instance::Instance,
    pins::PinDir,
    sys::{self, MapShape, map_type},
};
use crate::{
    compile::verdict,
    netlink::Link,
    policy::{Action, Policy, Rule, TargetKind},
};

/// What the manifest of a bank is pinned as.
pub(super) fn pin_name(bank: usize) -> String {
    format!("manifest_{bank}")
}

const CHUNK: usize = 64 * 1024;
const LENGTH: usize = size_of::<u64>();

/// What an image was compiled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`LAYOUT_VERSION`] of the portsteer that wrote it.
    pub layout: u32,
    /// Counts the policies that were put in force.
    pub generation: u64,
    /// When, in seconds since 1970.
    pub applied_at: u64,
    /// The policy file's path, as it was given.
    pub path: String,
    /// The policy's text.
    pub text: String,
    /// By which whoever keeps policies recognises this one. May be empty.
    #[serde(default)]
    pub id: String,
    /// If it was put on trial.
    #[serde(default)]
    pub trial: Option<ManifestTrial>,
    /// The policy's default.
    pub default: String,
    /// The rules, in order.
    pub rules: Vec<ManifestRule>,
    /// The targets, in the policy's order.
    pub targets: Vec<ManifestTarget>,
    /// The number of the verdict of all rules that ever count in a page of counters, from the first page of
    /// rules on ([`OUTCOME_PAGES`]).
    pub page_verdicts: Vec<u8>,
}

/// How long a policy was put on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestTrial {
    /// When the trial ends, in nanoseconds since the machine started (`CLOCK_BOOTTIME`).
    pub ends: u64,
    /// How long it is, in seconds.
    pub seconds: u64,
}

/// What a policy is described for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) instance: &'a Instance,
    pub(super) order: &'a Order<'a>,
    /// The policy in force.
    pub(super) previous: Option<&'a Manifest>,
    /// The number that the policy gets.
    pub(super) generation: u64,
}

/// A rule in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRule {
    /// Its name, or its match and action where it has none.
    pub label: String,
    /// Whether the label is a name.
    pub named: bool,
    /// The line in the policy file.
    pub line: usize,
    /// Its match, as text.
    pub matches: String,
    /// Its action.
    pub action: String,
    /// Its counter, and those that it had under other actions, which still belong to it.
    pub shares: Vec<Share>,
}

/// A target in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestTarget {
    pub name: String,
    /// Where the program finds it. It belongs to this definition of the target alone.
    pub slot: u16,
    pub kind: TargetKind,
    /// What the slot's losses stood at when the target was given it, in the order of
    /// [`Losses`]' fields.
    pub base: [u64; LOSSES],
    /// What the interface's own counter of dropped packets stood at then.
    pub dropped_before: u64,
}

impl ManifestTarget {
    /// Leaves something out of what the target has lost.
    pub(super) fn forgive(&mut self, lost: impl FnOnce(&mut Losses)) {
        let mut base: Losses = bytemuck::cast(self.base);
        lost(&mut base);
        self.base = bytemuck::cast(base);
    }
}

/// The number of fields in [`Losses`].
pub(super) const LOSSES: usize = size_of::<Losses>() / size_of::<u64>();

/// A counter that belongs to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub counter: u32,
    /// What the counter stood at when the rule was given it.
    pub base_packets: u64,
    pub base_bytes: u64,
    /// The slot of the target, where the rule steers when it counts in this.
    #[serde(default)]
    pub target: Option<u16>,
}

/// Gives each target its slot: those that `previous` has, with the same definition, keep theirs;
/// new ones get one that neither policy uses. `read` gives what a slot has lost.
pub(super) fn place_targets(
    policy: &Policy,
    previous: Option<&Manifest>,
    links: &[Link],
    read: impl Fn(u16, &TargetKind) -> Result<Losses, Error>,
) -> Result<Vec<ManifestTarget>, Error> {
    let before = previous.map_or(&[][..], |previous| &previous.targets);
    let used: HashSet<u16> = before.iter().map(|target| target.slot).collect();
    let mut free = (0..TARGET_SLOTS as u16).filter(|slot| !used.contains(slot));
    let mut targets = Vec::with_capacity(policy.targets.len());
    for target in &policy.targets {
        let kept =
            before.iter().find(|known| known.name == target.name && known.kind == target.kind);
        targets.push(match kept {
            Some(known) => known.clone(),
            None => {
                // A policy has at most half as many targets as there are slots.
                let slot = free
                    .next()
                    .ok_or_else(|| Error::Load("there is no target slot left".to_owned()))?;
                let base = bytemuck::cast(read(slot, &target.kind)?);
                let (name, kind) = (target.name.clone(), target.kind.clone());
                let dropped_before = kind.link(links).map_or(0, |link| link.counters.tx_dropped);
                ManifestTarget { name, slot, kind, base, dropped_before }
            }
        });
    }
    Ok(targets)
}

/// The first counter that a rule may have.
const FIRST_RULE_COUNTER: u32 = (OUTCOME_PAGES * PAGE_COUNTERS) as u32;

/// Which counters are free, by verdict.
struct Allocator<'a> {
    /// The verdict of each page of rules.
    page_verdicts: &'a mut Vec<u8>,
    used: HashSet<u32>,
    /// Where the search for a free counter goes on, by verdict.
    next: HashMap<u8, u32>,
}

impl Allocator<'_> {
    /// A counter that nobody uses, in a page of this verdict.
    fn allocate(&mut self, verdict: Verdict) -> Option<u32> {
        let verdict = verdict as u8;
        let mut id = self.next.get(&verdict).copied().unwrap_or(FIRST_RULE_COUNTER);
        loop {
            let page = id as usize / PAGE_COUNTERS;
            if page >= OUTCOME_PAGES + self.page_verdicts.len() {
                if page >= MAX_PAGES {
                    return None;
                }
                self.page_verdicts.push(verdict);
            }
            if self.page_verdicts[page - OUTCOME_PAGES] != verdict {
                id = ((page + 1) * PAGE_COUNTERS) as u32;
            } else if self.used.insert(id) {
                self.next.insert(verdict, id + 1);
                return Some(id);
            } else {
                id += 1;
            }
        }
    }
}

impl Manifest {
    /// Describes a policy, and gives each rule its counter: rules that the policy in force has, by name or,
    /// unnamed, by match and action, keep theirs; new ones get one that neither policy uses.
    /// `read` gives what a counter stands at. `targets` are those of the policy, with their slots.
    ///
    /// # Errors
    ///
    /// [`Error::CountersFull`] if there are not counters enough in as many pages as there can be.
    pub(super) fn describe(
        context: &Context<'_>,
        targets: Vec<ManifestTarget>,
        read: impl Fn(u32) -> Counter,
    ) -> Result<Self, Error> {
        let Context { instance, order, previous, generation } = *context;
        let policy = order.policy;
        let kept: HashSet<u16> = previous
            .map_or(&[][..], |previous| &previous.targets)
            .iter()
            .map(|target| target.slot)
            .filter(|slot| targets.iter().any(|target| target.slot == *slot))
            .collect();
        let before = previous.map_or(&[][..], |previous| &previous.rules);
        let known: HashMap<(bool, &str), &ManifestRule> =
            before.iter().map(|rule| ((rule.named, rule.label.as_str()), rule)).collect();
        let mut page_verdicts =
            previous.map_or_else(Vec::new, |previous| previous.page_verdicts.clone());
        let mut allocator = Allocator {
            page_verdicts: &mut page_verdicts,
            used: before.iter().flat_map(|rule| &rule.shares).map(|share| share.counter).collect(),
            next: HashMap::new(),
        };

        let mut given: HashMap<(bool, String), Vec<Share>> = HashMap::new();
        let mut rules = Vec::with_capacity(policy.rules.len());
        for rule in &policy.rules {
            let key = (rule.name.is_some(), policy.label(rule));
            let shares = match given.get(&key) {
                Some(shares) => shares.clone(),
                None => {
                    let known = known.get(&(key.0, key.1.as_str()));
                    let mut shares = known.map_or_else(Vec::new, |known| known.shares.clone());
                    // A slot that a target has given up may be another's now.
                    for share in &mut shares {
                        share.target = share.target.filter(|slot| kept.contains(slot));
                    }
                    let verdict = verdict(rule.action);
                    // A counter belongs to one target for as long as a rule has it.
                    let target = match rule.action {
                        Action::Steer(id) => Some(targets[usize::from(id.0)].slot),
                        _ => None,
                    };
                    let fits = |share: &Share| {
                        let page = share.counter as usize / PAGE_COUNTERS;
                        share.target == target
                            && allocator.page_verdicts.get(page.wrapping_sub(OUTCOME_PAGES))
                                == Some(&(verdict as u8))
                    };
                    match shares.iter().position(fits) {
                        Some(position) => shares.swap(0, position),
                        None => {
                            let counter =
                                allocator.allocate(verdict).ok_or_else(|| Error::CountersFull {
                                    instance: instance.name().to_owned(),
                                    rules: policy.rules.len(),
                                    available: (MAX_PAGES - OUTCOME_PAGES) * PAGE_COUNTERS,
                                })?;
                            let base = match previous {
                                Some(_) => read(counter),
                                None => Counter::default(),
                            };
                            let (base_packets, base_bytes) = (base.packets, base.bytes);
                            shares.insert(0, Share { counter, base_packets, base_bytes, target });
                        }
                    }
                    given.insert(key.clone(), shares.clone());
                    shares
                }
            };
            rules.push(ManifestRule {
                label: key.1,
                named: key.0,
                line: rule.line,
                matches: policy.matches(rule),
                action: policy.does(rule),
                shares,
            });
        }
        let trial = match order.trial {
            Some(time) => {
                let now = sys::boot_time().map_err(Error::io("asking for the time"))?;
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                Some(ManifestTrial { ends: now.saturating_add(time_ns), seconds: time.as_secs() })
            }
            None => None,
        };
        Ok(Self {
            layout: LAYOUT_VERSION,
            generation,
            applied_at: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            path: order.path.to_owned(),
            text: order.text.to_owned(),
            id: order.id.to_owned(),
            trial,
            default: policy.default.name().to_owned(),
            rules,
            targets,
            page_verdicts,
        })
    }

    /// What is decided about packets that the rules match, in order.
    pub(super) fn decisions(&self, policy: &Policy) -> Vec<Decision> {
        let decision = |(rule, described): (&Rule, &ManifestRule)| {
            let Share { counter, target, .. } = described.shares[0];
            match target {
                Some(slot) => Decision::steer(slot, counter),
                None => Decision::new(verdict(rule.action), counter),
            }
        };
        policy.rules.iter().zip(&self.rules).map(decision).collect()
    }

    /// The verdict of the rules that count in a page, if the page is in use.
    pub(super) fn page_verdict(&self, page: usize) -> Option<Verdict> {
        let number = *self.page_verdicts.get(page.checked_sub(OUTCOME_PAGES)?)?;
        Some(Verdict::from_number(u32::from(number)))
    }

    /// The number of pages in use, those for packets without a rule included.
    pub(super) fn pages(&self) -> u32 {
        OUTCOME_PAGES as u32 + self.page_verdicts.len() as u32
    }

    /// Pins the manifest as that of a bank.
    pub(super) fn write(&self, pins: &PinDir, bank: usize) -> Result<(), Error> {
        let writing = || Error::io("writing the policy's manifest");
        let json = serde_json::to_vec(self).map_err(|error| writing()(error.into()))?;
        let chunks = (LENGTH + json.len()).div_ceil(CHUNK);
        let mut bytes = Vec::with_capacity(chunks * CHUNK);
        bytes.extend((json.len() as u64).to_ne_bytes());
        bytes.extend(json);
        bytes.resize(chunks * CHUNK, 0);

        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: CHUNK as u32,
            max_entries: chunks as u32,
            flags: 0,
        };
        let map = sys::map_create("manifest", shape, None).map_err(writing())?;
        for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
            sys::map_update(map.as_fd(), index as u32, chunk).map_err(writing())?;
        }
        pins.replace(map.as_fd(), &pin_name(bank))
    }

    /// Reads the manifest of a bank.
    ///
    /// # Errors
    ///
    /// A text of what is wrong with it.
    pub(super) fn read(pins: &PinDir, bank: usize) -> Result<Self, String> {
        Self::read_of(pins, bank, LAYOUT_VERSION)
    }

    /// The same, of another version.
    pub(super) fn read_of(pins: &PinDir, bank: usize, version: u32) -> Result<Self, String> {
        let name = pin_name(bank);
        let map = pins.get(&name).map_err(|error| format!("`{name}`: {error}"))?;
        let json = read_chunks(map.as_fd()).map_err(|error| format!("the manifest: {error}"))?;
        let manifest: Self =
            serde_json::from_slice(&json).map_err(|error| format!("the manifest: {error}"))?;
        if manifest.rules.iter().any(|rule| rule.shares.is_empty()) {
            return Err("the manifest: a rule has no counter".to_owned());
        }
        if manifest.layout != version {
            return Err(format!("it is of version {}, expected was {version}", manifest.layout));
        }
        Ok(manifest)
    }
}

fn read_chunks(map: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "its map has an odd shape");
    let shape = sys::map_shape(map)?;
    if shape.map_type != map_type::ARRAY || shape.value_size as usize != CHUNK {
        return Err(garbled());
    }
    let mut bytes = vec![0; CHUNK * shape.max_entries as usize];
    for (index, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
        sys::map_lookup(map, index as u32, chunk)?;
    }
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or_else(garbled)?;
    let length = usize::try_from(u64::from_ne_bytes(*length)).map_err(|_| garbled())?;
    Ok(rest.get(..length).ok_or_else(garbled)?.to_vec())
}
