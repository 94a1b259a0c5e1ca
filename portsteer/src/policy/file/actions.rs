//! What the operator asks for: `action`, `default` and the `[options]`' values.

use toml::de::{DeTable, DeValue};

use super::{
    Entry, Key, Reader, STEER, Value, did_you_mean, is_complete, known, quote, targets::Targets,
    toml_string,
};
use crate::policy::{Action, diagnostic::Diagnostic};

/// An action that a later release brings.
const LATER_ACTION: &str = "reject";

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

impl Reader<'_> {
    /// Reads `"pass"` or `"drop"`, for keys that know nothing else.
    pub(super) fn read_action(&mut self, (key, value): Entry<'_, '_>) -> Option<Action> {
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
            Diagnostic::error(format!("the action `{LATER_ACTION}` is not there yet"))
                .at(value.span())
                .label("this release can pass, drop and steer")
                .help("\"drop\" discards without an answer"),
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

    /// Reads `"pass"`, `"drop"` or `{ steer = "NAME" }`.
    pub(super) fn read_rule_action(
        &mut self,
        value: &Value<'_>,
        targets: &Targets<'_>,
    ) -> Option<Action> {
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
}

/// The action that a boolean was probably meant to be.
fn yes_or_no(value: &Value<'_>) -> Option<String> {
    let yes = value.get_ref().as_bool()?;
    Some(did_you_mean(if yes { "\"pass\"" } else { "\"drop\"" }))
}

/// How a rule's action names a target.
pub(super) fn steer_to(name: &str) -> String {
    format!("{{ {STEER} = {} }}", toml_string(name))
}
