//! Names of interfaces and globs over them: the policy's `interfaces` and a rule's `interface`.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use globset::{Glob, GlobSet, GlobSetBuilder};
use toml::de::DeValue;

use super::{MAX_INTERFACE_LEN, Reader, Value, did_you_mean, quote, toml_string};
use crate::policy::{InterfacePattern, Target, TargetKind, diagnostic::Diagnostic};

/// The most names and globs that a policy's `interfaces` has.
pub const MAX_INTERFACES: usize = 1_024;

/// The most names and globs that the `interface` of all rules have together.
pub const MAX_RULE_INTERFACES: usize = 64 << 10;

/// The most globs over interfaces that a policy has, however often each.
pub const MAX_GLOBS: usize = 256;

/// The interfaces that packets can come from, as far as the policy tells.
pub(super) struct Attached<'p> {
    patterns: &'p [InterfacePattern],
    names: HashSet<&'p str>,
    /// `None` if it cannot be told what they match.
    globs: Option<GlobSet>,
}

impl<'p> Attached<'p> {
    /// By the policy's `interfaces`; `is_known` is false if these could not be read.
    pub(super) fn new(patterns: &'p [InterfacePattern], is_known: bool) -> Self {
        let (globs, names): (Vec<_>, Vec<_>) = patterns.iter().partition(|pattern| pattern.is_glob);
        let mut builder = GlobSetBuilder::new();
        for glob in globs.iter().filter_map(|pattern| Glob::new(&pattern.text).ok()) {
            builder.add(glob);
        }
        Self {
            patterns,
            names: names.into_iter().map(|pattern| &*pattern.text).collect(),
            globs: if is_known { builder.build().ok() } else { None },
        }
    }

    /// Whether an interface of this name can be one of them.
    fn can_be(&self, name: &str) -> bool {
        self.names.contains(name) || self.globs.as_ref().is_none_or(|globs| globs.is_match(name))
    }
}

impl Reader<'_> {
    pub(super) fn read_interfaces(&mut self, value: &Value<'_>) -> Vec<InterfacePattern> {
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
        if let Some(first_too_many) = items.get(MAX_INTERFACES) {
            self.errors.push(
                Diagnostic::error(format!(
                    "`interfaces` has {} names, but there is room for {MAX_INTERFACES}",
                    items.len()
                ))
                .at(first_too_many.span())
                .label("the first one that is too many")
                .help("a glob stands for many names: `veth-*`"),
            );
        }
        let mut first_spans = HashMap::new();
        let mut patterns = Vec::new();
        for item in items.iter().take(MAX_INTERFACES) {
            let Some(pattern) = self.read_pattern(item) else { continue };
            if let Some(first) = first_spans.get(&pattern.text) {
                self.errors.push(
                    Diagnostic::error(format!("{} is listed twice", quote(&pattern.text)))
                        .at(item.span())
                        .label("again here")
                        .related(Range::clone(first), "first here"),
                );
                continue;
            }
            first_spans.insert(pattern.text.clone(), item.span());
            patterns.push(pattern);
        }
        patterns
    }

    /// Reads a rule's `interface`.
    pub(super) fn read_rule_interfaces(
        &mut self,
        value: &Value<'_>,
        attached: &Attached<'_>,
    ) -> Vec<InterfacePattern> {
        let mut first_spans: HashMap<String, Range<usize>> = HashMap::new();
        let mut patterns = Vec::new();
        for item in self.items("interface", value) {
            self.rule_interfaces += 1;
            if self.rule_interfaces > MAX_RULE_INTERFACES {
                self.too_many_in_rules(item);
                break;
            }
            let Some(pattern) = self.read_pattern(item) else { continue };
            if let Some(first) = first_spans.get(&pattern.text) {
                self.warnings.push(
                    Diagnostic::warning("the interface is listed twice")
                        .at(item.span())
                        .label("again here")
                        .related(first.clone(), "first here"),
                );
                continue;
            }
            first_spans.insert(pattern.text.clone(), item.span());
            if !pattern.is_glob && !attached.can_be(&pattern.text) {
                self.not_attached(&pattern.text, item, attached);
                continue;
            }
            patterns.push(pattern);
        }
        patterns
    }

    fn read_pattern(&mut self, value: &Value<'_>) -> Option<InterfacePattern> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, "an interface's name or a glob, as a string", None);
            return None;
        };
        let is_glob = text.contains(['*', '?', '[', '{']);
        if is_glob && !self.globs.contains(text) {
            if self.globs.len() > MAX_GLOBS {
                return None;
            }
            self.globs.insert(text.to_owned());
            if self.globs.len() > MAX_GLOBS {
                self.too_many_globs(value);
                return None;
            }
            if let Some(error) = wrong_interface(text, is_glob) {
                self.globs.remove(text);
                self.errors.push(error.at(value.span()));
                return None;
            }
        } else if !is_glob && let Some(error) = wrong_interface(text, is_glob) {
            self.errors.push(error.at(value.span()));
            return None;
        }
        Some(InterfacePattern { text: text.to_owned(), is_glob, span: value.span() })
    }

    fn too_many_globs(&mut self, value: &Value<'_>) {
        self.errors.push(
            Diagnostic::error(format!("the policy has more than {MAX_GLOBS} different globs"))
                .at(value.span())
                .label("the first one that is too many")
                .help("name the interfaces, or let one glob stand for several"),
        );
    }

    /// Said once: from then on nothing is read.
    fn too_many_in_rules(&mut self, value: &Value<'_>) {
        if self.rule_interfaces == MAX_RULE_INTERFACES + 1 {
            self.errors.push(
                Diagnostic::error(format!(
                    "the rules name more than {MAX_RULE_INTERFACES} interfaces altogether"
                ))
                .at(value.span())
                .label("the first one that is too many")
                .help("let globs stand for several interfaces, or leave `interface` out"),
            );
        }
    }

    fn not_attached(&mut self, name: &str, value: &Value<'_>, attached: &Attached<'_>) {
        let names = attached.patterns.iter().filter(|pattern| !pattern.is_glob);
        let near = match name {
            "any" | "all" => Some("leave `interface` out to match any".to_owned()),
            _ => self
                .suggest(name, names.map(|pattern| &*pattern.text))
                .map(|near| did_you_mean(&toml_string(near))),
        };
        let help = near
            .unwrap_or_else(|| "add it to the policy's `interfaces`, or remove it here".to_owned());
        self.errors.push(
            Diagnostic::error(format!("the policy has no interface {}", quote(name)))
                .at(value.span())
                .label("nothing in `interfaces` names it")
                .help(help),
        );
    }

    /// Reports targets out of the interfaces that packets come from. (A glob leaves targets out.)
    pub(super) fn refuse_circles(&mut self, interfaces: &[InterfacePattern], targets: &[Target]) {
        let names = interfaces.iter().filter(|pattern| !pattern.is_glob);
        let names: HashSet<&str> = names.map(|pattern| &*pattern.text).collect();
        for target in targets {
            let TargetKind::Interface { interface, .. } = &target.kind else { continue };
            if names.contains(&**interface) {
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
}

/// What to say about a text that cannot name interfaces.
pub(super) fn wrong_interface(text: &str, is_glob: bool) -> Option<Diagnostic> {
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
        return match Glob::new(text) {
            Ok(_) => Ok(()),
            Err(error) => Err((error.kind().to_string(), None)),
        };
    }
    if text.len() > MAX_INTERFACE_LEN {
        return Err((format!("a name has at most {MAX_INTERFACE_LEN} bytes"), None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HEAD, brief, errors, policy, warnings};

    /// A policy with a rule that has this `interface`; it stands on line 5, from column 13.
    fn with_interface(interface: &str) -> String {
        format!(
            "version = 1\ninterfaces = [\"eth0\", \"veth-*\"]\n[[rules]]\naction = \"drop\"\n\
             interface = {interface}\n"
        )
    }

    #[test]
    fn interfaces_of_a_rule() {
        for (interface, expected) in [
            ("'eth0'", "eth0"),
            ("['eth0']", "eth0"),
            ("'veth-'", "veth-"),
            ("'veth-12'", "veth-12"),
            ("['veth-1', 'eth0']", "veth-1,eth0"),
            // What globs match is known where they are used.
            ("'lan*'", "lan*"),
            ("['*', 'en[op]?', '{a,b}']", "*,en[op]?,{a,b}"),
        ] {
            let policy = policy(&with_interface(interface));
            let text = format!("any interface {expected}");
            assert_eq!(policy.matches(&policy.rules[0]), text, "{interface}");
            for pattern in &policy.rules[0].interfaces {
                assert_eq!(pattern.is_glob, pattern.text.contains(['*', '[', '{']));
                assert_eq!(
                    with_interface(interface)[pattern.span.clone()],
                    format!("'{}'", pattern.text)
                );
            }
        }
    }

    /// Values of `interface`, with what is said about them.
    #[test]
    fn errors_of_interfaces() {
        let cases: &[(&str, &str)] = &[
            (
                r#""any""#,
                r#"5:13 ["any"] the policy has no interface `any` (nothing in `interfaces` names it) leave `interface` out to match any
"#,
            ),
            (
                r#""eth1""#,
                r#"5:13 ["eth1"] the policy has no interface `eth1` (nothing in `interfaces` names it) did you mean "eth0"?
"#,
            ),
            (
                r#""eth9x9x9x9""#,
                r#"5:13 ["eth9x9x9x9"] the policy has no interface `eth9x9x9x9` (nothing in `interfaces` names it) add it to the policy's `interfaces`, or remove it here
"#,
            ),
            (
                r#""xyzzy""#,
                r#"5:13 ["xyzzy"] the policy has no interface `xyzzy` (nothing in `interfaces` names it) add it to the policy's `interfaces`, or remove it here
"#,
            ),
            (
                r#"["eth0", "lan0", "veth-1"]"#,
                r#"5:22 ["lan0"] the policy has no interface `lan0` (nothing in `interfaces` names it) add it to the policy's `interfaces`, or remove it here
"#,
            ),
            (
                r#""""#,
                r#"5:13 [""] `""` is no interface name (it is empty)
"#,
            ),
            (
                r#""a/b""#,
                r#"5:13 ["a/b"] `a/b` is no interface name (no interface's name has '/' in it)
"#,
            ),
            (
                r#""eth0 eth1""#,
                r#"5:13 ["eth0 eth1"] `eth0 eth1` is no interface name (no interface's name has ' ' in it) write several names as several strings
"#,
            ),
            (
                r#""sixteen-bytes-xx""#,
                r#"5:13 ["sixteen-bytes-xx"] `sixteen-bytes-xx` is no interface name (a name has at most 15 bytes)
"#,
            ),
            (
                r#""[""#,
                r#"5:13 ["["] `[` is no interface glob (unclosed character class; missing ']')
"#,
            ),
            (
                "[]",
                r#"5:13 [[]] `interface` is empty, so the rule matches nothing leave `interface` out to match any
"#,
            ),
            (
                "1",
                r#"5:13 [1] an integer cannot stand here (expected an interface's name or a glob, as a string)
"#,
            ),
            (
                r#"["eth0", 5]"#,
                r#"5:22 [5] an integer cannot stand here (expected an interface's name or a glob, as a string)
"#,
            ),
        ];
        for (interface, expected) in cases {
            let text = with_interface(interface);
            assert_eq!(brief(&text, &errors(&text)), *expected, "{interface}");
        }
    }

    #[test]
    fn interfaces_that_could_not_be_read_prove_nothing() {
        let rule = "[[rules]]\naction = 'drop'\ninterface = 'eth1'\n";
        for head in [
            "version = 1\n",
            "version = 1\ninterfaces = ['a/b']\n",
            "version = 1\ninterfaces = 1\n",
        ] {
            assert_eq!(errors(&format!("{head}{rule}")).len(), 1, "{head}");
        }
        assert_eq!(errors(&format!("{HEAD}{rule}")).len(), 1);
    }

    #[test]
    fn interfaces_listed_twice_are_a_warning() {
        let text = with_interface("['eth0', 'v*', 'eth0']");
        assert_eq!(warnings(&text), "5:28 ['eth0'] the interface is listed twice (again here)\n");
        assert_eq!(policy(&text).rules[0].interfaces.len(), 2);
    }
}
