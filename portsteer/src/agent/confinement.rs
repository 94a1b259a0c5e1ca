//! What a running agent cannot do any more, also without a service manager: become another program, mount,
//! trace, load modules (seccomp), and write or execute files elsewhere than in its own directories (Landlock). It
//! goes on reading where it likes: a policy file names set files anywhere, and may name others at the next SIGHUP.
//!
//! The system calls are a list of those that no agent makes, not of those that it makes: what its libraries call
//! differs from one version and kernel to the next, and a call that is refused in the middle of an apply would do
//! more harm than one that is not refused. A service manager's list of permitted ones comes on top
//! (packaging/portsteer.service).

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// What is switched on for policies that answer SYNs by cookies; the one file outside of the agent's own directories
/// that it may write.
const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_syncookies";

/// The system calls that are refused, by what one could do with them.
const REFUSED: &[&[libc::c_long]] = &[
    // Become another program or another user.
    &[
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setfsuid,
        libc::SYS_setfsgid,
        libc::SYS_setgroups,
        libc::SYS_personality,
    ],
    // Look into other processes, or change them.
    &[
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        libc::SYS_perf_event_open,
    ],
    // Change what is mounted, or go to another namespace.
    &[
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_unshare,
    ],
    // Load code into the kernel other than BPF programs, or start another one.
    &[
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
    ],
    // Change what belongs to the whole machine.
    &[
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_syslog,
        libc::SYS_vhangup,
    ],
    // What attacks on the kernel are made of.
    &[
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_userfaultfd,
        libc::SYS_open_by_handle_at,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ],
    #[cfg(target_arch = "x86_64")]
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt],
];

/// Begins it, for the calling thread and those that it starts later. `written` are the directories that the agent
/// writes in. A kernel without Landlock leaves that part out.
///
/// # Errors
///
/// The kernel refuses, in words. What has begun until then stays.
pub fn begin(written: &[PathBuf]) -> Result<(), String> {
    // This is the first to give up privileges that a program could get back by execve: `no_new_privs`.
    restrict_files(written)
        .map_err(|error| format!("confining the agent to its directories: {error}"))?;
    let filter = filter().map_err(|error| format!("listing the refused system calls: {error}"))?;
    seccompiler::apply_filter(&filter)
        .map_err(|error| format!("having the kernel refuse system calls: {error}"))
}

fn restrict_files(written: &[PathBuf]) -> Result<(), landlock::RulesetError> {
    // All that changes files, as of Linux 6.2; older kernels do what they know of it.
    let writing = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default().handle_access(writing | AccessFs::Execute)?.create()?;
    for directory in written {
        if let Some(directory) = open_or_make(directory) {
            rules = rules.add_rule(PathBeneath::new(directory, writing))?;
        }
    }
    if let Ok(file) = PathFd::new(SYSCTL) {
        rules = rules.add_rule(PathBeneath::new(file, AccessFs::WriteFile))?;
    }
    rules.restrict_self()?;
    Ok(())
}

/// Opens a directory. One that is missing is made; where that fails, what it would be made in later is opened.
fn open_or_make(directory: &Path) -> Option<PathFd> {
    if !directory.exists() {
        // Whether it works is seen below.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    }
    directory.ancestors().find_map(|directory| PathFd::new(directory).ok())
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    // No conditions: refused whatever the arguments.
    let rules: BTreeMap<i64, _> =
        REFUSED.iter().copied().flatten().map(|&number| (number, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let here = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, refused, here)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind, process::Command, thread};

    use super::begin;

    #[test]
    fn a_confined_thread_writes_in_its_directories_alone_and_becomes_no_other_program() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().to_owned();
        let (own, later, other) =
            (place.join("own"), place.join("later/state"), place.join("other"));
        for directory in [&own, &other] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("before"), "before").unwrap();
        }
        // Its own thread: it stays so for as long as the thread lives.
        let confined = thread::spawn({
            let (own, later, other) = (own.clone(), later.clone(), other.clone());
            move || {
                begin(&[own.clone(), later.clone()]).expect("a kernel that can");
                let kind = |result: std::io::Result<()>| result.map_err(|error| error.kind());
                let denied = Err(ErrorKind::PermissionDenied);

                for directory in [&own, &later] {
                    fs::write(directory.join("new"), "new").unwrap();
                    fs::rename(directory.join("new"), directory.join("name")).unwrap();
                    fs::create_dir_all(directory.join("a/b")).unwrap();
                    fs::rename(directory.join("name"), directory.join("a/b/name")).unwrap();
                    fs::remove_dir_all(directory.join("a")).unwrap();
                }
                // Everything can be read, and elsewhere nothing changed.
                assert_eq!(fs::read_to_string(other.join("before")).unwrap(), "before");
                assert_eq!(kind(fs::write(other.join("before"), "after")), denied);
                assert_eq!(kind(fs::write(other.join("new"), "new")), denied);
                assert_eq!(kind(fs::create_dir(other.join("new"))), denied);
                assert_eq!(kind(fs::remove_file(other.join("before"))), denied);
                assert_eq!(kind(fs::rename(own.join("before"), other.join("after"))), denied);
                assert_eq!(kind(std::os::unix::fs::symlink("/", other.join("link"))), denied);
                let program = Command::new("/bin/true").status().map(drop);
                assert_eq!(kind(program), denied);
            }
        });
        confined.join().expect("no surprise");
        assert_eq!(fs::read_to_string(other.join("before")).unwrap(), "before");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
        // Nobody else is.
        assert!(Command::new("/bin/true").status().unwrap().success());
    }

    #[test]
    fn what_is_refused_is_refused_by_the_kernel() {
        thread::spawn(|| {
            let status = || fs::read_to_string("/proc/thread-self/status").unwrap();
            let has = |line: &str| status().lines().any(|it| it == line);
            assert!(has("Seccomp:\t0"), "tests run under a filter: {}", status());
            begin(&[]).unwrap();
            assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t1"), "{}", status());
        })
        .join()
        .unwrap();
    }
}
