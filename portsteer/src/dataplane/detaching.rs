//! Taking a dataplane off its interfaces. It takes nothing but the pins.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use super::{
    Error, Instance, describe_switched, kernel, maps,
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
/// [`Error::NotAttached`] if there are no pins.
pub fn detach(instance: &Instance) -> Result<Detached, Error> {
    kernel::check()?;
    if !instance.exists()? {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
    let slots = instance.linked_slots()?;
    let interfaces = sys::open_pin(&instance.pin("interfaces")).ok();
    let name = |slot: u32| {
        let map = interfaces.as_ref()?;
        let name = Slot::read(map.as_fd(), slot).ok()?.name();
        (!name.is_empty()).then_some(name)
    };
    let mut detached = Detached::default();
    for slot in slots {
        detached.interfaces.push(name(slot).unwrap_or_else(|| format!("(slot {slot})")));
        detach_slot(instance, slot)?;
    }
    if let Some(repairs) = Repairs::open(instance) {
        detached.notes = describe_switched(&[], &repairs.undo(&links, |_| false)?);
        let elsewhere = repairs.present()?;
        if !elsewhere.is_empty() {
            detached.notes.push(format!(
                "still switched, in another network namespace: {}",
                repairs::describe(&elsewhere)
            ));
        }
    }
    for name in instance.pins()? {
        remove_pin(instance, &instance.pin(&name))?;
    }
    instance.remove_directory()?;
    if detached.interfaces.is_empty() {
        return Err(Error::NotAttached(instance.name().to_owned()));
    }
    Ok(detached)
}

/// Takes one interface off and forgets what it has counted.
pub(super) fn detach_slot(instance: &Instance, slot: u32) -> Result<(), Error> {
    let path = instance.link_pin(slot);
    match sys::open_pin(&path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(Error::io(format!("opening {}", path.display()))(error)),
        // No link at all: not ours, but in our way.
        Ok(link) if sys::xdp_link_info(link.as_fd()).is_err() => {}
        Ok(link) => force_detach(&link, slot)?,
    }
    remove_slot(instance, slot)
}

/// Detaches a link for good: somebody else may hold it, and removing a pin would take effect only
/// a moment later.
pub(super) fn force_detach(link: &OwnedFd, slot: u32) -> Result<(), Error> {
    sys::link_detach(link.as_fd()).map_err(Error::io(format!("detaching slot {slot}")))
}

/// Removes a slot's pins, that of the link last: as long as it is there, the slot is taken.
pub(super) fn remove_slot(instance: &Instance, slot: u32) -> Result<(), Error> {
    remove_counters(instance, slot)?;
    remove_pin(instance, &instance.link_pin(slot))
}

/// Removes the pins of a slot's counters.
pub(super) fn remove_counters(instance: &Instance, slot: u32) -> Result<(), Error> {
    maps::sizes().try_for_each(|pages| remove_pin(instance, &instance.counters_pin(slot, pages)))
}

/// Removes a pin, or whatever else somebody has put in its place.
pub(super) fn remove_pin(instance: &Instance, path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let name = instance.name();
            Err(Error::io(format!("removing {} of instance {name}", path.display()))(error))
        }
        _ => Ok(()),
    }
}
