//! A difference as text for people.

use std::fmt::{self, Write as _};

use super::{Change, Difference, ListedRule, SetChange};

/// How many rules are shown.
const MAX_RULES: usize = 1_000;

/// How long a list's old and new text together may be, in bytes, to be shown in full. Of longer ones
/// only the difference is.
const MAX_IN_FULL: usize = 60;

/// How many items of a list are shown where it is not shown in full.
const MAX_ITEMS: usize = 16;

/// How many columns lines of prefixes take.
const MAX_COLUMNS: usize = 100;

impl Difference {
    /// The difference as text for people, in the manner of a unified diff: every line begins with
    /// `+` for what comes, `-` for what goes or `~` for what changes. Empty if nothing changes. Rules
    /// are numbered as they are in the new policy, those that go as they were in the old one. Only the
    /// first 1,000 of them are shown.
    #[must_use]
    pub fn render(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.settings {
            writeln!(f, "~ {}: {}", change.name, Values(change))?;
        }
        for target in &self.targets.removed {
            writeln!(f, "- target {}: {}", target.name, target.leads_to)?;
        }
        for target in &self.targets.added {
            writeln!(f, "+ target {}: {}", target.name, target.leads_to)?;
        }
        for change in &self.targets.changed {
            writeln!(f, "~ target {}: {}", change.name, Values(change))?;
        }
        for set in &self.sets.removed {
            writeln!(f, "- set {}: {}", set.name, prefixes(set.old_count))?;
        }
        for set in &self.sets.added {
            writeln!(f, "+ set {}: {}", set.name, prefixes(set.new_count))?;
            write_prefixes(f, set)?;
        }
        for set in &self.sets.changed {
            let SetChange { name, new_count, added_count, removed_count, .. } = set;
            let now = prefixes(*new_count);
            writeln!(f, "~ set {name}: +{added_count} -{removed_count}, now {now}")?;
            write_prefixes(f, set)?;
        }
        self.write_rules(f)
    }
}

impl Difference {
    fn write_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = &self.rules;
        // By position; what goes stands before what comes in its place.
        let mut lines: Vec<(usize, u8, String)> = Vec::new();
        for rule in rules.removed.iter().take(MAX_RULES) {
            lines.push((rule.position, 0, format!("- {}", Listed(rule))));
        }
        for rule in rules.added.iter().take(MAX_RULES) {
            lines.push((rule.position, 1, format!("+ {}", Listed(rule))));
        }
        let mut changed = rules.changed.iter().peekable();
        let mut moved = rules.moved.iter().peekable();
        let mut stays_count = 0;
        loop {
            let next = changed.peek().map(|rule| rule.position);
            let position = match (next, moved.peek().map(|rule| rule.new_position)) {
                (Some(changed), Some(moved)) => changed.min(moved),
                (Some(position), None) | (None, Some(position)) => position,
                (None, None) => break,
            };
            let changed = changed.next_if(|rule| rule.position == position);
            let moved = moved.next_if(|rule| rule.new_position == position);
            stays_count += 1;
            if stays_count > MAX_RULES {
                continue;
            }
            let mut what: Vec<String> = Vec::new();
            what.extend(moved.map(|rule| format!("moved from #{}", rule.old_position)));
            let fields = changed.iter().flat_map(|rule| &rule.fields);
            what.extend(fields.map(|field| format!("{} {}", field.name, Values(field))));
            let label = changed.map(|rule| &rule.label).or(moved.map(|rule| &rule.label));
            let label = label.map_or("", String::as_str);
            lines.push((position, 2, format!("~ rule #{position} {label}: {}", what.join("; "))));
        }
        lines.sort_by_key(|&(position, kind, _)| (position, kind));
        for (.., line) in lines.iter().take(MAX_RULES) {
            writeln!(f, "{line}")?;
        }
        let count = rules.removed.len() + rules.added.len() + stays_count;
        if count > MAX_RULES {
            writeln!(
                f,
                "~ and {} more rules; in all, {} come, {} go and {stays_count} change or move",
                count - MAX_RULES,
                rules.added.len(),
                rules.removed.len(),
            )?;
        }
        Ok(())
    }
}

/// A rule that comes or goes.
struct Listed<'a>(&'a ListedRule);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ListedRule { position, name, matches, action, .. } = self.0;
        write!(f, "rule #{position}")?;
        if let Some(name) = name {
            write!(f, " {name}")?;
        }
        write!(f, ": {matches}, {action}")
    }
}

/// What a value was and is.
struct Values<'a>(&'a Change);

impl fmt::Display for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { old, new, added, removed, .. } = self.0;
        let is_list = !added.is_empty() || !removed.is_empty();
        let is_any = |text: &str| text == "any";
        if !is_list || old.len() + new.len() <= MAX_IN_FULL {
            return write!(f, "{old} -> {new}");
        }
        // That everything matches must not get lost.
        if is_any(old) || is_any(new) {
            let (old, new) = (short(old, removed), short(new, added));
            return write!(f, "{old} -> {new}");
        }
        let mut text = String::new();
        for (sign, items) in [('-', removed), ('+', added)] {
            for item in items.iter().take(MAX_ITEMS) {
                write!(text, " {sign}{item}")?;
            }
            if items.len() > MAX_ITEMS {
                write!(text, " ({sign}{} more)", items.len() - MAX_ITEMS)?;
            }
        }
        f.write_str(text.trim_start())
    }
}

/// A list, cut where it has many items.
fn short(text: &str, items: &[String]) -> String {
    if items.len() <= MAX_ITEMS {
        return text.to_owned();
    }
    format!("{} and {} more", items[..MAX_ITEMS].join(","), items.len() - MAX_ITEMS)
}

fn prefixes(count: usize) -> String {
    if count == 1 { "1 prefix".to_owned() } else { format!("{count} prefixes") }
}

/// The prefixes that go and those that come, as many as are known.
fn write_prefixes(f: &mut fmt::Formatter<'_>, set: &SetChange) -> fmt::Result {
    let lists = [('-', &set.removed, set.removed_count), ('+', &set.added, set.added_count)];
    for (sign, listed, count) in lists {
        let mut line = format!("{sign}    ");
        let mut words: Vec<String> = listed.clone();
        if count > listed.len() {
            words.push(format!("and {} more", count - listed.len()));
        }
        let mut is_first = true;
        for word in words {
            if !is_first && line.len() + 1 + word.len() > MAX_COLUMNS {
                writeln!(f, "{line}")?;
                line = format!("{sign}    ");
            }
            line.push(' ');
            line.push_str(&word);
            is_first = false;
        }
        if !is_first {
            writeln!(f, "{line}")?;
        }
    }
    Ok(())
}
