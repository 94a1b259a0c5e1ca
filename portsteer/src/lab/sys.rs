//! The system calls that the standard library does not have, and all the `unsafe` of the lab.

use std::{
    ffi::CStr,
    io,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command},
    time::Duration,
};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Gives the calling thread namespaces of its own.
pub(super) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: a plain number. No file descriptor table is unshared (CLONE_FILES), which is the
    // one thing the standard library would not expect.
    check(unsafe { libc::unshare(flags & !libc::CLONE_FILES) }).map(|_| ())
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a file descriptor that is open as long as it is borrowed, and a number.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(|_| ())
}

/// Mounts, or changes a mount's flags.
pub(super) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
) -> io::Result<()> {
    // SAFETY: three strings that end in NUL and are alive during the call. No data is passed.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
    })
    .map(|_| ())
}

/// Makes the child run in a network namespace.
pub(super) fn spawn_inside(
    command: &mut Command,
    namespace: impl AsFd + Send + Sync + 'static,
) -> &mut Command {
    let enter = move || enter_network_namespace(namespace.as_fd());
    // SAFETY: between fork and exec, the closure makes one system call and, if that fails, an
    // error without text: it neither allocates nor takes a lock. The namespace's descriptor is
    // owned by the closure, so it is open in the child, which has a copy of all descriptors.
    unsafe { command.pre_exec(enter) }
}

/// Makes the child die when the thread that spawns it ends.
pub(super) fn die_with_spawner(command: &mut Command) -> &mut Command {
    let parent = std::process::id() as libc::pid_t;
    let bind = move || {
        // SAFETY: a plain number each.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) })?;
        // SAFETY: no arguments, and it cannot fail.
        if unsafe { libc::getppid() } == parent {
            Ok(())
        } else {
            // The parent died before the child was bound to it.
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    };
    // SAFETY: between fork and exec, the closure makes two system calls and, if they fail, errors
    // without text: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(bind) }
}

/// Sets this machine's clock, in seconds since 1970: only where the machine is the caller's own.
///
/// # Errors
///
/// The kernel refuses.
pub fn set_clock(seconds: i64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
    // SAFETY: a structure of the right type that lives through the call.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(|_| ())
}

/// Sends a signal to a child.
///
/// # Errors
///
/// `ESRCH` if the child was already waited for.
pub fn send_signal(child: &mut Child, signal: libc::c_int) -> io::Result<()> {
    // Whoever was waited for has no process id any more: it may be somebody else's.
    if child.try_wait()?.is_some() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: plain numbers. The child was not waited for, so the id is still its own.
    check(unsafe { libc::kill(child.id() as libc::pid_t, signal) }).map(|_| ())
}

/// Keeps the calling thread, and those that it starts from now on, on the CPU where it runs. Returns
/// its number.
///
/// # Errors
///
/// If the kernel refuses.
pub fn stay_on_this_cpu() -> io::Result<u32> {
    // SAFETY: no arguments.
    let number = check(unsafe { libc::sched_getcpu() })? as u32;
    stay_on_cpu(number)?;
    Ok(number)
}

/// Keeps the calling thread, and those that it starts from now on, on a CPU.
///
/// # Errors
///
/// If there is no such CPU, or the kernel refuses.
pub fn stay_on_cpu(number: u32) -> io::Result<()> {
    let cpu = number as usize;
    // SAFETY: a set of bits, for which zeroes are a value.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    // SAFETY: the number is below the set's size.
    unsafe { libc::CPU_SET(cpu, &mut cpus) };
    // SAFETY: 0 is the calling thread; pointer and size are those of the set.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus) }).map(|_| ())
}

/// On which CPU a socket's last packet was taken in (`SO_INCOMING_CPU`, socket(7)).
///
/// # Errors
///
/// If the kernel refuses.
pub fn incoming_cpu(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut cpu: libc::c_int = 0;
    let mut len = size_of_val(&cpu) as libc::socklen_t;
    // SAFETY: both point to values that outlive the call, and the length is that of the first.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            (&raw mut cpu).cast(),
            &raw mut len,
        )
    })?;
    u32::try_from(cpu).map_err(|_| io::Error::from(io::ErrorKind::NotFound))
}

/// A UDP socket that shares its address with others that are made this way (`SO_REUSEPORT`,
/// socket(7)).
pub(super) fn bind_shared_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just opened it for this call alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    // SAFETY: pointer and length are those of a number that outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_REUSEPORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    })?;
    match address {
        SocketAddr::V4(address) => bind(
            &socket,
            &libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            },
        ),
        SocketAddr::V6(address) => bind(
            &socket,
            &libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            },
        ),
    }?;
    Ok(socket.into())
}

/// Has a classic BPF program choose among the sockets that share this one's address
/// (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)): by the order in which they were bound, from 0.
pub(super) fn choose_socket_by(
    socket: BorrowedFd<'_>,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        // The kernel only reads it.
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: pointer and length are those of the program's description, and it has those of the
    // program. Both outlive the call, in which the kernel copies and checks what it reads.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    })
    .map(|_| ())
}

/// Binds a socket to an address, which is one of the kernel's `struct sockaddr_*`.
fn bind<T>(socket: &OwnedFd, address: &T) -> io::Result<()> {
    // SAFETY: pointer and length are those of a value that outlives the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(|_| ())
}

/// Waits until any of the sockets has something to read (or to accept, or an error to tell), and
/// says which have; none if that takes longer than `timeout`.
///
/// # Errors
///
/// If the kernel refuses. An interruption by a signal counts as nothing to read.
pub fn poll_readable(sockets: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<usize>> {
    let mut polled: Vec<libc::pollfd> = sockets
        .iter()
        .map(|socket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let milliseconds = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the count are those of a vector that outlives the call.
    let result = check(unsafe {
        libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds)
    });
    match result {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    Ok((0..polled.len()).filter(|&index| polled[index].revents != 0).collect())
}

/// `struct ifreq` with a name and nothing else.
pub(crate) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data of the kernel's, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        let message = format!("{name:?} cannot be an interface's name");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// `TUNSETIFF`: makes the open `/dev/net/tun` an interface.
pub(super) fn make_tun(tun: impl AsFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: for TUNSETIFF the kernel reads and writes the `struct ifreq` that is passed, which
    // outlives the call.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
        .map(|_| ())
}

/// `TUNSETPERSIST`: the interface stays when the file is closed.
pub(super) fn make_tun_persistent(tun: impl AsFd) -> io::Result<()> {
    let on: libc::c_ulong = 1;
    // SAFETY: for TUNSETPERSIST the argument is a plain number.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETPERSIST as _, on) }).map(|_| ())
}
