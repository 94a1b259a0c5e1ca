//! The licences of the libraries that the binary is linked with, which ask to be passed on with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    musl::{TARGET, this_cargo},
    process::output,
};

/// What is linked without being a crate in Cargo.lock.
const HEAD: &str = "\
What the binary portsteer is linked with, and the licences that came with it. Of several to choose
from, MIT.

Rust's standard library, MIT OR Apache-2.0, Copyright (c) The Rust Project contributors
musl, MIT, Copyright (c) 2005-2020 Rich Felker, et al.
";

/// The list of libraries, then each licence's text after the names of those that have it.
pub(super) fn of_libraries(root: &Path) -> Result<String> {
    let mut command = Command::new(this_cargo());
    command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]);
    let metadata: Value = serde_json::from_str(&output(command.current_dir(root))?)?;

    let mut text = HEAD.to_owned();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let libraries = libraries(&metadata).context("cargo metadata is not as it was")?;
    for library in libraries {
        let name = format!("{} {}", word(library, "name"), word(library, "version"));
        text.push_str(&format!("{name}, {}\n", word(library, "license")));
        let manifest = Path::new(word(library, "manifest_path"));
        for licence in texts_beside(manifest)? {
            texts.entry(licence).or_default().push(name.clone());
        }
    }
    let mut texts: Vec<_> = texts.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort_unstable();
    for (names, licence) in texts {
        let rule = "-".repeat(80);
        text.push_str(&format!("\n{rule}\n{}:\n\n{}\n", names.join(", "), licence.trim_end()));
    }
    Ok(text)
}

/// The packages outside of the workspace whose code is in the binary, by name and version.
fn libraries(metadata: &Value) -> Option<Vec<&Value>> {
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

/// The licences that lie beside a package's manifest; only MIT, where that is one of several.
fn texts_beside(manifest: &Path) -> Result<Vec<String>> {
    let directory = manifest.parent().context("a manifest is in a directory")?;
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let is_licence =
            ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|word| name.starts_with(word));
        if is_licence && path.is_file() {
            files.insert(name, path);
        }
    }
    if files.keys().any(|name| name.contains("MIT")) {
        files.retain(|name, _| name.contains("MIT"));
    }
    let text = |path| Ok(fs::read_to_string(path)?.replace("\r\n", "\n"));
    files.into_values().map(text).collect()
}

fn word<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or("unknown")
}
