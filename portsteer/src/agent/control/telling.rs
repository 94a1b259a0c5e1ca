//! What is said of things that keep changing: the first changes of a minute, and then how many were left out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long is counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// How many changes of one thing are said.
const OF_EACH: usize = 10;

/// How many changes of all things are said.
const OF_ALL: usize = 100;

/// How many things are named of which changes were left out.
const NAMED: usize = 10;

/// What was said and left out of late.
#[derive(Debug, Default)]
pub struct Telling {
    began: Option<Instant>,
    said: usize,
    things: BTreeMap<String, Thing>,
    /// Changes of things that are not counted by themselves.
    others: usize,
}

#[derive(Debug, Default)]
struct Thing {
    said: usize,
    left_out: usize,
    last: String,
}

/// Changes that were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// What has changed; None for several things.
    pub thing: Option<String>,
    pub count: usize,
    /// The last change.
    pub last: Option<String>,
}

impl LeftOut {
    /// In words, without the thing's name.
    pub fn words(&self) -> String {
        let changes = if self.count == 1 { "change" } else { "changes" };
        let last =
            self.last.as_ref().map_or_else(String::new, |last| format!(", the last: {last}"));
        format!("{} more {changes} within a minute{last}", self.count)
    }
}

impl Telling {
    /// Whether a change is to be said; else it is counted.
    pub fn may_say(&mut self, thing: &str, what: &str, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let known = match self.things.contains_key(thing) {
            false if self.things.len() >= OF_ALL => {
                self.others += 1;
                return false;
            }
            _ => self.things.entry(thing.to_owned()).or_default(),
        };
        if known.said < OF_EACH && self.said < OF_ALL {
            known.said += 1;
            self.said += 1;
            return true;
        }
        known.left_out += 1;
        what.clone_into(&mut known.last);
        false
    }

    /// What was left out, once the time is over.
    pub fn left_out(&mut self, now: Instant) -> Vec<LeftOut> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) < WINDOW) {
            return Vec::new();
        }
        let Self { things, others, .. } = std::mem::take(self);
        let mut left_out: Vec<LeftOut> = things
            .into_iter()
            .filter(|(_, thing)| thing.left_out > 0)
            .map(|(name, thing)| LeftOut {
                thing: Some(name),
                count: thing.left_out,
                last: Some(thing.last),
            })
            .collect();
        let rest = left_out.split_off(left_out.len().min(NAMED));
        let count = others + rest.iter().map(|left_out| left_out.count).sum::<usize>();
        if count > 0 {
            left_out.push(LeftOut { thing: None, count, last: None });
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_changes_some_are_said_and_the_others_counted() {
        let (mut telling, start) = (Telling::default(), Instant::now());
        let said = (0..1_000).filter(|at| {
            let what = if at % 2 == 0 { "is down" } else { "is up" };
            telling.may_say("uplink", what, start + Duration::from_millis(*at))
        });
        assert_eq!(said.count(), OF_EACH);
        assert!(telling.may_say("other", "is up", start));
        assert_eq!(telling.left_out(start + WINDOW / 2), []);
        let left_out = telling.left_out(start + WINDOW);
        assert_eq!(left_out.len(), 1);
        assert_eq!(left_out[0].thing.as_deref(), Some("uplink"));
        assert_eq!(left_out[0].words(), "990 more changes within a minute, the last: is up");
        // And from the beginning.
        assert!(telling.may_say("uplink", "is down", start + WINDOW));
        assert_eq!(telling.left_out(start + WINDOW * 3), []);
    }

    #[test]
    fn many_things_are_not_said_either() {
        let (mut telling, start) = (Telling::default(), Instant::now());
        let said = (0..100_000).filter(|at| telling.may_say(&format!("veth{at}"), "is up", start));
        assert_eq!(said.count(), OF_ALL);
        for at in 0..OF_ALL {
            telling.may_say(&format!("veth{at}"), "is down", start);
        }
        let left_out = telling.left_out(start + WINDOW);
        assert_eq!(left_out.len(), NAMED + 1);
        assert_eq!(left_out.iter().map(|one| one.count).sum::<usize>(), 100_000);
    }
}
