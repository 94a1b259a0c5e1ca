//! The licences of the libraries that the binary is linked with, which ask to be passed on with it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};

use super::libraries::{Libraries, word};

/// What is linked without being a crate in Cargo.lock.
const HEAD: &str = "\
What the binary portsteer is linked with, and the licences that came with it. Of several to choose
from, MIT.

Rust's standard library, MIT OR Apache-2.0, Copyright (c) The Rust Project contributors
musl, MIT, Copyright (c) 2005-2020 Rich Felker, et al.
";

/// The list of libraries, then each licence's text after the names of those that have it.
pub(super) fn of_libraries(libraries: &Libraries) -> Result<String> {
    let mut text = HEAD.to_owned();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for library in libraries.packages() {
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
