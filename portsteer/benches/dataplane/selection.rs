//! What was asked for by name.

use std::fmt::Write as _;

use crate::{Measured, Result};

pub struct Selection<'a> {
    /// Contests; none means all.
    pub contests: &'a [String],
    /// Rows, by their names or parts of them; none means all.
    pub only: &'a [String],
}

impl Selection<'_> {
    /// Leaves out what was not asked for.
    pub fn apply(&self, all: &mut Vec<Box<dyn Measured>>) -> Result<()> {
        if let Some(unknown) =
            self.contests.iter().find(|name| all.iter().all(|one| one.name() != **name))
        {
            let known = names(all);
            return Err(format!("there is no contest {unknown}, only {}", known.join(", ")).into());
        }
        all.retain(|one| {
            self.contests.is_empty() || self.contests.iter().any(|name| name == one.name())
        });
        if self.only.is_empty() {
            return Ok(());
        }
        let rows: Vec<String> = all.iter().flat_map(|one| one.rows()).collect();
        let mut wanted = Vec::new();
        for text in self.only {
            // A name in full means that row alone, also where others begin like it.
            let found: Vec<&String> = match rows.iter().find(|row| is_same(row, text)) {
                Some(row) => vec![row],
                None => rows.iter().filter(|row| contains(row, text)).collect(),
            };
            if found.is_empty() {
                let listing = listing(all);
                return Err(format!(
                    "no row is called {text}, or has that in its name:\n{listing}"
                )
                .into());
            }
            wanted.extend(found);
        }
        let is_wanted = |row: &str| wanted.iter().any(|wanted| *wanted == row);
        all.retain(|one| one.rows().iter().any(|row| is_wanted(row)));
        for one in all {
            one.keep(&is_wanted);
        }
        Ok(())
    }
}

fn is_same(row: &str, text: &str) -> bool {
    row.eq_ignore_ascii_case(text.trim())
}

fn contains(row: &str, text: &str) -> bool {
    row.to_ascii_lowercase().contains(&text.trim().to_ascii_lowercase())
}

/// All names of contests, each once.
fn names(all: &[Box<dyn Measured>]) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for one in all {
        if !names.contains(&one.name()) {
            names.push(one.name());
        }
    }
    names
}

/// All contests and their rows, one a line.
pub fn listing(all: &[Box<dyn Measured>]) -> String {
    let mut text = String::new();
    for name in names(all) {
        let _ = writeln!(text, "{name}");
        let mut rows = Vec::new();
        for row in all.iter().filter(|one| one.name() == name).flat_map(|one| one.rows()) {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        for row in rows {
            let _ = writeln!(text, "  {row}");
        }
    }
    text
}
