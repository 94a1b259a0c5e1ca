//! A rule's `vlan`.

use toml::de::DeValue;

use super::{
    ANY_WORDS, Reader, Value, did_you_mean, number_of, quote,
    ranges::{RangeFault, parse_range, range_form, runs_backwards},
};
use crate::policy::{VlanRange, diagnostic::Diagnostic};

/// The greatest VLAN id: 4,095 is reserved (IEEE 802.1Q, table 9-2).
const MAX_VLAN: u16 = 4094;

/// The word for packets without a tag, and those with a priority tag alone.
const UNTAGGED: &str = "untagged";

/// What other tools call that.
const UNTAGGED_SYNONYMS: [&str; 5] = ["none", "no", "native", "priority", "untag"];

/// What people write for any tag.
const TAGGED_WORDS: [&str; 3] = ["tagged", "tag", "trunk"];

impl Reader<'_> {
    /// Reads VLAN ids; 0 stands for untagged packets.
    pub(super) fn read_vlans(&mut self, value: &Value<'_>) -> Vec<VlanRange> {
        let items = self.items("vlan", value).iter();
        items.filter_map(|item| self.read_vlan(item)).collect()
    }

    fn read_vlan(&mut self, value: &Value<'_>) -> Option<VlanRange> {
        let range = match value.get_ref() {
            DeValue::Integer(number) => {
                let number = number_of(number).and_then(|number| u16::try_from(number).ok());
                number.map(VlanRange::single).ok_or(RangeFault::OutOfRange)
            }
            DeValue::String(word) if word == UNTAGGED => return Some(VlanRange::single(0)),
            DeValue::String(word) => parse_range(word).unwrap_or(Err(RangeFault::Unknown)),
            _ => {
                let expected = "a VLAN id, a range such as \"100-199\", \"untagged\", or a list of \
                                them";
                self.wrong_type(value, expected, None);
                return None;
            }
        };
        let error = match range {
            Ok(range) => match vlan_fault(range) {
                None => return Some(range),
                Some(error) => error,
            },
            Err(RangeFault::OutOfRange) => {
                Diagnostic::error("this is no VLAN id").label("VLAN ids are 1 to 4094")
            }
            Err(RangeFault::Backwards(first, last)) => {
                let word = value.get_ref().as_str().unwrap_or_default();
                runs_backwards(word, &format!("{last}-{first}"))
            }
            Err(RangeFault::Unknown) => {
                self.unknown_vlan(value.get_ref().as_str().unwrap_or_default())
            }
        };
        self.errors.push(error.at(value.span()));
        None
    }

    fn unknown_vlan(&mut self, word: &str) -> Diagnostic {
        let mut error = Diagnostic::error(format!("{} names no VLAN", quote(word)))
            .label("neither a VLAN id, nor a range, nor \"untagged\"");
        let trimmed = word.trim();
        let lower = trimmed.to_lowercase();
        error.help = if ANY_WORDS.contains(&lower.as_str()) {
            Some("leave `vlan` out to match any".to_owned())
        } else if UNTAGGED_SYNONYMS.contains(&lower.as_str()) {
            Some(did_you_mean(&format!("\"{UNTAGGED}\"")))
        } else if TAGGED_WORDS.contains(&lower.as_str()) {
            Some(did_you_mean(&format!("\"1-{MAX_VLAN}\"")))
        } else if trimmed.contains(',') {
            Some("write several VLANs as a list: `[12, \"100-199\"]`".to_owned())
        } else if let Some(Ok(VlanRange { first, last })) = parse_range(trimmed) {
            Some(did_you_mean(&if first == last {
                first.to_string()
            } else {
                format!("\"{first}-{last}\"")
            }))
        } else {
            range_form(trimmed, "1", "4094").or_else(|| {
                self.suggest(word, [UNTAGGED]).map(|near| did_you_mean(&format!("\"{near}\"")))
            })
        };
        error
    }
}

/// What to say about VLAN ids that a rule cannot ask for.
fn vlan_fault(VlanRange { first, last }: VlanRange) -> Option<Diagnostic> {
    if last > MAX_VLAN + 1 {
        Some(Diagnostic::error("this is no VLAN id").label("VLAN ids are 1 to 4094"))
    } else if last > MAX_VLAN {
        let error =
            Diagnostic::error(format!("VLAN {last} is reserved")).label("VLAN ids are 1 to 4094");
        Some(match first {
            0 | 4095 => error,
            MAX_VLAN => error.help(did_you_mean(&MAX_VLAN.to_string())),
            _ => error.help(did_you_mean(&format!("\"{first}-{MAX_VLAN}\""))),
        })
    } else if first == 0 {
        let error = Diagnostic::error("0 is no VLAN id")
            .label("a packet whose tag has VLAN id 0 counts as untagged");
        Some(error.help(did_you_mean(&match last {
            0 => format!("\"{UNTAGGED}\""),
            1 => format!("[\"{UNTAGGED}\", 1]"),
            _ => format!("[\"{UNTAGGED}\", \"1-{last}\"]"),
        })))
    } else {
        None
    }
}
