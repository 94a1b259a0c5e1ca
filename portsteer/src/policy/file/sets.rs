//! The policy file's `[sets.NAME]`: addresses that rules can name.

use std::{collections::HashMap, sync::Arc};

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

/// The most files that the sets of a policy name.
pub const MAX_SET_FILES: usize = 4_096;

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
            if self.is_over() {
                sets.is_complete = false;
                break;
            }
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
            (Some((_, value)), None) => {
                (value, Arc::new(self.read_set_addresses(value, progress)?))
            }
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
            if self.is_over() {
                return None;
            }
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(item, "an address or a prefix, as a string", None);
                continue;
            };
            match prefixes::parse(text) {
                Ok(prefix) => {
                    self.warn_of_mapped(prefix, "", item);
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
    ) -> Option<Arc<Vec<IpNet>>> {
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
        if progress.files.len() >= MAX_SET_FILES {
            progress.is_full = true;
            self.errors.push(
                Diagnostic::error(format!(
                    "the policy's sets name more than {MAX_SET_FILES} files"
                ))
                .at(value.span())
                .label("the first one that is too many")
                .help("put the addresses of several sets into one file, or into the policy"),
            );
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
            Ok(content) => prefixes::parse_file_until(&content, self.interrupt),
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
        (is_right && self.is_room(file.count, value, progress)).then(|| {
            // They stay for as long as the policy does.
            let mut prefixes = file.prefixes;
            prefixes.shrink_to_fit();
            Arc::new(prefixes)
        })
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
                let hint = help.as_ref().unwrap_or(label);
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

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{
        super::{
            parse_with,
            tests::{HEAD, brief, errors, policy, warnings},
        },
        *,
    };
    use crate::policy::{Policy, services::Services};

    /// Reads a policy with files, and says which of them were asked for.
    fn with_files(text: &str, files: &[(&str, &str)]) -> (Result<Policy, String>, Vec<String>) {
        let mut asked = Vec::new();
        let mut read = |name: &str| {
            asked.push(name.to_owned());
            let found = files.iter().find(|(other, _)| *other == name);
            let content = found.map(|(_, content)| content.as_bytes().to_vec());
            content.ok_or_else(|| format!("/etc/{name}: No such file or directory"))
        };
        let parsed = parse_with(text, &Services::embedded(), &mut read);
        let parsed = parsed.map(|parsed| parsed.policy).map_err(|errors| brief(text, &errors));
        (parsed, asked)
    }

    fn prefixes(set: &Set) -> Vec<String> {
        set.prefixes.iter().map(|&prefix| prefixes::bare(prefix)).collect()
    }

    #[test]
    fn sets_of_addresses() {
        let text = format!(
            "{HEAD}[[rules]]\nsrc = '@b'\ndst = '@\u{e4} c'\naction = 'drop'\n\
             [sets.b]\naddresses = ['192.0.2.0/24', '::1', '10.0.0.0/8', '10.0.0.0/9']\n\
             [sets.'\u{e4} c']\naddresses = ['0.0.0.0/0']\n\
             [sets]\na.addresses = []\n"
        );
        let policy = policy(&text);
        let names: Vec<_> =
            policy.sets.iter().map(|set| (&*set.name, set.line, &text[set.span.clone()])).collect();
        assert_eq!(names, [("b", 7, "b"), ("\u{e4} c", 9, "'\u{e4} c'"), ("a", 12, "a")]);
        assert_eq!(prefixes(&policy.sets[0]), ["192.0.2.0/24", "::1", "10.0.0.0/8", "10.0.0.0/9"]);
        assert!(policy.sets.iter().all(|set| set.file.is_none()));
        let rule = &policy.rules[0];
        assert_eq!(rule.src.positive, [AddressItem::Set(SetId(0))]);
        assert_eq!(rule.dst.positive, [AddressItem::Set(SetId(1))]);
    }

    #[test]
    fn sets_from_files() {
        let text = format!(
            "{HEAD}[sets.a]\nfile = 'lists/a.txt'\n[sets.b]\nfile = 'b'\n\
             [sets.c]\nfile = 'lists/a.txt'\n[sets.d]\naddresses = ['::1']\n"
        );
        let files = [("lists/a.txt", "10.0.0.0/8\n::1 # here\n"), ("b", "192.0.2.1")];
        let (parsed, asked) = with_files(&text, &files);
        let sets = parsed.unwrap().sets;
        assert_eq!(asked, ["lists/a.txt", "b"]);
        let expected =
            [&["10.0.0.0/8", "::1"][..], &["192.0.2.1"], &["10.0.0.0/8", "::1"], &["::1"]];
        assert_eq!(sets.iter().map(prefixes).collect::<Vec<_>>(), expected);
        let names: Vec<_> = sets.iter().map(|set| set.file.as_deref()).collect();
        assert_eq!(names, [Some("lists/a.txt"), Some("b"), Some("lists/a.txt"), None]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_once_where_it_is_named() {
        let text = format!(
            "{HEAD}[sets.a]\nfile = 'a'\n[sets.b]\nfile = 'b'\n[sets.c]\nfile = 'a'\n\
             [sets.d]\nfile = 'b'\n[[rules]]\nsrc = ['@a', '@b', '@c', '@d']\naction = 'drop'\n"
        );
        let content = "::1\n10.0.0.1/8\n\n# x\nexample.com\n10.0.0.0 ; a note\n10.0.0.0/40\n!::1\n";
        let (parsed, asked) = with_files(&text, &[("b", content)]);
        assert_eq!(asked, ["a", "b"]);
        assert_eq!(
            parsed.unwrap_err(),
            "4:8 ['a'] the set file `a` cannot be read (/etc/a: No such file or directory)\n\
             6:8 ['b'] the set file `b` has wrong lines (expected one address or prefix a line)\n  \
             b:2: `10.0.0.1/8` has host bits set: did you mean `10.0.0.0/8`, or `10.0.0.1` for the \
             one address?\n  \
             b:5: `example.com` is no address: the names of hosts are not looked up: write their \
             addresses\n  \
             b:6: `10.0.0.0 ; a note` is no address: comments begin with `#`\n  \
             b:7: `10.0.0.0/40` is no prefix: IPv4 prefix lengths are 0 to 32\n  \
             b:8: `!::1` is no address: a set has no exceptions: rules have them, such as \
             `src = [\"@a\", \"!@b\"]`\n"
        );
    }

    #[test]
    fn so_many_wrong_lines_are_told_and_no_more() {
        let text = format!("{HEAD}[sets.a]\nfile = 'a'\n");
        let found = |lines: usize| {
            let content = "x\n".repeat(lines);
            with_files(&text, &[("a", &content)]).0.unwrap_err()
        };
        assert!(found(1).starts_with("4:8 ['a'] the set file `a` has a wrong line ("));
        let twenty = found(prefixes::MAX_TOLD);
        assert!(twenty.contains("  a:20: `x`") && !twenty.contains("more"), "{twenty}");
        let more = found(prefixes::MAX_TOLD + 1);
        assert!(more.ends_with("\n  and 1 more\n") && !more.contains("a:21"), "{more}");
    }

    #[test]
    fn a_file_of_a_set_with_other_faults_is_not_read() {
        for set in [
            "[sets.'@a']\nfile = 'a'\n",
            "[sets.a]\nfile = 'a'\nfiel = 'a'\n",
            "[sets.a]\nfile = 'a'\naddresses = []\n",
        ] {
            let (parsed, asked) = with_files(&format!("{HEAD}{set}"), &[]);
            assert!(parsed.is_err() && asked.is_empty(), "{set}");
        }
    }

    #[test]
    fn empty_and_repeated() {
        let text = format!(
            "{HEAD}[sets.a]\naddresses = []\n\
             [sets.b]\naddresses = ['::1', '::2', '::1', '::ffff:192.0.2.1']\n"
        );
        assert_eq!(
            warnings(&text),
            "4:13 [[]] the set `a` is empty (no address is in it)\n\
             6:28 ['::1'] the address is listed twice (again here)\n\
             6:35 ['::ffff:192.0.2.1'] this is no address of IPv4 packets (an IPv6 address, which \
             hardly any packet has) did you mean \"192.0.2.1\"?\n"
        );
        assert_eq!(policy(&text).sets[1].prefixes.len(), 3);
        let text = format!("{HEAD}[sets.a]\nfile = 'a'\n");
        let parsed =
            parse_with(&text, &Services::embedded(), &mut |_: &str| Ok(b"# none".to_vec()));
        assert_eq!(
            brief(&text, &parsed.unwrap().warnings),
            "4:8 ['a'] the set `a` is empty (no address is in it)\n"
        );
    }

    #[test]
    fn sets_have_their_limits() {
        let full = "::1\n".repeat(MAX_PREFIXES);
        let over = full.clone() + "::1\n::1\n";
        let text = format!("{HEAD}[sets.a]\nfile = 'over'\n");
        assert_eq!(
            with_files(&text, &[("over", &over)]).0.unwrap_err(),
            "4:8 ['over'] the set file `over` has 1048578 prefixes, but there is room for 1048576 \
             (too many for one set)\n"
        );
        let mut text = HEAD.to_owned();
        for name in ["a", "b", "c", "d"] {
            write!(text, "[sets.{name}]\nfile = 'full'\n").unwrap();
        }
        assert!(with_files(&text, &[("full", &full)]).0.is_ok());
        text.push_str(
            "[sets.e]\naddresses = ['::1']\n[sets.f]\nfile = 'full'\n[sets.g]\nfile = 'g'\n",
        );
        let (parsed, asked) = with_files(&text, &[("full", &full)]);
        assert_eq!(asked, ["full"]);
        assert_eq!(
            parsed.unwrap_err(),
            "12:13 [['::1']] the sets have more than 4194304 prefixes altogether (there is no room \
             for these)\n"
        );
        let text =
            format!("{HEAD}[sets.a]\naddresses = [{}'::2']\n", "'::1',".repeat(MAX_PREFIXES));
        let found = brief(&text, &errors(&text));
        assert!(found.ends_with("the set has 1048577 prefixes, but there is room for 1048576 (the first one that is too many)\n"), "{found}");
    }

    /// Lines of a policy from line 3 on, with what is said about them.
    #[test]
    fn errors_of_sets() {
        let cases: &[(&str, &str)] = &[
            (
                r#"[sets.a]
addresses = ["10.0.0.1/8", "!10.0.0.1", "@b", "x.example", "10.0.0.0-10.0.0.7", " ::1", "10.0.0.1:80"]
"#,
                r#"4:14 ["10.0.0.1/8"] `10.0.0.1/8` has host bits set (not all bits are zero after the first 8) did you mean "10.0.0.0/8", or "10.0.0.1" for the one address?
4:28 ["!10.0.0.1"] `!10.0.0.1` is no address (neither an address nor a prefix) a set has no exceptions: rules have them, such as `src = ["@a", "!@b"]`
4:41 ["@b"] `@b` is no address (neither an address nor a prefix) a set holds no other sets: a rule names several, as in `src = ["@a", "@b"]`
4:47 ["x.example"] `x.example` is no address (neither an address nor a prefix) the names of hosts are not looked up: write their addresses
4:60 ["10.0.0.0-10.0.0.7"] `10.0.0.0-10.0.0.7` is no address (neither an address nor a prefix) did you mean "10.0.0.0/29"?
4:81 [" ::1"] ` ::1` is no address (neither an address nor a prefix) did you mean "::1"?
4:89 ["10.0.0.1:80"] `10.0.0.1:80` is no address (neither an address nor a prefix) did you mean "10.0.0.1"?
"#,
            ),
            (
                r#"[sets.a]
addresses = "10.0.0.1"
"#,
                r#"4:13 ["10.0.0.1"] a string cannot stand here (expected a list of addresses and prefixes, as strings) write a list: `addresses = ["10.0.0.1"]`
"#,
            ),
            (
                r#"[sets.a]
addresses = [1, ["::1"]]
"#,
                r#"4:14 [1] an integer cannot stand here (expected an address or a prefix, as a string)
4:17 [["::1"]] a list cannot stand here (expected an address or a prefix, as a string)
"#,
            ),
            (
                r#"[sets.a]
addresses = 1
"#,
                r#"4:13 [1] an integer cannot stand here (expected a list of addresses and prefixes, as strings)
"#,
            ),
            (
                r#"[sets.a]
"#,
                r#"3:7 [a] the set `a` has neither `addresses` nor `file` (which addresses are in it?) add `addresses = ["192.0.2.0/24"]`, or the name of a file: `file = "NAME.txt"`
"#,
            ),
            (
                r#"[sets.a]
addresses = []
file = "a.txt"
"#,
                r#"5:1 [file] the set `a` has both `addresses` and `file` (a set has one or the other) make them two sets: a rule can name both
"#,
            ),
            (
                r#"[sets.a]
file = "a.txt"
addresses = []
"#,
                r#"5:1 [addresses] the set `a` has both `addresses` and `file` (a set has one or the other) make them two sets: a rule can name both
"#,
            ),
            (
                r#"[sets.a]
file = 1
"#,
                r#"4:8 [1] an integer cannot stand here (expected a file's name, as a string)
"#,
            ),
            (
                r#"[sets.a]
file = ""
"#,
                r#"4:8 [""] `""` is no file's name (it is empty)
"#,
            ),
            (
                r#"[sets.a]
file = "a\nb"
"#,
                r#"4:8 ["a\nb"] `a\nb` is no file's name (a file's name has no control characters here)
"#,
            ),
            (
                r#"[sets.a]
file = "https://example.com/list"
"#,
                r#"4:8 ["https://example.com/list"] `https://example.com/list` is no file's name (it is the address of a page) download it, and name the file
"#,
            ),
            (
                r#"[sets.a]
file = "a.txt"
"#,
                r#"4:8 ["a.txt"] set files cannot be read here (a file beside the policy) write the addresses into the policy: `addresses = ["192.0.2.0/24"]`
"#,
            ),
            (
                r#"[sets.a]
address = []
"#,
                r#"4:1 [address] a set has no key `address` (unknown key) did you mean `addresses`?
"#,
            ),
            (
                r#"[sets.a]
path = "a.txt"
"#,
                r#"4:1 [path] a set has no key `path` (unknown key) did you mean `file`?
"#,
            ),
            (
                r#"[sets.a]
name = "a"
"#,
                r#"4:1 [name] a set has no key `name` (unknown key) a set's name stands in its header: `[sets.NAME]`
"#,
            ),
            (
                r#"[sets.a]
adresses = ["::1"]
"#,
                r#"4:1 [adresses] a set has no key `adresses` (unknown key) did you mean `addresses`?
"#,
            ),
            (
                r#"[sets.a]
dst_port = 1
addresses = []
"#,
                r#"4:1 [dst_port] a set has no key `dst_port` (unknown key) `dst_port` belongs in a rule, after a line `[[rules]]`
"#,
            ),
            (
                r#"[sets.a]
xyzzy = 1
addresses = []
"#,
                r#"4:1 [xyzzy] a set has no key `xyzzy` (unknown key) the keys here are addresses, file
"#,
            ),
            (
                r#"[sets.""]
addresses = []
"#,
                r#"3:7 [""] this is no name for a set (a name has at least one character)
"#,
            ),
            (
                r#"[sets."@a"]
addresses = []
"#,
                r#"3:7 ["@a"] this is no name for a set (rules put `@` and `!` before a set's name, which begins with neither)
"#,
            ),
            (
                r#"[sets."!a"]
addresses = []
"#,
                r#"3:7 ["!a"] this is no name for a set (rules put `@` and `!` before a set's name, which begins with neither)
"#,
            ),
            (
                r#"[sets." a"]
file = "a.txt"
"#,
                r#"3:7 [" a"] this is no name for a set (a name neither begins nor ends with white space)
"#,
            ),
            (
                r#"[sets."a\u0000"]
addresses = []
"#,
                r#"3:7 ["a\u0000"] this is no name for a set (a name has no control characters)
"#,
            ),
            (
                r#"[sets]
addresses = ["::1"]
"#,
                r#"4:13 [["::1"]] a list cannot stand here (expected a table) a set has a name: begin it with a line `[sets.NAME]`, then `addresses`
"#,
            ),
            (
                r#"[sets]
office = ["::1"]
"#,
                r#"4:10 [["::1"]] a list cannot stand here (expected a table) write it as a section: `[sets.office]` with `addresses = ["192.0.2.0/24"]`
"#,
            ),
            (
                r#"[sets]
"a b" = ["::1"]
"#,
                r#"4:9 [["::1"]] a list cannot stand here (expected a table) write it as a section: `[sets."a b"]` with `addresses = ["192.0.2.0/24"]`
"#,
            ),
            (
                r#"[[sets]]
name = "a"
"#,
                r#"3:1 [[[sets]]] a list cannot stand here (expected a table of sets) write it as a section: `[sets.NAME]`
"#,
            ),
            (
                r#"sets = "a"
"#,
                r#"3:8 ["a"] a string cannot stand here (expected a table of sets) write it as a section: `[sets.NAME]`
"#,
            ),
            (
                r#"[set.a]
addresses = []
"#,
                r#"3:2 [set] the policy has no key `set` (unknown key) begin every set with a line `[sets.NAME]`
"#,
            ),
            (
                r#"[ipset.a]
addresses = []
"#,
                r#"3:2 [ipset] the policy has no key `ipset` (unknown key) begin every set with a line `[sets.NAME]`
"#,
            ),
            (
                r#"[setz.a]
addresses = []
"#,
                r#"3:2 [setz] the policy has no key `setz` (unknown key) did you mean `sets`?
"#,
            ),
            (
                r#"addresses = []
"#,
                r#"3:1 [addresses] the policy has no key `addresses` (unknown key) `addresses` belongs in a set, after a line `[sets.NAME]`
"#,
            ),
            (
                r#"[sets.a]
addresses = []
[sets.a]
file = "x"
"#,
                r#"5:7 [a] the key `a` is there twice (again here)
6:1 [file] the set `a` has both `addresses` and `file` (a set has one or the other) make them two sets: a rule can name both
"#,
            ),
            (
                r#"[[rules]]
src = "@office"
action = "drop"
"#,
                r#"4:7 ["@office"] there is no set `office` (unknown set) the policy has no sets: add `[sets.office]` with `addresses = ["192.0.2.0/24"]` or `file = "NAME.txt"`
"#,
            ),
            (
                r#"[[rules]]
src = "@"
action = "drop"
"#,
                r#"4:7 ["@"] `@` names no set (a set's name is missing) the policy has no sets: add `[sets.NAME]` with `addresses = ["192.0.2.0/24"]` or `file = "NAME.txt"`
"#,
            ),
            (
                r#"[[rules]]
src = '@a b'
action = "drop"
"#,
                r#"4:7 ['@a b'] there is no set `a b` (unknown set) the policy has no sets: add `[sets."a b"]` with `addresses = ["192.0.2.0/24"]` or `file = "NAME.txt"`
"#,
            ),
            (
                r#"[sets.a]
addresses = []
[sets.b]
addresses = []
[[rules]]
src = "@xyz"
action = "drop"
"#,
                r#"8:7 ["@xyz"] there is no set `xyz` (unknown set) the sets are `a`, `b`
"#,
            ),
            (
                r#"[sets.a]
addresses = ["x"]
[[rules]]
src = "@a"
dst = "@b"
action = "drop"
"#,
                r#"4:14 ["x"] `x` is no address (neither an address nor a prefix) the names of hosts are not looked up: write their addresses
7:7 ["@b"] there is no set `b` (unknown set) the only set is `a`
"#,
            ),
            (
                r#"[[rules]]
addresses = ["::1"]
file = "a"
action = "drop"
"#,
                r#"4:1 [addresses] a rule has no key `addresses` (unknown key) `addresses` belongs in a set, after a line `[sets.NAME]`
5:1 [file] a rule has no key `file` (unknown key) `file` belongs in a set, after a line `[sets.NAME]`
"#,
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{HEAD}{lines}");
            assert_eq!(brief(&text, &errors(&text)), *expected, "{lines}");
        }
    }
}
