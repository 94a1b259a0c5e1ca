//! What an image was compiled from: the names of its rules and where they count. It is pinned
//! beside the image, so that listings are right without an agent and after any renumbering.
//!
//! A manifest is JSON in an array map of chunks, the first eight bytes being its length.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
};

use portsteer_common::{Counter, LAYOUT_VERSION, Rule as ImageRule};
use serde::{Deserialize, Serialize};

use super::{
    Error,
    instance::Instance,
    sys::{self, MapShape, map_type},
};
use crate::policy::Policy;

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
    /// The policy's default.
    pub default: String,
    /// The rules, in order.
    pub rules: Vec<ManifestRule>,
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
    /// Its counter.
    pub counter: u32,
    /// What the counter stood at when the rule was given it.
    pub base_packets: u64,
    pub base_bytes: u64,
}

impl Manifest {
    /// Describes a policy, and gives each rule its counter: rules that `previous` has, by name or,
    /// unnamed, by match and action, keep theirs; new ones get one that neither policy uses.
    /// `read` gives what a counter stands at.
    ///
    /// # Errors
    ///
    /// [`Error::CountersFull`] if there are not `available` counters enough, and what `read` says.
    pub(super) fn describe(
        instance: &Instance,
        policy: &Policy,
        source: (&str, &str),
        previous: Option<&Self>,
        available: usize,
        mut read: impl FnMut(u32) -> Result<Counter, Error>,
    ) -> Result<Self, Error> {
        let mut known: HashMap<(bool, &str), &ManifestRule> = HashMap::new();
        let mut used = vec![false; available];
        used[ImageRule::UNLISTED_COUNTER as usize] = true;
        for rule in previous.map_or(&[][..], |previous| &previous.rules) {
            known.insert((rule.named, &rule.label), rule);
            if let Some(used) = used.get_mut(rule.counter as usize) {
                *used = true;
            }
        }

        let mut free = (0..available).filter(|&id| !used[id]);
        let mut given: HashMap<(bool, String), (u32, Counter)> = HashMap::new();
        let mut rules = Vec::with_capacity(policy.rules.len());
        for rule in &policy.rules {
            let (named, label) = (rule.name.is_some(), rule.label());
            let (counter, base) = if let Some(known) = known.get(&(named, label.as_str())) {
                let base = Counter { packets: known.base_packets, bytes: known.base_bytes };
                (known.counter, base)
            } else if let Some(&given) = given.get(&(named, label.clone())) {
                given
            } else {
                let Some(id) = free.next() else {
                    let needed = policy.rules.len() + known.len() + 1;
                    let instance = instance.name().to_owned();
                    return Err(Error::CountersFull { instance, needed, available });
                };
                let id = id as u32;
                let base = if previous.is_some() { read(id)? } else { Counter::default() };
                given.insert((named, label.clone()), (id, base));
                (id, base)
            };
            rules.push(ManifestRule {
                label,
                named,
                line: rule.line,
                matches: rule.matches(),
                action: rule.action.name().to_owned(),
                counter,
                base_packets: base.packets,
                base_bytes: base.bytes,
            });
        }
        Ok(Self {
            layout: LAYOUT_VERSION,
            generation: previous.map_or(1, |previous| previous.generation + 1),
            applied_at: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            path: source.0.to_owned(),
            text: source.1.to_owned(),
            default: policy.default.name().to_owned(),
            rules,
        })
    }

    /// The rules' counters, in order.
    pub(super) fn counters(&self) -> Vec<u32> {
        self.rules.iter().map(|rule| rule.counter).collect()
    }

    /// Pins the manifest as that of a bank.
    pub(super) fn write(&self, instance: &Instance, bank: u32) -> Result<(), Error> {
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
        };
        let map = sys::map_create("manifest", shape, None).map_err(writing())?;
        for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
            sys::map_update(map.as_fd(), index as u32, chunk).map_err(writing())?;
        }
        let new = instance.pin("manifest_new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(writing()(error)),
            _ => {}
        }
        sys::pin(map.as_fd(), &new).map_err(writing())?;
        fs::rename(&new, instance.manifest_pin(bank)).map_err(writing())
    }

    /// Reads the manifest of a bank.
    ///
    /// # Errors
    ///
    /// A text of what is wrong with it.
    pub(super) fn read(instance: &Instance, bank: u32) -> Result<Self, String> {
        let path = instance.manifest_pin(bank);
        let map = sys::open_pin(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let json = read_chunks(map.as_fd()).map_err(|error| format!("the manifest: {error}"))?;
        let manifest: Self =
            serde_json::from_slice(&json).map_err(|error| format!("the manifest: {error}"))?;
        if manifest.layout != LAYOUT_VERSION {
            return Err(format!(
                "it is of version {}, and this portsteer's is {LAYOUT_VERSION}",
                manifest.layout
            ));
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
