//! The policy file's `[sets.NAME]`: addresses that rules can name.

use std::collections::HashMap;

use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    Entry, Key, Reader, Value, addresses::Repeats, did_you_mean, in_order, is_complete, known,
    name_fault, quote, toml_key, toml_string,
};
use crate::policy::{
    AddressItem, Set, SetId,
    diagnostic::Diagnostic,
    prefixes::{self, Complaint, MAX_PREFIXES, Place, PrefixFile},
};

/// The most prefixes that all sets have together.
pub const MAX_PREFIXES_IN_ALL: usize = 4 * MAX_PREFIXES;

pub(super) const SET_KEYS: [&str; 2] = ["addresses", "file"];

/// Words that other tools use, with the key that means the same here.
const SET_KEY_SYNONYMS: [(&str, &str); 20] = [
    ("address", "addresses"),
    ("ip", "addresses"),
    ("ips", "addresses"),
    ("prefix", "addresses"),
    ("prefixes", "addresses"),
    ("cidr", "addresses"),
    ("cidrs", "addresses"),
    ("networks", "addresses"),
    ("elements", "addresses"),
    ("entries", "addresses"),
    ("members", "addresses"),
    ("hosts", "addresses"),
    ("list", "addresses"),
    ("src", "addresses"),
    ("path", "file"),
    ("filename", "file"),
    ("files", "file"),
    ("include", "file"),
    ("source", "file"),
    ("from", "file"),
];

const SECTION: &str = "write it as a section: `[sets.NAME]`";
const EXAMPLE: &str = "addresses = [\"192.0.2.0/24\"]";

/// Reads the files that sets name. A closure from a name to its content is one.
pub trait SetFiles {
    /// All of a file's content. `name` is what the policy calls it, and is asked for once.
    ///
    /// # Errors
    ///
    /// Why it cannot be read, as one line that names the file that was looked for.
    fn read(&mut self, name: &str) -> Result<Vec<u8>, String>;
}

impl<F: FnMut(&str) -> Result<Vec<u8>, String>> SetFiles for F {
    fn read(&mut self, name: &str) -> Result<Vec<u8>, String> {
        self(name)
    }
}

/// The sets of a file, those with faults included: rules that name these are not wrong.
pub(super) struct Sets<'t> {
    /// The ones without faults, in the file's order.
    pub list: Vec<Set>,
    /// All names, in the file's order.
    pub names: Vec<&'t str>,
    /// By name; `None` where the set has a fault.
    pub ids: HashMap<&'t str, Option<SetId>>,
    /// Whether these are all that the file was meant to have.
    pub is_complete: bool,
}

impl Sets<'_> {
    pub(super) fn none() -> Self {
        Self { list: Vec::new(), names: Vec::new(), ids: HashMap::new(), is_complete: true }
    }
}

/// What is known while the sets are read.
#[derive(Default)]
struct Progress {
    /// The files that were read, each with a set that has its prefixes; `None` if the file was of
    /// no use.
    files: HashMap<String, Option<SetId>>,
    /// How many prefixes the sets have.
    count: usize,
    /// Whether that are too many, which is said once.
    is_full: bool,
}

impl Reader<'_> {
    pub(super) fn read_sets<'t>(&mut self, value: &'t Value<'_>) -> Sets<'t> {
        let mut sets = Sets::none();
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(value, "a table of sets", Some(SECTION.to_owned()));
            sets.is_complete = false;
            return sets;
        };
        let mut entries: Vec<Entry<'_, '_>> = table.iter().filter(is_complete).collect();
        entries.sort_by_key(|(key, _)| key.span().start); // the table sorts by name
        let mut progress = Progress::default();
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            let id = u32::try_from(sets.list.len()).ok().map(SetId);
            let set = self.read_set(key, value, &sets.list, &mut progress);
            if let Some(Set { file: Some(file), .. }) = &set {
                progress.files.insert(file.clone(), id);
            }
            sets.names.push(name);
            sets.ids.insert(name, set.as_ref().and(id));
            sets.list.extend(set);
        }
        sets
    }

    fn read_set(
        &mut self,
        key: &Key<'_>,
        value: &Value<'_>,
        sets: &[Set],
        progress: &mut Progress,
    ) -> Option<Set> {
        let name = key.get_ref().as_ref();
        let DeValue::Table(table) = value.get_ref() else {
            let help = if SET_KEYS.contains(&name) {
                format!("a set has a name: begin it with a line `[sets.NAME]`, then `{name}`")
            } else {
                let key = toml_key(name);
                format!("write it as a section: `[sets.{key}]` with `{EXAMPLE}`")
            };
            self.wrong_type(value, "a table", Some(help));
            return None;
        };
        let errors_before = self.errors.len();
        if let Some(fault) = set_name_fault(name) {
            self.errors
                .push(Diagnostic::error("this is no name for a set").at(key.span()).label(fault));
        }
        let (mut addresses, mut file) = (None, None);
        for entry in table.iter().filter(is_complete) {
            match entry.0.get_ref().as_ref() {
                "addresses" => addresses = Some(entry),
                "file" => file = Some(entry),
                _ => self.refuse_set_key(entry.0),
            }
        }
        let (value, prefixes) = match (addresses, file) {
            (Some((addresses, _)), Some((file, _))) => {
                self.set_has_both(name, addresses, file);
                return None;
            }
            (None, None) => {
                if self.is_whole && self.errors.len() == errors_before {
                    self.set_has_neither(key);
                }
                return None;
            }
            (Some((_, value)), None) => (value, self.read_set_addresses(value, progress)?),
            // A file is of no interest where there is something else to mend.
            (None, Some(_)) if self.errors.len() > errors_before => return None,
            (None, Some((_, value))) => (value, self.read_set_file(value, sets, progress)?),
        };
        if self.errors.len() > errors_before {
            return None;
        }
        if prefixes.is_empty() {
            self.warnings.push(
                Diagnostic::warning(format!("the set {} is empty", quote(name)))
                    .at(value.span())
                    .label("no address is in it"),
            );
        }
        let file = file.and_then(|(_, value)| value.get_ref().as_str()).map(str::to_owned);
        let span = key.span();
        let line = self.line_starts.partition_point(|&start| start <= span.start);
        Some(Set { name: name.to_owned(), prefixes, file, span, line })
    }

    fn set_has_both(&mut self, name: &str, addresses: &Key<'_>, file: &Key<'_>) {
        let (first, second) = in_order(&addresses.span(), &file.span());
        self.errors.push(
            Diagnostic::error(format!("the set {} has both `addresses` and `file`", quote(name)))
                .at(second)
                .label("a set has one or the other")
                .related(first, "beside this")
                .help("make them two sets: a rule can name both"),
        );
    }

    fn set_has_neither(&mut self, key: &Key<'_>) {
        let name = quote(key.get_ref().as_ref());
        self.errors.push(
            Diagnostic::error(format!("the set {name} has neither `addresses` nor `file`"))
                .at(key.span())
                .label("which addresses are in it?")
                .help(format!("add `{EXAMPLE}`, or the name of a file: `file = \"NAME.txt\"`")),
        );
    }

    fn read_set_addresses(
        &mut self,
        value: &Value<'_>,
        progress: &mut Progress,
    ) -> Option<Vec<IpNet>> {
        const EXPECTED: &str = "a list of addresses and prefixes, as strings";
        let DeValue::Array(items) = value.get_ref() else {
            let text = value.get_ref().as_str();
            let help =
                text.map(|text| format!("write a list: `addresses = [{}]`", toml_string(text)));
            self.wrong_type(value, EXPECTED, help);
            return None;
        };
        if items.len() > MAX_PREFIXES {
            self.errors.push(
                Diagnostic::error(format!(
                    "the set has {} prefixes, but there is room for {MAX_PREFIXES}",
                    items.len()
                ))
                .at(items[MAX_PREFIXES].span())
                .label("the first one that is too many"),
            );
            return None;
        }
        let mut repeats = Repeats::default();
        let mut prefixes = Vec::with_capacity(items.len());
        for item in items {
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(item, "an address or a prefix, as a string", None);
                continue;
            };
            match prefixes::parse(text) {
                Ok(prefix) => {
                    if !repeats.is_repeat((false, AddressItem::Prefix(prefix)), item.span()) {
                        prefixes.push(prefix);
                    }
                }
                Err(fault) => {
                    let complaint = prefixes::complain(text, fault, "", Place::Set);
                    let mut error = Diagnostic::error(complaint.message).label(complaint.label);
                    error.help = complaint.help;
                    self.errors.push(error.at(item.span()));
                }
            }
        }
        self.warnings.extend(repeats.warning());
        self.is_room(prefixes.len(), value, progress).then_some(prefixes)
    }

    fn read_set_file(
        &mut self,
        value: &Value<'_>,
        sets: &[Set],
        progress: &mut Progress,
    ) -> Option<Vec<IpNet>> {
        let Some(name) = value.get_ref().as_str() else {
            self.wrong_type(value, "a file's name, as a string", None);
            return None;
        };
        if let Some((label, help)) = file_name_fault(name) {
            let mut error = Diagnostic::error(format!("{} is no file's name", quote(name)))
                .at(value.span())
                .label(label);
            error.help = help.map(str::to_owned);
            self.errors.push(error);
            return None;
        }
        if let Some(&read) = progress.files.get(name) {
            let prefixes = &sets[read?.0 as usize].prefixes;
            return self.is_room(prefixes.len(), value, progress).then(|| prefixes.clone());
        }
        if progress.is_full {
            return None;
        }
        progress.files.insert(name.to_owned(), None);
        let Some(files) = &mut self.files else {
            self.errors.push(
                Diagnostic::error("set files cannot be read here")
                    .at(value.span())
                    .label("a file beside the policy")
                    .help(format!("write the addresses into the policy: `{EXAMPLE}`")),
            );
            return None;
        };
        let file = match files.read(name) {
            Ok(content) => prefixes::parse_file(&content),
            Err(reason) => {
                self.errors.push(
                    Diagnostic::error(format!("the set file {} cannot be read", quote(name)))
                        .at(value.span())
                        .label(reason),
                );
                return None;
            }
        };
        let is_right = self.file_is_right(name, value, &file);
        (is_right && self.is_room(file.count, value, progress)).then_some(file.prefixes)
    }

    /// Reports what is wrong with a file of prefixes.
    fn file_is_right(&mut self, name: &str, value: &Value<'_>, file: &PrefixFile) -> bool {
        let shown = quote(name);
        if file.wrong_count > 0 {
            let lines = if file.wrong_count == 1 { "a wrong line" } else { "wrong lines" };
            let mut error = Diagnostic::error(format!("the set file {shown} has {lines}"))
                .at(value.span())
                .label("expected one address or prefix a line");
            for (line, Complaint { message, label, help }) in &file.wrong {
                // In a file they stand without quotation marks.
                let hint = help.as_ref().unwrap_or(label).replace('"', "`");
                error = error.note(format!("{name}:{line}: {message}: {hint}"));
            }
            if file.wrong_count > file.wrong.len() {
                error = error.note(format!("and {} more", file.wrong_count - file.wrong.len()));
            }
            self.errors.push(error);
        }
        if file.count > MAX_PREFIXES {
            self.errors.push(
                Diagnostic::error(format!(
                    "the set file {shown} has {} prefixes, but there is room for {MAX_PREFIXES}",
                    file.count
                ))
                .at(value.span())
                .label("too many for one set"),
            );
        }
        file.wrong_count == 0 && file.count <= MAX_PREFIXES
    }

    /// Whether there is room for so many more prefixes; takes it.
    fn is_room(&mut self, count: usize, value: &Value<'_>, progress: &mut Progress) -> bool {
        progress.count += count;
        let is_room = progress.count <= MAX_PREFIXES_IN_ALL;
        if !is_room && !progress.is_full {
            progress.is_full = true;
            self.errors.push(
                Diagnostic::error(format!(
                    "the sets have more than {MAX_PREFIXES_IN_ALL} prefixes altogether"
                ))
                .at(value.span())
                .label("there is no room for these"),
            );
        }
        is_room
    }

    fn refuse_set_key(&mut self, key: &Key<'_>) {
        let word = key.get_ref().as_ref();
        let help = if word == "name" {
            Some("a set's name stands in its header: `[sets.NAME]`".to_owned())
        } else if let Some(near) = known(&SET_KEY_SYNONYMS, word) {
            Some(did_you_mean(&format!("`{near}`")))
        } else {
            self.elsewhere(word, "sets").or_else(|| {
                self.suggest(word, SET_KEYS).map(|near| did_you_mean(&format!("`{near}`")))
            })
        };
        self.unknown_key(key, "a set", help, &SET_KEYS);
    }
}

/// How to define a set that is missing.
pub(super) fn define_set(name: &str) -> String {
    let name = if name.is_empty() { "NAME" } else { name };
    format!("add `[sets.{}]` with `{EXAMPLE}` or `file = \"NAME.txt\"`", toml_key(name))
}

/// Why a text is no name for a set.
fn set_name_fault(name: &str) -> Option<String> {
    if name.starts_with(['@', '!']) {
        return Some("rules put `@` and `!` before a set's name, which begins with neither".into());
    }
    name_fault(name)
}

/// Why a text is no file's name, and what might help.
fn file_name_fault(name: &str) -> Option<(&'static str, Option<&'static str>)> {
    if name.is_empty() {
        Some(("it is empty", None))
    } else if name.chars().any(char::is_control) {
        Some(("a file's name has no control characters here", None))
    } else if name.contains("://") {
        Some(("it is the address of a page", Some("download it, and name the file")))
    } else {
        None
    }
}
