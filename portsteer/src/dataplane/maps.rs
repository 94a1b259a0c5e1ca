//! An instance's pinned maps, opened and checked: whoever holds a [`Maps`] may rely on their
//! shapes.

use std::os::fd::{AsFd, OwnedFd};

use bytemuck::Zeroable;
use portsteer_common::{
    Counter, INTERFACE_SLOTS, Image, InterfaceCounters, RuleCounterPage,
    counters::{MAX_RULE_COUNTER_PAGES, RULE_COUNTERS_PER_PAGE},
    image::BANKS,
};

use super::{
    Error,
    instance::Instance,
    slots,
    sys::{self, MapShape, map_type},
};

pub(super) const ACTIVE: &str = "active";
pub(super) const IMAGES: &str = "images";
pub(super) const RULE_COUNTERS: &str = "rule_counters";
pub(super) const IF_COUNTERS: &str = "if_counters";
pub(super) const INTERFACES: &str = "interfaces";

/// The maps that the program uses.
pub(super) const PROGRAM_MAPS: [&str; 4] = [ACTIVE, IMAGES, RULE_COUNTERS, IF_COUNTERS];

/// The least number of pages of rule counters, so that a small policy can grow: 8,191 rules.
const MIN_RULE_COUNTER_PAGES: usize = 8;

/// An instance's maps.
#[derive(Debug)]
pub(super) struct Maps {
    active: OwnedFd,
    images: OwnedFd,
    rule_counters: OwnedFd,
    if_counters: OwnedFd,
    pub(super) interfaces: OwnedFd,
    /// How many rule counters there are.
    pub(super) rule_counter_count: usize,
    /// How many CPUs a per-CPU value has room for.
    cpus: usize,
}

/// How many pages of counters an instance is loaded with: room for twice the rules, so that a
/// policy whose rules are all new fits beside the one that it replaces.
pub(super) fn counter_pages(rules: usize) -> u32 {
    (2 * rules + 1)
        .div_ceil(RULE_COUNTERS_PER_PAGE)
        .next_power_of_two()
        .clamp(MIN_RULE_COUNTER_PAGES, MAX_RULE_COUNTER_PAGES) as u32
}

impl Maps {
    /// Opens an instance's maps.
    ///
    /// # Errors
    ///
    /// [`Error::OtherLayout`] if one is missing or has another shape.
    pub(super) fn open(instance: &Instance) -> Result<Self, Error> {
        let other_layout = |detail| Error::OtherLayout {
            instance: instance.name().to_owned(),
            directory: instance.directory(),
            detail,
        };
        let open = |name: &str, wanted: MapShape, largest: u32| {
            let map = match sys::open_pin(&instance.pin(name)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    return Err(other_layout(format!("the map `{name}` is missing")));
                }
                result => result.map_err(Error::io(format!("opening the map `{name}`")))?,
            };
            let shape =
                sys::map_shape(map.as_fd()).map_err(|error| other_layout(error.to_string()))?;
            let fits = shape.max_entries >= wanted.max_entries && shape.max_entries <= largest;
            if !fits || (MapShape { max_entries: wanted.max_entries, ..shape }) != wanted {
                return Err(other_layout(format!(
                    "the map `{name}` has {} values of {} bytes and type {}, expected were {} of \
                     {} and type {}",
                    shape.max_entries,
                    shape.value_size,
                    shape.map_type,
                    wanted.max_entries,
                    wanted.value_size,
                    wanted.map_type
                )));
            }
            Ok((map, shape))
        };
        let array = |value_size: usize, max_entries| MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: value_size as u32,
            max_entries,
        };
        let per_cpu = |value_size, max_entries| MapShape {
            map_type: map_type::PERCPU_ARRAY,
            ..array(value_size, max_entries)
        };
        let exact =
            |name, shape: MapShape| open(name, shape, shape.max_entries).map(|(map, _)| map);

        let pages = per_cpu(size_of::<RuleCounterPage>(), 1);
        let (rule_counters, pages) = open(RULE_COUNTERS, pages, MAX_RULE_COUNTER_PAGES as u32)?;
        Ok(Self {
            active: exact(ACTIVE, array(4, 1))?,
            images: exact(IMAGES, array(size_of::<Image>(), BANKS))?,
            rule_counters,
            if_counters: exact(
                IF_COUNTERS,
                per_cpu(size_of::<InterfaceCounters>(), INTERFACE_SLOTS),
            )?,
            interfaces: exact(INTERFACES, slots::SHAPE)?,
            rule_counter_count: pages.max_entries as usize * RULE_COUNTERS_PER_PAGE,
            cpus: aya::util::nr_cpus()
                .map_err(|(path, error)| Error::io(format!("reading {path}"))(error))?,
        })
    }

    /// Creates and pins the map that the program does not know of.
    pub(super) fn create_interfaces(instance: &Instance) -> Result<(), Error> {
        let creating = || Error::io("creating the map `interfaces`");
        let map = sys::map_create(INTERFACES, slots::SHAPE, None).map_err(creating())?;
        sys::pin(map.as_fd(), &instance.pin(INTERFACES)).map_err(creating())
    }

    /// The bank that is in force.
    pub(super) fn active_bank(&self) -> Result<u32, Error> {
        let mut bank = [0; 4];
        sys::map_lookup(self.active.as_fd(), 0, &mut bank)
            .map_err(Error::io("reading the active bank"))?;
        Ok(u32::from_ne_bytes(bank) % BANKS)
    }

    /// Puts a bank in force.
    pub(super) fn set_active_bank(&self, bank: u32) -> Result<(), Error> {
        sys::map_update(self.active.as_fd(), 0, &bank.to_ne_bytes())
            .map_err(Error::io("switching to the new policy"))
    }

    /// Fills a bank that is not in force. Programs that still read it, because it was in force
    /// when they started, are waited for first.
    pub(super) fn fill_bank(&self, bank: u32, image: &Image) -> Result<(), Error> {
        let filling = || Error::io("writing the compiled policy");
        sys::wait_for_programs().map_err(filling())?;
        sys::map_update(self.images.as_fd(), bank, bytemuck::bytes_of(image)).map_err(filling())
    }

    /// The counters of a slot, all CPUs together.
    pub(super) fn interface_counters(&self, slot: u32) -> Result<Box<InterfaceCounters>, Error> {
        let mut sum: Box<InterfaceCounters> = bytemuck::zeroed_box();
        let mut values = vec![InterfaceCounters::zeroed(); self.cpus];
        sys::map_lookup(self.if_counters.as_fd(), slot, bytemuck::cast_slice_mut(&mut values))
            .map_err(Error::io("reading the interfaces' counters"))?;
        for value in &values {
            add_all(&mut sum.counters, &value.counters);
        }
        Ok(sum)
    }

    /// Sets the counters of a slot that no attached program uses back to zero.
    pub(super) fn clear_interface_counters(&self, slot: u32) -> Result<(), Error> {
        let zeroes = vec![InterfaceCounters::zeroed(); self.cpus];
        sys::map_update(self.if_counters.as_fd(), slot, bytemuck::cast_slice(&zeroes))
            .map_err(Error::io("clearing the interface's counters"))
    }

    /// The rule counters with these ids, all CPUs together.
    pub(super) fn rule_counters(&self) -> RuleCounters<'_> {
        RuleCounters { maps: self, page: None, sum: bytemuck::zeroed_box() }
    }
}

/// Reads rule counters, a page at a time: cheap for ids that are near each other.
pub(super) struct RuleCounters<'a> {
    maps: &'a Maps,
    page: Option<usize>,
    sum: Box<RuleCounterPage>,
}

impl RuleCounters<'_> {
    pub(super) fn get(&mut self, id: u32) -> Result<Counter, Error> {
        let (page, index) =
            (id as usize / RULE_COUNTERS_PER_PAGE, id as usize % RULE_COUNTERS_PER_PAGE);
        if self.page != Some(page) {
            let mut values = vec![RuleCounterPage::zeroed(); self.maps.cpus];
            sys::map_lookup(
                self.maps.rule_counters.as_fd(),
                page as u32,
                bytemuck::cast_slice_mut(&mut values),
            )
            .map_err(Error::io("reading the rules' counters"))?;
            self.sum.counters.fill(Counter::default());
            for value in &values {
                add_all(&mut self.sum.counters, &value.counters);
            }
            self.page = Some(page);
        }
        Ok(self.sum.counters[index])
    }
}

fn add_all(sum: &mut [Counter], values: &[Counter]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        sum.packets = sum.packets.wrapping_add(value.packets);
        sum.bytes = sum.bytes.wrapping_add(value.bytes);
    }
}

#[cfg(test)]
mod tests {
    use portsteer_common::image::MAX_RULES;

    use super::*;

    #[test]
    fn there_is_room_for_two_policies() {
        assert_eq!(counter_pages(0), 8);
        assert_eq!(counter_pages(65_535), 128);
        assert_eq!(counter_pages(65_536), 256);
        assert_eq!(counter_pages(MAX_RULES), 256);
        for rules in [0, 1, 1_000, 65_535, 100_000, MAX_RULES] {
            let counters = counter_pages(rules) as usize * RULE_COUNTERS_PER_PAGE;
            assert!(counters > 2 * rules, "{rules}");
        }
    }
}
