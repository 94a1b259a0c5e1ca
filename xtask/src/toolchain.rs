//! The pinned compiler and linker of the eBPF object, how they are got, and what they have to be. Nothing else needs
//! them: all other code builds with a stable toolchain.

mod components;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use flate2::read::GzDecoder;

use crate::{
    digest::sha256,
    process::{exists, isolated, output, run, say},
    workspace,
};

/// The compiler. Change it together with [`LINKER_LLVM`].
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";
/// The version of bpf-linker.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The SHA-256 of bpf-linker's crate, as the index of crates.io has it. The crate's own lock file has those
/// of all that it is built from.
const LINKER_SHA256: &str = "998bea250d009a4719ed16ab6d772d519b77b031a0261e69223a35013972594b";
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

/// Gets what is missing of the pinned tools, and compares what is there with its checksums.
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

/// The nightly's directory; installs the nightly if it is missing or lacks the sources of `core`. Nothing of it has
/// run before its checksums are compared.
pub(crate) fn nightly() -> Result<PathBuf> {
    if !exists("rustup") {
        bail!("rustup is missing, which fetches {NIGHTLY}: see https://rustup.rs");
    }
    if let Some(sysroot) = installed_nightly() {
        components::check(&sysroot)?;
        say(format!("{NIGHTLY} is there, with its checksums"));
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
    let sysroot = installed_nightly()
        .with_context(|| format!("rustup installed {NIGHTLY}, yet it is not there"))?;
    components::check(&sysroot)?;
    Ok(sysroot)
}

fn installed_nightly() -> Option<PathBuf> {
    let mut which = isolated("rustup");
    which.env("RUSTUP_AUTO_INSTALL", "0").args(["which", "--toolchain", NIGHTLY, "rustc"]);
    let rustc = output(&mut which).ok()?;
    let sysroot = Path::new(rustc.trim_end()).parent()?.parent()?.to_owned();
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file().then_some(sysroot)
}

/// The program bpf-linker; builds it if it is missing or does not run.
fn linker(sysroot: &Path) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    // What was built from another crate, or before crates were compared, has another name.
    let home = cache.join(format!("bpf-linker-{LINKER_VERSION}-{}-{NIGHTLY}", &LINKER_SHA256[..8]));
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

    let source = linker_source(scratch.path())?;

    // bpf-linker has to use the very LLVM of the compiler, which the toolchain brings along: under
    // this name it is found at build time, and through the rpath at run time.
    let llvm = scratch.path().join("llvm");
    fs::create_dir_all(llvm.join("lib"))?;
    symlink(llvm_library(sysroot)?, llvm.join("lib/libLLVM.so"))?;
    let built = scratch.path().join("root");
    run(with_nightly("cargo")
        .args(["install", "--locked", "--path"])
        .arg(&source)
        .args(["--no-default-features", "--features", LINKER_LLVM, "--root"])
        .arg(&built)
        .arg("--target-dir")
        .arg(scratch.path().join("target"))
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

/// Where bpf-linker's sources are: fetched, compared with their checksum, and only then unpacked.
fn linker_source(scratch: &Path) -> Result<PathBuf> {
    // Cargo downloads a crate to tell of it. In a home of its own, what it has downloaded is what is found.
    let home = scratch.join("cargo");
    run(with_nightly("cargo")
        .args(["info", "--quiet", "--registry", "crates-io"])
        .arg(format!("bpf-linker@{LINKER_VERSION}"))
        .current_dir(scratch)
        .env("CARGO_HOME", &home)
        .stdout(Stdio::null()))?;
    let name = format!("bpf-linker-{LINKER_VERSION}");
    let found = registry_crate(&home.join("registry/cache"), &format!("{name}.crate"))?;
    let bytes = fs::read(&found).with_context(|| format!("cannot read {}", found.display()))?;
    check_crate(&name, &bytes, LINKER_SHA256)?;
    let sources = scratch.join("sources");
    tar::Archive::new(GzDecoder::new(bytes.as_slice()))
        .unpack(&sources)
        .with_context(|| format!("cannot unpack {}", found.display()))?;
    let source = sources.join(name);
    // Its developers' own settings, which name tools that only they need. An installation from the registry
    // does not see them.
    let settings = source.join(".cargo");
    if settings.exists() {
        fs::remove_dir_all(&settings)
            .with_context(|| format!("cannot remove {}", settings.display()))?;
    }
    Ok(source)
}

/// The file of this name in the directory of the one registry below `cache`.
fn registry_crate(cache: &Path, name: &str) -> Result<PathBuf> {
    let registries = fs::read_dir(cache);
    let registries = registries.with_context(|| format!("cannot read {}", cache.display()))?;
    for registry in registries {
        let path = registry?.path().join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("cargo downloaded no {name} to {}", cache.display())
}

/// Refuses a crate that is not the pinned one.
fn check_crate(name: &str, bytes: &[u8], pinned: &str) -> Result<()> {
    let found = sha256(bytes);
    if found != pinned {
        bail!(
            "the crate {name} that cargo downloaded has the SHA-256 {found}, and {pinned} is pinned in \
             xtask/src/toolchain.rs: nothing of it was built. Look at what stands between this machine and \
             crates.io; a published crate never changes"
        );
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::check_crate;
    use crate::digest::sha256;

    #[test]
    fn a_crate_with_other_bytes_is_refused_before_anything_is_built() {
        let pinned = sha256(b"the crate");
        assert!(check_crate("tool-1.0.0", b"the crate", &pinned).is_ok());
        let error = check_crate("tool-1.0.0", b"the crate!", &pinned).unwrap_err().to_string();
        assert!(error.contains("tool-1.0.0") && error.contains(&pinned), "{error}");
        assert!(error.contains("nothing of it was built"), "{error}");
    }
}
