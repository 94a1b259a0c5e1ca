//! The fuzzers' inputs that are kept, each in a file that is named by its case.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where they are; `cargo xtask vm` puts them into its guests at the same place.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz")
}

/// Those of a fuzzer, with their names, in order.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let seeds = read(&directory().join("seeds").join(target));
    assert!(!seeds.is_empty(), "there are no seeds for {target}");
    let regressions = directory().join("regressions").join(target);
    let found = if regressions.exists() { read(&regressions) } else { Vec::new() };
    [seeds, found].concat()
}

fn read(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| {
        panic!("{}: {error}", directory.display());
    });
    let mut inputs: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.expect("an input").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("an input can be read"))
        })
        .collect();
    inputs.sort();
    inputs
}
