//! A policy as it was written: its text and the files that its sets name. This is what goes over the control
//! socket and what is kept.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::policy::file::SetFiles;

/// A policy file with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The policy file's path, for listings.
    pub path: String,
    /// Whether root or the agent itself has named it, so that root may write where it says.
    pub is_path_trusted: bool,
    pub text: String,
    /// In the order in which the policy names them.
    pub files: Vec<SetFile>,
}

/// A file that a set names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetFile {
    /// As the policy names it.
    pub name: String,
    pub content: Vec<u8>,
}

/// SHA-256 of some content, as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// Of these bytes.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let digest = Sha256::digest(content);
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digits.
    #[must_use]
    pub fn digits(&self) -> &str {
        &self.0
    }

    /// Whether it is one, as it may not be where it was read from a file.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.0.len() == 64 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl Bundle {
    /// A policy whose sets all stand in it.
    #[must_use]
    pub fn of_text(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        Self { path, is_path_trusted: false, text, files: Vec::new() }
    }

    /// The files of sets, for the parser.
    #[must_use]
    pub fn set_files(&self) -> impl SetFiles + use<'_> {
        let mut by_name: HashMap<&str, &SetFile> = HashMap::with_capacity(self.files.len());
        for file in &self.files {
            by_name.entry(&file.name).or_insert(file);
        }
        move |name: &str| match by_name.get(name) {
            Some(file) => Ok(file.content.clone()),
            None => Err(format!("{name}: the file's content was not sent along")),
        }
    }
}

/// Reads files of sets, and keeps what was read.
#[derive(Debug)]
pub(super) struct Recorded<F> {
    reader: F,
    files: Vec<SetFile>,
}

impl<F: SetFiles> Recorded<F> {
    pub(super) fn new(reader: F) -> Self {
        Self { reader, files: Vec::new() }
    }

    pub(super) fn into_files(self) -> Vec<SetFile> {
        self.files
    }
}

impl<F: SetFiles> SetFiles for Recorded<F> {
    fn read(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let content = self.reader.read(name)?;
        self.files.push(SetFile { name: name.to_owned(), content: content.clone() });
        Ok(content)
    }
}

/// Stands in for files of sets whose content is lost: everything but the addresses is right.
pub(super) fn lost_files(_: &str) -> Result<Vec<u8>, String> {
    Ok(b"192.0.2.255\n".to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_handed_to_the_parser_by_name() {
        let file = SetFile { name: "a".to_owned(), content: b"10.0.0.1\n".to_vec() };
        let bundle = Bundle { files: vec![file], ..Bundle::of_text("p.toml", "") };
        assert_eq!(bundle.set_files().read("a").as_deref(), Ok(&b"10.0.0.1\n"[..]));
        assert!(bundle.set_files().read("b").is_err());
        let mut recorded = Recorded::new(bundle.set_files());
        assert!(recorded.read("a").is_ok() && recorded.read("b").is_err());
        assert_eq!(recorded.into_files(), bundle.files);
    }

    #[test]
    fn hashes_are_those_of_sha_256() {
        let empty = ContentHash::of(b"");
        assert!(empty.digits().starts_with("e3b0c442") && empty.is_valid());
        assert!(!ContentHash("../../etc/passwd".to_owned()).is_valid());
    }
}
