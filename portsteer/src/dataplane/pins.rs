//! The directories of pins, opened once and checked, so that nothing is ever reached by a path that another
//! user could have led elsewhere.
//!
//! A BPF file system is writable for everybody unless it was mounted with a mode (its default is 1777), so any
//! user may make `portsteer/` first, and put links into it. Therefore a directory is opened without following
//! a link (openat2(2), `RESOLVE_NO_SYMLINKS`), its owner, mode and file system are read from the open
//! descriptor, and everything in it is named relative to that descriptor. `BPF_OBJ_GET` follows a link in the
//! last part of a path, also with `BPF_F_PATH_FD`; so a pin is opened with `O_PATH | O_NOFOLLOW` and fetched
//! through `/proc/self/fd`. `BPF_OBJ_PIN` follows none there, and takes `/proc/self/fd/DIRECTORY/NAME`.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use caps::{CapSet, Capability};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fchmod, fstat, fstatfs,
        mkdirat, openat, renameat, renameat_with, statat, symlinkat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use super::{Error, Instance, kernel::BPFFS, sys};
use crate::directory::{open_without_links, service_user};

/// The directory of all instances, in the BPF file system.
const ALL: &str = "portsteer";

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The name of the mark that `detach` leaves while it works: a link to nowhere, which no pin can be taken for.
const DETACHED: &str = "detached";

/// The directory of all instances.
#[derive(Debug)]
struct AllPins(OwnedFd);

impl AllPins {
    fn path() -> PathBuf {
        Path::new(BPFFS).join(ALL)
    }

    /// `None` where there is none.
    fn open() -> Result<Option<Self>, Error> {
        open_checked(None, ALL, &Self::path()).map(|found| found.map(Self))
    }

    /// Makes it if it is missing.
    fn make() -> Result<Self, Error> {
        let path = Self::path();
        match mkdirat(CWD, &path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(Error::io(format!("making the directory {}", path.display()))(
                    error.into(),
                ));
            }
        }
        let vanished = || Error::io(format!("opening {}", path.display()))(Errno::NOENT.into());
        Self::open()?.ok_or_else(vanished)
    }
}

/// Whether there is a BPF file system to pin in: that of the machine, or the directory of all instances alone,
/// as a service has it that sees nothing else of `/sys/fs`.
pub(super) fn is_mounted() -> io::Result<bool> {
    for path in [AllPins::path(), PathBuf::from(BPFFS)] {
        match openat(CWD, &path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) if is_bpffs(fd.as_fd())? => return Ok(true),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The names of all instances that have pins.
pub(super) fn instances() -> Vec<Instance> {
    let Ok(Some(all)) = AllPins::open() else { return Vec::new() };
    let names = names_in(all.0.as_fd()).unwrap_or_default();
    names.iter().filter_map(|name| Instance::new(name.to_str().ok()?).ok()).collect()
}

fn is_bpffs(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // The field's type differs from one machine to the next.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    let kind = fstatfs(fd)?.f_type as u64;
    Ok(kind & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Opens a directory for its pins: one in `parent`, or the one of all instances. `None` where there is none.
fn open_checked(
    parent: Option<BorrowedFd<'_>>,
    name: &str,
    path: &Path,
) -> Result<Option<OwnedFd>, Error> {
    let opening = || Error::io(format!("opening {}", path.display()));
    let foreign =
        |why: &str| Error::ForeignDirectory { directory: path.to_owned(), why: why.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match parent {
        // One part of a path, which leads nowhere else.
        Some(parent) => openat(parent, name, flags, Mode::empty()),
        None => open_without_links(path),
    };
    let directory = match opened {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(foreign("it is a link")),
        Err(Errno::NOTDIR) => {
            let status = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
            let kind = status.map(|status| FileType::from_raw_mode(status.st_mode));
            let is_link = kind == Ok(FileType::Symlink);
            return Err(foreign(if is_link { "it is a link" } else { "it is no directory" }));
        }
        Err(error) => return Err(opening()(error.into())),
    };
    let status = fstat(&directory).map_err(|error| opening()(error.into()))?;
    if !is_ours(status.st_uid) {
        return Err(foreign(&format!("it belongs to user {}", status.st_uid)));
    }
    let mode = Mode::from_raw_mode(status.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        return Err(foreign("others than its owner may write to it"));
    }
    if mode.intersects(Mode::RWXG | Mode::RWXO) {
        // A user who may open it could hold its lock. Refused where it is not this process's own.
        let _ = fchmod(&directory, Mode::RWXU);
    }
    match is_bpffs(directory.as_fd()) {
        Ok(true) => Ok(Some(directory)),
        Ok(false) => Err(foreign("it is not in a BPF file system")),
        Err(error) => Err(opening()(error)),
    }
}

/// Whether a directory of this owner may be relied on: root's, this process's own, and for root that of the
/// service's user.
fn is_ours(uid: u32) -> bool {
    let own = geteuid();
    uid == 0 || uid == own.as_raw() || (own.is_root() && Some(uid) == service_user())
}

fn names_in(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    Ok(entries_of(directory)?.into_iter().map(|(name, _)| name).collect())
}

fn entries_of(directory: BorrowedFd<'_>) -> io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(entries)
}

/// An instance's directory of pins, open and checked.
#[derive(Debug, Clone)]
pub(super) struct PinDir {
    instance: Instance,
    /// What the directory is called in that of all instances: the instance's name, unless it is to take the
    /// place of the one that is.
    name: String,
    directory: Arc<OwnedFd>,
}

impl PinDir {
    /// Opens an instance's directory. `None` where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignDirectory`] if another user could have put something there.
    pub(super) fn open(instance: &Instance) -> Result<Option<Self>, Error> {
        Self::open_named(instance, instance.name())
    }

    /// The same, and makes it if it is missing.
    pub(super) fn make(instance: &Instance) -> Result<Self, Error> {
        Self::make_named(instance, instance.name())
    }

    fn open_named(instance: &Instance, name: &str) -> Result<Option<Self>, Error> {
        let Some(all) = AllPins::open()? else { return Ok(None) };
        let path = AllPins::path().join(name);
        let found = open_checked(Some(all.0.as_fd()), name, &path)?;
        Ok(found.map(|directory| Self::of(instance, name, directory)))
    }

    fn make_named(instance: &Instance, name: &str) -> Result<Self, Error> {
        // A process that could pin nothing would leave a directory in the way of those that can.
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(true);
        if !has(Capability::CAP_BPF) && !has(Capability::CAP_SYS_ADMIN) {
            let making = format!("making {}", AllPins::path().join(name).display());
            return Err(Error::io(making)(Errno::PERM.into()));
        }
        loop {
            let all = AllPins::make()?;
            let path = AllPins::path().join(name);
            match mkdirat(&all.0, name, Mode::RWXU) {
                // NOENT: the directory of all instances has just been removed.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => {
                    let making = format!("making the directory {}", path.display());
                    return Err(Error::io(making)(error.into()));
                }
            }
            // Removed again by a `detach` that was faster: once more.
            if let Some(directory) = open_checked(Some(all.0.as_fd()), name, &path)? {
                return Ok(Self::of(instance, name, directory));
            }
        }
    }

    fn of(instance: &Instance, name: &str, directory: OwnedFd) -> Self {
        Self { instance: instance.clone(), name: name.to_owned(), directory: Arc::new(directory) }
    }

    /// Opens what is to take the place of an instance's directory, or has. `None` where there is none.
    pub(super) fn open_next(instance: &Instance) -> Result<Option<Self>, Error> {
        Self::open_named(instance, &next_name(instance))
    }

    /// The same, and makes it if it is missing.
    pub(super) fn make_next(instance: &Instance) -> Result<Self, Error> {
        Self::make_named(instance, &next_name(instance))
    }

    /// Exchanges two directories of an instance, in one step. Returns the one that has the instance's name then, and
    /// the other one.
    pub(super) fn exchange(now: &Self, next: &Self) -> Result<(Self, Self), Error> {
        let exchanging = || Error::io(format!("putting {} in place", next.path().display()));
        let all = AllPins::open()?.ok_or_else(|| exchanging()(Errno::NOENT.into()))?;
        renameat_with(&all.0, &*now.name, &all.0, &*next.name, RenameFlags::EXCHANGE)
            .map_err(|error| exchanging()(error.into()))?;
        let named = |pins: &Self, name: &str| Self { name: name.to_owned(), ..pins.clone() };
        Ok((named(next, &now.name), named(now, &next.name)))
    }

    /// Whose pins these are.
    pub(super) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Where they are, for messages.
    pub(super) fn path(&self) -> PathBuf {
        AllPins::path().join(&self.name)
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn status(&self) -> io::Result<Stat> {
        Ok(fstat(&*self.directory)?)
    }

    /// Refuses the pins of another user: an agent gives up the right to open them.
    pub(super) fn refuse_other_user(&self) -> Result<(), Error> {
        let looking = || Error::io(format!("looking at {}", self.path().display()));
        let uid = self.status().map_err(looking())?.st_uid;
        let own = geteuid().as_raw();
        if uid == own {
            return Ok(());
        }
        Err(Error::OtherUser { instance: self.instance.name().to_owned(), uid, own })
    }

    /// The directory's inode.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(self.status()?.st_ino)
    }

    /// Takes the exclusive right to change what is pinned here; `false` if another process has it. It ends with
    /// the last copy of this value, or with the process.
    pub(super) fn try_lock(&self) -> Result<bool, Error> {
        let locking = || Error::io(format!("locking {}", self.path().display()));
        sys::try_lock(self.directory.as_fd()).map_err(locking())
    }

    /// Whether this is no instance's directory any more, or is about to be none: `detach` has removed it, or has
    /// left its mark.
    pub(super) fn is_given_up(&self) -> bool {
        let is_removed = self.status().is_ok_and(|status| status.st_nlink == 0);
        is_removed || self.is_marked_detached()
    }

    /// Whether the instance's path leads here.
    pub(super) fn is_in_place(&self) -> bool {
        let now = openat(
            CWD,
            self.path(),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        match (now.and_then(fstat), self.status()) {
            (Ok(now), Ok(own)) => (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino),
            _ => false,
        }
    }

    /// Whether `detach` has begun here and not ended.
    pub(super) fn is_marked_detached(&self) -> bool {
        statat(&*self.directory, DETACHED, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Says that the instance is being taken off, for an agent that did not hear it.
    pub(super) fn mark_detached(&self) -> Result<(), Error> {
        match symlinkat(DETACHED, &*self.directory, DETACHED) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(Error::io(format!("marking {} as detached", self.path().display()))(
                error.into(),
            )),
        }
    }

    /// The names of all that is here.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let reading = || Error::io(format!("reading {}", self.path().display()));
        let names = names_in(self.directory.as_fd()).map_err(reading())?;
        Ok(names.iter().filter_map(|name| name.to_str().ok().map(str::to_owned)).collect())
    }

    /// The slots that have a link pin, ascending.
    pub(super) fn linked_slots(&self) -> Result<Vec<u32>, Error> {
        let reading = || Error::io(format!("reading {}", self.path().display()));
        let entries = entries_of(self.directory.as_fd()).map_err(reading())?;
        let pins = entries.iter().filter(|(_, kind)| *kind == FileType::RegularFile);
        let number = |name: &CString| name.to_str().ok()?.strip_prefix("link_")?.parse().ok();
        let mut slots: Vec<u32> = pins.filter_map(|(name, _)| number(name)).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// The slots that have counters, ascending.
    pub(super) fn counted_slots(&self) -> Result<Vec<u32>, Error> {
        let number =
            |name: &String| name.strip_prefix("counters_")?.split('_').next()?.parse().ok();
        let mut slots: Vec<u32> = self.names()?.iter().filter_map(number).collect();
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }

    /// Whether something of this name is here.
    pub(super) fn has(&self, name: &str) -> Result<bool, Error> {
        match statat(&*self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => {
                Err(Error::io(format!("looking at {}", self.path_of(name).display()))(error.into()))
            }
        }
    }

    /// Opens a pinned object. Follows no link.
    pub(super) fn get(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&*self.directory, name, flags, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no pin"));
        }
        sys::open_pin(&through_proc(file.as_raw_fd()))
    }

    /// Pins an object.
    pub(super) fn pin(&self, object: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        sys::pin(object, &through_proc(self.directory.as_raw_fd()).join(name))
    }

    /// Pins an object in the place of whatever has that name, in one step.
    pub(super) fn replace(&self, object: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
        let new = format!("{name}_new");
        let pinning = || Error::io(format!("pinning {}", self.path_of(name).display()));
        self.remove(&new)?;
        self.pin(object, &new).map_err(pinning())?;
        self.rename(&new, name)
    }

    /// Renames a pin, in the place of what has the other name.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        renameat(&*self.directory, from, &*self.directory, to).map_err(|error| {
            Error::io(format!("pinning {}", self.path_of(to).display()))(error.into())
        })
    }

    /// Removes a pin, or a link that is in its place. A pin that is missing is removed already.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        match unlinkat(&*self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                Err(Error::io(format!("removing {}", self.path_of(name).display()))(error.into()))
            }
        }
    }

    /// Removes everything that is here, but not what is in directories: those are left, and returned.
    pub(super) fn clear(&self) -> Result<Vec<PathBuf>, Error> {
        let reading = || Error::io(format!("reading {}", self.path().display()));
        let mut left = Vec::new();
        let names = names_in(self.directory.as_fd()).map_err(reading())?;
        // The mark goes last, so that an agent that is just waking up sees it, or finds no directory.
        let is_mark = |name: &&CString| name.to_bytes() == DETACHED.as_bytes();
        let (marks, others): (Vec<&CString>, Vec<&CString>) = names.iter().partition(is_mark);
        for name in others.into_iter().chain(marks) {
            match unlinkat(&*self.directory, name.as_c_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) if self.is_directory(name) => {
                    left.push(self.path_of(&name.to_string_lossy()));
                }
                Err(error) => {
                    let path = self.path_of(&name.to_string_lossy());
                    return Err(Error::io(format!("removing {}", path.display()))(error.into()));
                }
            }
        }
        Ok(left)
    }

    fn is_directory(&self, name: &CStr) -> bool {
        statat(&*self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
    }

    /// Removes the directory itself, which must be empty. That of all instances stays: another user could make
    /// one in its place.
    pub(super) fn remove_directory(&self) -> Result<(), Error> {
        let Some(all) = AllPins::open()? else { return Ok(()) };
        match unlinkat(&all.0, self.name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                Err(Error::io(format!("removing {}", self.path().display()))(error.into()))
            }
        }
    }
}

/// What a directory is called that is to take the place of an instance's. No instance has such a name, and the
/// BPF file system allows no dot in one.
fn next_name(instance: &Instance) -> String {
    format!("{}+next", instance.name())
}

fn through_proc(fd: i32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}
