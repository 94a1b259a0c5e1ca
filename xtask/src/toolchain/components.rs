//! The nightly's components, compared file by file with checksums that were written down when the nightly was
//! chosen: rustup holds what it downloads against what the same server says of it, and against nothing else.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::NIGHTLY;
use crate::digest::hexadecimal;

/// The components that make the eBPF object or run while it is made, as rustup calls them on a host, with the
/// SHA-256 over their files (see [`sum`]).
///
/// A new nightly's are in the message of `cargo xtask setup`. `docs/releasing.md` says how to hold them against
/// Rust's signing key.
const PINNED: &[(&str, &str)] = &[
    (
        "cargo-x86_64-unknown-linux-gnu",
        "58999cde3864264a2b8b0df692e3d9fa2845d4097820e22fff0226764e1344f5",
    ),
    ("rust-src", "885def630b94455156a7a7de12b562e4ee4cea828ccf4e1b17f404c05ec1f897"),
    (
        "rust-std-x86_64-unknown-linux-gnu",
        "aa491866adf42895c9901d82718adc5b3871972de96011b6518444fa1366dacd",
    ),
    (
        "rustc-x86_64-unknown-linux-gnu",
        "99c822cbb3becd62b14d1d5a28af657858b89c955d0624657d29ec0e81ed6b6f",
    ),
];

/// Fails unless every pinned component has its checksum.
pub(super) fn check(sysroot: &Path) -> Result<()> {
    check_against(sysroot, PINNED)
}

fn check_against(sysroot: &Path, pinned: &[(&str, &str)]) -> Result<()> {
    for (component, pinned) in pinned {
        let found = sum(sysroot, component).with_context(|| {
            format!(
                "the component {component} of {NIGHTLY} is not whole: `rustup toolchain uninstall {NIGHTLY}`, \
                 then `cargo xtask setup` (checksums are pinned for x86_64-unknown-linux-gnu alone)"
            )
        })?;
        if found != *pinned {
            bail!(
                "the component {component} of {NIGHTLY} in {} has the SHA-256 {found}, and {pinned} is pinned in \
                 xtask/src/toolchain/components.rs: nothing was built with it. Files were changed since it was \
                 installed (`rustup toolchain uninstall {NIGHTLY}` and `cargo xtask setup` get it again), or \
                 it came from a server that has another one",
                sysroot.display()
            );
        }
    }
    Ok(())
}

/// The SHA-256 over a component's files: of lines as `sha256sum` writes them, sorted by path.
fn sum(sysroot: &Path, component: &str) -> Result<String> {
    let list = sysroot.join("lib/rustlib").join(format!("manifest-{component}"));
    let list =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let mut sums = BTreeMap::new();
    for line in list.lines() {
        let Some(path) = line.strip_prefix("file:") else {
            bail!("the list of its files has the line `{line}`");
        };
        sums.insert(path, file_sum(&sysroot.join(path))?);
    }
    let lines: String = sums.iter().map(|(path, sum)| format!("{sum}  {path}\n")).collect();
    Ok(hexadecimal(&Sha256::digest(lines)))
}

fn file_sum(path: &Path) -> Result<String> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).with_context(reading)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            len => hasher.update(&block[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{check_against, sum};

    /// A toolchain of one component with two files.
    fn toolchain(directory: &Path) {
        for (path, content) in [
            ("bin/rustc", "the compiler"),
            ("lib/libLLVM.so", "the library"),
            ("lib/rustlib/manifest-rustc", "file:lib/libLLVM.so\nfile:bin/rustc\n"),
        ] {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn a_component_is_what_was_pinned_or_named_in_the_refusal() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        toolchain(directory);
        // (cd DIRECTORY; sha256sum bin/rustc lib/libLLVM.so | sha256sum)
        let pinned = "f287c2ed88c82ab391f05227cfb213384892799e0c2c56d5cf507f66962f584c";
        assert_eq!(sum(directory, "rustc").unwrap(), pinned);
        check_against(directory, &[("rustc", pinned)]).unwrap();

        // A byte of the library is another one.
        fs::write(directory.join("lib/libLLVM.so"), "the Library").unwrap();
        let error = check_against(directory, &[("rustc", pinned)]).unwrap_err().to_string();
        assert!(error.contains("component rustc") && error.contains(pinned), "{error}");

        // The list leaves the changed file out.
        fs::write(directory.join("lib/rustlib/manifest-rustc"), "file:bin/rustc\n").unwrap();
        assert!(check_against(directory, &[("rustc", pinned)]).is_err());

        // A file is missing.
        toolchain(directory);
        fs::remove_file(directory.join("bin/rustc")).unwrap();
        let error = format!("{:#}", check_against(directory, &[("rustc", pinned)]).unwrap_err());
        assert!(error.contains("not whole") && error.contains("bin/rustc"), "{error}");
    }
}
