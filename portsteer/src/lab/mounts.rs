//! Mounts that only this process and its children see.

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::sys;
use crate::netlink::explain;

const BPFFS: &CStr = c"/sys/fs/bpf";

/// Gives the calling thread mounts of its own, with a fresh bpffs over `/sys/fs/bpf`: pins that it
/// makes vanish with it. Threads and processes that it starts afterwards share them.
///
/// # Errors
///
/// Without the privilege for it (`PermissionDenied`), or where there is no `/sys/fs/bpf`.
pub fn private_mounts() -> io::Result<()> {
    sys::unshare(libc::CLONE_NEWNS)
        .map_err(|error| explain(&error, "cannot make a mount namespace"))?;
    // Without this, mounts would spread to the namespace that this one was copied from.
    sys::mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE)
        .map_err(|error| explain(&error, "cannot make the mounts private"))?;
    sys::mount(c"bpf", BPFFS, c"bpf", 0).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => explain(
            &error,
            "cannot mount a bpffs over /sys/fs/bpf, which does not exist (is /sys mounted, and \
             does the kernel have CONFIG_BPF_SYSCALL?)",
        ),
        _ => explain(&error, "cannot mount a bpffs over /sys/fs/bpf"),
    })
}

/// Mounts an empty tmpfs over a directory. Call [`private_mounts`] first, or everybody gets to see
/// it.
///
/// # Errors
///
/// Without the privilege for it, or where there is no such directory.
pub fn private_tmpfs(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    sys::mount(c"tmpfs", &path, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV).map_err(|error| {
        explain(&error, &format!("cannot mount a tmpfs over {}", directory.display()))
    })
}
