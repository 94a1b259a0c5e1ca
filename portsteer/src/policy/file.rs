//! The policy file, version 1: from TOML to what it means, or to everything that is wrong with it.
//!
//! The file is read leniently and judged strictly: one pass over the parsed tree finds all errors,
//! those of syntax and those of meaning, and each points at the text that is wrong. What a later
//! version of the format brings is refused by name, so that no policy ever means less than it
//! says.

use std::{collections::HashSet, ops::Range};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

pub use self::budget::{MAX_ERRORS, MAX_TOKENS};
pub(crate) use self::icmp_types::{icmp_type_names, icmp_type_of};
pub use self::interfaces::{MAX_GLOBS, MAX_INTERFACES, MAX_RULE_INTERFACES};
pub use self::sets::{MAX_PREFIXES_IN_ALL, MAX_SET_FILES, SetFiles};
pub(super) use self::syntax::dismantle;
use self::{
    budget::{Extent, extent},
    interfaces::Attached,
    rules::{Named, RULE_KEY_SYNONYMS, RULE_KEYS},
    sets::{SET_KEYS, Sets},
    syntax::{remove_consequences, syntax_diagnostics},
    targets::{TARGET_KEYS, Targets},
};
use super::{
    Action, Mode, Options, Policy,
    diagnostic::{Diagnostic, suggest},
    services::Services,
};
use crate::interrupt::Interrupt;

mod actions;
mod addresses;
mod budget;
mod icmp_types;
mod interfaces;
mod ports;
mod protocols;
mod ranges;
mod rules;
mod sets;
mod syntax;
mod targets;
mod vlans;

/// The version of the format that is understood.
pub const VERSION: u8 = 1;

/// The longest name of a rule, a set or a target, in characters.
pub const MAX_NAME_CHARS: usize = 64;

/// The longest name of an interface in bytes: Linux's `IFNAMSIZ` less the NUL.
pub const MAX_INTERFACE_LEN: usize = 15;

/// A policy that can be used.
#[derive(Debug, Clone)]
pub struct Parsed {
    pub policy: Policy,
    /// What is legal but hardly meant, in the order of the file. [`super::lint`] looks further.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a policy file whose sets all stand in it: one that names a file is refused.
///
/// # Errors
///
/// Everything that is wrong with the file, in its order; at least one. Errors about the file as a
/// whole come first.
pub fn parse(text: &str, services: &Services) -> Result<Parsed, Vec<Diagnostic>> {
    parse_until(text, services, None, &Interrupt::default())
}

/// Reads a policy file, and the files that its sets name through `files`.
///
/// # Errors
///
/// As [`parse`] has them; what is wrong with a set's file is said where the policy names it.
pub fn parse_with(
    text: &str,
    services: &Services,
    files: &mut dyn SetFiles,
) -> Result<Parsed, Vec<Diagnostic>> {
    parse_until(text, services, Some(files), &Interrupt::default())
}

/// Reads a policy file as [`parse_with`] does, and stops soon once it is interrupted.
///
/// # Errors
///
/// As [`parse_with`] has them, at most [`MAX_ERRORS`] of each kind. Where it was interrupted, they mean nothing.
pub fn parse_until<'a>(
    text: &str,
    services: &'a Services,
    files: Option<&'a mut (dyn SetFiles + 'a)>,
    interrupt: &'a Interrupt,
) -> Result<Parsed, Vec<Diagnostic>> {
    let text_read = match extent(text, interrupt) {
        Extent::Whole => text,
        Extent::UpTo(end) => &text[..end],
        Extent::TooLong(at) => return Err(vec![too_long(at)]),
        Extent::Interrupted => return Err(vec![interrupted()]),
    };
    let (root, syntax_errors) = DeTable::parse_recoverable(text_read);
    let root = root.into_inner();
    let mut reader = Reader {
        services,
        files,
        interrupt,
        line_starts: line_starts(text_read),
        is_whole: syntax_errors.is_empty() && text_read.len() == text.len(),
        suggestions: MAX_SUGGESTIONS,
        comparisons: MAX_COMPARISONS,
        globs: HashSet::new(),
        rule_interfaces: 0,
        errors: Found::default(),
        warnings: Found::default(),
    };
    let policy = reader.read_policy(&root);

    let Reader { errors, warnings, .. } = reader;
    let (errors_count, mut errors, mut warnings) = (errors.count, errors.list, warnings.list);
    let syntax_errors = syntax_diagnostics(text_read, &root, &syntax_errors);
    dismantle(root);
    if interrupt.is_set() {
        return Err(vec![interrupted()]);
    }
    remove_consequences(&mut errors, &syntax_errors);
    errors.extend(syntax_errors);
    let by_place = |found: &Diagnostic| found.span.as_ref().map(|span| (span.start, span.end));
    match policy {
        Some(policy) if errors.is_empty() && text_read.len() == text.len() => {
            warnings.sort_by_key(by_place);
            Ok(Parsed { policy, warnings })
        }
        _ => {
            errors.sort_by_key(by_place);
            if errors_count >= MAX_ERRORS || text_read.len() < text.len() {
                errors.push(Diagnostic::error(format!(
                    "the policy was read no further after {MAX_ERRORS} errors"
                )));
            }
            Err(errors)
        }
    }
}

fn too_long(at: usize) -> Diagnostic {
    Diagnostic::error(format!(
        "the policy has more than {MAX_TOKENS} words, numbers, strings and signs"
    ))
    .at(at..at)
    .label("the first one that is too many")
    .help("put addresses into files of their own: `[sets.NAME]` with `file = \"NAME.txt\"`")
}

/// What reading ends with where nobody waits for it.
fn interrupted() -> Diagnostic {
    Diagnostic::error("interrupted before the policy was read")
}

/// What was found, as far as there is room for it.
#[derive(Debug, Default)]
struct Found {
    list: Vec<Diagnostic>,
    /// How much was found.
    count: usize,
}

impl Found {
    fn push(&mut self, found: Diagnostic) {
        self.count += 1;
        if self.list.len() < MAX_ERRORS {
            self.list.push(found);
        }
    }

    /// How much was found, kept or not.
    const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is room for no more.
    const fn is_full(&self) -> bool {
        self.count >= MAX_ERRORS
    }
}

impl Extend<Diagnostic> for Found {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, found: I) {
        found.into_iter().for_each(|found| self.push(found));
    }
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;
type Value<'i> = Spanned<DeValue<'i>>;
type Entry<'t, 'i> = (&'t Key<'i>, &'t Value<'i>);

/// How many suggestions are looked for in one file: enough for what is shown, and no more work
/// than that for a file that is wrong all over.
const MAX_SUGGESTIONS: usize = 256;

/// With how many names, altogether, what is suggested is compared.
const MAX_COMPARISONS: usize = 200_000;

/// How many names one message lists.
const MAX_LISTED: usize = 8;

const ROOT_KEYS: [&str; 8] =
    ["version", "interfaces", "mode", "default", "options", "sets", "targets", "rules"];
const OPTION_KEYS: [&str; 3] = ["fragments", "malformed", "unsupported"];
const ROOT_KEY_SYNONYMS: [(&str, &str); 9] = [
    ("interface", "interfaces"),
    ("iface", "interfaces"),
    ("ifaces", "interfaces"),
    ("device", "interfaces"),
    ("devices", "interfaces"),
    ("policy", "default"),
    ("default_action", "default"),
    ("xdp_mode", "mode"),
    ("option", "options"),
];
const STEER: &str = "steer";

const MODE_SYNONYMS: [(&str, Mode); 6] = [
    ("skb", Mode::Generic),
    ("xdpgeneric", Mode::Generic),
    ("drv", Mode::Native),
    ("driver", Mode::Native),
    ("xdpdrv", Mode::Native),
    ("xdp", Mode::Auto),
];
/// What people write to match everything.
const ANY_WORDS: [&str; 4] = ["any", "all", "*", "ip"];

/// What is known while a file is read.
struct Reader<'a> {
    services: &'a Services,
    /// What reads the sets' files, if anything does.
    files: Option<&'a mut dyn SetFiles>,
    interrupt: &'a Interrupt,
    /// Where the lines start, in bytes.
    line_starts: Vec<usize>,
    /// Whether there were no errors of syntax. Where there are, what is missing proves nothing.
    is_whole: bool,
    /// How many suggestions may still be looked for.
    suggestions: usize,
    /// With how many names these may still be compared.
    comparisons: usize,
    /// The globs of interfaces, each once.
    globs: HashSet<String>,
    /// How many interfaces and globs rules have named.
    rule_interfaces: usize,
    errors: Found,
    warnings: Found,
}

impl Reader<'_> {
    /// The policy, as far as it can be told: usable only if no errors were found.
    fn read_policy(&mut self, root: &DeTable<'_>) -> Option<Policy> {
        if !self.version_is_known(root) {
            return None; // the rest is in a language that we do not know
        }
        let mut mode = Mode::default();
        let mut default = Action::Pass;
        let mut options = Options::default();
        let mut rules = Vec::new();
        // First, because rules name them.
        let value_of = |key| root.get_key_value(key).filter(is_complete).map(|(_, value)| value);
        let errors_before = self.errors.len();
        let interfaces = value_of("interfaces").map(|value| self.read_interfaces(value));
        let is_known = interfaces.is_some() && self.errors.len() == errors_before;
        let interfaces = interfaces.unwrap_or_default();
        let sets = value_of("sets").map_or_else(Sets::none, |value| self.read_sets(value));
        let targets =
            value_of("targets").map_or_else(Targets::none, |value| self.read_targets(value));
        let named = Named {
            attached: Attached::new(&interfaces, is_known),
            sets: &sets,
            targets: &targets,
        };
        for (key, value) in root.iter().filter(is_complete) {
            if self.is_over() {
                break;
            }
            match key.get_ref().as_ref() {
                "version" | "interfaces" | "sets" | "targets" => {}
                "mode" => mode = self.read_mode(value).unwrap_or(mode),
                "default" => default = self.read_action((key, value)).unwrap_or(default),
                "options" => options = self.read_options(value),
                "rules" => rules = self.read_rules(key, value, &named),
                _ => self.refuse_root_key(key),
            }
        }
        if self.is_whole && root.get("interfaces").is_none() {
            self.errors.push(
                Diagnostic::error("the policy has no `interfaces`")
                    .help("name the interfaces to attach to: `interfaces = [\"eth0\"]`"),
            );
        }
        self.refuse_circles(&interfaces, &targets.list);
        let (targets, sets) = (targets.list, sets.list);
        Some(Policy { interfaces, mode, default, options, targets, sets, rules })
    }

    /// Reports a missing or unknown version. Returns whether it makes sense to go on.
    fn version_is_known(&mut self, root: &DeTable<'_>) -> bool {
        let Some((_, value)) = root.get_key_value("version").filter(is_complete) else {
            if self.is_whole {
                self.errors.push(
                    Diagnostic::error("the policy has no `version`")
                        .help(format!("begin the file with `version = {VERSION}`")),
                );
            }
            return true;
        };
        match value.get_ref() {
            DeValue::Integer(number) if number_of(number) == Some(VERSION.into()) => true,
            DeValue::Integer(_) => {
                self.errors.push(
                    Diagnostic::error(
                        "the policy is of a version that this portsteer does not know",
                    )
                    .at(value.span())
                    .label(format!("this portsteer understands version {VERSION}")),
                );
                false
            }
            _ => {
                self.wrong_type(value, "the integer 1", Some("write `version = 1`".to_owned()));
                true
            }
        }
    }

    fn read_mode(&mut self, value: &Value<'_>) -> Option<Mode> {
        const MODES: [Mode; 3] = [Mode::Auto, Mode::Native, Mode::Generic];
        const EXPECTED: &str = "expected \"auto\", \"native\" or \"generic\"";
        let Some(word) = value.get_ref().as_str() else {
            self.wrong_type(value, "\"auto\", \"native\" or \"generic\"", None);
            return None;
        };
        let mode = MODES.into_iter().find(|mode| mode.name() == word);
        if mode.is_none() {
            let near = known(&MODE_SYNONYMS, word)
                .map(Mode::name)
                .or_else(|| self.suggest(word, MODES.into_iter().map(Mode::name)));
            self.unknown_word(format!("there is no mode {}", quote(word)), value, EXPECTED, near);
        }
        mode
    }

    fn read_options(&mut self, value: &Value<'_>) -> Options {
        let mut options = Options::default();
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(
                value,
                "a table",
                Some("write it as a section: `[options]`".to_owned()),
            );
            return options;
        };
        for (key, value) in table.iter().filter(is_complete) {
            let option = match key.get_ref().as_ref() {
                "fragments" => &mut options.fragments,
                "malformed" => &mut options.malformed,
                "unsupported" => &mut options.unsupported,
                other => {
                    let help = self.elsewhere(other, "options").or_else(|| {
                        self.suggest(other, OPTION_KEYS)
                            .map(|near| did_you_mean(&format!("`{near}`")))
                    });
                    self.unknown_key(key, "`[options]`", help, &OPTION_KEYS);
                    continue;
                }
            };
            if let Some(action) = self.read_action((key, value)) {
                *option = action;
            }
        }
        options
    }

    fn refuse_root_key(&mut self, key: &Key<'_>) {
        let word = key.get_ref().as_ref();
        let help = if word == "rule" {
            Some("begin every rule with a line `[[rules]]`".to_owned())
        } else if word == "target" {
            Some("begin every target with a line `[targets.NAME]`".to_owned())
        } else if let "set" | "ipset" | "ipsets" = word {
            Some("begin every set with a line `[sets.NAME]`".to_owned())
        } else if let Some(near) = known(&ROOT_KEY_SYNONYMS, word) {
            Some(match near {
                "interfaces" => "did you mean the list `interfaces`?".to_owned(),
                _ => did_you_mean(&format!("`{near}`")),
            })
        } else {
            let meant = known(&RULE_KEY_SYNONYMS, word).unwrap_or(word);
            self.elsewhere(meant, "").or_else(|| {
                self.suggest(word, ROOT_KEYS).map(|near| did_you_mean(&format!("`{near}`")))
            })
        };
        self.unknown_key(key, "the policy", help, &ROOT_KEYS);
    }

    fn elsewhere(&self, word: &str, here: &str) -> Option<String> {
        if !here.is_empty() && ROOT_KEYS.contains(&word) {
            Some(format!("`{word}` belongs at the top of the file, before the first `[`"))
        } else if here != "options" && OPTION_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in the section `[options]`"))
        } else if here != "rules" && RULE_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in a rule, after a line `[[rules]]`"))
        } else if here != "targets" && TARGET_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in a target, after a line `[targets.NAME]`"))
        } else if here != "sets" && SET_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in a set, after a line `[sets.NAME]`"))
        } else {
            None
        }
    }

    /// The items of a rule's `key`, which is a list or stands for a list of one; reports a list of
    /// none.
    fn items<'t, 'i>(&mut self, key: &str, value: &'t Value<'i>) -> &'t [Value<'i>] {
        let DeValue::Array(items) = value.get_ref() else {
            return std::slice::from_ref(value);
        };
        if items.is_empty() {
            self.errors.push(
                Diagnostic::error(format!("`{key}` is empty, so the rule matches nothing"))
                    .at(value.span())
                    .help(format!("leave `{key}` out to match any")),
            );
        }
        items
    }

    /// What to say where a name is unknown: the one that is near, else the first ones. `None` if
    /// there are no names. `sign` is what stands before a name.
    fn near_name(&mut self, name: &str, names: &[&str], sign: &str, noun: &str) -> Option<String> {
        if let Some(near) = self.suggest(name, names.iter().copied()) {
            return Some(did_you_mean(&toml_string(&format!("{sign}{near}"))));
        }
        let mut listed: Vec<String> =
            names.iter().take(MAX_LISTED).map(|name| quote(name)).collect();
        if names.len() > MAX_LISTED {
            listed.push(format!("{} more", names.len() - MAX_LISTED));
        }
        let verb = match listed.len() {
            0 => return None,
            1 => format!("the only {noun} is"),
            _ => format!("the {noun}s are"),
        };
        Some(format!("{verb} {}", listed.join(", ")))
    }

    fn unknown_key(&mut self, key: &Key<'_>, place: &str, help: Option<String>, keys: &[&str]) {
        let mut error =
            Diagnostic::error(format!("{place} has no key {}", quote(key.get_ref().as_ref())))
                .at(key.span())
                .label("unknown key");
        error.help = help.or_else(|| Some(format!("the keys here are {}", keys.join(", "))));
        self.errors.push(error);
    }
    fn unknown_word(
        &mut self,
        message: String,
        value: &Value<'_>,
        label: &str,
        near: Option<&str>,
    ) {
        let mut error = Diagnostic::error(message).at(value.span()).label(label);
        error.help = near.map(|near| did_you_mean(&format!("\"{near}\"")));
        self.errors.push(error);
    }

    fn wrong_type(&mut self, value: &Value<'_>, expected: &str, help: Option<String>) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let mut error = Diagnostic::error(format!("{found} cannot stand here"))
            .at(value.span())
            .label(format!("expected {expected}"));
        error.help = help;
        self.errors.push(error);
    }

    fn suggest<'c>(
        &mut self,
        word: &str,
        candidates: impl IntoIterator<Item = &'c str>,
    ) -> Option<&'c str> {
        self.suggestions = self.suggestions.checked_sub(1)?;
        let left = &mut self.comparisons;
        let counted = candidates.into_iter().take_while(|_| {
            *left = left.saturating_sub(1);
            *left > 0
        });
        suggest(word, counted)
    }

    /// Whether reading on makes no sense: there are errors enough, or nobody waits for it.
    fn is_over(&self) -> bool {
        self.errors.is_full() || self.interrupt.is_set()
    }
}

/// Whether a character shows nothing itself, but may change how others show: zero-width and
/// directional ones (Unicode's category Cf, as far as text has them).
const fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// Why a text is no name for a rule, a set or a target.
pub(super) fn name_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("a name has at least one character".to_owned())
    } else if name.chars().any(char::is_control) {
        Some("a name has no control characters".to_owned())
    } else if name.chars().any(is_invisible) {
        Some("a name has no invisible characters".to_owned())
    } else if name.trim() != name {
        Some("a name neither begins nor ends with white space".to_owned())
    } else if name.chars().nth(MAX_NAME_CHARS).is_some() {
        Some(format!("a name has at most {MAX_NAME_CHARS} characters"))
    } else {
        None
    }
}

/// Whether the value is really there: where it is missing, the parser puts one without a place.
fn is_complete(entry: &Entry<'_, '_>) -> bool {
    !entry.1.span().is_empty()
}

fn known<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|(name, _)| *name == word).map(|&(_, meaning)| meaning)
}

fn number_of(integer: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

pub(super) fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

pub(super) fn did_you_mean(what: &str) -> String {
    format!("did you mean {what}?")
}

/// The text as it can stand in a message: short, on one line.
pub(super) fn quote(text: &str) -> String {
    const LONGEST: usize = 48;
    if text.is_empty() {
        return "`\"\"`".to_owned();
    }
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    format!("`{}`", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

/// The text as a TOML string, for a help line.
fn toml_string(text: &str) -> String {
    quote(text).replace('`', "\"")
}

/// Two places in the file's order.
fn in_order(a: &Range<usize>, b: &Range<usize>) -> (Range<usize>, Range<usize>) {
    if a.start <= b.start { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

/// The text as a key of TOML, for a help line.
fn toml_key(text: &str) -> String {
    if is_bare(text) && !text.is_empty() && !text.contains(['.', '*']) {
        text.to_owned()
    } else {
        toml_string(text)
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    let after_newlines = text.match_indices('\n').map(|(index, _)| index + 1);
    std::iter::once(0).chain(after_newlines).collect()
}

/// Whether the text is a word as it may stand in the file unquoted by mistake.
fn is_bare(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
    text.len() <= 64 && text.bytes().all(is_fine)
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, net::IpAddr};

    use ipnet::IpNet;
    use portsteer_common::PortProtocol;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{
        AddressItem, Addresses, InterfacePattern, NumberRange, PROTOCOL_NAMES, PortRange, Rule,
        SetId,
        diagnostic::{Source, line_column, render},
        prefixes,
    };

    pub(super) const HEAD: &str = "version = 1\ninterfaces = [\"eth0\"]\n";

    fn parse_alone(text: &str) -> Result<Parsed, Vec<Diagnostic>> {
        parse(text, &Services::embedded())
    }

    pub(super) fn policy(text: &str) -> Policy {
        parse_alone(text).unwrap_or_else(|errors| panic!("{}", rendered(text, &errors))).policy
    }

    /// What a policy that can be used is warned of, as [`brief`] has it.
    pub(super) fn warnings(text: &str) -> String {
        let parsed = parse_alone(text);
        let parsed = parsed.unwrap_or_else(|errors| panic!("{}", rendered(text, &errors)));
        brief(text, &parsed.warnings)
    }

    pub(super) fn errors(text: &str) -> Vec<Diagnostic> {
        parse_alone(text).expect_err(text)
    }

    fn rendered(text: &str, diagnostics: &[Diagnostic]) -> String {
        render(&Source { name: "p.toml".into(), text: text.into() }, diagnostics, false)
    }

    /// `line:column [underlined text] message (label) help`, a line for each.
    pub(super) fn brief(text: &str, diagnostics: &[Diagnostic]) -> String {
        let mut brief = String::new();
        for diagnostic in diagnostics {
            if let Some(span) = &diagnostic.span {
                let (line, column) = line_column(text, span.start);
                write!(brief, "{line}:{column} [{}] ", &text[span.clone()]).unwrap();
            }
            write!(brief, "{}", diagnostic.message).unwrap();
            if let Some(label) = &diagnostic.label {
                write!(brief, " ({label})").unwrap();
            }
            for note in &diagnostic.notes {
                write!(brief, "\n  {note}").unwrap();
            }
            if let Some(help) = &diagnostic.help {
                write!(brief, " {help}").unwrap();
            }
            brief.push('\n');
        }
        brief
    }

    fn rule(protocols: &[u8], dst_ports: &[(u16, u16)], action: Action) -> Rule {
        let dst_ports = dst_ports.iter().map(|&(first, last)| PortRange { first, last }).collect();
        let protocols = protocols.to_vec();
        Rule { protocols, dst_ports, ..Rule::any(action) }
    }

    /// The rules without their places.
    fn placeless(rules: &[Rule]) -> Vec<Rule> {
        let mut rules = rules.to_vec();
        for rule in &mut rules {
            (rule.span, rule.line) = (0..0, 0);
            rule.interfaces.iter_mut().for_each(|pattern| pattern.span = 0..0);
        }
        rules
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let interfaces =
            vec![InterfacePattern { text: "eth0".into(), is_glob: false, span: 26..32 }];
        let options =
            Options { fragments: Action::Pass, malformed: Action::Drop, unsupported: Action::Drop };
        let (mode, default) = (Mode::Auto, Action::Pass);
        assert_eq!(
            policy(HEAD),
            Policy {
                interfaces,
                mode,
                default,
                options,
                targets: vec![],
                sets: vec![],
                rules: vec![]
            }
        );
    }

    #[test]
    fn a_whole_file() {
        let text = "\u{feff}version = 1\r\n\
            interfaces = [\"eth0\", \"veth-*\"]\r\n\
            mode = \"native\" # a comment\r\n\
            default = \"drop\"\r\n\
            [options]\r\n\
            fragments = \"drop\"\r\n\
            malformed = \"pass\"\r\n\
            unsupported = \"pass\"\r\n\
            [[rules]]\r\n\
            name = \"w\u{eb}b\"\r\n\
            protocol = [\"udp\", 6]\r\n\
            dst_port = [\"https\", 8443, \"9000-9099\", \"444\", 0x50, \"ftp-data\"]\r\n\
            action = \"pass\"\r\n\
            \r\n\
            [[ rules ]] # another\r\n\
            dst_port = \"dynamic\"\r\n\
            action = \"drop\"\r\n\
            [[rules]]\r\n\
            protocol = 47\r\n\
            action = \"drop\"\r\n";
        let policy = policy(text);
        assert_eq!((policy.mode, policy.default), (Mode::Native, Action::Drop));
        assert_eq!(
            policy.options,
            Options { fragments: Action::Drop, malformed: Action::Pass, unsupported: Action::Pass }
        );
        let globs: Vec<bool> = policy.interfaces.iter().map(|pattern| pattern.is_glob).collect();
        assert_eq!(globs, [false, true]);
        let web = [(20, 20), (80, 80), (443, 444), (8443, 8443), (9000, 9099)];
        assert_eq!(
            placeless(&policy.rules),
            [
                Rule { name: Some("w\u{eb}b".into()), ..rule(&[6, 17], &web, Action::Pass) },
                rule(&[], &[(49_152, 65_535)], Action::Drop),
                rule(&[47], &[], Action::Drop),
            ]
        );
        let places: Vec<_> =
            policy.rules.iter().map(|rule| (rule.line, &text[rule.span.clone()])).collect();
        assert_eq!(places, [(9, "[[rules]]"), (15, "[[ rules ]]"), (18, "[[rules]]")]);
    }

    /// Every key, as the documentation has it.
    #[test]
    fn every_key_of_a_rule() {
        let text = "version = 1\ninterfaces = [\"eth0\", \"veth-*\"]\n\
            [sets.office]\naddresses = [\"192.0.2.0/24\", \"2001:db8:5::/48\"]\n\
            [sets.blocklist]\nfile = \"blocklist.txt\"\n\
            [[rules]]\nname = \"blocked\"\nsrc = [\"@blocklist\", \"!@office\"]\naction = \"drop\"\n\
            [[rules]]\nprotocol = \"tcp\"\nsrc_port = \"dynamic\"\ndst_port = \"ssh\"\n\
            src = [\"@office\", \"198.51.100.7\"]\ndst = \"!203.0.113.0/24\"\n\
            vlan = [12, \"100-199\", \"untagged\"]\ninterface = [\"eth0\", \"veth-1\"]\n\
            action = \"pass\"\n\
            [[rules]]\nprotocol = \"icmp\"\nicmp_type = [\"echo-request\", \"3/4\", \"9-11\"]\n\
            action = \"pass\"\n";
        let mut files = |name: &str| {
            assert_eq!(name, "blocklist.txt");
            Ok(b"# bad\r\n10.1.0.0/16\r\n".to_vec())
        };
        let parsed = parse_with(text, &Services::embedded(), &mut files).unwrap();
        let policy = parsed.policy;
        assert_eq!(parsed.warnings, []);
        let matches: Vec<_> = policy.rules.iter().map(|rule| policy.matches(rule)).collect();
        assert_eq!(
            matches,
            [
                "any src @blocklist,!@office",
                "tcp src @office,198.51.100.7 src_port 49152-65535 dst !203.0.113.0/24 dst_port 22 \
                 vlan untagged,12,100-199 interface eth0,veth-1",
                "icmp icmp_type 3/4,8-11",
            ]
        );
        assert!(policy.rules[1].needs_transport() && policy.rules[2].needs_transport());
        assert!(!policy.rules[0].needs_transport());
        assert_eq!(*policy.sets[1].prefixes, ["10.1.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn warnings_are_in_the_order_of_the_file() {
        let text = "version = 1\ninterfaces = ['eth0']\n\
            [[rules]]\nvlan = 1\nprotocol = [6, 6]\ndst = ['::1', '::1']\naction = 'drop'\n\
            [sets.a]\naddresses = []\n";
        let warned = warnings(text);
        let lines = warned.lines().map(|line| line.split(':').next().unwrap());
        assert_eq!(lines.collect::<Vec<_>>(), ["5", "6", "9"]);
    }

    #[test]
    fn other_ways_to_write_it() {
        let policy = policy(
            "version = 0x1\ninterfaces = ['eth0',]\noptions.fragments = \"drop\"\n\
             rules = [{ action = \"pass\" },\n { dst_port = \"dns\", action = \"drop\" }]\n",
        );
        assert_eq!(policy.options.fragments, Action::Drop);
        assert_eq!(
            placeless(&policy.rules),
            [rule(&[], &[], Action::Pass), rule(&[], &[(53, 53)], Action::Drop)]
        );
        assert_eq!([policy.rules[0].line, policy.rules[1].line], [4, 5]);
    }

    /// Errors outside of rules: a file, what is said about it.
    #[test]
    fn errors_of_the_file() {
        let cases: &[(&str, &str)] = &[
            (
                r#""#,
                r#"the policy has no `version` begin the file with `version = 1`
the policy has no `interfaces` name the interfaces to attach to: `interfaces = ["eth0"]`
"#,
            ),
            (
                r#"version = 1
"#,
                r#"the policy has no `interfaces` name the interfaces to attach to: `interfaces = ["eth0"]`
"#,
            ),
            (
                r#"interfaces = ["eth0"]
"#,
                r#"the policy has no `version` begin the file with `version = 1`
"#,
            ),
            (
                r#"version = 2
new = 1
"#,
                r#"1:11 [2] the policy is of a version that this portsteer does not know (this portsteer understands version 1)
"#,
            ),
            (
                r#"version = "1"
interfaces = ["eth0"]
"#,
                r#"1:11 ["1"] a string cannot stand here (expected the integer 1) write `version = 1`
"#,
            ),
            (
                r#"version = 1
interfaces = "eth0"
"#,
                r#"2:14 ["eth0"] a string cannot stand here (expected a list of strings) write a list: `interfaces = ["eth0"]`
"#,
            ),
            (
                r#"version = 1
interfaces = []
"#,
                r#"2:14 [[]] `interfaces` is empty (at least one name or glob)
"#,
            ),
            (
                r#"version = 1
interfaces = ["", ".", "a/b", "eth0 eth1", "sixteen-bytes-xx", "[", "eth0", "eth0", 5]
"#,
                r#"2:15 [""] `""` is no interface name (it is empty)
2:19 ["."] `.` is no interface name (Linux keeps this name for directories)
2:24 ["a/b"] `a/b` is no interface name (no interface's name has '/' in it)
2:31 ["eth0 eth1"] `eth0 eth1` is no interface name (no interface's name has ' ' in it) write several names as several strings
2:44 ["sixteen-bytes-xx"] `sixteen-bytes-xx` is no interface name (a name has at most 15 bytes)
2:64 ["["] `[` is no interface glob (unclosed character class; missing ']')
2:77 ["eth0"] `eth0` is listed twice (again here)
2:85 [5] an integer cannot stand here (expected an interface's name or a glob, as a string)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = "nativ"
"#,
                r#"3:8 ["nativ"] there is no mode `nativ` (expected "auto", "native" or "generic") did you mean "native"?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = true
"#,
                r#"3:8 [true] a boolean cannot stand here (expected "auto", "native" or "generic")
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = "xdpdrv"
"#,
                r#"3:8 ["xdpdrv"] there is no mode `xdpdrv` (expected "auto", "native" or "generic") did you mean "native"?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
default = "dorp"
"#,
                r#"3:11 ["dorp"] `default` cannot be `dorp` (expected "pass" or "drop") did you mean "drop"?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
default = "reject"
"#,
                r#"3:11 ["reject"] the action `reject` is not there yet (this release can pass, drop and steer) "drop" discards without an answer
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
default = false
"#,
                r#"3:11 [false] a boolean cannot stand here (expected "pass" or "drop") did you mean "drop"?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
defualt = "drop"
"#,
                r#"3:1 [defualt] the policy has no key `defualt` (unknown key) did you mean `default`?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
port = 1
fragments = "drop"
dst_port = 1
interface = "eth0"
"#,
                r#"3:1 [port] the policy has no key `port` (unknown key) `dst_port` belongs in a rule, after a line `[[rules]]`
4:1 [fragments] the policy has no key `fragments` (unknown key) `fragments` belongs in the section `[options]`
5:1 [dst_port] the policy has no key `dst_port` (unknown key) `dst_port` belongs in a rule, after a line `[[rules]]`
6:1 [interface] the policy has no key `interface` (unknown key) did you mean the list `interfaces`?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[options]
fragments = "accept"
malformd = "drop"
mode = "auto"
"#,
                r#"4:13 ["accept"] `fragments` cannot be `accept` (expected "pass" or "drop") did you mean "pass"?
5:1 [malformd] `[options]` has no key `malformd` (unknown key) did you mean `malformed`?
6:1 [mode] `[options]` has no key `mode` (unknown key) `mode` belongs at the top of the file, before the first `[`
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
options = 1
"#,
                r#"3:11 [1] an integer cannot stand here (expected a table) write it as a section: `[options]`
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[sets.office]
addresses = []
[targets.web]
"#,
                r#"5:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add `interface` with `via` or `mac`, or add `cpus`
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[[rule]]
"#,
                r#"3:3 [rule] the policy has no key `rule` (unknown key) begin every rule with a line `[[rules]]`
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[rules]
name = "x"
"#,
                r#"3:2 [rules] `rules` is one table, but a list of tables is expected (one pair of brackets is missing) begin every rule with a line `[[rules]]`
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
rules = "x"
"#,
                r#"3:9 ["x"] a string cannot stand here (expected a list of tables) begin every rule with a line `[[rules]]`
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
rules = [1]
"#,
                r#"3:10 [1] an integer cannot stand here (expected a table)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = auto
"#,
                r#"3:8 [auto] string values must be quoted (expected a string, a number or a list) write "auto"
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[[rules]]
dst_port = 8000-8099
action = "drop"
"#,
                r#"4:12 [8000-8099] a range must be quoted (expected a string, a number or a list) write "8000-8099"
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[[rules]]
dst_port = [80, 9000-9099]
action = "drop"
"#,
                r#"4:17 [9000-9099] a range must be quoted (expected a string, a number or a list) write "9000-9099"
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = 
"#,
                r#"3:8 [] the value is missing (expected a value)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode "auto"
"#,
                r#"3:6 [] key with no value (expected `=`)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = "auto"
mode = "native"
"#,
                r#"4:1 [mode] the key `mode` is there twice (again here)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[options]
fragments = "drop"
[options]
"#,
                r#"5:2 [options] the key `options` is there twice (again here)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
mode = "auto
"#,
                r#"3:13 [] invalid basic string (expected `"`)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
ä = 1
"#,
                r#"3:1 [ä] invalid unquoted key (expected letters, numbers, `-`, `_`)
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"
[[rules]]
"#,
                r#"3:1 [] missing comma between array elements (expected `,`)
3:3 [rules] string values must be quoted (expected a string, a number or a list) write "rules"
3:10 [] unclosed array (expected `]`)
"#,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(brief(text, &errors(text)), *expected, "{text}");
        }
    }

    #[test]
    fn renderings() {
        let cases: &[(&str, &str)] = &[
            (
                r#"version = 1
interfaces = ["eth0"]
[[rules]]
protocol = ["tcp", "icmp"]
dst_port = ["htps", "9099-9000"]
action = "allow"
"#,
                r#"error: protocol `icmp` has no ports
 --> p.toml:4:20
  |
4 | protocol = ["tcp", "icmp"]
  |                    ^^^^^^ cannot stand beside `dst_port`
5 | dst_port = ["htps", "9099-9000"]
  | -------- ports are asked for here
  |
  = help: give it a rule of its own, without `dst_port`

error: `htps` names no port
 --> p.toml:5:13
  |
5 | dst_port = ["htps", "9099-9000"]
  |             ^^^^^^ neither a port, nor a range, nor a service's name
  |
  = help: did you mean "https"?

error: the range `9099-9000` runs backwards
 --> p.toml:5:21
  |
5 | dst_port = ["htps", "9099-9000"]
  |                     ^^^^^^^^^^^ it ends before it begins
  |
  = help: did you mean "9000-9099"?

error: `action` cannot be `allow`
 --> p.toml:6:10
  |
6 | action = "allow"
  |          ^^^^^^^ expected "pass", "drop" or { steer = "NAME" }
  |
  = help: did you mean "pass"?
"#,
            ),
            (
                r#"version = 1
interfaces = ["eth0"]
[[rules]]
name = "web"
protocol = "tcp"
dst_port = 80
action = { steer = "web" }
[[rules]]
name = "web"
action = "drop"
"#,
                r#"error: there is no target `web`
 --> p.toml:7:20
  |
7 | action = { steer = "web" }
  |                    ^^^^^ unknown target
  |
  = help: the policy has no targets: add `[targets.web]`

error: two rules are named `web`
 --> p.toml:9:8
  |
4 | name = "web"
  |        ----- first here
...
9 | name = "web"
  |        ^^^^^ again here
  |
  = help: a rule's counter belongs to its name, so names are unique
"#,
            ),
            (
                r#"mode = "auto"
"#,
                r#"error: the policy has no `version`
--> p.toml
 = help: begin the file with `version = 1`

error: the policy has no `interfaces`
--> p.toml
 = help: name the interfaces to attach to: `interfaces = ["eth0"]`
"#,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(rendered(text, &errors(text)), *expected);
        }
    }

    #[test]
    fn a_file_that_is_wrong_all_over_is_told_in_short() {
        let text = HEAD.to_owned() + &"[[rules]]\ndst_prot = \"htps\"\n".repeat(20_000);
        let errors = errors(&text);
        assert_eq!(errors.len(), MAX_ERRORS + 1);
        let suggestions =
            errors.iter().filter(|error| error.help.as_deref() == Some("did you mean `dst_port`?"));
        assert_eq!(suggestions.count(), MAX_SUGGESTIONS);
        let shown = rendered(&text, &errors);
        assert!(shown.ends_with("\nand 981 more\n"));
        assert!(shown.len() < 10_000);
    }

    #[test]
    fn deep_nesting_is_an_error() {
        for text in [
            "[".repeat(100_000),
            format!("a = {}", "[".repeat(100_000)),
            format!("a = {}", "{a = ".repeat(100_000)),
            format!("a = {}", "[{a = ".repeat(100_000)),
            format!("{}a = 1", "a.".repeat(100_000)),
            format!("[{}a]", "a.".repeat(100_000)),
        ] {
            let errors = errors(&text);
            assert!(errors.len() < 10, "{}", errors.len());
            assert!(rendered(&text, &errors).len() < 20_000);
        }
        // The deepest tree that the parser allows.
        let keys = "a.".repeat(78) + "a";
        let inline = format!("{{{keys} = ").repeat(79) + "1" + &"}".repeat(79);
        let errors = errors(&format!("{HEAD}[{keys}]\n{keys} = {inline}"));
        assert_eq!(errors.len(), 1);
    }

    /// Pieces of files, right and wrong ones.
    const PIECES: &[&str] = &[
        "version = 1",
        "interfaces",
        "rules",
        "options",
        "name",
        "protocol",
        "dst_port",
        "action",
        "src",
        "fragments",
        "[[rules]]",
        "[options]",
        "[rules]",
        "[",
        "]",
        "{",
        "}",
        "=",
        ",",
        ".",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "\n",
        "\r\n",
        "\r",
        "\t",
        " ",
        "#",
        "\"tcp\"",
        "\"icmp\"",
        "tcp",
        "\"htps\"",
        "\"9-1\"",
        "\"steer\"",
        "targets",
        "[targets.web]",
        "sets",
        "[sets.office]",
        "addresses",
        "file",
        "dst",
        "src_port",
        "vlan",
        "icmp_type",
        "\"untagged\"",
        "\"echo-request\"",
        "\"3/4\"",
        "\"@office\"",
        "\"!@office\"",
        "\"10.0.0.1/8\"",
        "interface",
        "via",
        "mac",
        "cpus",
        "queue",
        "\"02:00:00:00:00:01\"",
        "\"10.0.0.1\"",
        "{ steer = \"web\" }",
        "{ steer = 1 }",
        "[\"eth0\"]",
        "\"eth0\"",
        "1",
        "-1",
        "1.5",
        "true",
        "1979-05-27",
        "0x",
        "\u{feff}",
        "\u{e4}",
        "\u{1f600}",
        "\0",
        "\\",
    ];

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => prop::sample::select(PIECES).prop_map(str::to_owned),
            1 => any::<String>(),
        ]
    }

    /// The sets that generated rules name.
    const SETS: &str =
        "[sets.office]\naddresses = ['192.0.2.0/24']\n[sets.'a b']\naddresses = []\n";

    /// A list of values in the file, with what they mean together.
    #[derive(Debug, Clone)]
    struct Written<T> {
        items: Vec<String>,
        meaning: T,
    }

    /// Ranges of numbers from `least` to `greatest`, some of them in words.
    fn any_ranges(
        least: u16,
        greatest: u16,
        word_for: fn(u16) -> Option<String>,
    ) -> impl Strategy<Value = Written<Vec<NumberRange>>> {
        let number = least..=greatest;
        prop::collection::vec((number.clone(), number, 0..4_u8), 0..6).prop_map(move |ranges| {
            let mut items = Vec::new();
            let mut matched = vec![false; 65_536];
            for (a, b, form) in ranges {
                let (first, last) = (a.min(b), a.max(b));
                let (item, (from, to)) = match (word_for(a), form) {
                    (Some(word), 0 | 1) => (format!("\"{word}\""), (a, a)),
                    (_, 0) => (a.to_string(), (a, a)),
                    (_, 1) => (format!("\"{a}\""), (a, a)),
                    _ => (format!("'{first}-{last}'"), (first, last)),
                };
                items.push(item);
                matched[usize::from(from)..=usize::from(to)].fill(true);
            }
            Written { items, meaning: ranges_of(&matched) }
        })
    }

    /// What stands for the numbers that are marked.
    fn ranges_of(matched: &[bool]) -> Vec<NumberRange> {
        let mut ranges: Vec<NumberRange> = Vec::new();
        for number in (0..=u16::MAX).filter(|&number| matched[usize::from(number)]) {
            match ranges.last_mut() {
                Some(last) if last.last + 1 == number => last.last = number,
                _ => ranges.push(NumberRange::single(number)),
            }
        }
        ranges
    }

    fn any_icmp_types() -> impl Strategy<Value = Written<Vec<NumberRange>>> {
        let item = (any::<u8>(), any::<u8>(), any::<u8>(), 0..5_u8);
        prop::collection::vec(item, 1..6).prop_map(|types| {
            let mut items = Vec::new();
            let mut matched = vec![false; 65_536];
            for (kind, a, b, form) in types {
                let (first, last) = (a.min(b), a.max(b));
                let (item, kinds, codes) = match form {
                    0 => (kind.to_string(), kind..=kind, 0..=255),
                    1 => (format!("'{kind}'"), kind..=kind, 0..=255),
                    2 => (format!("'{kind}/{a}'"), kind..=kind, a..=a),
                    3 => (format!("'{kind}/{first}-{last}'"), kind..=kind, first..=last),
                    _ => (format!("'{first}-{last}'"), first..=last, 0..=255),
                };
                items.push(item);
                for kind in kinds {
                    for code in codes.clone() {
                        matched[usize::from(kind) << 8 | usize::from(code)] = true;
                    }
                }
            }
            Written { items, meaning: ranges_of(&matched) }
        })
    }

    fn any_addresses() -> impl Strategy<Value = Written<Addresses>> {
        let prefix = (any::<IpAddr>(), any::<u8>()).prop_map(|(address, len)| {
            let len = len % (IpNet::from(address).max_prefix_len() + 1);
            AddressItem::Prefix(IpNet::new(address, len).unwrap().trunc())
        });
        let set = (0..2_u32).prop_map(|index| AddressItem::Set(SetId(index)));
        let item = (any::<bool>(), prop_oneof![3 => prefix, 1 => set], any::<bool>());
        prop::collection::vec(item, 0..6).prop_map(|listed| {
            let (mut items, mut meaning) = (Vec::new(), Addresses::default());
            for (is_negated, item, is_bare) in listed {
                let text = match item {
                    AddressItem::Set(SetId(index)) => {
                        format!("@{}", ["office", "a b"][index as usize])
                    }
                    AddressItem::Prefix(prefix) if is_bare => prefixes::bare(prefix),
                    AddressItem::Prefix(prefix) => prefix.to_string(),
                };
                items.push(format!("\"{}{text}\"", if is_negated { "!" } else { "" }));
                let list = if is_negated { &mut meaning.negative } else { &mut meaning.positive };
                if !list.contains(&item) {
                    list.push(item);
                }
            }
            Written { items, meaning }
        })
    }

    fn any_interfaces() -> impl Strategy<Value = Written<Vec<InterfacePattern>>> {
        let names = vec!["eth0", "en*", "enp3s0", "en[op]?", "{eth0,en1}"];
        prop::collection::vec(prop::sample::select(names), 0..3).prop_map(|names| {
            let (mut items, mut meaning) = (Vec::new(), Vec::<InterfacePattern>::new());
            for name in names {
                items.push(format!("'{name}'"));
                if meaning.iter().all(|pattern| pattern.text != name) {
                    let is_glob = !name.ends_with('0');
                    meaning.push(InterfacePattern { text: name.into(), is_glob, span: 0..0 });
                }
            }
            Written { items, meaning }
        })
    }

    fn any_protocols() -> impl Strategy<Value = Written<Vec<u8>>> {
        let protocol = prop_oneof![prop::sample::select(vec![6, 17, 33, 132, 136]), any::<u8>()];
        prop::collection::vec(protocol, 0..4).prop_map(|mut protocols| {
            let mut items = Vec::new();
            for (index, &number) in protocols.iter().enumerate() {
                let name = PROTOCOL_NAMES.iter().find(|(_, named)| *named == number);
                items.push(match name {
                    Some((name, _)) if index % 2 == 0 => format!("'{name}'"),
                    _ => number.to_string(),
                });
            }
            protocols.sort_unstable();
            protocols.dedup();
            Written { items, meaning: protocols }
        })
    }

    /// A rule, with one of the texts that mean it.
    fn any_rule() -> impl Strategy<Value = (Rule, String)> {
        let service = |port| Services::name_of(port).map(str::to_owned);
        let untagged = |vlan| (vlan == 0).then(|| "untagged".to_owned());
        // 0 has a word and no number: ranges begin at 1.
        let vlans = prop_oneof![
            any_ranges(1, 4094, |_| None),
            any_ranges(0, 0, untagged).prop_filter("as a word", |vlans| !vlans
                .items
                .iter()
                .any(|item| item.contains('0')))
        ];
        (
            prop::option::of("[a-z\u{e4}\u{4e2d}]([ a-z0-9._-]{0,30}[a-z])?"),
            any_protocols(),
            (any_ranges(0, u16::MAX, service), any_ranges(0, u16::MAX, service)),
            (any_addresses(), any_addresses()),
            (vlans, any_interfaces()),
            prop::option::weighted(0.3, (any::<bool>(), any_icmp_types())),
            (any::<bool>(), any::<bool>()),
        )
            .prop_map(
                |(name, protocols, ports, addresses, places, icmp, (drops, is_list))| {
                    let action = if drops { Action::Drop } else { Action::Pass };
                    let mut rule = Rule { name, ..Rule::any(action) };
                    let mut text = String::from("[[rules]]\n");
                    if let Some(name) = &rule.name {
                        writeln!(text, "name = \"{name}\"").unwrap();
                    }
                    let mut write = |key: &str, items: &[String]| match items {
                        [] => {}
                        [one] if !is_list => writeln!(text, "{key} = {one}").unwrap(),
                        _ => writeln!(text, "{key} = [{}]", items.join(", ")).unwrap(),
                    };
                    write("dst", &addresses.1.items);
                    write("vlan", &places.0.items);
                    if let Some((is_v6, types)) = icmp {
                        rule.protocols = vec![if is_v6 { 58 } else { 1 }];
                        rule.icmp_types = types.meaning;
                        write("icmp_type", &types.items);
                        write("protocol", &[if is_v6 { "'icmpv6'".into() } else { "1".into() }]);
                    } else {
                        write("protocol", &protocols.items);
                        rule.protocols = protocols.meaning;
                        let has_ports = |number: &u8| PortProtocol::from_number(*number).is_some();
                        if rule.protocols.iter().all(has_ports) {
                            write("dst_port", &ports.1.items);
                            write("src_port", &ports.0.items);
                            (rule.src_ports, rule.dst_ports) = (ports.0.meaning, ports.1.meaning);
                        }
                    }
                    write("interface", &places.1.items);
                    write("src", &addresses.0.items);
                    (rule.src, rule.dst) = (addresses.0.meaning, addresses.1.meaning);
                    (rule.vlans, rule.interfaces) = (places.0.meaning, places.1.meaning);
                    writeln!(text, "action = \"{}\"", action.name()).unwrap();
                    (rule, text)
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_text_panics(pieces in prop::collection::vec(piece(), 0..40), has_head: bool) {
            let text = if has_head { HEAD } else { "" }.to_owned() + &pieces.concat();
            let diagnostics = match parse_alone(&text) {
                Ok(parsed) => parsed.warnings,
                Err(errors) => {
                    prop_assert!(!errors.is_empty());
                    errors
                }
            };
            for diagnostic in &diagnostics {
                if let Some(span) = &diagnostic.span {
                    prop_assert!(text.get(span.clone()).is_some(), "{diagnostic:?}");
                }
            }
            rendered(&text, &diagnostics);
        }

        #[test]
        fn policies_survive_being_written_and_read(
            rules in prop::collection::vec(any_rule(), 0..8),
            actions: [bool; 4],
            mode in prop::sample::select(vec![Mode::Auto, Mode::Native, Mode::Generic]),
        ) {
            let [default, fragments, malformed, unsupported] =
                actions.map(|drops| if drops { Action::Drop } else { Action::Pass });
            let mut text = format!(
                "version = 1\ninterfaces = ['eth0', \"en*\"]\n\
                 mode = \"{}\"\ndefault = \"{}\"\n[options]\n\
                 fragments = \"{}\"\nmalformed = \"{}\"\nunsupported = \"{}\"\n",
                mode.name(), default.name(), fragments.name(), malformed.name(), unsupported.name(),
            );
            let mut expected = Vec::new();
            let mut names = HashSet::new();
            for (rule, rule_text) in rules {
                if rule.name.clone().is_none_or(|name| names.insert(name)) {
                    text.push_str(&rule_text);
                    expected.push(rule);
                }
            }
            text.push_str(SETS);
            let policy = policy(&text);
            prop_assert_eq!(placeless(&policy.rules), expected);
            prop_assert_eq!((policy.mode, policy.default), (mode, default));
            prop_assert_eq!(policy.options, Options { fragments, malformed, unsupported });
            let lines: Vec<&str> = text.split('\n').collect();
            for rule in &policy.rules {
                prop_assert_eq!(lines[rule.line - 1], "[[rules]]");
                prop_assert_eq!(&text[rule.span.clone()], "[[rules]]");
            }
        }
    }
}
