//! What the kernel, or what is already in it, can refuse, and what to do about it.

use std::{io, path::PathBuf, time::Duration};

use portsteer_common::INTERFACE_SLOTS;

use super::pins::PinDir;
use crate::compile::CompileError;

/// Why the dataplane could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is no name for an instance: 1 to 32 letters, digits, `-` and `_` are")]
    InstanceName(String),
    #[error("{action} was not permitted: {source}")]
    NotPermitted { action: String, source: io::Error },
    #[error("no BPF file system is mounted on {}", .0.display())]
    NoBpffs(PathBuf),
    #[error(
        "the kernel is {release}, and portsteer needs {} or later{}", super::kernel::OLDEST,
        missing.iter().map(|what| format!("\n  it lacks {what}")).collect::<String>()
    )]
    OldKernel { release: String, missing: Vec<String> },
    #[error("another agent{} runs instance `{instance}`", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InstanceBusy { instance: String, pid: Option<u32> },
    #[error("{} holds pins of another layout, or not all of them: {detail}", directory.display())]
    OtherLayout { instance: String, directory: PathBuf, detail: String },
    #[error("portsteer does not use {} for its pins: {why}", directory.display())]
    ForeignDirectory { directory: PathBuf, why: String },
    #[error("instance `{instance}` is attached in another network namespace")]
    OtherNamespace { instance: String },
    #[error("instance `{0}` is not attached to anything")]
    NotAttached(String),
    #[error("there is no interface `{name}`")]
    UnknownInterface { name: String, existing: Vec<String> },
    #[error(
        "target `{target}` steers in a circle: {}",
        match via {
            None => format!("portsteer is attached to `{interface}` itself"),
            Some(peer) => format!("what leaves `{interface}` arrives on `{peer}`, where portsteer is attached"),
        }
    )]
    Circle { target: String, interface: String, via: Option<String> },
    #[error(
        "target `{target}`: `{interface}` carries no Ethernet frames (hardware type {hardware_type})"
    )]
    TargetNotEthernet { target: String, interface: String, hardware_type: u16 },
    #[error("target `{target}`: this machine has no CPU {}", list(missing))]
    UnknownCpus { target: String, missing: Vec<u32>, online: Vec<u32> },
    #[error("target `{target}`: `{interface}` takes no frames that are redirected in native mode")]
    NoNativeRedirect { target: String, interface: String, is_veth: bool },
    #[error(
        "target `{target}`: `{interface}` takes only frames that are in one buffer, and with an \
         MTU of {mtu} `{attached}` has longer ones"
    )]
    MultiBuffer { target: String, interface: String, attached: String, mtu: u32, most: u32 },
    #[error(
        "target `{target}` hands packets to CPUs, and `{interface}` is attached in generic mode, \
         where this kernel would lose them all"
    )]
    CpusInGenericMode { target: String, interface: String },
    #[error("no interface matches {}", patterns.join(", "))]
    NoInterface { patterns: Vec<String>, existing: Vec<String>, targets: Vec<String> },
    #[error("`{name}` carries no Ethernet frames (hardware type {hardware_type})")]
    NotEthernet { name: String, hardware_type: u16 },
    #[error(
        "the policy's interfaces match {count} devices, and an instance takes {INTERFACE_SLOTS}"
    )]
    TooManyInterfaces { count: usize },
    #[error("another XDP program{} is attached to `{name}`", program_id.map(|id| format!(" (id {id})")).unwrap_or_default())]
    InterfaceBusy { name: String, program_id: Option<u32>, instance: Option<String> },
    #[error("`{name}` refuses {mode} mode: {}", explain(source))]
    AttachRefused { name: String, mode: &'static str, mtu: u32, source: io::Error },
    #[error("`{name}` is attached in {obtained} mode, and the policy now asks for {wanted} mode")]
    ModeChange { name: String, obtained: &'static str, wanted: &'static str },
    #[error(
        "the policy has {rules} rules, and too few of the {available} rule counters that an instance \
         can have are free for it: those of the policy in force are taken, and counters that were \
         ever used for one action are not used for another"
    )]
    CountersFull { instance: String, rules: usize, available: usize },
    #[error(
        "the tables of instance `{instance}` have no room for this policy beside the one in force"
    )]
    TablesFull { instance: String },
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("the kernel refused the program: {0}")]
    Load(String),
    #[error(
        "instance `{instance}` has a policy on trial, for {} more",
        humantime::format_duration(Duration::from_secs(left.as_secs()))
    )]
    OnTrial { instance: String, left: Duration },
    #[error("the pins of instance `{instance}` belong to user {uid}, and this agent is user {own}")]
    OtherUser { instance: String, uid: u32, own: u32 },
    #[error("another policy has come into force meanwhile, and this one has not")]
    Outdated,
    #[error("instance `{0}` was taken off meanwhile")]
    Detached(String),
    #[error("no policy is on trial")]
    NoTrial,
    #[error("the trial is over: the policy before is in force again")]
    TrialOver,
    #[error("{action}: {source}")]
    Io { action: String, source: io::Error },
}

impl Error {
    /// Says what is wrong with pins.
    pub(super) fn other_layout(pins: &PinDir, detail: String) -> Self {
        let instance = pins.instance().name().to_owned();
        Self::OtherLayout { instance, directory: pins.path(), detail }
    }

    /// Wraps a system call's error; those about permission become [`Error::NotPermitted`].
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { action, source },
            _ => Self::Io { action, source },
        }
    }

    /// What to do about it, if there is something.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotPermitted { .. } => {
                "run portsteer as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned()
            }
            Self::NoBpffs(path) => {
                format!("mount it: mount -t bpf -o mode=0700 bpf {}", path.display())
            }
            Self::TablesFull { instance } => format!(
                "take the policy in force off first: `portsteer detach --instance {instance}`"
            ),
            Self::OldKernel { .. } => "boot a newer kernel".to_owned(),
            Self::InstanceBusy { instance, .. } => format!(
                "end that agent, or send it SIGHUP to make it read its policy again; an agent \
                 of its own needs another name than `--instance {instance}`"
            ),
            Self::OtherLayout { instance, .. } => format!(
                "pins of the version before are carried over when the agent starts; of any other pins, \
                 and where some are missing, `portsteer detach --instance {instance}` takes the \
                 dataplane off"
            ),
            Self::ForeignDirectory { directory, .. } => format!(
                "look at it (`ls -lad {path}`): if no agent of that user's is meant to run here, remove it (`rm -r \
                 {path}`); `chmod 0700 /sys/fs/bpf` keeps other users from making directories there",
                path = directory.display()
            ),
            Self::OtherUser { instance, .. } => format!(
                "start the agent as that user (of the package, `systemctl start portsteer`), or take the dataplane off \
                 first: `portsteer detach --instance {instance}`"
            ),
            Self::OtherNamespace { instance } => format!(
                "pins are shared between network namespaces: use another `--instance` than \
                 `{instance}` here"
            ),
            Self::Circle { .. } => {
                "steer out of an interface that the policy is not attached to".to_owned()
            }
            Self::NoNativeRedirect { interface, is_veth: true, .. } => format!(
                "switch GRO on at the other end of `{interface}`, inside its namespace: `ethtool \
                 -K DEVICE gro on`; or set mode = \"generic\", for which interfaces that are attached in native \
                 mode have to be detached first"
            ),
            Self::NoNativeRedirect { .. } => {
                "set mode = \"generic\", for which interfaces that are \
                 attached in native mode have to be detached first"
                    .to_owned()
            }
            Self::MultiBuffer { attached, most, .. } => format!(
                "lower its MTU (`ip link set dev {attached} mtu {most}`), or set mode = \"generic\""
            ),
            Self::CpusInGenericMode { .. } => {
                "steer to CPUs on interfaces with native mode, or on a kernel before 6.9".to_owned()
            }
            Self::UnknownCpus { online, .. } => format!("online are: {}", list(online)),
            Self::UnknownInterface { name, existing } => suggest(name, existing),
            Self::NoInterface { targets, .. } if !targets.is_empty() => format!(
                "targets are left out: {}; name an interface without `*` to attach to it",
                targets.join(", ")
            ),
            Self::NoInterface { existing, .. } => format!("there are: {}", existing.join(", ")),
            Self::NotEthernet { .. } => {
                "portsteer reads Ethernet frames: attach to the device below it".to_owned()
            }
            Self::TargetNotEthernet { .. } => {
                "portsteer sends Ethernet frames: steer to a device that has them, such as a tap \
                 instead of a tun"
                    .to_owned()
            }
            Self::InterfaceBusy { instance: Some(instance), .. } => format!(
                "it is portsteer's own, of instance `{instance}`: `portsteer detach --instance \
                 {instance}` takes it off"
            ),
            Self::InterfaceBusy { name, .. } => format!(
                "take it off first: `ip link set dev {name} xdp off`; if a BPF link holds it, end \
                 the program that owns the link (`bpftool link` names it)"
            ),
            Self::AttachRefused { name, mode, mtu, source } => match source.raw_os_error() {
                Some(libc::ERANGE) => format!(
                    "the MTU of {mtu} is too large for native XDP on this driver: lower it \
                     (`ip link set dev {name} mtu 1500`), or set mode = \"generic\""
                ),
                Some(libc::ENOSPC) => format!(
                    "the device needs as many receive queues as its peer has transmit queues \
                     (`ethtool -L {name} rx N`), or set mode = \"generic\""
                ),
                _ if *mode == "native" => "set mode = \"auto\" or \"generic\"".to_owned(),
                _ => return None,
            },
            Self::ModeChange { .. } => {
                "a change of mode leaves the interface open for a moment, so it is not made in \
                 passing: `portsteer detach` first, then start the agent again"
                    .to_owned()
            }
            Self::OnTrial { instance, .. } => format!(
                "`portsteer confirm --instance {instance}` keeps it, `portsteer rollback --instance \
                 {instance}` ends the trial"
            ),
            Self::TrialOver => "apply the policy again".to_owned(),
            Self::CountersFull { instance, .. } => format!(
                "start afresh: `portsteer detach --instance {instance}`, then start the agent again (the \
                 counts start at zero)"
            ),
            _ => return None,
        })
    }
}

/// Which of these interfaces may have been meant.
pub(super) fn suggest(name: &str, existing: &[String]) -> String {
    let distance = |existing: &&String| strsim::damerau_levenshtein(existing, name);
    // Of a short name little is left after two changes.
    let is_near =
        |existing: &&String| distance(existing) <= 2 && 2 * distance(existing) < name.len();
    match existing.iter().filter(is_near).min_by_key(distance) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are: {}", existing.join(", ")),
    }
}

/// `3, 5-9`, of numbers in ascending order.
pub(super) fn list(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(
            |(first, last)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            },
        )
        .collect();
    runs.join(", ")
}

/// An error number in the words of XDP.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "its driver has no XDP".to_owned(),
        Some(libc::ERANGE) => "its MTU is too large".to_owned(),
        Some(libc::ENOSPC) => "it has too few receive queues for its peer".to_owned(),
        Some(libc::ENOTCONN) => "its peer is gone".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32) -> Error {
        Error::AttachRefused {
            name: "eth0".to_owned(),
            mode: "native",
            mtu: 9000,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn a_refused_mtu_says_which_and_what_to_do() {
        let error = refused(libc::ERANGE);
        assert_eq!(error.to_string(), "`eth0` refuses native mode: its MTU is too large");
        let help = error.help().unwrap();
        assert!(help.contains("MTU of 9000") && help.contains("mode = \"generic\""), "{help}");
    }

    #[test]
    fn permission_errors_are_told_apart() {
        for errno in [libc::EPERM, libc::EACCES] {
            let error = Error::io("opening it")(io::Error::from_raw_os_error(errno));
            assert!(matches!(error, Error::NotPermitted { .. }), "{error}");
        }
        let error = Error::io("opening it")(io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
