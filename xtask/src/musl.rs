//! Building binaries that need nothing of the file system they run on.

use std::{env, ffi::OsString, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::process::{output, run, say};

/// The target of such binaries.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// The cargo that runs xtask.
pub(crate) fn this_cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Has a cargo link statically, with what the toolchain brings along, into a directory of its own.
pub(crate) fn link_statically(cargo: &mut Command, target_dir: &Path) {
    cargo
        .env("CARGO_BUILD_TARGET", TARGET)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .env("CARGO_TARGET_DIR", target_dir);
}

/// Gets the target's standard library, if it is missing.
pub(crate) fn add_target() -> Result<()> {
    let libraries =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(libraries.trim_end()).is_dir() {
        return Ok(());
    }
    say(format!("adding the target {TARGET}"));
    run(Command::new("rustup").args(["target", "add", TARGET])).with_context(|| {
        format!("the standard library for {TARGET} is missing, and only rustup can add it")
    })
}
