//! Which kernel modules a guest loads, and in which order.
//!
//! Packages leave `modules.dep` to be made at installation, so the dependencies are read from the
//! modules themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// What the commands in the guest need, where the kernel does not have it built in.
const WANTED: &[&str] = &["veth"];
/// The devices and protocols that the tests meet. All kernels of the matrix have them; one that does
/// not is told by the tests that miss them.
const OPTIONAL: &[&str] =
    &["8021q", "bonding", "bridge", "dummy", "macvlan", "sctp", "tun", "virtio_net", "virtio_pci"];

/// A module, ready to load.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// Its file's content, not compressed.
    pub(super) content: Vec<u8>,
}

/// The wanted modules and all that they depend on, in the order to load them; those that are
/// optional only where they are there. `dir` is a kernel's `lib/modules/RELEASE`.
pub(super) fn in_load_order(dir: &Path) -> Result<Vec<Module>> {
    let list = dir.join("modules.builtin");
    let list =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let mut files = BTreeMap::new();
    find_files(&dir.join("kernel"), &mut files)?;
    let mut search = Search { files, seen: list.lines().map(name).collect(), order: Vec::new() };
    let is_there = |name: &&&str| search.files.contains_key(**name);
    let wanted: Vec<&str> =
        WANTED.iter().chain(OPTIONAL.iter().filter(is_there)).copied().collect();
    for name in wanted {
        search
            .visit(name)
            .with_context(|| format!("the kernel of {} cannot load {name}", dir.display()))?;
    }
    Ok(search.order)
}

/// A walk along the dependencies.
#[derive(Debug)]
struct Search {
    /// All modules' files by name.
    files: BTreeMap<String, PathBuf>,
    /// What needs no visit: already visited, or built in.
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Search {
    fn visit(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.files.get(name).with_context(|| format!("there is no module {name}"))?;
        let content = read(file)?;
        for dependency in dependencies(&content) {
            self.visit(&dependency)?;
        }
        self.order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn find_files(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_files(&path, files)?;
        } else if let Some(path_text) = path.to_str().filter(|path| path.contains(".ko")) {
            files.insert(name(path_text), path);
        }
    }
    Ok(())
}

/// The module of a file: `kernel/net/8021q/8021q.ko.xz` is `8021q`. Where file names have `-` or
/// `_`, module names have `_`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    if !process::exists("xz") {
        bail!("xz is missing: apt-get install -y --no-install-recommends xz-utils");
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output()?;
    if !output.status.success() {
        bail!("cannot decompress {}", file.display());
    }
    Ok(output.stdout)
}

/// What a module says it depends on: the string `depends=a,b` among those of its `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut strings = module.split(|&byte| byte == 0);
    let Some(list) = strings.find_map(|string| string.strip_prefix(b"depends=")) else {
        return Vec::new();
    };
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::{Search, dependencies, find_files, name};

    #[test]
    fn names_are_the_files_with_underscores() {
        assert_eq!(name("kernel/net/sched/act-mirred.ko.xz"), "act_mirred");
        assert_eq!(name("veth.ko"), "veth");
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(dependencies(b"\x7fELF\0license=GPL\0depends=a-b,c\0name=x\0"), ["a_b", "c"]);
        assert!(dependencies(b"\x7fELF\0depends=\0name=x\0").is_empty());
    }

    #[test]
    fn dependencies_come_first_and_once_and_built_in_ones_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        for (file, content) in [
            ("a.ko", &b"\0depends=b,c,built_in\0"[..]),
            ("b.ko", b"\0depends=c\0"),
            ("c.ko", b"\0depends=\0"),
        ] {
            fs::write(dir.path().join(file), content).expect("a file");
        }
        let mut search = Search {
            files: Default::default(),
            seen: BTreeSet::from(["built_in".to_owned()]),
            order: Vec::new(),
        };
        find_files(dir.path(), &mut search.files).expect("the directory can be read");
        for wanted in ["a", "b"] {
            search.visit(wanted).expect("all are there");
        }
        let names: Vec<&str> = search.order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a"]);
        assert!(search.visit("d").is_err());
    }
}
