//! Numbers of 16 bits and ranges of them, as ports, CPUs, VLANs and ICMP types are written.

use super::{did_you_mean, is_number, quote};
use crate::policy::{NumberRange, diagnostic::Diagnostic};

/// Why something is no number, nor a range of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RangeFault {
    /// A number beyond 65535 or below 0.
    OutOfRange,
    /// Its two numbers as written.
    Backwards(u16, u16),
    /// Neither number nor range, nor any name that is known.
    Unknown,
}

/// What a string means that is a number or a range of them; `None` if it is neither.
pub(super) fn parse_range(word: &str) -> Option<Result<NumberRange, RangeFault>> {
    // A sign is not part of a number, which may be of any length.
    let number = |digits: &str| digits.parse::<u16>().map_err(|_| RangeFault::OutOfRange);
    if is_number(word) {
        return Some(number(word).map(NumberRange::single));
    }
    let (first, last) = word.split_once('-')?;
    if !is_number(first) || !is_number(last) {
        return None;
    }
    Some(number(first).and_then(|first| match number(last)? {
        last if first <= last => Ok(NumberRange { first, last }),
        last => Err(RangeFault::Backwards(first, last)),
    }))
}

/// How to write what looks like a range in another notation.
pub(super) fn range_form(trimmed: &str, least: &str, greatest: &str) -> Option<String> {
    let separators = ["..=", "..", ":", "-", "\u{2013}", " "];
    let (first, last) = separators.iter().find_map(|separator| trimmed.split_once(separator))?;
    let (first, last) = (first.trim(), last.trim());
    match (is_number(first), is_number(last)) {
        (true, true) => Some(did_you_mean(&format!("\"{first}-{last}\""))),
        (true, false) if last.is_empty() => {
            Some(format!("write both ends: \"{first}-{greatest}\""))
        }
        (false, true) if first.is_empty() => Some(format!("write both ends: \"{least}-{last}\"")),
        _ => None,
    }
}

/// What to say about a range whose ends, as they were written, are in the wrong order.
pub(super) fn runs_backwards(word: &str, turned: &str) -> Diagnostic {
    Diagnostic::error(format!("the range {} runs backwards", quote(word)))
        .label("it ends before it begins")
        .help(did_you_mean(&format!("\"{turned}\"")))
}

/// The ranges in ascending order, neither overlapping nor adjacent.
pub(super) fn merge(mut ranges: Vec<NumberRange>) -> Vec<NumberRange> {
    ranges.sort_unstable();
    let mut merged: Vec<NumberRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_and_adjacent_ranges_are_merged() {
        let range = |&(first, last): &(u16, u16)| NumberRange { first, last };
        for (input, expected) in [
            (&[][..], &[][..]),
            (&[(5, 6), (1, 2)], &[(1, 2), (5, 6)]),
            (&[(3, 4), (1, 2)], &[(1, 4)]),
            (&[(1, 9), (2, 3), (9, 9)], &[(1, 9)]),
            (&[(65_535, 65_535), (0, 65_535), (0, 0)], &[(0, 65_535)]),
        ] {
            let merged = merge(input.iter().map(range).collect());
            assert_eq!(merged, expected.iter().map(range).collect::<Vec<_>>());
        }
    }
}
