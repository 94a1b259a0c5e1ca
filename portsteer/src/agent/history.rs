//! What happened to interfaces and policies, for `portsteer status`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::store::Store;
use crate::api::Event;

/// How many events are kept.
const MOST: usize = 64;
const FILE: &str = "history.json";

/// How often what happened to interfaces is written: they may change as often as others like.
const INTERVAL: Duration = Duration::from_secs(10);

/// The latest events.
#[derive(Debug, Default)]
pub struct History {
    events: VecDeque<Event>,
    is_changed: bool,
    /// Whether a policy is what has changed, which is kept at once.
    is_urgent: bool,
    written: Option<Instant>,
}

impl History {
    /// Those that were kept. Whatever is wrong with them is no reason not to go on.
    pub fn read(store: &Store) -> Self {
        let events = store.read_json(FILE).ok().flatten().unwrap_or_default();
        Self { events, ..Self::default() }
    }

    /// Something happened now.
    pub fn add(&mut self, interface: Option<&str>, what: &str) {
        if self.events.len() >= MOST {
            self.events.pop_front();
        }
        self.is_urgent |= interface.is_none();
        let (interface, what) = (interface.map(str::to_owned), what.to_owned());
        self.events.push_back(Event { at: now(), interface, what });
        self.is_changed = true;
    }

    /// All of them, the latest last.
    pub fn events(&self) -> Vec<Event> {
        self.events.iter().cloned().collect()
    }

    /// Keeps them, if there is news that may not wait. Returns whether it did.
    pub fn write(&mut self, store: &Store, now: Instant) -> bool {
        let is_due =
            self.written.is_none_or(|then| now.saturating_duration_since(then) >= INTERVAL);
        (self.is_urgent || is_due) && self.write_now(store, now)
    }

    /// Keeps them, if there is news.
    pub fn write_now(&mut self, store: &Store, now: Instant) -> bool {
        if !self.is_changed {
            return false;
        }
        // A full disk is told where policies cannot be kept.
        let _ = store.write_json(FILE, &self.events);
        (self.is_changed, self.is_urgent, self.written) = (false, false, Some(now));
        true
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Instance;

    #[test]
    fn interfaces_that_flap_are_written_down_a_few_times_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), &Instance::new("main").unwrap());
        let (mut history, start) = (History::read(&store), Instant::now());
        let mut written = 0;
        for at in 0..60_000 {
            let now = start + Duration::from_millis(at);
            history.add(Some("uplink"), "is down");
            written += usize::from(history.write(&store, now));
        }
        assert_eq!(written, 6);
        let now = start + Duration::from_millis(60_001);
        history.add(None, "a policy in force");
        assert!(history.write(&store, now) && !history.write_now(&store, now));
        assert_eq!(History::read(&store).events(), history.events());
    }
}
