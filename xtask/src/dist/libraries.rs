//! The libraries in the binary, as cargo knows them.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    musl::{TARGET, this_cargo},
    process::output,
};

/// What cargo says of the packages.
#[derive(Debug)]
pub(super) struct Libraries {
    metadata: Value,
    /// The packages in the binary.
    linked: Vec<Value>,
    /// All packages of whatever target.
    all: Value,
}

impl Libraries {
    /// Asks cargo.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let metadata = |more: &[&str]| -> Result<Value> {
            let mut command = Command::new(this_cargo());
            command.args(["metadata", "--locked", "--format-version", "1"]).args(more);
            Ok(serde_json::from_str(&output(command.current_dir(root))?)?)
        };
        let (here, all) = (metadata(&["--filter-platform", TARGET])?, metadata(&[])?);
        let linked = linked(&here).context("cargo metadata is not as it was")?;
        Ok(Self { linked: linked.into_iter().cloned().collect(), metadata: here, all })
    }

    /// A package by name and version, of whatever target.
    pub(super) fn find(&self, name: &str, version: &str) -> Option<&Value> {
        let packages = self.all["packages"].as_array()?;
        packages.iter().find(|it| word(it, "name") == name && word(it, "version") == version)
    }

    /// Those that are not portsteer's own, by name and version.
    pub(super) fn packages(&self) -> &[Value] {
        &self.linked
    }

    /// The ids of the packages in the binary that this one is built with. Portsteer's own stand for what they
    /// are built with.
    pub(super) fn dependencies(&self, id: &str) -> BTreeSet<&str> {
        let (mut next, mut seen, mut found) = (vec![id], BTreeSet::new(), BTreeSet::new());
        while let Some(id) = next.pop() {
            let nodes = self.metadata["resolve"]["nodes"].as_array().into_iter().flatten();
            for node in nodes.filter(|node| node["id"] == id) {
                for dependency in node["dependencies"].as_array().into_iter().flatten() {
                    let Some(dependency) = dependency.as_str() else { continue };
                    if self.linked.iter().any(|package| package["id"] == dependency) {
                        found.insert(dependency);
                    } else if is_own(&self.metadata, dependency) && seen.insert(dependency) {
                        next.push(dependency);
                    }
                }
            }
        }
        found
    }

    /// The id of the package with the binary.
    pub(super) fn portsteer(&self) -> &str {
        let packages = self.metadata["packages"].as_array().into_iter().flatten();
        packages
            .filter(|package| package["name"] == "portsteer")
            .map(|it| word(it, "id"))
            .next()
            .unwrap_or_default()
    }
}

fn is_own(metadata: &Value, id: &str) -> bool {
    let members = metadata["workspace_members"].as_array();
    members.is_some_and(|members| members.iter().any(|member| member == id))
}

/// The packages outside of the workspace whose code is in the binary, by name and version.
fn linked(metadata: &Value) -> Option<Vec<&Value>> {
    let packages = metadata["packages"].as_array()?;
    let nodes = metadata["resolve"]["nodes"].as_array()?;
    let package = |id: &str| packages.iter().find(|package| package["id"] == id);
    let mut next = vec![packages.iter().find(|package| package["name"] == "portsteer")?];
    let mut found = BTreeSet::new();
    while let Some(reached) = next.pop() {
        let runs_in_the_compiler = reached["targets"].as_array()?.iter().any(|target| {
            target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"proc-macro".into()))
        });
        if runs_in_the_compiler || !found.insert(reached["id"].as_str()?) {
            continue;
        }
        let node = nodes.iter().find(|node| node["id"] == reached["id"])?;
        for dependency in node["deps"].as_array()? {
            let is_linked = |kind: &Value| kind["kind"].is_null();
            if dependency["dep_kinds"].as_array()?.iter().any(is_linked) {
                next.push(package(dependency["pkg"].as_str()?)?);
            }
        }
    }
    let mut found: Vec<&Value> = found.into_iter().filter_map(package).collect();
    found.retain(|package| !package["source"].is_null());
    found.sort_by_key(|package| (word(package, "name"), word(package, "version")));
    Some(found)
}

/// A text in what cargo says.
pub(super) fn word<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or("unknown")
}
