//! Installs, upgrades, removes and purges the package in a fresh Debian, which is a directory that goes
//! when all is done. [`debian`] makes it, [`steps`] are what is tried, [`boot`] does so while it runs.
//!
//! What is tried runs in namespaces of its own, with an interface of its own for portsteer to be attached
//! to: nothing reaches this machine's network, and no mount is left when the last process has ended,
//! however it ends.

mod boot;
mod debian;
mod steps;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{debian::ensure, process::is_root, workspace};

/// Gets what is needed, before anything that takes time.
pub(super) fn prepare(boots: bool, install: bool) -> Result<()> {
    if !is_root() {
        bail!("only root can make a Debian in a directory: leave out --test, or run it as root");
    }
    if boots {
        ensure("systemd-nspawn", "systemd-container", install)?;
    }
    ensure("debootstrap", "debootstrap", install)
}

/// Tries a version of the package, and a newer one; with `boots` also while the Debian runs.
pub(super) fn run(
    suite: &str,
    mirror: Option<&str>,
    boots: bool,
    packages: &[(String, Vec<u8>); 2],
) -> Result<()> {
    // Where there is room for it. What a trial that was killed has left is nothing but files.
    let target = workspace::root()?.join("target");
    let _ = fs::remove_dir_all(target.join("trial"));
    let scratch = tempfile::Builder::new().prefix("trial").rand_bytes(0).tempdir_in(target)?;
    let root = scratch.path().join("root");
    let more: &[&str] = if boots { &["systemd-sysv"] } else { &[] };
    debian::make(suite, mirror, more, &root)?;
    let [old, new] = packages;
    for (version, package) in packages {
        fs::write(root.join(file(version)), package)?;
    }
    let namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child"];
    let mut steps = Command::new("unshare");
    steps
        .args(namespaces)
        .args(["--propagation", "private", "--"])
        .arg(env::current_exe()?)
        .args(["dist-inside", "--old", &old.0, "--new", &new.0])
        .arg(&root);
    // It has said what is wrong.
    if !steps.status()?.success() {
        bail!("the package is not as it should be");
    }
    if boots {
        boot::run(&root, &old.0, &new.0)?;
    }
    Ok(())
}

/// What xtask is told when it starts itself in the namespaces.
#[derive(Debug, clap::Args)]
pub(crate) struct Inside {
    root: PathBuf,
    #[arg(long)]
    old: String,
    #[arg(long)]
    new: String,
}

/// Runs the steps.
pub(crate) fn inside(options: &Inside) -> Result<()> {
    steps::run(&options.root, &options.old, &options.new)
}

/// Where the package of a version is, in the fresh Debian's root directory.
fn file(version: &str) -> PathBuf {
    Path::new(&format!("portsteer-{version}.deb")).to_owned()
}
