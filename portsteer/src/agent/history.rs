//! What happened to interfaces and policies, for `portsteer status`.

use std::{
    collections::VecDeque,
    time::{SystemTime, UNIX_EPOCH},
};

use super::store::Store;
use crate::api::Event;

/// How many events are kept.
const MOST: usize = 64;
const FILE: &str = "history.json";

/// The latest events.
#[derive(Debug, Default)]
pub struct History {
    events: VecDeque<Event>,
    is_changed: bool,
}

impl History {
    /// Those that were kept. Whatever is wrong with them is no reason not to go on.
    pub fn read(store: &Store) -> Self {
        let events = store.read_json(FILE).ok().flatten().unwrap_or_default();
        Self { events, is_changed: false }
    }

    /// Something happened now.
    pub fn add(&mut self, interface: Option<&str>, what: &str) {
        if self.events.len() >= MOST {
            self.events.pop_front();
        }
        let (interface, what) = (interface.map(str::to_owned), what.to_owned());
        self.events.push_back(Event { at: now(), interface, what });
        self.is_changed = true;
    }

    /// All of them, the latest last.
    pub fn events(&self) -> Vec<Event> {
        self.events.iter().cloned().collect()
    }

    /// Keeps them, if there is news.
    pub fn write(&mut self, store: &Store) {
        if self.is_changed {
            // A full disk is told where policies cannot be kept.
            let _ = store.write_json(FILE, &self.events);
            self.is_changed = false;
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
