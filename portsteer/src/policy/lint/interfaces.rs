//! What the rules ask of interfaces, each different list once, and which of the lists hold all of
//! another.
//!
//! Where the policy names its interfaces without globs, a list comes down to some of these names.
//! Elsewhere patterns are compared, as far as that can be told from their text.

use std::{
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
};

use globset::{Glob, GlobMatcher};

use super::{ANY, Steps};
use crate::policy::{InterfacePattern, Policy};

/// The lists of interfaces, known by their place; [`ANY`] is every interface of the policy.
#[derive(Debug)]
pub(super) struct Interfaces {
    /// [`ANY`] is the empty list.
    lists: Vec<Vec<Pattern>>,
    supersets: Vec<Option<Rc<[u32]>>>,
    /// The list of which the policy certainly has nothing.
    nothing: Option<u32>,
}

/// A name or a glob; one that is no proper glob matches nothing.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    glob: Option<Option<GlobMatcher>>,
}

impl Pattern {
    fn new(pattern: &InterfacePattern) -> Self {
        let glob = || Glob::new(&pattern.text).ok().map(|glob| glob.compile_matcher());
        Self { text: pattern.text.clone(), glob: pattern.is_glob.then(glob) }
    }

    fn matches(&self, name: &str) -> bool {
        match &self.glob {
            None => self.text == name,
            Some(glob) => glob.as_ref().is_some_and(|glob| glob.is_match(name)),
        }
    }

    fn is_everything(&self) -> bool {
        self.text == "*" && self.glob.is_some()
    }

    /// What every name begins with that it matches.
    fn prefix(&self) -> &str {
        let special = ['*', '?', '[', '{', '\\'];
        let end = self.glob.as_ref().and_then(|_| self.text.find(special));
        &self.text[..end.unwrap_or(self.text.len())]
    }

    /// Whether every name that `other` matches is known to match.
    fn covers(&self, other: &Self) -> bool {
        if self.text == other.text && self.glob.is_some() == other.glob.is_some() {
            return true;
        }
        if other.glob.is_none() {
            return self.matches(&other.text);
        }
        let is_prefix = self.glob.is_some() && self.text.strip_suffix('*') == Some(self.prefix());
        is_prefix && other.prefix().starts_with(self.prefix())
    }

    /// Whether no name is known to match both.
    fn excludes(&self, other: &Self) -> bool {
        match (&self.glob, &other.glob) {
            (_, None) => !self.matches(&other.text),
            (None, _) => !other.matches(&self.text),
            _ => {
                let (a, b) = (self.prefix(), other.prefix());
                !a.starts_with(b) && !b.starts_with(a)
            }
        }
    }
}

impl Interfaces {
    /// The lists of all rules, in the policy's order.
    pub fn new(policy: &Policy, steps: &mut Steps) -> (Self, Vec<u32>) {
        let attached: Vec<Pattern> = policy.interfaces.iter().map(Pattern::new).collect();
        let is_finite = attached.iter().all(|pattern| pattern.glob.is_none());
        let mut interfaces = Self { lists: vec![Vec::new()], supersets: Vec::new(), nothing: None };
        let mut by_text: HashMap<Vec<&str>, u32> = HashMap::from([(Vec::new(), ANY)]);
        let mut by_names: HashMap<Vec<usize>, u32> = HashMap::new();
        let mut ids = Vec::with_capacity(policy.rules.len());
        for rule in &policy.rules {
            let mut texts: Vec<&str> = rule.interfaces.iter().map(|asked| &*asked.text).collect();
            texts.sort_unstable();
            let entry = match by_text.entry(texts) {
                Entry::Occupied(known) => {
                    ids.push(*known.get());
                    continue;
                }
                Entry::Vacant(entry) => entry,
            };
            let asked: Vec<Pattern> = rule.interfaces.iter().map(Pattern::new).collect();
            let is_known = steps.spend(asked.len() * attached.len()).is_some();
            let id = if asked.iter().any(Pattern::is_everything) {
                ANY
            } else if is_known
                && asked.iter().all(|asked| attached.iter().all(|one| one.excludes(asked)))
            {
                *interfaces.nothing.get_or_insert_with(|| {
                    interfaces.lists.push(Vec::new());
                    interfaces.lists.len() as u32 - 1
                })
            } else if is_finite && is_known {
                let is_asked =
                    |at: &usize| asked.iter().any(|one| one.matches(&attached[*at].text));
                let names: Vec<usize> = (0..attached.len()).filter(is_asked).collect();
                if names.len() == attached.len() {
                    ANY
                } else {
                    *by_names.entry(names).or_insert_with_key(|names| {
                        let names = names.iter().map(|&at| attached[at].clone());
                        interfaces.lists.push(names.collect());
                        interfaces.lists.len() as u32 - 1
                    })
                }
            } else {
                interfaces.lists.push(asked);
                interfaces.lists.len() as u32 - 1
            };
            entry.insert(id);
            ids.push(id);
        }
        interfaces.supersets = vec![None; interfaces.lists.len()];
        (interfaces, ids)
    }

    /// Whether the policy certainly has none of a list's interfaces.
    pub fn is_nothing(&self, id: u32) -> bool {
        self.nothing == Some(id)
    }

    /// The lists that hold all of another, as far as there are steps to find them.
    pub fn supersets(&mut self, id: u32, steps: &mut Steps) -> Rc<[u32]> {
        if let Some(known) = &self.supersets[id as usize] {
            return Rc::clone(known);
        }
        let mut found = vec![ANY];
        if id != ANY {
            found.push(id);
            let list = &self.lists[id as usize];
            for (other, wide) in self.lists.iter().enumerate().skip(1) {
                if steps.spend(list.len() * wide.len()).is_none() {
                    break;
                }
                let covers = || list.iter().all(|one| wide.iter().any(|wide| wide.covers(one)));
                if other != id as usize && covers() {
                    found.push(other as u32);
                }
            }
        }
        let found: Rc<[u32]> = found.into();
        self.supersets[id as usize] = Some(Rc::clone(&found));
        found
    }
}
