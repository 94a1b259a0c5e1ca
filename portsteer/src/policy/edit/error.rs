//! Why an edit cannot be made.

use std::fmt;

use ipnet::IpNet;
use thiserror::Error;

use super::RuleRef;
use crate::policy::{
    file::{did_you_mean, quote},
    prefixes,
};

/// Why an edit cannot be made, and what to do about it: one line, without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EditError {
    /// The text has errors of syntax.
    #[error("line {line} of the policy file is wrong ({message}): `portsteer check` shows it")]
    Syntax { line: usize, message: String },
    /// Something that has to be edited is not what it has to be.
    #[error("{what} in the policy file: `portsteer check` shows what is wrong with it")]
    Shape { what: String },
    /// A text that refers to no rule.
    #[error("{} is no rule: {why}", quote(.text))]
    WrongRef { text: String, why: &'static str },
    /// No rule is called so, or there are not so many.
    #[error("there is no rule {}: {hint}", shown(.rule))]
    NoRule { rule: RuleRef, hint: String },
    /// A number of one rule that is the name of another, the one at `number`.
    #[error(
        "{} may be a rule's number, and is the name of rule #{number}: `name={name}` means that one",
        quote(.name)
    )]
    AmbiguousRef { name: String, number: usize },
    /// The rule at `number` has the name that is asked for.
    #[error(
        "rule #{number} is named {} already: choose another name, or remove that rule first",
        quote(.name)
    )]
    NameTaken { name: String, number: usize },
    /// A text that cannot be a rule's name.
    #[error("{} is no name for a rule: {fault}", quote(.name))]
    WrongName { name: String, fault: String },
    /// A text that is no action.
    #[error("the action cannot be {}: {hint}", quote(.action))]
    WrongAction { action: String, hint: String },
    /// The rule that is moved is also where it shall be moved to.
    #[error("rule {} cannot come before or after itself: name another rule", shown(.rule))]
    BesideItself { rule: RuleRef },
    /// No set is called so.
    #[error("there is no set {}: {hint}", quote(.name))]
    NoSet { name: String, hint: String },
    /// A text that is no prefix.
    #[error("{message}")]
    WrongPrefix { message: String },
    /// Prefixes that are to be removed and are no entries of the set, at least one.
    #[error("{}", not_in_set(.set, .prefixes))]
    NotInSet { set: String, prefixes: Vec<NotInSet> },
    /// A set's file that is not UTF-8.
    #[error("the set file is UTF-16 text: save it as UTF-8")]
    Utf16,
    /// A set's file has prefixes, and the edit is about a rule.
    #[error("a set file has no rules: they are in the policy file")]
    NoPrefixes,
}

/// A prefix that is no entry of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotInSet {
    pub prefix: IpNet,
    /// The narrowest entry that it is part of.
    pub within: Option<IpNet>,
}

/// How many prefixes one message tells.
const MAX_TOLD: usize = 4;

fn shown(rule: &RuleRef) -> String {
    match rule {
        RuleRef::Name(name) => quote(name),
        number @ RuleRef::Number(_) => number.to_string(),
    }
}

fn not_in_set(set: &str, missing: &[NotInSet]) -> String {
    let mut told: Vec<String> = missing.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if missing.len() > MAX_TOLD {
        told.push(format!("and {} more", missing.len() - MAX_TOLD));
    }
    let hint = if missing.iter().any(|missing| missing.within.is_some()) {
        "an entry can only be removed whole: remove it, and add what shall stay"
    } else {
        "nothing was removed"
    };
    format!("the set {} does not have {}: {hint}", quote(set), told.join(", "))
}

impl fmt::Display for NotInSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", prefixes::bare(self.prefix))?;
        match self.within {
            Some(within) => write!(f, " (only as part of `{}`)", prefixes::bare(within)),
            None => Ok(()),
        }
    }
}

/// What to say where a name is unknown: the one that is near, else the first ones, or that there are
/// none.
pub(super) fn known_names<'n>(
    name: &str,
    names: impl Iterator<Item = &'n str> + Clone,
    noun: &str,
) -> String {
    const MAX_LISTED: usize = 8;
    if let Some(near) = crate::policy::diagnostic::suggest(name, names.clone()) {
        return did_you_mean(&quote(near));
    }
    let mut listed: Vec<String> = names.clone().take(MAX_LISTED).map(quote).collect();
    let more = names.count().saturating_sub(MAX_LISTED);
    if more > 0 {
        listed.push(format!("{more} more"));
    }
    match listed.len() {
        0 => format!("the policy has no {noun}s"),
        1 => format!("the only {noun} is {}", listed[0]),
        _ => format!("the {noun}s are {}", listed.join(", ")),
    }
}
