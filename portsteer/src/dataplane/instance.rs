//! An instance: a name, a directory of pins, and a lock.
//!
//! ```text
//! /sys/fs/bpf/portsteer/NAME/
//!     policy                   the compiled policy, in two banks
//!     manifest_0, manifest_1   what the image in that bank was compiled from
//!     interfaces               which interface has which slot
//!     link_SLOT                the attachment, one per interface
//!     counters_SLOT            what its program has counted
//!     retired                  what interfaces had counted that are no longer attached
//!     devices, device_slots    the interfaces of targets, by target and the other way round
//!     cpus                     the CPUs of targets, and their queues
//!     losses                   what did not get to its target
//!     repairs                  offloads that were switched for a policy
//!     watch_PROGRAM_OBJECT     what listens to the kernel's tracepoints while a policy steers
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{Error, kernel::BPFFS, sys};

/// What the names of counters' pins begin with.
pub(super) const COUNTERS: &str = "counters_";

/// A name under which a dataplane is kept apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

/// The exclusive right to change an instance. It ends with the value, or with the process.
#[derive(Debug)]
pub struct Lock {
    /// Held for its lock.
    directory: File,
    path: PathBuf,
}

impl Lock {
    /// Whether the directory is still the one that was locked: `detach` removes it.
    pub(super) fn holds(&self) -> bool {
        match (self.directory.metadata(), fs::metadata(&self.path)) {
            (Ok(locked), Ok(now)) => locked.ino() == now.ino(),
            _ => false,
        }
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self { name: Self::DEFAULT.to_owned() }
    }
}

impl Instance {
    /// The instance that commands mean when none is named.
    pub const DEFAULT: &str = "main";

    /// # Errors
    ///
    /// The name has other characters than letters, digits, `-` and `_`, or not 1 to 32 of them.
    pub fn new(name: &str) -> Result<Self, Error> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(fits) {
            return Err(Error::InstanceName(name.to_owned()));
        }
        Ok(Self { name: name.to_owned() })
    }

    /// All that have pins now, as far as they may be seen.
    pub(super) fn all() -> Vec<Self> {
        let entries = fs::read_dir(Path::new(BPFFS).join("portsteer")).into_iter().flatten();
        entries.flatten().filter_map(|entry| Self::new(entry.file_name().to_str()?).ok()).collect()
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its pins are.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(BPFFS).join("portsteer").join(&self.name)
    }

    pub(super) fn pin(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Where a slot's counters are that have so many pages.
    pub(super) fn counters_pin(&self, slot: u32, pages: u32) -> PathBuf {
        self.pin(&format!("{COUNTERS}{slot}_{pages}"))
    }

    pub(super) fn link_pin(&self, slot: u32) -> PathBuf {
        self.pin(&format!("link_{slot}"))
    }

    pub(super) fn manifest_pin(&self, bank: usize) -> PathBuf {
        self.pin(&format!("manifest_{bank}"))
    }

    /// Whether there are pins of this instance.
    ///
    /// # Errors
    ///
    /// The BPF file system may not be looked at.
    pub fn exists(&self) -> Result<bool, Error> {
        let directory = self.directory();
        directory.try_exists().map_err(Error::io(format!("looking at {}", directory.display())))
    }

    /// Makes the directory if it is missing and takes the lock on it.
    ///
    /// # Errors
    ///
    /// [`Error::InstanceBusy`] if another process holds it.
    pub fn lock(&self) -> Result<Lock, Error> {
        let path = self.directory();
        loop {
            // Whoever may open the directory may take the lock.
            let mut directory = DirBuilder::new();
            match directory.recursive(true).mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => {
                    result
                        .map_err(Error::io(format!("making the directory {}", path.display())))?;
                }
            }
            let opening = || Error::io(format!("opening {}", path.display()));
            let directory = match File::open(&path) {
                // Somebody's `detach` was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.map_err(opening())?,
            };
            let inode = directory.metadata().map_err(opening())?.ino();
            refuse_foreign(&path)?;
            let locked = sys::try_lock(directory.as_fd())
                .map_err(Error::io(format!("locking {}", path.display())))?;
            if !locked {
                return Err(Error::InstanceBusy {
                    instance: self.name.clone(),
                    pid: lock_holder(inode),
                });
            }
            let lock = Lock { directory, path: path.clone() };
            // A lock on a directory that `detach` has removed meanwhile keeps nobody out.
            if lock.holds() {
                return Ok(lock);
            }
        }
    }

    /// The process that has the right to change the instance, where that can be seen.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        let metadata = fs::metadata(self.directory()).ok()?;
        lock_holder(metadata.ino())
    }

    /// Removes the directory, which must be empty, and that of all instances if this was the
    /// last.
    pub(super) fn remove_directory(&self) -> Result<(), Error> {
        let directory = self.directory();
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("removing {}", directory.display()))(error));
            }
            _ => {}
        }
        if let Some(parent) = directory.parent() {
            // Refused while other instances live in it.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    /// The slots that have a link pin, ascending.
    pub(super) fn linked_slots(&self) -> Result<Vec<u32>, Error> {
        let mut slots: Vec<u32> = self
            .pins()?
            .iter()
            .filter_map(|name| name.strip_prefix("link_")?.parse().ok())
            .collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// The names of all pins.
    pub(super) fn pins(&self) -> Result<Vec<String>, Error> {
        let directory = self.directory();
        let reading = || Error::io(format!("reading {}", directory.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).map_err(reading())? {
            names.push(entry.map_err(reading())?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}

/// Refuses an instance's directory, or that of all instances, if it is another user's: anybody may
/// make directories in a BPF file system that is mounted without `mode=`, and the owner of one may
/// remove whatever is pinned in it.
fn refuse_foreign(instance: &Path) -> Result<(), Error> {
    let owner = |path: &Path| {
        let metadata = fs::metadata(path).map(|metadata| metadata.uid());
        metadata.map_err(Error::io(format!("looking at {}", path.display())))
    };
    let user = owner(Path::new("/proc/self"))?;
    for directory in instance.ancestors().take(2) {
        let uid = owner(directory)?;
        let is_services = user == 0 && Some(uid) == service_user();
        if uid != 0 && uid != user && !is_services {
            return Err(Error::ForeignDirectory { directory: directory.to_owned(), uid });
        }
    }
    Ok(())
}

/// The id of the user that the packaged service runs as, if this machine has it (passwd(5)).
fn service_user() -> Option<u32> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some("portsteer")).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The process that holds the lock on a directory's inode, as /proc/locks tells.
fn lock_holder(inode: u64) -> Option<u32> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    find_lock_holder(&locks, inode)
}

/// Lines like `7: FLOCK  ADVISORY  WRITE 4242 00:20:1723 0 EOF` (proc_locks(5)).
fn find_lock_holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        (file.rsplit(':').next()?.parse::<u64>().ok()? == inode).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names() {
        for name in ["main", "demo-4711", "a_b", "X"] {
            assert_eq!(Instance::new(name).unwrap().name(), name);
        }
        for name in ["", ".", "..", "a/b", "a b", "eth0.1", "ä", &"x".repeat(33)] {
            assert!(Instance::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_lock_holder_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 17 00:20:5 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4242 00:20:1723 0 EOF\n";
        assert_eq!(find_lock_holder(locks, 1723), Some(4242));
        assert_eq!(find_lock_holder(locks, 5), None);
        assert_eq!(find_lock_holder("garbage", 5), None);
    }
}
