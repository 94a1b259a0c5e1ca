//! What devices can do for a policy that steers, found out before anything is attached: what is
//! refused here would be lost in silence later.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use portsteer_common::steering::Losses;

use super::{
    Error, kernel,
    manifest::ManifestTarget,
    maps::Maps,
    sys::{self, Instruction, TestRun},
    targets,
};
use crate::{
    netlink::{self, Link},
    policy::{Mode, Policy, Target, TargetKind},
};

/// The largest MTU whose frames fit into one buffer in native mode: a page, less the headroom for
/// the program (`XDP_PACKET_HEADROOM`), `struct skb_shared_info` at the end, and an Ethernet header
/// with a VLAN tag.
const SINGLE_BUFFER_MTU: u32 = 4096 - 256 - 320 - 18;

/// What native mode is not good enough for.
#[derive(Debug, Default)]
pub(super) struct Capabilities {
    /// A target whose interface takes no redirected frames.
    refusing: Option<(String, Link)>,
    /// A target whose interface takes only frames that are in one buffer.
    single_buffer: Option<(String, Link)>,
}

impl Capabilities {
    /// Asks the kernel about the interfaces of all targets, and tries those of which it does not
    /// tell. `placed` are the policy's targets, whose slots are in use already.
    pub(super) fn find(
        policy: &Policy,
        links: &[Link],
        maps: &Maps,
        placed: &mut [ManifestTarget],
    ) -> Result<Self, Error> {
        let mut found = Self::default();
        if policy.targets.is_empty() || policy.mode == Mode::Generic {
            return Ok(found);
        }
        let features = netlink::xdp_features()
            .map_err(Error::io("asking for the interfaces' XDP features"))?;
        for index in 0..placed.len() {
            let Some(link) = placed[index].kind.link(links) else { continue };
            let known = features.as_ref().and_then(|features| features.get(&link.index));
            let (takes, takes_several) = match known {
                Some(features) => (features.redirect_target(), features.redirect_target_sg()),
                None if targets::crashes(link) => (false, false),
                // Kernels that do not tell send frames in several buffers to no device.
                None => (takes_redirects(link, placed[index].slot, maps, placed)?, false),
            };
            if !takes && found.refusing.is_none() {
                found.refusing = Some((placed[index].name.clone(), link.clone()));
            }
            if !takes_several && found.single_buffer.is_none() {
                found.single_buffer = Some((placed[index].name.clone(), link.clone()));
            }
        }
        Ok(found)
    }

    /// Why an interface may not be attached in native mode.
    pub(super) fn native_obstacle(&self, attached: &Link) -> Option<Error> {
        if let Some((target, link)) = &self.refusing {
            return Some(Error::NoNativeRedirect {
                target: target.clone(),
                interface: link.name.clone(),
                is_veth: link.kind.as_deref() == Some("veth"),
            });
        }
        match &self.single_buffer {
            Some((target, link)) if attached.mtu > SINGLE_BUFFER_MTU => Some(Error::MultiBuffer {
                target: target.clone(),
                interface: link.name.clone(),
                attached: attached.name.clone(),
                mtu: attached.mtu,
                most: SINGLE_BUFFER_MTU,
            }),
            _ => None,
        }
    }
}

/// Why an interface may not be attached in generic mode under this policy.
pub(super) fn generic_obstacle(policy: &Policy, interface: &str) -> Result<Option<Error>, Error> {
    let to_cpus = |target: &&Target| matches!(target.kind, TargetKind::Cpus { .. });
    let Some(target) = policy.targets.iter().find(to_cpus) else { return Ok(None) };
    Ok(kernel::loses_cpu_packets_in_generic_mode()?.then(|| Error::CpusInGenericMode {
        target: target.name.clone(),
        interface: interface.to_owned(),
    }))
}

/// Whether an interface takes a frame that is redirected to it in native mode, by sending one: from
/// the interface to itself, of the EtherType that IEEE 802 leaves to local experiments, so
/// that nobody minds. An interface that is down takes none, which says nothing.
fn takes_redirects(
    link: &Link,
    slot: u16,
    maps: &Maps,
    placed: &mut [ManifestTarget],
) -> Result<bool, Error> {
    if !link.up || !link.carrier || maps.device(slot)? != link.index {
        return Ok(true);
    }
    let first = targets::first_on_device(maps, placed, link.index)?.unwrap_or(slot);
    let trying = || Error::io(format!("trying to redirect to `{}`", link.name));
    let program = redirect_to(maps, slot).map_err(trying())?;
    let mac = link.mac.unwrap_or_default();
    let mut frame = [&mac[..], &mac[..], &[0x88, 0xb5]].concat();
    frame.resize(60, 0);

    let losses = || -> Result<(Losses, Losses), Error> {
        Ok((maps.losses(usize::from(slot))?, maps.losses(usize::from(first))?))
    };
    let before = losses()?;
    sys::test_run(
        program.as_fd(),
        TestRun { frame: &frame, repeat: 1, live: true, first_buffer: None },
    )
    .map_err(trying())?;
    let after = losses()?;
    let is_refused = after.0.refused > before.0.refused;
    let is_unable = after.1.unable > before.1.unable;
    // It was nobody's packet.
    let mut forgive = |by: u16, lost: fn(&mut Losses)| {
        placed
            .iter_mut()
            .filter(|placed| placed.slot == by)
            .for_each(|placed| placed.forgive(lost));
    };
    if is_refused {
        forgive(slot, |losses| losses.refused += 1);
    } else if after.1.device > before.1.device {
        // Perhaps for want of room, which says nothing.
        forgive(first, |losses| losses.device += 1);
    }
    Ok(!is_refused && !is_unable)
}

/// `return bpf_redirect_map(devices, slot, 0);`
fn redirect_to(maps: &Maps, slot: u16) -> io::Result<OwnedFd> {
    const BPF_REDIRECT_MAP: i32 = 51;
    let insn = |code, registers, immediate| Instruction { code, registers, offset: 0, immediate };
    let [first, second] = Instruction::load_map(1, maps.devices());
    let program = [
        first,
        second,
        insn(0xb7, 2, i32::from(slot)),
        insn(0xb7, 3, 0),
        insn(0x85, 0, BPF_REDIRECT_MAP),
        insn(0x95, 0, 0),
    ];
    sys::load_xdp("portsteer_probe", &program)
}
