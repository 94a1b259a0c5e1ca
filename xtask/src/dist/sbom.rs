//! The list of what is in the binary (a software bill of materials), as CycloneDX 1.5 in JSON: the libraries by
//! what Cargo.lock pins, and the eBPF object by what its digest file says. The same sources give the same bytes, so
//! it has no serial number of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toml::Table;

use super::libraries::{Libraries, word};
use crate::{
    digest::{self, sha256},
    process::output,
};

/// How the binary is called in the list, and how the object inside of it.
const BINARY: &str = "portsteer";
const OBJECT: &str = "portsteer.bpf.o";

/// SHA-256 sums that were written down when the sources were.
#[derive(Debug)]
pub(super) struct Sums {
    /// Those of the crates in Cargo.lock, by name and version.
    crates: BTreeMap<(String, String), String>,
    /// That of the object.
    object: String,
    /// What the object was built with, by name and version.
    object_crates: BTreeSet<(String, String)>,
    /// The compiler of the binary, which its standard library comes from.
    rust: String,
}

impl Sums {
    /// Reads them.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let table = |path: &str| -> Result<Table> {
            let path = root.join(path);
            let text = fs::read_to_string(&path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            text.parse().with_context(|| format!("{} is no TOML", path.display()))
        };
        let rust = output(Command::new("rustc").arg("--version").current_dir(root))?;
        let rust = rust.split(' ').nth(1).context("rustc does not tell its version")?;
        Self::from_tables(&table("Cargo.lock")?, &table(digest::PATH)?, rust)
            .with_context(|| format!("Cargo.lock and {} are not as they were", digest::PATH))
    }

    fn from_tables(lock: &Table, object: &Table, rust: &str) -> Option<Self> {
        let mut crates = BTreeMap::new();
        for package in lock.get("package")?.as_array()? {
            let text = |key| Some(package.get(key)?.as_str()?.to_owned());
            if let Some(sum) = text("checksum") {
                crates.insert((text("name")?, text("version")?), sum);
            }
        }
        let names = object.get("packages")?.as_table()?.keys();
        let names = names.filter_map(|name| name.split_once(' '));
        Some(Self {
            crates,
            object: object.get("object")?.as_str()?.to_owned(),
            object_crates: names.map(|(name, version)| (name.into(), version.into())).collect(),
            rust: rust.trim().to_owned(),
        })
    }
}

/// Writes the list for a binary of this version; `time` is in seconds since 1970.
pub(super) fn render(
    libraries: &Libraries,
    sums: &Sums,
    binary: &[u8],
    version: &str,
    time: u64,
) -> Result<String> {
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for package in libraries.packages() {
        let reference = reference(package);
        components.insert(reference.clone(), component(package, sums));
        dependencies.insert(reference, references(libraries, word(package, "id")));
    }
    let mut needed = references(libraries, libraries.portsteer());
    needed.extend([OBJECT.to_owned(), "rust-std".to_owned(), "musl".to_owned()]);
    dependencies.insert(BINARY.to_owned(), needed);

    let mut in_object = BTreeSet::new();
    for (name, version) in &sums.object_crates {
        let package = libraries
            .find(name, version)
            .with_context(|| format!("cargo does not know {name} {version}"))?;
        in_object.insert(reference(package));
        components.entry(reference(package)).or_insert_with(|| component(package, sums));
        dependencies.entry(reference(package)).or_default();
    }
    dependencies.insert(OBJECT.to_owned(), in_object);
    components.insert(
        OBJECT.to_owned(),
        json!({
            "type": "file", "bom-ref": OBJECT, "name": OBJECT, "version": version,
            "description": "the eBPF program inside of the binary",
            "licenses": [{ "expression": "GPL-2.0-only OR MIT" }],
            "hashes": [{ "alg": "SHA-256", "content": sums.object }],
        }),
    );
    for (name, version, licence) in [
        ("rust-std", Some(&sums.rust), "MIT OR Apache-2.0"),
        // The one that comes with the compiler, which does not tell its version.
        ("musl", None, "MIT"),
    ] {
        let mut component = json!({
            "type": "library", "bom-ref": name, "name": name,
            "licenses": [{ "expression": licence }],
        });
        if let Some(version) = version {
            component["version"] = json!(version);
        }
        components.insert(name.to_owned(), component);
        dependencies.insert(name.to_owned(), BTreeSet::new());
    }

    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time));
    let dependencies: Vec<_> = dependencies
        .into_iter()
        .map(|(reference, needs)| json!({ "ref": reference, "dependsOn": needs }))
        .collect();
    let list = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.to_string(),
            "component": {
                "type": "application", "bom-ref": BINARY, "name": BINARY, "version": version,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
                "hashes": [{ "alg": "SHA-256", "content": sha256(binary) }],
            },
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

/// What a package is called in the list: its package URL.
fn reference(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", word(package, "name"), word(package, "version").replace('+', "%2B"))
}

/// What a package is built with, as far as it is in the binary.
fn references(libraries: &Libraries, id: &str) -> BTreeSet<String> {
    let needed = libraries.dependencies(id);
    let packages = libraries.packages().iter();
    packages.filter(|package| needed.contains(word(package, "id"))).map(reference).collect()
}

fn component(package: &Value, sums: &Sums) -> Value {
    let (name, version) = (word(package, "name"), word(package, "version"));
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": name,
        "version": version,
        "purl": reference(package),
    });
    if let Some(licence) = package["license"].as_str() {
        // As crates wrote it before there were expressions.
        let licence = if licence.contains(" / ") {
            licence.replace(" / ", " OR ")
        } else {
            licence.replace('/', " OR ")
        };
        component["licenses"] = json!([{ "expression": licence }]);
    }
    if let Some(sum) = sums.crates.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cyclonedx_bom::{models::bom::SpecVersion, prelude::*};
    use serde_json::Value;

    use super::{BINARY, OBJECT, Sums, render};
    use crate::{digest::sha256, dist::libraries::Libraries, workspace};

    fn list() -> String {
        let root = workspace::root().unwrap();
        let libraries = Libraries::read(&root).unwrap();
        let sums = Sums::read(&root).unwrap();
        render(&libraries, &sums, b"the binary", "1.2.3", 1_700_000_000).unwrap()
    }

    #[test]
    fn the_list_is_valid_cyclonedx() {
        let list = Bom::parse_from_json(list().as_bytes()).expect("CycloneDX in JSON");
        let result = list.validate_version(SpecVersion::V1_5);
        assert!(result.passed(), "{result:#?}");
    }

    #[test]
    fn the_list_has_everything_that_is_linked_with_its_sum() {
        let list: Value = serde_json::from_str(&list()).unwrap();
        let binary = &list["metadata"]["component"];
        assert_eq!(binary["hashes"][0]["content"], sha256(b"the binary"));
        assert_eq!(list["metadata"]["timestamp"], "2023-11-14T22:13:20Z");

        let components = list["components"].as_array().unwrap();
        let find = |name: &str| components.iter().find(|component| component["name"] == name);
        for name in ["aya", "aya-ebpf", "tokio", "serde"] {
            let component = find(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(component["hashes"][0]["content"].as_str().unwrap().len(), 64, "{name}");
            assert!(component["licenses"][0]["expression"].is_string(), "{name}");
        }
        let object =
            std::fs::read(workspace::root().unwrap().join("portsteer-ebpf/portsteer.bpf.o"));
        assert_eq!(find(OBJECT).unwrap()["hashes"][0]["content"], sha256(&object.unwrap()));
        // Tests are not in the binary, and neither is what runs in the compiler alone.
        for name in ["proptest", "plotters", "cyclonedx-bom", "clap_derive"] {
            assert!(find(name).is_none(), "{name} is in the list");
        }

        // Whatever is needed is in the list, and whatever is in the list is needed.
        let known: BTreeSet<_> =
            components.iter().map(|it| it["bom-ref"].as_str().unwrap()).collect();
        let mut needed = BTreeSet::new();
        for entry in list["dependencies"].as_array().unwrap() {
            let of = entry["ref"].as_str().unwrap();
            assert!(of == BINARY || known.contains(of), "{of}");
            needed.extend(
                entry["dependsOn"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()),
            );
        }
        assert_eq!(needed, known);
    }
}
