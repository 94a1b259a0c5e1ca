//! What stands in the place of this machine's paths in what is compiled, so that it is the same
//! everywhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::workspace;

/// The compiler's flags that put names in the place of these directories, and of those that cargo
/// keeps the sources of dependencies in.
pub(crate) fn flags(directories: &[(&Path, &str)]) -> Result<Vec<String>> {
    let prefixes = prefixes(directories)?;
    let flag =
        |(from, to): (PathBuf, String)| format!("--remap-path-prefix={}={to}", from.display());
    Ok(prefixes.into_iter().map(flag).collect())
}

/// The directories, and what stands in their place. Of several that fit a file, the last counts.
fn prefixes(directories: &[(&Path, &str)]) -> Result<Vec<(PathBuf, String)>> {
    let cargo_home = workspace::cargo_home()?;
    let mut prefixes = vec![(cargo_home.clone(), "/cargo".to_owned())];
    prefixes
        .extend(directories.iter().map(|(path, name)| (path.to_path_buf(), (*name).to_owned())));
    // The directory's name has a number in it that depends on the machine and on cargo.
    if let Ok(registries) = fs::read_dir(cargo_home.join("registry/src")) {
        for registry in registries {
            prefixes.push((registry?.path(), "/cargo/registry".to_owned()));
        }
    }
    // With symbolic links resolved as well: either spelling may reach the compiler.
    for index in 0..prefixes.len() {
        let (path, name) = &prefixes[index];
        if let Ok(resolved) = fs::canonicalize(path)
            && resolved != *path
        {
            prefixes.push((resolved, name.clone()));
        }
    }
    prefixes.sort_by_key(|(path, _)| path.as_os_str().len());
    Ok(prefixes)
}
