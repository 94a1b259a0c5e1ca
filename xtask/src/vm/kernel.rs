//! The kernels that guests boot: Debian's packages, downloaded and unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::{KEYRING, configured_mirror},
    process::{exists, output, run, say},
    workspace,
};

/// A line of the matrix.
#[derive(Debug)]
pub(super) struct Release {
    /// What `--kernel` calls it, and the beginning of what `uname -r` says.
    pub(super) name: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
    /// What is expected of portsteer there.
    pub(super) promise: Promise,
}

/// What is expected of portsteer on a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// It refuses, and says what the kernel lacks.
    Refuses,
    /// Everything works.
    Works,
}

/// The matrix: the last kernel that is too old, the oldest that is not, and what Debian's users have
/// now and will have next.
pub(super) const MATRIX: &[Release] = &[
    Release { name: "5.10", suite: "bullseye", promise: Promise::Refuses },
    Release { name: "6.1", suite: "bookworm", promise: Promise::Works },
    Release { name: "6.12", suite: "trixie", promise: Promise::Works },
    Release { name: "7", suite: "sid", promise: Promise::Works },
];

/// The package that depends on the newest build of a suite's kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// What the packages are called that a kernel comes in: all of it in the first, or, from Linux 7 on, in
/// those that it depends on.
const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// A kernel on disk, ready to boot.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) image: PathBuf,
    /// Its `lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
    pub(super) promise: Promise,
}

impl Kernel {
    /// A kernel of one's own.
    pub(super) fn own(image: &Path, modules: &Path) -> Result<Self> {
        if !image.is_file() {
            bail!("no kernel image at {}", image.display());
        }
        if !modules.join("modules.builtin").is_file() {
            bail!("{} is no kernel's lib/modules/RELEASE", modules.display());
        }
        let name = modules.file_name().context("the directory has no name")?;
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            image: image.to_owned(),
            modules: modules.to_owned(),
            promise: Promise::Works,
        })
    }
}

impl Release {
    /// The kernel, from the cache or, if it is not there or `refresh` asks for the newest build,
    /// from a Debian mirror.
    pub(super) fn get(&self, mirror: Option<&str>, refresh: bool) -> Result<Kernel> {
        let home = workspace::cache()?.join("kernels").join(self.name);
        if !refresh && let Ok(kernel) = self.find(&home) {
            say(format!("{}: {} is there", self.name, kernel.image.display()));
            return Ok(kernel);
        }
        self.fetch(mirror, &home).with_context(|| {
            format!(
                "cannot get Debian's package {PACKAGE} of {}; a kernel of your own does as well: \
                 cargo xtask vm --kernel VMLINUZ --modules LIB_MODULES_RELEASE",
                self.suite
            )
        })?;
        self.find(&home)
    }

    /// Finds the image and the modules in an unpacked package.
    fn find(&self, home: &Path) -> Result<Kernel> {
        let modules = only_entry(&home.join("lib/modules"), "")
            .or_else(|_| only_entry(&home.join("usr/lib/modules"), ""))?;
        let image =
            only_entry(&home.join("boot"), "vmlinuz-").unwrap_or_else(|_| modules.join("vmlinuz"));
        if !image.is_file() {
            bail!("no kernel image in {}", home.display());
        }
        if !modules.join("modules.builtin").is_file() {
            bail!("{} is not whole: modules.builtin is missing", modules.display());
        }
        Ok(Kernel { name: self.name.to_owned(), image, modules, promise: self.promise })
    }

    /// Downloads and unpacks the package into `home`.
    fn fetch(&self, mirror: Option<&str>, home: &Path) -> Result<()> {
        for tool in ["apt-get", "apt-cache", "dpkg"] {
            if !exists(tool) {
                bail!("{tool} is missing: this is not a Debian or one of its descendants");
            }
        }
        let parent = home.parent().context("a directory without a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let scratch = tempfile::Builder::new().prefix("fetching-").tempdir_in(parent)?;
        let apt = Apt::new(&scratch.path().join("apt"))?;
        let mirror = match mirror {
            Some(mirror) => mirror.trim_end_matches('/').to_owned(),
            None => configured_mirror()?,
        };
        say(format!("{}: asking {mirror} for {PACKAGE} of {}", self.name, self.suite));
        apt.use_only(&mirror, self.suite)?;
        let unpacked = scratch.path().join("root");
        for package in apt.kernel_behind(PACKAGE)? {
            say(format!("{}: downloading {package}", self.name));
            let archive = apt.download(&package)?;
            run(Command::new("dpkg").arg("--extract").arg(&archive).arg(&unpacked))?;
            fs::remove_file(&archive)?;
        }
        self.find(&unpacked).context("what was downloaded is no whole kernel")?;

        // Only a whole kernel ever gets the name that is looked for.
        if home.exists() {
            fs::rename(home, scratch.path().join("old"))?;
        }
        fs::rename(&unpacked, home).with_context(|| format!("cannot make {}", home.display()))
    }
}

/// apt with sources and lists of its own: the machine's are neither used nor changed, save that
/// its proxies and certificates count.
#[derive(Debug)]
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "download"] {
            fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Makes one suite of one mirror the only source, and fetches its list of packages.
    fn use_only(&self, mirror: &str, suite: &str) -> Result<()> {
        let mut source = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n\
             Architectures: amd64\nTargets: Packages\n"
        );
        if Path::new(KEYRING).exists() {
            source.push_str(&format!("Signed-By: {KEYRING}\n"));
        }
        fs::write(self.sources(), source)?;
        run(self.command("apt-get").args(["--quiet=2", "--error-on=any", "update"]))
    }

    /// The packages with a version in their name that a package without one depends on, be it by way
    /// of each other.
    fn kernel_behind(&self, package: &str) -> Result<Vec<String>> {
        let mut found: Vec<String> = self.parts_behind(package)?;
        let mut next = 0;
        while let Some(part) = found.get(next) {
            for part in self.parts_behind(part)? {
                if !found.contains(&part) {
                    found.push(part);
                }
            }
            next += 1;
        }
        if found.is_empty() {
            bail!("{package} depends on no kernel");
        }
        Ok(found)
    }

    fn parts_behind(&self, package: &str) -> Result<Vec<String>> {
        let depends = output(self.command("apt-cache").args(["depends", package]))?;
        Ok(parts(&depends))
    }

    /// Downloads a package and returns its file.
    fn download(&self, package: &str) -> Result<PathBuf> {
        let dir = self.dir.join("download");
        run(self.command("apt-get").args(["--quiet=2", "download", package]).current_dir(&dir))?;
        only_entry(&dir, "")
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("debian.sources")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::SourceList", self.sources()),
            ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::Cache", self.dir.join("cache")),
        ] {
            command.arg(format!("--option={option}={}", value.display()));
        }
        // All is written below one directory of this user's, which apt's own user cannot enter.
        command.arg("--option=APT::Sandbox::User=");
        command.env("LC_ALL", "C");
        command
    }
}

/// The packages that a kernel comes in among what `apt-cache depends` prints.
fn parts(depends: &str) -> Vec<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let has_version = |rest: &str| rest.starts_with(|character: char| character.is_ascii_digit());
    let is_part =
        |name: &&str| PARTS.iter().any(|part| name.strip_prefix(part).is_some_and(has_version));
    names.filter(is_part).map(str::to_owned).collect()
}

/// The one entry of a directory whose name begins so.
fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    match found.as_slice() {
        [path] => Ok(path.clone()),
        _ => bail!("{} files in {} begin with \"{prefix}\"", found.len(), dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn a_kernel_comes_in_several_packages() {
        let depends = "linux-image-7.0\n  PreDepends: linux-base\n |Depends: dracut\n  \
                       Depends: linux-base-7.0\n  Depends: linux-binary-7.0\n  Depends: \
                       linux-base-cloud-amd64\n  Breaks: linux-image-6.9\n";
        assert_eq!(parts(depends), ["linux-base-7.0", "linux-binary-7.0"]);
    }
}
