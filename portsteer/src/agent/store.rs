//! The policies that are kept on disk: the one that was accepted last, the one before, and the one that is
//! being put in force. The kernel has what runs; this is what a restarted machine begins with, and where the
//! content of set files is.
//!
//! ```text
//! /var/lib/portsteer/INSTANCE/
//!     accepted.json   what was accepted last
//!     previous.json   what was accepted before: for `portsteer rollback`
//!     pending.json    what is being put in force, or is on trial
//!     content/HASH    texts and set files, by their SHA-256
//!     history.json    what happened to interfaces
//!     detached        the machine's boot during which `portsteer detach` took everything off
//! ```
//!
//! Every file is written beside its place, synced and renamed, so that it is there whole or not at all; what
//! is read is compared with its hash.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::bundle::{Bundle, ContentHash, SetFile};
use crate::{
    dataplane::Instance,
    policy::edit::{Edit, edit_set_file},
};

/// Where policies are kept, unless the agent is told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/portsteer";

/// The version of the files.
const VERSION: u32 = 1;

/// The longest record or history that is read, in bytes.
const MAX_RECORD_LEN: u64 = 64 << 20;

/// The longest content that is read, in bytes: more than any policy or set file may have.
const MAX_CONTENT_LEN: u64 = 512 << 20;

/// How many prefixes edits of a set file may have before its content is written anew.
pub const MAX_EDITED: usize = 50_000;

/// Which of the kept policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Accepted,
    Previous,
    Pending,
}

impl Which {
    const fn file(self) -> &'static str {
        match self {
            Self::Accepted => "accepted.json",
            Self::Previous => "previous.json",
            Self::Pending => "pending.json",
        }
    }
}

/// A policy that is kept, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// By which the pinned state names it: a hash over all that follows but the path.
    pub id: String,
    /// The policy file's path, for listings.
    pub path: String,
    pub text: ContentHash,
    pub files: Vec<FileRecord>,
}

/// A set's file that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// As the policy names it.
    pub name: String,
    pub content: ContentHash,
    /// What was changed since, in this order: writing a few lines is quicker than writing a million.
    pub edits: Vec<FileEdit>,
}

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
        let mut text = String::new();
        for prefix in prefixes {
            let space = if text.is_empty() { "" } else { " " };
            // A string takes whatever is written to it.
            let _ = write!(text, "{space}{prefix}");
        }
        Self { adds, prefixes: text }
    }

    fn count(&self) -> usize {
        self.prefixes.split_ascii_whitespace().count()
    }

    /// The file's content with the change. What is wrong is said in words.
    pub(super) fn apply(&self, content: &[u8]) -> Result<Vec<u8>, String> {
        let prefixes = self.prefixes.split_ascii_whitespace().map(str::parse);
        let prefixes: Vec<IpNet> = prefixes.collect::<Result<_, _>>().map_err(|error| {
            let error: ipnet::AddrParseError = error;
            format!("an edit: {error}")
        })?;
        let set = String::new();
        let edit = match self.adds {
            true => Edit::AddPrefixes { set, prefixes },
            false => Edit::RemovePrefixes { set, prefixes },
        };
        edit_set_file(content, &edit).map_err(|error| error.to_string())
    }
}

impl Record {
    /// Of a policy as it was written.
    #[must_use]
    pub fn of(bundle: &Bundle) -> Self {
        let files = bundle
            .files
            .iter()
            .map(|SetFile { name, content }| FileRecord {
                name: name.clone(),
                content: ContentHash::of(content),
                edits: Vec::new(),
            })
            .collect();
        Self {
            version: VERSION,
            id: String::new(),
            path: bundle.path.clone(),
            text: ContentHash::of(bundle.text.as_bytes()),
            files,
        }
        .with_id()
    }

    /// The same policy with another text.
    #[must_use]
    pub fn with_text(&self, text: &str) -> Self {
        Self { text: ContentHash::of(text.as_bytes()), ..self.clone() }.with_id()
    }

    /// The same policy with a change of a set's file.
    #[must_use]
    pub fn with_edit(&self, file: &str, edit: FileEdit) -> Self {
        let mut record = self.clone();
        for known in record.files.iter_mut().filter(|known| known.name == file) {
            known.edits.push(edit.clone());
        }
        record.with_id()
    }

    /// How many prefixes a set's file has in edits.
    #[must_use]
    pub fn edited(&self, file: &str) -> usize {
        let files = self.files.iter().filter(|known| known.name == file);
        files.flat_map(|file| &file.edits).map(FileEdit::count).sum()
    }

    fn with_id(mut self) -> Self {
        self.id = self.compute_id();
        self
    }

    fn compute_id(&self) -> String {
        // A structure of strings and lists of them has a JSON.
        let json = serde_json::to_vec(&(&self.text, &self.files)).unwrap_or_default();
        ContentHash::of(&json).digits().to_owned()
    }

    fn hashes(&self) -> impl Iterator<Item = &ContentHash> {
        std::iter::once(&self.text).chain(self.files.iter().map(|file| &file.content))
    }
}

/// Why something cannot be kept, or what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {detail}", path.display())]
    Damaged { path: PathBuf, detail: String },
}

/// A directory in which policies are kept.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// That of an instance, below `directory`. Nothing is made before something is written.
    #[must_use]
    pub fn new(directory: &Path, instance: &Instance) -> Self {
        Self { directory: directory.join(instance.name()) }
    }

    /// Whether anything was ever kept.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn content_path(&self, hash: &ContentHash) -> PathBuf {
        self.directory.join("content").join(hash.digits())
    }

    /// Keeps a policy as the one that is being put in force.
    ///
    /// # Errors
    ///
    /// The disk is full, or may not be written to. What was kept before is not lost.
    pub fn stage(&self, record: &Record, bundle: &Bundle) -> Result<(), StoreError> {
        self.make_directory(&self.directory)?;
        self.make_directory(&self.path("content"))?;
        self.keep_content(&record.text, bundle.text.as_bytes())?;
        for file in &record.files {
            let content = bundle.files.iter().find(|content| content.name == file.name);
            // That of an edited policy is there already.
            if let Some(content) = content {
                self.keep_content(&file.content, &content.content)?;
            }
        }
        self.write_json(Which::Pending.file(), record)
    }

    /// Makes the policy that is being put in force the accepted one, and that one the previous one. The same
    /// one once more changes nothing.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn accept(&self) -> Result<(), StoreError> {
        let pending = self.read_record(Which::Pending)?;
        let accepted = self.read_record(Which::Accepted).unwrap_or(None);
        let is_same = match (&pending, &accepted) {
            (Some(pending), Some(accepted)) => pending.id == accepted.id,
            _ => false,
        };
        if pending.is_none() {
            return Ok(());
        }
        if accepted.is_some() && !is_same {
            self.link(Which::Accepted, Which::Previous)?;
        }
        self.rename(Which::Pending, Which::Accepted)?;
        self.collect_garbage();
        Ok(())
    }

    /// Forgets the policy that was being put in force.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn discard(&self) -> Result<(), StoreError> {
        let path = self.path(Which::Pending.file());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { path, source })
            }
            _ => {
                self.collect_garbage();
                Ok(())
            }
        }
    }

    /// One of the kept policies, without its content.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is damaged.
    pub fn read_record(&self, which: Which) -> Result<Option<Record>, StoreError> {
        let Some(record) = self.read_json::<Record>(which.file())? else { return Ok(None) };
        let damaged = |detail: &str| StoreError::Damaged {
            path: self.path(which.file()),
            detail: detail.to_owned(),
        };
        if record.version != VERSION {
            return Err(damaged(&format!(
                "it is of version {}, and this portsteer's is {VERSION}",
                record.version
            )));
        }
        if record.id != record.compute_id() || !record.hashes().all(ContentHash::is_valid) {
            return Err(damaged("its sum is wrong"));
        }
        Ok(Some(record))
    }

    /// A kept policy's content, edits included.
    ///
    /// # Errors
    ///
    /// Some of it cannot be read, or is damaged.
    pub fn read_bundle(&self, record: &Record) -> Result<Bundle, StoreError> {
        let text_path = self.content_path(&record.text);
        let text = String::from_utf8(self.read_content(&record.text)?).map_err(|_| {
            StoreError::Damaged { path: text_path, detail: "it is not UTF-8".to_owned() }
        })?;
        let files = record.files.iter().map(|file| self.read_file(file));
        Ok(Bundle { path: record.path.clone(), text, files: files.collect::<Result<_, _>>()? })
    }

    fn read_file(&self, file: &FileRecord) -> Result<SetFile, StoreError> {
        let content = self.read_content(&file.content)?;
        if file.edits.is_empty() {
            return Ok(SetFile { name: file.name.clone(), content });
        }
        let mut content = content;
        for edit in &file.edits {
            content = edit.apply(&content).map_err(|detail| StoreError::Damaged {
                path: self.content_path(&file.content),
                detail,
            })?;
        }
        Ok(SetFile { name: file.name.clone(), content })
    }

    /// Reads a small file of the instance's that holds JSON.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is damaged.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(name);
        let Some(bytes) = read_whole(&path, MAX_RECORD_LEN)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError::Damaged { path, detail: error.to_string() })
    }

    /// Writes one.
    ///
    /// # Errors
    ///
    /// The disk is full, or may not be written to. What was there before is there still.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        self.make_directory(&self.directory)?;
        let path = self.path(name);
        let json = serde_json::to_vec(value)
            .map_err(|error| StoreError::Io { path: path.clone(), source: error.into() })?;
        write_whole(&path, &json)
    }

    /// Notes that the dataplane was taken off by hand, so that it stays off until somebody applies a policy or
    /// the machine starts anew.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn note_detached(&self) -> Result<(), StoreError> {
        self.write_json("detached", &boot_id())
    }

    /// Notes that a policy was applied.
    pub fn note_applied(&self) {
        // Missing, mostly.
        let _ = fs::remove_file(self.path("detached"));
    }

    /// Whether the dataplane was taken off by hand since the machine started.
    #[must_use]
    pub fn was_detached(&self) -> bool {
        self.read_json::<String>("detached").ok().flatten() == Some(boot_id())
    }

    fn keep_content(&self, hash: &ContentHash, content: &[u8]) -> Result<(), StoreError> {
        let path = self.content_path(hash);
        let is_there = fs::metadata(&path).is_ok_and(|known| known.len() == content.len() as u64);
        if is_there { Ok(()) } else { write_whole(&path, content) }
    }

    fn read_content(&self, hash: &ContentHash) -> Result<Vec<u8>, StoreError> {
        let path = self.content_path(hash);
        let missing = || StoreError::Damaged { path: path.clone(), detail: "it is missing".into() };
        let content = read_whole(&path, MAX_CONTENT_LEN)?.ok_or_else(missing)?;
        if ContentHash::of(&content) != *hash {
            return Err(StoreError::Damaged { path, detail: "its sum is wrong".to_owned() });
        }
        Ok(content)
    }

    fn make_directory(&self, path: &Path) -> Result<(), StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StoreError::Io { path: path.to_owned(), source })
    }

    /// Gives a file a second name, so that it is not lost when another takes its place. What a file holds never
    /// changes.
    fn link(&self, from: Which, to: Which) -> Result<(), StoreError> {
        let (from, to) = (self.path(from.file()), self.path(to.file()));
        let new = to.with_added_extension("new");
        let link = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::hard_link(&from, &new)?;
            fs::rename(&new, &to)
        };
        link().or_else(|_| match read_whole(&from, MAX_RECORD_LEN)? {
            // Not every file system has links.
            Some(content) => write_whole(&to, &content),
            None => Ok(()),
        })
    }

    fn rename(&self, from: Which, to: Which) -> Result<(), StoreError> {
        let (from, to) = (self.path(from.file()), self.path(to.file()));
        fs::rename(&from, &to)
            .and_then(|()| sync_directory(&self.directory))
            .map_err(|source| StoreError::Io { path: to, source })
    }

    /// Removes content that no kept policy has.
    fn collect_garbage(&self) {
        let mut used = HashSet::new();
        for which in [Which::Accepted, Which::Previous, Which::Pending] {
            match self.read_record(which) {
                Ok(record) => used.extend(record.iter().flat_map(Record::hashes).cloned()),
                // Somebody may yet want to repair it.
                Err(_) => return,
            }
        }
        let used: HashSet<&str> = used.iter().map(ContentHash::digits).collect();
        for entry in fs::read_dir(self.path("content")).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|name| !used.contains(name)) {
                // The next time will do as well.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Which boot of the machine this is.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn read_whole(path: &Path, most: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |source| StoreError::Io { path: path.to_owned(), source };
    // A pipe in its place would keep whoever opens it waiting.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(failed)?,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        let detail = "it is not a regular file".to_owned();
        return Err(StoreError::Damaged { path: path.to_owned(), detail });
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        let detail = format!("it is longer than {} MiB", most >> 20);
        return Err(StoreError::Damaged { path: path.to_owned(), detail });
    }
    Ok(Some(bytes))
}

/// Writes a file beside its place, syncs it and renames it.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let new = path.with_added_extension("new");
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), sync_directory)
    };
    write().map_err(|source| {
        // Of no use to anybody.
        let _ = fs::remove_file(&new);
        StoreError::Io { path: path.to_owned(), source }
    })
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), &Instance::new("test").unwrap());
        (directory, store)
    }

    fn bundle(text: &str) -> Bundle {
        let file = SetFile { name: "a.txt".to_owned(), content: b"10.0.0.1\n10.0.0.2\n".to_vec() };
        Bundle { files: vec![file], ..Bundle::of_text("/etc/p.toml", text) }
    }

    fn keep(store: &Store, bundle: &Bundle) -> Record {
        let record = Record::of(bundle);
        store.stage(&record, bundle).unwrap();
        store.accept().unwrap();
        record
    }

    #[test]
    fn what_is_accepted_is_found_again_and_the_one_before_as_well() {
        let (_directory, store) = store();
        assert!(store.read_record(Which::Accepted).unwrap().is_none());
        let first = keep(&store, &bundle("first"));
        assert!(store.read_record(Which::Previous).unwrap().is_none());
        let second = keep(&store, &bundle("second"));
        assert_eq!(store.read_record(Which::Accepted).unwrap(), Some(second.clone()));
        assert_eq!(store.read_record(Which::Previous).unwrap(), Some(first.clone()));
        assert_eq!(store.read_bundle(&first).unwrap(), bundle("first"));
        assert_eq!(store.read_bundle(&second).unwrap(), bundle("second"));
        // The same once more is no reason to forget what was before.
        keep(&store, &bundle("second"));
        assert_eq!(store.read_record(Which::Previous).unwrap(), Some(first));
        let contents = fs::read_dir(store.path("content")).unwrap().count();
        assert_eq!(contents, 3, "two texts and one file");
        keep(&store, &bundle("third"));
        assert_eq!(fs::read_dir(store.path("content")).unwrap().count(), 3);
    }

    #[test]
    fn what_is_discarded_leaves_no_trace() {
        let (_directory, store) = store();
        let kept = keep(&store, &bundle("kept"));
        let other = bundle("other");
        store.stage(&Record::of(&other), &other).unwrap();
        store.discard().unwrap();
        store.discard().unwrap();
        assert_eq!(store.read_record(Which::Pending).unwrap(), None);
        assert_eq!(store.read_record(Which::Accepted).unwrap(), Some(kept));
        assert_eq!(fs::read_dir(store.path("content")).unwrap().count(), 2);
    }

    #[test]
    fn edits_are_kept_without_their_file() {
        let (_directory, store) = store();
        let before = bundle("text");
        let record = keep(&store, &before);
        let edit = FileEdit::new(true, &["192.0.2.0/24".parse().unwrap()]);
        let edited = record.with_edit("a.txt", edit);
        assert_ne!(edited.id, record.id);
        assert_eq!((edited.edited("a.txt"), edited.edited("b.txt")), (1, 0));
        store.stage(&edited, &Bundle::of_text("/etc/p.toml", "text")).unwrap();
        store.accept().unwrap();
        let after = store.read_bundle(&store.read_record(Which::Accepted).unwrap().unwrap());
        let content = String::from_utf8(after.unwrap().files[0].content.clone()).unwrap();
        assert!(content.starts_with("10.0.0.1\n10.0.0.2\n") && content.contains("192.0.2.0/24"));
    }

    #[test]
    fn whatever_is_damaged_is_said_to_be() {
        let (_directory, store) = store();
        let record = keep(&store, &bundle("text"));
        let accepted = store.path("accepted.json");
        let whole = fs::read(&accepted).unwrap();
        let is_damaged = |result: Result<(), StoreError>| match result {
            Err(StoreError::Damaged { .. }) => {}
            other => panic!("{other:?}"),
        };
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&accepted, &whole[..len]).unwrap();
            is_damaged(store.read_record(Which::Accepted).map(drop));
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&accepted, &changed).unwrap();
            // The path is for people, and has no sum.
            match store.read_record(Which::Accepted) {
                Ok(Some(other)) => {
                    assert_eq!(Record { path: record.path.clone(), ..other }, record);
                }
                result => is_damaged(result.map(drop)),
            }
        }
        fs::write(&accepted, &whole).unwrap();
        fs::write(store.content_path(&record.text), "texT").unwrap();
        is_damaged(store.read_bundle(&record).map(drop));
        fs::remove_file(store.content_path(&record.text)).unwrap();
        is_damaged(store.read_bundle(&record).map(drop));
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was() {
        let (directory, store) = store();
        let record = keep(&store, &bundle("text"));
        // A directory in the way is as good as a full disk, also for root.
        fs::create_dir_all(store.path("pending.json.new/in/the/way")).unwrap();
        let other = bundle("other");
        let failed = store.stage(&Record::of(&other), &other);
        assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
        assert_eq!(store.read_record(Which::Accepted).unwrap(), Some(record));
        drop(directory);
    }

    #[test]
    fn detached_holds_for_this_boot() {
        let (_directory, store) = store();
        assert!(!store.was_detached());
        store.note_detached().unwrap();
        assert!(store.was_detached());
        store.note_applied();
        assert!(!store.was_detached());
        store.write_json("detached", &"another boot").unwrap();
        assert!(!store.was_detached());
    }
}
