//! Getting a policy's interfaces attached, and what it takes to undo that.

use std::os::fd::{AsFd, OwnedFd};

use super::{
    Attached, AttachedMode, Change, Dataplane, Error, Manifest, Pinned,
    capabilities::{Capabilities, generic_obstacle},
    detaching::{force_detach, remove_slot},
    interfaces,
    maps::{Maps, link_pin},
    object,
    pins::{self, PinDir},
    slots::{ALONE, Slot, alone},
    sys,
};
use crate::{
    netlink::Link,
    policy::{Mode, Policy},
};

/// Interfaces being attached, and what it takes to undo that.
pub(super) struct Attaching<'a> {
    dataplane: &'a Dataplane,
    maps: &'a Maps,
    new_slots: Vec<u32>,
    /// Links whose program was replaced, with their slot's record and program before.
    replaced: Vec<(OwnedFd, u32, Slot, OwnedFd)>,
    /// Slots whose record alone was changed, with that before.
    rewritten: Vec<(u32, Slot)>,
    capabilities: &'a Capabilities,
    /// What the programs have to be able to do.
    features: u32,
    /// How many pages of counters they need.
    pages: u32,
    /// The policy's number.
    generation: u64,
    /// What programs of new interfaces are told besides: which bank's they are alone, or nothing.
    alone: u32,
}

impl<'a> Attaching<'a> {
    pub(super) fn new(
        dataplane: &'a Dataplane,
        maps: &'a Maps,
        capabilities: &'a Capabilities,
        features: u32,
        manifest: &Manifest,
    ) -> Self {
        Self {
            dataplane,
            maps,
            new_slots: Vec::new(),
            replaced: Vec::new(),
            rewritten: Vec::new(),
            capabilities,
            features,
            pages: manifest.pages(),
            generation: manifest.generation,
            alone: 0,
        }
    }

    /// Interfaces that are attached from now on are judged by the policy of this bank, and by no other.
    pub(super) fn only_for_bank(&mut self, bank: usize) {
        self.alone = alone(bank);
    }

    /// Has interfaces that are attached judged by the policy of this bank alone.
    pub(super) fn confine(&mut self, pinned: &[&Pinned], bank: usize) -> Result<(), Error> {
        for pinned in pinned.iter().filter(|pinned| pinned.ifindex != 0) {
            let features = self.features | alone(bank);
            let name = pinned.record.name();
            self.replace(pinned, &name, pinned.record, features)?;
        }
        Ok(())
    }

    /// Replaces the program on an interface. Returns the slot's record.
    fn replace(
        &mut self,
        pinned: &Pinned,
        name: &str,
        mut record: Slot,
        features: u32,
    ) -> Result<Slot, Error> {
        let replacing = || Error::io(format!("replacing the program on `{name}`"));
        // Whoever may not have it stays with the new program, which can do all that the other could.
        let program_before = sys::program_by_id(pinned.program_id).ok();
        let program = self.load(pinned.slot, features)?;
        let handle = pinned.link.try_clone().map_err(replacing())?;
        sys::link_update(handle.as_fd(), program.as_fd()).map_err(replacing())?;
        if let Some(program) = program_before {
            self.replaced.push((handle, pinned.slot, pinned.record, program));
        }
        (record.object, record.features) = (object::digest(), features);
        (record.tables, record.pages) = (self.maps.tables_id()?, self.maps.pages);
        // At once: whatever fails from here on, this is the program that is there.
        record.write(self.maps.interfaces.as_fd(), pinned.slot)?;
        Ok(record)
    }

    pub(super) fn attach_all(
        &mut self,
        policy: &Policy,
        wanted: &[Link],
        placed: &[u32],
        pinned: &[Pinned],
    ) -> Result<Vec<Attached>, Error> {
        let mut attached = Vec::new();
        for (link, &slot) in wanted.iter().zip(placed) {
            let done = match pinned.iter().find(|pinned| pinned.ifindex == link.index) {
                Some(pinned) => self.keep(policy.mode, link, pinned)?,
                None => match (policy.mode, self.capabilities.native_obstacle(link)) {
                    (Mode::Auto, Some(why)) => Attached {
                        native_refused: Some(why.to_string()),
                        ..self.attach(Mode::Generic, link, slot)?
                    },
                    (mode, _) => self.attach(mode, link, slot)?,
                },
            };
            let obstacle = match done.mode {
                AttachedMode::Native => self.capabilities.native_obstacle(link),
                AttachedMode::Generic => generic_obstacle(policy, &link.name)?,
            };
            if let Some(obstacle) = obstacle {
                return Err(obstacle);
            }
            attached.push(done);
        }
        Ok(attached)
    }

    /// An interface that is attached already: at most its program is replaced.
    fn keep(&mut self, mode: Mode, link: &Link, pinned: &Pinned) -> Result<Attached, Error> {
        let obtained = pinned.record.mode();
        let fits = match mode {
            Mode::Auto => true,
            Mode::Native => obtained == AttachedMode::Native,
            Mode::Generic => obtained == AttachedMode::Generic,
        };
        if !fits {
            return Err(Error::ModeChange {
                name: link.name.clone(),
                obtained: obtained.name(),
                wanted: mode.name(),
            });
        }
        let mut record = Slot::new(link.index, &link.name, obtained);
        record.generation = self.generation;
        let before = pinned.record;
        (record.object, record.features, record.tables, record.pages) =
            (before.object, before.features, before.tables, before.pages);
        let upgrade = before.object != object::digest();
        let lacks = self.features & !before.features != 0
            || before.features & ALONE != 0
            || before.tables != self.maps.tables_id()?
            || before.pages < self.pages;
        if upgrade || lacks {
            record = self.replace(pinned, &link.name, record, self.features)?;
        }
        if !upgrade && !lacks {
            self.rewritten.push((pinned.slot, before));
        }
        // Written even if nothing but the interface's name has changed.
        record.write(self.maps.interfaces.as_fd(), pinned.slot)?;
        let change = if upgrade { Change::Upgraded } else { Change::Kept };
        Ok(Attached { name: link.name.clone(), mode: obtained, change, native_refused: None })
    }

    fn load(&self, slot: u32, features: u32) -> Result<OwnedFd, Error> {
        object::load(slot, self.maps, features)
    }

    fn attach(&mut self, mode: Mode, link: &Link, slot: u32) -> Result<Attached, Error> {
        if let Some(xdp) = link.xdp {
            let (name, program_id) = (link.name.clone(), xdp.program_id);
            let instance = program_id.and_then(instance_of);
            return Err(Error::InterfaceBusy { name, program_id, instance });
        }
        // What an agent left that was killed between attaching and pinning, when its program counted already.
        if !self.maps.counters(slot)?.is_empty() {
            sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
            self.dataplane.retire_counters(self.maps, slot)?;
        }
        let features = self.features | self.alone;
        let program = self.load(slot, features)?;
        self.new_slots.push(slot);
        let (handle, obtained, native_refused) = interfaces::attach(&program, link, mode)?;

        // From here on the interface is attached until the handle is closed: pinning it is what
        // makes it stay.
        let mut record = Slot::new(link.index, &link.name, obtained);
        record.generation = self.generation;
        (record.object, record.features) = (object::digest(), features);
        (record.tables, record.pages) = (self.maps.tables_id()?, self.maps.pages);
        record.write(self.maps.interfaces.as_fd(), slot)?;
        let pins = self.maps.pins();
        pins.pin(handle.as_fd(), &link_pin(slot))
            .map_err(Error::io(format!("pinning the link of `{}`", link.name)))?;
        if pins.is_given_up() {
            // `detach` did not find it.
            return Err(Error::Detached(pins.instance().name().to_owned()));
        }
        let name = link.name.clone();
        Ok(Attached { name, mode: obtained, change: Change::New, native_refused })
    }

    /// Takes an interface off that was just attached. What its program has counted stays.
    fn give_up(&self, slot: u32) -> Result<(), Error> {
        let pins = self.maps.pins();
        // If it is none, it is only in our way.
        if let Ok(link) = pins.get(&link_pin(slot))
            && sys::xdp_link_info(link.as_fd()).is_ok()
        {
            force_detach(&link, slot)?;
        }
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        self.dataplane.retire_counters(self.maps, slot)?;
        remove_slot(pins, slot)
    }

    /// Takes everything back. What fails now is left to the error that is already on its way.
    pub(super) fn undo(self) {
        for &slot in &self.new_slots {
            let _ = self.give_up(slot);
        }
        for (link, slot, record, before) in self.replaced {
            let _ = sys::link_update(link.as_fd(), before.as_fd());
            let _ = record.write(self.maps.interfaces.as_fd(), slot);
        }
        for (slot, record) in self.rewritten {
            let _ = record.write(self.maps.interfaces.as_fd(), slot);
        }
    }
}

/// The instance that has pinned a link with this program.
pub(super) fn instance_of(program_id: u32) -> Option<String> {
    let holds = |pins: &PinDir, slot: u32| {
        let info = pins.get(&link_pin(slot)).and_then(|link| sys::xdp_link_info(link.as_fd()));
        info.is_ok_and(|info| info.program_id == program_id)
    };
    let found = pins::instances().into_iter().find(|instance| {
        let Ok(Some(pins)) = PinDir::open(instance) else { return false };
        pins.linked_slots().is_ok_and(|slots| slots.iter().any(|&slot| holds(&pins, slot)))
    });
    found.map(|instance| instance.name().to_owned())
}
