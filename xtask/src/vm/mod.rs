//! `cargo xtask vm`: boots other kernels than this machine's under emulation, and runs the demo
//! and the tests there. Loading on one kernel proves nothing about another's verifier.
//!
//! [`kernel`] gets the kernels, [`guest`] builds what runs in them, [`machine`] boots them, with the
//! network interfaces of [`wires`].

mod guest;
mod initramfs;
mod kernel;
mod machine;
mod modules;
mod wires;

use std::{
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    guest::{Guest, GuestCommand},
    kernel::{Kernel, MATRIX, Release},
    machine::{Machine, Outcome, QEMU},
};
use crate::{debian, process::say, workspace};

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

/// Boots the kernels, as many at a time as there are processors; an error if one of them is not
/// content.
pub(crate) fn vm(options: &Options) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the guests' programs are built for x86_64, on which `vm` has to run too, for now");
    }
    debian::ensure(QEMU, "qemu-system-x86", options.install)?;
    let wanted = wanted(options)?;
    let own = (!options.command.is_empty()).then(|| GuestCommand::own(&options.command));
    let guest = Guest::build(own.transpose()?)?;
    let dir = workspace::root()?.join("target/vm");
    let machine = Machine::new(&dir);

    // One that fails keeps none of the others from being tried.
    let (next, bad) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(wanted) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = try_kernel(wanted, options, &guest, &machine) {
                let text = format!("{}: {error:#}", wanted.name());
                say(&text);
                bad.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            }
        }
    };
    // An emulated guest keeps one processor busy.
    let at_once = thread::available_parallelism()?.get().min(wanted.len());
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(work))));
    let bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !bad.is_empty() {
        bail!("{} of {} kernels failed\n  {}", bad.len(), wanted.len(), bad.join("\n  "));
    }
    say(format!("{} of {} kernels succeeded", wanted.len(), wanted.len()));
    Ok(())
}

/// Gets a kernel and boots it; an error if it is not content.
fn try_kernel(wanted: &Wanted, options: &Options, guest: &Guest, machine: &Machine) -> Result<()> {
    let kernel = wanted.get(options.mirror.as_deref(), options.refresh)?;
    let commands = guest.commands(kernel.promise);
    let modules = modules::in_load_order(&kernel.modules)?;
    let initramfs = guest.initramfs(&modules, &commands)?;
    let seconds: u64 = commands.iter().map(|command| u64::from(command.seconds())).sum();
    say(format!("{}: booting {}", kernel.name, kernel.image.display()));
    let started = Instant::now();
    let report = machine.boot(&kernel, &initramfs, BOOT + Duration::from_secs(seconds))?;
    let release = report.release.as_deref().unwrap_or("not booted");
    let elapsed = started.elapsed().as_secs_f32();
    say(format!("{} ({release}) in {elapsed:.0} s: {}", kernel.name, report.outcome));
    if report.outcome == Outcome::Success {
        return Ok(());
    }
    let tail: Vec<String> = report.tail.iter().map(|line| format!("  | {line}\n")).collect();
    eprint!("The end of {}:\n{}", report.log.display(), tail.concat());
    bail!("{} ({})", report.outcome, report.log.display());
}

/// A kernel that was asked for.
#[derive(Debug)]
enum Wanted {
    Release(&'static Release),
    Own(Kernel),
}

impl Wanted {
    fn name(&self) -> &str {
        match self {
            Self::Release(release) => release.name,
            Self::Own(kernel) => &kernel.name,
        }
    }

    /// The kernel, on disk.
    fn get(&self, mirror: Option<&str>, refresh: bool) -> Result<Kernel> {
        match self {
            Self::Release(release) => release.get(mirror, refresh),
            Self::Own(kernel) => Ok(kernel.clone()),
        }
    }
}

/// The kernels that were asked for.
fn wanted(options: &Options) -> Result<Vec<Wanted>> {
    if let Some(modules) = &options.modules {
        let [image] = options.kernel.as_slice() else {
            bail!("--modules belongs to one --kernel VMLINUZ");
        };
        return Ok(vec![Wanted::Own(Kernel::own(image.as_ref(), modules)?)]);
    }
    if options.kernel.is_empty() {
        return Ok(MATRIX.iter().map(Wanted::Release).collect());
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
        release.map(Wanted::Release)
    };
    options.kernel.iter().map(find).collect()
}
