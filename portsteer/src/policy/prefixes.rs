//! IP addresses and prefixes as text: one of them, and a whole file of them.
//!
//! A file has one address or prefix a line. `#` starts a comment, also behind an entry; blank
//! lines, white space around an entry, CRLF and a UTF-8 byte order mark are fine. Reading one takes
//! time in proportion to its length and a bounded amount of memory, whatever is in it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Subnets};

use super::file::{did_you_mean, is_number, quote};
use crate::interrupt::Interrupt;

/// The most prefixes that a set has.
pub const MAX_PREFIXES: usize = 1 << 20;

/// How many wrong lines of a file are told.
pub const MAX_TOLD: usize = 20;

/// The longest text that is an address or a prefix, in bytes: an IPv6 address that ends in an IPv4
/// one, and a prefix length.
const MAX_LEN: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128".len();

/// Why a text is no prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixFault {
    /// Bits of the address are set beyond the prefix length; with them cleared it is this.
    HostBits(IpNet),
    /// An address of this length in bits, with a prefix length that it cannot have.
    Length(u8),
    /// Anything else.
    NoAddress,
}

/// Where a prefix stands, which decides what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a rule.
    Rule,
    /// In the `addresses` of a set.
    Set,
    /// On a line of a file.
    Line,
}

/// What to say about a text that is no prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// One line, without a full stop.
    pub message: String,
    /// What is wrong, in a few words.
    pub label: String,
    /// What was probably meant.
    pub help: Option<String>,
}

/// What a file of prefixes holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefixFile {
    /// In the file's order, no more than [`MAX_PREFIXES`].
    pub prefixes: Vec<IpNet>,
    /// How many there are.
    pub count: usize,
    /// The first lines that are wrong, at most [`MAX_TOLD`]: their numbers from 1, and what they
    /// are.
    pub wrong: Vec<(usize, Complaint)>,
    /// How many lines are wrong.
    pub wrong_count: usize,
}

/// Reads an address (`192.0.2.1`, `2001:db8::1`), which is a prefix of full length, or a prefix
/// (`192.0.2.0/24`) without host bits.
///
/// # Errors
///
/// It is neither. [`complain`] says more.
#[inline]
pub fn parse(text: &str) -> Result<IpNet, PrefixFault> {
    if text.len() > MAX_LEN {
        return Err(PrefixFault::NoAddress);
    }
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| PrefixFault::NoAddress)?;
    let Some(len) = len else { return Ok(address.into()) };
    let greatest = IpNet::from(address).max_prefix_len();
    let prefix = parse_len(len)
        .and_then(|len| IpNet::new(address, len).ok())
        .ok_or(PrefixFault::Length(greatest))?;
    let meant = prefix.trunc();
    if meant == prefix { Ok(prefix) } else { Err(PrefixFault::HostBits(meant)) }
}

/// Reads the content of a file.
#[must_use]
pub fn parse_file(bytes: &[u8]) -> PrefixFile {
    parse_file_until(bytes, &Interrupt::default())
}

/// Reads the content of a file until it is interrupted, and then finds the less.
#[must_use]
pub fn parse_file_until(bytes: &[u8], interrupt: &Interrupt) -> PrefixFile {
    /// After how many lines it is looked at.
    const MANY: usize = 4_096;
    let mut file = PrefixFile::default();
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let message = "the file is UTF-16 text".to_owned();
        let label = "expected UTF-8".to_owned();
        file.wrong.push((1, Complaint { message, label, help: Some("save it as UTF-8".into()) }));
        file.wrong_count = 1;
        return file;
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if index % MANY == 0 && interrupt.is_set() {
            break;
        }
        let end = line.iter().position(|&byte| byte == b'#').unwrap_or(line.len());
        let entry = line[..end].trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let short = &entry[..entry.len().min(MAX_LEN + 1)];
        match str::from_utf8(short).map_err(|_| PrefixFault::NoAddress).and_then(parse) {
            Ok(prefix) => {
                file.count += 1;
                if file.count <= MAX_PREFIXES {
                    file.prefixes.push(prefix);
                }
            }
            Err(fault) => {
                file.wrong_count += 1;
                if file.wrong_count <= MAX_TOLD {
                    // Enough for whatever is said about it.
                    let text = String::from_utf8_lossy(&entry[..entry.len().min(4 * MAX_LEN)]);
                    file.wrong.push((index + 1, complain(&text, fault, "", Place::Line)));
                }
            }
        }
    }
    file
}

/// What to say about a text that [`parse`] refused. `sign` stands before it in the policy, and is
/// put before whatever is suggested.
#[must_use]
pub fn complain(text: &str, fault: PrefixFault, sign: &str, place: Place) -> Complaint {
    let shown = quote(&format!("{sign}{text}"));
    let meant = |what: &dyn fmt::Display| quoted(sign, what, place);
    match fault {
        PrefixFault::HostBits(prefix) => {
            let address = text.split('/').next().unwrap_or(text);
            Complaint {
                message: format!("{shown} has host bits set"),
                label: format!("not all bits are zero after the first {}", prefix.prefix_len()),
                help: Some(did_you_mean(&format!(
                    "{}, or {} for the one address",
                    meant(&prefix),
                    meant(&address),
                ))),
            }
        }
        PrefixFault::Length(greatest) => {
            let version = if greatest == 32 { 4 } else { 6 };
            Complaint {
                message: format!("{shown} is no prefix"),
                label: format!("IPv{version} prefix lengths are 0 to {greatest}"),
                help: length_form(text).map(|prefix| did_you_mean(&meant(&prefix))),
            }
        }
        PrefixFault::NoAddress => Complaint {
            message: format!("{shown} is no address"),
            label: match place {
                Place::Rule => "neither an address, nor a prefix, nor a set",
                Place::Set | Place::Line => "neither an address nor a prefix",
            }
            .to_owned(),
            help: form(text, sign, place),
        },
    }
}

/// The IPv4 prefix in a prefix of IPv4-mapped addresses (`::ffff:192.0.2.0/120`), which packets
/// of IPv4 do not have.
#[must_use]
pub fn mapped(prefix: IpNet) -> Option<IpNet> {
    let IpNet::V6(prefix) = prefix else { return None };
    let address = prefix.addr().to_ipv4_mapped()?;
    let len = prefix.prefix_len().checked_sub(96).filter(|&len| len > 0)?;
    Ipv4Net::new(address, len).ok().map(IpNet::from)
}

/// How to write what looks like addresses in another notation.
fn form(text: &str, sign: &str, place: Place) -> Option<String> {
    if text.len() > 4 * MAX_LEN {
        return None;
    }
    let meant = |what: &dyn fmt::Display| did_you_mean(&quoted(sign, what, place));
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return None;
    }
    if parse(trimmed).is_ok() {
        return Some(meant(&trimmed));
    }
    if let Some((entry, _)) = trimmed.split_once(';')
        && place == Place::Line
        && parse(entry.trim()).is_ok()
    {
        return Some("comments begin with `#`".to_owned());
    }
    if place != Place::Rule {
        if trimmed.starts_with('!') {
            return Some(
                "a set has no exceptions: rules have them, such as `src = [\"@a\", \"!@b\"]`"
                    .into(),
            );
        }
        if trimmed.starts_with('@') {
            return Some(
                "a set holds no other sets: a rule names several, as in `src = [\"@a\", \"@b\"]`"
                    .into(),
            );
        }
    }
    let squeezed: String = trimmed.chars().filter(|c| !c.is_whitespace()).collect();
    if squeezed.contains(['/', '-', '\u{2013}']) && squeezed.len() < trimmed.len() {
        // White space around what joins two parts.
        if parse(&squeezed).is_ok() {
            return Some(meant(&squeezed));
        }
        if let Some(help) = range_form(&squeezed, sign, place) {
            return Some(help);
        }
    }
    let mut parts = trimmed.split([',', ';', ' ', '\t']).map(str::trim).filter(|p| !p.is_empty());
    if parts.clone().count() > 1 && parts.all(|part| parse(part).is_ok()) {
        return Some(match place {
            Place::Line => "write one address or prefix a line".to_owned(),
            Place::Rule | Place::Set => "write several addresses as several strings".to_owned(),
        });
    }
    if let Some((address, has_port)) = beside_port(trimmed) {
        return Some(match place {
            Place::Rule if has_port => {
                format!("{} Ports go into `src_port` and `dst_port`", meant(&address))
            }
            _ => meant(&address),
        });
    }
    if let Some((address, zone)) = trimmed.split_once('%')
        && let Ok(address) = address.parse::<Ipv6Addr>()
    {
        let prefix_len = zone.split_once('/').map_or("", |(_, len)| len);
        let prefix = format!("{address}/{prefix_len}");
        let prefix = parse(&prefix).map_or(address.to_string(), |_| prefix);
        return Some(match place {
            Place::Rule => {
                format!("{} An interface goes into `interface`", meant(&prefix))
            }
            Place::Set | Place::Line => meant(&prefix),
        });
    }
    if let Some(help) = range_form(trimmed, sign, place) {
        return Some(help);
    }
    if let Some(prefix) = short_form(trimmed) {
        return Some(meant(&bare(prefix)));
    }
    if is_mac(trimmed) {
        return Some("MAC addresses cannot be matched".to_owned());
    }
    if is_host_name(trimmed) {
        return Some("the names of hosts are not looked up: write their addresses".to_owned());
    }
    None
}

/// The prefix that is meant by an address with a bad prefix length: a netmask, a wildcard mask,
/// leading zeros.
fn length_form(text: &str) -> Option<String> {
    let (address, written) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let len = match written.trim().parse::<IpAddr>() {
        Ok(IpAddr::V4(mask)) if address.is_ipv4() => {
            let mask = mask.to_bits();
            // A mask has its ones first, a wildcard mask its zeros.
            let ones = if mask.leading_ones() > 0 { mask } else { !mask };
            let len = ones.leading_ones();
            (ones.count_ones() == len).then(|| u8::try_from(len).ok())??
        }
        Ok(IpAddr::V6(mask)) if address.is_ipv6() => {
            let mask = mask.to_bits();
            let len = mask.leading_ones();
            (mask.count_ones() == len).then(|| u8::try_from(len).ok())??
        }
        _ => {
            let digits = written.trim().trim_start_matches('0');
            if !is_number(written.trim()) {
                return None;
            }
            if digits.is_empty() { 0 } else { digits.parse().ok()? }
        }
    };
    Some(IpNet::new(address, len).ok()?.trunc().to_string())
}

/// Reads a prefix length: a number of at most three digits, without sign or leading zeros.
fn parse_len(text: &str) -> Option<u8> {
    let is_plain = is_number(text) && (text.len() == 1 || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// The address of `10.0.0.1:80`, `[2001:db8::1]:80`, `[2001:db8::1]` or `[2001:db8::]/32`, and
/// whether there is a port.
fn beside_port(text: &str) -> Option<(String, bool)> {
    let (address, rest) = match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => text.split_at(text.find(':')?),
    };
    let has_port = rest.strip_prefix(':').is_some_and(is_number);
    let is_prefix = rest.starts_with('/') || rest.is_empty();
    let prefix = if is_prefix { format!("{address}{rest}") } else { address.to_owned() };
    ((has_port || is_prefix) && parse(&prefix).is_ok()).then_some((prefix, has_port))
}

/// How to write `10.0.0.0-10.0.0.255`.
fn range_form(text: &str, sign: &str, place: Place) -> Option<String> {
    const MOST: usize = 4; // prefixes that are suggested
    let (first, last) = text.split_once(['-', '\u{2013}'])?;
    let first: IpAddr = first.trim().parse().ok()?;
    let last = last.trim();
    let last: IpAddr = match first {
        // The last byte alone is common.
        IpAddr::V4(v4) if is_number(last) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, last.parse().ok()?).into()
        }
        _ => last.parse().ok()?,
    };
    let mut prefixes: Vec<IpNet> = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            Ipv4Subnets::new(first, last, 0).map(IpNet::from).take(MOST + 1).collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            Ipv6Subnets::new(first, last, 0).map(IpNet::from).take(MOST + 1).collect()
        }
        _ => return Some("write ranges as prefixes".to_owned()),
    };
    if prefixes.len() > MOST {
        return Some("write ranges as prefixes".to_owned());
    }
    let last = prefixes.pop()?;
    let listed: Vec<String> =
        prefixes.into_iter().map(|prefix| quoted(sign, &bare(prefix), place)).collect();
    let last = quoted(sign, &bare(last), place);
    Some(if listed.is_empty() {
        did_you_mean(&last)
    } else {
        format!("write ranges as prefixes: {} and {last}", listed.join(", "))
    })
}

/// An IPv4 prefix with bytes left out (`10/8`, `10.0.0/24`), starred (`10.0.*`), or with leading
/// zeros (`010.000.000.001`).
fn short_form(text: &str) -> Option<IpNet> {
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(parse_len(len)?)),
        None => (text, None),
    };
    let parts: Vec<&str> = address.trim_end_matches('.').split('.').collect();
    let is_star = |part: &&str| matches!(*part, "*" | "x" | "X");
    let known = parts.iter().take_while(|part| !is_star(part)).count();
    if known == 0 || parts.len() > 4 || !parts[known..].iter().all(is_star) {
        return None;
    }
    let mut bytes = [0; 4];
    for (byte, part) in bytes.iter_mut().zip(&parts[..known]) {
        *byte = is_number(part).then(|| part.parse().ok())??;
    }
    let implied = u8::try_from(8 * known).ok()?;
    let has_less = known < 4 && (known < parts.len() || address.ends_with('.'));
    let len = match len {
        Some(len) => len,
        None if known == 4 || has_less => implied,
        None => return None, // `10.1` may mean anything
    };
    let prefix = Ipv4Net::new(bytes.into(), len).ok()?.trunc();
    Some(prefix.into())
}

/// A prefix as it is best written: an address where it is one.
#[must_use]
pub fn bare(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// How an entry is to be written.
fn quoted(sign: &str, what: &dyn fmt::Display, place: Place) -> String {
    match place {
        Place::Rule | Place::Set => format!("\"{sign}{what}\""),
        Place::Line => format!("`{sign}{what}`"),
    }
}

fn is_mac(text: &str) -> bool {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    [':', '-'].iter().any(|&c| text.split(c).count() == 6 && text.split(c).all(is_byte))
}

fn is_host_name(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes().all(is_fine)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn shown(file: &PrefixFile) -> Vec<String> {
        file.prefixes.iter().map(|&prefix| bare(prefix)).collect()
    }

    fn wrong_lines(file: &PrefixFile) -> Vec<usize> {
        file.wrong.iter().map(|(line, _)| *line).collect()
    }

    #[test]
    fn one_prefix() {
        use PrefixFault::{HostBits, Length, NoAddress};
        let host_bits = |meant: &str| Err(HostBits(meant.parse().unwrap()));
        for (text, expected) in [
            ("0.0.0.0", Ok("0.0.0.0/32")),
            ("255.255.255.255", Ok("255.255.255.255/32")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.0.0.1/32", Ok("10.0.0.1/32")),
            ("::", Ok("::/128")),
            ("::/0", Ok("::/0")),
            ("2001:DB8::/32", Ok("2001:db8::/32")),
            ("::ffff:192.0.2.1", Ok("::ffff:c000:201/128")),
            ("10.0.0.1/31", host_bits("10.0.0.0/31")),
            ("255.255.255.255/0", host_bits("0.0.0.0/0")),
            ("2001:db8::1/127", host_bits("2001:db8::/127")),
            ("10.0.0.0/33", Err(Length(32))),
            ("10.0.0.0/256", Err(Length(32))),
            ("10.0.0.0/", Err(Length(32))),
            ("10.0.0.0/+8", Err(Length(32))),
            ("10.0.0.0/08", Err(Length(32))),
            ("10.0.0.0/8 ", Err(Length(32))),
            ("::/129", Err(Length(128))),
            ("::/0128", Err(Length(128))),
            ("", Err(NoAddress)),
            ("/", Err(NoAddress)),
            ("10.0.0", Err(NoAddress)),
            ("10.0.0.01", Err(NoAddress)),
            (" 10.0.0.1", Err(NoAddress)),
            ("fe80::1%eth0", Err(NoAddress)),
            ("[::1]", Err(NoAddress)),
            ("\u{661}0.0.0.1", Err(NoAddress)),
        ] {
            let expected = expected.map(|text| text.parse::<IpNet>().unwrap());
            assert_eq!(parse(text), expected, "{text:?}");
        }
        assert_eq!(parse(&"1".repeat(1 << 20)), Err(NoAddress));
        assert!(parse("abcd:abcd:abcd:abcd:abcd:abcd:192.168.100.100/128").is_ok());
    }

    #[test]
    fn files() {
        for (content, expected) in [
            ("", &[][..]),
            ("\u{feff}", &[]),
            ("\n\r\n \t\n#\n # 10.0.0.1\n#10.0.0.1", &[]),
            ("10.0.0.1", &["10.0.0.1"]),
            ("\u{feff}10.0.0.1\r\n", &["10.0.0.1"]),
            ("\t10.0.0.0/8 \r\n::1#x\r\n192.0.2.1 # y # z", &["10.0.0.0/8", "::1", "192.0.2.1"]),
            ("::1\n::1\n::/0\n", &["::1", "::1", "::/0"]),
        ] {
            let file = parse_file(content.as_bytes());
            assert_eq!(shown(&file), expected, "{content:?}");
            assert_eq!((file.count, file.wrong_count), (expected.len(), 0));
        }
        // Comments may be in whatever encoding.
        let file = parse_file(b"10.0.0.1 # f\xfcr\n# \xff\xfe\x00\n");
        assert_eq!((shown(&file), file.wrong_count), (vec!["10.0.0.1".to_owned()], 0));
    }

    #[test]
    fn wrong_lines_have_their_numbers() {
        let file =
            parse_file(b"x\n\n::1\n# y\r\n10.0.0.1/8 # z\n\xef\xbb\xbf::1\n::1 ::2\n\x00\n::2");
        assert_eq!(wrong_lines(&file), [1, 5, 6, 7, 8]);
        assert_eq!((file.wrong_count, shown(&file)), (5, vec!["::1".into(), "::2".into()]));
        let hints: Vec<_> = file.wrong.iter().map(|(_, found)| found.help.as_deref()).collect();
        assert_eq!(
            hints,
            [
                Some("the names of hosts are not looked up: write their addresses"),
                Some("did you mean `10.0.0.0/8`, or `10.0.0.1` for the one address?"),
                None,
                Some("write one address or prefix a line"),
                None,
            ]
        );
    }

    #[test]
    fn files_that_are_none() {
        // One line of the greatest length.
        let file = parse_file(&vec![b'1'; 32 << 20]);
        assert_eq!((wrong_lines(&file), file.count), (vec![1], 0));
        assert!(file.wrong[0].1.message.len() < 100, "{}", file.wrong[0].1.message);
        // Many lines.
        let file = parse_file(&b"1\n".repeat(1 << 20));
        assert_eq!((file.wrong.len(), file.wrong_count), (MAX_TOLD, 1 << 20));
        // UTF-16 in either order of bytes.
        for content in [b"\xff\xfe1\0", b"\xfe\xff\x001"] {
            let file = parse_file(content);
            assert_eq!(file.wrong[0].1.message, "the file is UTF-16 text");
            assert_eq!((file.wrong_count, file.count), (1, 0));
        }
    }

    #[test]
    fn a_file_may_be_too_long() {
        let mut content = String::new();
        for number in 0..MAX_PREFIXES as u32 {
            writeln!(content, "{}", Ipv4Addr::from(number)).unwrap();
        }
        let file = parse_file(content.as_bytes());
        assert_eq!((file.count, file.prefixes.len()), (MAX_PREFIXES, MAX_PREFIXES));
        content.push_str("::1\n::2");
        let file = parse_file(content.as_bytes());
        assert_eq!((file.count, file.prefixes.len()), (MAX_PREFIXES + 2, MAX_PREFIXES));
    }

    #[test]
    fn addresses_of_ipv4_in_ipv6() {
        for (text, expected) in [
            ("::ffff:192.0.2.1", Some("192.0.2.1/32")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:0:0/96", None),
            ("::ffff:0:0/95", None),
            ("::/0", None),
            ("::192.0.2.1", None),
            ("192.0.2.1", None),
        ] {
            // With host bits there is none, as `/95` shows.
            let prefix: IpNet =
                text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
            assert_eq!(
                mapped(prefix).map(|prefix| prefix.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }

    fn any_prefix() -> impl Strategy<Value = IpNet> {
        (any::<IpAddr>(), any::<u8>()).prop_map(|(address, len)| {
            let greatest = IpNet::from(address).max_prefix_len();
            IpNet::new(address, len % (greatest + 1)).unwrap().trunc()
        })
    }

    /// Pieces of lines, right and wrong ones.
    const PIECES: &[&str] = &[
        "10", ".", "0", "/", "8", "255", "::", ":", "1", "db8", "[", "]", "%", "-", "\u{2013}",
        "!", "@", "#", ";", ",", " ", "*", "x", "\u{e4}", "10.0.0.0", "::1",
    ];

    proptest! {
        #[test]
        fn prefixes_survive_being_written_and_read(prefix in any_prefix()) {
            prop_assert_eq!(parse(&prefix.to_string()), Ok(prefix));
            prop_assert_eq!(parse(&bare(prefix)), Ok(prefix));
        }

        /// What is read is what the library reads, and what is refused has no host bits left.
        #[test]
        fn others_read_the_same(address: IpAddr, len in 0..140_u8) {
            let text = format!("{address}/{len}");
            let other = text.parse::<IpNet>().ok();
            match parse(&text) {
                Ok(prefix) => prop_assert_eq!(Some(prefix), other),
                Err(PrefixFault::HostBits(meant)) => {
                    prop_assert_eq!(Some(meant), other.map(|other| other.trunc()));
                    prop_assert_ne!(Some(meant), other);
                }
                Err(_) => prop_assert_eq!(None, other),
            }
        }

        #[test]
        fn files_survive_being_written_and_read(
            lines in prop::collection::vec((prop::option::of(any_prefix()), 0..4_usize), 0..20),
        ) {
            let mut text = String::new();
            for (prefix, form) in &lines {
                let prefix = prefix.map(bare).unwrap_or_default();
                let ends = ["\n", "\r\n", " # a comment\n", "\t#\r\n"];
                text += &format!("{}{prefix}{}", &"   "[..*form], ends[*form]);
            }
            let file = parse_file(text.as_bytes());
            let expected: Vec<IpNet> = lines.into_iter().filter_map(|(prefix, _)| prefix).collect();
            prop_assert_eq!(file.count, expected.len());
            prop_assert_eq!(file.prefixes, expected);
            prop_assert_eq!(file.wrong_count, 0);
        }

        #[test]
        fn no_text_panics(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 0..8),
            any_text: String,
            bytes: Vec<u8>,
        ) {
            for text in [pieces.concat(), any_text] {
                for place in [Place::Rule, Place::Set, Place::Line] {
                    if let Err(fault) = parse(&text) {
                        let found = complain(&text, fault, "!", place);
                        prop_assert!(!found.message.contains('\n'));
                    }
                }
                let file = parse_file(text.as_bytes());
                prop_assert!(file.count + file.wrong_count <= text.split('\n').count());
            }
            let file = parse_file(&bytes);
            prop_assert_eq!(file.count, file.prefixes.len());
        }

        /// Whatever a range or a short form is said to mean can be written like that.
        #[test]
        fn what_is_suggested_is_right(first: u32, len in 0..64_u32) {
            let last = Ipv4Addr::from(first.saturating_add(len));
            let first = Ipv4Addr::from(first);
            let help = range_form(&format!("{first}-{last}"), "", Place::Set).expect("a range");
            let suggested: Vec<IpNet> =
                help.split('"').skip(1).step_by(2).map(|text| parse(text).unwrap()).collect();
            if !suggested.is_empty() {
                let range = u32::from(first)..=u32::from(last);
                let is_suggested = |address: u32| {
                    let address = IpAddr::from(Ipv4Addr::from(address));
                    suggested.iter().any(|prefix| prefix.contains(&address))
                };
                prop_assert!(range.clone().all(is_suggested));
                let hosts: u64 =
                    suggested.iter().map(|prefix| 1 << (32 - prefix.prefix_len())).sum();
                prop_assert_eq!(hosts, range.count() as u64);
            }
        }
    }
}
