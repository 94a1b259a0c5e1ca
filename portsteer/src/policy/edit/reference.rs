//! How a rule is named at the prompt.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::{PartialSchema, ToSchema, openapi};

use super::EditError;
use crate::policy::file::is_number;

/// One rule of a policy.
///
/// As text, `3` and `#3` are the third rule, and anything else is a rule's name. A rule whose name
/// looks like a number is reached with `name=` before it: `name=3`. What follows `name=` is always a
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RuleRef {
    /// The rule of this name.
    Name(String),
    /// The rule at this position, from 1.
    Number(usize),
}

/// What makes a name of whatever follows.
const NAME_SIGN: &str = "name=";

impl FromStr for RuleRef {
    type Err = EditError;

    fn from_str(text: &str) -> Result<Self, EditError> {
        let wrong = |why| Err(EditError::WrongRef { text: text.to_owned(), why });
        if let Some(name) = text.strip_prefix(NAME_SIGN) {
            return if name.is_empty() {
                wrong("a name is missing after `name=`")
            } else {
                Ok(Self::Name(name.to_owned()))
            };
        }
        let digits = text.strip_prefix('#').unwrap_or(text);
        match digits.parse() {
            _ if text.is_empty() => wrong("write a rule's name or number"),
            _ if !is_number(digits) => Ok(Self::Name(text.to_owned())),
            Ok(0) => wrong("rules are numbered from 1"),
            Ok(number) => Ok(Self::Number(number)),
            Err(_) => wrong("no policy has so many rules"),
        }
    }
}

impl PartialSchema for RuleRef {
    fn schema() -> openapi::RefOr<openapi::Schema> {
        const WHAT: &str = "A rule by its number, such as `#3`, or by its name, with `name=` before one that looks like a number";
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .description(Some(WHAT))
            .examples(["#3"])
            .into()
    }
}

impl ToSchema for RuleRef {}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "#{number}"),
            Self::Name(name) => {
                let looks_otherwise = name.is_empty()
                    || name.starts_with(NAME_SIGN)
                    || is_number(name.strip_prefix('#').unwrap_or(name));
                write!(f, "{}{name}", if looks_otherwise { NAME_SIGN } else { "" })
            }
        }
    }
}

impl TryFrom<String> for RuleRef {
    type Error = EditError;

    fn try_from(text: String) -> Result<Self, EditError> {
        text.parse()
    }
}

impl From<RuleRef> for String {
    fn from(rule: RuleRef) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts() {
        let name = |text: &str| RuleRef::Name(text.to_owned());
        for (text, rule) in [
            ("web", name("web")),
            ("3", RuleRef::Number(3)),
            ("#3", RuleRef::Number(3)),
            ("003", RuleRef::Number(3)),
            ("name=3", name("3")),
            ("name=#3", name("#3")),
            ("name=name=3", name("name=3")),
            ("#", name("#")),
            ("#web", name("#web")),
            ("##3", name("##3")),
            ("-3", name("-3")),
            ("+3", name("+3")),
            ("3a", name("3a")),
            ("tcp dst_port 80 drop", name("tcp dst_port 80 drop")),
        ] {
            assert_eq!(text.parse(), Ok(rule), "{text}");
        }
        for (text, expected) in [
            ("", "`\"\"` is no rule: write a rule's name or number"),
            ("0", "`0` is no rule: rules are numbered from 1"),
            ("#00", "`#00` is no rule: rules are numbered from 1"),
            ("name=", "`name=` is no rule: a name is missing after `name=`"),
            (
                "99999999999999999999999",
                "`99999999999999999999999` is no rule: no policy has so many rules",
            ),
        ] {
            assert_eq!(text.parse::<RuleRef>().unwrap_err().to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(name in "(name=)?#?[0-9a-z]{1,3}", number in 1_usize..) {
            for rule in [RuleRef::Name(name), RuleRef::Number(number)] {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
                let json = serde_json::to_string(&rule).unwrap();
                prop_assert_eq!(serde_json::from_str::<RuleRef>(&json).unwrap(), rule);
            }
        }
    }
}
