//! The parser's errors in our words, and how they go together with the errors of meaning.

use std::{collections::HashSet, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{is_bare, quote};
use crate::policy::diagnostic::Diagnostic;

/// The parser's errors in our words, each once.
pub(super) fn syntax_diagnostics(
    text: &str,
    root: &DeTable<'_>,
    errors: &[toml::de::Error],
) -> Vec<Diagnostic> {
    if errors.is_empty() {
        return Vec::new();
    }
    let duplicates = Duplicates::new(root);
    let mut seen = HashSet::new();
    errors
        .iter()
        .filter(|error| seen.insert((error.span().map(|span| span.start), error.message())))
        .map(|error| syntax_diagnostic(text, error, &duplicates))
        .collect()
}

fn syntax_diagnostic(
    text: &str,
    error: &toml::de::Error,
    duplicates: &Duplicates<'_, '_>,
) -> Diagnostic {
    let (message, expected) = match error.message().split_once(", expected ") {
        Some((message, expected)) => (message, Some(format!("expected {expected}"))),
        None => (error.message(), None),
    };
    let Some(span) = error.span() else {
        return Diagnostic::error(message);
    };
    let found = text.get(span.clone()).unwrap_or_default();
    if message == "duplicate key" {
        let error = Diagnostic::error(format!("the key {} is there twice", quote(found)))
            .at(span.clone())
            .label("again here");
        return match duplicates.first(&span, found) {
            Some(first) => error.related(first, "first here"),
            None => error,
        };
    }
    let is_scalar = message == "string values must be quoted" || message.starts_with("invalid ");
    if is_scalar && found.is_empty() && message == "string values must be quoted" {
        return Diagnostic::error("the value is missing").at(span).label("expected a value");
    }
    if is_scalar && found.starts_with(|c: char| c.is_ascii_alphabetic()) && is_bare(found) {
        return Diagnostic::error("string values must be quoted")
            .at(span)
            .label("expected a string, a number or a list")
            .help(format!("write \"{found}\""));
    }
    if let Some(range) = unquoted_range(found) {
        return Diagnostic::error("a range must be quoted")
            .at(span)
            .label("expected a string, a number or a list")
            .help(format!("write \"{range}\""));
    }
    let mut error = Diagnostic::error(message).at(span);
    error.label = expected;
    error
}

/// A range of ports that stands in the file without its quotes, which to TOML is a bad date.
fn unquoted_range(text: &str) -> Option<String> {
    let (first, last) = text.split_once('-')?;
    let is_port =
        |text: &str| (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let (first, last) = (first.trim(), last.trim());
    (is_port(first) && is_port(last)).then(|| format!("{first}-{last}"))
}

/// Finds the first of two equal keys: the parser tells only the second.
struct Duplicates<'t, 'i> {
    /// The tables with where they start, in ascending order.
    tables: Vec<(usize, &'t DeTable<'i>)>,
    root: &'t DeTable<'i>,
}

impl<'t, 'i> Duplicates<'t, 'i> {
    fn new(root: &'t DeTable<'i>) -> Self {
        let mut tables = vec![(0, root)];
        for value in root.values() {
            match value.get_ref() {
                DeValue::Table(table) => {
                    tables.push((value.span().start, table));
                    tables.extend(table.values().filter_map(|value| {
                        Some((value.span().start, value.get_ref().as_table()?))
                    }));
                }
                DeValue::Array(items) => tables.extend(
                    items
                        .iter()
                        .filter_map(|item| Some((item.span().start, item.get_ref().as_table()?))),
                ),
                _ => {}
            }
        }
        tables.sort_by_key(|&(start, _)| start);
        Self { tables, root }
    }

    /// Where the key stands first that stands again at `second`.
    fn first(&self, second: &Range<usize>, key: &str) -> Option<Range<usize>> {
        let key = key.trim_matches(['"', '\'']);
        let index = self.tables.partition_point(|&(start, _)| start < second.start);
        let (_, table) = self.tables.get(index.checked_sub(1)?)?;
        [*table, self.root]
            .into_iter()
            .filter_map(|table| table.get_key_value(key))
            .map(|(key, _)| key.span())
            .find(|first| first.end <= second.start)
    }
}

/// Takes away the errors of meaning that touch one of syntax: they are its consequences.
pub(super) fn remove_consequences(errors: &mut Vec<Diagnostic>, syntax_errors: &[Diagnostic]) {
    if syntax_errors.is_empty() {
        return;
    }
    let mut starts: Vec<usize> = Vec::new(); // of errors of syntax
    let mut furthest: Vec<usize> = Vec::new(); // where the first ones up to this one end at most
    let mut spans: Vec<_> = syntax_errors.iter().filter_map(|error| error.span.clone()).collect();
    spans.sort_by_key(|span| span.start);
    for span in spans {
        starts.push(span.start);
        furthest.push(furthest.last().map_or(span.end, |&end| span.end.max(end)));
    }
    errors.retain(|error| {
        let Some(span) = &error.span else { return true };
        let before = starts.partition_point(|&start| start <= span.end);
        before.checked_sub(1).is_none_or(|last| furthest[last] < span.start)
    });
}

/// Drops a tree without recursion: the parser allows some 6,000 levels, and dropping each takes a
/// stack frame or two.
pub(in crate::policy) fn dismantle(root: DeTable<'_>) {
    let mut pending = vec![DeValue::Table(root)];
    let is_nested = |value: &DeValue<'_>| matches!(value, DeValue::Table(_) | DeValue::Array(_));
    while let Some(value) = pending.pop() {
        match value {
            DeValue::Table(table) => pending
                .extend(table.into_iter().map(|(_, value)| value.into_inner()).filter(is_nested)),
            DeValue::Array(items) => {
                pending.extend(items.into_iter().map(Spanned::into_inner).filter(is_nested));
            }
            _ => {}
        }
    }
}
