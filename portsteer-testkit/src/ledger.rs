//! An interface's counters, read from the pins as ARCHITECTURE.md describes them, without the code that the
//! listings use: quick enough to be asked after every packet.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use bytemuck::Zeroable as _;
use portsteer::dataplane::{Instance, Manifest, sys};
use portsteer_common::{
    Counter, CounterPage, Reason, Verdict,
    counters::{OUTCOME_PAGES, PAGE_COUNTERS, outcome_counter},
};

/// What one packet was counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Of the rule with this index.
    Rule(usize),
    /// No rule's.
    Outcome(Verdict, Reason),
}

/// The counters of an instance's first interface, under its first policy.
#[derive(Debug)]
pub struct Ledger {
    map: OwnedFd,
    /// What counts for the rule of each index.
    rules: Vec<u32>,
    /// One page for each CPU that there may be.
    page: Vec<CounterPage>,
    /// What all counters stood at, page by page.
    known: Vec<Counter>,
}

impl Ledger {
    /// Opens it. The calling thread's mounts are those with the pins.
    ///
    /// # Panics
    ///
    /// If the pins are not as they are described.
    #[must_use]
    pub fn open(instance: &Instance) -> Self {
        let pins = Path::new("/sys/fs/bpf/portsteer").join(instance.name());
        let names = fs::read_dir(&pins).expect("pins").map(|pin| pin.expect("a pin").file_name());
        let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        let find = |start: &str| -> OwnedFd {
            let found: Vec<&String> = names.iter().filter(|name| name.starts_with(start)).collect();
            let [name] = found[..] else { panic!("one {start}: {names:?}") };
            sys::open_pin(&pins.join(name)).expect("a pin can be opened")
        };
        let map = find("counters_0_");
        let shape = sys::map_shape(map.as_fd()).expect("the counters' shape");
        let manifest = read_manifest(&find("manifest_"));
        let rules = manifest.rules.iter().map(|rule| rule.shares[0].counter).collect();
        let pages = (manifest.page_verdicts.len() + OUTCOME_PAGES).min(shape.max_entries as usize);
        let mut ledger = Self {
            map,
            rules,
            page: vec![CounterPage::zeroed(); possible_cpus()],
            known: vec![Counter::default(); pages * PAGE_COUNTERS],
        };
        ledger.next();
        ledger
    }

    /// The counters that have grown since it was asked last, and by how much.
    fn next(&mut self) -> Vec<(u32, Counter)> {
        let Self { map, page, known, .. } = self;
        let mut grown = Vec::new();
        for (number, known) in (0..).zip(known.chunks_mut(PAGE_COUNTERS)) {
            sys::map_lookup(map.as_fd(), number, bytemuck::cast_slice_mut(page))
                .expect("a page of counters");
            for (index, known) in (0..).zip(known) {
                let mut now = Counter::default();
                for cpu in &*page {
                    now.packets += cpu.counters[index].packets;
                    now.bytes += cpu.counters[index].bytes;
                }
                if now != *known {
                    let (packets, bytes) = (now.packets - known.packets, now.bytes - known.bytes);
                    grown.push((
                        number * PAGE_COUNTERS as u32 + index as u32,
                        Counter { packets, bytes },
                    ));
                    *known = now;
                }
            }
        }
        grown
    }

    /// What a packet of this length was counted as, the only one since it was asked last.
    ///
    /// # Panics
    ///
    /// If anything else was counted, or nothing, or not the whole packet.
    pub fn entry(&mut self, len: usize) -> Entry {
        let grown = self.next();
        let [(counter, by)] = grown[..] else { panic!("one counter has grown: {grown:?}") };
        assert_eq!((by.packets, by.bytes), (1, len as u64), "one packet with all its bytes");
        if let Some(index) = self.rules.iter().position(|rule| *rule == counter) {
            return Entry::Rule(index);
        }
        let outcomes = Verdict::ALL
            .iter()
            .flat_map(|&verdict| Reason::ALL.iter().map(move |&reason| (verdict, reason)));
        let outcome = outcomes
            .into_iter()
            .find(|&(verdict, reason)| outcome_counter(verdict, reason) == counter);
        let (verdict, reason) = outcome.unwrap_or_else(|| panic!("nobody's counter: {counter}"));
        Entry::Outcome(verdict, reason)
    }
}

/// A manifest is JSON in the chunks of an array, behind its length.
fn read_manifest(map: &OwnedFd) -> Manifest {
    let shape = sys::map_shape(map.as_fd()).expect("the manifest's shape");
    let mut bytes = Vec::new();
    for chunk in 0..shape.max_entries {
        let mut value = vec![0; shape.value_size as usize];
        sys::map_lookup(map.as_fd(), chunk, &mut value).expect("a chunk of the manifest");
        bytes.extend(value);
    }
    let (len, text) = bytes.split_at(size_of::<u64>());
    let len = u64::from_ne_bytes(len.try_into().expect("eight bytes"));
    serde_json::from_slice(&text[..len as usize]).expect("the manifest")
}

/// How many values an element of a per-CPU map has.
fn possible_cpus() -> usize {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").expect("the possible CPUs");
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.expect("a range of CPUs") + 1
}
