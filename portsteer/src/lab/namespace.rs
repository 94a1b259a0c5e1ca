//! Network namespaces without a name.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    panic::resume_unwind,
    process::Command,
    sync::Arc,
    thread,
};

use super::sys;
use crate::netlink::{self, Request, explain};

/// A network namespace without a name: it lasts as long as a clone of this, a socket or a process
/// inside it does. Its loopback interface is up, and IPv6 addresses are usable at once.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
}

/// What makes IPv6 quick and quiet: no duplicate address detection, no search for routers, and
/// multicast groups announced twice at once instead of again up to a second later.
const SETTINGS: [(&str, &str); 6] = [
    ("accept_dad", "0"),
    ("dad_transmits", "0"),
    ("accept_ra", "0"),
    ("router_solicitations", "0"),
    ("mldv1_unsolicited_report_interval", "1"),
    ("mldv2_unsolicited_report_interval", "1"),
];

impl Namespace {
    /// Makes a network namespace.
    ///
    /// # Errors
    ///
    /// Without the privilege for it (`PermissionDenied`).
    pub fn new() -> io::Result<Self> {
        let file = on_new_thread(|| {
            sys::unshare(libc::CLONE_NEWNET)
                .map_err(|error| explain(&error, "cannot make a network namespace"))?;
            for (name, value) in SETTINGS {
                for interface in ["all", "default"] {
                    // A kernel without IPv6 has none of this; that shows at the first address.
                    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value);
                }
            }
            // The loopback interface is the first of every namespace.
            Request::new(libc::RTM_NEWLINK, 0)
                .header(&netlink::link_header(1, libc::IFF_UP, libc::IFF_UP))
                .done()
                .map_err(|error| explain(&error, "cannot set lo up"))?;
            File::open("/proc/thread-self/ns/net")
        })?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Runs `body` on a thread of its own inside the namespace, and returns what it returns.
    /// Sockets that it opens belong to the namespace and can be used from any thread. The thread
    /// has the calling thread's mounts.
    ///
    /// # Panics
    ///
    /// If `body` panics, with its panic; and where no thread can be started inside the namespace,
    /// which takes a process that gave up its privileges.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        on_new_thread(|| {
            sys::enter_network_namespace(self.file.as_fd())
                .unwrap_or_else(|error| panic!("cannot enter the network namespace: {error}"));
            body()
        })
    }

    /// A command that runs inside the namespace, with the mounts of the thread that spawns it. It
    /// is killed when that thread ends: see [`die_with_thread`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::spawn_inside(&mut command, self.clone());
        sys::die_with_spawner(&mut command);
        command
    }
}

impl AsFd for Namespace {
    /// The namespace's file, for `setns` and `IFLA_NET_NS_FD`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes the command's process be killed (`SIGKILL`) when the thread that spawns it ends, by
/// whatever cause: so spawn it from a thread that lasts.
pub fn die_with_thread(command: &mut Command) -> &mut Command {
    sys::die_with_spawner(command)
}

/// Runs `body` on a thread that ends with it, so that whatever `body` does to its thread's
/// namespaces never needs to be undone.
fn on_new_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(body).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
