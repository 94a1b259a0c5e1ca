//! The pinned compiler and linker of the eBPF object, and how they are got. Nothing else needs
//! them: all other code builds with a stable toolchain.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{exists, isolated, output, run, say},
    workspace,
};

/// The compiler. Change it together with [`LINKER_LLVM`].
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";
/// The version of bpf-linker.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The feature of bpf-linker that names the LLVM of [`NIGHTLY`], whose library it uses.
pub(crate) const LINKER_LLVM: &str = "llvm-22";

/// The tools, ready to use.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The nightly's directory.
    pub(crate) sysroot: PathBuf,
    /// The program bpf-linker.
    pub(crate) linker: PathBuf,
}

/// Gets what is missing of the pinned tools; does nothing if all is there.
pub(crate) fn setup() -> Result<Tools> {
    let sysroot = nightly()?;
    let linker = linker(&sysroot)?;
    Ok(Tools { sysroot, linker })
}

/// A command run with the nightly toolchain, in an environment that is the same everywhere.
pub(crate) fn with_nightly(program: &str) -> Command {
    let mut command = isolated("rustup");
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", NIGHTLY, program]);
    command
}

/// The nightly's directory; installs the nightly if it is missing or lacks the sources of `core`.
pub(crate) fn nightly() -> Result<PathBuf> {
    if !exists("rustup") {
        bail!("rustup is missing, which fetches {NIGHTLY}: see https://rustup.rs");
    }
    if let Some(sysroot) = installed_nightly() {
        say(format!("{NIGHTLY} is there"));
        return Ok(sysroot);
    }
    say(format!("installing {NIGHTLY} with rust-src"));
    run(isolated("rustup").args(["toolchain", "install", NIGHTLY]).args([
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--no-self-update",
    ]))?;
    installed_nightly().with_context(|| format!("rustup installed {NIGHTLY}, yet it does not run"))
}

fn installed_nightly() -> Option<PathBuf> {
    let sysroot = output(with_nightly("rustc").args(["--print", "sysroot"])).ok()?;
    let sysroot = PathBuf::from(sysroot.trim_end());
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file().then_some(sysroot)
}

/// The program bpf-linker; builds it if it is missing or does not run.
fn linker(sysroot: &Path) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let home = cache.join(format!("bpf-linker-{LINKER_VERSION}-{NIGHTLY}"));
    let linker = home.join("bin/bpf-linker");
    if is_pinned_linker(&linker) {
        say(format!("bpf-linker {LINKER_VERSION} is there"));
        return Ok(linker);
    }
    if !exists("cc") {
        bail!(
            "no C compiler `cc`, which links bpf-linker: \
             apt-get install -y --no-install-recommends gcc libc6-dev"
        );
    }
    say(format!("building bpf-linker {LINKER_VERSION} (about a minute)"));
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = tempfile::Builder::new().prefix("bpf-linker-").tempdir_in(&cache)?;

    // bpf-linker has to use the very LLVM of the compiler, which the toolchain brings along: under
    // this name it is found at build time, and through the rpath at run time.
    let llvm = scratch.path().join("llvm");
    fs::create_dir_all(llvm.join("lib"))?;
    symlink(llvm_library(sysroot)?, llvm.join("lib/libLLVM.so"))?;
    let built = scratch.path().join("root");
    run(with_nightly("cargo")
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", LINKER_LLVM, "--root"])
        .arg(&built)
        .env("LLVM_PREFIX", &llvm)
        .env("CARGO_BUILD_RUSTC_WRAPPER", "")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("-Clink-arg=-Wl,-rpath,{}", sysroot.join("lib").display()),
        ))?;
    if !is_pinned_linker(&built.join("bin/bpf-linker")) {
        bail!("bpf-linker was built, yet `bpf-linker --version` does not say {LINKER_VERSION}");
    }

    // Only a whole installation ever gets the name that is looked for.
    if home.exists() {
        fs::rename(&home, scratch.path().join("old"))?;
    }
    fs::rename(&built, &home).with_context(|| format!("cannot make {}", home.display()))?;
    Ok(linker)
}

fn is_pinned_linker(linker: &Path) -> bool {
    output(isolated(linker).arg("--version"))
        .is_ok_and(|version| version.trim_end() == format!("bpf-linker {LINKER_VERSION}"))
}

fn llvm_library(sysroot: &Path) -> Result<PathBuf> {
    let lib = sysroot.join("lib");
    for entry in fs::read_dir(&lib).with_context(|| format!("cannot read {}", lib.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("libLLVM.so.") {
            return Ok(entry.path());
        }
    }
    bail!("no libLLVM.so.* in {}", lib.display())
}
