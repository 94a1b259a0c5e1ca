//! The binary that is packed: linked statically, without a trace of the machine that built it.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use object::{
    Endianness,
    elf::{DT_NEEDED, FileHeader64},
    read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
};

use crate::{
    musl::{self, TARGET, link_statically, this_cargo},
    process::{isolated, output, run, say},
    remapped,
};

/// The profile in Cargo.toml.
const PROFILE: &str = "dist";

/// Builds it.
pub(super) fn build(root: &Path) -> Result<Vec<u8>> {
    musl::add_target()?;
    // The sources have to be there before their directories can be listed.
    run(cargo().args(["fetch", "--quiet", "--locked"]).current_dir(root))?;
    let (sources, name) = standard_library()?;
    let flags = remapped::flags(&[(sources.as_ref(), &name), (root, "/portsteer")])?;
    let target_dir = root.join("target/dist");
    let mut command = cargo();
    link_statically(&mut command, &target_dir);
    say("building portsteer");
    run(command
        .args(["build", "--locked", "--package", "portsteer", "--bin", "portsteer"])
        .args(["--profile", PROFILE])
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_INCREMENTAL", "0"))?;
    let path = target_dir.join(TARGET).join(PROFILE).join("portsteer");
    let binary = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    check_static(&binary).with_context(|| format!("{} cannot be packed", path.display()))?;
    Ok(binary)
}

/// The toolchain that xtask was built with, in an environment that is the same everywhere.
fn cargo() -> Command {
    let mut command = isolated(this_cargo());
    command.envs(env::var_os("RUSTUP_TOOLCHAIN").map(|name| ("RUSTUP_TOOLCHAIN", name)));
    command
}

/// Where the sources of the standard library are, if they are installed, and what the compiler calls
/// them if they are not.
fn standard_library() -> Result<(String, String)> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let version = output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    let commit = commit.context("rustc does not tell what it was built from")?;
    Ok((format!("{}/lib/rustlib/src/rust", sysroot.trim_end()), format!("/rustc/{commit}")))
}

/// Fails if the binary needs an interpreter or libraries. (A dynamic section it may have, to be loaded
/// at any address.)
fn check_static(binary: &[u8]) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(binary)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, binary)? {
        if let Some(interpreter) = segment.interpreter(endian, binary)? {
            bail!("it needs {}", String::from_utf8_lossy(interpreter));
        }
        let entries = segment.dynamic(endian, binary)?.unwrap_or_default();
        if entries.iter().any(|entry| entry.tag(endian) == DT_NEEDED) {
            bail!("it needs libraries");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_static;

    #[test]
    fn a_program_that_needs_the_hosts_libraries_is_refused() {
        let test = std::fs::read("/proc/self/exe").unwrap();
        let is_static = cfg!(target_feature = "crt-static");
        assert_eq!(check_static(&test).is_ok(), is_static);
    }
}
