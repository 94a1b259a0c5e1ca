//! Offloads that stand in the way of steering. A steered packet leaves as the bytes that the
//! program saw: without the checksum that the sender left to its device, without the VLAN tag that
//! the device took off, and in one piece however long it is. So the agent switches such offloads
//! off where it can, and back when nothing needs it any more.
//!
//! What was switched is kept in a pinned map, so that whoever takes the dataplane off can undo it.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use bytemuck::{Pod, Zeroable};
use portsteer_common::{INTERFACE_SLOTS, steering::MAX_TARGETS};

use super::{
    AttachedMode, Error,
    instance::Instance,
    pins::{self, PinDir},
    slots::{padded, unpadded},
    sys::{self, MapShape, map_type},
};
use crate::{
    ethtool::{self, Offload},
    netlink::Link,
    policy::{Policy, TargetKind},
};

/// What an offload has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub interface: String,
    pub ifindex: u32,
    pub offload: Offload,
    pub on: bool,
}

impl Setting {
    fn new(link: &Link, offload: Offload, on: bool) -> Self {
        Self { interface: link.name.clone(), ifindex: link.index, offload, on }
    }
}

/// A sender that leaves to its device what a veth never does.
const SENDER: [Offload; 4] = [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::TxVlan];

/// What a policy needs of the devices that it is attached to in these modes, and of what sends to
/// them.
pub(super) fn wanted(
    policy: &Policy,
    attached: &[(&Link, AttachedMode)],
    links: &[Link],
) -> Vec<Setting> {
    let mut settings = Vec::new();
    let steers = !policy.targets.is_empty();
    if !steers && policy.rules.iter().all(|rule| rule.vlans.is_empty()) {
        return settings;
    }
    // Whoever asks for VLANs wants the tags where the program sees them.
    let of_sender = if steers { &SENDER[..] } else { &[Offload::TxVlan] };
    let mut want = |link: &Link, offload| settings.push(Setting::new(link, offload, false));
    let with_index = |index: u32| links.iter().find(|link| link.index == index);
    for &(link, mode) in attached {
        match link.kind.as_deref() {
            // A veth hands over whatever its other end was given.
            Some("veth") => {
                if let Some(peer) = link.peer_index.and_then(with_index) {
                    of_sender.iter().for_each(|&offload| want(peer, offload));
                }
            }
            _ => want(link, Offload::RxVlan),
        }
        if mode == AttachedMode::Generic && steers {
            // There the program sees packets after they were joined, too long for any target.
            want(link, Offload::Gro);
        }
    }
    if attached.iter().any(|(_, mode)| *mode == AttachedMode::Native) {
        settings.extend(wanted_of(policy.targets.iter().map(|target| &target.kind), links));
    }
    settings
}

/// What targets need where anything is attached in native mode: the other end of a veth takes
/// redirected frames only if it joins packets, or has a program of its own.
pub(super) fn wanted_of<'a>(
    targets: impl Iterator<Item = &'a TargetKind>,
    links: &[Link],
) -> Vec<Setting> {
    let peer = |kind: &TargetKind| {
        let index = kind.link(links)?.peer_index?;
        links.iter().find(|link| link.index == index && link.xdp.is_none())
    };
    targets.filter_map(peer).map(|peer| Setting::new(peer, Offload::Gro, true)).collect()
}

/// Whether packets come to this interface from a sender whose offloads are out of reach.
pub(super) fn sender_is_elsewhere(link: &Link) -> bool {
    match link.kind.as_deref() {
        Some("veth") => link.peer_index.is_none(),
        // A virtual machine, mostly.
        Some("tun") => true,
        _ => false,
    }
}

/// An entry of the map: what has to be as it is, and whether it was switched for that.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Record {
    /// The inode's number of the network namespace. 0 where nothing is recorded.
    network: u32,
    ifindex: u32,
    /// The index in [`Offload::ALL`].
    offload: u32,
    on: u16,
    /// Whether it was the opposite before, and is to be again.
    switched: u16,
    /// The interface's name at that time, padded with zeroes: for listings.
    name: [u8; 16],
}

/// As many as can ever be wanted.
const RECORDS: u32 = INTERFACE_SLOTS * (SENDER.len() as u32 + 1) + MAX_TARGETS as u32;

/// The map's name and pin.
pub(super) const PIN: &str = "repairs";

/// The map's shape: one record a value.
pub(super) const SHAPE: MapShape = MapShape {
    map_type: map_type::ARRAY,
    key_size: 4,
    value_size: size_of::<Record>() as u32,
    max_entries: RECORDS,
    flags: 0,
};

/// The network namespace that the calling thread is in, by its inode's number, which
/// `struct ns_common` has in 32 bits.
pub(super) fn this_network() -> Result<u32, Error> {
    let metadata = fs::metadata("/proc/thread-self/ns/net")
        .map_err(Error::io("looking at this network namespace"))?;
    Ok(metadata.ino() as u32)
}

/// The offloads that were switched for an instance, and the right to switch more.
#[derive(Debug)]
pub(super) struct Repairs {
    map: OwnedFd,
    instance: Instance,
}

impl Repairs {
    /// From the pinned map, whose shape is [`SHAPE`].
    pub(super) fn new(instance: &Instance, map: OwnedFd) -> Self {
        Self { map, instance: instance.clone() }
    }

    /// Opens the pinned map by itself; `None` if it is missing or has another shape.
    pub(super) fn open(pins: &PinDir) -> Option<Self> {
        let map = pins.get(PIN).ok()?;
        (sys::map_shape(map.as_fd()).ok()? == SHAPE).then(|| Self::new(pins.instance(), map))
    }

    /// Takes over what is written down in another directory, whose map may have fewer records.
    pub(super) fn copy_from(&self, pins: &PinDir) -> Result<(), Error> {
        let reading = || Error::io("reading the map `repairs` of the layout before");
        let map = pins.get(PIN).map_err(reading())?;
        let records = sys::map_shape(map.as_fd()).map_err(reading())?.max_entries.min(RECORDS);
        for index in 0..records {
            let mut record = Record::zeroed();
            sys::map_lookup(map.as_fd(), index, bytemuck::bytes_of_mut(&mut record))
                .map_err(reading())?;
            self.write(index as usize, &record)?;
        }
        Ok(())
    }

    fn records(&self) -> Result<Vec<Record>, Error> {
        let read = |index| {
            let mut record = Record::zeroed();
            sys::map_lookup(self.map.as_fd(), index, bytemuck::bytes_of_mut(&mut record))
                .map_err(Error::io("reading the map `repairs`"))?;
            Ok(record)
        };
        (0..RECORDS).map(read).collect()
    }

    fn write(&self, index: usize, record: &Record) -> Result<(), Error> {
        sys::map_update(self.map.as_fd(), index as u32, bytemuck::bytes_of(record))
            .map_err(Error::io("writing the map `repairs`"))
    }

    /// What is switched now, in whichever network namespace.
    pub(super) fn present(&self) -> Result<Vec<Setting>, Error> {
        let records = self.records()?;
        Ok(records
            .iter()
            .filter(|record| record.switched != 0)
            .filter_map(Record::setting)
            .collect())
    }

    /// Switches what has to be switched, writes it down first, and adds it to `made`. Returns in
    /// words what could not be switched.
    pub(super) fn make(
        &self,
        wanted: &[Setting],
        links: &[Link],
        made: &mut Vec<Setting>,
    ) -> Result<Vec<String>, Error> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let network = this_network()?;
        let mut records = self.records()?;
        let is_gone = |record: &Record| {
            record.network == network && !links.iter().any(|link| link.index == record.ifindex)
        };
        for (index, record) in records.iter_mut().enumerate() {
            if is_gone(record) {
                *record = Record::zeroed();
                self.write(index, record)?;
            }
        }
        let mut failed = Vec::new();
        for setting in wanted {
            // A device that does not know the offload does nothing of the kind.
            let Ok(on) = ethtool::get(&setting.interface, setting.offload) else { continue };
            let known = records.iter().position(|record| record.is(network, setting));
            let free = || records.iter().position(|record| record.network == 0);
            let Some(index) = known.or_else(free) else {
                failed.push(format!(
                    "there is no room to remember the offload {} of {}; {}",
                    setting.offload.name(),
                    setting.interface,
                    consequence(setting)
                ));
                continue;
            };
            let is_right = on == setting.on;
            let switched = !is_right || (known.is_some() && records[index].switched != 0);
            let record = Record::new(network, setting, switched);
            if records[index] != record {
                records[index] = record;
                self.write(index, &record)?;
            }
            if is_right {
                continue;
            }
            match ethtool::set(&setting.interface, setting.offload, setting.on) {
                Ok(()) if known.is_some() => {}
                Ok(()) => made.push(setting.clone()),
                Err(error) => {
                    failed.push(format!("{error}; {}", consequence(setting)));
                    records[index] = Record::zeroed();
                    self.write(index, &records[index])?;
                }
            }
        }
        Ok(failed)
    }

    /// Gives up what is not to be kept: switches it back, or leaves that to another instance that
    /// needs it too. What is in another network namespace stays as it is. Returns what was switched
    /// back.
    pub(super) fn undo(
        &self,
        links: &[Link],
        keep: impl Fn(&Setting) -> bool,
    ) -> Result<Vec<Setting>, Error> {
        let network = this_network()?;
        let mut undone = Vec::new();
        for (index, record) in self.records()?.iter().enumerate() {
            let Some(mut setting) = record.setting().filter(|_| record.network == network) else {
                continue;
            };
            if let Some(link) = links.iter().find(|link| link.index == setting.ifindex) {
                setting.interface.clone_from(&link.name);
                if keep(&setting) {
                    continue;
                }
                let now = ethtool::get(&link.name, setting.offload).ok();
                // Where somebody has switched it since, it is theirs.
                if record.switched != 0
                    && now == Some(setting.on)
                    && !self.is_taken_over(network, &setting)?
                {
                    let back = Setting { on: !setting.on, ..setting };
                    if ethtool::set(&link.name, back.offload, back.on).is_ok() {
                        undone.push(back);
                    }
                }
            }
            self.write(index, &Record::zeroed())?;
        }
        Ok(undone)
    }

    /// Whether another instance needs it too; it is that one's to switch back then.
    fn is_taken_over(&self, network: u32, setting: &Setting) -> Result<bool, Error> {
        for instance in pins::instances() {
            if instance == self.instance {
                continue;
            }
            let Ok(Some(pins)) = PinDir::open(&instance) else { continue };
            let Some(other) = Self::open(&pins) else { continue };
            let records = other.records()?;
            if let Some(index) = records.iter().position(|record| record.is(network, setting)) {
                other.write(index, &Record { switched: 1, ..records[index] })?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What comes of an offload that could not be switched.
const fn consequence(setting: &Setting) -> &'static str {
    match setting.offload {
        Offload::TxChecksum | Offload::RxChecksum => "steered packets may lack their checksum",
        Offload::TxVlan | Offload::RxVlan => "steered packets may lack their VLAN tag",
        Offload::Gro if setting.on => "targets behind it may take no packets",
        Offload::Gro | Offload::Tso | Offload::Gso => "steered packets may be too long",
    }
}

impl Record {
    fn new(network: u32, setting: &Setting, switched: bool) -> Self {
        let name = padded(&setting.interface);
        let (ifindex, offload, on) = (setting.ifindex, number(setting.offload), setting.on.into());
        Self { network, ifindex, offload, on, switched: switched.into(), name }
    }

    fn is(&self, network: u32, setting: &Setting) -> bool {
        (self.network, self.ifindex, self.offload, self.on)
            == (network, setting.ifindex, number(setting.offload), setting.on.into())
    }

    fn setting(&self) -> Option<Setting> {
        if self.network == 0 {
            return None;
        }
        Some(Setting {
            interface: unpadded(&self.name),
            ifindex: self.ifindex,
            offload: *Offload::ALL.get(self.offload as usize)?,
            on: self.on != 0,
        })
    }
}

/// The index in [`Offload::ALL`].
fn number(offload: Offload) -> u32 {
    Offload::ALL.iter().take_while(|other| **other != offload).count() as u32
}

/// `tx, tso of client off`, for each interface.
pub(super) fn describe(settings: &[Setting]) -> String {
    let mut groups: Vec<(&str, bool, Vec<&str>)> = Vec::new();
    for setting in settings {
        let name = setting.offload.name();
        match groups.last_mut() {
            Some((interface, on, names))
                if *interface == setting.interface && *on == setting.on =>
            {
                names.push(name);
            }
            _ => groups.push((&setting.interface, setting.on, vec![name])),
        }
    }
    let texts: Vec<String> = groups
        .iter()
        .map(|(interface, on, names)| {
            let to = if *on { "on" } else { "off" };
            format!("{} of {interface} {to}", names.join(", "))
        })
        .collect();
    texts.join("; ")
}
