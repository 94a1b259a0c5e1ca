//! A rule's `src` and `dst`.

use std::{collections::HashMap, ops::Range};

use toml::de::DeValue;

use super::{
    ANY_WORDS, Reader, Value, did_you_mean, quote,
    sets::{Sets, define_set},
    toml_string,
};
use crate::policy::{
    AddressItem, Addresses, SetId,
    diagnostic::Diagnostic,
    prefixes::{self, Place},
};

const EXPECTED: &str = "an address, a prefix or the name of a set such as \"@office\", as a string, \
                        or a list of them";

/// What people write for `!`.
const NOT_WORDS: [&str; 5] = ["not ", "NOT ", "~", "^", "-"];

/// One entry of a list, with what it means.
type Item = (bool, AddressItem);

impl Reader<'_> {
    /// Reads addresses, the value of `key`.
    pub(super) fn read_addresses(
        &mut self,
        key: &str,
        value: &Value<'_>,
        sets: &Sets<'_>,
    ) -> Addresses {
        let items = self.items(key, value);
        let mut addresses = Addresses::default();
        let mut repeats = Repeats::default();
        for item in items {
            let Some((is_negated, address)) = self.read_address(key, item, sets) else { continue };
            if items.len() > 1 && repeats.is_repeat((is_negated, address), item.span()) {
                continue;
            }
            if is_negated {
                addresses.negative.push(address);
            } else {
                addresses.positive.push(address);
            }
        }
        self.warnings.extend(repeats.warning());
        addresses
    }

    fn read_address(&mut self, key: &str, value: &Value<'_>, sets: &Sets<'_>) -> Option<Item> {
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(value, EXPECTED, None);
            return None;
        };
        let (sign, rest) = match text.strip_prefix('!') {
            Some(rest) => ("!", rest),
            None => ("", text.as_ref()),
        };
        let is_negated = !sign.is_empty();
        if let Some(name) = rest.strip_prefix('@') {
            let id = self.find_set(sign, name, value, sets)?;
            return Some((is_negated, AddressItem::Set(id)));
        }
        let fault = match prefixes::parse(rest) {
            Ok(prefix) => return Some((is_negated, AddressItem::Prefix(prefix))),
            Err(fault) => fault,
        };
        let complaint = prefixes::complain(rest, fault, sign, Place::Rule);
        let mut error = Diagnostic::error(complaint.message).label(complaint.label);
        error.help = match fault {
            prefixes::PrefixFault::NoAddress => {
                self.other_form(key, sign, rest, sets).or(complaint.help)
            }
            _ => complaint.help,
        };
        self.errors.push(error.at(value.span()));
        None
    }

    /// The set that a rule names.
    fn find_set(
        &mut self,
        sign: &str,
        name: &str,
        value: &Value<'_>,
        sets: &Sets<'_>,
    ) -> Option<SetId> {
        if let Some(&id) = sets.ids.get(name) {
            return id;
        }
        if !self.is_whole || !sets.is_complete {
            return None; // it may stand in what could not be read
        }
        let error = if name.is_empty() {
            Diagnostic::error(format!("{} names no set", quote(&format!("{sign}@"))))
                .label("a set's name is missing")
        } else {
            Diagnostic::error(format!("there is no set {}", quote(name))).label("unknown set")
        };
        let help = if let Some(unsigned) = name.strip_prefix('!')
            && sets.ids.contains_key(unsigned)
        {
            did_you_mean(&toml_string(&format!("!@{unsigned}")))
        } else if prefixes::parse(name).is_ok() {
            did_you_mean(&format!("\"{sign}{name}\""))
        } else {
            let sign = format!("{sign}@");
            match self.near_name(name, &sets.names, &sign, "set") {
                Some(help) => help,
                None => format!("the policy has no sets: {}", define_set(name)),
            }
        };
        self.errors.push(error.at(value.span()).help(help));
        None
    }

    /// What was meant by a text that is no address, where rules alone allow something else.
    fn other_form(&mut self, key: &str, sign: &str, rest: &str, sets: &Sets<'_>) -> Option<String> {
        let trimmed = rest.trim();
        let is_item = |text: &str| match text.strip_prefix('@') {
            Some(name) => sets.ids.contains_key(name),
            None => prefixes::parse(text).is_ok(),
        };
        let meant =
            |sign: &str, text: &str| Some(did_you_mean(&toml_string(&(sign.to_owned() + text))));
        if ANY_WORDS.contains(&trimmed.to_lowercase().as_str()) {
            return Some(if sign.is_empty() {
                format!("leave `{key}` out to match any")
            } else {
                "the rule would match nothing".to_owned()
            });
        }
        if let Some(positive) = trimmed.strip_prefix('!')
            && is_item(positive.trim())
        {
            return meant(if sign.is_empty() { "!" } else { "" }, positive.trim());
        }
        if trimmed != rest && is_item(trimmed) {
            return meant(sign, trimmed);
        }
        if sign.is_empty() {
            let words = NOT_WORDS.iter();
            let negated = words.filter_map(|word| trimmed.strip_prefix(word)).map(str::trim);
            if let Some(negated) = negated.into_iter().find(|negated| is_item(negated)) {
                return meant("!", negated);
            }
        }
        let name = trimmed.trim_start_matches(['$', '%', '&', ':']);
        if sets.ids.contains_key(name) {
            return meant(sign, &format!("@{name}"));
        }
        // Nothing that looks like an address, which a set's name may resemble.
        if name.contains(|c: char| c.is_alphabetic()) && !name.contains([':', '/']) {
            let near = self.suggest(name, sets.names.iter().copied())?;
            return meant(sign, &format!("@{near}"));
        }
        None
    }
}

/// What a list has more than once.
#[derive(Default)]
pub(super) struct Repeats {
    first_spans: HashMap<Item, Range<usize>>,
    /// The first repetition, and what it repeats.
    first: Option<(Range<usize>, Range<usize>)>,
    /// How many repetitions there are.
    count: usize,
}

impl Repeats {
    /// Whether the list has this already.
    pub(super) fn is_repeat(&mut self, item: Item, span: Range<usize>) -> bool {
        let Some(before) = self.first_spans.get(&item) else {
            self.first_spans.insert(item, span);
            return false;
        };
        self.count += 1;
        if self.first.is_none() {
            self.first = Some((before.clone(), span));
        }
        true
    }

    /// One warning about all of them.
    pub(super) fn warning(self) -> Option<Diagnostic> {
        let (before, span) = self.first?;
        let warning = Diagnostic::warning("the address is listed twice")
            .at(span)
            .label("again here")
            .related(before, "first here");
        Some(match self.count - 1 {
            0 => warning,
            1 => warning.help("one more entry of this list repeats another"),
            more => warning.help(format!("{more} more entries of this list repeat others")),
        })
    }
}
