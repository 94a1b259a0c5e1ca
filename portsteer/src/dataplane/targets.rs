//! Targets: what the policy asks for, against what the kernel has at this moment. [`refresh`] makes
//! the program know of it, and may be called at any time and as often as one likes.

use std::{
    collections::HashMap,
    fs,
    os::fd::AsFd as _,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use portsteer_common::steering::{Losses, MacAddresses, TARGET_SLOTS, state};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AttachedMode, Error, Pinned,
    attaching::instance_of,
    error,
    instance::Instance,
    manifest::ManifestTarget,
    maps::{self, Maps},
    object::{self, Watcher},
    sys,
};
use crate::{
    netlink::{self, Link, XdpFeatures},
    policy::{NextHop, Policy, TargetKind},
};

impl TargetKind {
    /// The interface, if it is one and there is one.
    pub(super) fn link<'a>(&self, links: &'a [Link]) -> Option<&'a Link> {
        let Self::Interface { interface, .. } = self else { return None };
        links.iter().find(|link| link.name == *interface)
    }
}

/// How a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TargetState {
    /// Packets are sent there.
    Ready,
    /// There is no such interface, or none of the CPUs is online.
    Gone,
    /// The interface is down, or has no carrier.
    Down,
    /// The next hop has not answered.
    Unresolved,
    /// The interface refuses frames from programs that are attached in native mode.
    Refusing,
}

impl TargetState {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Gone => "gone",
            Self::Down => "down",
            Self::Unresolved => "unresolved",
            Self::Refusing => "refusing",
        }
    }

    /// From what the program knows.
    pub(super) const fn from_number(number: u32) -> Self {
        if number & state::REFUSING != 0 {
            return Self::Refusing;
        }
        match number & state::NUMBER {
            state::DOWN => Self::Down,
            state::UNRESOLVED => Self::Unresolved,
            state::READY_0..=state::READY_CPU => Self::Ready,
            _ => Self::Gone,
        }
    }
}

/// A target whose state has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetChange {
    pub name: String,
    pub state: TargetState,
}

/// Whether native redirects to the interface may crash a kernel that does not tell features: before
/// Linux 6.3, `bond_xdp_xmit` (drivers/net/bonding/bond_main.c) calls its device's function without a
/// look whether there is one.
pub(super) fn crashes(link: &Link) -> bool {
    link.kind.as_deref() == Some("bond")
}

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// Its header, and the VLAN tag that the kernel allows beyond it
/// (`__xdp_ok_fwd_dev` in net/core/dev.h).
const ETHERNET_LEN: u32 = 14;
const VLAN_LEN: u32 = 4;

/// How long a policy waits for its next hops to answer, before it comes into force without.
const PATIENCE: Duration = Duration::from_millis(300);

/// What the kernel has for a target now.
#[derive(Debug, PartialEq, Eq)]
enum View {
    Gone,
    Device { ifindex: u32, max_len: u32, way: Way, note: u32 },
    Cpus { online: Vec<u16>, queue: u32 },
}

/// What stands between a device and sending.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Down,
    Unresolved,
    Rewrite(MacAddresses),
    Keep,
}

/// Refuses targets that cannot be right: circles, devices without Ethernet frames, and CPUs that the
/// machine does not have. Returns in words what is missing at the moment, and what looks odd.
pub(super) fn check(
    instance: &Instance,
    policy: &Policy,
    wanted: &[Link],
    links: &[Link],
) -> Result<Vec<String>, Error> {
    let online = online_cpus()?;
    let possible = maps::possible_cpus()?;
    let mut missing = Vec::new();
    for target in &policy.targets {
        let name = &target.name;
        match &target.kind {
            TargetKind::Interface { interface, .. } => {
                let Some(link) = target.kind.link(links) else {
                    let existing: Vec<String> =
                        links.iter().map(|link| link.name.clone()).collect();
                    missing.push(format!(
                        "target `{name}`: there is no interface `{interface}` ({}); its packets \
                         are dropped until there is one",
                        error::suggest(interface, &existing)
                    ));
                    continue;
                };
                if link.hardware_type != ETHERNET {
                    return Err(Error::TargetNotEthernet {
                        target: name.clone(),
                        interface: interface.clone(),
                        hardware_type: link.hardware_type,
                    });
                }
                let attached = |index: u32| wanted.iter().find(|link| link.index == index);
                if attached(link.index).is_some() {
                    let (target, interface, via) = (name.clone(), interface.clone(), None);
                    return Err(Error::Circle { target, interface, via });
                }
                let peer = links.iter().find(|other| Some(other.index) == link.peer_index);
                let program = peer.and_then(|peer| peer.xdp).and_then(|xdp| xdp.program_id);
                if let Some((peer, other)) = peer.zip(program.and_then(instance_of))
                    && other != instance.name()
                {
                    missing.push(format!(
                        "target `{name}`: what leaves `{interface}` arrives on `{}`, where instance \
                         `{other}` is attached; if that steers it back here, it goes round for ever",
                        peer.name
                    ));
                }
                for exit in exits(link, links) {
                    let Some(peer) = exit.link.peer_index.and_then(attached) else { continue };
                    if exit.is_bridged {
                        missing.push(format!(
                            "target `{name}`: what leaves `{interface}` by its port `{}` arrives on \
                             `{}`, which is attached; if it is steered there, it goes round for ever",
                            exit.link.name, peer.name
                        ));
                        continue;
                    }
                    let via = Some(peer.name.clone());
                    let (target, interface) = (name.clone(), interface.clone());
                    return Err(Error::Circle { target, interface, via });
                }
            }
            TargetKind::Cpus { cpus, .. } => {
                let (offline, unknown): (Vec<u32>, Vec<u32>) = cpus
                    .iter()
                    .filter(|cpu| !online.contains(cpu))
                    .partition(|&&cpu| (cpu as usize) < possible);
                if !unknown.is_empty() {
                    let target = name.clone();
                    return Err(Error::UnknownCpus { target, missing: unknown, online });
                }
                if offline.len() == cpus.len() {
                    missing.push(format!(
                        "target `{name}`: none of its CPUs is online; its packets are dropped \
                         until one is"
                    ));
                } else if !offline.is_empty() {
                    missing.push(format!(
                        "target `{name}`: not online, and left out until they are: CPU {}",
                        error::list(&offline)
                    ));
                }
            }
        }
    }
    Ok(shortened(missing))
}

/// What is to be said of targets that packets cannot be sent to yet.
pub(super) fn unready(maps: &Maps, targets: &[ManifestTarget]) -> Vec<String> {
    let notes = targets.iter().filter_map(|target| {
        let state = TargetState::from_number(state_of(maps, target.slot));
        let name = &target.name;
        match (state, &target.kind) {
            // What does not exist was told of before.
            (TargetState::Ready | TargetState::Gone, _) => None,
            (
                TargetState::Unresolved,
                TargetKind::Interface { interface, next_hop: NextHop::Via(via) },
            ) => Some(format!(
                "target `{name}` is unresolved: {via} does not answer on `{interface}`; its packets \
                 are dropped until it does"
            )),
            (state, _) => Some(format!("target `{name}` is {}", state.name())),
        }
    });
    shortened(notes.collect())
}

/// The first of many texts, and how many there are more.
fn shortened(mut texts: Vec<String>) -> Vec<String> {
    const MOST: usize = 8;
    if texts.len() > MOST {
        let more = texts.len() - MOST;
        texts.truncate(MOST);
        texts.push(format!("and so are {more} more targets; `portsteer status` lists them"));
    }
    texts
}

/// What a target's state depends on besides itself.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    /// The interfaces that the program is attached to, with the program's id.
    attached: Vec<(u32, u32)>,
    /// Whether any of them is in native mode.
    native: bool,
}

impl Attachments {
    pub(super) fn new(pinned: &[Pinned]) -> Self {
        let present = || pinned.iter().filter(|pinned| pinned.ifindex != 0);
        Self {
            attached: present().map(|pinned| (pinned.ifindex, pinned.program_id)).collect(),
            native: present().any(|pinned| pinned.record.mode() == AttachedMode::Native),
        }
    }

    /// Whether what is sent out of this interface would come back.
    fn is_circle(&self, link: &Link, links: &[Link]) -> bool {
        // An index may be that of an interface that has moved to another network namespace.
        let is_attached = |link: &Link| {
            let program = link.xdp.and_then(|xdp| xdp.program_id);
            self.attached.iter().any(|&(index, id)| index == link.index && program == Some(id))
        };
        let peer_of = |exit: &Link| links.iter().find(|other| Some(other.index) == exit.peer_index);
        let comes_back = |exit: &Exit<'_>| peer_of(exit.link).is_some_and(is_attached);
        is_attached(link)
            || exits(link, links).iter().any(|exit| !exit.is_bridged && comes_back(exit))
    }
}

/// A device by which frames may leave that are sent on another.
struct Exit<'a> {
    link: &'a Link,
    /// Whether a bridge decides if they do.
    is_bridged: bool,
}

/// The devices by which frames may leave that are sent on `link`: itself, the device that it is put
/// on, and those that are part of it, as far as that goes.
fn exits<'a>(link: &'a Link, links: &'a [Link]) -> Vec<Exit<'a>> {
    let mut exits = vec![Exit { link, is_bridged: false }];
    let mut next = 0;
    while let Some(&Exit { link, is_bridged }) = exits.get(next) {
        let is_bridged = is_bridged || link.kind.as_deref() == Some("bridge");
        for below in links {
            let is_below = link.lower == Some(below.index) || below.master == Some(link.index);
            if is_below && !exits.iter().any(|known| known.link.index == below.index) {
                exits.push(Exit { link: below, is_bridged });
            }
        }
        next += 1;
    }
    exits
}

/// Which CPUs are online, in ascending order.
///
/// # Errors
///
/// The kernel does not tell.
pub fn online_cpus() -> Result<Vec<u32>, Error> {
    const PATH: &str = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(PATH).map_err(Error::io(format!("reading {PATH}")))?;
    Ok(parse_cpu_list(&text))
}

/// `0-3,8`, as the kernel writes sets of CPUs.
fn parse_cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

/// What [`refresh`] found.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    pub(super) changes: Vec<TargetChange>,
    /// Whether a target has another interface than before, and this kernel does not tell whether that
    /// takes native redirects.
    pub(super) has_untried_devices: bool,
}

/// Whether neighbours are asked that have not answered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Those too.
    Again,
    /// Only those of which the kernel knows nothing, or whose answer has grown old.
    First,
}

/// All of what the kernel has, as far as targets are concerned.
struct Surroundings<'a> {
    links: Vec<Link>,
    /// By index, as far as somebody needs to know; `None` where the kernel does not tell.
    features: Option<HashMap<u32, XdpFeatures>>,
    online: Vec<u32>,
    attachments: &'a Attachments,
}

impl<'a> Surroundings<'a> {
    fn look(attachments: &'a Attachments) -> Result<Self, Error> {
        let links = netlink::links().map_err(Error::io("listing the interfaces"))?;
        let features = if attachments.native {
            netlink::xdp_features().map_err(Error::io("asking for the interfaces' XDP features"))?
        } else {
            Some(HashMap::new())
        };
        Ok(Self { links, features, online: online_cpus()?, attachments })
    }
}

fn view(kind: &TargetKind, around: &Surroundings<'_>, ask: Ask) -> Result<View, Error> {
    match kind {
        TargetKind::Cpus { cpus, queue } => {
            let online: Vec<u16> = cpus
                .iter()
                .filter(|cpu| around.online.contains(cpu))
                .filter_map(|&cpu| u16::try_from(cpu).ok())
                .collect();
            Ok(if online.is_empty() { View::Gone } else { View::Cpus { online, queue: *queue } })
        }
        TargetKind::Interface { next_hop, .. } => {
            let named = kind.link(&around.links);
            // One that has come into being since, and would not have been accepted, is as good as
            // none.
            let is_acceptable = |link: &&Link| {
                !around.attachments.is_circle(link, &around.links)
                    && link.hardware_type == ETHERNET
                    && !(around.features.is_none() && crashes(link))
            };
            let Some(link) = named.filter(is_acceptable) else { return Ok(View::Gone) };
            let max_len = link.mtu.saturating_add(ETHERNET_LEN + VLAN_LEN);
            let source = link.mac.unwrap_or_default();
            let way = match *next_hop {
                // Without a carrier the kernel drops what generic mode sends, and tells nobody.
                _ if !link.up || !link.carrier => Way::Down,
                NextHop::Keep => Way::Keep,
                NextHop::Mac(destination) => Way::Rewrite(MacAddresses { destination, source }),
                NextHop::Via(address) => match resolve(link.index, address, ask)? {
                    Some(destination) => Way::Rewrite(MacAddresses { destination, source }),
                    None => Way::Unresolved,
                },
            };
            let features = around.features.as_ref().and_then(|all| all.get(&link.index));
            let refuses = features.is_some_and(|features| !features.redirect_target());
            let note = if refuses { state::REFUSING } else { 0 };
            Ok(View::Device { ifindex: link.index, max_len, way, note })
        }
    }
}

/// The MAC address of a neighbour, asked for where that is due.
fn resolve(ifindex: u32, address: std::net::IpAddr, ask: Ask) -> Result<Option<[u8; 6]>, Error> {
    let asking = || Error::io(format!("looking for the neighbour {address}"));
    let neighbour = netlink::neighbour(ifindex, address).map_err(asking())?;
    let due = match &neighbour {
        None => true,
        Some(known) if known.is_usable() => known.wants_confirmation(),
        Some(_) => ask == Ask::Again,
    };
    if due {
        // Refused where the interface has no address of that family or is just going down; that is
        // the operator's to see as "unresolved", not the agent's to fail at.
        let _ = netlink::resolve_neighbour(ifindex, address);
    }
    Ok(neighbour.filter(netlink::Neighbour::is_usable).and_then(|known| known.mac))
}

/// Makes the program know how the targets are now. Returns those whose state is another than
/// before. Only the holder of the instance's lock may call this.
pub(super) fn refresh(
    maps: &mut Maps,
    targets: &[ManifestTarget],
    attachments: &Attachments,
    ask: Ask,
) -> Result<Refresh, Error> {
    if targets.is_empty() {
        return Ok(Refresh::default());
    }
    let mut has_untried_devices = false;
    let around = Surroundings::look(attachments)?;
    // Addresses are changed together, after one grace period for all.
    let mut rewrites = Vec::new();
    let before: Vec<TargetState> = targets
        .iter()
        .map(|target| TargetState::from_number(state_of(maps, target.slot)))
        .collect();
    for target in targets {
        let slot = target.slot;
        let view = view(&target.kind, &around, ask)?;
        let wanted = match view {
            View::Gone => state::GONE,
            View::Cpus { online, queue } => {
                for &cpu in &online {
                    let present = maps.queue(u32::from(cpu))?;
                    let queue = longest_queue(targets, u32::from(cpu)).unwrap_or(queue);
                    if present != queue {
                        maps.set_queue(u32::from(cpu), queue)?;
                    }
                }
                maps.spread(slot, &online);
                if online.len() == 1 { state::READY_CPU } else { state::READY_CPUS }
            }
            View::Device { ifindex, max_len, way, note } => {
                let present = maps.device(slot)?;
                if present != ifindex {
                    has_untried_devices |= around.features.is_none();
                    // Not before the old state is off: it may have gone with the old interface.
                    set_state(maps, slot, state::GONE);
                    if present != 0 {
                        maps.set_slot_of_device(present, None)?;
                    }
                    maps.set_device(slot, ifindex)?;
                    maps.forget_gone_devices()?;
                    let first = first_on_device(maps, targets, ifindex)?;
                    maps.set_slot_of_device(ifindex, first)?;
                }
                maps.target_max_len(slot).store(max_len, Ordering::Relaxed);
                match way {
                    Way::Down => state::DOWN,
                    Way::Unresolved => state::UNRESOLVED,
                    Way::Keep => state::READY_KEEP | note,
                    Way::Rewrite(addresses) => {
                        rewrites.push((slot, addresses, note));
                        continue;
                    }
                }
            }
        };
        set_state(maps, slot, wanted);
    }
    end_offline_queues(maps, targets, &around.online)?;
    rewrites.retain(|&(slot, addresses, note)| {
        let current = state_of(maps, slot) & state::NUMBER;
        let index = match current {
            state::READY_0 => 0,
            state::READY_1 => 1,
            _ => return true,
        };
        let differs = *maps.target_macs(slot, index) != addresses;
        if !differs {
            set_state(maps, slot, current | note);
        }
        differs
    });
    if !rewrites.is_empty() {
        // A program may still be reading the addresses of the state before the last.
        sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
        for (slot, addresses, note) in rewrites {
            let (index, ready) = match state_of(maps, slot) & state::NUMBER {
                state::READY_0 => (1, state::READY_1),
                _ => (0, state::READY_0),
            };
            *maps.target_macs(slot, index) = addresses;
            set_state(maps, slot, ready | note);
        }
    }
    let changes = targets
        .iter()
        .zip(before)
        .filter_map(|(target, before)| {
            let state = TargetState::from_number(state_of(maps, target.slot));
            (state != before).then(|| TargetChange { name: target.name.clone(), state })
        })
        .collect();
    Ok(Refresh { changes, has_untried_devices })
}

/// Ends the kernel's threads for CPUs that are offline, to which nothing is spread any more. The
/// kernel would move them to other CPUs for good; made anew, they are where they belong.
fn end_offline_queues(
    maps: &Maps,
    targets: &[ManifestTarget],
    online: &[u32],
) -> Result<(), Error> {
    let mut offline: Vec<u32> = Vec::new();
    for target in targets {
        let TargetKind::Cpus { cpus, .. } = &target.kind else { continue };
        for &cpu in cpus {
            if !online.contains(&cpu) && !offline.contains(&cpu) && maps.queue(cpu)? != 0 {
                offline.push(cpu);
            }
        }
    }
    if offline.is_empty() {
        return Ok(());
    }
    // A program may still be about to hand a packet over.
    sys::wait_for_programs().map_err(Error::io("waiting for running programs"))?;
    offline.into_iter().try_for_each(|cpu| maps.set_queue(cpu, 0))
}

/// The first [`refresh`] of a policy that is about to come into force: next hops get a moment to
/// answer, so that no packet is lost for want of an answer that is on its way.
pub(super) fn prepare(
    maps: &mut Maps,
    targets: &[ManifestTarget],
    attachments: &Attachments,
) -> Result<(), Error> {
    let end = Instant::now() + PATIENCE;
    refresh(maps, targets, attachments, Ask::Again)?;
    let waits =
        |maps: &Maps| targets.iter().any(|target| state_of(maps, target.slot) == state::UNRESOLVED);
    while waits(maps) && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
        refresh(maps, targets, attachments, Ask::First)?;
    }
    Ok(())
}

/// Ends what only targets of a policy before needed: the kernel's threads for CPUs, and the hold on
/// devices.
pub(super) fn clear(
    maps: &Maps,
    before: &[ManifestTarget],
    now: &[ManifestTarget],
) -> Result<(), Error> {
    for target in before {
        if now.iter().any(|kept| kept.slot == target.slot) {
            continue;
        }
        match &target.kind {
            TargetKind::Interface { .. } => {
                let ifindex = maps.device(target.slot)?;
                maps.set_device(target.slot, 0)?;
                if ifindex != 0 {
                    let first = first_on_device(maps, now, ifindex)?;
                    maps.set_slot_of_device(ifindex, first)?;
                }
            }
            TargetKind::Cpus { cpus, .. } => {
                for &cpu in cpus {
                    if longest_queue(now, cpu).is_none() && maps.queue(cpu)? != 0 {
                        maps.set_queue(cpu, 0)?;
                    }
                }
            }
        }
        set_state(maps, target.slot, state::GONE);
    }
    Ok(())
}

/// The slot of the first target that sends out of this interface.
pub(super) fn first_on_device(
    maps: &Maps,
    targets: &[ManifestTarget],
    ifindex: u32,
) -> Result<Option<u16>, Error> {
    for target in targets {
        if matches!(target.kind, TargetKind::Interface { .. })
            && maps.device(target.slot)? == ifindex
        {
            return Ok(Some(target.slot));
        }
    }
    Ok(None)
}

/// What was lost on the way to a target since the slot came into being, the losses of its CPUs
/// included, which it shares with whoever else steers to them.
pub(super) fn losses(maps: &Maps, slot: u16, kind: &TargetKind) -> Result<Losses, Error> {
    let mut sum = maps.losses(usize::from(slot))?;
    if let TargetKind::Cpus { cpus, .. } = kind {
        for &cpu in cpus {
            let cpu = maps.losses(TARGET_SLOTS + cpu as usize)?;
            sum.refused += cpu.refused;
            sum.queue += cpu.queue;
        }
    }
    Ok(sum)
}

/// Has those of the kernel's tracepoints watched that these targets need, and only those. The watchers'
/// links are pinned under the name of the object that they came from, so that another version
/// replaces them.
pub(super) fn watch<'a>(
    maps: &Maps,
    targets: impl Iterator<Item = &'a ManifestTarget> + Clone,
) -> Result<(), Error> {
    let is_needed = |watcher: &Watcher| targets.clone().any(|target| watcher.is_for(&target.kind));
    let needed: Vec<Watcher> = object::WATCHERS.into_iter().filter(is_needed).collect();
    let pins = maps.pins();
    let (current, others): (Vec<String>, Vec<String>) = pins
        .names()?
        .into_iter()
        .filter(|name| name.starts_with("watch_"))
        .partition(|name| needed.iter().any(|watcher| watcher.pin_name() == *name));
    let is_missing = |watcher: &Watcher| !current.contains(&watcher.pin_name());
    let missing: Vec<Watcher> = needed.iter().copied().filter(is_missing).collect();
    if !missing.is_empty() {
        for (watcher, link) in object::watch(maps, &missing)? {
            let name = watcher.pin_name();
            match pins.pin(link.as_fd(), &name) {
                // That one stays; this one ends here.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                result => result.map_err(Error::io(format!("pinning `{name}`")))?,
            }
        }
    }
    others.iter().try_for_each(|name| pins.remove(name))
}

/// A CPU has one queue, as long as the most demanding of its targets wants it.
fn longest_queue(targets: &[ManifestTarget], cpu: u32) -> Option<u32> {
    let queue = |target: &ManifestTarget| match &target.kind {
        TargetKind::Cpus { cpus, queue } if cpus.contains(&cpu) => Some(*queue),
        _ => None,
    };
    targets.iter().filter_map(queue).max()
}

/// A target's state as the program sees it.
pub(super) fn state_of(maps: &Maps, slot: u16) -> u32 {
    maps.target_state(slot).load(Ordering::Acquire)
}

fn set_state(maps: &Maps, slot: u16, number: u32) {
    maps.target_state(slot).store(number, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpu_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_cpu_list("0\n"), [0]);
        assert_eq!(parse_cpu_list("\n"), [0u32; 0]);
    }
}
