//! A place of its own for every test: what it pins is its own, and vanishes with it.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use portsteer::lab;

/// Where an agent that this machine runs itself has its socket and its state: a command under test that is not told
/// otherwise would ask it, and take its dataplane off.
const OF_THIS_MACHINE: [&str; 2] = ["/run", "/var/lib"];

/// Runs a test on a thread with private mounts, so that its pins, and sockets and state where they
/// usually are, are its own. Namespaces, processes and threads that it makes share them.
///
/// # Panics
///
/// Without root, and as the test does.
pub fn sandbox(body: impl FnOnce() + Send) {
    // The owner of /proc/self is the process's effective user.
    let user = fs::metadata("/proc/self").expect("/proc is mounted").uid();
    assert_eq!(user, 0, "this test needs root: it makes namespaces and attaches XDP programs");
    let inside = || {
        lab::private_mounts().expect("this test needs root, and may not make private mounts");
        for directory in OF_THIS_MACHINE.map(Path::new).into_iter().filter(|it| it.is_dir()) {
            lab::private_tmpfs(directory).expect("an empty directory");
        }
        body();
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic));
}

/// What is pinned by any instance in this sandbox.
///
/// # Panics
///
/// If the pins cannot be listed.
#[must_use]
pub fn pins() -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory of pins") {
            let path = entry.expect("a pin").path();
            if path.is_dir() {
                walk(&path, found);
            }
            found.push(path);
        }
    }
    let root = Path::new("/sys/fs/bpf/portsteer");
    let mut found = Vec::new();
    // The directory of all instances stays, so that no other user makes one in its place.
    if root.exists() {
        walk(root, &mut found);
    }
    found
}

/// Asserts that no instance has left anything.
///
/// # Panics
///
/// If one has.
pub fn assert_no_pins() {
    assert_eq!(pins(), [] as [PathBuf; 0], "something is left");
}

/// Says why a test tries nothing. Not with `eprintln!`, which the test harness keeps to itself.
pub fn skip(why: impl std::fmt::Display) {
    use std::io::Write as _;

    // A lost word is no reason to fail.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
