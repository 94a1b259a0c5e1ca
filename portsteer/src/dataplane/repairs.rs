//! Offloads that stand in the way of steering. A steered packet leaves as the bytes that the
//! program saw: without the checksum that the sender left to its device, without the VLAN tag that
//! the device took off, and in one piece however long it is. So the agent switches such offloads
//! off where it can, and back when nothing needs it any more.
//!
//! What was switched is kept in a pinned map, so that whoever takes the dataplane off can undo it.

use std::os::fd::{AsFd as _, OwnedFd};

use bytemuck::{Pod, Zeroable};
use portsteer_common::{INTERFACE_SLOTS, steering::MAX_TARGETS};

use super::{
    AttachedMode, Error,
    instance::Instance,
    sys::{self, MapShape, map_type},
};
use crate::{
    ethtool::{self, Offload},
    netlink::Link,
    policy::Policy,
};

/// What an offload has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub interface: String,
    pub ifindex: u32,
    pub offload: Offload,
    pub on: bool,
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
    if policy.targets.is_empty() {
        return settings;
    }
    let mut want = |link: &Link, offload, on| {
        let (interface, ifindex) = (link.name.clone(), link.index);
        settings.push(Setting { interface, ifindex, offload, on });
    };
    let with_index = |index: u32| links.iter().find(|link| link.index == index);
    for &(link, mode) in attached {
        match link.kind.as_deref() {
            // A veth hands over whatever its other end was given.
            Some("veth") => {
                if let Some(peer) = link.peer_index.and_then(with_index) {
                    SENDER.into_iter().for_each(|offload| want(peer, offload, false));
                }
            }
            _ => want(link, Offload::RxVlan, false),
        }
        if mode == AttachedMode::Generic {
            // There the program sees packets after they were joined, too long for any target.
            want(link, Offload::Gro, false);
        }
    }
    if attached.iter().any(|(_, mode)| *mode == AttachedMode::Native) {
        // The other end of a veth takes redirected frames only if it joins packets, or has a
        // program of its own.
        for target in &policy.targets {
            let link = target.kind.link(links);
            let peer = link.and_then(|link| link.peer_index).and_then(with_index);
            if let Some(peer) = peer.filter(|peer| peer.xdp.is_none()) {
                want(peer, Offload::Gro, true);
            }
        }
    }
    settings
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

/// An entry of the map: what was switched.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Record {
    /// 0 where nothing is recorded.
    ifindex: u32,
    /// The index in [`Offload::ALL`].
    offload: u32,
    /// What it was switched to; before, it was the opposite.
    on: u32,
    /// The interface's name at that time, padded with zeroes: for listings.
    name: [u8; 16],
}

/// As many as can ever be wanted.
const RECORDS: usize = INTERFACE_SLOTS as usize * (SENDER.len() + 1) + MAX_TARGETS;

/// The map's name and pin.
pub(super) const PIN: &str = "repairs";

/// The map's shape: one value with all records.
pub(super) const SHAPE: MapShape = MapShape {
    map_type: map_type::ARRAY,
    key_size: 4,
    value_size: (RECORDS * size_of::<Record>()) as u32,
    max_entries: 1,
    flags: 0,
};

/// The offloads that were switched for an instance, and the right to switch more.
#[derive(Debug)]
pub(super) struct Repairs(OwnedFd);

impl Repairs {
    /// From the pinned map, whose shape is [`SHAPE`].
    pub(super) fn new(map: OwnedFd) -> Self {
        Self(map)
    }

    /// Opens the pinned map by itself; `None` if it is missing or has another shape.
    pub(super) fn open(instance: &Instance) -> Option<Self> {
        let map = sys::open_pin(&instance.pin(PIN)).ok()?;
        (sys::map_shape(map.as_fd()).ok()? == SHAPE).then_some(Self(map))
    }

    fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = vec![Record::zeroed(); RECORDS];
        sys::map_lookup(self.0.as_fd(), 0, bytemuck::cast_slice_mut(&mut records))
            .map_err(Error::io("reading the map `repairs`"))?;
        Ok(records)
    }

    fn write(&self, records: &[Record]) -> Result<(), Error> {
        sys::map_update(self.0.as_fd(), 0, bytemuck::cast_slice(records))
            .map_err(Error::io("writing the map `repairs`"))
    }

    /// What is switched now.
    pub(super) fn present(&self) -> Result<Vec<Setting>, Error> {
        Ok(self.records()?.iter().filter_map(Record::setting).collect())
    }

    /// Switches what has to be switched, writes it down first, and adds it to `made`. Returns in
    /// words what could not be switched.
    pub(super) fn make(
        &self,
        wanted: &[Setting],
        made: &mut Vec<Setting>,
    ) -> Result<Vec<String>, Error> {
        let mut records = self.records()?;
        let mut failed = Vec::new();
        for setting in wanted {
            // A device that does not know the offload does nothing of the kind.
            if ethtool::get(&setting.interface, setting.offload).ok() != Some(!setting.on) {
                continue;
            }
            let known = records.iter().position(|record| record.is(setting));
            if known.is_none() {
                if let Some(free) = records.iter_mut().find(|record| record.ifindex == 0) {
                    *free = Record::new(setting);
                }
                self.write(&records)?;
            }
            match ethtool::set(&setting.interface, setting.offload, setting.on) {
                Ok(()) if known.is_some() => {}
                Ok(()) => made.push(setting.clone()),
                Err(error) => {
                    failed.push(format!("{error}; {}", consequence(setting)));
                    records.iter_mut().filter(|record| record.is(setting)).for_each(Record::clear);
                    self.write(&records)?;
                }
            }
        }
        Ok(failed)
    }

    /// Switches back what is not to be kept, of the interfaces that are still there. Returns what
    /// was.
    pub(super) fn undo(
        &self,
        links: &[Link],
        keep: impl Fn(&Setting) -> bool,
    ) -> Result<Vec<Setting>, Error> {
        let mut records = self.records()?;
        let mut undone = Vec::new();
        for record in &mut records {
            let Some(mut setting) = record.setting() else { continue };
            if let Some(link) = links.iter().find(|link| link.index == setting.ifindex) {
                setting.interface.clone_from(&link.name);
                if keep(&setting) {
                    continue;
                }
                let now = ethtool::get(&link.name, setting.offload).ok();
                let back = Setting { on: !setting.on, ..setting };
                // Where somebody has switched it since, it is theirs.
                if now == Some(!back.on) && ethtool::set(&link.name, back.offload, back.on).is_ok()
                {
                    undone.push(back);
                }
            }
            record.clear();
        }
        self.write(&records)?;
        Ok(undone)
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
    fn new(setting: &Setting) -> Self {
        let mut name = [0; 16];
        for (to, from) in name.iter_mut().zip(setting.interface.bytes()) {
            *to = from;
        }
        let (ifindex, on) = (setting.ifindex, setting.on.into());
        Self { ifindex, offload: number(setting.offload), on, name }
    }

    fn clear(&mut self) {
        *self = Self::zeroed();
    }

    fn is(&self, setting: &Setting) -> bool {
        (self.ifindex, self.offload, self.on)
            == (setting.ifindex, number(setting.offload), setting.on.into())
    }

    fn setting(&self) -> Option<Setting> {
        if self.ifindex == 0 {
            return None;
        }
        let name = String::from_utf8_lossy(&self.name);
        Some(Setting {
            interface: name.trim_end_matches('\0').to_owned(),
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
