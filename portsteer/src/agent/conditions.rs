//! Conditions of requests (RFC 9110 sections 8.8.3, 13.1.1 and 13.1.2): a change can be meant for one policy alone,
//! and is refused where another one is in force by then.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::api::Refusal;

/// The entity tag of the policy in force: its id. A trial has a tag of its own, with the number of the policy in
/// it, so that neither a confirmed policy nor a later trial of the same one is taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// The tag of the policy with this id, and on trial, if it is, as the policy of this number.
    #[must_use]
    pub fn new(id: &str, trial: Option<u64>) -> Self {
        Self(match trial {
            Some(generation) => format!("{id}.trial-{generation}"),
            None => id.to_owned(),
        })
    }

    /// As the value of `ETag`.
    #[must_use]
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.to_string()).ok()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\"", self.0)
    }
}

/// Which policy has to be in force for a change to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    /// `*`: any policy.
    Any,
    These(Vec<Listed>),
}

/// A tag as a request lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    is_weak: bool,
    /// What stands between the quotes.
    opaque: Vec<u8>,
}

impl Condition {
    /// What `If-Match` and `If-None-Match` say.
    ///
    /// # Errors
    ///
    /// One of them is no list of entity tags.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self {
            if_match: Tags::of(headers, &header::IF_MATCH, "If-Match")?,
            if_none_match: Tags::of(headers, &header::IF_NONE_MATCH, "If-None-Match")?,
        })
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Whether the change may be made while the policy of this tag is in force, or none.
    #[must_use]
    pub fn holds(&self, now: Option<&Tag>) -> bool {
        let matches = |tags: &Tags, is_strong: bool| match (tags, now) {
            (_, None) => false,
            (Tags::Any, Some(_)) => true,
            (Tags::These(listed), Some(now)) => {
                listed.iter().any(|it| it.opaque == now.0.as_bytes() && !(is_strong && it.is_weak))
            }
        };
        self.if_match.as_ref().is_none_or(|tags| matches(tags, true))
            && !self.if_none_match.as_ref().is_some_and(|tags| matches(tags, false))
    }
}

impl Tags {
    fn of(headers: &HeaderMap, name: &HeaderName, shown: &str) -> Result<Option<Self>, Refusal> {
        // Several lines are one list (RFC 9110 section 5.3).
        let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        if lines.is_empty() {
            return Ok(None);
        }
        Self::parse(&lines.join(&b","[..])).map(Some).map_err(|why| {
            Refusal::bad_input(format!("the header `{shown}` is wrong: {why}"))
                .help(format!("`{shown}: \"TAG\"` takes tags as `ETag` tells them, with their quotes and commas between; `{shown}: *` means any policy"))
        })
    }

    fn parse(mut text: &[u8]) -> Result<Self, &'static str> {
        let mut listed = Vec::new();
        loop {
            // Empty places in a list mean nothing (RFC 9110 section 5.6.1.2).
            while let [b' ' | b'\t' | b',', rest @ ..] = text {
                text = rest;
            }
            if text.is_empty() {
                break;
            }
            if text.trim_ascii_end() == b"*" && listed.is_empty() {
                return Ok(Self::Any);
            }
            let (is_weak, quoted) =
                text.strip_prefix(b"W/").map_or((false, text), |quoted| (true, quoted));
            let opaque = match quoted {
                [b'"', opaque @ ..] => opaque,
                [b'*', ..] => return Err("`*` stands alone"),
                _ => return Err("a tag begins with a double quote"),
            };
            let end = opaque.iter().position(|byte| *byte == b'"');
            let (opaque, rest) = opaque.split_at(end.ok_or("a tag ends with a double quote")?);
            if !opaque.iter().all(|byte| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..)) {
                return Err("a tag has neither spaces nor control characters in it");
            }
            listed.push(Listed { is_weak, opaque: opaque.to_vec() });
            text = &rest[1..];
            if !matches!(text.trim_ascii_start(), [] | [b',', ..]) {
                return Err("there is a comma between two tags");
            }
        }
        match listed.is_empty() {
            true => Err("there is no tag in it"),
            false => Ok(Self::These(listed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(lines: &[(&'static str, &str)]) -> Result<Condition, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Condition::of(&headers)
    }

    fn holds(lines: &[(&'static str, &str)], now: Option<&str>) -> bool {
        let condition = condition(lines).unwrap_or_else(|refusal| panic!("{lines:?}: {refusal:?}"));
        condition.holds(now.map(|id| Tag::new(id, None)).as_ref())
    }

    #[test]
    fn a_change_is_made_where_its_policy_is_in_force() {
        for (value, for_a, for_none) in [
            ("\"a\"", true, false),
            ("\"b\"", false, false),
            ("*", true, false),
            (" * ", true, false),
            ("\"b\", \"a\"", true, false),
            ("\"b\",\"a\"", true, false),
            (", \"b\" ,\t, \"a\",", true, false),
            ("\"*\"", false, false),
            ("\"\"", false, false),
            ("\"A\"", false, false),
            ("\"a,b\", \"W/\"", false, false),
            // Weak ones never match strongly (RFC 9110 section 8.8.3.2).
            ("W/\"a\"", false, false),
            ("W/\"a\", \"a\"", true, false),
            ("\"\u{fc}\"", false, false),
        ] {
            let line = [("if-match", value)];
            assert_eq!(holds(&line, Some("a")), for_a, "{value}");
            assert_eq!(holds(&line, None), for_none, "{value}");
        }
        assert!(holds(&[("if-match", "\"b\""), ("if-match", "\"a\"")], Some("a")), "two lines");
        assert!(holds(&[], Some("a")) && holds(&[], None), "no condition");
    }

    #[test]
    fn a_change_is_made_unless_its_policy_is_in_force() {
        for (value, for_a, for_none) in [
            ("*", false, true),
            ("\"a\"", false, true),
            ("W/\"a\"", false, true),
            ("\"b\"", true, true),
        ] {
            let line = [("if-none-match", value)];
            assert_eq!(holds(&line, Some("a")), for_a, "{value}");
            assert_eq!(holds(&line, None), for_none, "{value}");
        }
        let both = [("if-match", "\"a\""), ("if-none-match", "\"b\"")];
        assert!(holds(&both, Some("a")));
        assert!(!holds(&both, Some("b")));
    }

    #[test]
    fn a_trial_is_neither_what_is_confirmed_nor_another_trial() {
        let trial = Tag::new("a", Some(7));
        for other in [Tag::new("a", None), Tag::new("a", Some(8)), Tag::new("b", Some(7))] {
            let condition = condition(&[("if-match", &other.to_string())]).unwrap();
            assert!(!condition.holds(Some(&trial)), "{other}");
        }
        let same = condition(&[("if-match", &trial.to_string())]).unwrap();
        assert!(same.holds(Some(&trial)));
    }

    #[test]
    fn what_is_no_list_of_tags_is_said_to_be_wrong() {
        for (value, said) in [
            ("", "no tag"),
            (" , ,", "no tag"),
            ("a", "begins with a double quote"),
            ("'a'", "begins with a double quote"),
            ("w/\"a\"", "begins with a double quote"),
            ("W/a", "begins with a double quote"),
            ("\"a", "ends with a double quote"),
            ("\"", "ends with a double quote"),
            ("\"a b\"", "neither spaces"),
            ("\"a\tb\"", "neither spaces"),
            ("\"a\" \"b\"", "a comma"),
            ("\"a\"b", "a comma"),
            ("*, \"a\"", "stands alone"),
            ("\"a\", *", "stands alone"),
            ("**", "stands alone"),
        ] {
            for name in ["If-Match", "If-None-Match"] {
                let lower: &'static str =
                    if name == "If-Match" { "if-match" } else { "if-none-match" };
                let refusal = condition(&[(lower, value)]).expect_err(value);
                assert!(refusal.message.contains(name), "{refusal:?}");
                assert!(refusal.message.contains(said), "{value}: {refusal:?}");
            }
        }
        assert!(condition(&[("if-match", "*"), ("if-match", "*")]).is_err(), "twice");
    }
}
