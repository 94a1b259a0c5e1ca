//! Man pages and completions, made from the arguments that portsteer takes. An example of its crate
//! writes them, not xtask: that would have to be built with all of portsteer, also when it is to build
//! what portsteer cannot be built without.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    musl::this_cargo,
    process::{run, say},
};

/// All of them, by their names: `portsteer.1` and one for each command, `portsteer.bash`, `_portsteer`,
/// `portsteer.fish`.
pub(super) fn make(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = tempfile::tempdir()?;
    say("writing the man pages and completions");
    run(Command::new(this_cargo())
        .args(["run", "--quiet", "--locked", "--package", "portsteer", "--example", "manual", "--"])
        .arg(directory.path())
        .current_dir(root))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory.path())? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        found.push((name, fs::read(&path)?));
    }
    Ok(found)
}
