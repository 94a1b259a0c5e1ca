//! Changes of a set's file that are kept beside its content: writing a few lines is quicker than writing a
//! million. However many there were, they are kept as one removal and one addition.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::policy::edit::change_set_file;

/// A change of a set's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEdit {
    /// Else they are removed.
    adds: bool,
    /// With a space between: as one text, thousands are read and written in no time.
    prefixes: String,
}

impl FileEdit {
    /// Puts prefixes in, or takes them out.
    #[must_use]
    pub fn new(adds: bool, prefixes: &[IpNet]) -> Self {
        let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        Self { adds, prefixes: texts.join(" ") }
    }

    /// How many prefixes it has.
    pub(super) fn count(&self) -> usize {
        self.prefixes.split_ascii_whitespace().count()
    }

    fn read(&self) -> Result<Vec<IpNet>, String> {
        let prefixes = self.prefixes.split_ascii_whitespace().map(str::parse);
        let prefixes = prefixes.collect::<Result<_, ipnet::AddrParseError>>();
        prefixes.map_err(|error| format!("an edit: {error}"))
    }
}

/// What a number of edits comes to. Of each prefix, the last edit counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// What is taken out of the content first, as far as it is there.
    gone: Vec<IpNet>,
    /// What is put in then, as far as it is not there: also what was taken out and put in again, which stands
    /// last then.
    new: Vec<IpNet>,
}

impl Folded {
    /// Of edits in this order. In words, which cannot be read.
    pub fn of<'e>(edits: impl IntoIterator<Item = &'e FileEdit>) -> Result<Self, String> {
        let mut gone = Vec::new();
        let mut was_gone = HashSet::new();
        let mut new: Vec<Option<IpNet>> = Vec::new();
        // Where each stands in `new`.
        let mut places = HashMap::new();
        for edit in edits {
            for prefix in edit.read()? {
                if edit.adds {
                    places.entry(prefix).or_insert_with(|| {
                        new.push(Some(prefix));
                        new.len() - 1
                    });
                } else {
                    if let Some(place) = places.remove(&prefix) {
                        new[place] = None;
                    }
                    if was_gone.insert(prefix) {
                        gone.push(prefix);
                    }
                }
            }
        }
        Ok(Self { gone, new: new.into_iter().flatten().collect() })
    }

    /// As edits again: no more than two.
    #[must_use]
    pub fn into_edits(self) -> Vec<FileEdit> {
        let edits = [(false, self.gone), (true, self.new)];
        let some = edits.into_iter().filter(|(_, prefixes)| !prefixes.is_empty());
        some.map(|(adds, prefixes)| FileEdit::new(adds, &prefixes)).collect()
    }

    /// The file's content with the changes. What is wrong is said in words.
    pub fn apply(&self, content: &[u8]) -> Result<Vec<u8>, String> {
        change_set_file(content, &self.gone, &self.new).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{
        edit::{Edit, edit_set_file},
        prefixes::parse_file,
    };

    fn prefix(number: u8) -> IpNet {
        format!("10.0.0.{number}/32").parse().unwrap()
    }

    #[test]
    fn of_each_prefix_the_last_edit_counts() {
        let edits = [
            FileEdit::new(true, &[prefix(1), prefix(2)]),
            FileEdit::new(false, &[prefix(1), prefix(3)]),
            FileEdit::new(true, &[prefix(3), prefix(2)]),
        ];
        let folded = Folded::of(&edits).unwrap();
        let content = folded.apply(b"10.0.0.3\n10.0.0.4\n").unwrap();
        assert_eq!(String::from_utf8(content).unwrap(), "10.0.0.4\n10.0.0.2\n10.0.0.3\n");
        let edits = folded.into_edits();
        assert_eq!(
            edits,
            [
                FileEdit::new(false, &[prefix(1), prefix(3)]),
                FileEdit::new(true, &[prefix(2), prefix(3)]),
            ]
        );
        assert!(Folded::of(&[FileEdit { adds: true, prefixes: "no".to_owned() }]).is_err());
    }

    proptest! {
        /// One removal and one addition are what edits one after the other are.
        #[test]
        fn folding_changes_nothing(
            content in prop::collection::vec(0..6_u8, 0..6),
            edits in prop::collection::vec((any::<bool>(), prop::collection::vec(0..6_u8, 1..4)), 0..8),
        ) {
            let content: String = content.iter().map(|&number| format!("{}\n", prefix(number))).collect();
            let mut expected = content.clone().into_bytes();
            let mut kept = Vec::new();
            for (adds, numbers) in edits {
                let set = String::new();
                let prefixes: Vec<IpNet> = numbers.iter().map(|&number| prefix(number)).collect();
                let edit = match adds {
                    true => Edit::AddPrefixes { set, prefixes: prefixes.clone() },
                    false => Edit::RemovePrefixes { set, prefixes: prefixes.clone() },
                };
                // An edit that is refused is not kept.
                if let Ok(edited) = edit_set_file(&expected, &edit) {
                    expected = edited;
                    kept.push(FileEdit::new(adds, &prefixes));
                    kept = Folded::of(&kept).unwrap().into_edits();
                    prop_assert!(kept.len() <= 2);
                }
            }
            let folded = Folded::of(&kept).unwrap().apply(content.as_bytes()).unwrap();
            prop_assert_eq!(parse_file(&folded).prefixes, parse_file(&expected).prefixes);
        }
    }
}
