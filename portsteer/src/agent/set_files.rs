//! The files that a policy's sets name, relative to the policy's own place.

use std::path::{Path, PathBuf};

use super::{
    access,
    reading::{ReadError, read_still},
};
use crate::{compile::Interrupt, policy::file::SetFiles};

/// How long the set files of one policy are altogether at most, in bytes.
pub const MAX_SET_FILES_LEN: u64 = 256 << 20;

/// Reads set files.
#[derive(Debug)]
pub struct PolicyFiles {
    /// Where the policy is.
    directory: PathBuf,
    /// How many bytes may still be read.
    room: u64,
    /// Ends reading.
    interrupt: Interrupt,
}

impl PolicyFiles {
    /// The files of the policy at `path`.
    #[must_use]
    pub fn beside(path: &Path) -> Self {
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        Self { directory, room: MAX_SET_FILES_LEN, interrupt: Interrupt::default() }
    }

    /// The same, read until they are not waited for any more.
    #[must_use]
    pub fn until(self, interrupt: &Interrupt) -> Self {
        Self { interrupt: interrupt.clone(), ..self }
    }
}

impl SetFiles for PolicyFiles {
    fn read(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let path = self.directory.join(name);
        let read = read_still(&path, self.room, &self.interrupt);
        let content = read.map_err(|error| {
            let reason = match error {
                ReadError::TooLong(_) => {
                    let most = MAX_SET_FILES_LEN >> 20;
                    format!("with it, the set files of the policy are longer than {most} MiB")
                }
                ReadError::Io(error) => match access::advice(&path, &error) {
                    Some(advice) => format!("{error}; {advice}"),
                    None => error.to_string(),
                },
                error => error.to_string(),
            };
            format!("{}: {reason}", path.display())
        })?;
        self.room -= content.len() as u64;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::CString,
        fs::{self, File},
        os::unix::net::UnixListener,
    };

    use tempfile::TempDir;

    use super::{
        super::{Error, load_policy},
        *,
    };

    struct Place {
        directory: TempDir,
        files: PolicyFiles,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let files = PolicyFiles::beside(&directory.path().join("p.toml"));
            Self { directory, files }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// The reason without the file's path, which has to stand first.
        fn refusal(&mut self, name: &str) -> String {
            let path = self.path(name);
            let reason = self.files.read(name).expect_err(name);
            reason.strip_prefix(&format!("{}: ", path.display())).expect("the path").to_owned()
        }
    }

    #[test]
    fn files_are_looked_for_beside_the_policy() {
        let mut place = Place::new();
        fs::create_dir(place.path("sub")).unwrap();
        fs::write(place.path("sub/a.txt"), b"10.0.0.1\n\xff").unwrap();
        assert_eq!(place.files.read("sub/a.txt").unwrap(), b"10.0.0.1\n\xff");
        let absolute = place.path("sub/a.txt");
        let mut elsewhere = PolicyFiles::beside(Path::new("p.toml"));
        assert_eq!(elsewhere.directory, Path::new(""));
        assert_eq!(elsewhere.read(absolute.to_str().unwrap()).unwrap(), b"10.0.0.1\n\xff");
        fs::write(place.path("empty"), b"").unwrap();
        assert_eq!(place.files.read("empty").unwrap(), b"");
        // A link to a regular file is as good as the file.
        std::os::unix::fs::symlink("sub/a.txt", place.path("link")).unwrap();
        assert!(place.files.read("link").is_ok());
    }

    #[test]
    fn a_policy_is_loaded_with_them() {
        let place = Place::new();
        let text = "version = 1\ninterfaces = ['lo']\n[sets.a]\nfile = 'a'\n\
                    [[rules]]\nsrc = '@a'\naction = 'drop'\n";
        let policy = place.path("p.toml");
        fs::write(&policy, text).unwrap();
        let Err(Error::Policy { diagnostics, .. }) = load_policy(&policy) else {
            panic!("there is no such file");
        };
        assert_eq!(diagnostics[0].message, "the set file `a` cannot be read");
        let label =
            format!("{}: No such file or directory (os error 2)", place.path("a").display());
        assert_eq!(diagnostics[0].label, Some(label));
        fs::write(place.path("a"), "10.0.0.0/8\n").unwrap();
        let loaded = load_policy(&policy).unwrap();
        assert_eq!(*loaded.policy.sets[0].prefixes, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let mut place = Place::new();
        fs::create_dir(place.path("directory")).unwrap();
        let fifo = CString::new(place.path("pipe").to_str().unwrap()).unwrap();
        // SAFETY: the path is a string that ends in NUL and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let _listener = UnixListener::bind(place.path("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.path("zero")).unwrap();
        for (name, expected) in [
            ("directory", "it is a directory, no regular file"),
            ("pipe", "it is a pipe, no regular file"),
            ("socket", "it is a socket, no regular file"),
            ("zero", "it is a device, no regular file"),
            ("missing", "No such file or directory (os error 2)"),
        ] {
            assert_eq!(place.refusal(name), expected);
        }
    }

    #[test]
    fn files_have_their_limit_together() {
        let mut place = Place::new();
        let expected = "with it, the set files of the policy are longer than 256 MiB";
        // Holes: nothing of this is on the disk.
        let holes = |name: &str, len| {
            File::create(place.directory.path().join(name)).unwrap().set_len(len).unwrap();
        };
        holes("huge", 1 << 40);
        holes("long", MAX_SET_FILES_LEN + 1);
        holes("short", 1000);
        assert_eq!(place.refusal("huge"), expected);
        assert_eq!(place.refusal("long"), expected);
        place.files.room = 1999;
        assert_eq!(place.files.read("short").unwrap().len(), 1000);
        assert_eq!(place.refusal("short"), expected);
        place.files.room = 1000;
        assert!(place.files.read("short").is_ok());
    }

    /// Files of the kernel that say they are empty, and are not.
    #[test]
    fn a_file_that_is_longer_than_it_says_has_changed() {
        let mut place = Place::new();
        std::os::unix::fs::symlink("/proc/self/status", place.path("status")).unwrap();
        assert!(place.refusal("status").starts_with("it changed while it was read"));
    }
}
