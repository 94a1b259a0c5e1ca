//! An instance: a name, a directory of pins, and a lock.
//!
//! ```text
//! /sys/fs/bpf/portsteer/NAME/
//!     active                   which bank is in force, and whether it is on trial
//!     policy                   the compiled policy, in two banks
//!     manifest_0, manifest_1   what the image in that bank was compiled from
//!     interfaces               which interface has which slot
//!     link_SLOT                the attachment, one per interface
//!     counters_SLOT_PAGES      what its program has counted
//!     counters_SLOT_carried    what it had counted in the layout of the version before
//!     trial                    the timer of a policy on trial
//!     retired                  what interfaces had counted that are no longer attached
//!     devices, device_slots    the interfaces of targets, by target and the other way round
//!     cpus                     the CPUs of targets, and their queues
//!     losses                   what did not get to its target
//!     repairs                  offloads that were switched for a policy
//!     watch_PROGRAM_OBJECT     what listens to the kernel's tracepoints while a policy steers
//!     detached                 a mark: `portsteer detach` is at work here
//! ```
//!
//! How the directory is reached is in [`super::pins`].

use std::{fs, path::PathBuf};

use super::{Error, kernel::BPFFS, pins::PinDir};

/// A name under which a dataplane is kept apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

/// The exclusive right to change an instance. It ends with the value, or with the process.
#[derive(Debug)]
pub struct Lock {
    /// Held for its lock.
    pins: PinDir,
}

impl Lock {
    /// Whether it is still the right to change the instance: `detach` removes the directory.
    pub(super) fn holds(&self) -> bool {
        !self.pins.is_given_up()
    }

    /// The right to change what has taken the place of what was locked, and is locked itself.
    pub(super) fn of(pins: PinDir) -> Self {
        Self { pins }
    }

    /// What is locked.
    pub(super) fn pins(&self) -> &PinDir {
        &self.pins
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

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its pins are, for messages: nothing is opened by this path.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(BPFFS).join("portsteer").join(&self.name)
    }

    /// Whether there are pins of this instance.
    ///
    /// # Errors
    ///
    /// The BPF file system may not be looked at, or another user's directory is in the place of the pins.
    pub fn exists(&self) -> Result<bool, Error> {
        Ok(PinDir::open(self)?.is_some())
    }

    /// Makes the directory if it is missing and takes the lock on it.
    ///
    /// # Errors
    ///
    /// [`Error::InstanceBusy`] if another process holds it, [`Error::ForeignDirectory`] if another user has put
    /// something in its place.
    pub fn lock(&self) -> Result<Lock, Error> {
        loop {
            let pins = PinDir::make(self)?;
            if !pins.try_lock()? {
                let pid = pins.inode().ok().and_then(lock_holder);
                return Err(Error::InstanceBusy { instance: self.name.clone(), pid });
            }
            // A lock on a directory that `detach` has removed meanwhile keeps no other process out.
            if pins.is_in_place() {
                return Ok(Lock { pins });
            }
        }
    }

    /// The process that has the right to change the instance, where that can be seen.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        let pins = PinDir::open(self).ok()??;
        lock_holder(pins.inode().ok()?)
    }
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
