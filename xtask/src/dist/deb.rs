//! The Debian package: an `ar` archive of a format version, an archive of what dpkg has to know, and
//! one of the files. Made without Debian's tools, so that it can be made anywhere.

use anyhow::Result;
use md5::{Digest as _, Md5};

use super::{
    Contents,
    archive::{Files, gzip},
};

/// Where the sources of dpkg's part are.
const SOURCES: &str = "packaging/debian";
/// Files that belong to the operator once they are installed.
const CONFFILES: &[&str] = &["etc/portsteer/agent.toml"];
/// What dpkg runs.
const SCRIPTS: &[&str] = &["postinst", "prerm", "postrm"];
/// Where documentation goes.
const DOC: &str = "usr/share/doc/portsteer";

/// A version as Debian has it, where what comes before 1.0 is not `1.0-rc` but `1.0~rc`.
pub(super) fn version(version: &str) -> String {
    version.replace('-', "~")
}

/// What the file is called.
pub(super) fn name(of: &str) -> String {
    format!("portsteer_{}_amd64.deb", version(of))
}

/// Packs it.
pub(super) fn pack(contents: &Contents, of: &str) -> Result<Vec<u8>> {
    let files = files(contents)?;
    let control = control(contents, &files, of)?;
    let mut archive = ar::Builder::new(Vec::new());
    for (name, content) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", control.tar_gz("./", contents.time)?),
        ("data.tar.gz", files.tar_gz("./", contents.time)?),
    ] {
        let mut header = ar::Header::new(name.into(), content.len() as u64);
        header.set_mode(0o100_644);
        header.set_mtime(contents.time);
        archive.append(&header, content.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

/// What is installed.
fn files(contents: &Contents) -> Result<Files> {
    let mut files = Files::default();
    files.program("usr/bin/portsteer", contents.portsteer.clone());
    for unit in ["portsteer.service", "portsteer-pins.service"] {
        files.file(
            format!("usr/lib/systemd/system/{unit}"),
            contents.source(&format!("packaging/{unit}"))?,
        );
    }
    for place in ["sysusers", "tmpfiles"] {
        files.file(
            format!("usr/lib/{place}.d/portsteer.conf"),
            contents.source(&format!("packaging/portsteer.{place}"))?,
        );
    }
    files.file("etc/portsteer/agent.toml", contents.source("packaging/agent.toml")?);
    for (name, content) in &contents.manual {
        let place = match name.as_str() {
            "portsteer.bash" => "bash-completion/completions/portsteer",
            "portsteer.fish" => "fish/vendor_completions.d/portsteer.fish",
            "_portsteer" => "zsh/vendor-completions/_portsteer",
            page => {
                files.file(format!("usr/share/man/man1/{page}.gz"), gzip(content)?);
                continue;
            }
        };
        files.file(format!("usr/share/{place}"), content.clone());
    }
    files.file(format!("{DOC}/README.md"), contents.source("README.md")?);
    files.file(format!("{DOC}/changelog.gz"), gzip(&contents.source("CHANGELOG.md")?)?);
    files.file(format!("{DOC}/copyright"), contents.source("packaging/debian/copyright")?);
    files.file(format!("{DOC}/LICENSES-LIBRARIES.gz"), gzip(contents.licences.as_bytes())?);
    files.file(format!("{DOC}/sbom.cdx.json.gz"), gzip(contents.sbom.as_bytes())?);
    files.file(format!("{DOC}/SECURITY.md"), contents.source("SECURITY.md")?);
    for (name, content) in contents.examples()? {
        files.file(format!("{DOC}/examples/{name}"), content);
    }
    Ok(files)
}

/// What dpkg has to know.
fn control(contents: &Contents, files: &Files, of: &str) -> Result<Files> {
    // In KiB, by the rule that dpkg-gencontrol has.
    let size: usize = files.iter().map(|(_, content)| content.len().div_ceil(1024)).sum();
    let fields = String::from_utf8(contents.source(&format!("{SOURCES}/control"))?)?
        .replace("@VERSION@", &version(of))
        .replace("@INSTALLED_SIZE@", &(size + files.directories().len()).to_string());
    let mut sums = String::new();
    for (path, content) in files.iter().filter(|(path, _)| !CONFFILES.contains(path)) {
        let sum = Md5::digest(content);
        let digits: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        sums.push_str(&format!("{digits}  {path}\n"));
    }
    let mut control = Files::default();
    control.file("control", fields);
    control.file("md5sums", sums);
    let conffiles: String = CONFFILES.iter().map(|path| format!("/{path}\n")).collect();
    control.file("conffiles", conffiles);
    for script in SCRIPTS {
        control.program(*script, contents.source(&format!("{SOURCES}/{script}"))?);
    }
    Ok(control)
}
