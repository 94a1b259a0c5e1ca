//! Archives that are the same whoever makes them: sorted, of one time, owned by root.

use std::{collections::BTreeMap, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

/// Files by their paths, which begin without a slash.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<String, File>,
}

#[derive(Debug)]
struct File {
    mode: u32,
    content: Vec<u8>,
}

impl Files {
    /// Adds an ordinary file.
    pub(super) fn file(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), File { mode: 0o644, content: content.into() });
    }

    /// Adds a file that can be executed.
    pub(super) fn program(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), File { mode: 0o755, content: content.into() });
    }

    /// Path and content of all of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, file)| (path.as_str(), file.content.as_slice()))
    }

    /// The directories that they are in, below `prefix`, with a slash at the end.
    pub(super) fn directories(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for path in self.files.keys() {
            found.extend(path.match_indices('/').map(|(end, _)| &path[..=end]));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The files and their directories as a compressed archive, all below `prefix`, which ends in a
    /// slash.
    pub(super) fn tar_gz(&self, prefix: &str, time: u64) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut directory = |path: String| {
            let header = header(&path, EntryType::Directory, 0o755, 0, time)?;
            archive.append(&header, &[][..]).context("packing a directory")
        };
        directory(prefix.to_owned())?;
        for path in self.directories() {
            directory(format!("{prefix}{path}"))?;
        }
        for (path, File { mode, content }) in &self.files {
            let path = format!("{prefix}{path}");
            let header = header(&path, EntryType::Regular, *mode, content.len(), time)?;
            archive.append(&header, content.as_slice())?;
        }
        gzip(&archive.into_inner()?)
    }
}

fn header(path: &str, kind: EntryType, mode: u32, size: usize, time: u64) -> Result<Header> {
    let mut header = Header::new_ustar();
    // Not by `set_path`, which drops the `./` that Debian's archives begin with.
    let name = &mut header.as_old_mut().name;
    ensure!(path.len() < name.len(), "{path} is too long a path for an archive");
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    header.set_cksum();
    Ok(header)
}

/// Compresses, without a name and a time of its own.
pub(super) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::Files;

    #[test]
    fn archives_do_not_depend_on_the_order_in_which_they_are_made() {
        let (mut one, mut other) = (Files::default(), Files::default());
        one.file("b/c/d", "d");
        one.program("b/a", "a");
        other.program("b/a", "a");
        other.file("b/c/d", "d");
        assert_eq!(one.directories(), ["b/", "b/c/"]);
        assert_eq!(one.tar_gz("./", 7).unwrap(), other.tar_gz("./", 7).unwrap());
    }
}
