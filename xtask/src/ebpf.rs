//! Building the eBPF object, the same bytes everywhere, and noticing when the checked-in one is
//! not what the sources say.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    digest::{self, DigestFile, Inputs, sha256},
    process::{run, say},
    remapped,
    strip::without_dwarf,
    toolchain::{self, Tools, with_nightly},
    workspace,
};

/// The checked-in object, relative to the workspace.
const OBJECT: &str = "portsteer-ebpf/portsteer.bpf.o";
/// The target: a little-endian BPF machine.
const TARGET: &str = "bpfel-unknown-none";
/// The compiler's flags, without those that name paths of this machine.
const FLAGS: &[&str] = &[
    // Atomics and 32-bit jumps; Linux 5.1 has both.
    "-Ctarget-cpu=v3",
    // Types and source lines for the kernel, made from the debug information of the profile.
    "-Clink-arg=--btf",
    // network-types reads header fields bytewise: let LLVM join the bytes into one load.
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
];

/// Rebuilds the checked-in object and its digest.
pub(crate) fn build() -> Result<()> {
    let root = workspace::root()?;
    let tools = toolchain::setup()?;
    let inputs = read_inputs(&root)?;
    let object = compile(&root, &tools, &root.join("target/ebpf"))?;
    if read_inputs(&root)? != inputs {
        bail!("the sources changed while they were compiled: run `cargo xtask ebpf` again");
    }
    let digest = DigestFile { object: sha256(&object), inputs };
    let changed = replace(&root.join(OBJECT), &object)?;
    replace(&root.join(digest::PATH), digest.render().as_bytes())?;
    let how = if changed { "rebuilt" } else { "unchanged" };
    say(format!("{OBJECT} {how}: {} bytes, SHA-256 {}", object.len(), digest.object));
    Ok(())
}

/// Fails if the checked-in object is not what the sources, tools and flags make.
pub(crate) fn check() -> Result<()> {
    check_digest()?;
    let root = workspace::root()?;
    let tools = toolchain::setup()?;
    let fresh = compile(&root, &tools, &root.join("target/ebpf-check"))?;
    let object = read(&root.join(OBJECT))?;
    if let Some(difference) = difference(&object, &fresh) {
        bail!(
            "{OBJECT} is not what its sources make, although its digest is up to date: \
             {difference}. Rebuild it with `cargo xtask ebpf`; if that changes nothing on the \
             machine where it was built, the build is not reproducible"
        );
    }
    say(format!("{OBJECT} is what its sources make"));
    Ok(())
}

/// The part of [`check`] that needs neither nightly nor linker: compares digests.
pub(crate) fn check_digest() -> Result<()> {
    let root = workspace::root()?;
    let digest = DigestFile::read(&root.join(digest::PATH))
        .context("no usable digest of the eBPF object: run `cargo xtask ebpf`")?;
    let changes = read_inputs(&root)?.changes_since(&digest.inputs);
    if !changes.is_empty() {
        bail!(
            "{OBJECT} is stale: run `cargo xtask ebpf`. Since it was built,\n  {}",
            changes.join("\n  ")
        );
    }
    if sha256(&read(&root.join(OBJECT))?) != digest.object {
        bail!("{OBJECT} is not the file that {} describes: run `cargo xtask ebpf`", digest::PATH);
    }
    say(format!("{OBJECT} and its digest agree with the sources"));
    Ok(())
}

fn read_inputs(root: &Path) -> Result<Inputs> {
    Inputs::read(root, TARGET, FLAGS)
}

/// Compiles the program and returns the object.
fn compile(root: &Path, tools: &Tools, target_dir: &Path) -> Result<Vec<u8>> {
    // The sources have to be there before their directories can be listed.
    run(with_nightly("cargo").args(["fetch", "--quiet", "--locked"]).current_dir(root))?;
    let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    flags.extend(remapped::flags(&[(&tools.sysroot, "/rust"), (root, "/portsteer")])?);
    say(format!("compiling the eBPF program in {}", target_dir.display()));
    run(with_nightly("cargo")
        .args(["build", "--locked", "--package", "portsteer-ebpf", "--bin", "portsteer"])
        .args(["--profile", "ebpf", "--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(target_dir)
        .current_dir(root)
        // Stronger than what a configuration file says.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker)
        .env("CARGO_BUILD_RUSTC_WRAPPER", "")
        .env("CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER", "")
        .env("CARGO_INCREMENTAL", "0"))?;
    without_dwarf(&read(&target_dir.join(TARGET).join("ebpf/portsteer"))?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Gives the file this content, in one step. A file that has it already is not touched, so that
/// nothing is rebuilt for it. Says whether it changed.
fn replace(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    let new = path.with_extension("new");
    fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

/// Where two objects begin to differ.
fn difference(checked_in: &[u8], fresh: &[u8]) -> Option<String> {
    if checked_in == fresh {
        return None;
    }
    let offset = checked_in.iter().zip(fresh).take_while(|(old, new)| old == new).count();
    Some(format!(
        "checked in {} bytes, rebuilt {} bytes, first difference at byte {offset}",
        checked_in.len(),
        fresh.len()
    ))
}
