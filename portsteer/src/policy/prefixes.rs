//! IP addresses and prefixes as text: one of them, and a whole file of them.
//!
//! A file has one address or prefix a line. `#` starts a comment, also behind an entry; blank
//! lines, white space around an entry, CRLF and a UTF-8 byte order mark are fine. Reading one takes
//! time in proportion to its length and a bounded amount of memory, whatever is in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Subnets};

use super::file::{did_you_mean, is_number, quote};

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
    let meant = |what: &dyn std::fmt::Display| quoted(sign, what);
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

/// How to write what looks like addresses in another notation.
fn form(text: &str, sign: &str, place: Place) -> Option<String> {
    if text.len() > 4 * MAX_LEN {
        return None;
    }
    let meant = |what: &dyn std::fmt::Display| did_you_mean(&quoted(sign, what));
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
        if let Some(help) = range_form(&squeezed, sign) {
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
    if let Some(address) = beside_port(trimmed) {
        return Some(match place {
            Place::Rule if !trimmed.ends_with(']') => {
                format!("{} Ports are `src_port` and `dst_port`", meant(&address))
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
                format!("{} Interfaces are `interface`", meant(&prefix))
            }
            Place::Set | Place::Line => meant(&prefix),
        });
    }
    if let Some(help) = range_form(trimmed, sign) {
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

/// The address of `10.0.0.1:80`, `[2001:db8::1]:80`, `[2001:db8::1]` or `[10.0.0.0/8]`.
fn beside_port(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        if let Some(len) = rest.strip_prefix('/') {
            let prefix = format!("{address}/{len}");
            return parse(&prefix).is_ok().then_some(prefix);
        }
        let is_port = rest.strip_prefix(':').is_some_and(is_number);
        return ((rest.is_empty() || is_port) && parse(address).is_ok())
            .then(|| address.to_owned());
    }
    let (address, port) = text.split_once(':')?;
    (is_number(port) && address.parse::<Ipv4Addr>().is_ok()).then(|| address.to_owned())
}

/// How to write `10.0.0.0-10.0.0.255`.
fn range_form(text: &str, sign: &str) -> Option<String> {
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
        prefixes.into_iter().map(|prefix| quoted(sign, &bare(prefix))).collect();
    let last = quoted(sign, &bare(last));
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
    if known == 0 || parts.len() > 4 || !parts[known..].iter().all(|part| is_star(&part)) {
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
fn bare(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

fn quoted(sign: &str, what: &dyn std::fmt::Display) -> String {
    format!("\"{sign}{what}\"")
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
