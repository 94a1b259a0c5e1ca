//! Prefixes that are looked for in a large file.
//!
//! Reading a million lines as prefixes takes a quarter of a second. Most of them are none that is
//! looked for, and that can be told without asking whether they are right.

use std::collections::HashSet;

use ipnet::IpNet;
use memchr::memchr;

use crate::policy::prefixes;

/// The prefixes that are looked for.
#[derive(Debug)]
pub(super) struct Wanted {
    prefixes: HashSet<IpNet>,
    /// A bit for each [slot](Self::slot) that has any.
    bits: Vec<u64>,
    /// How far hashes are shifted right to make a slot's number.
    shift: u32,
}

impl Wanted {
    pub(super) fn new(list: &[IpNet]) -> Self {
        const SLOTS: std::ops::RangeInclusive<u32> = 12..=24; // as powers of two
        // Sixteen for each, so that few others hit one.
        let slots =
            (list.len() * 16).next_power_of_two().ilog2().clamp(*SLOTS.start(), *SLOTS.end());
        let mut wanted = Self {
            prefixes: list.iter().copied().collect(),
            bits: vec![0; 1 << (slots - 6)],
            shift: u64::BITS - slots,
        };
        for &prefix in list {
            let slot = wanted.slot(key(prefix));
            wanted.bits[slot / 64] |= 1 << (slot % 64);
        }
        wanted
    }

    /// How many there are; repetitions count once.
    pub(super) fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// What stands on a line of a file, if it is looked for.
    #[inline]
    pub(super) fn find(&self, line: &[u8]) -> Option<IpNet> {
        if let Some(key) = key_of_text(line.trim_ascii_start())
            && !self.has(key)
        {
            return None;
        }
        prefix_on(line).filter(|prefix| self.prefixes.contains(prefix))
    }

    fn has(&self, key: u128) -> bool {
        let slot = self.slot(key);
        self.bits[slot / 64] >> (slot % 64) & 1 == 1
    }

    fn slot(&self, key: u128) -> usize {
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 over the golden ratio
        let (upper, lower) = ((key >> 64) as u64, key as u64);
        let hash = (upper.wrapping_mul(SPREAD).rotate_left(32) ^ lower).wrapping_mul(SPREAD);
        (hash >> self.shift) as usize
    }
}

/// What stands on a line of a file, if it is a prefix.
pub(super) fn prefix_on(line: &[u8]) -> Option<IpNet> {
    let entry = memchr(b'#', line).map_or(line, |comment| &line[..comment]).trim_ascii();
    prefixes::parse(str::from_utf8(entry).ok()?).ok()
}

/// An address as a number.
fn key(prefix: IpNet) -> u128 {
    match prefix {
        IpNet::V4(prefix) => prefix.addr().to_bits().into(),
        IpNet::V6(prefix) => prefix.addr().to_bits(),
    }
}

/// The [`key`] of the prefix that a text begins with; anything if it begins with none. `None` if it
/// takes more than a look to tell.
#[inline]
fn key_of_text(text: &[u8]) -> Option<u128> {
    let (mut groups, mut count) = (0_u128, 0_u32);
    let mut before_gap = None; // the groups before `::`, and how many they are
    let (mut group, mut has_digits) = (0_u128, false);
    for (index, &byte) in text.iter().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b':' if has_digits => {
                (groups, count) = (groups << 16 | group, count + 1);
                (group, has_digits) = (0, false);
                continue;
            }
            b':' if index == 0 => continue,
            b':' => {
                before_gap = Some((groups, count));
                (groups, count) = (0, 0);
                continue;
            }
            b'.' if count == 0 && before_gap.is_none() => return Some(key_of_v4(text).into()),
            b'.' => return None, // an IPv6 address that ends in an IPv4 one
            _ => break,
        };
        (group, has_digits) = (group << 4 | u128::from(digit), true);
    }
    if has_digits {
        groups = groups << 16 | group;
    }
    let Some((first, count)) = before_gap else { return Some(groups) };
    let last_count = 8_u32.checked_sub(count)?;
    Some(first.checked_shl(16 * last_count).unwrap_or(0) | groups)
}

/// The IPv4 address that a text begins with.
#[inline]
fn key_of_v4(text: &[u8]) -> u32 {
    let (mut address, mut part) = (0_u32, 0_u32);
    for &byte in text {
        match byte {
            b'0'..=b'9' => part = part.wrapping_mul(10).wrapping_add(u32::from(byte - b'0')),
            b'.' => (address, part) = (address << 8 | part & 0xff, 0),
            _ => break,
        }
    }
    address << 8 | part & 0xff
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys() {
        for (text, expected) in [
            ("10.0.0.1", Some(0x0a00_0001)),
            ("10.0.0.1/32 # x", Some(0x0a00_0001)),
            ("255.255.255.255", Some(0xffff_ffff)),
            ("2001:DB8:0:01:2::", Some(0x2001_0db8_0000_0001_0002 << 48)),
            ("2001:db8::/32", Some(0x2001_0db8 << 96)),
            ("2001:db8::1/128", Some(0x2001_0db8 << 96 | 1)),
            ("1:2:3:4:5:6:7:8\r", Some(0x0001_0002_0003_0004_0005_0006_0007_0008)),
            ("::", Some(0)),
            ("::1", Some(1)),
            ("::2:1", Some(0x2_0001)),
            ("1:2:3:4:5:6:7::", Some(0x0001_0002_0003_0004_0005_0006_0007_0000)),
            ("::ffff:10.0.0.1", None),
            ("::ffff:a00:1", Some(0xffff_0a00_0001)),
            ("1:1:1:1:1:1:1:1:1::", None),
            ("", Some(0)),
            ("- x", Some(0)),
        ] {
            assert_eq!(key_of_text(text.as_bytes()), expected, "{text}");
        }
    }

    /// Texts of the same address: in full, with zeros, in capitals, and with every run of zeros as
    /// `::`.
    fn forms(address: Ipv6Addr) -> Vec<String> {
        let groups = address.segments();
        let join = |groups: &[u16]| {
            groups.iter().map(|group| format!("{group:x}")).collect::<Vec<_>>().join(":")
        };
        let mut forms =
            vec![address.to_string(), address.to_string().to_uppercase(), join(&groups)];
        forms.push(groups.map(|group| format!("{group:04X}")).join(":"));
        let [.., a, b] = groups;
        forms.push(format!(
            "{}:{}",
            join(&groups[..6]),
            Ipv4Addr::from(u32::from(a) << 16 | u32::from(b))
        ));
        for start in 0..8 {
            for end in start + 1..=8 {
                if groups[start..end].iter().all(|&group| group == 0) {
                    forms.push(format!("{}::{}", join(&groups[..start]), join(&groups[end..])));
                }
            }
        }
        forms
    }

    proptest! {
        #[test]
        fn no_form_is_missed(
            groups in prop::collection::vec(prop_oneof![Just(0_u16), 0..3_u16, any::<u16>()], 8),
            len in 0_u8..=128,
            v4: u32,
            before in "[ \t]{0,2}",
            after in "[ \t]{0,2}(#.*)?[\r]?",
        ) {
            let groups: [u16; 8] = groups.try_into().unwrap();
            let prefix = IpNet::new(Ipv6Addr::from(groups).into(), len).unwrap().trunc();
            let v4 = IpNet::new(Ipv4Addr::from(v4).into(), len / 4).unwrap().trunc();
            let IpNet::V6(v6) = prefix else { unreachable!() };
            let mut texts: Vec<_> =
                forms(v6.addr()).into_iter().map(|text| (prefix, format!("{text}/{len}"))).collect();
            if len == 128 {
                texts.extend(forms(v6.addr()).into_iter().map(|text| (prefix, text)));
            }
            texts.extend([(v4, v4.to_string()), (v4, prefixes::bare(v4))]);
            for (prefix, text) in texts {
                prop_assert_eq!(prefixes::parse(&text), Ok(prefix));
                let line = format!("{before}{text}{after}");
                prop_assert_eq!(Wanted::new(&[prefix]).find(line.as_bytes()), Some(prefix), "{}", line);
                let other: IpNet = "192.0.2.255/32".parse().unwrap();
                prop_assert_eq!(Wanted::new(&[other]).find(line.as_bytes()), (prefix == other).then_some(other));
            }
        }

        #[test]
        fn no_line_panics(line in prop_oneof!["[0-9a-fA-F:./# \t]{0,60}", any::<String>()]) {
            Wanted::new(&["::/0".parse().unwrap()]).find(line.as_bytes());
        }
    }
}
