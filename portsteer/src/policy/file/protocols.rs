//! A rule's `protocol`.

use std::ops::Range;

use portsteer_common::PortProtocol;
use toml::de::DeValue;

use super::{ANY_WORDS, Key, Reader, Value, did_you_mean, known, number_of, quote};
use crate::policy::{PROTOCOL_NAMES, diagnostic::Diagnostic, protocol_name};

const PROTOCOL_SYNONYMS: [(&str, &str); 5] = [
    ("udp-lite", "udplite"),
    ("icmp4", "icmp"),
    ("icmp6", "icmpv6"),
    ("ipv6-icmp", "icmpv6"),
    ("icmp-v6", "icmpv6"),
];
/// Protocols that people know by name, and the file by number alone.
const NUMBERED_PROTOCOLS: [(&str, u8); 14] = [
    ("igmp", 2),
    ("ipip", 4),
    ("ipv4", 4),
    ("egp", 8),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("eigrp", 88),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("mpls", 137),
];

/// A rule's protocols.
#[derive(Default)]
pub(super) struct Protocols {
    /// In the file's order, without duplicates.
    pub items: Vec<ProtocolItem>,
    /// Whether there are others, which could not be read.
    pub has_fault: bool,
}

/// A protocol in a rule, with its place.
pub(super) struct ProtocolItem {
    pub number: u8,
    pub span: Range<usize>,
}

impl Reader<'_> {
    pub(super) fn read_protocols(&mut self, value: &Value<'_>) -> Protocols {
        let errors_before = self.errors.len();
        let mut protocols: Vec<ProtocolItem> = Vec::new();
        for item in self.items("protocol", value) {
            let Some(protocol) = self.read_protocol(item) else { continue };
            if let Some(first) = protocols.iter().find(|first| first.number == protocol.number) {
                self.warnings.push(
                    Diagnostic::warning("the protocol is listed twice")
                        .at(protocol.span)
                        .label("again here")
                        .related(first.span.clone(), "first here"),
                );
            } else {
                protocols.push(protocol);
            }
        }
        Protocols { items: protocols, has_fault: self.errors.len() > errors_before }
    }

    fn read_protocol(&mut self, value: &Value<'_>) -> Option<ProtocolItem> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => {
                let number = number_of(number).and_then(|number| u8::try_from(number).ok());
                if number.is_none() {
                    self.errors.push(
                        Diagnostic::error("this is no IP protocol number")
                            .at(value.span())
                            .label("protocol numbers are 0 to 255"),
                    );
                }
                number
            }
            DeValue::String(word) => {
                let number = known(&PROTOCOL_NAMES, word);
                if number.is_none() {
                    self.unknown_protocol(word, value);
                }
                number
            }
            _ => {
                self.wrong_type(value, "a protocol's name or number, or a list of them", None);
                None
            }
        };
        number.map(|number| ProtocolItem { number, span: value.span() })
    }

    fn unknown_protocol(&mut self, word: &str, value: &Value<'_>) {
        let lower = word.to_lowercase();
        let help = if ANY_WORDS.contains(&lower.as_str()) {
            Some("leave `protocol` out to match any".to_owned())
        } else if let Some(name) = known(&PROTOCOL_SYNONYMS, &lower) {
            Some(did_you_mean(&format!("\"{name}\"")))
        } else if let Some(number) = known(&NUMBERED_PROTOCOLS, &lower) {
            Some(format!("write its number: {number}"))
        } else if let Ok(number) = word.parse::<u8>() {
            Some(format!("write the number without quotes: {number}"))
        } else {
            self.suggest(word, PROTOCOL_NAMES.into_iter().map(|(name, _)| name))
                .map(|name| did_you_mean(&format!("\"{name}\"")))
        };
        let names = PROTOCOL_NAMES.map(|(name, _)| name).join(", ");
        let mut error = Diagnostic::error(format!("unknown protocol {}", quote(word)))
            .at(value.span())
            .label("not a protocol");
        error.help =
            help.or_else(|| Some(format!("protocols are {names}, or a number from 0 to 255")));
        self.errors.push(error);
    }

    /// Reports protocols without ports in a rule that asks for ports, with these keys in the
    /// file's order.
    pub(super) fn refuse_protocols_without_ports(
        &mut self,
        protocols: &Protocols,
        port_keys: &[&Key<'_>],
    ) {
        let keys = port_keys.iter().map(|key| format!("`{}`", key.get_ref()));
        let keys = keys.collect::<Vec<_>>().join(" and ");
        let has_ports = |item: &ProtocolItem| PortProtocol::from_number(item.number).is_some();
        let help = if protocols.items.iter().any(has_ports) {
            format!("give it a rule of its own, without {keys}")
        } else {
            format!("remove {keys}")
        };
        for item in protocols.items.iter().filter(|item| !has_ports(item)) {
            let name = protocol_name(item.number);
            let mut error = Diagnostic::error(format!("protocol `{name}` has no ports"))
                .at(item.span.clone())
                .label(format!("cannot stand beside {keys}"))
                .help(help.clone());
            for key in port_keys {
                error = error.related(key.span(), "ports are asked for here");
            }
            self.errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HEAD, policy, warnings};

    #[test]
    fn protocols_listed_twice_are_a_warning() {
        let text = format!("{HEAD}[[rules]]\nprotocol = [\"tcp\", 6]\naction = \"drop\"\n");
        assert_eq!(policy(&text).rules[0].protocols, [6]);
        assert_eq!(warnings(&text), "4:20 [6] the protocol is listed twice (again here)\n");
    }
}
