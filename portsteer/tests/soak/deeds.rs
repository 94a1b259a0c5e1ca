//! What was done, how often, and how it ended.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

#[derive(Debug, Default)]
pub struct Deeds(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Deeds {
    /// One more of these, with this outcome.
    pub fn add(&self, what: &'static str, outcome: &'static str) {
        let mut deeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *deeds.entry((what, outcome)).or_default() += 1;
    }

    /// How many there were.
    pub fn count(&self, what: &str, outcome: &str) -> u64 {
        let deeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        deeds.iter().filter(|(key, _)| **key == (what, outcome)).map(|(_, count)| count).sum()
    }

    /// One line for each thing, with its outcomes.
    pub fn lines(&self) -> Vec<String> {
        let deeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines: BTreeMap<&str, String> = BTreeMap::new();
        for ((what, outcome), count) in &*deeds {
            let line = lines.entry(what).or_insert_with(|| format!("{what}:"));
            let comma = if line.ends_with(':') { "" } else { "," };
            *line += &format!("{comma} {count} {outcome}");
        }
        lines.into_values().collect()
    }
}
