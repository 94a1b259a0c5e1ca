//! A fresh Debian in a directory.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    debian::{KEYRING, configured_mirror},
    process::{output, say},
};

/// Makes it, of what every Debian has, and more packages.
pub(super) fn make(suite: &str, mirror: Option<&str>, more: &[&str], root: &Path) -> Result<()> {
    let mirror = match mirror {
        Some(mirror) => mirror.trim_end_matches('/').to_owned(),
        None => configured_mirror()?,
    };
    say(format!("making a Debian {suite}, from {mirror}"));
    // What it mounts is gone with it.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "debootstrap"]);
    command.args(["--variant=minbase", "--arch=amd64", "--merged-usr"]);
    if Path::new(KEYRING).exists() {
        command.arg(format!("--keyring={KEYRING}"));
    }
    if !more.is_empty() {
        command.arg(format!("--include={}", more.join(",")));
    }
    output(command.arg(suite).arg(root).arg(mirror))
        .with_context(|| format!("debootstrap made no {suite}"))?;
    Ok(())
}
