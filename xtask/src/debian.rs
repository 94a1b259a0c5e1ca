//! What is got from Debian: the mirror that this machine uses, and tools that are missing here.

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::process::{exists, is_root, output, run, say};

/// Where the archive's signing key stands on Debian.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian mirror of the machine's own sources, whatever suite they name.
pub(crate) fn configured_mirror() -> Result<String> {
    // Without lists, apt asks for all of them.
    let lists = tempfile::tempdir()?;
    let uris = output(
        Command::new("apt-get")
            .arg(format!("--option=Dir::State::Lists={}", lists.path().display()))
            .args(["update", "--print-uris"]),
    )?;
    let mirror = debian_mirror(&uris)
        .context("no Debian mirror among this machine's apt sources: name one with --mirror URI")?;
    Ok(mirror.to_owned())
}

/// The first mirror of Debian itself in apt's list of what an update would fetch, of lines like
/// `'http://HOST/debian/dists/SUITE/InRelease' FILE 0`.
fn debian_mirror(uris: &str) -> Option<&str> {
    uris.lines().find_map(|line| {
        let (mirror, _) = line.strip_prefix('\'')?.split_once("/dists/")?;
        mirror.ends_with("/debian").then_some(mirror)
    })
}

/// Installs a tool where that is wanted, else says how to.
pub(crate) fn ensure(tool: &str, package: &str, install: bool) -> Result<()> {
    if exists(tool) {
        return Ok(());
    }
    let how = format!("apt-get install -y --no-install-recommends {package}");
    if !(install || env::var_os("CI").is_some_and(|value| value == "true")) {
        bail!("{tool} is missing: {how} (or add --install)");
    }
    if !is_root() {
        bail!("{tool} is missing, and only root can install it: {how}");
    }
    say(format!("{tool} is missing: {how}"));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(apt().args(["--quiet", "update"]))?;
    run(apt().args(["install", "--quiet", "-y", "--no-install-recommends", package]))?;
    if !exists(tool) {
        bail!("{how} went well, yet there is no {tool}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_debians_own_and_not_a_neighbour() {
        let uris = "'https://packages.example/apt/dists/tool/InRelease' tool 0\n\
                    'http://mirror.example/debian-security/dists/s/InRelease' security 0\n\
                    'http://mirror.example/debian/dists/s/InRelease' debian 0 \n";
        assert_eq!(debian_mirror(uris), Some("http://mirror.example/debian"));
        assert_eq!(debian_mirror("'http://mirror.example/ubuntu/dists/s/InRelease' u 0"), None);
    }
}
