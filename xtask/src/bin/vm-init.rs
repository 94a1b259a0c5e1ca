//! PID 1 of the virtual machine that `cargo xtask vm` boots: mounts what the commands need, loads
//! the modules, runs the commands one after the other, says how they ended, switches off.
//!
//! The host reads the console. Lines that begin with [`SIGN`] are this program's own:
//! `up` once, `running` now and then, `failure NAME: why` for each command that failed,
//! `success` if none did.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
    time::{Duration, Instant},
};

/// The beginning of this program's own lines.
const SIGN: &str = "portsteer-vm:";
/// The modules' files in the order to load them, one a line.
const MODULES: &str = "/etc/portsteer-vm/modules";
/// The commands, one a line: name, seconds allowed, program, arguments, with tabs between.
const COMMANDS: &str = "/etc/portsteer-vm/commands";
/// How often a silent command is said to be still running, so that the host can tell it from a
/// machine that hangs.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a killed command may take to go.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("vm-init is the init of a virtual machine: run `cargo xtask vm`");
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(failures) if failures.is_empty() => println!("{SIGN} success"),
        Ok(failures) => failures.iter().for_each(|failure| println!("{SIGN} failure {failure}")),
        Err(error) => println!("{SIGN} failure init: {error}"),
    }
    switch_off()
}

/// Runs everything; returns the commands that failed, with the reasons.
fn run() -> Result<Vec<String>, String> {
    for (source, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(source, target).map_err(|error| format!("cannot mount {source}: {error}"))?;
    }
    println!("{SIGN} up, Linux {}", read("/proc/sys/kernel/osrelease")?.trim_end());
    for module in read(MODULES)?.lines() {
        load_module(module).map_err(|error| format!("cannot load {module}: {error}"))?;
    }
    let mut failures = Vec::new();
    for line in read(COMMANDS)?.lines() {
        let mut words = line.split('\t');
        let (Some(name), Some(seconds), Some(program)) = (words.next(), words.next(), words.next())
        else {
            return Err(format!("malformed line in {COMMANDS}: {line}"));
        };
        let seconds = seconds.parse().map_err(|error| format!("{COMMANDS}: {seconds}: {error}"))?;
        println!("{SIGN} starting {name}");
        let started = Instant::now();
        let outcome = run_command(name, program, words, Duration::from_secs(seconds));
        let elapsed = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("{SIGN} done {name} in {elapsed:.1} s"),
            Err(why) => failures.push(format!("{name}: {why}")),
        }
    }
    Ok(failures)
}

fn run_command<'a>(
    name: &str,
    program: &str,
    arguments: impl Iterator<Item = &'a str>,
    limit: Duration,
) -> Result<(), String> {
    // Whatever of the kernel's command line the kernel does not know.
    let nics = std::env::var_os("PORTSTEER_NICS");
    // The version before, for upgrades. Where there is none, xtask has said why.
    let before = Some("/bin/portsteer-before").filter(|path| Path::new(path).exists());
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(nics.map(|nics| ("PORTSTEER_NICS", nics)))
        .env("HOME", "/tmp")
        .env("PATH", "/bin")
        .env("PORTSTEER_BIN", "/bin/portsteer")
        .envs(before.map(|path| ("PORTSTEER_BEFORE", path)))
        .envs(before.map(|_| ("CI", "true")))
        // Emulation is slow: fewer rounds and smaller transfers.
        .env("PORTSTEER_SLOW", "1")
        .env("RUST_BACKTRACE", "1")
        .current_dir("/tmp")
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let status = wait(name, &mut child, limit).map_err(|error| error.to_string())?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(status.to_string()),
        None => Err(format!("not done after {} s, killed", limit.as_secs())),
    }
}

/// Waits for a command; kills it with all its children at the limit and returns `None`.
fn wait(name: &str, child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut said = started;
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            println!("{SIGN} running {name} for {} s", started.elapsed().as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let group = child.id().cast_signed();
    // SAFETY: a plain system call without pointers. The child has not been waited for, so its
    // process group, which carries its id, is still its own.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    let killed = Instant::now();
    // Something stuck in the kernel outlives the signal: do not wait for it forever.
    while killed.elapsed() < GRACE && child.try_wait()?.is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

fn mount(kind: &str, target: &str) -> io::Result<()> {
    if !Path::new(target).exists() {
        fs::create_dir_all(target)?;
    }
    let (kind, target) = (CString::new(kind)?, CString::new(target)?);
    // SAFETY: both strings end in NUL and outlive the call; the data of these file systems may be
    // null.
    let result =
        unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    // A kernel may have mounted devtmpfs already.
    if result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY) {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn load_module(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open for the time of the call, the parameters are a string that
    // ends in NUL.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

fn switch_off() -> ! {
    // Let the console drain.
    thread::sleep(Duration::from_millis(100));
    // SAFETY: a plain system call without pointers; it ends this machine, as it should.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    // Not reached: a kernel that cannot switch off stops the processors for good.
    loop {
        thread::park();
    }
}
