//! Reading a policy file, and what the lints want to know of this host.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    thread,
    time::Duration,
};

use super::{
    Bundle, Error,
    bundle::Recorded,
    reading::{ReadError, read_still},
    set_files::{MAX_SET_FILES_LEN, PolicyFiles},
};
use crate::{
    api::Refusal,
    compile::CompileError,
    dataplane::Error as DataplaneError,
    interrupt::Interrupt,
    policy::{self, Policy, diagnostic::Diagnostic, file::MAX_SET_FILES, services::Services},
};

/// A policy that was read and understood.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// As it was read: its text and the files of its sets.
    pub bundle: Bundle,
    pub policy: Policy,
    /// What the parser and the lints have to say.
    pub warnings: Vec<Diagnostic>,
}

impl LoadedPolicy {
    /// The policy file's text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.bundle.text
    }

    /// The policy file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.bundle.path)
    }
}

/// The names of ports: the embedded ones, and those that the host's own file adds.
#[must_use]
pub fn services() -> Services {
    match fs::read_to_string("/etc/services") {
        Ok(text) => Services::embedded().with_etc_services(&text),
        Err(_) => Services::embedded(),
    }
}

/// The longest policy file that is read, in bytes. 100,000 rules of every kind are some 12 MiB; a
/// file of this length that is made to be large takes up to 1.5 GiB while it is read.
pub const MAX_POLICY_LEN: u64 = 32 << 20;

/// Held while a policy is read: what that takes of memory is taken once, however many requests there are.
static READING: Mutex<()> = Mutex::new(());

/// The right to read a policy.
struct Turn<'a> {
    interrupt: &'a Interrupt,
    _alone: MutexGuard<'static, ()>,
}

impl<'a> Turn<'a> {
    /// Waits for those who read others.
    fn wait(interrupt: &'a Interrupt) -> Result<Self, Error> {
        interrupt.note_harmless(true);
        loop {
            match READING.try_lock() {
                Ok(alone) => return Ok(Self { interrupt, _alone: alone }),
                Err(TryLockError::Poisoned(alone)) => {
                    return Ok(Self { interrupt, _alone: PoisonError::into_inner(alone) });
                }
                Err(TryLockError::WouldBlock) => {}
            }
            not_interrupted(interrupt)?;
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.interrupt.note_harmless(false);
    }
}

/// Ends what nobody waits for any more.
pub(super) fn not_interrupted(interrupt: &Interrupt) -> Result<(), Error> {
    match interrupt.is_set() {
        true => Err(DataplaneError::Compile(CompileError::Interrupted).into()),
        false => Ok(()),
    }
}

/// Reads a policy file, and the files that its sets name.
///
/// # Errors
///
/// It cannot be read, or it has errors, which those of the sets' files are among.
pub fn load_policy(path: &Path) -> Result<LoadedPolicy, Error> {
    load_until(path, &Interrupt::default())
}

fn load_until(path: &Path, interrupt: &Interrupt) -> Result<LoadedPolicy, Error> {
    let turn = Turn::wait(interrupt)?;
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let bytes = read_still(path, MAX_POLICY_LEN, interrupt).map_err(|error| match error {
        ReadError::Interrupted => interrupted(),
        error => unreadable(error.into()),
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        unreadable(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is not UTF-8 from byte {at} on"),
        ))
    })?;
    let mut files = Recorded::new(PolicyFiles::beside(path).until(interrupt));
    let parsed = policy::file::parse_until(&text, &services(), Some(&mut files), interrupt);
    not_interrupted(interrupt)?;
    let path = path.display().to_string();
    let files = files.into_files();
    understood(Bundle { path, is_path_trusted: false, text, files }, parsed, turn)
}

/// Reads a policy file or a set's file as it is, for what is written there later.
///
/// # Errors
///
/// It is no regular file, cannot be read, or does not stand still.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    Ok(read_still(path, MAX_SET_FILES_LEN, &Interrupt::default())?)
}

/// Reads the agent's own policy file. In listings it has a path that says where it is to whoever reads them elsewhere.
///
/// # Errors
///
/// As those of [`load_policy`].
pub(super) fn load_own(path: &Path, interrupt: &Interrupt) -> Result<LoadedPolicy, Error> {
    let mut loaded = load_until(path, interrupt)?;
    if let Ok(path) = std::path::absolute(path) {
        loaded.bundle.path = path.display().to_string();
        loaded.bundle.is_path_trusted = true;
    }
    Ok(loaded)
}

/// Understands a policy that was read before.
///
/// # Errors
///
/// It has errors.
pub fn understand(bundle: Bundle) -> Result<LoadedPolicy, Error> {
    understand_until(bundle, &Interrupt::default())
}

/// Understands a policy that was read before, one at a time, and gives up soon once it is interrupted.
///
/// # Errors
///
/// It has errors, or it was interrupted.
pub fn understand_until(bundle: Bundle, interrupt: &Interrupt) -> Result<LoadedPolicy, Error> {
    check_len(&bundle.text)?;
    let count = bundle.files.len();
    if count > MAX_SET_FILES {
        let refusal = Refusal::bad_input(format!(
            "{count} set files were sent along, and a policy has at most {MAX_SET_FILES}"
        ));
        let help = "put the addresses of several sets into one file, or into the policy";
        return Err(Error::Refused(refusal.help(help)));
    }
    let turn = Turn::wait(interrupt)?;
    let services = services();
    let parsed = {
        let mut files = bundle.set_files();
        policy::file::parse_until(&bundle.text, &services, Some(&mut files), interrupt)
    };
    understood(bundle, parsed, turn)
}

/// Of work that is not waited for any more.
pub(super) fn interrupted() -> Error {
    Error::Dataplane(DataplaneError::Compile(CompileError::Interrupted))
}

/// Refuses a policy that is longer than a file may be.
pub(super) fn check_len(text: &str) -> Result<(), Error> {
    if text.len() as u64 <= MAX_POLICY_LEN {
        return Ok(());
    }
    let message = format!("the policy is longer than {} MiB", MAX_POLICY_LEN >> 20);
    Err(Error::Refused(Refusal::bad_input(message)))
}

fn understood(
    bundle: Bundle,
    parsed: Result<policy::file::Parsed, Vec<Diagnostic>>,
    turn: Turn<'_>,
) -> Result<LoadedPolicy, Error> {
    // What an interrupted reader says of the policy need not be so.
    not_interrupted(turn.interrupt)?;
    match parsed {
        Ok(parsed) => {
            let mut warnings = parsed.warnings;
            warnings.extend(policy::lint::lint(&parsed.policy, &host_facts()));
            not_interrupted(turn.interrupt)?;
            Ok(LoadedPolicy { bundle, policy: parsed.policy, warnings })
        }
        Err(diagnostics) => {
            let (path, text) = (PathBuf::from(bundle.path), bundle.text);
            Err(Error::Policy { path, text, diagnostics })
        }
    }
}

/// What the lints want to know of this host.
pub(super) fn host_facts() -> policy::lint::HostFacts {
    let read = |path: &str| fs::read_to_string(path).ok();
    let ephemeral_ports = read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| {
        let mut numbers = text.split_whitespace().map(str::parse::<u16>);
        let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (first <= last).then_some(policy::PortRange { first, last })
    });
    let forwards = |path| read(path).map(|text| text.trim() != "0");
    let v4 = forwards("/proc/sys/net/ipv4/ip_forward");
    let v6 = forwards("/proc/sys/net/ipv6/conf/all/forwarding");
    let forwards = match (v4, v6) {
        (None, None) => None,
        (v4, v6) => Some(v4 == Some(true) || v6 == Some(true)),
    };
    policy::lint::HostFacts { ephemeral_ports, forwards }
}

#[cfg(test)]
mod growth;
