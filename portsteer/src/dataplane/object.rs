//! The embedded eBPF object: its digest, and how its programs are loaded. The one place that uses aya.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::LazyLock,
};

use aya::include_bytes_aligned;
use aya_obj::{
    ProgramSection,
    generated::{bpf_attach_type, bpf_prog_type},
};
use portsteer_common::trial::{self, HeldTrial, Trial};
use sha2::{Digest as _, Sha256};

use super::{
    Error, kernel,
    maps::{self, Maps},
    repairs::this_network,
    slots::ALONE,
    sys::{self, MapShape, MapTypes, map_type},
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
pub(super) fn load(slot: u32, maps: &Maps, features: u32) -> Result<OwnedFd, Error> {
    let counters = maps.counters_to_load(slot)?;
    let mut shared = maps.descriptors();
    shared.push((maps::COUNTERS, counters.as_fd()));
    let globals = [
        ("DEVICES_TAKE_ONE_BUFFER", u32::from(kernel::redirects_one_buffer_only()?)),
        ("FEATURES", features),
        ("SLOT", slot),
    ];
    let name = if features & ALONE != 0 {
        "portsteer_alone"
    } else if features == 0 {
        "portsteer"
    } else {
        "portsteer_rules"
    };
    Object::prepare(&globals, &shared, &[name])?.load(name)
}

/// The program that puts a policy in force on trial.
#[derive(Debug)]
pub(super) struct TrialProgram {
    program: OwnedFd,
    /// The map with the timer and the trial.
    pub(super) map: OwnedFd,
}

/// What came of starting a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// The policy is on trial, and the timer runs.
    Running,
    /// Another policy was in force than the one that the trial was to follow: nothing is changed.
    Outdated,
}

impl TrialProgram {
    /// Makes the map, with the trial in it, and loads the program. Nothing happens before it is run.
    pub(super) fn load(maps: &Maps, trial: Trial) -> Result<Self, Error> {
        const NAME: &str = "begin_trial";
        let mut object = Object::parse(&[])?;
        let map = object.create_map(maps::TRIAL)?;
        let held = HeldTrial { timer: [0; 2], trial };
        sys::map_update(map.as_fd(), 0, bytemuck::bytes_of(&held))
            .map_err(Error::io("writing the map `trial`"))?;
        let mut shared = maps.descriptors();
        shared.push((maps::TRIAL, map.as_fd()));
        object.relocate(&shared, &[NAME])?;
        Ok(Self { program: object.load(NAME)?, map })
    }

    /// Puts the policy in force and starts the timer, in one go.
    pub(super) fn run(&self) -> Result<Begun, Error> {
        // No packet of any interface: it only has to be long enough.
        let run = sys::TestRun { frame: &[0; 64], repeat: 1, live: false, first_buffer: None };
        let result = sys::test_run(self.program.as_fd(), run);
        match result.map_err(Error::io("running the trial's program"))?.action {
            XDP_PASS => Ok(Begun::Running),
            XDP_DROP => Ok(Begun::Outdated),
            other => {
                let number = other.saturating_sub(trial::REFUSED);
                let source =
                    io::Error::from_raw_os_error(i32::try_from(number).unwrap_or_default());
                Err(Error::io("having the kernel start the trial's timer")(source))
            }
        }
    }
}

/// `XDP_DROP` and `XDP_PASS` (include/uapi/linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

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

/// Attaches watchers of an instance. They stay as long as a process holds the links, or pins are there.
pub(super) fn watch(maps: &Maps, watchers: &[Watcher]) -> Result<Vec<(Watcher, OwnedFd)>, Error> {
    let [devices, cpus] = maps.redirect_map_ids()?;
    let structures = kernel::Structures::read()?;
    let globals = [
        ("DEVICES_ID", devices),
        ("CPUS_ID", cpus),
        ("IFINDEX_OFFSET", structures.offset("net_device", "ifindex")?),
        ("NETWORK_OFFSET", structures.offset("net_device", "nd_net")?),
        ("INODE_OFFSET", structures.offset("net", "ns")? + structures.offset("ns_common", "inum")?),
        ("NETWORK", this_network()?),
    ];
    let names: Vec<&str> = watchers.iter().map(|watcher| watcher.name).collect();
    let object = Object::prepare(&globals, &maps.descriptors(), &names)?;
    let mut links = Vec::new();
    for &watcher in watchers {
        let Watcher { name, tracepoint, .. } = watcher;
        let program = object.load(name)?;
        let link = sys::link_raw_tracepoint(program.as_fd(), tracepoint).map_err(Error::io(
            format!("watching the tracepoint {}", tracepoint.to_string_lossy()),
        ))?;
        links.push((watcher, link));
    }
    Ok(links)
}

/// The embedded object, with its types in the kernel.
///
/// aya parses it, and relocates its programs onto descriptors of our own. Loading is done here, because aya's loader
/// writes a section's initial contents into its map on every load, also into one that is pinned and in use: a word
/// that the kernel changes at that moment would be changed back.
struct Object {
    object: aya_obj::Object,
    btf: OwnedFd,
    /// The programs' constants, frozen.
    constants: Option<OwnedFd>,
}

/// The section of the programs' constants.
const CONSTANTS: &str = ".rodata";

impl Object {
    /// Parses the object, sets these of its globals, and loads its types.
    fn parse(globals: &[(&str, u32)]) -> Result<Self, Error> {
        let mut object = aya_obj::Object::parse(OBJECT).map_err(load_error)?;
        let bytes: Vec<(&str, [u8; 4])> =
            globals.iter().map(|&(name, value)| (name, value.to_ne_bytes())).collect();
        let globals = bytes.iter().map(|(name, bytes)| (*name, (&bytes[..], true))).collect();
        object.patch_map_data(globals).map_err(load_error)?;
        let no_types = || Error::Load("the kernel takes no type information".to_owned());
        let features = aya::features().btf().ok_or_else(no_types)?;
        let types = object.fixup_and_sanitize_btf(features).map_err(load_error)?;
        let types = types.ok_or_else(no_types)?.to_bytes();
        let btf = sys::btf_load(&types).map_err(Error::io("loading the program's types"))?;
        Ok(Self { object, btf, constants: None })
    }

    /// The same, with these programs ready to be loaded.
    fn prepare(
        globals: &[(&str, u32)],
        maps: &[(&str, BorrowedFd<'_>)],
        programs: &[&str],
    ) -> Result<Self, Error> {
        let mut object = Self::parse(globals)?;
        object.relocate(maps, programs)?;
        Ok(object)
    }

    /// Makes a map as the object describes it, with its types.
    fn create_map(&self, name: &str) -> Result<OwnedFd, Error> {
        let missing = || Error::Load(format!("the object has no map `{name}`"));
        let map = self.object.maps.get(name).ok_or_else(missing)?;
        let aya_obj::Map::Btf(typed) = map else { return Err(missing()) };
        let shape = MapShape {
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        };
        let types = MapTypes {
            btf: self.btf.as_fd(),
            key: typed.def.btf_key_type_id,
            value: typed.def.btf_value_type_id,
        };
        sys::map_create_typed(name, shape, None, Some(types))
            .map_err(Error::io(format!("creating the map `{name}`")))
    }

    /// Makes the programs use these maps, by the names that they have in the object.
    fn relocate(&mut self, maps: &[(&str, BorrowedFd<'_>)], wanted: &[&str]) -> Result<(), Error> {
        let object = &mut self.object;
        let (kept, others): (Vec<_>, Vec<_>) =
            object.programs.drain().partition(|(name, _)| wanted.contains(&name.as_str()));
        object.programs.extend(kept);
        // What they need besides is not at hand.
        for (_, program) in others {
            object.functions.remove(&program.function_key());
        }
        let constants = match object.maps.get(CONSTANTS) {
            Some(map) => Some(frozen(map.data())?),
            None => None,
        };
        // A map that is not at hand is no descriptor, and the kernel refuses a program that needs it.
        let descriptor = |name: &str| match maps.iter().find(|(known, _)| *known == name) {
            Some((_, map)) => map.as_raw_fd(),
            None if name == CONSTANTS => constants.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            None => -1,
        };
        let text = object.functions.keys().map(|&(section, _)| section).collect();
        let known = std::mem::take(&mut object.maps);
        let all = known.iter().map(|(name, map)| (name.as_str(), descriptor(name), map));
        object.relocate_maps(all, &text).map_err(load_error)?;
        object.relocate_calls(&text).map_err(load_error)?;
        self.constants = constants;
        Ok(())
    }

    /// Loads one of the programs.
    fn load(&self, name: &str) -> Result<OwnedFd, Error> {
        let missing = || Error::Load(format!("the object has no program `{name}`"));
        let program = self.object.programs.get(name).ok_or_else(missing)?;
        let function = self.object.functions.get(&program.function_key()).ok_or_else(missing)?;
        let (kind, attach_type, flags) = match &program.section {
            ProgramSection::Xdp { frags, .. } => (
                bpf_prog_type::BPF_PROG_TYPE_XDP,
                bpf_attach_type::BPF_XDP as u32,
                if *frags { sys::HAS_FRAGS } else { 0 },
            ),
            ProgramSection::RawTracePoint => (bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0),
            _ => return Err(missing()),
        };
        let functions = function.func_info.func_info_bytes();
        let lines = function.line_info.line_info_bytes();
        let program = sys::Program {
            name,
            kind: kind as u32,
            attach_type,
            flags,
            instructions: sys::instruction_bytes(&function.instructions),
            info: Some(sys::ProgramInfo {
                btf: self.btf.as_fd(),
                functions: (&functions, function.func_info_rec_size),
                lines: (&lines, function.line_info_rec_size),
            }),
        };
        sys::prog_load(&program, &mut []).or_else(|error| match error.raw_os_error() {
            Some(libc::EPERM) => Err(Error::io("loading the program")(error)),
            // Once more, to be told why.
            _ => {
                let mut log = vec![0; LOG_LEN];
                sys::prog_load(&program, &mut log).map_err(|error| {
                    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
                    let log = String::from_utf8_lossy(&log[..end]);
                    Error::Load(format!("{error}\n{log}"))
                })
            }
        })
    }
}

/// How much the verifier may say about a program that it refuses, in bytes.
const LOG_LEN: usize = 1 << 20;

/// A map of one value that never changes.
fn frozen(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let shape = MapShape {
        map_type: map_type::ARRAY,
        key_size: 4,
        value_size: bytes.len() as u32,
        max_entries: 1,
        flags: sys::READ_ONLY,
    };
    let making = || Error::io("creating the map of constants");
    let map = sys::map_create("constants", shape, None).map_err(making())?;
    sys::map_update(map.as_fd(), 0, bytes).map_err(making())?;
    sys::map_freeze(map.as_fd()).map_err(making())?;
    Ok(map)
}

/// An error of aya's, with all its causes.
fn load_error(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    let mut source = error.source();
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
