//! The policy file, version 1: from TOML to what it means, or to everything that is wrong with it.
//!
//! The file is read leniently and judged strictly: one pass over the parsed tree finds all errors,
//! those of syntax and those of meaning, and each points at the text that is wrong. What a later
//! version of the format brings is refused by name, so that no policy ever means less than it
//! says.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use globset::GlobBuilder;
use portsteer_common::{PortProtocol, image::MAX_RULES};
use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use self::targets::{TARGET_KEYS, Targets};
use super::{
    Action, Addresses, InterfacePattern, Mode, Options, PROTOCOL_NAMES, Policy, PortRange,
    RANGE_NAMES, Rule, Target, TargetKind,
    diagnostic::{Diagnostic, suggest},
    services::Services,
};

mod targets;

/// The version of the format that is understood.
pub const VERSION: u8 = 1;

/// The longest name of a rule or a target, in characters.
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

/// Reads a policy file.
///
/// # Errors
///
/// Everything that is wrong with the file, in its order; at least one. Errors about the file as a
/// whole come first.
pub fn parse(text: &str, services: &Services) -> Result<Parsed, Vec<Diagnostic>> {
    let (root, syntax_errors) = DeTable::parse_recoverable(text);
    let root = root.into_inner();
    let mut reader = Reader {
        services,
        line_starts: line_starts(text),
        is_whole: syntax_errors.is_empty(),
        suggestions: MAX_SUGGESTIONS,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let policy = reader.read_policy(&root);

    let Reader { mut errors, warnings, .. } = reader;
    let syntax_errors = syntax_diagnostics(text, &root, &syntax_errors);
    dismantle(root);
    remove_consequences(&mut errors, &syntax_errors);
    errors.extend(syntax_errors);
    match policy {
        Some(policy) if errors.is_empty() => Ok(Parsed { policy, warnings }),
        _ => {
            errors.sort_by_key(|error| error.span.as_ref().map(|span| (span.start, span.end)));
            Err(errors)
        }
    }
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;
type Value<'i> = Spanned<DeValue<'i>>;
type Entry<'t, 'i> = (&'t Key<'i>, &'t Value<'i>);

/// How many suggestions are looked for in one file: enough for what is shown, and no more work
/// than that for a file that is wrong all over.
const MAX_SUGGESTIONS: usize = 256;

/// The word for what is not known yet is always the same.
const NOT_THERE_YET: &str = "is not there yet";
const RULES_TODAY: &str = "in this release a rule matches `protocol` and `dst_port`, and its action is \"pass\", \"drop\" or { steer = \"NAME\" }";

const ROOT_KEYS: [&str; 7] =
    ["version", "interfaces", "mode", "default", "options", "targets", "rules"];
const OPTION_KEYS: [&str; 3] = ["fragments", "malformed", "unsupported"];
const RULE_KEYS: [&str; 4] = ["name", "protocol", "dst_port", "action"];

/// Keys that later releases bring, with what this one cannot do.
const LATER_ROOT_KEYS: [(&str, &str); 1] = [("sets", "this release has no address sets")];
const LATER_RULE_KEYS: [(&str, &str); 6] = [
    ("src", "this release cannot match source addresses"),
    ("dst", "this release cannot match destination addresses"),
    ("src_port", "this release cannot match source ports"),
    ("vlan", "this release cannot match VLANs"),
    ("interface", "this release applies every rule to all interfaces"),
    ("icmp_type", "this release cannot match ICMP types"),
];
const LATER_ACTION: &str = "reject";
const STEER: &str = "steer";

/// Words that other tools use, with the key that means the same here.
const RULE_KEY_SYNONYMS: [(&str, &str); 20] = [
    ("port", "dst_port"),
    ("ports", "dst_port"),
    ("dport", "dst_port"),
    ("dports", "dst_port"),
    ("dst_ports", "dst_port"),
    ("dstport", "dst_port"),
    ("destination_port", "dst_port"),
    ("to_port", "dst_port"),
    ("service", "dst_port"),
    ("services", "dst_port"),
    ("proto", "protocol"),
    ("protocols", "protocol"),
    ("ip_protocol", "protocol"),
    ("target", "action"),
    ("verdict", "action"),
    ("policy", "action"),
    ("then", "action"),
    ("id", "name"),
    ("label", "name"),
    ("title", "name"),
];
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
const ACTION_SYNONYMS: [(&str, Action); 8] = [
    ("allow", Action::Pass),
    ("accept", Action::Pass),
    ("permit", Action::Pass),
    ("ok", Action::Pass),
    ("deny", Action::Drop),
    ("block", Action::Drop),
    ("discard", Action::Drop),
    ("blackhole", Action::Drop),
];
/// What other tools call steering.
const STEER_SYNONYMS: [&str; 5] = ["redirect", "forward", "divert", "target", "to"];
const MODE_SYNONYMS: [(&str, Mode); 6] = [
    ("skb", Mode::Generic),
    ("xdpgeneric", Mode::Generic),
    ("drv", Mode::Native),
    ("driver", Mode::Native),
    ("xdpdrv", Mode::Native),
    ("xdp", Mode::Auto),
];
const PROTOCOL_SYNONYMS: [(&str, &str); 5] = [
    ("udp-lite", "udplite"),
    ("icmp4", "icmp"),
    ("icmp6", "icmpv6"),
    ("ipv6-icmp", "icmpv6"),
    ("icmp-v6", "icmpv6"),
];
/// Protocols that people know by name, and the file by number alone.
const NUMBERED_PROTOCOLS: [(&str, u8); 14] = [
    ("igmp", 2),
    ("ipip", 4),
    ("ipv4", 4),
    ("egp", 8),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("eigrp", 88),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("mpls", 137),
];
/// What people write to match everything.
const ANY_WORDS: [&str; 4] = ["any", "all", "*", "ip"];

/// What is known while a file is read.
struct Reader<'a> {
    services: &'a Services,
    /// Where the lines start, in bytes.
    line_starts: Vec<usize>,
    /// Whether there were no errors of syntax. Where there are, what is missing proves nothing.
    is_whole: bool,
    /// How many suggestions may still be looked for.
    suggestions: usize,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

/// A protocol in a rule, with its place.
struct ProtocolItem {
    number: u8,
    span: Range<usize>,
}

impl Reader<'_> {
    /// The policy, as far as it can be told: usable only if no errors were found.
    fn read_policy(&mut self, root: &DeTable<'_>) -> Option<Policy> {
        if !self.version_is_known(root) {
            return None; // the rest is in a language that we do not know
        }
        let mut interfaces = Vec::new();
        let mut mode = Mode::default();
        let mut default = Action::Pass;
        let mut options = Options::default();
        let mut rules = Vec::new();
        // First, because rules name them.
        let targets = root.get_key_value("targets").filter(is_complete);
        let targets = targets.map_or_else(Targets::none, |(_, value)| self.read_targets(value));
        for (key, value) in root.iter().filter(is_complete) {
            match key.get_ref().as_ref() {
                "version" | "targets" => {}
                "interfaces" => interfaces = self.read_interfaces(value),
                "mode" => mode = self.read_mode(value).unwrap_or(mode),
                "default" => default = self.read_action((key, value)).unwrap_or(default),
                "options" => options = self.read_options(value),
                "rules" => rules = self.read_rules(key, value, &targets),
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
        let sets = Vec::new();
        Some(Policy { interfaces, mode, default, options, targets: targets.list, sets, rules })
    }

    /// Reports targets out of the interfaces that packets come from. (A glob leaves targets out.)
    fn refuse_circles(&mut self, interfaces: &[InterfacePattern], targets: &[Target]) {
        for target in targets {
            let TargetKind::Interface { interface, .. } = &target.kind else { continue };
            let attached =
                |pattern: &InterfacePattern| !pattern.is_glob && pattern.text == *interface;
            if interfaces.iter().any(attached) {
                self.errors.push(
                    Diagnostic::error(format!("{} steers in a circle", quote(&target.name)))
                        .at(target.span.clone())
                        .label(format!("sends out of {}", quote(interface)))
                        .help(format!(
                            "{} stands in `interfaces`: packets cannot be steered out of an \
                             interface that the policy is attached to",
                            quote(interface)
                        )),
                );
            }
        }
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

    fn read_interfaces(&mut self, value: &Value<'_>) -> Vec<InterfacePattern> {
        let DeValue::Array(items) = value.get_ref() else {
            let help = value
                .get_ref()
                .as_str()
                .map(|name| format!("write a list: `interfaces = [{}]`", toml_string(name)));
            self.wrong_type(value, "a list of strings", help);
            return Vec::new();
        };
        if items.is_empty() {
            self.errors.push(
                Diagnostic::error("`interfaces` is empty")
                    .at(value.span())
                    .label("at least one name or glob"),
            );
        }
        let mut first_spans: HashMap<&str, Range<usize>> = HashMap::new();
        let mut patterns = Vec::new();
        for item in items {
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(item, "an interface's name or a glob, as a string", None);
                continue;
            };
            let is_glob = text.contains(['*', '?', '[', '{']);
            if let Some(error) = wrong_interface(text, is_glob) {
                self.errors.push(error.at(item.span()));
                continue;
            }
            if let Some(first) = first_spans.get(text) {
                self.errors.push(
                    Diagnostic::error(format!("{} is listed twice", quote(text)))
                        .at(item.span())
                        .label("again here")
                        .related(first.clone(), "first here"),
                );
                continue;
            }
            first_spans.insert(text, item.span());
            patterns.push(InterfacePattern { text: text.to_owned(), is_glob, span: item.span() });
        }
        patterns
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

    /// Reads `"pass"` or `"drop"`, for keys that know nothing else.
    fn read_action(&mut self, (key, value): Entry<'_, '_>) -> Option<Action> {
        const EXPECTED: &str = "expected \"pass\" or \"drop\"";
        if let DeValue::Table(table) = value.get_ref() {
            if table.get(LATER_ACTION).is_some() {
                self.later_action(value);
                return None;
            }
            if table.get(STEER).is_some() {
                self.steers_nothing(key, value);
                return None;
            }
        }
        let Some(word) = value.get_ref().as_str() else {
            self.wrong_type(value, "\"pass\" or \"drop\"", yes_or_no(value));
            return None;
        };
        let action = [Action::Pass, Action::Drop].into_iter().find(|action| action.name() == word);
        if action.is_none() {
            if word == LATER_ACTION {
                self.later_action(value);
                return None;
            }
            if word == STEER {
                self.steers_nothing(key, value);
                return None;
            }
            let near = known(&ACTION_SYNONYMS, &word.to_lowercase())
                .map(Action::name)
                .or_else(|| self.suggest(word, ["pass", "drop"]));
            let message = format!("`{}` cannot be {}", key.get_ref(), quote(word));
            self.unknown_word(message, value, EXPECTED, near);
        }
        action
    }

    fn later_action(&mut self, value: &Value<'_>) {
        self.errors.push(
            Diagnostic::error(format!("the action `{LATER_ACTION}` {NOT_THERE_YET}"))
                .at(value.span())
                .label("this release can pass, drop and steer")
                .help(RULES_TODAY),
        );
    }

    /// Refuses steering where the key is no rule's.
    fn steers_nothing(&mut self, key: &Key<'_>, value: &Value<'_>) {
        let key = key.get_ref().as_ref();
        let help = if key == "default" {
            "to steer what no other rule matches, end with a rule that has nothing but \
             `action = { steer = \"NAME\" }`"
        } else {
            "write \"pass\" or \"drop\""
        };
        self.errors.push(
            Diagnostic::error(format!("`{key}` cannot steer"))
                .at(value.span())
                .label("only rules steer")
                .help(help),
        );
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

    fn read_rules(&mut self, key: &Key<'_>, value: &Value<'_>, targets: &Targets<'_>) -> Vec<Rule> {
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            DeValue::Table(_) => {
                self.errors.push(
                    Diagnostic::error("`rules` is one table, but a list of tables is expected")
                        .at(key.span())
                        .label("one pair of brackets is missing")
                        .help("begin every rule with a line `[[rules]]`"),
                );
                return Vec::new();
            }
            _ => {
                let help = "begin every rule with a line `[[rules]]`";
                self.wrong_type(value, "a list of tables", Some(help.to_owned()));
                return Vec::new();
            }
        };
        if let Some(first_too_many) = items.get(MAX_RULES) {
            self.errors.push(
                Diagnostic::error(format!(
                    "the policy has {} rules, but there is room for {MAX_RULES}",
                    items.len()
                ))
                .at(first_too_many.span())
                .label("the first rule that is too many"),
            );
        }
        let mut first_spans = HashMap::new();
        let mut rules = Vec::with_capacity(items.len().min(MAX_RULES));
        for item in items.iter().take(MAX_RULES) {
            match item.get_ref() {
                DeValue::Table(table) => {
                    rules.extend(self.read_rule(table, item.span(), targets, &mut first_spans));
                }
                _ => self.wrong_type(item, "a table", None),
            }
        }
        rules
    }

    fn read_rule<'t>(
        &mut self,
        table: &'t DeTable<'_>,
        span: Range<usize>,
        targets: &Targets<'_>,
        first_spans: &mut HashMap<&'t str, Range<usize>>,
    ) -> Option<Rule> {
        let mut name = None;
        let mut protocols = Vec::new();
        let mut dst_ports = Vec::new();
        let mut dst_port_key = None;
        let mut action = None;
        for entry in table.iter().filter(is_complete) {
            let (key, value) = entry;
            match key.get_ref().as_ref() {
                "name" => name = self.read_name(value, first_spans),
                "protocol" => protocols = self.read_protocols(value),
                "dst_port" => {
                    dst_port_key = Some(key.span());
                    dst_ports = self.read_ports(value);
                }
                "action" => action = self.read_rule_action(value, targets),
                _ => self.refuse_rule_key(key),
            }
        }
        if let Some(key) = dst_port_key {
            self.refuse_protocols_without_ports(&protocols, &key);
        }
        if self.is_whole && table.get("action").is_none() {
            self.errors.push(
                Diagnostic::error("the rule has no `action`")
                    .at(span.clone())
                    .label("what happens to a packet that matches?")
                    .help(
                        "add `action = \"pass\"`, `action = \"drop\"` or \
                         `action = { steer = \"NAME\" }`",
                    ),
            );
        }
        let mut protocols: Vec<u8> = protocols.into_iter().map(|item| item.number).collect();
        protocols.sort_unstable();
        protocols.dedup();
        let line = self.line_starts.partition_point(|&start| start <= span.start);
        Some(Rule {
            name,
            protocols,
            src: Addresses::default(),
            dst: Addresses::default(),
            src_ports: Vec::new(),
            dst_ports: merge(dst_ports),
            icmp_types: Vec::new(),
            vlans: Vec::new(),
            interfaces: Vec::new(),
            action: action?,
            span,
            line,
        })
    }

    /// Reads `"pass"`, `"drop"` or `{ steer = "NAME" }`.
    fn read_rule_action(&mut self, value: &Value<'_>, targets: &Targets<'_>) -> Option<Action> {
        const EXPECTED: &str = "\"pass\", \"drop\" or { steer = \"NAME\" }";
        let word = match value.get_ref() {
            DeValue::Table(table) if table.is_empty() => {
                self.wrong_type(value, EXPECTED, None);
                return None;
            }
            DeValue::Table(table) => return self.read_steer(table, value, targets),
            DeValue::String(word) => word.as_ref(),
            _ => {
                self.wrong_type(value, EXPECTED, yes_or_no(value));
                return None;
            }
        };
        let action = [Action::Pass, Action::Drop].into_iter().find(|action| action.name() == word);
        if action.is_some() {
            return action;
        }
        if word == LATER_ACTION {
            self.later_action(value);
            return None;
        }
        let name = targets.names.first().map_or("NAME", |name| name);
        if word == STEER {
            self.errors.push(
                Diagnostic::error("the rule does not say where it steers to")
                    .at(value.span())
                    .label("a target is missing")
                    .help(format!("write `action = {}`", steer_to(name))),
            );
            return None;
        }
        let lower = word.to_lowercase();
        let near = if let Some(action) = known(&ACTION_SYNONYMS, &lower) {
            Some(format!("\"{}\"", action.name()))
        } else if targets.ids.contains_key(word) {
            Some(steer_to(word))
        } else if STEER_SYNONYMS.contains(&lower.as_str()) {
            Some(steer_to(name))
        } else {
            self.suggest(word, ["pass", "drop", STEER]).map(|near| match near {
                STEER => steer_to(name),
                _ => format!("\"{near}\""),
            })
        };
        let mut error = Diagnostic::error(format!("`action` cannot be {}", quote(word)))
            .at(value.span())
            .label(format!("expected {EXPECTED}"));
        error.help = near.map(|near| did_you_mean(&near));
        self.errors.push(error);
        None
    }

    /// Reads an action that is a table.
    fn read_steer(
        &mut self,
        table: &DeTable<'_>,
        value: &Value<'_>,
        targets: &Targets<'_>,
    ) -> Option<Action> {
        if table.get(LATER_ACTION).is_some() {
            self.later_action(value);
            return None;
        }
        let mut action = None;
        for (key, value) in table.iter().filter(is_complete) {
            let word = key.get_ref().as_ref();
            if word == STEER {
                action = self.read_steer_target(value, targets).map(Action::Steer);
                continue;
            }
            let lower = word.to_lowercase();
            let help = if table.get(STEER).is_some() {
                Some("what steers takes the name of a target and nothing else".to_owned())
            } else if let "pass" | "drop" = word {
                Some(format!("write `action = \"{word}\"`"))
            } else if STEER_SYNONYMS.contains(&lower.as_str()) {
                Some(did_you_mean(&format!("`{STEER}`")))
            } else {
                match self.suggest(word, [STEER]) {
                    Some(near) => Some(did_you_mean(&format!("`{near}`"))),
                    None => Some(format!("write {}", steer_to("NAME"))),
                }
            };
            self.unknown_key(key, "an action", help, &[STEER]);
        }
        action
    }

    fn read_name<'t>(
        &mut self,
        value: &'t Value<'_>,
        first_spans: &mut HashMap<&'t str, Range<usize>>,
    ) -> Option<String> {
        let Some(name) = value.get_ref().as_str() else {
            self.wrong_type(value, "a string", None);
            return None;
        };
        if let Some(fault) = name_fault(name) {
            self.errors.push(
                Diagnostic::error("this is no name for a rule").at(value.span()).label(fault),
            );
            return None;
        }
        if let Some(first) = first_spans.get(name) {
            self.errors.push(
                Diagnostic::error(format!("two rules are named {}", quote(name)))
                    .at(value.span())
                    .label("again here")
                    .related(first.clone(), "first here")
                    .help("a rule's counter belongs to its name, so names are unique"),
            );
            return None;
        }
        first_spans.insert(name, value.span());
        Some(name.to_owned())
    }

    fn read_protocols(&mut self, value: &Value<'_>) -> Vec<ProtocolItem> {
        let DeValue::Array(items) = value.get_ref() else {
            return self.read_protocol(value).into_iter().collect();
        };
        if items.is_empty() {
            self.errors.push(
                Diagnostic::error("`protocol` is empty, so the rule matches nothing")
                    .at(value.span())
                    .help("leave `protocol` out to match any"),
            );
        }
        let mut protocols: Vec<ProtocolItem> = Vec::new();
        let mut seen: [Option<Range<usize>>; 256] = [const { None }; 256];
        for item in items {
            let Some(protocol) = self.read_protocol(item) else { continue };
            if let Some(first) = &seen[usize::from(protocol.number)] {
                self.warnings.push(
                    Diagnostic::warning("the protocol is listed twice")
                        .at(protocol.span.clone())
                        .label("again here")
                        .related(first.clone(), "first here"),
                );
            } else {
                seen[usize::from(protocol.number)] = Some(protocol.span.clone());
                protocols.push(protocol);
            }
        }
        protocols
    }

    fn read_protocol(&mut self, value: &Value<'_>) -> Option<ProtocolItem> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => {
                let number = number_of(number).and_then(|number| u8::try_from(number).ok());
                if number.is_none() {
                    self.errors.push(
                        Diagnostic::error("this is no IP protocol number")
                            .at(value.span())
                            .label("protocol numbers are 0 to 255"),
                    );
                }
                number
            }
            DeValue::String(word) => {
                let number = known(&PROTOCOL_NAMES, word);
                if number.is_none() {
                    self.unknown_protocol(word, value);
                }
                number
            }
            _ => {
                self.wrong_type(value, "a protocol's name or number, or a list of them", None);
                None
            }
        };
        number.map(|number| ProtocolItem { number, span: value.span() })
    }

    fn unknown_protocol(&mut self, word: &str, value: &Value<'_>) {
        let lower = word.to_lowercase();
        let help = if ANY_WORDS.contains(&lower.as_str()) {
            Some("leave `protocol` out to match any".to_owned())
        } else if let Some(name) = known(&PROTOCOL_SYNONYMS, &lower) {
            Some(did_you_mean(&format!("\"{name}\"")))
        } else if let Some(number) = known(&NUMBERED_PROTOCOLS, &lower) {
            Some(format!("write its number: {number}"))
        } else if let Ok(number) = word.parse::<u8>() {
            Some(format!("write the number without quotes: {number}"))
        } else {
            self.suggest(word, PROTOCOL_NAMES.into_iter().map(|(name, _)| name))
                .map(|name| did_you_mean(&format!("\"{name}\"")))
        };
        let names = PROTOCOL_NAMES.map(|(name, _)| name).join(", ");
        let mut error = Diagnostic::error(format!("unknown protocol {}", quote(word)))
            .at(value.span())
            .label("not a protocol");
        error.help =
            help.or_else(|| Some(format!("protocols are {names}, or a number from 0 to 255")));
        self.errors.push(error);
    }

    fn refuse_protocols_without_ports(
        &mut self,
        protocols: &[ProtocolItem],
        dst_port_key: &Range<usize>,
    ) {
        let has_ports = |item: &ProtocolItem| PortProtocol::from_number(item.number).is_some();
        let help = if protocols.iter().any(has_ports) {
            "give it a rule of its own, without `dst_port`"
        } else {
            "remove `dst_port`"
        };
        for item in protocols.iter().filter(|item| !has_ports(item)) {
            let name = super::protocol_name(item.number);
            self.errors.push(
                Diagnostic::error(format!("protocol `{name}` has no ports"))
                    .at(item.span.clone())
                    .label("cannot stand beside `dst_port`")
                    .related(dst_port_key.clone(), "ports are asked for here")
                    .help(help),
            );
        }
    }

    fn read_ports(&mut self, value: &Value<'_>) -> Vec<PortRange> {
        let DeValue::Array(items) = value.get_ref() else {
            return self.read_port(value).into_iter().collect();
        };
        if items.is_empty() {
            self.errors.push(
                Diagnostic::error("`dst_port` is empty, so the rule matches nothing")
                    .at(value.span())
                    .help("leave `dst_port` out to match any"),
            );
        }
        items.iter().filter_map(|item| self.read_port(item)).collect()
    }

    fn read_port(&mut self, value: &Value<'_>) -> Option<PortRange> {
        let fault = match value.get_ref() {
            DeValue::Integer(number) => {
                let number = number_of(number).and_then(|number| u16::try_from(number).ok());
                number.map(PortRange::single).ok_or(RangeFault::OutOfRange)
            }
            DeValue::String(word) => parse_ports(word, self.services),
            _ => {
                let expected = "a port, a range such as \"9000-9099\", a service's name, \
                                or a list of them";
                self.wrong_type(value, expected, None);
                return None;
            }
        };
        fault.map_err(|fault| self.wrong_port(&fault, value)).ok()
    }

    fn wrong_port(&mut self, fault: &RangeFault, value: &Value<'_>) {
        let word = value.get_ref().as_str().unwrap_or_default();
        let error = match fault {
            RangeFault::OutOfRange => {
                Diagnostic::error("this is no port").label("ports are 0 to 65535")
            }
            RangeFault::Backwards(first, last) => {
                Diagnostic::error(format!("the range {} runs backwards", quote(word)))
                    .label("it ends before it begins")
                    .help(did_you_mean(&format!("\"{last}-{first}\"")))
            }
            RangeFault::Unknown => {
                let mut error = Diagnostic::error(format!("{} names no port", quote(word)))
                    .label("neither a port, nor a range, nor a service's name");
                error.help = port_form(word).or_else(|| {
                    let names = RANGE_NAMES.iter().map(|&(name, _)| name);
                    let services = self.services;
                    self.suggest(word, names.chain(services.names()))
                        .map(|name| did_you_mean(&format!("\"{name}\"")))
                });
                error
            }
        };
        self.errors.push(error.at(value.span()));
    }

    fn refuse_root_key(&mut self, key: &Key<'_>) {
        let word = key.get_ref().as_ref();
        if let Some(reason) = known(&LATER_ROOT_KEYS, word) {
            self.later_key(key, reason);
            return;
        }
        let help = if word == "rule" {
            Some("begin every rule with a line `[[rules]]`".to_owned())
        } else if word == "target" {
            Some("begin every target with a line `[targets.NAME]`".to_owned())
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

    fn refuse_rule_key(&mut self, key: &Key<'_>) {
        let word = key.get_ref().as_ref();
        if let Some(reason) = known(&LATER_RULE_KEYS, word) {
            self.later_key(key, reason);
            return;
        }
        let help = if word == STEER {
            Some(format!("write `action = {}`", steer_to("NAME")))
        } else if let Some(near) = known(&RULE_KEY_SYNONYMS, word) {
            Some(did_you_mean(&format!("`{near}`")))
        } else {
            self.elsewhere(word, "rules").or_else(|| {
                self.suggest(word, RULE_KEYS.into_iter().chain(LATER_RULE_KEYS.map(|(key, _)| key)))
                    .map(|near| match known(&LATER_RULE_KEYS, near) {
                        Some(reason) => {
                            format!("did you mean `{near}`? It {NOT_THERE_YET}: {reason}")
                        }
                        None => did_you_mean(&format!("`{near}`")),
                    })
            })
        };
        self.unknown_key(key, "a rule", help, &RULE_KEYS);
    }

    /// Where a key belongs that stands in the wrong table, which is `here`.
    fn elsewhere(&self, word: &str, here: &str) -> Option<String> {
        if !here.is_empty() && ROOT_KEYS.contains(&word) {
            Some(format!("`{word}` belongs at the top of the file, before the first `[`"))
        } else if here != "options" && OPTION_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in the section `[options]`"))
        } else if here != "rules" && RULE_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in a rule, after a line `[[rules]]`"))
        } else if here != "targets" && TARGET_KEYS.contains(&word) {
            Some(format!("`{word}` belongs in a target, after a line `[targets.NAME]`"))
        } else {
            None
        }
    }

    fn unknown_key(&mut self, key: &Key<'_>, place: &str, help: Option<String>, keys: &[&str]) {
        let mut error =
            Diagnostic::error(format!("{place} has no key {}", quote(key.get_ref().as_ref())))
                .at(key.span())
                .label("unknown key");
        error.help = help.or_else(|| Some(format!("the keys here are {}", keys.join(", "))));
        self.errors.push(error);
    }

    fn later_key(&mut self, key: &Key<'_>, reason: &str) {
        self.errors.push(
            Diagnostic::error(format!("`{}` {NOT_THERE_YET}", key.get_ref()))
                .at(key.span())
                .label(reason)
                .help(RULES_TODAY),
        );
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
        suggest(word, candidates)
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

/// Why a text is no name for a rule or a target.
fn name_fault(name: &str) -> Option<String> {
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

/// The action that a boolean was probably meant to be.
fn yes_or_no(value: &Value<'_>) -> Option<String> {
    let yes = value.get_ref().as_bool()?;
    Some(did_you_mean(if yes { "\"pass\"" } else { "\"drop\"" }))
}

/// How a rule's action names a target.
fn steer_to(name: &str) -> String {
    format!("{{ {STEER} = {} }}", toml_string(name))
}

/// Why something is no number, nor a range of them.
#[derive(Debug, PartialEq, Eq)]
enum RangeFault {
    /// A number beyond 65535 or below 0.
    OutOfRange,
    /// Its two numbers as written.
    Backwards(u16, u16),
    /// Neither number nor range, nor any name that is known.
    Unknown,
}

/// What a string means that is a number or a range of them; `None` if it is neither.
fn parse_range(word: &str) -> Option<Result<(u16, u16), RangeFault>> {
    // A sign is not part of a number, which may be of any length.
    let number = |digits: &str| digits.parse::<u16>().map_err(|_| RangeFault::OutOfRange);
    if is_number(word) {
        return Some(number(word).map(|number| (number, number)));
    }
    let (first, last) = word.split_once('-')?;
    if !is_number(first) || !is_number(last) {
        return None;
    }
    Some(number(first).and_then(|first| match number(last)? {
        last if first <= last => Ok((first, last)),
        last => Err(RangeFault::Backwards(first, last)),
    }))
}

/// What a string means as ports.
fn parse_ports(word: &str, services: &Services) -> Result<PortRange, RangeFault> {
    if let Some(range) = parse_range(word) {
        return range.map(|(first, last)| PortRange { first, last });
    }
    known(&RANGE_NAMES, word)
        .or_else(|| services.port(word).map(PortRange::single))
        .ok_or(RangeFault::Unknown)
}

/// How to write what looks like ports in another notation.
fn port_form(word: &str) -> Option<String> {
    let trimmed = word.trim();
    if trimmed.is_empty() {
        return None;
    }
    if ANY_WORDS.contains(&trimmed.to_lowercase().as_str()) {
        return Some("leave `dst_port` out to match any".to_owned());
    }
    if is_number(trimmed) {
        return Some(did_you_mean(trimmed));
    }
    if trimmed.contains(',') {
        return Some("write several ports as a list: `[80, \"9000-9099\"]`".to_owned());
    }
    range_form(trimmed, "65535")
}

/// How to write what looks like a range in another notation.
fn range_form(trimmed: &str, greatest: &str) -> Option<String> {
    let separators = ["..=", "..", ":", "-", "\u{2013}", " "];
    let (first, last) = separators.iter().find_map(|separator| trimmed.split_once(separator))?;
    let (first, last) = (first.trim(), last.trim());
    match (is_number(first), is_number(last)) {
        (true, true) => Some(did_you_mean(&format!("\"{first}-{last}\""))),
        (true, false) if last.is_empty() => {
            Some(format!("write both ends: \"{first}-{greatest}\""))
        }
        (false, true) if first.is_empty() => Some(format!("write both ends: \"0-{last}\"")),
        _ => None,
    }
}

/// What to say about a text that cannot name interfaces.
fn wrong_interface(text: &str, is_glob: bool) -> Option<Diagnostic> {
    let (reason, help) = check_interface(text, is_glob).err()?;
    let kind = if is_glob { "glob" } else { "name" };
    let message = format!("{} is no interface {kind}", quote(text));
    let mut error = Diagnostic::error(message).label(reason);
    error.help = help;
    Some(error)
}

/// Why a text cannot name interfaces, and what might help.
fn check_interface(text: &str, is_glob: bool) -> Result<(), (String, Option<String>)> {
    if text.is_empty() {
        return Err(("it is empty".to_owned(), None));
    }
    // What Linux's `dev_valid_name` refuses.
    if let Some(bad) = text.chars().find(|&c| c == '/' || c == ':' || c.is_whitespace()) {
        let help =
            (bad == ',' || bad == ' ').then(|| "write several names as several strings".to_owned());
        return Err((format!("no interface's name has {bad:?} in it"), help));
    }
    if text.chars().any(char::is_control) {
        return Err(("a name has no control characters".to_owned(), None));
    }
    if text == "." || text == ".." {
        return Err(("Linux keeps this name for directories".to_owned(), None));
    }
    if is_glob {
        return match GlobBuilder::new(text).build() {
            Ok(_) => Ok(()),
            Err(error) => Err((error.kind().to_string(), None)),
        };
    }
    if text.len() > MAX_INTERFACE_LEN {
        return Err((format!("a name has at most {MAX_INTERFACE_LEN} bytes"), None));
    }
    Ok(())
}

/// Ports in ascending order, neither overlapping nor adjacent.
fn merge(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
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

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

fn did_you_mean(what: &str) -> String {
    format!("did you mean {what}?")
}

/// The text as it can stand in a message: short, on one line.
fn quote(text: &str) -> String {
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

fn line_starts(text: &str) -> Vec<usize> {
    let after_newlines = text.match_indices('\n').map(|(index, _)| index + 1);
    std::iter::once(0).chain(after_newlines).collect()
}

/// The parser's errors in our words, each once.
fn syntax_diagnostics(
    text: &str,
    root: &DeTable<'_>,
    errors: &[toml::de::Error],
) -> Vec<Diagnostic> {
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

/// Whether the text is a word as it may stand in the file unquoted by mistake.
fn is_bare(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
    text.len() <= 64 && text.bytes().all(is_fine)
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
fn remove_consequences(errors: &mut Vec<Diagnostic>, syntax_errors: &[Diagnostic]) {
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
fn dismantle(root: DeTable<'_>) {
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

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::diagnostic::{Source, line_column, render};

    pub(super) const HEAD: &str = "version = 1\ninterfaces = [\"eth0\"]\n";

    fn parse_alone(text: &str) -> Result<Parsed, Vec<Diagnostic>> {
        parse(text, &Services::embedded())
    }

    pub(super) fn policy(text: &str) -> Policy {
        parse_alone(text).unwrap_or_else(|errors| panic!("{}", rendered(text, &errors))).policy
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
        rules.iter().cloned().map(|rule| Rule { span: 0..0, line: 0, ..rule }).collect()
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

    #[test]
    fn ports() {
        let services = Services::embedded();
        let range = |first, last| Ok(PortRange { first, last });
        for (word, expected) in [
            ("0", range(0, 0)),
            ("65535", range(65_535, 65_535)),
            ("0080", range(80, 80)),
            ("0-65535", range(0, 65_535)),
            ("7-7", range(7, 7)),
            ("well-known", range(0, 1023)),
            ("registered", range(1024, 49_151)),
            ("dynamic", range(49_152, 65_535)),
            ("ftp-data", range(20, 20)),
            ("65536", Err(RangeFault::OutOfRange)),
            ("99999999999999999999999999", Err(RangeFault::OutOfRange)),
            ("1-65536", Err(RangeFault::OutOfRange)),
            ("2-1", Err(RangeFault::Backwards(2, 1))),
            ("", Err(RangeFault::Unknown)),
            ("-", Err(RangeFault::Unknown)),
            ("-1", Err(RangeFault::Unknown)),
            ("+1", Err(RangeFault::Unknown)),
            ("1-", Err(RangeFault::Unknown)),
            ("1-2-3", Err(RangeFault::Unknown)),
            ("1 - 2", Err(RangeFault::Unknown)),
            (" 80", Err(RangeFault::Unknown)),
            ("SSH", Err(RangeFault::Unknown)),
            ("\u{661}", Err(RangeFault::Unknown)),
        ] {
            assert_eq!(parse_ports(word, &services), expected, "{word:?}");
        }
    }

    #[test]
    fn overlapping_and_adjacent_ports_are_merged() {
        let range = |&(first, last): &(u16, u16)| PortRange { first, last };
        for (input, expected) in [
            (&[][..], &[][..]),
            (&[(5, 6), (1, 2)], &[(1, 2), (5, 6)]),
            (&[(3, 4), (1, 2)], &[(1, 4)]),
            (&[(1, 9), (2, 3), (9, 9)], &[(1, 9)]),
            (&[(65_535, 65_535), (0, 65_535), (0, 0)], &[(0, 65_535)]),
        ] {
            let merged = merge(input.iter().map(range).collect());
            assert_eq!(merged, expected.iter().map(range).collect::<Vec<_>>());
        }
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
                r#"3:11 ["reject"] the action `reject` is not there yet (this release can pass, drop and steer) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
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
                r#"3:2 [sets] `sets` is not there yet (this release has no address sets) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
5:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add `interface` with `via` or `mac`, or add `cpus`
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

    /// Errors in a rule: its lines, what is said about it. They begin on line 4.
    #[test]
    fn errors_of_a_rule() {
        let cases: &[(&str, &str)] = &[
            (
                r#"name = "x"
"#,
                r#"3:1 [[[rules]]] the rule has no `action` (what happens to a packet that matches?) add `action = "pass"`, `action = "drop"` or `action = { steer = "NAME" }`
"#,
            ),
            (
                r#"name = ""
action = "drop"
"#,
                r#"4:8 [""] this is no name for a rule (a name has at least one character)
"#,
            ),
            (
                r#"name = " x"
action = "drop"
"#,
                r#"4:8 [" x"] this is no name for a rule (a name neither begins nor ends with white space)
"#,
            ),
            (
                r#"name = "a\tb"
action = "drop"
"#,
                r#"4:8 ["a\tb"] this is no name for a rule (a name has no control characters)
"#,
            ),
            (
                "name = \"a\u{202e}b\"\naction = \"drop\"\n",
                "4:8 [\"a\u{202e}b\"] this is no name for a rule (a name has no invisible characters)\n",
            ),
            (
                r#"name = 1
action = "drop"
"#,
                r#"4:8 [1] an integer cannot stand here (expected a string)
"#,
            ),
            (
                r#"protocol = "tpc"
action = "drop"
"#,
                r#"4:12 ["tpc"] unknown protocol `tpc` (not a protocol) did you mean "tcp"?
"#,
            ),
            (
                r#"protocol = "TCP"
action = "drop"
"#,
                r#"4:12 ["TCP"] unknown protocol `TCP` (not a protocol) did you mean "tcp"?
"#,
            ),
            (
                r#"protocol = "any"
action = "drop"
"#,
                r#"4:12 ["any"] unknown protocol `any` (not a protocol) leave `protocol` out to match any
"#,
            ),
            (
                r#"protocol = "gre"
action = "drop"
"#,
                r#"4:12 ["gre"] unknown protocol `gre` (not a protocol) write its number: 47
"#,
            ),
            (
                r#"protocol = "6"
action = "drop"
"#,
                r#"4:12 ["6"] unknown protocol `6` (not a protocol) write the number without quotes: 6
"#,
            ),
            (
                r#"protocol = "udp-lite"
action = "drop"
"#,
                r#"4:12 ["udp-lite"] unknown protocol `udp-lite` (not a protocol) did you mean "udplite"?
"#,
            ),
            (
                r#"protocol = "xyzzy"
action = "drop"
"#,
                r#"4:12 ["xyzzy"] unknown protocol `xyzzy` (not a protocol) protocols are tcp, udp, udplite, sctp, dccp, icmp, icmpv6, or a number from 0 to 255
"#,
            ),
            (
                r#"protocol = 256
action = "drop"
"#,
                r#"4:12 [256] this is no IP protocol number (protocol numbers are 0 to 255)
"#,
            ),
            (
                r#"protocol = -1
action = "drop"
"#,
                r#"4:12 [-1] this is no IP protocol number (protocol numbers are 0 to 255)
"#,
            ),
            (
                r#"protocol = []
action = "drop"
"#,
                r#"4:12 [[]] `protocol` is empty, so the rule matches nothing leave `protocol` out to match any
"#,
            ),
            (
                r#"protocol = ["tcp", true]
action = "drop"
"#,
                r#"4:20 [true] a boolean cannot stand here (expected a protocol's name or number, or a list of them)
"#,
            ),
            (
                r#"protocol = "icmp"
dst_port = 1
action = "drop"
"#,
                r#"4:12 ["icmp"] protocol `icmp` has no ports (cannot stand beside `dst_port`) remove `dst_port`
"#,
            ),
            (
                r#"dst_port = [80]
protocol = ["tcp", "icmpv6", 47]
action = "drop"
"#,
                r#"5:20 ["icmpv6"] protocol `icmpv6` has no ports (cannot stand beside `dst_port`) give it a rule of its own, without `dst_port`
5:30 [47] protocol `47` has no ports (cannot stand beside `dst_port`) give it a rule of its own, without `dst_port`
"#,
            ),
            (
                r#"dst_port = "htps"
action = "drop"
"#,
                r#"4:12 ["htps"] `htps` names no port (neither a port, nor a range, nor a service's name) did you mean "https"?
"#,
            ),
            (
                r#"dst_port = 65536
action = "drop"
"#,
                r#"4:12 [65536] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = -1
action = "drop"
"#,
                r#"4:12 [-1] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "70000"
action = "drop"
"#,
                r#"4:12 ["70000"] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "1-70000"
action = "drop"
"#,
                r#"4:12 ["1-70000"] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "9099-9000"
action = "drop"
"#,
                r#"4:12 ["9099-9000"] the range `9099-9000` runs backwards (it ends before it begins) did you mean "9000-9099"?
"#,
            ),
            (
                r#"dst_port = []
action = "drop"
"#,
                r#"4:12 [[]] `dst_port` is empty, so the rule matches nothing leave `dst_port` out to match any
"#,
            ),
            (
                r#"dst_port = 1.5
action = "drop"
"#,
                r#"4:12 [1.5] a float cannot stand here (expected a port, a range such as "9000-9099", a service's name, or a list of them)
"#,
            ),
            (
                r#"dst_port = [80, [81]]
action = "drop"
"#,
                r#"4:17 [[81]] a list cannot stand here (expected a port, a range such as "9000-9099", a service's name, or a list of them)
"#,
            ),
            (
                r#"dst_port = 99999999999999999999
action = "drop"
"#,
                r#"4:12 [99999999999999999999] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "9000 - 9099"
action = "drop"
"#,
                r#"4:12 ["9000 - 9099"] `9000 - 9099` names no port (neither a port, nor a range, nor a service's name) did you mean "9000-9099"?
"#,
            ),
            (
                r#"dst_port = "9000:9099"
action = "drop"
"#,
                r#"4:12 ["9000:9099"] `9000:9099` names no port (neither a port, nor a range, nor a service's name) did you mean "9000-9099"?
"#,
            ),
            (
                r#"dst_port = "1024-"
action = "drop"
"#,
                r#"4:12 ["1024-"] `1024-` names no port (neither a port, nor a range, nor a service's name) write both ends: "1024-65535"
"#,
            ),
            (
                r#"dst_port = "-1"
action = "drop"
"#,
                r#"4:12 ["-1"] `-1` names no port (neither a port, nor a range, nor a service's name) write both ends: "0-1"
"#,
            ),
            (
                r#"dst_port = "80,443"
action = "drop"
"#,
                r#"4:12 ["80,443"] `80,443` names no port (neither a port, nor a range, nor a service's name) write several ports as a list: `[80, "9000-9099"]`
"#,
            ),
            (
                r#"dst_port = " 80"
action = "drop"
"#,
                r#"4:12 [" 80"] ` 80` names no port (neither a port, nor a range, nor a service's name) did you mean 80?
"#,
            ),
            (
                r#"dst_port = "any"
action = "drop"
"#,
                r#"4:12 ["any"] `any` names no port (neither a port, nor a range, nor a service's name) leave `dst_port` out to match any
"#,
            ),
            (
                r#"dst_port = "SSH"
action = "drop"
"#,
                r#"4:12 ["SSH"] `SSH` names no port (neither a port, nor a range, nor a service's name) did you mean "ssh"?
"#,
            ),
            (
                r#"dst_port = "welknown"
action = "drop"
"#,
                r#"4:12 ["welknown"] `welknown` names no port (neither a port, nor a range, nor a service's name) did you mean "well-known"?
"#,
            ),
            (
                r#"dst_port = ""
action = "drop"
"#,
                r#"4:12 [""] `""` names no port (neither a port, nor a range, nor a service's name)
"#,
            ),
            (
                r#"action = "allow"
"#,
                r#"4:10 ["allow"] `action` cannot be `allow` (expected "pass", "drop" or { steer = "NAME" }) did you mean "pass"?
"#,
            ),
            (
                r#"action = "block"
"#,
                r#"4:10 ["block"] `action` cannot be `block` (expected "pass", "drop" or { steer = "NAME" }) did you mean "drop"?
"#,
            ),
            (
                r#"action = "Drop"
"#,
                r#"4:10 ["Drop"] `action` cannot be `Drop` (expected "pass", "drop" or { steer = "NAME" }) did you mean "drop"?
"#,
            ),
            (
                r#"action = "reject"
"#,
                r#"4:10 ["reject"] the action `reject` is not there yet (this release can pass, drop and steer) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
"#,
            ),
            (
                r#"action = "steer"
"#,
                r#"4:10 ["steer"] the rule does not say where it steers to (a target is missing) write `action = { steer = "NAME" }`
"#,
            ),
            (
                r#"action = { steer = "web" }
"#,
                r#"4:20 ["web"] there is no target `web` (unknown target) the policy has no targets: add `[targets.web]`
"#,
            ),
            (
                r#"action = { drop = 1 }
"#,
                r#"4:12 [drop] an action has no key `drop` (unknown key) write `action = "drop"`
"#,
            ),
            (
                r#"action = 1
"#,
                r#"4:10 [1] an integer cannot stand here (expected "pass", "drop" or { steer = "NAME" })
"#,
            ),
            (
                r#"action = drop
"#,
                r#"4:10 [drop] string values must be quoted (expected a string, a number or a list) write "drop"
"#,
            ),
            (
                r#"dst_prot = 80
action = "drop"
"#,
                r#"4:1 [dst_prot] a rule has no key `dst_prot` (unknown key) did you mean `dst_port`?
"#,
            ),
            (
                r#"port = 80
proto = "tcp"
action = "drop"
"#,
                r#"4:1 [port] a rule has no key `port` (unknown key) did you mean `dst_port`?
5:1 [proto] a rule has no key `proto` (unknown key) did you mean `protocol`?
"#,
            ),
            (
                r#"default = "drop"
malformed = "drop"
action = "drop"
"#,
                r#"4:1 [default] a rule has no key `default` (unknown key) `default` belongs at the top of the file, before the first `[`
5:1 [malformed] a rule has no key `malformed` (unknown key) `malformed` belongs in the section `[options]`
"#,
            ),
            (
                r#"xyzzy = 1
action = "drop"
"#,
                r#"4:1 [xyzzy] a rule has no key `xyzzy` (unknown key) the keys here are name, protocol, dst_port, action
"#,
            ),
            (
                r#"src = []
dst = []
src_port = 1
vlan = 1
interface = "eth0"
icmp_type = 8
action = "drop"
"#,
                r#"4:1 [src] `src` is not there yet (this release cannot match source addresses) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
5:1 [dst] `dst` is not there yet (this release cannot match destination addresses) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
6:1 [src_port] `src_port` is not there yet (this release cannot match source ports) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
7:1 [vlan] `vlan` is not there yet (this release cannot match VLANs) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
8:1 [interface] `interface` is not there yet (this release applies every rule to all interfaces) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
9:1 [icmp_type] `icmp_type` is not there yet (this release cannot match ICMP types) in this release a rule matches `protocol` and `dst_port`, and its action is "pass", "drop" or { steer = "NAME" }
"#,
            ),
            (
                r#"src_prt = 1
action = "drop"
"#,
                r#"4:1 [src_prt] a rule has no key `src_prt` (unknown key) did you mean `src_port`? It is not there yet: this release cannot match source ports
"#,
            ),
            (
                r#"action = "drop"
name = "x"
[[rules]]
action = "drop"
name = "x"
"#,
                r#"8:8 ["x"] two rules are named `x` (again here) a rule's counter belongs to its name, so names are unique
"#,
            ),
            (
                r#"dst_port = 80
dst_port = 81
action = "drop"
"#,
                r#"5:1 [dst_port] the key `dst_port` is there twice (again here)
"#,
            ),
            (
                r#"dst_port = [https]
action = tcp
"#,
                r#"4:13 [https] string values must be quoted (expected a string, a number or a list) write "https"
5:10 [tcp] string values must be quoted (expected a string, a number or a list) write "tcp"
"#,
            ),
            (
                r#"protocol = "tcp" dst_port = 80
action = "drop"
"#,
                r#"4:18 [] unexpected key or value (expected newline, `#`)
"#,
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{HEAD}[[rules]]\n{lines}");
            assert_eq!(brief(&text, &errors(&text)), *expected, "{lines}");
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
    fn related_places() {
        for (lines, expected) in [
            ("name = 'a'\naction = 'drop'\n[[rules]]\nname = 'a'\naction = 'drop'\n", "4:8"),
            ("dst_port = 1\naction = 'drop'\ndst_port = 2\n", "4:1"),
            ("protocol = 'icmp'\ndst_port = 1\naction = 'drop'\n", "5:1"),
        ] {
            let text = format!("{HEAD}[[rules]]\n{lines}");
            let errors = errors(&text);
            let (line, column) = line_column(&text, errors[0].related[0].0.start);
            assert_eq!(format!("{line}:{column}"), expected);
        }
    }

    #[test]
    fn protocols_listed_twice_are_a_warning() {
        let text = format!("{HEAD}[[rules]]\nprotocol = [\"tcp\", 6]\naction = \"drop\"\n");
        let parsed = parse_alone(&text).unwrap();
        assert_eq!(parsed.policy.rules[0].protocols, [6]);
        assert_eq!(
            brief(&text, &parsed.warnings),
            "4:20 [6] the protocol is listed twice (again here)\n"
        );
    }

    #[test]
    fn names_have_their_limit() {
        let name = "\u{e4}".repeat(MAX_NAME_CHARS);
        let text = |name: &str| format!("{HEAD}[[rules]]\nname = \"{name}\"\naction = \"drop\"\n");
        assert_eq!(policy(&text(&name)).rules[0].name.as_deref(), Some(&*name));
        assert_eq!(errors(&text(&(name + "x"))).len(), 1);
    }

    #[test]
    fn many_rules() {
        let mut text = HEAD.to_owned();
        for number in 0..MAX_RULES {
            let port = number % 65_536;
            writeln!(text, "[[rules]]\nname=\"r{number}\"\ndst_port={port}\naction=\"drop\"")
                .unwrap();
        }
        let parsed = policy(&text);
        assert_eq!(parsed.rules.len(), MAX_RULES);
        assert_eq!(parsed.rules[MAX_RULES - 1].line, 3 + (MAX_RULES - 1) * 4);

        text.push_str("[[rules]]\naction = \"drop\"\n[[rules]]\naction = 1\n");
        let line = 3 + MAX_RULES * 4;
        assert_eq!(
            brief(&text, &errors(&text)),
            format!(
                "{line}:1 [[[rules]]] the policy has {} rules, but there is room for {MAX_RULES} \
                 (the first rule that is too many)\n",
                MAX_RULES + 2
            )
        );
    }

    #[test]
    fn a_file_that_is_wrong_all_over_is_told_in_short() {
        let text = HEAD.to_owned() + &"[[rules]]\ndst_prot = \"htps\"\n".repeat(20_000);
        let errors = errors(&text);
        assert_eq!(errors.len(), 40_000);
        let suggestions =
            errors.iter().filter(|error| error.help.as_deref() == Some("did you mean `dst_port`?"));
        assert_eq!(suggestions.count(), MAX_SUGGESTIONS);
        let shown = rendered(&text, &errors);
        assert!(shown.ends_with("\nand 39980 more\n"));
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

    /// A rule, with one of the texts that mean it.
    fn any_rule() -> impl Strategy<Value = (Rule, String)> {
        let protocol = prop_oneof![prop::sample::select(vec![6, 17, 33, 132, 136]), any::<u8>()];
        (
            prop::option::of("[a-z\u{e4}\u{4e2d}]([ a-z0-9._-]{0,30}[a-z])?"),
            prop::collection::vec(protocol, 0..4),
            prop::collection::vec((any::<u16>(), any::<u16>(), 0..4_u8), 0..6),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(name, protocols, ports, drops, is_list)| {
                write_rule(name, protocols, &ports, drops, is_list)
            })
    }

    fn write_rule(
        name: Option<String>,
        mut protocols: Vec<u8>,
        ports: &[(u16, u16, u8)],
        drops: bool,
        is_list: bool,
    ) -> (Rule, String) {
        let list = |items: &[String]| match items {
            [one] if !is_list => one.clone(),
            _ => format!("[{}]", items.join(", ")),
        };
        let mut text = String::from("[[rules]]\n");
        if let Some(name) = &name {
            writeln!(text, "name = \"{name}\"").unwrap();
        }
        let mut items = Vec::new();
        for (index, &number) in protocols.iter().enumerate() {
            let name = PROTOCOL_NAMES.iter().find(|(_, named)| *named == number);
            items.push(match name {
                Some((name, _)) if index % 2 == 0 => format!("'{name}'"),
                _ => number.to_string(),
            });
        }
        if !items.is_empty() {
            writeln!(text, "protocol = {}", list(&items)).unwrap();
        }
        let mut items = Vec::new();
        let mut matched = vec![false; 65_536];
        if protocols.iter().all(|&number| PortProtocol::from_number(number).is_some()) {
            for &(a, b, form) in ports {
                let (first, last) = (a.min(b), a.max(b));
                let (item, (from, to)) = match (form, Services::name_of(a)) {
                    (0, _) => (a.to_string(), (a, a)),
                    (1, Some(service)) => (format!("\"{service}\""), (a, a)),
                    (1, None) => (format!("\"{a}\""), (a, a)),
                    _ => (format!("\"{first}-{last}\""), (first, last)),
                };
                items.push(item);
                matched[usize::from(from)..=usize::from(to)].fill(true);
            }
        }
        if !items.is_empty() {
            writeln!(text, "dst_port = {}", list(&items)).unwrap();
        }
        let mut dst_ports: Vec<PortRange> = Vec::new();
        for port in (0..=u16::MAX).filter(|&port| matched[usize::from(port)]) {
            match dst_ports.last_mut() {
                Some(last) if last.last + 1 == port => last.last = port,
                _ => dst_ports.push(PortRange::single(port)),
            }
        }
        let action = if drops { Action::Drop } else { Action::Pass };
        writeln!(text, "action = \"{}\"", action.name()).unwrap();
        protocols.sort_unstable();
        protocols.dedup();
        (Rule { name, protocols, dst_ports, ..Rule::any(action) }, text)
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
