//! A rule's `src` and `dst`.

use std::{collections::HashMap, ops::Range};

use ipnet::IpNet;
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
            Ok(prefix) => {
                self.warn_of_mapped(prefix, sign, value);
                return Some((is_negated, AddressItem::Prefix(prefix)));
            }
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

    /// Warns of an IPv4 address in the form of an IPv6 one.
    pub(super) fn warn_of_mapped(&mut self, prefix: IpNet, sign: &str, value: &Value<'_>) {
        let Some(v4) = prefixes::mapped(prefix) else { return };
        self.warnings.push(
            Diagnostic::warning("this is no address of IPv4 packets")
                .at(value.span())
                .label("an IPv6 address, which hardly any packet has")
                .help(did_you_mean(&format!("\"{sign}{}\"", prefixes::bare(v4)))),
        );
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

#[cfg(test)]
mod tests {
    use super::super::tests::{HEAD, brief, errors, policy, warnings};

    /// A policy with a rule that has this source; it stands on line 9, from column 7.
    fn with_src(src: &str) -> String {
        format!(
            "{HEAD}[sets.office]\naddresses = [\"192.0.2.0/24\"]\n[sets.guests]\naddresses = []\n\
             [[rules]]\naction = \"drop\"\nsrc = {src}\n"
        )
    }

    #[test]
    fn addresses() {
        for (src, expected) in [
            ("'10.0.0.1'", "10.0.0.1"),
            ("'10.0.0.1/32'", "10.0.0.1"),
            ("'10.0.0.0/8'", "10.0.0.0/8"),
            ("'0.0.0.0/0'", "0.0.0.0/0"),
            ("'0.0.0.0'", "0.0.0.0"),
            ("'::/0'", "::/0"),
            ("'2001:DB8:0::/32'", "2001:db8::/32"),
            ("'64:ff9b::192.0.2.1'", "64:ff9b::c000:201"),
            ("'@office'", "@office"),
            ("'!@office'", "!@office"),
            ("['!10.0.0.1']", "!10.0.0.1"),
            ("['@guests', '::1', '@office']", "@guests,::1,@office"),
            ("['!::1', '10.0.0.0/8', '!@guests', '@office']", "10.0.0.0/8,@office,!::1,!@guests"),
            // Not merged: that is for whoever compiles it.
            ("['10.0.0.0/8', '10.0.0.0/9', '!10.0.0.0/8']", "10.0.0.0/8,10.0.0.0/9,!10.0.0.0/8"),
        ] {
            let text = with_src(src);
            let parsed = policy(&text);
            assert_eq!(parsed.addresses(&parsed.rules[0].src), expected, "{src}");
            assert!(parsed.rules[0].dst.is_any());
            let parsed = policy(&text.replace("\nsrc = ", "\ndst = "));
            assert_eq!(parsed.addresses(&parsed.rules[0].dst), expected, "{src}");
            assert!(parsed.rules[0].src.is_any());
        }
    }

    /// Sources of a rule, with what is said about them.
    #[test]
    fn errors_of_addresses() {
        let cases: &[(&str, &str)] = &[
            (
                r#""10.0.0.1/8""#,
                r#"9:7 ["10.0.0.1/8"] `10.0.0.1/8` has host bits set (not all bits are zero after the first 8) did you mean "10.0.0.0/8", or "10.0.0.1" for the one address?
"#,
            ),
            (
                r#""!10.0.0.1/8""#,
                r#"9:7 ["!10.0.0.1/8"] `!10.0.0.1/8` has host bits set (not all bits are zero after the first 8) did you mean "!10.0.0.0/8", or "!10.0.0.1" for the one address?
"#,
            ),
            (
                r#""2001:db8::1/32""#,
                r#"9:7 ["2001:db8::1/32"] `2001:db8::1/32` has host bits set (not all bits are zero after the first 32) did you mean "2001:db8::/32", or "2001:db8::1" for the one address?
"#,
            ),
            (
                r#""1.2.3.4/0""#,
                r#"9:7 ["1.2.3.4/0"] `1.2.3.4/0` has host bits set (not all bits are zero after the first 0) did you mean "0.0.0.0/0", or "1.2.3.4" for the one address?
"#,
            ),
            (
                r#""10.0.0.0/33""#,
                r#"9:7 ["10.0.0.0/33"] `10.0.0.0/33` is no prefix (IPv4 prefix lengths are 0 to 32)
"#,
            ),
            (
                r#""2001:db8::/129""#,
                r#"9:7 ["2001:db8::/129"] `2001:db8::/129` is no prefix (IPv6 prefix lengths are 0 to 128)
"#,
            ),
            (
                r#""10.0.0.0/""#,
                r#"9:7 ["10.0.0.0/"] `10.0.0.0/` is no prefix (IPv4 prefix lengths are 0 to 32)
"#,
            ),
            (
                r#""10.0.0.0/-1""#,
                r#"9:7 ["10.0.0.0/-1"] `10.0.0.0/-1` is no prefix (IPv4 prefix lengths are 0 to 32)
"#,
            ),
            (
                r#""10.0.0.0/08""#,
                r#"9:7 ["10.0.0.0/08"] `10.0.0.0/08` is no prefix (IPv4 prefix lengths are 0 to 32) did you mean "10.0.0.0/8"?
"#,
            ),
            (
                r#""10.0.0.0/255.0.0.0""#,
                r#"9:7 ["10.0.0.0/255.0.0.0"] `10.0.0.0/255.0.0.0` is no prefix (IPv4 prefix lengths are 0 to 32) did you mean "10.0.0.0/8"?
"#,
            ),
            (
                r#""!10.1.2.3/255.255.0.0""#,
                r#"9:7 ["!10.1.2.3/255.255.0.0"] `!10.1.2.3/255.255.0.0` is no prefix (IPv4 prefix lengths are 0 to 32) did you mean "!10.1.0.0/16"?
"#,
            ),
            (
                r#""10.0.0.0/0.0.0.255""#,
                r#"9:7 ["10.0.0.0/0.0.0.255"] `10.0.0.0/0.0.0.255` is no prefix (IPv4 prefix lengths are 0 to 32) did you mean "10.0.0.0/24"?
"#,
            ),
            (
                r#""10.0.0.0/255.0.255.0""#,
                r#"9:7 ["10.0.0.0/255.0.255.0"] `10.0.0.0/255.0.255.0` is no prefix (IPv4 prefix lengths are 0 to 32)
"#,
            ),
            (
                r#""2001:db8::/ffff:ffff::""#,
                r#"9:7 ["2001:db8::/ffff:ffff::"] `2001:db8::/ffff:ffff::` is no prefix (IPv6 prefix lengths are 0 to 128) did you mean "2001:db8::/32"?
"#,
            ),
            (
                r#""10.0.0.0/8/8""#,
                r#"9:7 ["10.0.0.0/8/8"] `10.0.0.0/8/8` is no prefix (IPv4 prefix lengths are 0 to 32)
"#,
            ),
            (
                r#""10.0.0.0-10.0.0.255""#,
                r#"9:7 ["10.0.0.0-10.0.0.255"] `10.0.0.0-10.0.0.255` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.0/24"?
"#,
            ),
            (
                r#""!10.0.0.0 - 10.0.0.255""#,
                r#"9:7 ["!10.0.0.0 - 10.0.0.255"] `!10.0.0.0 - 10.0.0.255` is no address (neither an address, nor a prefix, nor a set) did you mean "!10.0.0.0/24"?
"#,
            ),
            (
                r#""10.0.0.1-10.0.0.9""#,
                r#"9:7 ["10.0.0.1-10.0.0.9"] `10.0.0.1-10.0.0.9` is no address (neither an address, nor a prefix, nor a set) write ranges as prefixes: "10.0.0.1", "10.0.0.2/31", "10.0.0.4/30" and "10.0.0.8/31"
"#,
            ),
            (
                r#""10.0.0.1-9""#,
                r#"9:7 ["10.0.0.1-9"] `10.0.0.1-9` is no address (neither an address, nor a prefix, nor a set) write ranges as prefixes: "10.0.0.1", "10.0.0.2/31", "10.0.0.4/30" and "10.0.0.8/31"
"#,
            ),
            (
                r#""10.0.0.1-10.9.9.9""#,
                r#"9:7 ["10.0.0.1-10.9.9.9"] `10.0.0.1-10.9.9.9` is no address (neither an address, nor a prefix, nor a set) write ranges as prefixes
"#,
            ),
            (
                r#""10.0.0.9-10.0.0.1""#,
                r#"9:7 ["10.0.0.9-10.0.0.1"] `10.0.0.9-10.0.0.1` is no address (neither an address, nor a prefix, nor a set) write ranges as prefixes
"#,
            ),
            (
                r#""2001:db8::-2001:db8::f""#,
                r#"9:7 ["2001:db8::-2001:db8::f"] `2001:db8::-2001:db8::f` is no address (neither an address, nor a prefix, nor a set) did you mean "2001:db8::/124"?
"#,
            ),
            (
                r#""example.com""#,
                r#"9:7 ["example.com"] `example.com` is no address (neither an address, nor a prefix, nor a set) the names of hosts are not looked up: write their addresses
"#,
            ),
            (
                r#""localhost""#,
                r#"9:7 ["localhost"] `localhost` is no address (neither an address, nor a prefix, nor a set) the names of hosts are not looked up: write their addresses
"#,
            ),
            (
                r#""10.0.0.1:80""#,
                r#"9:7 ["10.0.0.1:80"] `10.0.0.1:80` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.1"? Ports go into `src_port` and `dst_port`
"#,
            ),
            (
                r#""[2001:db8::1]:443""#,
                r#"9:7 ["[2001:db8::1]:443"] `[2001:db8::1]:443` is no address (neither an address, nor a prefix, nor a set) did you mean "2001:db8::1"? Ports go into `src_port` and `dst_port`
"#,
            ),
            (
                r#""[2001:db8::1]""#,
                r#"9:7 ["[2001:db8::1]"] `[2001:db8::1]` is no address (neither an address, nor a prefix, nor a set) did you mean "2001:db8::1"?
"#,
            ),
            (
                r#""[2001:db8::]/32""#,
                r#"9:7 ["[2001:db8::]/32"] `[2001:db8::]/32` is no address (neither an address, nor a prefix, nor a set) did you mean "2001:db8::/32"?
"#,
            ),
            (
                r#""fe80::1%eth0""#,
                r#"9:7 ["fe80::1%eth0"] `fe80::1%eth0` is no address (neither an address, nor a prefix, nor a set) did you mean "fe80::1"? An interface goes into `interface`
"#,
            ),
            (
                r#""fe80::%eth0/10""#,
                r#"9:7 ["fe80::%eth0/10"] `fe80::%eth0/10` is no address (neither an address, nor a prefix, nor a set) did you mean "fe80::/10"? An interface goes into `interface`
"#,
            ),
            (
                r#""10/8""#,
                r#"9:7 ["10/8"] `10/8` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.0/8"?
"#,
            ),
            (
                r#""172.16/12""#,
                r#"9:7 ["172.16/12"] `172.16/12` is no address (neither an address, nor a prefix, nor a set) did you mean "172.16.0.0/12"?
"#,
            ),
            (
                r#""192.168.*""#,
                r#"9:7 ["192.168.*"] `192.168.*` is no address (neither an address, nor a prefix, nor a set) did you mean "192.168.0.0/16"?
"#,
            ),
            (
                r#""192.168.1.""#,
                r#"9:7 ["192.168.1."] `192.168.1.` is no address (neither an address, nor a prefix, nor a set) did you mean "192.168.1.0/24"?
"#,
            ),
            (
                r#""010.000.000.001""#,
                r#"9:7 ["010.000.000.001"] `010.000.000.001` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.1"?
"#,
            ),
            (
                r#""256.1.1.1""#,
                r#"9:7 ["256.1.1.1"] `256.1.1.1` is no address (neither an address, nor a prefix, nor a set)
"#,
            ),
            (
                r#""10.1""#,
                r#"9:7 ["10.1"] `10.1` is no address (neither an address, nor a prefix, nor a set)
"#,
            ),
            (
                r#"" 10.0.0.1""#,
                r#"9:7 [" 10.0.0.1"] ` 10.0.0.1` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.1"?
"#,
            ),
            (
                r#""10.0.0.0 /8""#,
                r#"9:7 ["10.0.0.0 /8"] `10.0.0.0 /8` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.0/8"?
"#,
            ),
            (
                r#""10.0.0.1, 10.0.0.2""#,
                r#"9:7 ["10.0.0.1, 10.0.0.2"] `10.0.0.1, 10.0.0.2` is no address (neither an address, nor a prefix, nor a set) write several addresses as several strings
"#,
            ),
            (
                r#""10.0.0.1 10.0.0.2""#,
                r#"9:7 ["10.0.0.1 10.0.0.2"] `10.0.0.1 10.0.0.2` is no address (neither an address, nor a prefix, nor a set) write several addresses as several strings
"#,
            ),
            (
                r#""02:00:00:00:00:01""#,
                r#"9:7 ["02:00:00:00:00:01"] `02:00:00:00:00:01` is no address (neither an address, nor a prefix, nor a set) MAC addresses cannot be matched
"#,
            ),
            (
                r#""""#,
                r#"9:7 [""] `""` is no address (neither an address, nor a prefix, nor a set)
"#,
            ),
            (
                r#""!""#,
                r#"9:7 ["!"] `!` is no address (neither an address, nor a prefix, nor a set)
"#,
            ),
            (
                r#""http://192.0.2.1/""#,
                r#"9:7 ["http://192.0.2.1/"] `http://192.0.2.1/` is no address (neither an address, nor a prefix, nor a set)
"#,
            ),
            (
                r#""any""#,
                r#"9:7 ["any"] `any` is no address (neither an address, nor a prefix, nor a set) leave `src` out to match any
"#,
            ),
            (
                r#""!any""#,
                r#"9:7 ["!any"] `!any` is no address (neither an address, nor a prefix, nor a set) the rule would match nothing
"#,
            ),
            (
                r#""! 10.0.0.1""#,
                r#"9:7 ["! 10.0.0.1"] `! 10.0.0.1` is no address (neither an address, nor a prefix, nor a set) did you mean "!10.0.0.1"?
"#,
            ),
            (
                r#""!!10.0.0.1""#,
                r#"9:7 ["!!10.0.0.1"] `!!10.0.0.1` is no address (neither an address, nor a prefix, nor a set) did you mean "10.0.0.1"?
"#,
            ),
            (
                r#""not 10.0.0.1""#,
                r#"9:7 ["not 10.0.0.1"] `not 10.0.0.1` is no address (neither an address, nor a prefix, nor a set) did you mean "!10.0.0.1"?
"#,
            ),
            (
                r#""~@office""#,
                r#"9:7 ["~@office"] `~@office` is no address (neither an address, nor a prefix, nor a set) did you mean "!@office"?
"#,
            ),
            (
                r#"["10.0.0.1", "-10.0.0.2"]"#,
                r#"9:20 ["-10.0.0.2"] `-10.0.0.2` is no address (neither an address, nor a prefix, nor a set) did you mean "!10.0.0.2"?
"#,
            ),
            (
                r#""office""#,
                r#"9:7 ["office"] `office` is no address (neither an address, nor a prefix, nor a set) did you mean "@office"?
"#,
            ),
            (
                r#""!office""#,
                r#"9:7 ["!office"] `!office` is no address (neither an address, nor a prefix, nor a set) did you mean "!@office"?
"#,
            ),
            (
                r#""$office""#,
                r#"9:7 ["$office"] `$office` is no address (neither an address, nor a prefix, nor a set) did you mean "@office"?
"#,
            ),
            (
                r#""ofice""#,
                r#"9:7 ["ofice"] `ofice` is no address (neither an address, nor a prefix, nor a set) did you mean "@office"?
"#,
            ),
            (
                r#""@ofice""#,
                r#"9:7 ["@ofice"] there is no set `ofice` (unknown set) did you mean "@office"?
"#,
            ),
            (
                r#""!@ofice""#,
                r#"9:7 ["!@ofice"] there is no set `ofice` (unknown set) did you mean "!@office"?
"#,
            ),
            (
                r#""@Office""#,
                r#"9:7 ["@Office"] there is no set `Office` (unknown set) did you mean "@office"?
"#,
            ),
            (
                r#""@xyzzy""#,
                r#"9:7 ["@xyzzy"] there is no set `xyzzy` (unknown set) the sets are `office`, `guests`
"#,
            ),
            (
                r#""@""#,
                r#"9:7 ["@"] `@` names no set (a set's name is missing) the sets are `office`, `guests`
"#,
            ),
            (
                r#""!@""#,
                r#"9:7 ["!@"] `!@` names no set (a set's name is missing) the sets are `office`, `guests`
"#,
            ),
            (
                r#""@!office""#,
                r#"9:7 ["@!office"] there is no set `!office` (unknown set) did you mean "!@office"?
"#,
            ),
            (
                r#""@10.0.0.1""#,
                r#"9:7 ["@10.0.0.1"] there is no set `10.0.0.1` (unknown set) did you mean "10.0.0.1"?
"#,
            ),
            (
                r#""!@10.0.0.0/8""#,
                r#"9:7 ["!@10.0.0.0/8"] there is no set `10.0.0.0/8` (unknown set) did you mean "!10.0.0.0/8"?
"#,
            ),
            (
                "[]",
                r#"9:7 [[]] `src` is empty, so the rule matches nothing leave `src` out to match any
"#,
            ),
            (
                "1",
                r#"9:7 [1] an integer cannot stand here (expected an address, a prefix or the name of a set such as "@office", as a string, or a list of them)
"#,
            ),
            (
                "10.0",
                r#"9:7 [10.0] a float cannot stand here (expected an address, a prefix or the name of a set such as "@office", as a string, or a list of them)
"#,
            ),
            (
                r#"["10.0.0.1", ["10.0.0.2"]]"#,
                r#"9:20 [["10.0.0.2"]] a list cannot stand here (expected an address, a prefix or the name of a set such as "@office", as a string, or a list of them)
"#,
            ),
            (
                r#"{ set = "office" }"#,
                r#"9:7 [{ set = "office" }] a table cannot stand here (expected an address, a prefix or the name of a set such as "@office", as a string, or a list of them)
"#,
            ),
            (
                "[true]",
                r#"9:8 [true] a boolean cannot stand here (expected an address, a prefix or the name of a set such as "@office", as a string, or a list of them)
"#,
            ),
        ];
        for (src, expected) in cases {
            let text = with_src(src);
            assert_eq!(brief(&text, &errors(&text)), *expected, "{src}");
        }
    }

    #[test]
    fn the_other_key_is_named() {
        for (dst, expected) in [
            (
                "[]",
                "3:7 [[]] `dst` is empty, so the rule matches nothing leave `dst` out to match any\n",
            ),
            (
                "'any'",
                "3:7 ['any'] `any` is no address (neither an address, nor a prefix, nor a set) \
                 leave `dst` out to match any\n",
            ),
        ] {
            let text = format!("version = 1\n[[rules]]\ndst = {dst}\naction = 'drop'\ninterfaces");
            let found = errors(&text);
            assert_eq!(brief(&text, &found[..1]), expected);
        }
    }

    #[test]
    fn a_set_may_stand_in_what_could_not_be_read() {
        for sets in ["sets = 1\n", "[sets.office\n", "[sets.office]\naddresses = ['x']\n"] {
            let text = format!("{HEAD}{sets}[[rules]]\nsrc = '@office'\naction = 'drop'\n");
            let found = brief(&text, &errors(&text));
            assert!(!found.contains("office`"), "{sets}{found}");
        }
    }

    #[test]
    fn repeated_addresses_are_one_warning() {
        let others = "['@guests', '10.0.0.1', '!10.0.0.1', '10.0.0.2'";
        let text = with_src(&format!("{others}]"));
        assert_eq!(warnings(&text).lines().count(), 1, "{}", warnings(&text)); // an empty set
        for (repeats, expected) in [
            (", '10.0.0.1/32'", ""),
            (", '10.0.0.1/32', '@guests'", " one more entry of this list repeats another"),
            (
                ", '10.0.0.1/32', '@guests', '10.0.0.1'",
                " 2 more entries of this list repeat others",
            ),
        ] {
            let text = with_src(&format!("{others}{repeats}]"));
            let expected =
                format!("9:56 ['10.0.0.1/32'] the address is listed twice (again here){expected}");
            assert_eq!(warnings(&text).lines().nth(1), Some(&*expected));
            let parsed = policy(&text);
            let read = parsed.addresses(&parsed.rules[0].src);
            assert_eq!(read, "@guests,10.0.0.1,10.0.0.2,!10.0.0.1");
        }
    }

    #[test]
    fn ipv4_addresses_in_ipv6_form_are_a_warning() {
        let warning = |src: &str| {
            let text = with_src(src);
            warnings(&text).lines().nth(1).map(str::to_owned)
        };
        assert_eq!(
            warning("'!::ffff:10.0.0.0/104'").as_deref(),
            Some(
                "9:7 ['!::ffff:10.0.0.0/104'] this is no address of IPv4 packets (an IPv6 address, \
                 which hardly any packet has) did you mean \"!10.0.0.0/8\"?"
            )
        );
        // Whoever writes this means these packets.
        assert_eq!(warning("'::ffff:0:0/96'"), None);
    }
}
