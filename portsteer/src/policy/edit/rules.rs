//! Edits of a policy file's rules, be they sections `[[rules]]` or a list of tables.

use toml::de::{DeTable, DeValue};

use super::{
    EditError, NewRule, Place, RuleRef,
    array::{Array, Comments},
    error::known_names,
    lines::Lines,
    newline,
    splice::Splices,
    with_tree,
};
use crate::policy::file::name_fault;

/// Writes a new rule.
pub(super) fn add(text: &str, rule: &NewRule, place: &Place) -> Result<String, EditError> {
    let rules = Rules::find(text)?;
    if let Some(name) = &rule.name {
        if let Some(fault) = name_fault(name) {
            return Err(EditError::WrongName { name: name.clone(), fault });
        }
        if let Some(index) = rules.by_name(name) {
            return Err(EditError::NameTaken { name: name.clone(), number: index + 1 });
        }
    }
    let spot = rules.spot(place)?;
    match &rules.form {
        Form::List { start } => {
            let mut splices = Splices::default();
            Array::new(text, *start).insert(spot.index(), &rule.inline(), &mut splices);
            Ok(splices.apply(text))
        }
        Form::Sections(sections) => {
            let sections = Sections::new(text, sections);
            let block = rule.section().replace('\n', newline(text.as_bytes()));
            Ok(sections.insert(spot, &block, sections.usual_gap(spot)))
        }
    }
}

/// Takes a rule out.
pub(super) fn remove(text: &str, rule: &RuleRef) -> Result<String, EditError> {
    let rules = Rules::find(text)?;
    let index = rules.index(rule)?;
    Ok(match &rules.form {
        Form::List { start } => {
            let mut marked = vec![false; rules.names.len()];
            marked[index] = true;
            let mut splices = Splices::default();
            Array::new(text, *start).remove(&marked, Comments::Leave, &mut splices);
            splices.apply(text)
        }
        Form::Sections(sections) => Sections::new(text, sections).remove(index),
    })
}

/// Moves a rule. Where it stands there already, nothing changes.
pub(super) fn relocate(text: &str, rule: &RuleRef, place: &Place) -> Result<String, EditError> {
    let rules = Rules::find(text)?;
    let from = rules.index(rule)?;
    let spot = rules.spot(place)?;
    if let Place::Before(_) | Place::After(_) = place
        && spot.beside() == Some(from)
    {
        return Err(EditError::BesideItself { rule: rule.clone() });
    }
    let spot = spot.without(from);
    if spot.index() == from {
        return Ok(text.to_owned());
    }
    match &rules.form {
        Form::List { start } => Ok(Array::new(text, *start).relocate(from, spot.index())),
        Form::Sections(sections) => {
            let sections = Sections::new(text, sections);
            let (block, gap) = (sections.block(from), sections.usual_gap(spot));
            let text = sections.remove(from);
            let Form::Sections(others) = Rules::find(&text)?.form else {
                return Err(EditError::Shape { what: "`rules` is mixed up".to_owned() });
            };
            Ok(Sections::new(&text, &others).insert(spot, &block, gap))
        }
    }
}

/// Where a policy file has its rules.
struct Rules {
    names: Vec<Option<String>>,
    form: Form,
}

/// How they are written.
enum Form {
    /// As sections. For each rule, bytes that stand in its sections, its header first: there is more
    /// than one section where a table in a rule has a header of its own.
    Sections(Vec<Vec<usize>>),
    /// As a list of tables, which begins at this byte.
    List { start: usize },
}

/// A place among rules.
#[derive(Debug, Clone, Copy)]
enum Spot {
    /// Where there are no rules.
    Alone,
    Before(usize),
    After(usize),
}

impl Spot {
    /// Where a rule will be that is put here.
    const fn index(self) -> usize {
        match self {
            Self::Alone => 0,
            Self::Before(rule) => rule,
            Self::After(rule) => rule + 1,
        }
    }

    /// The rule that it is named by.
    const fn beside(self) -> Option<usize> {
        match self {
            Self::Alone => None,
            Self::Before(rule) | Self::After(rule) => Some(rule),
        }
    }

    /// The same place where a rule has left.
    fn without(self, gone: usize) -> Self {
        match self {
            Self::Before(rule) if rule == gone => match rule.checked_sub(1) {
                Some(before) => Self::After(before),
                None => self,
            },
            Self::After(rule) if rule == gone && rule > 0 => Self::After(rule - 1),
            Self::After(rule) if rule == gone => Self::Before(0),
            Self::Before(rule) if rule > gone => Self::Before(rule - 1),
            Self::After(rule) if rule > gone => Self::After(rule - 1),
            spot => spot,
        }
    }
}

impl Rules {
    fn find(text: &str) -> Result<Self, EditError> {
        with_tree(text, |root| {
            let Some((_, value)) = root.get_key_value("rules") else {
                return Ok(Self { names: Vec::new(), form: Form::Sections(Vec::new()) });
            };
            let wrong = || EditError::Shape { what: "`rules` is no list of tables".to_owned() };
            let DeValue::Array(items) = value.get_ref() else { return Err(wrong()) };
            let mut names = Vec::with_capacity(items.len());
            let mut sections = Vec::with_capacity(items.len());
            for item in items {
                let DeValue::Table(table) = item.get_ref() else { return Err(wrong()) };
                let name = table.get("name").and_then(|name| name.get_ref().as_str());
                names.push(name.map(str::to_owned));
                sections.push(places(item.span().start, table));
            }
            // A list begins with its bracket, a section with its header's.
            let is_sections = items.first().is_some_and(|item| {
                text.get(item.span()).is_some_and(|header| header.starts_with('['))
            });
            let start = value.span().start;
            let form = if is_sections { Form::Sections(sections) } else { Form::List { start } };
            Ok(Self { names, form })
        })
    }

    fn by_name(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|other| other.as_deref() == Some(name))
    }

    fn index(&self, rule: &RuleRef) -> Result<usize, EditError> {
        let count = self.names.len();
        let (index, hint) = match rule {
            RuleRef::Name(name) => match self.by_name(name) {
                Some(index) => return Ok(index),
                None => (
                    None,
                    known_names(name, self.names.iter().flatten().map(|n| &**n), "named rule"),
                ),
            },
            RuleRef::Number(number) => {
                for name in [number.to_string(), format!("#{number}")] {
                    if let Some(index) = self.by_name(&name).filter(|index| index + 1 != *number) {
                        return Err(EditError::AmbiguousRef { name, number: index + 1 });
                    }
                }
                let rules = if count == 1 { "rule" } else { "rules" };
                let count_text = if count == 0 { "no".to_owned() } else { count.to_string() };
                let index = number.checked_sub(1).filter(|&index| index < count);
                (index, format!("the policy has {count_text} {rules}"))
            }
        };
        index.ok_or_else(|| EditError::NoRule { rule: rule.clone(), hint })
    }

    fn spot(&self, place: &Place) -> Result<Spot, EditError> {
        Ok(match place {
            Place::First | Place::Last if self.names.is_empty() => Spot::Alone,
            Place::First => Spot::Before(0),
            Place::Last => Spot::After(self.names.len() - 1),
            Place::Before(rule) => Spot::Before(self.index(rule)?),
            Place::After(rule) => Spot::After(self.index(rule)?),
        })
    }
}

/// Bytes in all sections that a rule's table is written in.
fn places(start: usize, table: &DeTable<'_>) -> Vec<usize> {
    let mut places = vec![start];
    places.extend(table.iter().map(|(key, _)| key.span().start));
    places
}

/// A policy file's rules as sections.
struct Sections<'t> {
    text: &'t str,
    lines: Lines,
    /// The sections of each rule, ascending.
    rules: Vec<Vec<usize>>,
}

impl<'t> Sections<'t> {
    fn new(text: &'t str, places: &[Vec<usize>]) -> Self {
        let lines = Lines::new(text);
        let sections = |places: &Vec<usize>| {
            let mut sections: Vec<usize> =
                places.iter().filter_map(|&place| lines.section_at(place)).collect();
            sections.sort_unstable();
            sections.dedup();
            sections
        };
        let rules = places.iter().map(sections).collect();
        Self { text, lines, rules }
    }

    /// The line where a rule begins.
    fn start(&self, rule: usize) -> usize {
        self.lines.body(self.rules[rule][0]).start
    }

    /// The line after a rule's last one.
    fn end(&self, rule: usize) -> usize {
        self.lines.body(self.rules[rule][self.rules[rule].len() - 1]).end
    }

    /// How many blank lines stand between a rule and the next one, if nothing else does.
    fn gap_after(&self, rule: usize) -> Option<usize> {
        let blank = self.lines.blank_after(self.end(rule));
        (rule + 1 < self.rules.len() && blank.end == self.start(rule + 1)).then_some(blank.len())
    }

    /// How many blank lines stand between rules, here or, failing that, elsewhere.
    fn usual_gap(&self, spot: Spot) -> usize {
        let here = spot.index().min(self.rules.len());
        let around = [here.checked_sub(1), Some(here), here.checked_sub(2)].into_iter().flatten();
        around
            .chain(0..self.rules.len())
            .filter(|&rule| rule < self.rules.len())
            .find_map(|rule| self.gap_after(rule))
            .unwrap_or(1)
    }

    /// All lines of a rule.
    fn block(&self, rule: usize) -> String {
        let spans =
            self.rules[rule].iter().map(|&section| self.lines.span(&self.lines.body(section)));
        spans.map(|span| &self.text[span]).collect()
    }

    fn remove(&self, rule: usize) -> String {
        let mut splices = Splices::default();
        let next = (rule + 1 < self.rules.len()).then(|| self.start(rule + 1));
        for &section in &self.rules[rule] {
            let body = self.lines.body(section);
            let blank_after = self.lines.blank_after(body.end);
            // What keeps it apart from its neighbour goes along.
            let lines = if next == Some(blank_after.end) {
                body.start..blank_after.end
            } else {
                self.lines.blank_before(body.start).start..body.end
            };
            splices.remove(self.lines.span(&lines));
        }
        splices.apply(self.text)
    }

    /// Puts the lines of a rule in, and blank lines between it and its neighbour.
    fn insert(&self, spot: Spot, block: &str, gap: usize) -> String {
        let newline = newline(self.text.as_bytes());
        let (line, is_before) = match spot {
            Spot::Alone => (self.lines.after_last(), false),
            Spot::Before(rule) => (self.start(rule), true),
            Spot::After(rule) if self.gap_after(rule).is_some() => (self.start(rule + 1), true),
            Spot::After(rule) => (self.end(rule), false),
        };
        // A comment at the edge must not seem to belong to the neighbour.
        let is_beside_comment = if is_before {
            block.lines().next_back().is_some_and(|last| last.trim_start().starts_with('#'))
        } else {
            self.lines.is_after_comment(line)
        };
        let blank = newline.repeat(gap.max(usize::from(is_beside_comment)));
        let mut splices = Splices::default();
        let lines = if is_before { format!("{block}{blank}") } else { format!("{blank}{block}") };
        splices.insert(self.lines.offset(line), lines);
        splices.apply(self.text)
    }
}
