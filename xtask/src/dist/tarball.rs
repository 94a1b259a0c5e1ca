//! The archive for systems that are not Debian: everything in one directory, to be put where it belongs
//! there.

use anyhow::Result;

use super::{Contents, archive::Files};

/// The name of its directory, and without `.tar.gz` its own.
pub(super) fn name(version: &str) -> String {
    format!("portsteer-{version}-x86_64-linux")
}

/// Packs it.
pub(super) fn pack(contents: &Contents, version: &str) -> Result<Vec<u8>> {
    let mut files = Files::default();
    files.program("portsteer", contents.portsteer.clone());
    for (name, content) in &contents.manual {
        let directory = if name.ends_with(".1") { "man" } else { "completions" };
        files.file(format!("{directory}/{name}"), content.clone());
    }
    for source in [
        "packaging/portsteer.service",
        "packaging/portsteer-pins.service",
        "packaging/portsteer.sysusers",
        "packaging/portsteer.tmpfiles",
        "packaging/agent.toml",
    ] {
        let name = source.rsplit('/').next().unwrap_or(source);
        files.file(name, contents.source(source)?);
    }
    for source in ["README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        files.file(source, contents.source(source)?);
    }
    files.file("LICENSES-LIBRARIES", contents.licences.clone());
    files.file("sbom.cdx.json", contents.sbom.clone());
    for (name, content) in contents.examples()? {
        files.file(format!("examples/{name}"), content);
    }
    files.tar_gz(&format!("{}/", name(version)), contents.time)
}
