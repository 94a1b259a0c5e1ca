//! Taking a dataplane off its interfaces. It takes nothing but the pins.

use std::os::fd::{AsFd, OwnedFd};

use super::{
    Error, Instance, carrying, describe_switched, kernel,
    maps::{self, carried_pin, counters_pin, link_pin},
    pins::PinDir,
    repairs::{self, Repairs},
    slots::Slot,
    sys,
};
use crate::netlink;

/// What [`detach`] did.
#[derive(Debug, Clone, Default)]
pub struct Detached {
    /// The interfaces that were taken off.
    pub interfaces: Vec<String>,
    /// What else the operator should know, in words.
    pub notes: Vec<String>,
}

/// Takes an instance's dataplane off all interfaces, switches offloads back and removes the pins,
/// whatever their layout and whether or not an agent runs.
///
/// # Errors
///
/// [`Error::NotAttached`] if there are no pins, [`Error::ForeignDirectory`] if they are not portsteer's.
pub fn detach(instance: &Instance) -> Result<Detached, Error> {
    kernel::check()?;
    let not_attached = || Error::NotAttached(instance.name().to_owned());
    let pins = PinDir::open(instance)?.ok_or_else(not_attached)?;
    // With the lock, no agent comes in between. An agent that has it hangs: it finds the mark when it goes on.
    if !pins.try_lock()? {
        pins.mark_detached()?;
    }
    take_off(&pins)
}

/// Ends what a `detach` has begun that was killed. Returns the interfaces that were attached still; `None` if there was
/// no such `detach`.
pub(super) fn finish(pins: &PinDir) -> Result<Option<Vec<String>>, Error> {
    if !pins.is_marked_detached() {
        return Ok(None);
    }
    let detached = detach_links(pins)?;
    carrying::forget_next(pins)?;
    pins.clear()?;
    Ok(Some(detached))
}

/// How often the directory is emptied, if an agent that does not hear goes on to pin.
const ROUNDS: usize = 10;

/// The same for pins that are opened.
pub(super) fn take_off(pins: &PinDir) -> Result<Detached, Error> {
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    let mut detached = Detached { interfaces: detach_links(pins)?, notes: Vec::new() };
    if let Some(repairs) = Repairs::open(pins) {
        detached.notes = describe_switched(&[], &repairs.undo(&links, |_| false)?);
        let elsewhere = repairs.present()?;
        if !elsewhere.is_empty() {
            detached.notes.push(format!(
                "still switched, in another network namespace: {}",
                repairs::describe(&elsewhere)
            ));
        }
    }
    carrying::forget_next(pins)?;
    for round in 1.. {
        let left = pins.clear()?;
        if !left.is_empty() {
            let left: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
            detached.notes.push(format!(
                "left as it is, because portsteer makes no directories there: {}",
                left.join(", ")
            ));
            break;
        }
        match pins.remove_directory() {
            Ok(()) => break,
            // Something was pinned just now: by an agent that was in the middle of it.
            Err(_) if round < ROUNDS => {
                detached.interfaces.extend(detach_links(pins)?);
            }
            Err(error) => return Err(error),
        }
    }
    if detached.interfaces.is_empty() {
        return Err(Error::NotAttached(pins.instance().name().to_owned()));
    }
    Ok(detached)
}

/// Detaches all links, and says what their interfaces are called.
fn detach_links(pins: &PinDir) -> Result<Vec<String>, Error> {
    let interfaces = pins.get("interfaces").ok();
    let name = |slot: u32| {
        let map = interfaces.as_ref()?;
        let name = Slot::read(map.as_fd(), slot).ok()?.name();
        (!name.is_empty()).then_some(name)
    };
    let mut detached = Vec::new();
    for slot in pins.linked_slots()? {
        detached.push(name(slot).unwrap_or_else(|| format!("(slot {slot})")));
        detach_slot(pins, slot)?;
    }
    Ok(detached)
}

/// Takes one interface off and forgets what it has counted.
fn detach_slot(pins: &PinDir, slot: u32) -> Result<(), Error> {
    match pins.get(&link_pin(slot)) {
        // Gone just now, or no pin at all: not ours, but in our way.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData
            ) => {}
        Err(error) => return Err(Error::io(format!("opening `{}`", link_pin(slot)))(error)),
        // No link at all.
        Ok(link) if sys::xdp_link_info(link.as_fd()).is_err() => {}
        Ok(link) => force_detach(&link, slot)?,
    }
    remove_slot(pins, slot)
}

/// Detaches a link for good: another process may hold it, and removing a pin would take effect only
/// a moment later.
pub(super) fn force_detach(link: &OwnedFd, slot: u32) -> Result<(), Error> {
    sys::link_detach(link.as_fd()).map_err(Error::io(format!("detaching slot {slot}")))
}

/// Removes a slot's pins, that of the link last: as long as it is there, the slot is taken.
pub(super) fn remove_slot(pins: &PinDir, slot: u32) -> Result<(), Error> {
    maps::sizes().try_for_each(|pages| pins.remove(&counters_pin(slot, pages)))?;
    pins.remove(&carried_pin(slot))?;
    let link = link_pin(slot);
    match pins.remove(&link) {
        // A directory in its place is left and named in the end.
        Err(_) if pins.get(&link).is_err() => Ok(()),
        result => result,
    }
}
