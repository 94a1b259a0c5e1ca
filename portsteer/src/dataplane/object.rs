//! The embedded eBPF object: its digest, and how it is loaded for an interface. The one place
//! that uses aya.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::LazyLock,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    programs::{ProgramError, RawTracePoint, Xdp},
};

use portsteer_common::trial::{self, Trial};
use sha2::{Digest as _, Sha256};

use super::{
    Error, instance::Instance, kernel, maps::Maps, repairs::this_network, slots::ALONE, sys,
};
use crate::policy::TargetKind;

static OBJECT: &[u8] = include_bytes_aligned!("../../../portsteer-ebpf/portsteer.bpf.o");
/// SHA-256 of the embedded object, of its very bytes.
static SHA256: LazyLock<[u8; 32]> = LazyLock::new(|| Sha256::digest(OBJECT).into());

/// SHA-256 of the embedded object, as 64 hexadecimal digits.
pub static DIGEST: LazyLock<String> =
    LazyLock::new(|| SHA256.iter().map(|byte| format!("{byte:02x}")).collect());

/// [`DIGEST`] as bytes.
pub(super) fn digest() -> [u8; 32] {
    *SHA256
}

/// Loads the program for an interface slot, with code for these [features] and for no others. The slot's counters of as many pages as the
/// instance has are created and pinned if they are missing. Only the holder of the instance's lock may call
/// this.
///
/// [features]: portsteer_common::image::feature
pub(super) fn load(
    instance: &Instance,
    slot: u32,
    maps: &Maps,
    features: u32,
) -> Result<OwnedFd, Error> {
    // aya writes to a map that stands for a section what the section holds, also if it is pinned
    // and in use. What the policy holds is what it shall hold: nobody writes to it meanwhile, and
    // running programs see no change.
    let statics = maps.statics()?;
    let mut loader = EbpfLoader::new();
    // The program needs nothing of the kernel's own types, so their BTF is not read.
    loader.btf(None);
    loader.map_max_entries("counters", maps.pages);
    for (name, pin) in maps.shared_pins() {
        loader.map_pin_path(name, pin);
    }
    for (name, bytes) in &statics {
        loader.override_global(name, bytes.as_slice(), true);
    }
    let one_buffer = u32::from(kernel::redirects_one_buffer_only()?);
    loader.override_global("DEVICES_TAKE_ONE_BUFFER", &one_buffer, true);
    loader.override_global("FEATURES", &features, true);
    loader.override_global("SLOT", &slot, true);
    loader.map_pin_path("counters", instance.counters_pin(slot, maps.pages));
    let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
    let name = if features & ALONE != 0 {
        "portsteer_alone"
    } else if features == 0 {
        "portsteer"
    } else {
        "portsteer_rules"
    };
    load_xdp(&mut ebpf, name)
}

/// Writes down what is to become of a policy on trial, and has the kernel hold the deadline.
pub(super) fn start_trial(maps: &Maps, trial: Trial) -> Result<(), Error> {
    // Loading makes the map, if this is the first trial.
    let program = load_trial(maps, "start_trial")?;
    maps.set_trial(trial)?;
    match run_trial(&program)? {
        XDP_PASS => Ok(()),
        other => {
            maps.set_trial(Trial { state: trial::state::NONE, ..trial })?;
            Err(trial_error("start", other))
        }
    }
}

/// Stops the timer. Whether it ran until then: else its time was up, and what it does is done.
pub(super) fn end_trial(maps: &Maps) -> Result<bool, Error> {
    match run_trial(&load_trial(maps, "end_trial")?)? {
        XDP_PASS => Ok(true),
        XDP_DROP => Ok(false),
        other => Err(trial_error("stop", other)),
    }
}

/// What the programs return that start and stop the timer, where that failed.
fn trial_error(what: &str, returned: u32) -> Error {
    let number = returned.saturating_sub(trial::REFUSED);
    let source = io::Error::from_raw_os_error(i32::try_from(number).unwrap_or_default());
    Error::io(format!("having the kernel {what} the trial's timer"))(source)
}

/// `XDP_DROP` and `XDP_PASS` (include/uapi/linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn run_trial(program: &OwnedFd) -> Result<u32, Error> {
    // No packet of anybody's: it only has to be long enough.
    let run = sys::TestRun { frame: &[0; 64], repeat: 1, live: false, first_buffer: None };
    let result = sys::test_run(program.as_fd(), run);
    Ok(result.map_err(Error::io("running the trial's program"))?.action)
}

/// Loads one of the programs that start and stop the timer.
fn load_trial(maps: &Maps, name: &str) -> Result<OwnedFd, Error> {
    let statics = maps.statics()?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    // They have no interface.
    loader.map_max_entries("counters", 1);
    for (name, pin) in maps.shared_pins() {
        loader.map_pin_path(name, pin);
    }
    let (map, pin) = maps.trial_pin();
    loader.map_pin_path(map, pin);
    for (name, bytes) in &statics {
        loader.override_global(name, bytes.as_slice(), true);
    }
    let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
    load_xdp(&mut ebpf, name)
}

/// Loads a program of the object.
fn load_xdp(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, Error> {
    let missing = || Error::Load(format!("the object has no program `{name}`"));
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|error: ProgramError| Error::Load(error.to_string()))?;
    program.load().map_err(program_error)?;
    let fd = program.fd().map_err(|error| Error::Load(error.to_string()))?;
    fd.as_fd().try_clone_to_owned().map_err(Error::io("loading the program"))
}

/// A program that watches what becomes of packets after a redirect.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watcher {
    /// The program's name.
    name: &'static str,
    tracepoint: &'static CStr,
    /// Whether it is needed for targets that are interfaces, and for those that are CPUs: all
    /// redirects on the machine pay for a tracepoint that somebody listens on.
    for_interfaces: bool,
    for_cpus: bool,
}

impl Watcher {
    /// What its link is pinned as: another object's has another name.
    pub(super) fn pin_name(self) -> String {
        format!("{}_{}", self.name, &DIGEST[..16])
    }

    /// Whether a target of this kind needs it.
    pub(super) const fn is_for(self, kind: &TargetKind) -> bool {
        match kind {
            TargetKind::Interface { .. } => self.for_interfaces,
            TargetKind::Cpus { .. } => self.for_cpus,
        }
    }
}

pub(super) const WATCHERS: [Watcher; 3] = [
    Watcher {
        name: "watch_refused",
        tracepoint: c"xdp_redirect_err",
        for_interfaces: true,
        for_cpus: true,
    },
    Watcher {
        name: "watch_queued",
        tracepoint: c"xdp_cpumap_enqueue",
        for_interfaces: false,
        for_cpus: true,
    },
    Watcher {
        name: "watch_sent",
        tracepoint: c"xdp_devmap_xmit",
        for_interfaces: true,
        for_cpus: false,
    },
];

/// Attaches watchers of an instance. They stay as long as somebody holds or pins the links.
pub(super) fn watch(maps: &Maps, watchers: &[Watcher]) -> Result<Vec<(Watcher, OwnedFd)>, Error> {
    let statics = maps.statics()?;
    let [devices, cpus] = maps.redirect_map_ids()?;
    let structures = kernel::Structures::read()?;
    let ifindex = structures.offset("net_device", "ifindex")?;
    let network = structures.offset("net_device", "nd_net")?;
    let inode = structures.offset("net", "ns")? + structures.offset("ns_common", "inum")?;
    let this_network = this_network()?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    // They have no interface of their own.
    loader.map_max_entries("counters", 1);
    for (name, pin) in maps.shared_pins() {
        loader.map_pin_path(name, pin);
    }
    for (name, bytes) in &statics {
        loader.override_global(name, bytes.as_slice(), true);
    }
    loader.override_global("DEVICES_ID", &devices, true);
    loader.override_global("CPUS_ID", &cpus, true);
    loader.override_global("IFINDEX_OFFSET", &ifindex, true);
    loader.override_global("NETWORK_OFFSET", &network, true);
    loader.override_global("INODE_OFFSET", &inode, true);
    loader.override_global("NETWORK", &this_network, true);
    let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
    let mut links = Vec::new();
    for &watcher in watchers {
        let Watcher { name, tracepoint, .. } = watcher;
        let program: &mut RawTracePoint = ebpf
            .program_mut(name)
            .ok_or_else(|| Error::Load(format!("the object has no program `{name}`")))?
            .try_into()
            .map_err(|error: ProgramError| Error::Load(error.to_string()))?;
        program.load().map_err(program_error)?;
        let fd = program.fd().map_err(|error| Error::Load(error.to_string()))?;
        let link = sys::link_raw_tracepoint(fd.as_fd(), tracepoint).map_err(Error::io(format!(
            "watching the tracepoint {}",
            tracepoint.to_string_lossy()
        )))?;
        links.push((watcher, link));
    }
    Ok(links)
}

fn program_error(error: ProgramError) -> Error {
    match &error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let source = io_error.raw_os_error().map(std::io::Error::from_raw_os_error);
            match source {
                Some(source) if source.raw_os_error() == Some(libc::EPERM) => {
                    Error::io("loading the program")(source)
                }
                _ => Error::Load(format!("{io_error}\n{verifier_log}")),
            }
        }
        _ => Error::Load(error.to_string()),
    }
}

/// aya's error, with those about permission told apart.
fn load_error(error: EbpfError) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && let Some(libc::EPERM | libc::EACCES) = io.raw_os_error()
        {
            let io = std::io::Error::from_raw_os_error(io.raw_os_error().unwrap_or(libc::EPERM));
            return Error::io("creating the maps")(io);
        }
        source = cause.source();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    Error::Load(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_is_that_of_the_embedded_bytes_and_of_the_file_beside_the_object() {
        let file = include_str!("../../../portsteer-ebpf/portsteer.bpf.digest");
        let line = file.lines().find_map(|line| line.strip_prefix("object = "));
        assert_eq!(line, Some(format!("{:?}", *super::DIGEST).as_str()));
        assert!(super::DIGEST.starts_with(&format!("{:02x}", super::digest()[0])));
    }
}
