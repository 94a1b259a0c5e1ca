//! Names of interfaces and globs over them: the policy's `interfaces` and a rule's `interface`.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use globset::{Glob, GlobSet, GlobSetBuilder};
use toml::de::DeValue;

use super::{MAX_INTERFACE_LEN, Reader, Value, did_you_mean, quote, toml_string};
use crate::policy::{InterfacePattern, Target, TargetKind, diagnostic::Diagnostic};

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
        let mut first_spans = HashMap::new();
        let mut patterns = Vec::new();
        for item in items {
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
        if let Some(error) = wrong_interface(text, is_glob) {
            self.errors.push(error.at(value.span()));
            return None;
        }
        Some(InterfacePattern { text: text.to_owned(), is_glob, span: value.span() })
    }

    fn not_attached(&mut self, name: &str, value: &Value<'_>, attached: &Attached<'_>) {
        let names = attached.patterns.iter().filter(|pattern| !pattern.is_glob);
        let help = match self.suggest(name, names.map(|pattern| &*pattern.text)) {
            Some(near) => did_you_mean(&toml_string(near)),
            None => "add it to the policy's `interfaces`, or remove it here".to_owned(),
        };
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
