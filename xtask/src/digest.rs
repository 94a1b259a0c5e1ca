//! What the checked-in object was built from, as a file beside it that a reviewer can read.
//!
//! The inputs are all that decides the object's bytes: the sources of both crates, the parts of
//! the manifests and the lock file that concern them, the tools and the flags. A change of
//! something else (a dependency of user space, say) leaves them as they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail};
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use crate::toolchain::{LINKER_LLVM, LINKER_VERSION, NIGHTLY};

/// The workspace's crates that the object is built from.
const CRATES: &[&str] = &["portsteer-common", "portsteer-ebpf"];

/// The file's name, relative to the workspace.
pub(crate) const PATH: &str = "portsteer-ebpf/portsteer.bpf.digest";

/// What an object is built from: section, name, value. Files and tables stand for themselves as
/// their SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inputs {
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Inputs {
    /// Reads the inputs from a workspace. `flags` are the compiler's, without any path of this
    /// machine.
    pub(crate) fn read(root: &Path, target: &str, flags: &[&str]) -> Result<Self> {
        let mut inputs = Self { sections: BTreeMap::new() };
        inputs.add("tools", "rust", NIGHTLY);
        inputs.add("tools", "bpf-linker", &format!("{LINKER_VERSION}, {LINKER_LLVM}"));
        inputs.add("tools", "target", target);
        inputs.add("tools", "flags", &flags.join(" "));

        let workspace = read_toml(&root.join("Cargo.toml"))?;
        let lock = read_toml(&root.join("Cargo.lock"))?;
        let mut direct = BTreeSet::new();
        for name in CRATES {
            let dir = root.join(name);
            inputs.add_file(root, &dir.join("Cargo.toml"))?;
            inputs.add_directory(root, &dir.join("src"))?;
            if dir.join("build.rs").exists() {
                inputs.add_file(root, &dir.join("build.rs"))?;
            }
            direct.extend(dependencies(&read_toml(&dir.join("Cargo.toml"))?));
        }
        inputs.add_workspace_tables(&workspace, &direct)?;
        inputs.add_packages(&lock, direct)?;
        Ok(inputs)
    }

    /// The SHA-256 over all of them.
    pub(crate) fn digest(&self) -> String {
        let mut text = String::new();
        for (section, entries) in &self.sections {
            for (name, value) in entries {
                let _ = writeln!(text, "{section}\t{name}\t{value}");
            }
        }
        sha256(text.as_bytes())
    }

    /// A line for each thing that is not as it was in `before`.
    pub(crate) fn changes_since(&self, before: &Self) -> Vec<String> {
        let names = |inputs: &Self| -> BTreeSet<(String, String)> {
            let sections = inputs.sections.iter();
            sections
                .flat_map(|(section, entries)| {
                    entries.keys().map(|name| (section.clone(), name.clone()))
                })
                .collect()
        };
        let all: BTreeSet<_> = names(self).union(&names(before)).cloned().collect();
        let mut lines = Vec::new();
        for (section, name) in all {
            let what =
                if section == "sources" { name.clone() } else { format!("{section}: {name}") };
            match (before.get(&section, &name), self.get(&section, &name)) {
                (Some(old), Some(new)) if old != new => {
                    let is_hash = |value: &str| value.len() == 64 && !value.contains(' ');
                    if is_hash(old) && is_hash(new) {
                        lines.push(format!("{what} changed"));
                    } else {
                        lines.push(format!("{what} changed from \"{old}\" to \"{new}\""));
                    }
                }
                (Some(_), None) => lines.push(format!("{what} was removed")),
                (None, Some(_)) => lines.push(format!("{what} was added")),
                _ => {}
            }
        }
        lines
    }

    fn get(&self, section: &str, name: &str) -> Option<&str> {
        Some(self.sections.get(section)?.get(name)?.as_str())
    }

    fn add(&mut self, section: &str, name: &str, value: &str) {
        let entries = self.sections.entry(section.to_owned()).or_default();
        entries.insert(name.to_owned(), value.to_owned());
    }

    fn add_file(&mut self, root: &Path, path: &Path) -> Result<()> {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(root)?.to_str().context("a file name is not UTF-8")?;
        self.add("sources", name, &sha256(&content));
        Ok(())
    }

    fn add_directory(&mut self, root: &Path, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                self.add_directory(root, &path)?;
            } else {
                self.add_file(root, &path)?;
            }
        }
        Ok(())
    }

    /// What the two crates inherit from the workspace's manifest.
    fn add_workspace_tables(&mut self, manifest: &Table, direct: &BTreeSet<String>) -> Result<()> {
        let at = |path: &[&str]| -> Option<&Value> {
            let (first, rest) = path.split_first()?;
            rest.iter().try_fold(manifest.get(*first)?, |value, key| value.get(key))
        };
        for path in [
            &["workspace", "resolver"][..],
            &["workspace", "package", "version"],
            &["workspace", "package", "edition"],
        ] {
            let value = at(path).and_then(Value::as_str);
            let value = value.with_context(|| format!("Cargo.toml has no {}", path.join(".")))?;
            self.add("manifest", &path.join("."), value);
        }
        for name in ["release", "ebpf"] {
            let profile = at(&["profile", name]).and_then(Value::as_table);
            let profile = profile.with_context(|| format!("Cargo.toml has no [profile.{name}]"))?;
            for (key, value) in profile {
                self.add("manifest", &format!("profile.{name}.{key}"), &one_line(value));
            }
        }
        for name in direct {
            if let Some(dependency) = at(&["workspace", "dependencies", name]) {
                self.add(
                    "manifest",
                    &format!("workspace.dependencies.{name}"),
                    &one_line(dependency),
                );
            }
        }
        Ok(())
    }

    /// The packages that the two crates are built with, as the lock file has them.
    fn add_packages(&mut self, lock: &Table, direct: BTreeSet<String>) -> Result<()> {
        let packages = lock.get("package").and_then(Value::as_array);
        let packages = packages.context("Cargo.lock has no packages")?;
        let text = |package: &Value, key: &str| -> String {
            package.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        // The crates' own entries say which version of a name is theirs; development
        // dependencies stand there too, and are none of the object's business.
        let mut wanted: Vec<String> = Vec::new();
        for name in CRATES {
            let package = packages.iter().find(|package| text(package, "name") == *name);
            let package = package.with_context(|| format!("Cargo.lock lacks {name}"))?;
            let own = edges(package);
            wanted.extend(own.filter(|edge| direct.contains(edge_name(edge))));
        }
        // The library that writes the object's final form decides some of its bytes as well.
        let xtask = packages.iter().find(|package| text(package, "name") == "xtask");
        let xtask = xtask.context("Cargo.lock lacks xtask")?;
        wanted.extend(edges(xtask).filter(|edge| edge_name(edge) == "object"));
        let mut seen = BTreeSet::new();
        while let Some(edge) = wanted.pop() {
            if !seen.insert(edge.clone()) || CRATES.contains(&edge_name(&edge)) {
                continue;
            }
            let mut parts = edge.split(' ');
            let (name, version) = (parts.next().unwrap_or_default(), parts.next());
            let source = parts.next().map(|source| source.trim_matches(['(', ')']));
            let mut matches = packages.iter().filter(|package| {
                text(package, "name") == name
                    && version.is_none_or(|version| text(package, "version") == version)
                    && source.is_none_or(|source| text(package, "source") == source)
            });
            let package = matches.next().with_context(|| format!("Cargo.lock lacks {edge}"))?;
            if matches.next().is_some() {
                bail!("Cargo.lock has several packages for {edge}");
            }
            let version = text(package, "version");
            let checksum = package.get("checksum").and_then(Value::as_str);
            let identity = checksum.map_or_else(|| text(package, "source"), str::to_owned);
            self.add("packages", &format!("{name} {version}"), &identity);
            wanted.extend(edges(package));
        }
        Ok(())
    }
}

/// The checked-in file.
#[derive(Debug)]
pub(crate) struct DigestFile {
    /// The object's SHA-256.
    pub(crate) object: String,
    /// What the object was built from.
    pub(crate) inputs: Inputs,
}

impl DigestFile {
    /// Reads it; an error if it contradicts itself (which a bad merge may leave behind).
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut table = read_toml(path)?;
        let mut take = |key: &str| match table.remove(key) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(anyhow!("{} has no line `{key} = \"...\"`", path.display())),
        };
        let (object, digest) = (take("object")?, take("inputs")?);
        let sections = Value::Table(table).try_into();
        let sections = sections.with_context(|| format!("{} is malformed", path.display()))?;
        let inputs = Inputs { sections };
        if inputs.digest() != digest {
            bail!("{}: `inputs` is not the digest of the sections below it", path.display());
        }
        Ok(Self { object, inputs })
    }

    /// The file's text.
    pub(crate) fn render(&self) -> String {
        let mut text = format!(
            "# What portsteer.bpf.o was built from. `cargo xtask ebpf` writes this file,\n\
             # `cargo xtask ebpf --check` compares it. Long numbers are SHA-256.\n\
             object = \"{}\"\ninputs = \"{}\" # of all that follows\n",
            self.object,
            self.inputs.digest(),
        );
        for (section, entries) in &self.inputs.sections {
            let _ = write!(text, "\n[{section}]\n");
            for (name, value) in entries {
                let _ = writeln!(text, "{} = {}", one_line_text(name), one_line_text(value));
            }
        }
        text
    }
}

/// The SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Bytes as digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The names of the dependencies that a crate is built with, for whatever target.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let mut names = BTreeSet::new();
    for table in tables {
        for kind in ["dependencies", "build-dependencies"] {
            names.extend(
                table
                    .get(kind)
                    .and_then(Value::as_table)
                    .into_iter()
                    .flat_map(Table::keys)
                    .cloned(),
            );
        }
    }
    names
}

/// A lock file entry's dependencies: `name`, `name version` or `name version (source)`.
fn edges(package: &Value) -> impl Iterator<Item = String> {
    let list = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned)
}

fn edge_name(edge: &str) -> &str {
    edge.split(' ').next().unwrap_or(edge)
}

fn read_toml(path: &Path) -> Result<Table> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("{} is malformed", path.display()))
}

/// A value as it would stand behind `key =`; a plain text without its quotes.
fn one_line(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn one_line_text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
