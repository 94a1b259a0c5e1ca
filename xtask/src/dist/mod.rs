//! `cargo xtask dist`: packs portsteer, as a Debian package and as an archive for everybody else. The
//! same sources and toolchain give the same bytes on every machine.
//!
//! [`binary`], [`manual`] and [`licences`] make what is packed, [`deb`] and [`tarball`] say where it
//! goes, [`archive`] packs it, [`sbom`] lists what is in it, [`signature`] signs the sums of it all,
//! [`trial`] installs and removes it.

mod archive;
mod binary;
mod deb;
mod libraries;
mod licences;
mod manual;
mod sbom;
mod signature;
mod tarball;
mod trial;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::trial::{Inside, inside};
use self::{libraries::Libraries, sbom::Sums};
use crate::{
    digest::sha256,
    ebpf,
    process::{output, say},
    workspace,
};

/// The version of all of portsteer's crates.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What can be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the packages go, instead of target/packages
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Sign SHA256SUMS with this SSH key, of which ssh-keygen asks the passphrase (docs/releasing.md)
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Then install, upgrade, remove and purge the package in a fresh Debian; needs root
    #[arg(long)]
    test: bool,
    /// Then boot that Debian in a container as well, to start, reload, restart and stop the service
    #[arg(long, requires = "test")]
    boot: bool,
    /// The Debian that it is tried in
    #[arg(long, value_name = "NAME", default_value = "bookworm", requires = "test")]
    suite: String,
    /// The Debian mirror to get it from, instead of the one in this machine's apt sources
    #[arg(long, value_name = "URI", requires = "test")]
    mirror: Option<String>,
    /// Install debootstrap and systemd-nspawn if they are missing; needs no asking where CI=true
    #[arg(long, requires = "test")]
    install: bool,
}

/// What is packed.
#[derive(Debug)]
struct Contents {
    root: PathBuf,
    /// The binary.
    portsteer: Vec<u8>,
    /// Man pages and completions, by their names.
    manual: Vec<(String, Vec<u8>)>,
    /// The licences of the libraries in the binary.
    licences: String,
    /// What is in the binary, in CycloneDX's JSON.
    sbom: String,
    /// When the sources were last changed, in seconds since 1970: the time of all files.
    time: u64,
}

/// Makes the packages and the list of their sums.
pub(crate) fn dist(options: &Options) -> Result<()> {
    if options.test {
        trial::prepare(options.boot, options.install)?;
    }
    ebpf::check_digest()?;
    let contents = Contents::make()?;
    let package = deb::pack(&contents, VERSION)?;
    let packages = [
        (deb::name(VERSION), package.clone()),
        (format!("{}.tar.gz", tarball::name(VERSION)), tarball::pack(&contents, VERSION)?),
        (format!("{}.cdx.json", tarball::name(VERSION)), contents.sbom.clone().into_bytes()),
    ];

    let out = match &options.out {
        Some(out) => out.clone(),
        None => contents.root.join("target/packages"),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut sums = String::new();
    for (name, bytes) in &packages {
        write(&out.join(name), bytes)?;
        sums.push_str(&format!("{}  {name}\n", sha256(bytes)));
        say(format!("{}: {} KiB", out.join(name).display(), bytes.len() / 1024));
    }
    let sums_path = out.join("SHA256SUMS");
    write(&sums_path, sums.as_bytes())?;
    match &options.sign {
        Some(key) => signature::sign(key, &sums_path)?,
        // One of other sums would be worse than none.
        None => signature::remove(&sums_path)?,
    }

    if options.test {
        let started = Instant::now();
        let newer = format!("{VERSION}+1");
        let packages = [
            (deb::version(VERSION), package),
            (deb::version(&newer), deb::pack(&contents, &newer)?),
        ];
        trial::run(&options.suite, options.mirror.as_deref(), options.boot, &packages)?;
        say(format!("the package was tried in {:.0} s", started.elapsed().as_secs_f32()));
    }
    Ok(())
}

impl Contents {
    fn make() -> Result<Self> {
        let root = workspace::root()?;
        let (portsteer, time) = (binary::build(&root)?, time(&root)?);
        let libraries = Libraries::read(&root)?;
        Ok(Self {
            manual: manual::make(&root)?,
            licences: licences::of_libraries(&libraries)?,
            sbom: sbom::render(&libraries, &Sums::read(&root)?, &portsteer, VERSION, time)?,
            portsteer,
            time,
            root,
        })
    }

    /// A file of the sources.
    fn source(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.root.join(path);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The files of `examples/`, by their paths in there.
    fn examples(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(self.root.join("examples").join(&directory))? {
                let entry = entry?;
                let path = format!("{directory}{}", entry.file_name().to_string_lossy());
                if entry.file_type()?.is_dir() {
                    directories.push(format!("{path}/"));
                } else {
                    let content = self.source(&format!("examples/{path}"))?;
                    found.push((path, content));
                }
            }
        }
        Ok(found)
    }
}

/// What `SOURCE_DATE_EPOCH` says, or else the date of the commit.
fn time(root: &Path) -> Result<u64> {
    const VARIABLE: &str = "SOURCE_DATE_EPOCH";
    let text = match env::var(VARIABLE) {
        Ok(text) => text,
        Err(_) => output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root))
            .with_context(|| format!("these sources have no commit, so {VARIABLE} is needed"))?,
    };
    let Ok(time) = text.trim_end().parse() else {
        bail!("{VARIABLE} should be a number of seconds, and is `{text}`");
    };
    Ok(time)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
