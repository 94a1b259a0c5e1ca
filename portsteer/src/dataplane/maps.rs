//! An instance's pinned maps, opened and checked: whoever holds one of these values may rely on the
//! map's shape.

use std::{
    cell::Cell,
    collections::HashSet,
    mem::offset_of,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use bytemuck::Zeroable;
use portsteer_common::{
    Active, Counter, CounterPage, Image, PolicyBanks,
    counters::{MAX_PAGES, OUTCOME_PAGES, PAGE_COUNTERS},
    image::{BANKS, feature},
    node::{MAX_SEGMENTS, SMALL_SEGMENTS, Segment, SmallTables},
    steering::{Losses, MacAddresses, SPREAD_PLACES, Spread, TARGET_SLOTS, Target},
};

use super::{
    Error,
    pins::PinDir,
    repairs::{self, Repairs},
    slots,
    sys::{self, MapShape, Mapping, map_type},
};
use crate::compile::Compiled;

const POLICY: &str = "policy";
const ACTIVE: &str = "active";
/// What the maps are called in the object that stand for sections.
const POLICY_SECTION: &str = ".bss";
const ACTIVE_SECTION: &str = ".bss.active";
const SMALL_TABLES_SECTION: &str = ".bss.tables";
pub(super) const TABLES: &str = "tables";
pub(super) const SMALL_TABLES: &str = "small_tables";
/// Where larger or smaller tables are pinned until programs use them.
const NEW_TABLES: &str = "tables_new";
const DEVICES: &str = "devices";
const DEVICE_SLOTS: &str = "device_slots";
const CPUS: &str = "cpus";
const LOSSES: &str = "losses";
pub(super) const INTERFACES: &str = "interfaces";
pub(super) const TRIAL: &str = "trial";
/// What the names of counters' pins begin with, behind an underscore, and what the object calls its own.
pub(super) const COUNTERS: &str = "counters";
const RETIRED: &str = "retired";

/// The least number of pages of counters, so that a small policy can grow to 15,000 rules or so before
/// its program has to be replaced.
const MIN_PAGES: usize = 64;

/// How many pages of counters an instance begins with: some for the packets without a rule, and
/// room for twice the rules, so that a policy whose rules are all new fits beside the one that it
/// replaces. A page holds rules of one verdict, so each verdict may leave one half empty.
pub(super) fn pages_for(rules: usize) -> u32 {
    let pages = OUTCOME_PAGES + 2 * (rules.div_ceil(PAGE_COUNTERS) + 2);
    pages.next_power_of_two().clamp(MIN_PAGES, MAX_PAGES) as u32
}

/// The numbers of pages that maps of counters have.
pub(super) fn sizes() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(MIN_PAGES as u32), |pages| Some(2 * pages))
        .take_while(|&pages| pages <= MAX_PAGES as u32)
}

const fn array(value_size: usize, max_entries: u32) -> MapShape {
    let value_size = value_size as u32;
    MapShape { map_type: map_type::ARRAY, key_size: 4, value_size, max_entries, flags: 0 }
}

/// The map `policy`: one value, which user space writes to through a mapping.
const POLICY_SHAPE: MapShape =
    MapShape { flags: sys::MMAPABLE, ..array(size_of::<PolicyBanks>(), 1) };

/// The map `active`: one word.
const ACTIVE_SHAPE: MapShape = MapShape { flags: sys::MMAPABLE, ..array(size_of::<Active>(), 1) };

/// The map `tables`, which user space writes to through a mapping as well.
const fn tables_shape(segments: u32) -> MapShape {
    MapShape { flags: sys::MMAPABLE, ..array(size_of::<Segment>(), segments) }
}

/// The map `small_tables`, as well.
const SMALL_TABLES_SHAPE: MapShape =
    MapShape { flags: sys::MMAPABLE, ..array(size_of::<SmallTables>(), 1) };

/// Tables with this many segments are never given back.
const MIN_SEGMENTS: usize = 64;

/// The interface of each target slot.
const DEVICES_SHAPE: MapShape =
    MapShape { map_type: map_type::DEVMAP, flags: sys::READ_ONLY, ..array(8, TARGET_SLOTS as u32) };

/// The first target slot that sends out of an interface, by the interface's index.
const DEVICE_SLOTS_SHAPE: MapShape =
    MapShape { map_type: map_type::HASH, ..array(4, TARGET_SLOTS as u32) };

/// The CPUs that packets can be handed to, by number; the value is the length of the queue.
fn cpus_shape() -> Result<MapShape, Error> {
    Ok(MapShape { map_type: map_type::CPUMAP, ..array(4, possible_cpus()? as u32) })
}

/// What was lost, by target slot, then by CPU.
fn losses_shape() -> Result<MapShape, Error> {
    let entries = (TARGET_SLOTS + possible_cpus()?) as u32;
    Ok(MapShape { map_type: map_type::PERCPU_ARRAY, ..array(size_of::<Losses>(), entries) })
}

/// How many CPUs this machine may ever have.
pub(super) fn possible_cpus() -> Result<usize, Error> {
    aya::util::nr_cpus().map_err(|(path, error)| Error::io(format!("reading {path}"))(error))
}

/// Where so many segments fit beside those that are in use.
fn gap(used: &Range<usize>, count: usize, all: usize) -> Option<usize> {
    if used.is_empty() {
        (count <= all).then_some(0)
    } else if count <= used.start {
        Some(0)
    } else {
        (used.end + count <= all).then_some(used.end)
    }
}

/// Opens a pinned map of this shape; any number of values up to `most` will do if that is given.
fn open(
    pins: &PinDir,
    name: &str,
    wanted: MapShape,
    most: Option<u32>,
) -> Result<(OwnedFd, MapShape), Error> {
    let other_layout = |detail| Error::other_layout(pins, detail);
    let map = match pins.get(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(other_layout(format!("the map `{name}` is missing")));
        }
        result => result.map_err(Error::io(format!("opening the map `{name}`")))?,
    };
    let shape = sys::map_shape(map.as_fd()).map_err(|error| other_layout(error.to_string()))?;
    let fits = match most {
        Some(most) => (wanted.max_entries..=most).contains(&shape.max_entries),
        None => shape.max_entries == wanted.max_entries,
    };
    if !fits || (MapShape { max_entries: wanted.max_entries, ..shape }) != wanted {
        return Err(other_layout(format!(
            "the map `{name}` has {} values of {} bytes and type {}, expected were {} of {} and \
             type {}",
            shape.max_entries,
            shape.value_size,
            shape.map_type,
            wanted.max_entries,
            wanted.value_size,
            wanted.map_type
        )));
    }
    Ok((map, shape))
}

/// Opens the map `retired` as it is now: another may have taken its place.
fn open_retired(pins: &PinDir) -> Result<(OwnedFd, MapShape), Error> {
    open(pins, RETIRED, array(size_of::<CounterPage>(), 1), Some(MAX_PAGES as u32))
}

/// Creates the maps that no other directory has.
fn create_own(pins: &PinDir, pages: u32, segments: u32) -> Result<(), Error> {
    let shapes = [
        (ACTIVE, ACTIVE_SHAPE),
        (POLICY, POLICY_SHAPE),
        (TABLES, tables_shape(segments)),
        (SMALL_TABLES, SMALL_TABLES_SHAPE),
        (DEVICE_SLOTS, DEVICE_SLOTS_SHAPE),
        (INTERFACES, slots::SHAPE),
        (RETIRED, array(size_of::<CounterPage>(), pages)),
        (repairs::PIN, repairs::SHAPE),
    ];
    create_all(pins, &shapes)
}

fn create_all(pins: &PinDir, shapes: &[(&str, MapShape)]) -> Result<(), Error> {
    for &(name, shape) in shapes {
        let creating = || Error::io(format!("creating the map `{name}`"));
        let map = sys::map_create(name, shape, None).map_err(creating())?;
        pins.pin(map.as_fd(), name).map_err(creating())?;
    }
    Ok(())
}

/// The maps that all programs of an instance share.
#[derive(Debug)]
pub(super) struct Maps {
    pins: PinDir,
    active_map: OwnedFd,
    active: Mapping<u64>,
    policy_map: OwnedFd,
    policy: Mapping<PolicyBanks>,
    tables_map: OwnedFd,
    /// How many segments they have.
    segments: usize,
    small_tables_map: OwnedFd,
    small_tables: Mapping<SmallTables>,
    /// Whether the tables are pinned beside those that they are to replace.
    are_tables_new: Cell<bool>,
    pub(super) interfaces: OwnedFd,
    devices: OwnedFd,
    device_slots: OwnedFd,
    cpus: OwnedFd,
    losses: OwnedFd,
    pub(super) repairs: Repairs,
    /// How many pages the counters have of programs that are loaded now. Programs that were loaded
    /// before may have fewer.
    pub(super) pages: u32,
}

impl Maps {
    /// Opens an instance's maps.
    ///
    /// # Errors
    ///
    /// [`Error::OtherLayout`] if one is missing or has another shape.
    pub(super) fn open(pins: &PinDir) -> Result<Self, Error> {
        let (active_map, _) = open(pins, ACTIVE, ACTIVE_SHAPE, None)?;
        let active =
            Mapping::new(active_map.as_fd()).map_err(Error::io("mapping the map `active`"))?;
        let (policy_map, _) = open(pins, POLICY, POLICY_SHAPE, None)?;
        let policy = Mapping::new(policy_map.as_fd()).map_err(Error::io("mapping the policy"))?;
        let (tables_map, shape) = open(pins, TABLES, tables_shape(1), Some(MAX_SEGMENTS as u32))?;
        let (small_tables_map, _) = open(pins, SMALL_TABLES, SMALL_TABLES_SHAPE, None)?;
        let small_tables = Mapping::new(small_tables_map.as_fd())
            .map_err(Error::io("mapping the small tables"))?;
        let (_, retired) = open_retired(pins)?;
        let (interfaces, _) = open(pins, INTERFACES, slots::SHAPE, None)?;
        let (devices, _) = open(pins, DEVICES, DEVICES_SHAPE, None)?;
        let (device_slots, _) = open(pins, DEVICE_SLOTS, DEVICE_SLOTS_SHAPE, None)?;
        let (cpus, _) = open(pins, CPUS, cpus_shape()?, None)?;
        let (losses, _) = open(pins, LOSSES, losses_shape()?, None)?;
        let (repairs, _) = open(pins, repairs::PIN, repairs::SHAPE, None)?;
        Ok(Self {
            pins: pins.clone(),
            active_map,
            active,
            policy_map,
            policy,
            tables_map,
            segments: shape.max_entries as usize,
            small_tables_map,
            small_tables,
            are_tables_new: Cell::new(false),
            interfaces,
            devices,
            device_slots,
            cpus,
            losses,
            repairs: Repairs::new(pins.instance(), repairs),
            pages: retired.max_entries,
        })
    }

    /// Creates and pins the maps that all programs share: the policy, with nothing in it, and those
    /// that the programs do not know of.
    pub(super) fn create(pins: &PinDir, pages: u32) -> Result<(), Error> {
        create_own(pins, pages, 1)?;
        let shapes = [
            // The kernel adds the flag itself, and refuses to be told.
            (DEVICES, MapShape { flags: 0, ..DEVICES_SHAPE }),
            (CPUS, cpus_shape()?),
            (LOSSES, losses_shape()?),
        ];
        create_all(pins, &shapes)
    }

    /// The same, but those that know of targets' devices, CPUs and losses are another directory's.
    pub(super) fn create_beside(
        pins: &PinDir,
        other: &PinDir,
        pages: u32,
        segments: u32,
    ) -> Result<(), Error> {
        create_own(pins, pages, segments)?;
        for name in [DEVICES, CPUS, LOSSES] {
            let sharing = || Error::io(format!("sharing the map `{name}`"));
            let map = other.get(name).map_err(sharing())?;
            pins.pin(map.as_fd(), name).map_err(sharing())?;
        }
        Ok(())
    }

    /// The pins that these maps are from.
    pub(super) fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// What the object calls the maps that all programs of an instance share.
    pub(super) fn descriptors(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        vec![
            (ACTIVE_SECTION, self.active_map.as_fd()),
            (POLICY_SECTION, self.policy_map.as_fd()),
            (SMALL_TABLES_SECTION, self.small_tables_map.as_fd()),
            (TABLES, self.tables_map.as_fd()),
            (DEVICES, self.devices.as_fd()),
            (DEVICE_SLOTS, self.device_slots.as_fd()),
            (CPUS, self.cpus.as_fd()),
            (LOSSES, self.losses.as_fd()),
        ]
    }

    fn active_word(&self) -> &AtomicU64 {
        self.active.double_word(|word| word)
    }

    /// Which policy is in force.
    pub(super) fn active(&self) -> Active {
        Active::from_bits(self.active_word().load(Ordering::SeqCst))
    }

    /// Changes that word, if it is still the one that is expected; else returns what it is.
    pub(super) fn swap_active(&self, from: Active, to: Active) -> Result<(), Active> {
        let (from, to) = (from.to_bits(), to.to_bits());
        let swapped =
            self.active_word().compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
        swapped.map(drop).map_err(Active::from_bits)
    }

    /// How many segments the tables have.
    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    /// Writes a segment of tables that no program uses yet.
    pub(super) fn set_segment(&self, number: usize, segment: &Segment) -> Result<(), Error> {
        sys::map_update(self.tables_map.as_fd(), number as u32, bytemuck::bytes_of(segment))
            .map_err(Error::io("writing the tables"))
    }

    /// Writes everything else that programs judge by, of which none does yet.
    pub(super) fn set_policy(
        &self,
        policy: &PolicyBanks,
        small_tables: &SmallTables,
    ) -> Result<(), Error> {
        let writing = || Error::io("writing the policy");
        sys::map_update(self.policy_map.as_fd(), 0, bytemuck::bytes_of(policy))
            .map_err(writing())?;
        let small_tables = bytemuck::cast_slice(small_tables);
        sys::map_update(self.small_tables_map.as_fd(), 0, small_tables).map_err(writing())
    }

    /// The bank that is in force.
    pub(super) fn active_bank(&self) -> usize {
        self.active().bank()
    }

    fn word_of_bank(&self, bank: usize, field: impl Fn(*mut Image) -> *mut u32) -> u32 {
        let word = self.policy.word(|policy| {
            // SAFETY: the address of a field of a bank of a value that is mapped.
            field(unsafe { (&raw mut (*policy).banks).cast::<Image>().add(bank) })
        });
        word.load(Ordering::Acquire)
    }

    /// The features of the policy in force.
    pub(super) fn active_features(&self) -> u32 {
        // SAFETY: the address of a field of a bank.
        self.word_of_bank(self.active_bank(), |image| unsafe { &raw mut (*image).features })
    }

    /// The features of both banks' policies.
    pub(super) fn all_features(&self) -> u32 {
        // SAFETY: the address of a field of a bank.
        let of = |bank| self.word_of_bank(bank, |image| unsafe { &raw mut (*image).features });
        (0..BANKS).map(of).fold(0, |all, features| all | features)
    }

    /// A bank's image, as bytes.
    pub(super) fn image_bytes(&self, bank: usize) -> Result<Vec<u8>, Error> {
        let mut policy = vec![0; size_of::<PolicyBanks>()];
        sys::map_lookup(self.policy_map.as_fd(), 0, &mut policy)
            .map_err(Error::io("reading the policy"))?;
        let start = offset_of!(PolicyBanks, banks) + bank * size_of::<Image>();
        Ok(policy[start..start + size_of::<Image>()].to_vec())
    }

    /// A segment of the tables, as bytes, and where programs have it as a small one as well, that too.
    pub(super) fn segment_bytes(&self, number: usize) -> Result<Vec<u8>, Error> {
        let mut segment = vec![0; size_of::<Segment>()];
        sys::map_lookup(self.tables_map.as_fd(), number as u32, &mut segment)
            .map_err(Error::io("reading the tables"))?;
        Ok(segment)
    }

    /// The segments of the tables that the policy in force uses.
    pub(super) fn active_segments(&self) -> Range<usize> {
        let bank = self.active_bank();
        // SAFETY: the address of a field of a bank.
        let first = self.word_of_bank(bank, |image| unsafe { &raw mut (*image).first_segment });
        // SAFETY: as above.
        let count = self.word_of_bank(bank, |image| unsafe { &raw mut (*image).segments });
        first as usize..(first + count) as usize
    }

    /// The id of the map of tables.
    pub(super) fn tables_id(&self) -> Result<u32, Error> {
        sys::map_id(self.tables_map.as_fd()).map_err(Error::io("asking for the tables' id"))
    }

    /// Writes a policy to the bank that is not in force and to segments that the policy in force does
    /// not use. Where there are not enough of them, and where there are far too many, other tables are
    /// made, with a copy of what the policy in force needs: programs have to be loaded anew for those,
    /// and then [`Maps::settle_tables`] makes them the instance's.
    ///
    /// Only the holder of the instance's lock may do that, and only after [`sys::wait_for_programs`]:
    /// programs that started before the last change may still be reading them. Returns the bank, and the
    /// features that programs need for it.
    pub(super) fn fill(&mut self, compiled: &Compiled) -> Result<(usize, u32), Error> {
        let active = self.active_segments();
        let count = compiled.segments();
        let half = active.len().max(count) + active.len().max(count) / 8 + 1;
        let mut first = gap(&active, count, self.segments);
        let is_too_large = self.segments > MIN_SEGMENTS.max(8 * half) && active.end <= 2 * half;
        if first.is_none() || is_too_large {
            let segments = (active.end + half).max(2 * half).min(MAX_SEGMENTS);
            self.replace_tables(segments, &active)?;
            first = gap(&active, count, segments);
        }
        let first = first
            .ok_or_else(|| Error::TablesFull { instance: self.pins.instance().name().into() })?;
        let idle = (self.active_bank() + 1) % BANKS;
        // Only these: mapping tens of MiB takes milliseconds.
        let mut tables = Mapping::<Segment>::of(self.tables_map.as_fd(), first..first + count)
            .map_err(Error::io("mapping the tables"))?;
        // SAFETY: the lock keeps other writers away, and programs read the active bank only and the
        // segments of its policy; those that read others have ended.
        let (image, segments) = unsafe {
            (
                self.policy.part_mut(|policy| (&raw mut (*policy).banks).cast::<Image>().add(idle)),
                tables.values_mut(),
            )
        };
        compiled.write(image, segments, first);
        if first + count <= SMALL_SEGMENTS {
            // SAFETY: as above.
            let small: &mut SmallTables = unsafe { self.small_tables.part_mut(|tables| tables) };
            small[first..first + count].copy_from_slice(segments);
        } else {
            image.features |= feature::LARGE;
        }
        Ok((idle, image.features))
    }

    /// Makes other tables with a copy of what the policy in force needs.
    fn replace_tables(&mut self, segments: usize, active: &Range<usize>) -> Result<(), Error> {
        let making = || Error::io(format!("making tables of {} MiB", segments.div_ceil(16)));
        self.pins.remove(NEW_TABLES)?;
        let map = sys::map_create(TABLES, tables_shape(segments as u32), None).map_err(making())?;
        let mut new = Mapping::<Segment>::of(map.as_fd(), active.clone()).map_err(making())?;
        let mut old = Mapping::of(self.tables_map.as_fd(), active.clone()).map_err(making())?;
        // SAFETY: no program knows of the new ones; the others only change under the lock.
        unsafe { new.values_mut().copy_from_slice(old.values_mut()) };
        self.pins.pin(map.as_fd(), NEW_TABLES).map_err(making())?;
        (self.tables_map, self.segments) = (map, segments);
        self.are_tables_new.set(true);
        Ok(())
    }

    /// Makes the tables that all programs use by now the instance's.
    pub(super) fn settle_tables(&self) -> Result<(), Error> {
        if self.are_tables_new.get() {
            self.pins.rename(NEW_TABLES, TABLES)?;
            self.are_tables_new.set(false);
        }
        Ok(())
    }

    /// Forgets tables that were made for a policy that is not put in force.
    pub(super) fn forget_new_tables(pins: &PinDir) {
        // What makes the next ones removes it first.
        let _ = pins.remove(NEW_TABLES);
    }

    fn target_word(&self, slot: u16, field: impl Fn(*mut Target) -> *mut u32) -> &AtomicU32 {
        assert!(usize::from(slot) < TARGET_SLOTS);
        self.policy.word(|policy| {
            // SAFETY: the address of a field of an entry of a value that is mapped.
            let entry = unsafe {
                (&raw mut (*policy).targets.targets).cast::<Target>().add(usize::from(slot))
            };
            field(entry)
        })
    }

    /// A target's state, for reading and for changing it in one step.
    pub(super) fn target_state(&self, slot: u16) -> &AtomicU32 {
        // SAFETY: the address of a field of an entry.
        self.target_word(slot, |entry| unsafe { &raw mut (*entry).state })
    }

    /// The longest frame that a target's interface takes, in bytes.
    pub(super) fn target_max_len(&self, slot: u16) -> &AtomicU32 {
        // SAFETY: the address of a field of an entry.
        self.target_word(slot, |entry| unsafe { &raw mut (*entry).max_len })
    }

    /// One of the two pairs of addresses of a target, to be changed: only that which the state
    /// does not name, and only after [`sys::wait_for_programs`].
    pub(super) fn target_macs(&mut self, slot: u16, index: usize) -> &mut MacAddresses {
        assert!(usize::from(slot) < TARGET_SLOTS && index < 2);
        // SAFETY: the lock keeps other writers away, and no program reads these.
        unsafe {
            self.policy.part_mut(|policy| {
                let entry =
                    (&raw mut (*policy).targets.targets).cast::<Target>().add(usize::from(slot));
                (&raw mut (*entry).macs).cast::<MacAddresses>().add(index)
            })
        }
    }

    /// Two neighbouring places of a target's spread, for changing them in one step.
    fn target_places(&self, slot: u16, pair: usize) -> &AtomicU32 {
        assert!(usize::from(slot) < TARGET_SLOTS && pair < SPREAD_PLACES / 2);
        self.policy.word(|policy| {
            // SAFETY: the address of two entries of a table in a value that is mapped.
            unsafe {
                (&raw mut (*policy).targets.spreads)
                    .cast::<Spread>()
                    .add(usize::from(slot))
                    .cast::<u32>()
                    .add(pair)
            }
        })
    }

    /// Spreads a target's flows over these CPUs, of which there is at least one.
    pub(super) fn spread(&self, slot: u16, cpus: &[u16]) {
        for pair in 0..SPREAD_PLACES / 2 {
            let cpu = |place: usize| cpus[place % cpus.len()].to_ne_bytes();
            let ([a, b], [c, d]) = (cpu(2 * pair), cpu(2 * pair + 1));
            self.target_places(slot, pair)
                .store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed);
        }
    }

    /// The map that redirects to devices.
    pub(super) fn devices(&self) -> BorrowedFd<'_> {
        self.devices.as_fd()
    }

    /// The index of the interface that a target's packets are sent out of, 0 if there is none: the
    /// kernel forgets it when the interface goes.
    pub(super) fn device(&self, slot: u16) -> Result<u32, Error> {
        let mut value = [0; 8];
        match sys::map_lookup(self.devices.as_fd(), u32::from(slot), &mut value) {
            Ok(()) => Ok(u32::from_ne_bytes([value[0], value[1], value[2], value[3]])),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(0),
            Err(error) => Err(Error::io("reading the map `devices`")(error)),
        }
    }

    /// Sets that interface; 0 for none.
    pub(super) fn set_device(&self, slot: u16, ifindex: u32) -> Result<(), Error> {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&ifindex.to_ne_bytes());
        sys::map_update(self.devices.as_fd(), u32::from(slot), &value)
            .map_err(Error::io("writing the map `devices`"))
    }

    /// Says which target slot is the first that sends out of an interface; `None` if there is none.
    pub(super) fn set_slot_of_device(&self, ifindex: u32, slot: Option<u16>) -> Result<(), Error> {
        let map = self.device_slots.as_fd();
        match slot {
            Some(slot) => sys::map_update(map, ifindex, &u32::from(slot).to_ne_bytes()),
            None => sys::map_delete(map, ifindex),
        }
        .map_err(Error::io("writing the map `device_slots`"))
    }

    /// Forgets the interfaces that no target slot sends out of any more: the kernel takes an interface that goes out of
    /// `devices`, and leaves it here.
    pub(super) fn forget_gone_devices(&self) -> Result<(), Error> {
        let used = (0..TARGET_SLOTS as u16).map(|slot| self.device(slot));
        let used: HashSet<u32> = used.collect::<Result<_, _>>()?;
        let map = self.device_slots.as_fd();
        let reading = || Error::io("reading the map `device_slots`");
        let mut known = Vec::new();
        let mut key = None;
        // A key that is taken out meanwhile begins the walk anew: no further than there are entries.
        while known.len() < TARGET_SLOTS
            && let Some(next) = sys::map_next_key(map, key).map_err(reading())?
        {
            known.push(next);
            key = Some(next);
        }
        for ifindex in known.into_iter().filter(|ifindex| !used.contains(ifindex)) {
            self.set_slot_of_device(ifindex, None)?;
        }
        Ok(())
    }

    /// How many packets may wait for a CPU, 0 if none are handed to it.
    pub(super) fn queue(&self, cpu: u32) -> Result<u32, Error> {
        let mut value = [0; 4];
        match sys::map_lookup(self.cpus.as_fd(), cpu, &mut value) {
            Ok(()) => Ok(u32::from_ne_bytes(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(0),
            Err(error) => Err(Error::io("reading the map `cpus`")(error)),
        }
    }

    /// Sets that length. The kernel starts a thread for the CPU, or ends it if the length is 0.
    pub(super) fn set_queue(&self, cpu: u32, len: u32) -> Result<(), Error> {
        sys::map_update(self.cpus.as_fd(), cpu, &len.to_ne_bytes())
            .map_err(Error::io("writing the map `cpus`"))
    }

    /// The ids of the maps `devices` and `cpus`.
    pub(super) fn redirect_map_ids(&self) -> Result<[u32; 2], Error> {
        let id =
            |map: &OwnedFd| sys::map_id(map.as_fd()).map_err(Error::io("asking for a map's id"));
        Ok([id(&self.devices)?, id(&self.cpus)?])
    }

    /// What was lost on the way to a target slot, or, from [`TARGET_SLOTS`] on, to a CPU.
    pub(super) fn losses(&self, entry: usize) -> Result<Losses, Error> {
        let mut values = vec![Losses::default(); possible_cpus()?];
        sys::map_lookup(self.losses.as_fd(), entry as u32, bytemuck::cast_slice_mut(&mut values))
            .map_err(Error::io("reading the map `losses`"))?;
        let mut sum = Losses::default();
        for losses in &values {
            let fields = bytemuck::cast_slice::<Losses, u64>(std::slice::from_ref(losses));
            let sums = bytemuck::cast_slice_mut::<Losses, u64>(std::slice::from_mut(&mut sum));
            for (sum, field) in sums.iter_mut().zip(fields) {
                *sum += field;
            }
        }
        Ok(sum)
    }

    /// The counters of an interface slot, as [`counters`] has them.
    pub(super) fn counters(&self, slot: u32) -> Result<Vec<Counters>, Error> {
        counters(&self.pins, slot)
    }

    /// The counters that a program of this slot is to count in, made and pinned if they are missing.
    pub(super) fn counters_to_load(&self, slot: u32) -> Result<OwnedFd, Error> {
        let name = counters_pin(slot, self.pages);
        if self.pins.has(&name)? {
            return Ok(open(&self.pins, &name, counters_shape(self.pages), None)?.0);
        }
        let creating = || Error::io(format!("creating the map `{name}`"));
        let map = sys::map_create(COUNTERS, counters_shape(self.pages), None).map_err(creating())?;
        self.pins.pin(map.as_fd(), &name).map_err(creating())?;
        Ok(map)
    }

    /// Makes room for at least so many pages of counters. Programs have to be loaded anew to count in them;
    /// what they have counted until then stays where it is.
    ///
    /// Only the holder of the instance's lock may do that.
    pub(super) fn make_room(&mut self, pages: u32) -> Result<(), Error> {
        if pages <= self.pages {
            return Ok(());
        }
        let pages = pages.next_power_of_two();
        let retired = self.retired()?;
        let sums = retired.counters.read(self.pages)?;
        self.replace_retired(pages, &sums, retired.newest)?;
        self.pages = pages;
        Ok(())
    }

    /// Puts another map in the place of `retired`, at once.
    fn replace_retired(
        &self,
        pages: u32,
        sums: &Snapshot,
        newest: Option<u32>,
    ) -> Result<(), Error> {
        let name = newest.map_or_else(|| RETIRED.to_owned(), name_with);
        self.replace_sums(&name, RETIRED, pages, sums)
    }

    /// Puts another map of sums in the place of what is pinned.
    fn replace_sums(
        &self,
        name: &str,
        pin: &str,
        pages: u32,
        sums: &Snapshot,
    ) -> Result<(), Error> {
        let making = || Error::io(format!("making a map `{pin}` of {pages} pages"));
        let map =
            sys::map_create(name, array(size_of::<CounterPage>(), pages), None).map_err(making())?;
        for (number, page) in (0..).zip(&sums.pages) {
            sys::map_update(map.as_fd(), number, bytemuck::bytes_of(page)).map_err(making())?;
        }
        self.pins.replace(map.as_fd(), pin)
    }

    /// The error for counters that must be there and are not.
    pub(super) fn missing_counters(&self, slot: u32) -> Error {
        Error::other_layout(&self.pins, format!("the maps `{COUNTERS}_{slot}_*` are missing"))
    }

    /// What interfaces had counted that are no longer attached.
    pub(super) fn retired(&self) -> Result<Retired, Error> {
        retired(&self.pins)
    }

    /// Says what they had counted, as far as there is room: what is beyond has counted nothing.
    pub(super) fn set_retired(&self, mut sums: Snapshot) -> Result<(), Error> {
        sums.pages.truncate(self.pages as usize);
        self.replace_retired(self.pages, &sums, None)
    }

    /// Says what a slot has counted besides what its program counts.
    pub(super) fn set_carried(&self, slot: u32, mut sums: Snapshot) -> Result<(), Error> {
        sums.pages.truncate(self.pages as usize);
        self.replace_sums(COUNTERS, &carried_pin(slot), self.pages, &sums)
    }

    /// Adds what an interface has counted, which counts no more, to what is retired: once, however often it is
    /// asked for, since whoever does it may be killed before the counters' pin is removed.
    pub(super) fn retire(&self, counters: &Counters) -> Result<(), Error> {
        let retired = self.retired()?;
        let id = counters.id()?;
        if retired.newest == Some(id) {
            return Ok(());
        }
        if let Some(newest) = retired.newest {
            self.remove_counters(newest)?;
        }
        let mut sums = retired.counters.read(self.pages)?;
        sums.add(counters.read(self.pages)?);
        self.replace_retired(retired.counters.pages, &sums, Some(id))
    }

    /// Removes the pin of a map of counters, by its id, if it is there yet.
    fn remove_counters(&self, id: u32) -> Result<(), Error> {
        let reading = || Error::io("looking for counters that are retired");
        for name in self.pins.names()?.iter().filter(|name| name.starts_with(COUNTERS)) {
            let map = self.pins.get(name).map_err(reading())?;
            if sys::map_id(map.as_fd()).map_err(reading())? == id {
                self.pins.remove(name)?;
            }
        }
        Ok(())
    }
}

/// The counters of an interface slot: none if the slot is being given up, several if it had to grow or was carried over.
/// What it has counted is the sum of all of them.
pub(super) fn counters(pins: &PinDir, slot: u32) -> Result<Vec<Counters>, Error> {
    let mut found = Vec::new();
    for pages in sizes() {
        let name = counters_pin(slot, pages);
        if pins.has(&name)? {
            let (map, _) = open(pins, &name, counters_shape(pages), None)?;
            found.push(Counters { map, values: possible_cpus()?, pages, pin: name });
        }
    }
    let name = carried_pin(slot);
    if pins.has(&name)? {
        let (map, shape) =
            open(pins, &name, array(size_of::<CounterPage>(), 1), Some(MAX_PAGES as u32))?;
        found.push(Counters { map, values: 1, pages: shape.max_entries, pin: name });
    }
    Ok(found)
}

/// What interfaces had counted that are no longer attached.
pub(super) fn retired(pins: &PinDir) -> Result<Retired, Error> {
    let (map, shape) = open_retired(pins)?;
    let name = sys::map_name(map.as_fd()).map_err(Error::io("reading the map `retired`"))?;
    let newest = name.strip_prefix(INCLUDES).and_then(|id| u32::from_str_radix(id, 16).ok());
    let pin = RETIRED.to_owned();
    Ok(Retired { counters: Counters { map, values: 1, pages: shape.max_entries, pin }, newest })
}

/// What a slot's counters are pinned as that have so many pages.
pub(super) fn counters_pin(slot: u32, pages: u32) -> String {
    format!("{COUNTERS}_{slot}_{pages}")
}

/// What is pinned as that a slot has counted in the layout of the version before.
pub(super) fn carried_pin(slot: u32) -> String {
    format!("{COUNTERS}_{slot}_carried")
}

/// What the link of a slot is pinned as.
pub(super) fn link_pin(slot: u32) -> String {
    format!("link_{slot}")
}

const fn counters_shape(pages: u32) -> MapShape {
    MapShape { map_type: map_type::PERCPU_ARRAY, ..array(size_of::<CounterPage>(), pages) }
}

/// What interfaces had counted that are no longer attached.
#[derive(Debug)]
pub(super) struct Retired {
    pub(super) counters: Counters,
    /// The id of the map of counters that was added last, and may be there yet.
    pub(super) newest: Option<u32>,
}

/// The name of a map `retired` begins with this if the id follows of the map of counters that was added last, so that
/// both are written by one rename.
const INCLUDES: &str = "counted";

fn name_with(id: u32) -> String {
    format!("{INCLUDES}{id:x}")
}

/// A map of counter pages.
#[derive(Debug)]
pub(super) struct Counters {
    map: OwnedFd,
    /// One, or as many as there may be CPUs.
    values: usize,
    pub(super) pages: u32,
    /// What it is pinned as.
    pub(super) pin: String,
}

impl Counters {
    pub(super) fn id(&self) -> Result<u32, Error> {
        sys::map_id(self.map.as_fd()).map_err(Error::io("reading the counters' id"))
    }

    /// The first `pages` pages, or all if there are fewer, all CPUs together.
    pub(super) fn read(&self, pages: u32) -> Result<Snapshot, Error> {
        let mut values = vec![CounterPage::zeroed(); self.values];
        let mut sums = Vec::with_capacity(pages as usize);
        for number in 0..pages.min(self.pages) {
            sys::map_lookup(self.map.as_fd(), number, bytemuck::cast_slice_mut(&mut values))
                .map_err(Error::io("reading the counters"))?;
            let mut sum = CounterPage::zeroed();
            for value in &values {
                add_page(&mut sum, value);
            }
            sums.push(sum);
        }
        Ok(Snapshot { pages: sums })
    }
}

/// Adds a page, counter by counter.
fn add_page(sum: &mut CounterPage, page: &CounterPage) {
    for (sum, counter) in sum.counters.iter_mut().zip(&page.counters) {
        sum.packets = sum.packets.wrapping_add(counter.packets);
        sum.bytes = sum.bytes.wrapping_add(counter.bytes);
    }
}

/// What maps of counters stood at.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) pages: Vec<CounterPage>,
}

impl Snapshot {
    /// Adds another, page by page.
    pub(super) fn add(&mut self, other: Self) {
        for (number, page) in other.pages.into_iter().enumerate() {
            match self.pages.get_mut(number) {
                Some(sum) => add_page(sum, &page),
                None => self.pages.push(page),
            }
        }
    }

    /// The counter `id`, zero beyond the last page.
    pub(super) fn get(&self, id: u32) -> Counter {
        let (number, index) = (id as usize / PAGE_COUNTERS, id as usize % PAGE_COUNTERS);
        self.pages.get(number).map_or_else(Counter::default, |page| page.counters[index])
    }
}

#[cfg(test)]
mod tests {
    use portsteer_common::image::MAX_RULES;

    use super::*;

    #[test]
    fn there_is_room_for_two_policies() {
        assert_eq!(pages_for(0), 64);
        assert_eq!(pages_for(65_535), 1024);
        assert_eq!(pages_for(MAX_RULES), 2048);
        for rules in [0, 1, 1_000, 3_000, 65_535, 100_000, MAX_RULES] {
            let needed = OUTCOME_PAGES + 2 * (rules / PAGE_COUNTERS + 2);
            assert!(pages_for(rules) as usize >= needed, "{rules}");
            assert!(sizes().any(|size| size == pages_for(rules)), "{rules}");
        }
    }
}
