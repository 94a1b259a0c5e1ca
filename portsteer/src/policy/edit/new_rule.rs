//! A rule that is to be written, and how it is written.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use toml::Value;
use utoipa::{PartialSchema, ToSchema, openapi};

use super::EditError;
use crate::policy::{
    diagnostic::suggest,
    file::{did_you_mean, is_number},
};

/// A rule as an operator asks for it: the keys of `[[rules]]`, each with its elements as the policy
/// file has them. No elements: the key is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocol: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub src: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub src_port: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst_port: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmp_type: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interface: Vec<String>,
    pub action: RuleAction,
}

/// A rule's action. As text: `pass`, `drop` or `steer NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RuleAction {
    Pass,
    Drop,
    /// To the target of this name.
    Steer(String),
}

/// The longest line that is written, in characters, where it can be helped.
const MAX_LINE: usize = 100;

impl NewRule {
    /// A rule that matches every IP packet.
    #[must_use]
    pub const fn any(action: RuleAction) -> Self {
        Self {
            name: None,
            protocol: Vec::new(),
            src: Vec::new(),
            src_port: Vec::new(),
            dst: Vec::new(),
            dst_port: Vec::new(),
            icmp_type: Vec::new(),
            vlan: Vec::new(),
            interface: Vec::new(),
            action,
        }
    }

    /// As a section of its own, of lines that end in LF.
    pub(super) fn section(&self) -> String {
        let mut text = String::from("[[rules]]\n");
        for (key, value) in self.entries() {
            let line = format!("{key} = {}", value.on_one_line());
            let line = match &value {
                Written::List(items) if line.chars().count() > MAX_LINE => {
                    let items: String = items.iter().map(|item| format!("    {item},\n")).collect();
                    format!("{key} = [\n{items}]")
                }
                _ => line,
            };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// As a table on one line.
    pub(super) fn inline(&self) -> String {
        let entries: Vec<String> =
            self.entries().map(|(key, value)| format!("{key} = {}", value.on_one_line())).collect();
        format!("{{ {} }}", entries.join(", "))
    }

    /// The keys that the rule has, in the order in which they are documented.
    fn entries(&self) -> impl Iterator<Item = (&'static str, Written)> {
        let name = self.name.as_ref().map(|name| Written::One(string(name)));
        let action = Written::One(match &self.action {
            RuleAction::Steer(name) => format!("{{ steer = {} }}", string(name)),
            action => string(&action.to_string()),
        });
        [
            ("name", name),
            ("protocol", written(&self.protocol, number_or_string)),
            ("src", written(&self.src, string)),
            ("src_port", written(&self.src_port, number_or_string)),
            ("dst", written(&self.dst, string)),
            ("dst_port", written(&self.dst_port, number_or_string)),
            ("icmp_type", written(&self.icmp_type, number_or_string)),
            ("vlan", written(&self.vlan, number_or_string)),
            ("interface", written(&self.interface, string)),
            ("action", Some(action)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }
}

/// A value as TOML.
enum Written {
    One(String),
    List(Vec<String>),
}

impl Written {
    fn on_one_line(&self) -> String {
        match self {
            Self::One(value) => value.clone(),
            Self::List(items) => format!("[{}]", items.join(", ")),
        }
    }
}

fn written(elements: &[String], write: fn(&str) -> String) -> Option<Written> {
    match elements {
        [] => None,
        [one] => Some(Written::One(write(one))),
        several => Some(Written::List(several.iter().map(|element| write(element)).collect())),
    }
}

fn string(text: &str) -> String {
    Value::from(text).to_string()
}

/// An integer where the text is one as TOML has them, else a string.
fn number_or_string(text: &str) -> String {
    const MAX_DIGITS: usize = 10; // any number that a policy has
    let is_plain = text == "0" || !text.starts_with('0');
    if is_number(text) && is_plain && text.len() <= MAX_DIGITS {
        text.to_owned()
    } else {
        string(text)
    }
}

impl FromStr for RuleAction {
    type Err = EditError;

    fn from_str(text: &str) -> Result<Self, EditError> {
        let wrong = |hint: String| Err(EditError::WrongAction { action: text.to_owned(), hint });
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match (word, rest.trim()) {
            ("pass", "") => Ok(Self::Pass),
            ("drop", "") => Ok(Self::Drop),
            ("steer", "") => wrong("write `steer NAME` with the name of a target".to_owned()),
            ("steer", name) => Ok(Self::Steer(name.to_owned())),
            _ => wrong(match suggest(word, ["pass", "drop", "steer"]) {
                Some("steer") => did_you_mean("`steer NAME`"),
                Some(near) => did_you_mean(&format!("`{near}`")),
                None => "it is `pass`, `drop` or `steer NAME`".to_owned(),
            }),
        }
    }
}

impl PartialSchema for RuleAction {
    fn schema() -> openapi::RefOr<openapi::Schema> {
        const WHAT: &str = "`pass`, `drop`, or `steer NAME` for a target of that name";
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .description(Some(WHAT))
            .examples(["steer web"])
            .into()
    }
}

impl ToSchema for RuleAction {}

impl fmt::Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Drop => f.write_str("drop"),
            Self::Steer(name) => write!(f, "steer {name}"),
        }
    }
}

impl TryFrom<String> for RuleAction {
    type Error = EditError;

    fn try_from(text: String) -> Result<Self, EditError> {
        text.parse()
    }
}

impl From<RuleAction> for String {
    fn from(action: RuleAction) -> Self {
        action.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
        texts.map(str::to_owned).to_vec()
    }

    fn full() -> NewRule {
        NewRule {
            name: Some("a \"b\"".to_owned()),
            protocol: texts(["tcp", "47"]),
            src: texts(["@office", "10.0.0.1"]),
            src_port: texts(["dynamic"]),
            dst: texts(["!::1"]),
            dst_port: texts(["80", "8000-8099", "https", "080", "0"]),
            icmp_type: texts(["3/4"]),
            vlan: texts(["12"]),
            interface: texts(["eth0"]),
            action: RuleAction::Steer("web".to_owned()),
        }
    }

    #[test]
    fn every_key() {
        assert_eq!(
            full().section(),
            "[[rules]]\n\
             name = 'a \"b\"'\n\
             protocol = [\"tcp\", 47]\n\
             src = [\"@office\", \"10.0.0.1\"]\n\
             src_port = \"dynamic\"\n\
             dst = \"!::1\"\n\
             dst_port = [80, \"8000-8099\", \"https\", \"080\", 0]\n\
             icmp_type = \"3/4\"\n\
             vlan = 12\n\
             interface = \"eth0\"\n\
             action = { steer = \"web\" }\n"
        );
        let short = NewRule { dst_port: texts(["80"]), ..NewRule::any(RuleAction::Drop) };
        assert_eq!(short.inline(), "{ dst_port = 80, action = \"drop\" }");
        assert_eq!(NewRule::any(RuleAction::Pass).section(), "[[rules]]\naction = \"pass\"\n");
    }

    #[test]
    fn long_lists_take_a_line_for_each() {
        let src: Vec<String> = (0..9).map(|last| format!("192.0.2.{last}")).collect();
        let rule = NewRule { src, ..NewRule::any(RuleAction::Drop) };
        let section = rule.section();
        assert!(section.starts_with("[[rules]]\nsrc = [\n    \"192.0.2.0\",\n"), "{section}");
        assert!(section.ends_with("    \"192.0.2.8\",\n]\naction = \"drop\"\n"), "{section}");
    }

    #[test]
    fn json() {
        let json = serde_json::to_string(&full()).unwrap();
        assert_eq!(serde_json::from_str::<NewRule>(&json).unwrap(), full());
        let short: NewRule = serde_json::from_str(r#"{"action":"drop"}"#).unwrap();
        assert_eq!(short, NewRule::any(RuleAction::Drop));
        assert_eq!(serde_json::to_string(&short).unwrap(), r#"{"action":"drop"}"#);
        assert!(serde_json::from_str::<NewRule>(r#"{"action":"drop","port":["80"]}"#).is_err());
        assert!(serde_json::from_str::<NewRule>("{}").is_err());
    }

    #[test]
    fn actions() {
        let steer = RuleAction::Steer("a b".to_owned());
        assert_eq!("steer  a b ".parse(), Ok(steer.clone()));
        for action in [RuleAction::Pass, RuleAction::Drop, steer] {
            assert_eq!(action.to_string().parse(), Ok(action));
        }
        for (text, expected) in [
            ("dorp", "the action cannot be `dorp`: did you mean `drop`?"),
            ("pass on", "the action cannot be `pass on`: did you mean `pass`?"),
            ("steer", "the action cannot be `steer`: write `steer NAME` with the name of a target"),
            ("stear web", "the action cannot be `stear web`: did you mean `steer NAME`?"),
            ("", "the action cannot be `\"\"`: it is `pass`, `drop` or `steer NAME`"),
        ] {
            assert_eq!(text.parse::<RuleAction>().unwrap_err().to_string(), expected);
        }
    }
}
