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
//! is read is compared with its hash, and so is what is there already before it is said to be kept. No other user
//! may write to the directories, and no link in them is followed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    bundle::{Bundle, ContentHash, SetFile},
    file_edits::{FileEdit, Folded},
    reading::{ReadError, read_open},
};
use crate::{
    compile::Interrupt,
    dataplane::Instance,
    directory::{Directory, FileState, Others},
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
    /// Whether root or the agent itself has named it.
    #[serde(default)]
    pub is_path_trusted: bool,
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
    /// What was changed since: one removal and one addition at most, but for what older versions have kept.
    pub edits: Vec<FileEdit>,
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
            is_path_trusted: bundle.is_path_trusted,
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

    /// The same policy with changes of set files, each with the file's name, which are folded with those before.
    #[must_use]
    pub fn with_edits(&self, edits: &[(&str, FileEdit)]) -> Self {
        let mut record = self.clone();
        for known in &mut record.files {
            let mut more = edits.iter().filter(|(file, _)| *file == known.name).peekable();
            if more.peek().is_none() {
                continue;
            }
            known.edits.extend(more.map(|(_, edit)| edit.clone()));
            // What cannot be read is told where it is applied.
            if let Ok(folded) = Folded::of(&known.edits) {
                known.edits = folded.into_edits();
            }
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
    #[error("interrupted while {} was read", path.display())]
    Interrupted { path: PathBuf },
}

/// A directory in which policies are kept.
#[derive(Debug, Clone)]
pub struct Store {
    /// That of all instances.
    base: PathBuf,
    /// The instance's own, in it.
    name: String,
    /// Content that was compared with its hash, as its file was then.
    compared: Arc<Mutex<HashMap<ContentHash, FileState>>>,
}

impl Store {
    /// That of an instance, below `directory`. Nothing is made before something is written.
    #[must_use]
    pub fn new(directory: &Path, instance: &Instance) -> Self {
        let (base, name) = (directory.to_owned(), instance.name().to_owned());
        Self { base, name, compared: Arc::default() }
    }

    /// Whether anything was ever kept.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path("").is_dir()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.join(&self.name).join(name)
    }

    fn content_path(&self, hash: &ContentHash) -> PathBuf {
        self.path(CONTENT).join(hash.digits())
    }

    /// The instance's directory, if there is one.
    fn open(&self) -> Result<Option<Directory>, StoreError> {
        let base = match Directory::open(&self.base, Others::IfSticky) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(self.failed(""))?,
        };
        base.find(&self.name).map_err(self.failed(""))
    }

    /// The instance's directory, made if it is missing.
    fn make(&self) -> Result<Directory, StoreError> {
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&self.base);
        let base = made.and_then(|()| Directory::open(&self.base, Others::IfSticky));
        base.and_then(|base| base.find_or_make(&self.name, DIRECTORY_MODE)).map_err(self.failed(""))
    }

    /// What cannot be done with an entry.
    fn failed(&self, name: &str) -> impl Fn(io::Error) -> StoreError {
        let path = self.path(name);
        move |source| StoreError::Io { path: path.clone(), source }
    }

    /// Keeps a policy as the one that is being put in force.
    ///
    /// # Errors
    ///
    /// The disk is full, or may not be written to. What was kept before is not lost.
    pub fn stage(&self, record: &Record, bundle: &Bundle) -> Result<(), StoreError> {
        let directory = self.make()?;
        let contents = directory.find_or_make(CONTENT, DIRECTORY_MODE);
        let contents = contents.map_err(self.failed(CONTENT))?;
        self.keep_content(&contents, &record.text, Some(bundle.text.as_bytes()))?;
        for file in &record.files {
            let content = bundle.files.iter().find(|content| content.name == file.name);
            // That of an edited policy is there already, unless it was damaged.
            let content = content.map(|content| &content.content[..]);
            self.keep_content(&contents, &file.content, content)?;
        }
        self.write_json(Which::Pending.file(), record)
    }

    /// Makes the policy that is being put in force the accepted one, and that one the previous one. The same
    /// one once more changes nothing.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn accept(&self, id: &str) -> Result<(), StoreError> {
        let other = |detail: &str| StoreError::Damaged {
            path: self.path(Which::Pending.file()),
            detail: detail.to_owned(),
        };
        let Some(directory) = self.open()? else { return Err(other("it is missing")) };
        let pending = self.read_record(Which::Pending)?;
        match &pending {
            Some(pending) if pending.id == id => {}
            Some(_) => return Err(other("it is another policy than the one in force")),
            None => return Err(other("it is missing")),
        }
        let accepted = self.read_record(Which::Accepted).unwrap_or(None);
        let is_same = match (&pending, &accepted) {
            (Some(pending), Some(accepted)) => pending.id == accepted.id,
            _ => false,
        };
        if accepted.is_some() && !is_same {
            self.link(&directory, Which::Accepted, Which::Previous)?;
        }
        let (from, to) = (Which::Pending.file(), Which::Accepted.file());
        directory.rename(from.as_ref(), to.as_ref()).map_err(self.failed(to))?;
        self.collect_garbage(&directory);
        Ok(())
    }

    /// Forgets the policy that was being put in force.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn discard(&self) -> Result<(), StoreError> {
        let Some(directory) = self.open()? else { return Ok(()) };
        let pending = Which::Pending.file();
        directory.remove(pending).map_err(self.failed(pending))?;
        self.collect_garbage(&directory);
        Ok(())
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

    /// A kept policy's text alone.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is damaged, or reading it was interrupted.
    pub fn read_text(&self, record: &Record, interrupt: &Interrupt) -> Result<String, StoreError> {
        let content = self.read_content(&record.text, interrupt)?;
        String::from_utf8(content).map_err(|_| StoreError::Damaged {
            path: self.content_path(&record.text),
            detail: "it is not UTF-8".to_owned(),
        })
    }

    /// A kept policy's content, edits included.
    ///
    /// # Errors
    ///
    /// Some of it cannot be read, or is damaged, or reading it was interrupted.
    pub fn read_bundle(
        &self,
        record: &Record,
        interrupt: &Interrupt,
    ) -> Result<Bundle, StoreError> {
        let text = self.read_text(record, interrupt)?;
        let files = record.files.iter().map(|file| self.read_file(file, interrupt));
        let files = files.collect::<Result<_, _>>()?;
        let (path, is_path_trusted) = (record.path.clone(), record.is_path_trusted);
        Ok(Bundle { path, is_path_trusted, text, files })
    }

    fn read_file(&self, file: &FileRecord, interrupt: &Interrupt) -> Result<SetFile, StoreError> {
        let mut content = self.read_content(&file.content, interrupt)?;
        if !file.edits.is_empty() {
            let path = || self.content_path(&file.content);
            let damaged = |detail| StoreError::Damaged { path: path(), detail };
            let folded = Folded::of(&file.edits).map_err(damaged)?;
            if interrupt.is_set() {
                return Err(StoreError::Interrupted { path: path() });
            }
            content = folded.apply(&content).map_err(damaged)?;
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
        let Some(directory) = self.open()? else { return Ok(None) };
        let read = read_whole(&directory, name, MAX_RECORD_LEN, &Interrupt::default())?;
        let Some((bytes, _)) = read else { return Ok(None) };
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
        let directory = self.make()?;
        let json = serde_json::to_vec(value).map_err(io::Error::from);
        json.and_then(|json| directory.replace(name, &json)).map_err(self.failed(name))
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
        if let Ok(Some(directory)) = self.open() {
            let _ = directory.remove("detached");
        }
    }

    /// Whether the dataplane was taken off by hand since the machine started.
    #[must_use]
    pub fn was_detached(&self) -> bool {
        self.read_json::<String>("detached").ok().flatten() == Some(boot_id())
    }

    /// Sees that content is there, and writes it where it is not, or is damaged.
    fn keep_content(
        &self,
        contents: &Directory,
        hash: &ContentHash,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let damage = match self.find_content(contents, hash, &Interrupt::default()) {
            Ok(()) => return Ok(()),
            Err(damage) => damage,
        };
        let Some(content) = content else { return Err(damage) };
        let path = self.content_path(hash);
        // A directory in its place is not removed: it is another one's doing, and is told.
        contents
            .replace(hash.digits(), content)
            .map_err(|source| StoreError::Io { path, source })?;
        self.compared().remove(hash);
        Ok(())
    }

    /// Compares content with its hash, unless that was done before and its file is the same still.
    fn find_content(
        &self,
        contents: &Directory,
        hash: &ContentHash,
        interrupt: &Interrupt,
    ) -> Result<(), StoreError> {
        let known = self.compared().get(hash).copied();
        if let Some(known) = known
            && let Ok(file) = contents.open_file(hash.digits())
            && file.metadata().is_ok_and(|now| FileState::of(&now) == known)
        {
            return Ok(());
        }
        self.read_from(contents, hash, interrupt).map(drop)
    }

    fn compared(&self) -> std::sync::MutexGuard<'_, HashMap<ContentHash, FileState>> {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_content(
        &self,
        hash: &ContentHash,
        interrupt: &Interrupt,
    ) -> Result<Vec<u8>, StoreError> {
        let contents = match self.open()? {
            Some(directory) => directory.find(CONTENT).map_err(self.failed(CONTENT))?,
            None => None,
        };
        let missing = || StoreError::Damaged {
            path: self.content_path(hash),
            detail: "it is missing".to_owned(),
        };
        self.read_from(&contents.ok_or_else(missing)?, hash, interrupt)
    }

    fn read_from(
        &self,
        contents: &Directory,
        hash: &ContentHash,
        interrupt: &Interrupt,
    ) -> Result<Vec<u8>, StoreError> {
        let path = self.content_path(hash);
        let damaged =
            |detail: &str| StoreError::Damaged { path: path.clone(), detail: detail.into() };
        let read = read_whole(contents, hash.digits(), MAX_CONTENT_LEN, interrupt)?;
        let (content, state) = read.ok_or_else(|| damaged("it is missing"))?;
        if ContentHash::of(&content) != *hash {
            self.compared().remove(hash);
            return Err(damaged("its sum is wrong"));
        }
        self.compared().insert(hash.clone(), state);
        Ok(content)
    }

    /// Gives a file a second name, so that it is not lost when another takes its place. What a file holds never
    /// changes.
    fn link(&self, directory: &Directory, from: Which, to: Which) -> Result<(), StoreError> {
        let (from, to) = (from.file(), to.file());
        if directory.link(from, to).is_ok() {
            return Ok(());
        }
        // Not every file system has links.
        match read_whole(directory, from, MAX_RECORD_LEN, &Interrupt::default())? {
            Some((content, _)) => directory.replace(to, &content).map_err(self.failed(to)),
            None => Ok(()),
        }
    }

    /// Removes content that no kept policy has.
    fn collect_garbage(&self, directory: &Directory) {
        let mut used = HashSet::new();
        for which in [Which::Accepted, Which::Previous, Which::Pending] {
            match self.read_record(which) {
                Ok(record) => used.extend(record.iter().flat_map(Record::hashes).cloned()),
                // Somebody may yet want to repair it.
                Err(_) => return,
            }
        }
        self.compared().retain(|hash, _| used.contains(hash));
        let used: HashSet<&str> = used.iter().map(ContentHash::digits).collect();
        let Ok(Some(contents)) = directory.find(CONTENT) else { return };
        for name in contents.names().unwrap_or_default() {
            if !used.contains(name.as_str()) {
                // The next time will do as well.
                let _ = contents.remove(&name);
            }
        }
    }
}

/// Where texts and set files are, in the instance's directory.
const CONTENT: &str = "content";

/// Of all directories here: what is kept is for the agent's eyes.
const DIRECTORY_MODE: u32 = 0o700;

/// Which boot of the machine this is.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Reads a file, and what its times were then.
fn read_whole(
    directory: &Directory,
    name: &str,
    most: u64,
    interrupt: &Interrupt,
) -> Result<Option<(Vec<u8>, FileState)>, StoreError> {
    let path = || directory.path().join(name);
    let failed = |source: io::Error| StoreError::Io { path: path(), source };
    let damaged = |detail: String| StoreError::Damaged { path: path(), detail };
    let file = match directory.open_file(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(damaged("it is a symbolic link".to_owned()));
        }
        result => result.map_err(failed)?,
    };
    let state = FileState::of(&file.metadata().map_err(failed)?);
    match read_open(&file, most, interrupt) {
        Ok(content) => Ok(Some((content, state))),
        Err(ReadError::Io(error)) => Err(failed(error)),
        Err(ReadError::Interrupted) => Err(StoreError::Interrupted { path: path() }),
        Err(error) => Err(damaged(error.to_string())),
    }
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

    fn never() -> Interrupt {
        Interrupt::default()
    }

    fn keep(store: &Store, bundle: &Bundle) -> Record {
        let record = Record::of(bundle);
        store.stage(&record, bundle).unwrap();
        store.accept(&record.id).unwrap();
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
        assert_eq!(store.read_bundle(&first, &never()).unwrap(), bundle("first"));
        assert_eq!(store.read_bundle(&second, &never()).unwrap(), bundle("second"));
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
        let edited = record.with_edits(&[("a.txt", edit)]);
        assert_ne!(edited.id, record.id);
        assert_eq!((edited.edited("a.txt"), edited.edited("b.txt")), (1, 0));
        store.stage(&edited, &Bundle::of_text("/etc/p.toml", "text")).unwrap();
        store.accept(&edited.id).unwrap();
        let after =
            store.read_bundle(&store.read_record(Which::Accepted).unwrap().unwrap(), &never());
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
        is_damaged(store.read_bundle(&record, &never()).map(drop));
        fs::remove_file(store.content_path(&record.text)).unwrap();
        is_damaged(store.read_bundle(&record, &never()).map(drop));
    }

    /// Damaged content has the same length as before, mostly.
    #[test]
    fn content_is_compared_before_it_is_said_to_be_kept() {
        let (_directory, store) = store();
        let record = keep(&store, &bundle("text"));
        let damage = || {
            fs::write(store.content_path(&record.text), "texT").unwrap();
            fs::write(store.content_path(&record.files[0].content), "10.0.0.1\n10.0.0.3\n")
                .unwrap();
        };
        damage();
        store.stage(&record, &bundle("text")).unwrap();
        assert_eq!(store.read_bundle(&record, &never()).unwrap(), bundle("text"));
        // What is not at hand cannot be mended.
        damage();
        let without_file = Bundle::of_text("/etc/p.toml", "text");
        let refused = store.stage(&record, &without_file);
        assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    }

    #[test]
    fn reading_is_interrupted() {
        let (_directory, store) = store();
        let record = keep(&store, &bundle("text"));
        let interrupt = Interrupt::default();
        interrupt.set();
        let ended = store.read_bundle(&record, &interrupt);
        assert!(matches!(ended, Err(StoreError::Interrupted { .. })), "{ended:?}");
    }

    /// However many edits there are, two of them are kept.
    #[test]
    fn edits_are_folded_when_they_are_kept() {
        let (_directory, store) = store();
        let mut record = keep(&store, &bundle("text"));
        for number in 0..1_000_u32 {
            let address =
                std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a01_0000 + number % 50));
            let prefix = address.into();
            let edit = FileEdit::new(number % 3 != 0, &[prefix]);
            record = record.with_edits(&[("a.txt", edit)]);
            assert!(record.files[0].edits.len() <= 2);
        }
        assert!(record.edited("a.txt") <= 100);
        assert!(store.read_bundle(&record, &never()).is_ok());
    }

    /// Where other users may put files, they would say what is in force.
    #[test]
    fn directories_of_others_are_not_used() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let (directory, store) = store();
        let record = keep(&store, &bundle("text"));
        let own = store.path("");
        for mode in [0o777, 0o1777] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            for refused in [
                store.read_record(Which::Accepted).map(drop),
                store.stage(&record, &bundle("text")),
                store.note_detached(),
            ] {
                let error = refused.unwrap_err().to_string();
                assert!(error.contains("may be written to by other users"), "{error}");
            }
        }
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&own, &elsewhere).unwrap();
        symlink(&elsewhere, directory.path().join("test")).unwrap();
        let error = store.note_detached().unwrap_err().to_string();
        assert!(error.contains("a symbolic link"), "{error}");
        assert!(!elsewhere.join("detached").exists());
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
