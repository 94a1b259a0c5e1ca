//! A rule's `src_port` and `dst_port`.

use toml::de::DeValue;

use super::{
    ANY_WORDS, Reader, Value, did_you_mean, is_number, known, number_of, quote,
    ranges::{RangeFault, parse_range, range_form, runs_backwards},
};
use crate::policy::{PortRange, RANGE_NAMES, diagnostic::Diagnostic, services::Services};

impl Reader<'_> {
    /// Reads ports, the value of `key`.
    pub(super) fn read_ports(&mut self, key: &str, value: &Value<'_>) -> Vec<PortRange> {
        let items = self.items(key, value).iter();
        items.filter_map(|item| self.read_port(key, item)).collect()
    }

    fn read_port(&mut self, key: &str, value: &Value<'_>) -> Option<PortRange> {
        let fault = match value.get_ref() {
            DeValue::Integer(number) => {
                let number = number_of(number).and_then(|number| u16::try_from(number).ok());
                number.map(PortRange::single).ok_or(RangeFault::OutOfRange)
            }
            DeValue::String(word) => parse_ports(word, self.services),
            _ => {
                let expected = "a port, a range such as \"9000-9099\", a service's name, \
                                or a list of them";
                self.wrong_type(value, expected, None);
                return None;
            }
        };
        fault.map_err(|fault| self.wrong_port(key, &fault, value)).ok()
    }

    fn wrong_port(&mut self, key: &str, fault: &RangeFault, value: &Value<'_>) {
        let word = value.get_ref().as_str().unwrap_or_default();
        let error = match fault {
            RangeFault::OutOfRange => {
                Diagnostic::error("this is no port").label("ports are 0 to 65535")
            }
            RangeFault::Backwards(first, last) => runs_backwards(word, &format!("{last}-{first}")),
            RangeFault::Unknown => {
                let mut error = Diagnostic::error(format!("{} names no port", quote(word)))
                    .label("neither a port, nor a range, nor a service's name");
                error.help = port_form(key, word).or_else(|| {
                    let names = RANGE_NAMES.iter().map(|&(name, _)| name);
                    let services = self.services;
                    self.suggest(word, names.chain(services.names()))
                        .map(|name| did_you_mean(&format!("\"{name}\"")))
                });
                error
            }
        };
        self.errors.push(error.at(value.span()));
    }
}

/// What a string means as ports.
fn parse_ports(word: &str, services: &Services) -> Result<PortRange, RangeFault> {
    if let Some(range) = parse_range(word) {
        return range;
    }
    known(&RANGE_NAMES, word)
        .or_else(|| services.port(word).map(PortRange::single))
        .ok_or(RangeFault::Unknown)
}

/// How to write what looks like ports in another notation.
fn port_form(key: &str, word: &str) -> Option<String> {
    let trimmed = word.trim();
    if trimmed.is_empty() {
        return None;
    }
    if ANY_WORDS.contains(&trimmed.to_lowercase().as_str()) {
        return Some(format!("leave `{key}` out to match any"));
    }
    if is_number(trimmed) {
        return Some(did_you_mean(trimmed));
    }
    if trimmed.contains(',') {
        return Some("write several ports as a list: `[80, \"9000-9099\"]`".to_owned());
    }
    range_form(trimmed, "0", "65535")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let services = Services::embedded();
        let range = |first, last| Ok(PortRange { first, last });
        for (word, expected) in [
            ("0", range(0, 0)),
            ("65535", range(65_535, 65_535)),
            ("0080", range(80, 80)),
            ("0-65535", range(0, 65_535)),
            ("7-7", range(7, 7)),
            ("well-known", range(0, 1023)),
            ("registered", range(1024, 49_151)),
            ("dynamic", range(49_152, 65_535)),
            ("ftp-data", range(20, 20)),
            ("65536", Err(RangeFault::OutOfRange)),
            ("99999999999999999999999999", Err(RangeFault::OutOfRange)),
            ("1-65536", Err(RangeFault::OutOfRange)),
            ("2-1", Err(RangeFault::Backwards(2, 1))),
            ("", Err(RangeFault::Unknown)),
            ("-", Err(RangeFault::Unknown)),
            ("-1", Err(RangeFault::Unknown)),
            ("+1", Err(RangeFault::Unknown)),
            ("1-", Err(RangeFault::Unknown)),
            ("1-2-3", Err(RangeFault::Unknown)),
            ("1 - 2", Err(RangeFault::Unknown)),
            (" 80", Err(RangeFault::Unknown)),
            ("SSH", Err(RangeFault::Unknown)),
            ("\u{661}", Err(RangeFault::Unknown)),
        ] {
            assert_eq!(parse_ports(word, &services), expected, "{word:?}");
        }
    }
}
