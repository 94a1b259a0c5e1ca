//! Edits of a set's file: one address or prefix a line.

use std::{collections::HashSet, ops::Range};

use ipnet::IpNet;
use memchr::memchr_iter;

use super::{
    Edit, EditError, check_prefixes, newline,
    sets::not_in_set,
    wanted::{Wanted, prefix_on},
};
use crate::policy::prefixes;

/// Edits the content of a set's file. New prefixes come last, a line for each; one that is removed
/// takes its lines along, with the comments on them. Lines that are no prefixes stay.
///
/// # Errors
///
/// A prefix that is to be removed is no entry of the file, or the edit is not about prefixes. Nothing
/// is to be changed then.
pub fn edit_set_file(content: &[u8], edit: &Edit) -> Result<Vec<u8>, EditError> {
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err(EditError::Utf16);
    }
    match edit {
        Edit::AddPrefixes { prefixes, .. } => add(content, prefixes),
        Edit::RemovePrefixes { set, prefixes } => remove(content, set, prefixes),
        Edit::AddRule { .. } | Edit::RemoveRule { .. } | Edit::MoveRule { .. } => {
            Err(EditError::NoPrefixes)
        }
    }
}

fn add(content: &[u8], new: &[IpNet]) -> Result<Vec<u8>, EditError> {
    check_prefixes(new)?;
    let wanted = Wanted::new(new);
    let mut known: HashSet<IpNet> =
        lines(content).filter_map(|line| wanted.find(&content[line])).collect();
    let newline = newline(content);
    let added: String = new
        .iter()
        .filter(|&&prefix| known.insert(prefix))
        .map(|&prefix| prefixes::bare(prefix) + newline)
        .collect();
    let mut edited = Vec::with_capacity(content.len() + newline.len() + added.len());
    edited.extend_from_slice(content);
    if added.is_empty() {
        return Ok(edited);
    }
    let has_end = content.is_empty() || content.ends_with(b"\n");
    if has_end {
        edited.extend_from_slice(added.as_bytes());
    } else {
        edited.extend_from_slice(newline.as_bytes());
        edited.extend_from_slice(&added.as_bytes()[..added.len() - newline.len()]);
    }
    Ok(edited)
}

/// Takes prefixes out of a set's file, as far as it has them, and then puts others in: what a number of edits
/// comes to, in one pass each.
///
/// # Errors
///
/// The file is UTF-16, or a prefix has host bits. Nothing is to be changed then.
pub fn change_set_file(
    content: &[u8],
    gone: &[IpNet],
    new: &[IpNet],
) -> Result<Vec<u8>, EditError> {
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err(EditError::Utf16);
    }
    check_prefixes(gone)?;
    let (rest, _) = take_out(content, &Wanted::new(gone));
    add(&rest, new)
}

fn remove(content: &[u8], set: &str, gone: &[IpNet]) -> Result<Vec<u8>, EditError> {
    check_prefixes(gone)?;
    let wanted = Wanted::new(gone);
    let (edited, found) = take_out(content, &wanted);
    if found.len() < wanted.len() {
        let entries = lines(content).filter_map(|line| prefix_on(&content[line]));
        return Err(not_in_set(set, gone, &found, entries));
    }
    Ok(edited)
}

/// The content without the lines that have one of these prefixes, and the prefixes that it had.
fn take_out(content: &[u8], wanted: &Wanted) -> (Vec<u8>, HashSet<IpNet>) {
    let mut found = HashSet::with_capacity(wanted.len());
    let mut edited = Vec::with_capacity(content.len());
    let mut done = 0; // what is before this byte was kept or left out
    for line in lines(content) {
        if let Some(prefix) = wanted.find(&content[line.clone()]) {
            found.insert(prefix);
            edited.extend_from_slice(&content[done..line.start]);
            done = line.end;
        }
    }
    edited.extend_from_slice(&content[done..]);
    if !content.ends_with(b"\n")
        && done == content.len()
        && edited.pop_if(|byte| *byte == b'\n').is_some()
    {
        // The last line has no end, whichever it is.
        edited.pop_if(|byte| *byte == b'\r');
    }
    (edited, found)
}

/// The lines of a file with their ends, as bytes of it; without a byte order mark.
fn lines(content: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = if content.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let ends = memchr_iter(b'\n', content).map(|newline| newline + 1).chain([content.len()]);
    ends.map(move |end| std::mem::replace(&mut start, end)..end).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Instant};

    use proptest::prelude::*;

    use super::{super::parse_prefix, *};

    fn prefixes_of(texts: &str) -> Vec<IpNet> {
        texts.split_whitespace().map(|text| parse_prefix(text).unwrap()).collect()
    }

    fn added(content: &str, texts: &str) -> String {
        let edit = Edit::AddPrefixes { set: "x".to_owned(), prefixes: prefixes_of(texts) };
        String::from_utf8(edit_set_file(content.as_bytes(), &edit).unwrap()).unwrap()
    }

    fn removed(content: &str, texts: &str) -> Result<String, String> {
        let edit = Edit::RemovePrefixes { set: "x".to_owned(), prefixes: prefixes_of(texts) };
        match edit_set_file(content.as_bytes(), &edit) {
            Ok(content) => Ok(String::from_utf8(content).unwrap()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn prefixes_come_and_go() {
        for (content, texts, expected) in [
            ("", "::1 10.0.0.1/32", "::1\n10.0.0.1\n"),
            ("::1", "::2", "::1\n::2"),
            ("\u{feff}::1\r\n", "::2 ::3", "\u{feff}::1\r\n::2\r\n::3\r\n"),
            ("::1\r\n # 1\r\n10.0.0.0/8", "::2", "::1\r\n # 1\r\n10.0.0.0/8\r\n::2"),
            ("# none", "::2", "# none\n::2"),
            ("# none\n\n", "::2", "# none\n\n::2\n"),
            ("::1\nnonsense\n", "::2", "::1\nnonsense\n::2\n"),
        ] {
            assert_eq!(added(content, texts), expected);
            assert_eq!(added(expected, texts), expected);
            assert_eq!(removed(expected, texts).unwrap(), content);
        }
        assert_eq!(added("0::1/128\n", "::1 ::2 ::2"), "0::1/128\n::2\n");
        let content = "# a\n10.0.0.1 # b\n\n\t10.0.0.1/32\r\n0:0::1\n10.0.0.0/8\n# c\n::2";
        assert_eq!(removed(content, "10.0.0.1 ::1").unwrap(), "# a\n\n10.0.0.0/8\n# c\n::2");
        assert_eq!(removed(content, "::2 ::2").unwrap(), content[..content.len() - 4].to_owned());
        assert_eq!(
            removed(content, "10.0.0.1 10.0.0.2 ::3").unwrap_err(),
            "the set `x` does not have `10.0.0.2` (only as part of `10.0.0.0/8`), `::3`: \
             an entry can only be removed whole: remove it, and add what shall stay"
        );
    }

    #[test]
    fn what_cannot_be_edited() {
        let edit = Edit::AddPrefixes { set: "x".to_owned(), prefixes: Vec::new() };
        assert_eq!(edit_set_file(b"\xff\xfe1\0", &edit), Err(EditError::Utf16));
        assert_eq!(edit_set_file(b"# caf\xe9", &edit), Ok(b"# caf\xe9".to_vec()));
        let edit = Edit::RemoveRule { rule: "web".parse().unwrap() };
        assert_eq!(edit_set_file(b"", &edit), Err(EditError::NoPrefixes));
    }

    proptest! {
        #[test]
        fn an_edit_means_what_it_says(
            lines in prop::collection::vec("(10\\.0\\.0\\.[0-3](/32)?|10\\.0\\.0\\.0/(8|30)|0?::[0-3])?[ \t]?(# [a-z]?)?", 0..12),
            (has_end, has_crlf) in any::<(bool, bool)>(),
            new in prop::collection::vec(0..6_u8, 0..4),
        ) {
            let newline = if has_crlf { "\r\n" } else { "\n" };
            let content = lines.join(newline) + if has_end { newline } else { "" };
            let new: Vec<IpNet> =
                new.iter().map(|last| format!("10.0.0.{last}/32").parse().unwrap()).collect();
            let old = prefixes::parse_file(content.as_bytes());
            prop_assert_eq!(old.wrong_count, 0);
            let edit = Edit::AddPrefixes { set: "x".to_owned(), prefixes: new.clone() };
            let added = edit_set_file(content.as_bytes(), &edit).unwrap();
            let mut expected = old.prefixes.clone();
            for &prefix in &new {
                if !expected.contains(&prefix) {
                    expected.push(prefix);
                }
            }
            prop_assert_eq!(prefixes::parse_file(&added).prefixes, expected);
            prop_assert!(added.starts_with(content.as_bytes()));

            let edit = Edit::RemovePrefixes { set: "x".to_owned(), prefixes: new.clone() };
            let removed = edit_set_file(&added, &edit).unwrap();
            let mut expected = old.prefixes.clone();
            expected.retain(|prefix| !new.contains(prefix));
            prop_assert_eq!(prefixes::parse_file(&removed).prefixes, expected);
            if new.iter().all(|prefix| !old.prefixes.contains(prefix)) {
                prop_assert_eq!(removed, content.as_bytes());
            }
            let result = edit_set_file(content.as_bytes(), &edit);
            let has_all = new.iter().all(|prefix| old.prefixes.contains(prefix));
            prop_assert_eq!(result.is_ok(), has_all);
        }
    }

    /// For a look at the time, with `--release --nocapture`.
    #[test]
    fn large_files() {
        let v4 = |index: u32| IpNet::new(std::net::Ipv4Addr::from(index * 64).into(), 27).unwrap();
        let v6 = |index: u32| {
            let address = (0x2001_0db8 << 96) + (u128::from(index) << 40);
            IpNet::new(std::net::Ipv6Addr::from(address).into(), 96).unwrap()
        };
        let makers: [&dyn Fn(u32) -> IpNet; 2] = [&v4, &v6];
        let count = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
        for make in makers {
            let content: String = (0..count).map(|index| format!("{}\n", make(index))).collect();
            let new: Vec<IpNet> = (0..1_000).map(|index| make(2_000_000 + index)).collect();
            let start = Instant::now();
            let edit = Edit::AddPrefixes { set: "x".to_owned(), prefixes: new };
            let edited = edit_set_file(content.as_bytes(), &edit).unwrap();
            let adding = start.elapsed();
            assert_eq!(
                edited.iter().filter(|&&byte| byte == b'\n').count(),
                count as usize + 1_000
            );
            let gone: HashSet<IpNet> = (0..1_000).map(|index| make(index * 97)).collect();
            let edit =
                Edit::RemovePrefixes { set: "x".to_owned(), prefixes: gone.into_iter().collect() };
            let start = Instant::now();
            let edited = edit_set_file(content.as_bytes(), &edit).unwrap();
            println!("1,000 of {count}: added in {adding:?}, removed in {:?}", start.elapsed());
            assert_eq!(
                edited.iter().filter(|&&byte| byte == b'\n').count(),
                count as usize - 1_000
            );
            assert!(adding.as_secs() < 20, "{adding:?}");
        }
    }
}
