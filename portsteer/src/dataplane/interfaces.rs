//! Which interfaces a policy means, and how the program gets onto one.

use std::os::fd::{AsFd, OwnedFd};

use portsteer_common::INTERFACE_SLOTS;

use super::{Error, slots::AttachedMode, sys};
use crate::{
    netlink::Link,
    policy::{InterfacePattern, Mode, Policy, Target, TargetKind},
};

/// ARPHRD_ETHER and ARPHRD_LOOPBACK (include/uapi/linux/if_arp.h): the kinds of device whose
/// frames start with an Ethernet header.
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` (include/uapi/linux/if_link.h).
const GENERIC_FLAG: u32 = 1 << 1;
const NATIVE_FLAG: u32 = 1 << 2;

/// What the patterns of a policy name.
#[derive(Debug)]
pub(super) struct Selected {
    /// In the order of their indices.
    pub(super) links: Vec<Link>,
    /// The names of those that do not exist.
    pub(super) waiting: Vec<String>,
}

impl Selected {
    /// Where none of those that a policy names exists.
    pub(super) fn nothing(policy: &Policy) -> Self {
        let names = policy.interfaces.iter().filter(|pattern| !pattern.is_glob);
        Self { links: Vec::new(), waiting: names.map(|pattern| pattern.text.clone()).collect() }
    }
}

/// The interfaces that the patterns name, in the kernel's order, each once. A glob means only
/// Ethernet devices; the loopback device must be named.
/// A glob does not mean the interfaces of targets either. With `waits`, one that is named and does not exist
/// is no error.
pub(super) fn select(
    patterns: &[InterfacePattern],
    links: &[Link],
    targets: &[Target],
    waits: bool,
) -> Result<Selected, Error> {
    let is_target = |link: &Link| {
        targets.iter().any(|target| {
            matches!(&target.kind, TargetKind::Interface { interface, .. } if *interface == link.name)
        })
    };
    let existing = || links.iter().map(|link| link.name.clone()).collect::<Vec<_>>();
    let mut selected: Vec<&Link> = Vec::new();
    let mut targets_left_out: Vec<String> = Vec::new();
    let mut waiting = Vec::new();
    for pattern in patterns {
        if pattern.is_glob {
            // The policy's parser has compiled it before.
            let Ok(glob) = globset::Glob::new(&pattern.text) else { continue };
            let matcher = glob.compile_matcher();
            let matches =
                |link: &&Link| link.hardware_type == ETHERNET && matcher.is_match(&link.name);
            let (left_out, meant): (Vec<&Link>, Vec<&Link>) =
                links.iter().filter(matches).partition(|link| is_target(link));
            selected.extend(meant);
            targets_left_out.extend(left_out.iter().map(|link| link.name.clone()));
        } else {
            let Some(link) = links.iter().find(|link| link.name == pattern.text) else {
                if waits {
                    waiting.push(pattern.text.clone());
                    continue;
                }
                let (name, existing) = (pattern.text.clone(), existing());
                return Err(Error::UnknownInterface { name, existing });
            };
            if link.hardware_type != ETHERNET && link.hardware_type != LOOPBACK {
                let (name, hardware_type) = (link.name.clone(), link.hardware_type);
                return Err(Error::NotEthernet { name, hardware_type });
            }
            selected.push(link);
        }
    }
    selected.sort_by_key(|link| link.index);
    selected.dedup_by_key(|link| link.index);
    if selected.is_empty() {
        let patterns = patterns.iter().map(|pattern| format!("`{}`", pattern.text)).collect();
        let (existing, targets) = (existing(), targets_left_out);
        return Err(Error::NoInterface { patterns, existing, targets });
    }
    if selected.len() > INTERFACE_SLOTS as usize {
        return Err(Error::TooManyInterfaces { count: selected.len() });
    }
    Ok(Selected { links: selected.into_iter().cloned().collect(), waiting })
}

/// Attaches a program. Returns the link, the mode obtained, and why native mode was refused if
/// that was asked for first.
pub(super) fn attach(
    program: &OwnedFd,
    link: &Link,
    mode: Mode,
) -> Result<(OwnedFd, AttachedMode, Option<String>), Error> {
    let link_in = |obtained: AttachedMode| {
        let flag = match obtained {
            AttachedMode::Native => NATIVE_FLAG,
            AttachedMode::Generic => GENERIC_FLAG,
        };
        sys::link_xdp(program.as_fd(), link.index, flag).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => Error::InterfaceBusy {
                    name: link.name.clone(),
                    program_id: None,
                    instance: None,
                },
                Some(libc::EPERM | libc::EACCES) => {
                    Error::io(format!("attaching to `{}`", link.name))(source)
                }
                _ => Error::AttachRefused {
                    name: link.name.clone(),
                    mode: obtained.name(),
                    mtu: link.mtu,
                    source,
                },
            }
        })
    };
    match mode {
        Mode::Native => Ok((link_in(AttachedMode::Native)?, AttachedMode::Native, None)),
        Mode::Generic => Ok((link_in(AttachedMode::Generic)?, AttachedMode::Generic, None)),
        Mode::Auto => match link_in(AttachedMode::Native) {
            Ok(handle) => Ok((handle, AttachedMode::Native, None)),
            Err(refused @ Error::AttachRefused { .. }) => {
                let handle = link_in(AttachedMode::Generic)?;
                Ok((handle, AttachedMode::Generic, Some(refused.to_string())))
            }
            Err(error) => Err(error),
        },
    }
}
