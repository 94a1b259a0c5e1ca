//! The binary of the version before, whose pins have another layout: what the tests upgrade from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    musl::{self, TARGET, link_statically, this_cargo},
    process::{output, run, say},
    workspace,
};

/// The last commit whose pins have layout 8.
const COMMIT: &str = "4185f3d86df421d00ed191213dcbd61662a29db3";

/// What tells the tests where the binary is.
pub(crate) const VARIABLE: &str = "PORTSTEER_BEFORE";

/// What tells them that this checkout cannot have it.
pub(crate) const SHALLOW: &str = "PORTSTEER_SHALLOW";

/// Whether this checkout was made without its history.
pub(crate) fn is_shallow() -> Result<bool> {
    let root = workspace::root()?;
    let mut git = Command::new("git");
    let asked = output(git.args(["rev-parse", "--is-shallow-repository"]).current_dir(root));
    // What is no checkout has no history either.
    Ok(asked.map_or(true, |answer| answer.trim() == "true"))
}

/// Builds it, unless that was done before: linked statically, so that it runs in a guest too. `None` where this
/// checkout does not have the commit; the tests that need it say so, and fail where everything has to be tried.
pub(crate) fn binary() -> Result<Option<PathBuf>> {
    let root = workspace::root()?;
    let directory = root.join("target/before");
    let binary = directory.join(format!("portsteer-{}", &COMMIT[..12]));
    if binary.is_file() {
        return Ok(Some(binary));
    }
    let sources = directory.join("sources");
    if let Err(error) = check_out(&root, &sources) {
        say(format!("no version before to upgrade from: {error:#}"));
        return Ok(None);
    }
    say(format!("building the version before (commit {COMMIT}), which tests upgrade from"));
    musl::add_target()?;
    let mut cargo = Command::new(this_cargo());
    link_statically(&mut cargo, &directory.join("target"));
    run(cargo
        .args(["build", "--locked", "--package", "portsteer", "--bin", "portsteer"])
        .current_dir(&sources)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1"))?;
    let built = directory.join("target").join(TARGET).join("debug/portsteer");
    fs::copy(&built, &binary)
        .with_context(|| format!("cannot copy {} to {}", built.display(), binary.display()))?;
    Ok(Some(binary))
}

/// Writes the commit's files to a directory.
fn check_out(root: &Path, sources: &Path) -> Result<()> {
    match fs::remove_dir_all(sources) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", sources.display()));
        }
        _ => {}
    }
    fs::create_dir_all(sources).with_context(|| format!("cannot make {}", sources.display()))?;
    let archive = sources.with_extension("tar");
    run(Command::new("git")
        .args(["archive", "--format=tar", "--output"])
        .arg(&archive)
        .arg(COMMIT)
        .current_dir(root))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(sources))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}
