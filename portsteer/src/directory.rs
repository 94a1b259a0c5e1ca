//! Directories in which nobody but root and the process's own user can plant anything: opened once and
//! checked, and then everything in them is named relative to the open descriptor. No link in the last part of
//! a name is ever followed, so that no other user leads root elsewhere.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fchown,
        fstat, linkat, mkdirat, openat, openat2, renameat, statat, unlinkat,
    },
    io::Errno,
    process::{getegid, geteuid},
};

/// The user that the packaged service runs as. Root's commands accept its directories too.
pub(crate) const SERVICE_USER: &str = "portsteer";

/// Where the files of users are listed (passwd(5)).
const USERS: &str = "/etc/passwd";

/// Who else may put files into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// No other user.
    Never,
    /// Every user, if the sticky bit keeps each from touching the others' files, as in `/tmp`.
    IfSticky,
}

/// An open directory that was checked.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// Opens a directory without following any link in its path.
///
/// Where the kernel or a filter of system calls does not know openat2(2), it is opened part by part: systemd's
/// `RestrictSUIDSGID=` answers ENOSYS, since a filter cannot see what is asked of it.
pub(crate) fn open_without_links(path: &Path) -> Result<OwnedFd, Errno> {
    match openat2(CWD, path, DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOSYS) => open_part_by_part(path),
        result => result,
    }
}

fn open_part_by_part(path: &Path) -> Result<OwnedFd, Errno> {
    let mut parts = path.components().peekable();
    let start = if path.is_absolute() { "/" } else { "." };
    let mut fd = openat(CWD, start, DIRECTORY, Mode::empty())?;
    while let Some(part) = parts.next() {
        let name = match part {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            Component::ParentDir => OsStr::new(".."),
            Component::Normal(name) => name,
        };
        // It may be passed through by those who may not read it.
        let passing = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = if parts.peek().is_some() { passing } else { DIRECTORY };
        fd = openat(&fd, name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(|error| {
            let is_link = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::Symlink);
            if is_link { Errno::LOOP } else { error }
        })?;
    }
    Ok(fd)
}

impl Directory {
    /// Opens a directory whose path may lead through links, its last part included: the operator's own.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or other users may write to it.
    pub fn open(path: &Path, others: Others) -> io::Result<Self> {
        let fd = openat(CWD, path, DIRECTORY, Mode::empty())?;
        Self::checked(fd, path, others)
    }

    /// Opens a directory without following any link, and makes what is missing of its path.
    ///
    /// # Errors
    ///
    /// There is a link in the path, it cannot be made or opened, or other users may write to it.
    pub fn make_without_links(path: &Path, mode: u32, others: Others) -> io::Result<Self> {
        let fd = match open_without_links(path) {
            Err(Errno::LOOP) => return Err(has_link(path)),
            Err(Errno::NOENT) => {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(Errno::NOENT.into());
                };
                let here = Path::new(".");
                let parent = if parent.as_os_str().is_empty() { here } else { parent };
                let parent = Self::make_without_links(parent, mode, Others::IfSticky)?;
                make(&parent.fd, name, mode)?;
                open_in(&parent.fd, name).map_err(|error| parent.explain(name, error))?
            }
            result => result?,
        };
        Self::checked(fd, path, others)
    }

    /// A directory in this one, to which no other user may write. `None` where there is none.
    ///
    /// # Errors
    ///
    /// It is a link or no directory, cannot be opened, or other users may write to it.
    pub fn find(&self, name: &str) -> io::Result<Option<Self>> {
        match open_in(&self.fd, OsStr::new(name)) {
            Ok(fd) => Self::checked(fd, &self.path.join(name), Others::Never).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.explain(OsStr::new(name), error)),
        }
    }

    /// The same, made if it is missing.
    ///
    /// # Errors
    ///
    /// As those of [`Directory::find`].
    pub fn find_or_make(&self, name: &str, mode: u32) -> io::Result<Self> {
        make(&self.fd, OsStr::new(name), mode)?;
        let vanished = || io::Error::from(Errno::NOENT);
        let found = self.find(name)?.ok_or_else(vanished)?;
        self.give_to_owner(&found.fd)?;
        Ok(found)
    }

    fn checked(fd: OwnedFd, path: &Path, others: Others) -> io::Result<Self> {
        check(&fstat(&fd)?, others).map_err(|why| {
            let message = format!("the directory {} {why}", path.display());
            io::Error::new(io::ErrorKind::PermissionDenied, message)
        })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// What is wrong with an entry that is to be a directory.
    fn explain(&self, name: &OsStr, error: Errno) -> io::Error {
        let is_link = || {
            let found = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
            found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        };
        match error {
            Errno::LOOP | Errno::NOTDIR if is_link() => has_link(&self.path.join(name)),
            error => error.into(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path by which the kernel finds an entry of this very directory, for calls that take nothing else.
    #[must_use]
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string()).join(name)
    }

    /// Opens a file for reading, without waiting where it is a pipe, and without following a link.
    ///
    /// # Errors
    ///
    /// It cannot be opened. `ELOOP` for a link.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(openat(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Puts a file in the place of the one of this name: written beside it, synced and renamed.
    ///
    /// # Errors
    ///
    /// The disk is full, or may not be written to. What was there before is there still.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        let write = || {
            self.remove(&new)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let mode = Mode::RUSR | Mode::WUSR;
            let fd = openat(&self.fd, &new, flags | OFlags::CLOEXEC, mode)?;
            self.give_to_owner(&fd)?;
            let mut file = File::from(fd);
            file.write_all(content)?;
            file.sync_all()?;
            self.rename(OsStr::new(&new), OsStr::new(name))
        };
        write().inspect_err(|_| {
            // Of no use.
            let _ = self.remove(&new);
        })
    }

    /// Renames an entry, for good.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        renameat(&self.fd, from, &self.fd, to)?;
        // A directory for reading, as this is, can be synced.
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Gives a file a second name, in place of what had it.
    ///
    /// # Errors
    ///
    /// The disk may not be written to, or has no links.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let new = format!("{to}.new");
        self.remove(&new)?;
        linkat(&self.fd, from, &self.fd, &new, AtFlags::empty())?;
        self.rename(OsStr::new(&new), OsStr::new(to))
    }

    /// Removes a file. It need not be there.
    ///
    /// # Errors
    ///
    /// The disk may not be written to.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match unlinkat(&self.fd, name.as_ref(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What an entry is, itself if it is a link. `None` where there is none.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an entry to a group and sets its permissions, itself if it is a link.
    ///
    /// # Errors
    ///
    /// That is not permitted.
    pub fn set_access(&self, name: &OsStr, group: Option<u32>, mode: u32) -> io::Result<()> {
        // The same file for both, whatever takes its name meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = openat(&self.fd, name, flags, Mode::empty())?;
        if fstat(&entry)?.st_uid != geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "another user took its place",
            ));
        }
        if let Some(group) = group {
            chownat(&entry, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        }
        let path = Path::new("/proc/self/fd").join(entry.as_raw_fd().to_string());
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
    }

    /// The names of all entries that are text.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// What root makes for another user belongs to that user, as the directory does.
    fn give_to_owner(&self, made: impl AsFd) -> io::Result<()> {
        let (directory, stat) = (fstat(&self.fd)?, fstat(&made)?);
        if geteuid().is_root() && stat.st_uid == 0 && directory.st_uid != 0 {
            let (uid, gid) = (Uid::from_raw(directory.st_uid), Gid::from_raw(directory.st_gid));
            fchown(made, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_in(directory: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

fn make(directory: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<()> {
    match mkdirat(directory, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn has_link(path: &Path) -> io::Error {
    let help = match fs::canonicalize(path) {
        Ok(real) => format!(": if that is meant, write {}", real.display()),
        Err(_) => String::new(),
    };
    let message = format!("there is a symbolic link in {}{help}", path.display());
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Whether another user may have put something into a directory. In words, who and what to do.
fn check(stat: &Stat, others: Others) -> Result<(), String> {
    if !is_trusted(stat.st_uid) {
        let own = geteuid().as_raw();
        return Err(format!(
            "belongs to user {}, not to root or the agent's user: `chown {own}` it, or name another one",
            stat.st_uid
        ));
    }
    // <sys/stat.h>: S_ISVTX, S_IWGRP and S_IWOTH.
    let (sticky, group, world) = (0o1000, 0o020, 0o002);
    if others == Others::IfSticky && stat.st_mode & sticky != 0 {
        return Ok(());
    }
    let by_group =
        stat.st_mode & group != 0 && stat.st_gid != 0 && stat.st_gid != getegid().as_raw();
    match stat.st_mode & world != 0 || by_group {
        true => Err(format!(
            "may be written to by other users (mode {:04o}): `chmod go-w` it, or name another one",
            stat.st_mode & 0o7777
        )),
        false => Ok(()),
    }
}

fn is_trusted(user: u32) -> bool {
    let own = geteuid().as_raw();
    user == 0 || user == own || (own == 0 && service_user() == Some(user))
}

/// The id of the user that the packaged service runs as, if there is one.
pub(crate) fn service_user() -> Option<u32> {
    let users = fs::read_to_string(USERS).ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(SERVICE_USER)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The same file with the same content, as far as its times tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    device: u64,
    inode: u64,
    len: u64,
    /// When its content was changed last, in seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// The same of anything about it. Unlike `modified`, no program can set it.
    changed: (i64, i64),
}

impl FileState {
    /// That of a file as it is now.
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The same at another time, in seconds and nanoseconds.
    #[cfg(test)]
    pub fn at(&self, seconds: i64, nanoseconds: i64) -> Self {
        let time = (seconds, nanoseconds);
        Self { modified: time, changed: time, ..*self }
    }

    /// Its length, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When it was changed last, in nanoseconds since 1970.
    #[must_use]
    pub fn changed_at(&self) -> i128 {
        i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1)
    }

    /// Whether its times may be in whole seconds, as some file systems have them.
    #[must_use]
    pub fn is_coarse(&self) -> bool {
        self.changed.1 == 0 && self.modified.1 == 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn part_by_part_a_directory_is_opened_as_openat2_does() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        std::fs::create_dir_all(place.join("a/b")).unwrap();
        std::fs::write(place.join("file"), "").unwrap();
        std::os::unix::fs::symlink(place.join("a"), place.join("link")).unwrap();
        std::os::unix::fs::symlink("b", place.join("a/last")).unwrap();
        let paths = ["a/b", "a/../a/b", "link/b", "a/last", "a/missing", "file", "file/b", "."];
        for path in paths.map(|path| place.join(path)) {
            let opened = [open_without_links(&path), open_part_by_part(&path)];
            let [one, other] = opened.map(|fd| {
                fd.map(|fd| fstat(fd).unwrap()).map(|status| (status.st_dev, status.st_ino))
            });
            assert_eq!(one, other, "{}", path.display());
        }
    }

    #[test]
    fn directories_of_others_and_links_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let base = Directory::open(place.path(), Others::Never).unwrap();
        assert!(base.find("none").unwrap().is_none());
        let made = base.find_or_make("own", 0o700).unwrap();
        made.replace("file", b"content").unwrap();
        let own = place.path().join("own");
        for mode in [0o702, 0o1777, 0o777] {
            set_mode(&own, mode);
            let error = base.find("own").unwrap_err().to_string();
            assert!(error.contains("may be written to by other users"), "{error}");
        }
        set_mode(&own, 0o1777);
        assert!(Directory::open(&own, Others::IfSticky).is_ok());
        set_mode(&own, 0o755);
        assert!(base.find("own").unwrap().is_some());
        symlink("own", place.path().join("link")).unwrap();
        let error = base.find("link").unwrap_err().to_string();
        assert!(
            error.contains("a symbolic link") && error.contains(own.to_str().unwrap()),
            "{error}"
        );
        if geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
            let error = base.find("own").unwrap_err().to_string();
            assert!(error.contains("belongs to user 65534"), "{error}");
        }
    }

    #[test]
    fn no_part_of_a_path_is_a_link() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().join("real");
        let made = Directory::make_without_links(&real.join("a/b"), 0o755, Others::IfSticky);
        assert!(made.is_ok() && real.join("a/b").is_dir());
        symlink("real", place.path().join("link")).unwrap();
        for below in ["a/b", "a/new"] {
            let path = place.path().join("link").join(below);
            let error = Directory::make_without_links(&path, 0o755, Others::IfSticky).unwrap_err();
            assert!(error.to_string().contains("a symbolic link"), "{error}");
        }
        assert!(!real.join("a/new").exists());
    }

    #[test]
    fn no_link_in_a_file_s_place_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let base = Directory::open(place.path(), Others::Never).unwrap();
        let theirs = place.path().join("theirs");
        fs::write(&theirs, "theirs").unwrap();
        for name in ["file", "file.new"] {
            symlink("theirs", place.path().join(name)).unwrap();
        }
        assert_eq!(
            base.open_file("file").unwrap_err().raw_os_error(),
            Some(Errno::LOOP.raw_os_error())
        );
        base.replace("file", b"mine").unwrap();
        assert_eq!(fs::read(&theirs).unwrap(), b"theirs");
        assert_eq!(fs::read(place.path().join("file")).unwrap(), b"mine");
        assert_eq!(base.names().unwrap().len(), 2);
    }
}
