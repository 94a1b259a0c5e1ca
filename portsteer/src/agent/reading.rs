//! Reads files whole, and only regular ones: nothing waits for whoever would write to a pipe. What other
//! programs write meanwhile is told by the file's times, so that no mixture of two versions is taken for one.
//!
//! What cannot be seen: a program that writes through a mapping (`mmap`), of which the kernel notes a time only
//! now and then; one that pauses for longer than [`QUIET`] in the midst of writing; and, on a network file
//! system, what happens while the server's clock is behind. A program that puts a whole new file in the old one's
//! place, by a rename, is safe from all of these.

use std::{
    fs::{File, FileType, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::bundle::ContentHash;
use crate::{compile::Interrupt, directory::FileState};

/// For how long a file has to have stood still before it is read. The kernel's times come from a clock that
/// goes by ticks, which are 10 ms at most (`HZ=100`): whatever is written later than that has another time.
pub const QUIET: Duration = Duration::from_millis(20);

/// How often a file that does not stand still is tried.
const TRIES: usize = 10;

/// How much is read between two looks at the interrupt, in bytes.
const PIECE: u64 = 4 << 20;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, a pipe, a socket or a device.
    #[error("it is {0}, no regular file")]
    Irregular(&'static str),
    /// Longer than so many bytes.
    #[error("it is longer than {} MiB", .0 >> 20)]
    TooLong(u64),
    #[error(
        "it changed while it was read; put a whole new file in its place (`mv`) rather than write to it"
    )]
    Changing,
    #[error("interrupted while it was read")]
    Interrupted,
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Io(_) => {
                let ReadError::Io(error) = error else { unreachable!("it was one") };
                return error;
            }
            ReadError::Irregular(_) => io::ErrorKind::InvalidInput,
            ReadError::TooLong(_) => io::ErrorKind::FileTooLarge,
            ReadError::Changing => io::ErrorKind::ResourceBusy,
            ReadError::Interrupted => io::ErrorKind::Interrupted,
        };
        Self::new(kind, error.to_string())
    }
}

/// Reads a file that may be changed by others meanwhile, up to so many bytes.
///
/// # Errors
///
/// It is no regular file, cannot be read, is longer, or does not stand still.
pub fn read_still(path: &Path, most: u64, interrupt: &Interrupt) -> Result<Vec<u8>, ReadError> {
    read_settled(&open(path)?, most, interrupt, &mut SystemTimes)
}

/// The clock by which files have their times, and waiting by it.
trait Times {
    /// Nanoseconds since 1970.
    fn now(&mut self) -> i128;
    /// Waits for [`QUIET`].
    fn wait(&mut self);
}

struct SystemTimes;

impl Times for SystemTimes {
    fn now(&mut self) -> i128 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i128
    }

    fn wait(&mut self) {
        thread::sleep(QUIET);
    }
}

fn read_settled(
    file: &File,
    most: u64,
    interrupt: &Interrupt,
    times: &mut impl Times,
) -> Result<Vec<u8>, ReadError> {
    let mut seen: Option<ContentHash> = None;
    for _ in 0..TRIES {
        let before = FileState::of(&file.metadata()?);
        match age(&before, times.now()) {
            Age::Fresh => seen = None,
            age => {
                let content = read_open(file, most, interrupt)?;
                let is_whole = content.len() as u64 == before.len();
                if !is_whole || FileState::of(&file.metadata()?) != before {
                    seen = None;
                } else if age == Age::Settled {
                    return Ok(content);
                } else {
                    let now = ContentHash::of(&content);
                    if seen.replace(now.clone()) == Some(now) {
                        return Ok(content);
                    }
                }
                rewind(file)?;
            }
        }
        if interrupt.is_set() {
            return Err(ReadError::Interrupted);
        }
        times.wait();
    }
    Err(ReadError::Changing)
}

/// What a file's times say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// What is written from now on shows.
    Settled,
    /// Something may be written in the same tick as the last time.
    Fresh,
    /// They say nothing: they are in whole seconds, or to come.
    Unknown,
}

fn age(state: &FileState, now: i128) -> Age {
    match now - state.changed_at() {
        _ if state.is_coarse() => Age::Unknown,
        age if age < 0 => Age::Unknown,
        age if age < QUIET.as_nanos() as i128 => Age::Fresh,
        _ => Age::Settled,
    }
}

fn rewind(mut file: &File) -> io::Result<()> {
    io::Seek::rewind(&mut file)
}

/// Opens a regular file without waiting for anything.
///
/// # Errors
///
/// It is none, or cannot be opened.
pub fn open(path: &Path) -> Result<File, ReadError> {
    // Opening a device can already do something.
    regular(&path.metadata()?)?;
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// Reads an open file to its end, up to so many bytes.
///
/// # Errors
///
/// It is no regular file, cannot be read, or is longer.
pub fn read_open(file: &File, most: u64, interrupt: &Interrupt) -> Result<Vec<u8>, ReadError> {
    let metadata = file.metadata()?;
    regular(&metadata)?;
    if metadata.len() > most {
        return Err(ReadError::TooLong(most));
    }
    let mut content = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    loop {
        if interrupt.is_set() {
            return Err(ReadError::Interrupted);
        }
        if file.take(PIECE).read_to_end(&mut content)? == 0 {
            return Ok(content);
        }
        if content.len() as u64 > most {
            return Err(ReadError::TooLong(most));
        }
    }
}

/// Refuses everything that is no regular file.
fn regular(metadata: &Metadata) -> Result<(), ReadError> {
    let kind = metadata.file_type();
    if kind.is_file() { Ok(()) } else { Err(ReadError::Irregular(kind_name(kind))) }
}

fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Time goes on only by what is done while the reader waits.
    struct Scripted<F> {
        now: i128,
        meanwhile: F,
    }

    impl<F: FnMut(&mut i128)> Times for Scripted<F> {
        fn now(&mut self) -> i128 {
            self.now
        }

        fn wait(&mut self) {
            (self.meanwhile)(&mut self.now);
        }
    }

    fn changed_at(path: &Path) -> i128 {
        FileState::of(&path.metadata().unwrap()).changed_at()
    }

    fn read_while(
        path: &Path,
        now: i128,
        meanwhile: impl FnMut(&mut i128),
    ) -> Result<Vec<u8>, ReadError> {
        let mut times = Scripted { now, meanwhile };
        read_settled(&open(path)?, 1 << 20, &Interrupt::default(), &mut times)
    }

    /// A millisecond in nanoseconds: less than a tick of the kernel's clock.
    const MOMENT: i128 = 1_000_000;

    /// A program that writes in pieces, and pauses for a moment after each: while it pauses, nothing changes, and
    /// the file is a mixture.
    #[test]
    fn a_file_that_is_being_written_is_not_read_before_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set");
        let write = |pieces: usize| {
            let content = ["b".repeat(pieces), "a".repeat(4 - pieces)].concat();
            fs::write(&path, content).unwrap();
            changed_at(&path) + MOMENT
        };
        let mut pieces = 1;
        let content = read_while(&path, write(pieces), |now| {
            pieces += 1;
            *now = if pieces <= 4 { write(pieces) } else { *now + QUIET.as_nanos() as i128 };
        });
        assert_eq!(content.unwrap(), b"bbbb");

        // One that never ends.
        let mut pieces = 1;
        let refused = read_while(&path, write(pieces), |now| {
            pieces = pieces % 3 + 1;
            *now = write(pieces);
        });
        assert!(matches!(refused, Err(ReadError::Changing)), "{refused:?}");
    }

    /// As after the clock was set back: times are to come, and the content is compared instead.
    #[test]
    fn where_times_say_nothing_content_is_read_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set");
        fs::write(&path, "first").unwrap();
        let mut is_changed = false;
        let mut waited = 0;
        let content = read_while(&path, 0, |_| {
            waited += 1;
            if !std::mem::replace(&mut is_changed, true) {
                fs::write(&path, "other").unwrap();
            }
        });
        assert_eq!((content.unwrap(), waited), (b"other".to_vec(), 2));

        let state = FileState::of(&path.metadata().unwrap());
        let now = 1_000_000_000 * 1_000_000_000;
        assert_eq!(age(&state.at(999_999_000, 0), now), Age::Unknown, "whole seconds");
        assert_eq!(age(&state.at(999_999_000, 1), now), Age::Settled);
        assert_eq!(age(&state.at(1_000_000_000, 1), now), Age::Unknown, "to come");
        assert_eq!(age(&state.at(999_999_999, 990_000_000), now), Age::Fresh);
    }

    #[test]
    fn a_file_is_read_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set");
        fs::write(&path, "10.0.0.1\n").unwrap();
        let read = |most| read_still(&path, most, &Interrupt::default());
        assert_eq!(read(9).unwrap(), b"10.0.0.1\n");
        assert!(matches!(read(8), Err(ReadError::TooLong(8))));
        let interrupt = Interrupt::default();
        interrupt.set();
        let ended = read_still(&path, 9, &interrupt);
        assert!(matches!(ended, Err(ReadError::Interrupted)), "{ended:?}");
    }
}
