//! A rule's `icmp_type`.

use std::ops::Range;

use portsteer_common::wire::protocol::{ICMP, ICMPV6};
use toml::de::DeValue;

use super::{
    ANY_WORDS, Key, Reader, Value, did_you_mean, is_number, known, number_of,
    protocols::Protocols,
    quote,
    ranges::{RangeFault, parse_range, range_form, runs_backwards},
};
use crate::policy::{IcmpRange, diagnostic::Diagnostic};

/// A type, or a type with one of its codes.
type Meaning = (u8, Option<u8>);

/// ICMP's types by their names (RFC 792 and its successors, as nftables and iptables have them),
/// and the codes that have names there.
const ICMP_NAMES: [(&str, Meaning); 40] = [
    ("echo-reply", (0, None)),
    ("destination-unreachable", (3, None)),
    ("source-quench", (4, None)),
    ("redirect", (5, None)),
    ("echo-request", (8, None)),
    ("router-advertisement", (9, None)),
    ("router-solicitation", (10, None)),
    ("time-exceeded", (11, None)),
    ("parameter-problem", (12, None)),
    ("timestamp-request", (13, None)),
    ("timestamp-reply", (14, None)),
    ("info-request", (15, None)),
    ("info-reply", (16, None)),
    ("address-mask-request", (17, None)),
    ("address-mask-reply", (18, None)),
    ("network-unreachable", (3, Some(0))),
    ("host-unreachable", (3, Some(1))),
    ("protocol-unreachable", (3, Some(2))),
    ("port-unreachable", (3, Some(3))),
    ("fragmentation-needed", (3, Some(4))),
    ("source-route-failed", (3, Some(5))),
    ("network-unknown", (3, Some(6))),
    ("host-unknown", (3, Some(7))),
    ("network-prohibited", (3, Some(9))),
    ("host-prohibited", (3, Some(10))),
    ("tos-network-unreachable", (3, Some(11))),
    ("tos-host-unreachable", (3, Some(12))),
    ("communication-prohibited", (3, Some(13))),
    ("host-precedence-violation", (3, Some(14))),
    ("precedence-cutoff", (3, Some(15))),
    ("network-redirect", (5, Some(0))),
    ("host-redirect", (5, Some(1))),
    ("tos-network-redirect", (5, Some(2))),
    ("tos-host-redirect", (5, Some(3))),
    ("ttl-zero-during-transit", (11, Some(0))),
    ("ttl-zero-during-reassembly", (11, Some(1))),
    ("ip-header-bad", (12, Some(0))),
    ("required-option-missing", (12, Some(1))),
    ("extended-echo-request", (42, None)),
    ("extended-echo-reply", (43, None)),
];

/// ICMPv6's types by their names (RFC 4443 and others, as nftables and ip6tables have them), and
/// the codes that have names there.
const ICMPV6_NAMES: [(&str, Meaning); 43] = [
    ("destination-unreachable", (1, None)),
    ("packet-too-big", (2, None)),
    ("time-exceeded", (3, None)),
    ("parameter-problem", (4, None)),
    ("echo-request", (128, None)),
    ("echo-reply", (129, None)),
    ("mld-listener-query", (130, None)),
    ("mld-listener-report", (131, None)),
    ("mld-listener-done", (132, None)),
    ("mld-listener-reduction", (132, None)),
    ("router-solicitation", (133, None)),
    ("nd-router-solicit", (133, None)),
    ("router-advertisement", (134, None)),
    ("nd-router-advert", (134, None)),
    ("neighbour-solicitation", (135, None)),
    ("neighbor-solicitation", (135, None)),
    ("nd-neighbor-solicit", (135, None)),
    ("neighbour-advertisement", (136, None)),
    ("neighbor-advertisement", (136, None)),
    ("nd-neighbor-advert", (136, None)),
    ("redirect", (137, None)),
    ("nd-redirect", (137, None)),
    ("router-renumbering", (138, None)),
    ("ind-neighbor-solicit", (141, None)),
    ("ind-neighbor-advert", (142, None)),
    ("mld2-listener-report", (143, None)),
    ("no-route", (1, Some(0))),
    ("communication-prohibited", (1, Some(1))),
    ("beyond-scope", (1, Some(2))),
    ("address-unreachable", (1, Some(3))),
    ("port-unreachable", (1, Some(4))),
    ("failed-policy", (1, Some(5))),
    ("reject-route", (1, Some(6))),
    ("ttl-zero-during-transit", (3, Some(0))),
    ("ttl-zero-during-reassembly", (3, Some(1))),
    ("bad-header", (4, Some(0))),
    ("unknown-header-type", (4, Some(1))),
    ("unknown-option", (4, Some(2))),
    ("mld-query", (130, None)),
    ("mld-report", (131, None)),
    ("mld-done", (132, None)),
    ("extended-echo-request", (160, None)),
    ("extended-echo-reply", (161, None)),
];

/// What people call types that have another name here, or another one in the other version.
const SYNONYMS: [(&str, &str); 19] = [
    ("ping", "echo-request"),
    ("echo", "echo-request"),
    ("request", "echo-request"),
    ("pong", "echo-reply"),
    ("reply", "echo-reply"),
    ("unreachable", "destination-unreachable"),
    ("dest-unreachable", "destination-unreachable"),
    ("ttl-exceeded", "time-exceeded"),
    ("timeout", "time-exceeded"),
    ("frag-needed", "fragmentation-needed"),
    ("packet-too-big", "fragmentation-needed"),
    ("too-big", "packet-too-big"),
    ("too-big", "fragmentation-needed"),
    ("fragmentation-needed", "packet-too-big"),
    ("param-problem", "parameter-problem"),
    ("timestamp", "timestamp-request"),
    ("router-solicit", "router-solicitation"),
    ("router-advert", "router-advertisement"),
    ("neighbour-solicit", "neighbour-solicitation"),
];

const EXPECTED: &str = "a type's number or name, a range such as \"8-11\", a type with its code \
                        such as \"3/4\", or a list of them";

/// Which of the two protocols a rule's types are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Icmp,
    Icmpv6,
}

impl Version {
    const fn names(self) -> &'static [(&'static str, Meaning)] {
        match self {
            Self::Icmp => &ICMP_NAMES,
            Self::Icmpv6 => &ICMPV6_NAMES,
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Icmp => Self::Icmpv6,
            Self::Icmpv6 => Self::Icmp,
        }
    }

    /// The protocol's name in the policy file.
    const fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
        }
    }
}

/// Why a text is no ICMP type.
#[derive(Debug, PartialEq, Eq)]
enum TypeFault {
    /// A type beyond 255 or below 0.
    Type,
    /// A code beyond 255.
    Code,
    /// The ends of the range as they should stand.
    Backwards(String),
    /// Several types with codes.
    ManyWithCode,
    /// A name for a type with its code, and another code.
    TwoCodes,
    /// Neither number nor name.
    Unknown,
}

impl Reader<'_> {
    /// Reads ICMP types of a rule whose `protocol` is this one.
    pub(super) fn read_icmp_types(
        &mut self,
        key: &Key<'_>,
        value: &Value<'_>,
        protocols: &Protocols,
    ) -> Vec<IcmpRange> {
        let version = self.icmp_version(key, protocols);
        let items = self.items("icmp_type", value).iter();
        items.filter_map(|item| self.read_icmp_type(item, version)).collect()
    }

    /// Which protocol's types are asked for; reports if that is not clear.
    fn icmp_version(&mut self, key: &Key<'_>, protocols: &Protocols) -> Option<Version> {
        let error = Diagnostic::error("`icmp_type` needs one protocol, ICMP or ICMPv6");
        let error = match &protocols.items[..] {
            _ if protocols.has_fault => return None, // which may have been meant to be it
            [item] if item.number == ICMP => return Some(Version::Icmp),
            [item] if item.number == ICMPV6 => return Some(Version::Icmpv6),
            [] if !self.is_whole => return None,
            [] => error
                .at(key.span())
                .label("types of which protocol?")
                .help("add `protocol = \"icmp\"` or `protocol = \"icmpv6\"`"),
            items if items.iter().all(|item| [ICMP, ICMPV6].contains(&item.number)) => {
                beside(error, key.span(), &items[0].span)
                    .help("their types differ: give each protocol a rule of its own")
            }
            items => {
                let other = items.iter().find(|item| ![ICMP, ICMPV6].contains(&item.number));
                beside(error, key.span(), &other.unwrap_or(&items[0]).span).help(
                    if items.len() == 1 {
                        "remove `icmp_type`"
                    } else {
                        "give it a rule of its own, without `icmp_type`"
                    },
                )
            }
        };
        self.errors.push(error);
        None
    }

    fn read_icmp_type(&mut self, value: &Value<'_>, version: Option<Version>) -> Option<IcmpRange> {
        let range = match value.get_ref() {
            DeValue::Integer(number) => number_of(number)
                .and_then(|number| u8::try_from(number).ok())
                .map(|number| all_codes(number, number))
                .ok_or(TypeFault::Type),
            DeValue::String(word) => {
                let names = match version {
                    Some(version) => [version, version],
                    // Something else is wrong already.
                    None => [Version::Icmp, Version::Icmpv6],
                };
                parse_icmp(word, names)
            }
            _ => {
                self.wrong_type(value, EXPECTED, None);
                return None;
            }
        };
        range.map_err(|fault| self.wrong_icmp_type(&fault, value, version)).ok()
    }

    fn wrong_icmp_type(&mut self, fault: &TypeFault, value: &Value<'_>, version: Option<Version>) {
        let word = value.get_ref().as_str().unwrap_or_default();
        let error = match fault {
            TypeFault::Type => {
                Diagnostic::error("this is no ICMP type").label("ICMP types are 0 to 255")
            }
            TypeFault::Code => {
                Diagnostic::error("this is no ICMP code").label("ICMP codes are 0 to 255")
            }
            TypeFault::Backwards(turned) => runs_backwards(word, turned),
            TypeFault::ManyWithCode => {
                Diagnostic::error(format!("{} has codes of several types", quote(word)))
                    .label("a code goes with one type")
                    .help("write several types as a list: `[\"3/0\", \"4/0\"]`")
            }
            TypeFault::TwoCodes => Diagnostic::error(format!("{} has two codes", quote(word)))
                .label("the name stands for a type with its code")
                .help("write the type's own name or number"),
            TypeFault::Unknown => {
                let mut error = Diagnostic::error(format!("{} names no ICMP type", quote(word)))
                    .label("neither a type, nor a range, nor a type's name");
                error.help = self.icmp_form(word, version.unwrap_or(Version::Icmp));
                error
            }
        };
        self.errors.push(error.at(value.span()));
    }

    /// How to write what looks like an ICMP type in another notation.
    fn icmp_form(&mut self, word: &str, version: Version) -> Option<String> {
        let trimmed = word.trim();
        let lower = trimmed.to_lowercase().replace(['_', ' '], "-");
        let names = version.names();
        if trimmed.is_empty() {
            return None;
        }
        if ANY_WORDS.contains(&lower.as_str()) {
            return Some("leave `icmp_type` out to match any".to_owned());
        }
        if trimmed.contains(',') {
            return Some("write several types as a list: `[8, \"3/4\"]`".to_owned());
        }
        let squeezed: String = trimmed.chars().filter(|c| !c.is_whitespace()).collect();
        for form in [&squeezed, &lower, &squeezed.replace([':', '.'], "/")] {
            if parse_icmp(form, [version, version]).is_ok() {
                let is_integer = is_number(form);
                return Some(did_you_mean(&if is_integer {
                    form.clone()
                } else {
                    format!("\"{form}\"")
                }));
            }
        }
        let synonyms = SYNONYMS.iter().filter(|(synonym, _)| *synonym == lower);
        if let Some(name) =
            synonyms.map(|(_, name)| *name).find(|name| known(names, name).is_some())
        {
            return Some(did_you_mean(&format!("\"{name}\"")));
        }
        if known(version.other().names(), &lower).is_some() {
            return Some(format!(
                "it is a type of {}, the rule is for {}",
                version.other().name(),
                version.name()
            ));
        }
        range_form(trimmed, "0", "255").or_else(|| {
            self.suggest(word, names.iter().map(|&(name, _)| name))
                .map(|name| did_you_mean(&format!("\"{name}\"")))
        })
    }
}

/// The names of a protocol's types, with those of its codes.
pub(crate) fn icmp_type_names(number: u8) -> impl Iterator<Item = &'static str> {
    let names = match number {
        ICMP => &ICMP_NAMES[..],
        ICMPV6 => &ICMPV6_NAMES[..],
        _ => &[],
    };
    names.iter().map(|&(name, _)| name)
}

/// What a name stands for in a protocol: a type, perhaps with one of its codes.
pub(crate) fn icmp_type_of(number: u8, name: &str) -> Option<(u8, Option<u8>)> {
    match number {
        ICMP => known(&ICMP_NAMES, name),
        ICMPV6 => known(&ICMPV6_NAMES, name),
        _ => None,
    }
}

/// Points at the key and the protocol that do not go together.
fn beside(error: Diagnostic, key: Range<usize>, protocol: &Range<usize>) -> Diagnostic {
    error
        .at(protocol.clone())
        .label("cannot stand beside `icmp_type`")
        .related(key, "types are asked for here")
}

/// What a string means as ICMP types, by the names of the first protocol, or else of the second.
fn parse_icmp(word: &str, versions: [Version; 2]) -> Result<IcmpRange, TypeFault> {
    if let Some(range) = parse_range(word) {
        let (first, last) = match range {
            Ok(range) => (range.first, range.last),
            Err(RangeFault::Backwards(first, last)) => {
                return Err(TypeFault::Backwards(format!("{last}-{first}")));
            }
            Err(_) => return Err(TypeFault::Type),
        };
        let byte = |number| u8::try_from(number).map_err(|_| TypeFault::Type);
        return Ok(all_codes(byte(first)?, byte(last)?));
    }
    let (kind, codes) = match word.split_once('/') {
        Some((kind, codes)) => (kind, Some(codes)),
        None => (word, None),
    };
    let number = match parse_range(kind) {
        Some(Ok(range)) if range.first < range.last => return Err(TypeFault::ManyWithCode),
        Some(number) => {
            let number = number.map_err(|_| TypeFault::Type)?.first;
            (u8::try_from(number).map_err(|_| TypeFault::Type)?, None)
        }
        None => versions
            .iter()
            .find_map(|version| known(version.names(), kind))
            .ok_or(TypeFault::Unknown)?,
    };
    let (number, (first, last)) = match (number, codes) {
        ((number, None), None) => (number, (0, u8::MAX)),
        ((number, Some(code)), None) => (number, (code, code)),
        ((_, Some(_)), Some(_)) => return Err(TypeFault::TwoCodes),
        ((number, None), Some(codes)) => {
            let range = match parse_range(codes).ok_or(TypeFault::Unknown)? {
                Ok(range) => range,
                Err(RangeFault::Backwards(first, last)) => {
                    return Err(TypeFault::Backwards(format!("{kind}/{last}-{first}")));
                }
                Err(_) => return Err(TypeFault::Code),
            };
            let byte = |number| u8::try_from(number).map_err(|_| TypeFault::Code);
            (number, (byte(range.first)?, byte(range.last)?))
        }
    };
    Ok(IcmpRange {
        first: u16::from_be_bytes([number, first]),
        last: u16::from_be_bytes([number, last]),
    })
}

/// Types with all their codes.
fn all_codes(first: u8, last: u8) -> IcmpRange {
    IcmpRange { first: u16::from_be_bytes([first, 0]), last: u16::from_be_bytes([last, u8::MAX]) }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{HEAD, brief, errors, policy},
        *,
    };

    /// A policy with a rule that has this `icmp_type`; it stands on line 6, from column 13.
    fn with_type(protocol: &str, icmp_type: &str) -> String {
        format!(
            "{HEAD}[[rules]]\naction = \"drop\"\nprotocol = \"{protocol}\"\nicmp_type = {icmp_type}\n"
        )
    }

    #[test]
    fn types() {
        for (protocol, icmp_type, expected) in [
            ("icmp", "8", "8"),
            ("icmp", "'8'", "8"),
            ("icmp", "0xff", "255"),
            ("icmp", "'0-255'", "0-255"),
            ("icmp", "'8-11'", "8-11"),
            ("icmp", "'3/4'", "3/4"),
            ("icmp", "'3/0-3'", "3/0-3"),
            ("icmp", "'3/0-255'", "3"),
            ("icmp", "'echo-request'", "8"),
            ("icmp", "'destination-unreachable/4'", "3/4"),
            ("icmp", "'destination-unreachable/0-3'", "3/0-3"),
            ("icmp", "'port-unreachable'", "3/3"),
            ("icmp", "'fragmentation-needed'", "3/4"),
            ("icmp", "'time-exceeded'", "11"),
            ("icmp", "'redirect'", "5"),
            ("icmp", "['echo-request', '3/4', 0, '3/0-3', '9-11']", "0,3/0-4,8-11"),
            ("icmp", "['3/4', 3, 4]", "3-4"),
            ("icmpv6", "'echo-request'", "128"),
            ("icmpv6", "'packet-too-big'", "2"),
            ("icmpv6", "'time-exceeded'", "3"),
            ("icmpv6", "'redirect'", "137"),
            ("icmpv6", "'port-unreachable'", "1/4"),
            ("icmpv6", "['neighbour-solicitation', 'neighbor-advertisement']", "135-136"),
            ("icmpv6", "['nd-neighbor-solicit', 'nd-neighbor-advert']", "135-136"),
            ("icmpv6", "['router-solicitation', 'nd-router-advert']", "133-134"),
        ] {
            let policy = policy(&with_type(protocol, icmp_type));
            let text = format!("{protocol} icmp_type {expected}");
            assert_eq!(policy.matches(&policy.rules[0]), text, "{icmp_type}");
        }
    }

    #[test]
    fn a_protocol_may_be_written_as_a_number_or_a_list() {
        for protocol in ["1", "[1]", "['icmp', 1]", "['icmp']"] {
            let text = format!(
                "{HEAD}[[rules]]\naction = 'drop'\nicmp_type = 'echo-request'\nprotocol = {protocol}\n"
            );
            let policy = policy(&text);
            assert_eq!(policy.matches(&policy.rules[0]), "icmp icmp_type 8", "{protocol}");
        }
    }

    #[test]
    fn no_name_stands_for_two_things() {
        for version in [Version::Icmp, Version::Icmpv6] {
            let names = version.names();
            for (index, (name, meaning)) in names.iter().enumerate() {
                assert!(names[..index].iter().all(|(other, _)| other != name), "{name}");
                assert_eq!(*name, name.to_lowercase());
                let both = [version, version];
                let code = meaning.1.map_or((0, 255), |code| (code, code));
                let expected = IcmpRange {
                    first: u16::from_be_bytes([meaning.0, code.0]),
                    last: u16::from_be_bytes([meaning.0, code.1]),
                };
                assert_eq!(parse_icmp(name, both), Ok(expected), "{name}");
            }
        }
        for (synonym, name) in SYNONYMS {
            let is_known = |version: Version| known(version.names(), name).is_some();
            assert!(is_known(Version::Icmp) || is_known(Version::Icmpv6), "{synonym}");
        }
    }

    /// Values of `icmp_type`, with what is said about them.
    #[test]
    fn errors_of_types() {
        let icmp: &[(&str, &str)] = &[
            (
                "256",
                r#"6:13 [256] this is no ICMP type (ICMP types are 0 to 255)
"#,
            ),
            (
                "-1",
                r#"6:13 [-1] this is no ICMP type (ICMP types are 0 to 255)
"#,
            ),
            (
                r#""256""#,
                r#"6:13 ["256"] this is no ICMP type (ICMP types are 0 to 255)
"#,
            ),
            (
                r#""3/256""#,
                r#"6:13 ["3/256"] this is no ICMP code (ICMP codes are 0 to 255)
"#,
            ),
            (
                r#""3/0-256""#,
                r#"6:13 ["3/0-256"] this is no ICMP code (ICMP codes are 0 to 255)
"#,
            ),
            (
                r#""11-8""#,
                r#"6:13 ["11-8"] the range `11-8` runs backwards (it ends before it begins) did you mean "8-11"?
"#,
            ),
            (
                r#""3/3-0""#,
                r#"6:13 ["3/3-0"] the range `3/3-0` runs backwards (it ends before it begins) did you mean "3/0-3"?
"#,
            ),
            (
                r#""3-4/0""#,
                r#"6:13 ["3-4/0"] `3-4/0` has codes of several types (a code goes with one type) write several types as a list: `["3/0", "4/0"]`
"#,
            ),
            (
                r#""0-256""#,
                r#"6:13 ["0-256"] this is no ICMP type (ICMP types are 0 to 255)
"#,
            ),
            (
                r#""port-unreachable/3""#,
                r#"6:13 ["port-unreachable/3"] `port-unreachable/3` has two codes (the name stands for a type with its code) write the type's own name or number
"#,
            ),
            (
                r#""3/x""#,
                r#"6:13 ["3/x"] `3/x` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                r#""3/""#,
                r#"6:13 ["3/"] `3/` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                r#""/3""#,
                r#"6:13 ["/3"] `/3` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                r#""3/0/1""#,
                r#"6:13 ["3/0/1"] `3/0/1` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                r#""echo_request""#,
                r#"6:13 ["echo_request"] `echo_request` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-request"?
"#,
            ),
            (
                r#""Echo-Request""#,
                r#"6:13 ["Echo-Request"] `Echo-Request` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-request"?
"#,
            ),
            (
                r#""echo request""#,
                r#"6:13 ["echo request"] `echo request` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-request"?
"#,
            ),
            (
                r#""echo-requst""#,
                r#"6:13 ["echo-requst"] `echo-requst` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-request"?
"#,
            ),
            (
                r#""ping""#,
                r#"6:13 ["ping"] `ping` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-request"?
"#,
            ),
            (
                r#""pong""#,
                r#"6:13 ["pong"] `pong` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-reply"?
"#,
            ),
            (
                r#""unreachable""#,
                r#"6:13 ["unreachable"] `unreachable` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "destination-unreachable"?
"#,
            ),
            (
                r#""packet-too-big""#,
                r#"6:13 ["packet-too-big"] `packet-too-big` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "fragmentation-needed"?
"#,
            ),
            (
                r#""neighbour-solicitation""#,
                r#"6:13 ["neighbour-solicitation"] `neighbour-solicitation` names no ICMP type (neither a type, nor a range, nor a type's name) it is a type of icmpv6, the rule is for icmp
"#,
            ),
            (
                r#""too-big""#,
                r#"6:13 ["too-big"] `too-big` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "fragmentation-needed"?
"#,
            ),
            (
                r#""any""#,
                r#"6:13 ["any"] `any` names no ICMP type (neither a type, nor a range, nor a type's name) leave `icmp_type` out to match any
"#,
            ),
            (
                r#""8,0""#,
                r#"6:13 ["8,0"] `8,0` names no ICMP type (neither a type, nor a range, nor a type's name) write several types as a list: `[8, "3/4"]`
"#,
            ),
            (
                r#""8 - 11""#,
                r#"6:13 ["8 - 11"] `8 - 11` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "8-11"?
"#,
            ),
            (
                r#""8:11""#,
                r#"6:13 ["8:11"] `8:11` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "8/11"?
"#,
            ),
            (
                r#""3:4""#,
                r#"6:13 ["3:4"] `3:4` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "3/4"?
"#,
            ),
            (
                r#""3 / 4""#,
                r#"6:13 ["3 / 4"] `3 / 4` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "3/4"?
"#,
            ),
            (
                r#"" 8""#,
                r#"6:13 [" 8"] ` 8` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean 8?
"#,
            ),
            (
                r#""8-""#,
                r#"6:13 ["8-"] `8-` names no ICMP type (neither a type, nor a range, nor a type's name) write both ends: "8-255"
"#,
            ),
            (
                r#""xyzzy""#,
                r#"6:13 ["xyzzy"] `xyzzy` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                r#""""#,
                r#"6:13 [""] `""` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                "[]",
                r#"6:13 [[]] `icmp_type` is empty, so the rule matches nothing leave `icmp_type` out to match any
"#,
            ),
            (
                "true",
                r#"6:13 [true] a boolean cannot stand here (expected a type's number or name, a range such as "8-11", a type with its code such as "3/4", or a list of them)
"#,
            ),
            (
                "[8, [0]]",
                r#"6:17 [[0]] a list cannot stand here (expected a type's number or name, a range such as "8-11", a type with its code such as "3/4", or a list of them)
"#,
            ),
        ];
        let icmpv6: &[(&str, &str)] = &[
            (
                r#""fragmentation-needed""#,
                r#"6:13 ["fragmentation-needed"] `fragmentation-needed` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "packet-too-big"?
"#,
            ),
            (
                r#""address-mask-request""#,
                r#"6:13 ["address-mask-request"] `address-mask-request` names no ICMP type (neither a type, nor a range, nor a type's name) it is a type of icmp, the rule is for icmpv6
"#,
            ),
            (
                r#""ping""#,
                r#"6:13 ["ping"] `ping` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "echo-request"?
"#,
            ),
            (
                r#""neighbour-solicit""#,
                r#"6:13 ["neighbour-solicit"] `neighbour-solicit` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "neighbour-solicitation"?
"#,
            ),
            (
                r#""neighbor-solicitaton""#,
                r#"6:13 ["neighbor-solicitaton"] `neighbor-solicitaton` names no ICMP type (neither a type, nor a range, nor a type's name) did you mean "neighbor-solicitation"?
"#,
            ),
            (
                r#""128-""#,
                r#"6:13 ["128-"] `128-` names no ICMP type (neither a type, nor a range, nor a type's name) write both ends: "128-255"
"#,
            ),
        ];
        for (protocol, cases) in [("icmp", icmp), ("icmpv6", icmpv6)] {
            for (icmp_type, expected) in cases {
                let text = with_type(protocol, icmp_type);
                assert_eq!(brief(&text, &errors(&text)), *expected, "{icmp_type}");
            }
        }
    }

    /// Lines of a rule from line 5 on, with what is said about them.
    #[test]
    fn types_need_their_protocol() {
        let cases: &[(&str, &str)] = &[
            (
                r#"icmp_type = 8
"#,
                r#"5:1 [icmp_type] `icmp_type` needs one protocol, ICMP or ICMPv6 (types of which protocol?) add `protocol = "icmp"` or `protocol = "icmpv6"`
"#,
            ),
            (
                r#"protocol = "tcp"
icmp_type = 8
"#,
                r#"5:12 ["tcp"] `icmp_type` needs one protocol, ICMP or ICMPv6 (cannot stand beside `icmp_type`) remove `icmp_type`
"#,
            ),
            (
                r#"protocol = ["tcp", "icmp"]
icmp_type = 8
"#,
                r#"5:13 ["tcp"] `icmp_type` needs one protocol, ICMP or ICMPv6 (cannot stand beside `icmp_type`) give it a rule of its own, without `icmp_type`
"#,
            ),
            (
                r#"icmp_type = 8
protocol = ["icmp", "icmpv6"]
"#,
                r#"6:13 ["icmp"] `icmp_type` needs one protocol, ICMP or ICMPv6 (cannot stand beside `icmp_type`) their types differ: give each protocol a rule of its own
"#,
            ),
            (
                r#"protocol = 47
icmp_type = "echo-request"
"#,
                r#"5:12 [47] `icmp_type` needs one protocol, ICMP or ICMPv6 (cannot stand beside `icmp_type`) remove `icmp_type`
"#,
            ),
            (
                r#"protocol = "icpm"
icmp_type = 8
"#,
                r#"5:12 ["icpm"] unknown protocol `icpm` (not a protocol) did you mean "icmp"?
"#,
            ),
            (
                r#"icmp_type = "packet-too-big"
"#,
                r#"5:1 [icmp_type] `icmp_type` needs one protocol, ICMP or ICMPv6 (types of which protocol?) add `protocol = "icmp"` or `protocol = "icmpv6"`
"#,
            ),
            (
                r#"icmp_type = "xyzzy"
"#,
                r#"5:1 [icmp_type] `icmp_type` needs one protocol, ICMP or ICMPv6 (types of which protocol?) add `protocol = "icmp"` or `protocol = "icmpv6"`
5:13 ["xyzzy"] `xyzzy` names no ICMP type (neither a type, nor a range, nor a type's name)
"#,
            ),
            (
                r#"protocol = "icmp"
icmp_type = 8
dst_port = 80
"#,
                r#"5:12 ["icmp"] protocol `icmp` has no ports (cannot stand beside `dst_port`) remove `dst_port`
"#,
            ),
            (
                r#"protocol = "tcp"
icmp_type = 8
src_port = 80
"#,
                r#"5:12 ["tcp"] `icmp_type` needs one protocol, ICMP or ICMPv6 (cannot stand beside `icmp_type`) remove `icmp_type`
"#,
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{HEAD}[[rules]]\naction = \"drop\"\n{lines}");
            assert_eq!(brief(&text, &errors(&text)), *expected, "{lines}");
        }
    }
}
