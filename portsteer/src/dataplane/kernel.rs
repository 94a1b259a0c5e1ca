//! What the running kernel must have.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use super::{
    Error, btf,
    sys::{self, Instruction, TestRun},
};

/// The oldest kernel that is supported.
pub const OLDEST: &str = "6.1";
const OLDEST_VERSION: (u32, u32) = (6, 1);

/// Where the BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Checks that this kernel can carry the dataplane.
///
/// # Errors
///
/// The kernel is too old, or no BPF file system is mounted.
pub fn check() -> Result<(), Error> {
    check_release(&release()?)?;
    let bpffs = Path::new(BPFFS);
    // A service may see the directory of all instances, and nothing else of the file system.
    if sys::is_bpffs(&bpffs.join("portsteer")).is_ok_and(|is| is) {
        return Ok(());
    }
    match sys::is_bpffs(bpffs) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::NoBpffs(bpffs.to_owned())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Err(Error::NoBpffs(bpffs.to_owned()))
        }
        Err(error) => Err(Error::io(format!("looking at {BPFFS}"))(error)),
    }
}

/// Whether this kernel loses packets that a program in generic mode hands to a CPU.
///
/// From Linux 6.9 on, generic mode copies most packets to make room for the program
/// (`skb_pp_cow_data` in net/core/skbuff.c), and the copy does not know how long its Ethernet header
/// is, which `cpu_map_generic_redirect` (kernel/bpf/cpumap.c) then fails to take off. Seen on 6.18:
/// every such packet is discarded for an impossible IP header.
///
/// # Errors
///
/// The kernel's release cannot be read.
pub fn loses_cpu_packets_in_generic_mode() -> Result<bool, Error> {
    Ok(version(&release()?).is_some_and(|version| version >= (6, 9)))
}

/// Whether this kernel redirects only frames that are in one buffer to devices: before Linux 6.3
/// (`xdp_do_redirect` in net/core/filter.c).
pub(super) fn redirects_one_buffer_only() -> Result<bool, Error> {
    Ok(version(&release()?).is_some_and(|version| version < (6, 3)))
}

/// Where the kernel's structures have their members, from its type information.
#[derive(Debug)]
pub struct Structures(Vec<u8>);

impl Structures {
    /// Reads all of it, which is some megabytes.
    ///
    /// # Errors
    ///
    /// The kernel tells nothing about itself.
    pub fn read() -> Result<Self, Error> {
        fs::read(btf::PATH).map(Self).map_err(Error::io(format!("reading {}", btf::PATH)))
    }

    /// Where a structure has a member, in bytes.
    ///
    /// # Errors
    ///
    /// It is not to be found.
    pub fn offset(&self, structure: &str, member: &str) -> Result<u32, Error> {
        btf::member_offset(&self.0, structure, member).ok_or_else(|| {
            Error::Load(format!("{} does not say where {structure} has {member}", btf::PATH))
        })
    }
}

fn release() -> Result<String, Error> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(Error::io("reading the kernel's release"))?;
    Ok(text.trim().to_owned())
}

fn check_release(release: &str) -> Result<(), Error> {
    match version(release) {
        Some(version) if version < OLDEST_VERSION => {
            Err(Error::OldKernel { release: release.to_owned(), missing: missing() })
        }
        // A release that does not say its version is not held against it.
        _ => Ok(()),
    }
}

/// What the dataplane cannot do without and this kernel does not have, each with the version that
/// brought it. Found by trying; where that is not permitted, nothing is known to be missing.
fn missing() -> Vec<String> {
    let tried: [(&str, bool); 3] = [
        ("type information about itself (`CONFIG_DEBUG_INFO_BTF`)", Path::new(btf::PATH).exists()),
        (
            "XDP programs for frames in several buffers (Linux 5.18)",
            is_known(drop_all(sys::HAS_FRAGS).map(drop)),
        ),
        (
            "test runs that send their frames, by which devices are tried (Linux 5.18)",
            is_known(drop_all(0).and_then(|program| {
                let run = TestRun { frame: &[0; 60], repeat: 1, live: true, first_buffer: None };
                sys::test_run(program.as_fd(), run).map(drop)
            })),
        ),
    ];
    tried.into_iter().filter(|(_, is_there)| !is_there).map(|(what, _)| what.to_owned()).collect()
}

/// Whether a system call did not fail for asking what the kernel does not know.
fn is_known(result: io::Result<()>) -> bool {
    !result.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// `return XDP_DROP;`
fn drop_all(flags: u32) -> io::Result<OwnedFd> {
    const XDP_DROP: i32 = 1;
    let insn = |code, immediate| Instruction { code, registers: 0, offset: 0, immediate };
    let program = [insn(0xb7, XDP_DROP), insn(0x95, 0)];
    sys::load_xdp_with_flags("portsteer_probe", &program, flags)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_by_name() {
        for release in ["5.10.0-32-cloud-amd64", "6.0.19", "4.19"] {
            let error = check_release(release).unwrap_err().to_string();
            assert!(error.contains(release) && error.contains("6.1"), "{error}");
        }
        for release in ["6.1.0", "6.18.44-fc-v595", "6.10", "7.0-rc1", "custom"] {
            assert!(check_release(release).is_ok(), "{release}");
        }
    }
}
