//! Edits of the sets whose prefixes stand in the policy file.

use std::collections::HashSet;

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::{
    EditError, Edited, NotInSet,
    array::{Array, Comments},
    check_prefixes,
    error::known_names,
    splice::Splices,
    with_tree,
};
use crate::policy::{file::quote, prefixes};

/// Puts prefixes into a set.
pub(super) fn add(text: &str, set: &str, new: &[IpNet]) -> Result<Edited, EditError> {
    check_prefixes(new)?;
    let (start, entries) = match find(text, set)? {
        Found::File(file) => return Ok(Edited::SetFile(file)),
        Found::List { start, entries } => (start, entries),
    };
    let mut known: HashSet<IpNet> = entries.into_iter().flatten().collect();
    let array = Array::new(text, start);
    let quote =
        if array.last_item().is_some_and(|item| item.starts_with('\'')) { '\'' } else { '"' };
    let new: Vec<String> = new
        .iter()
        .filter(|&&prefix| known.insert(prefix))
        .map(|&prefix| format!("{quote}{}{quote}", prefixes::bare(prefix)))
        .collect();
    let mut splices = Splices::default();
    array.append(&new, &mut splices);
    Ok(Edited::Text(splices.apply(text)))
}

/// Takes prefixes out of a set, all of them or none.
pub(super) fn remove(text: &str, set: &str, gone: &[IpNet]) -> Result<Edited, EditError> {
    check_prefixes(gone)?;
    let (start, entries) = match find(text, set)? {
        Found::File(file) => return Ok(Edited::SetFile(file)),
        Found::List { start, entries } => (start, entries),
    };
    let gone_set: HashSet<IpNet> = gone.iter().copied().collect();
    let is_gone = |entry: &Option<IpNet>| entry.is_some_and(|entry| gone_set.contains(&entry));
    let marked: Vec<bool> = entries.iter().map(is_gone).collect();
    let found: HashSet<IpNet> =
        entries.iter().filter(|entry| is_gone(entry)).flatten().copied().collect();
    if found.len() < gone_set.len() {
        return Err(not_in_set(set, gone, &found, entries.into_iter().flatten()));
    }
    let mut splices = Splices::default();
    Array::new(text, start).remove(&marked, Comments::Stay, &mut splices);
    Ok(Edited::Text(splices.apply(text)))
}

/// Says of prefixes which of them a set does not have.
pub(crate) fn not_in_set(
    set: &str,
    gone: &[IpNet],
    found: &HashSet<IpNet>,
    entries: impl Iterator<Item = IpNet>,
) -> EditError {
    let mut seen = HashSet::new();
    let is_missing = |prefix: &IpNet| !found.contains(prefix) && seen.insert(*prefix);
    let mut missing: Vec<NotInSet> = gone
        .iter()
        .copied()
        .filter(is_missing)
        .map(|prefix| NotInSet { prefix, within: None })
        .collect();
    let entries: HashSet<IpNet> = entries.collect();
    for NotInSet { prefix, within } in &mut missing {
        let mut wider = prefix.supernet();
        while let Some(candidate) = wider {
            if entries.contains(&candidate) {
                *within = Some(candidate);
                break;
            }
            wider = candidate.supernet();
        }
    }
    EditError::NotInSet { set: set.to_owned(), prefixes: missing }
}

/// Where a set has its prefixes.
enum Found {
    /// In a list that begins at this byte. Its items, as far as they are prefixes.
    List { start: usize, entries: Vec<Option<IpNet>> },
    /// In a file of this name.
    File(String),
}

fn find(text: &str, set: &str) -> Result<Found, EditError> {
    with_tree(text, |root| {
        let none = DeTable::default();
        let sets = match root.get("sets").map(toml::Spanned::get_ref) {
            None => &none,
            Some(DeValue::Table(sets)) => sets,
            Some(_) => return Err(EditError::Shape { what: "`sets` is no table".to_owned() }),
        };
        let Some(found) = sets.get(set) else {
            let mut names: Vec<_> = sets.keys().collect();
            names.sort_by_key(|name| name.span().start); // the table sorts by name
            let hint = known_names(set, names.iter().map(|name| name.get_ref().as_ref()), "set");
            return Err(EditError::NoSet { name: set.to_owned(), hint });
        };
        let wrong =
            |what: &str| Err(EditError::Shape { what: format!("the set {} {what}", quote(set)) });
        let DeValue::Table(table) = found.get_ref() else { return wrong("is no table") };
        match (table.get("addresses"), table.get("file")) {
            (Some(list), None) => {
                let DeValue::Array(items) = list.get_ref() else {
                    return wrong("has `addresses` that are no list");
                };
                let entry = |item: &toml::Spanned<DeValue<'_>>| {
                    prefixes::parse(item.get_ref().as_str()?).ok()
                };
                Ok(Found::List {
                    start: list.span().start,
                    entries: items.iter().map(entry).collect(),
                })
            }
            (None, Some(file)) => match file.get_ref().as_str() {
                Some(file) => Ok(Found::File(file.to_owned())),
                None => wrong("has a `file` that is no string"),
            },
            (Some(_), Some(_)) => wrong("has both `addresses` and `file`"),
            (None, None) => wrong("has neither `addresses` nor `file`"),
        }
    })
}
