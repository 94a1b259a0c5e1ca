//! `cargo xtask vm`: boots other kernels than this machine's under emulation, and runs the demo
//! and the tests there. Loading on one kernel proves nothing about another's verifier.
//!
//! [`kernel`] gets the kernels, [`guest`] builds what runs in them, [`machine`] boots them.

mod guest;
mod initramfs;
mod kernel;
mod machine;
mod modules;

use std::{env, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use self::{
    guest::{Guest, GuestCommand},
    kernel::{Kernel, MATRIX},
    machine::{Outcome, QEMU},
};
use crate::{
    process::{exists, is_root, run, say},
    workspace,
};

/// What a guest may take besides its commands.
const BOOT: Duration = Duration::from_secs(120);

/// What can be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A kernel of the matrix (such as 6.1), or with --modules the path of a bootable image; all
    /// of the matrix if absent
    #[arg(long, value_name = "NAME|VMLINUZ")]
    kernel: Vec<String>,
    /// The lib/modules/RELEASE of the image
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// The Debian mirror to get kernels from, instead of the one in this machine's apt sources
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
    /// Get the newest build of a kernel, though an older one is in the cache
    #[arg(long)]
    refresh: bool,
    /// Install QEMU if it is missing; needs no asking where CI=true
    #[arg(long)]
    install: bool,
    /// What to run in the guest instead of the demo and the tests: /bin/portsteer ARGUMENT..., or
    /// one of the tests, such as /bin/test-end_to_end FILTER
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Boots the kernels one after the other; an error if one of them is not content.
pub(crate) fn vm(options: &Options) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the guests' programs are built for x86_64, on which `vm` has to run too, for now");
    }
    ensure_qemu(options.install)?;
    let kernels = kernels(options)?;
    let own = (!options.command.is_empty()).then(|| GuestCommand::own(&options.command));
    let guest = Guest::build(own.transpose()?)?;
    let dir = workspace::root()?.join("target/vm");

    let mut bad = Vec::new();
    for kernel in &kernels {
        say(format!("{}: booting {}", kernel.name, kernel.image.display()));
        let initramfs = guest.initramfs(&modules::in_load_order(&kernel.modules)?)?;
        let seconds = guest.commands.iter().map(|command| u64::from(command.seconds())).sum();
        let limit = BOOT + Duration::from_secs(seconds);
        let started = std::time::Instant::now();
        let report = machine::boot(kernel, &initramfs, &dir, limit)?;
        let release = report.release.as_deref().unwrap_or("not booted");
        let elapsed = started.elapsed().as_secs_f32();
        say(format!("{} ({release}) in {elapsed:.0} s: {}", kernel.name, report.outcome));
        if report.outcome != Outcome::Success {
            eprintln!("The end of {}:", report.log.display());
            report.tail.iter().for_each(|line| eprintln!("  | {line}"));
            bad.push(format!("{}: {} ({})", kernel.name, report.outcome, report.log.display()));
        }
    }
    if !bad.is_empty() {
        bail!("{} of {} kernels failed\n  {}", bad.len(), kernels.len(), bad.join("\n  "));
    }
    say(format!("{} of {} kernels succeeded", kernels.len(), kernels.len()));
    Ok(())
}

/// The kernels that were asked for, on disk.
fn kernels(options: &Options) -> Result<Vec<Kernel>> {
    let mirror = options.mirror.as_deref();
    if let Some(modules) = &options.modules {
        let [image] = options.kernel.as_slice() else {
            bail!("--modules belongs to one --kernel VMLINUZ");
        };
        return Ok(vec![Kernel::own(image.as_ref(), modules)?]);
    }
    if options.kernel.is_empty() {
        return MATRIX.iter().map(|release| release.get(mirror, options.refresh)).collect();
    }
    let find = |name: &String| {
        let release = MATRIX.iter().find(|release| release.name == name);
        let release = release.with_context(|| {
            let known: Vec<&str> = MATRIX.iter().map(|release| release.name).collect();
            format!(
                "the matrix has no kernel {name}, only {}; the path of an image needs --modules",
                known.join(", ")
            )
        });
        release?.get(mirror, options.refresh)
    };
    options.kernel.iter().map(find).collect()
}

/// Installs QEMU where that is wanted, else says how to.
fn ensure_qemu(install: bool) -> Result<()> {
    if exists(QEMU) {
        return Ok(());
    }
    let how = "apt-get install -y --no-install-recommends qemu-system-x86";
    if !(install || env::var_os("CI").is_some_and(|value| value == "true")) {
        bail!("{QEMU} is missing: {how} (or add --install)");
    }
    if !is_root() {
        bail!("{QEMU} is missing, and only root can install it: {how}");
    }
    say(format!("{QEMU} is missing: {how}"));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(apt().args(["--quiet", "update"]))?;
    run(apt().args(["install", "--quiet", "-y", "--no-install-recommends", "qemu-system-x86"]))?;
    if !exists(QEMU) {
        bail!("{how} went well, yet there is no {QEMU}");
    }
    Ok(())
}
