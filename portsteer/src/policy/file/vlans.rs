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
            0 => error.help("leave `vlan` out to match any"),
            4095 => error,
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

#[cfg(test)]
mod tests {
    use super::super::tests::{HEAD, brief, errors, policy};

    /// A policy with a rule that has this `vlan`; it stands on line 5, from column 8.
    fn with_vlan(vlan: &str) -> String {
        format!("{HEAD}[[rules]]\naction = \"drop\"\nvlan = {vlan}\n")
    }

    #[test]
    fn vlans() {
        for (vlan, expected) in [
            ("1", "vlan 1"),
            ("0xffe", "vlan 4094"),
            ("'12'", "vlan 12"),
            ("'100-199'", "vlan 100-199"),
            ("'1-4094'", "vlan 1-4094"),
            ("'untagged'", "vlan untagged"),
            ("[12, '100-199', 'untagged']", "vlan untagged,12,100-199"),
            ("['untagged', '3-7', 1, 2, 8, '5-6', 1]", "vlan untagged,1-8"),
        ] {
            let policy = policy(&with_vlan(vlan));
            let text = format!("any {expected}");
            assert_eq!(policy.matches(&policy.rules[0]), text, "{vlan}");
        }
    }

    /// Values of `vlan`, with what is said about them.
    #[test]
    fn errors_of_vlans() {
        let cases: &[(&str, &str)] = &[
            (
                "0",
                r#"5:8 [0] 0 is no VLAN id (a packet whose tag has VLAN id 0 counts as untagged) did you mean "untagged"?
"#,
            ),
            (
                r#""0""#,
                r#"5:8 ["0"] 0 is no VLAN id (a packet whose tag has VLAN id 0 counts as untagged) did you mean "untagged"?
"#,
            ),
            (
                "4095",
                r#"5:8 [4095] VLAN 4095 is reserved (VLAN ids are 1 to 4094)
"#,
            ),
            (
                r#""4095""#,
                r#"5:8 ["4095"] VLAN 4095 is reserved (VLAN ids are 1 to 4094)
"#,
            ),
            (
                "4096",
                r#"5:8 [4096] this is no VLAN id (VLAN ids are 1 to 4094)
"#,
            ),
            (
                "-1",
                r#"5:8 [-1] this is no VLAN id (VLAN ids are 1 to 4094)
"#,
            ),
            (
                "65536",
                r#"5:8 [65536] this is no VLAN id (VLAN ids are 1 to 4094)
"#,
            ),
            (
                "99999999999999999999",
                r#"5:8 [99999999999999999999] this is no VLAN id (VLAN ids are 1 to 4094)
"#,
            ),
            (
                r#""5000""#,
                r#"5:8 ["5000"] this is no VLAN id (VLAN ids are 1 to 4094)
"#,
            ),
            (
                r#""0-10""#,
                r#"5:8 ["0-10"] 0 is no VLAN id (a packet whose tag has VLAN id 0 counts as untagged) did you mean ["untagged", "1-10"]?
"#,
            ),
            (
                r#""0-1""#,
                r#"5:8 ["0-1"] 0 is no VLAN id (a packet whose tag has VLAN id 0 counts as untagged) did you mean ["untagged", 1]?
"#,
            ),
            (
                r#""100-4095""#,
                r#"5:8 ["100-4095"] VLAN 4095 is reserved (VLAN ids are 1 to 4094) did you mean "100-4094"?
"#,
            ),
            (
                r#""4094-4095""#,
                r#"5:8 ["4094-4095"] VLAN 4095 is reserved (VLAN ids are 1 to 4094) did you mean 4094?
"#,
            ),
            (
                r#""0-4095""#,
                r#"5:8 ["0-4095"] VLAN 4095 is reserved (VLAN ids are 1 to 4094) leave `vlan` out to match any
"#,
            ),
            (
                r#""1-70000""#,
                r#"5:8 ["1-70000"] this is no VLAN id (VLAN ids are 1 to 4094)
"#,
            ),
            (
                r#""199-100""#,
                r#"5:8 ["199-100"] the range `199-100` runs backwards (it ends before it begins) did you mean "100-199"?
"#,
            ),
            (
                r#""100 - 199""#,
                r#"5:8 ["100 - 199"] `100 - 199` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean "100-199"?
"#,
            ),
            (
                r#""100:199""#,
                r#"5:8 ["100:199"] `100:199` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean "100-199"?
"#,
            ),
            (
                r#""100-""#,
                r#"5:8 ["100-"] `100-` names no VLAN (neither a VLAN id, nor a range, nor "untagged") write both ends: "100-4094"
"#,
            ),
            (
                r#""-199""#,
                r#"5:8 ["-199"] `-199` names no VLAN (neither a VLAN id, nor a range, nor "untagged") write both ends: "1-199"
"#,
            ),
            (
                r#"" 7""#,
                r#"5:8 [" 7"] ` 7` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean 7?
"#,
            ),
            (
                r#""1,2""#,
                r#"5:8 ["1,2"] `1,2` names no VLAN (neither a VLAN id, nor a range, nor "untagged") write several VLANs as a list: `[12, "100-199"]`
"#,
            ),
            (
                r#""any""#,
                r#"5:8 ["any"] `any` names no VLAN (neither a VLAN id, nor a range, nor "untagged") leave `vlan` out to match any
"#,
            ),
            (
                r#""none""#,
                r#"5:8 ["none"] `none` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean "untagged"?
"#,
            ),
            (
                r#""Untagged""#,
                r#"5:8 ["Untagged"] `Untagged` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean "untagged"?
"#,
            ),
            (
                r#""untaged""#,
                r#"5:8 ["untaged"] `untaged` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean "untagged"?
"#,
            ),
            (
                r#""tagged""#,
                r#"5:8 ["tagged"] `tagged` names no VLAN (neither a VLAN id, nor a range, nor "untagged") did you mean "1-4094"?
"#,
            ),
            (
                r#""eth0.12""#,
                r#"5:8 ["eth0.12"] `eth0.12` names no VLAN (neither a VLAN id, nor a range, nor "untagged")
"#,
            ),
            (
                r#""""#,
                r#"5:8 [""] `""` names no VLAN (neither a VLAN id, nor a range, nor "untagged")
"#,
            ),
            (
                "[]",
                r#"5:8 [[]] `vlan` is empty, so the rule matches nothing leave `vlan` out to match any
"#,
            ),
            (
                "true",
                r#"5:8 [true] a boolean cannot stand here (expected a VLAN id, a range such as "100-199", "untagged", or a list of them)
"#,
            ),
            (
                "[1, [2]]",
                r#"5:12 [[2]] a list cannot stand here (expected a VLAN id, a range such as "100-199", "untagged", or a list of them)
"#,
            ),
            (
                "1.5",
                r#"5:8 [1.5] a float cannot stand here (expected a VLAN id, a range such as "100-199", "untagged", or a list of them)
"#,
            ),
        ];
        for (vlan, expected) in cases {
            let text = with_vlan(vlan);
            assert_eq!(brief(&text, &errors(&text)), *expected, "{vlan}");
        }
    }
}
