//! The signature of the sums, made and checked with OpenSSH's own tool: users have it already, and a key in a
//! hardware token signs as well as one in a file.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{exists, say};

/// What a signature is for: one made for another purpose does not fit (ssh-keygen(1), `-n`).
const NAMESPACE: &str = "portsteer-release";

/// Signs a file; the signature is beside it, with `.sig` at the end of its name.
pub(super) fn sign(key: &Path, file: &Path) -> Result<()> {
    if !exists("ssh-keygen") {
        bail!("ssh-keygen is missing, which signs: apt-get install openssh-client");
    }
    remove(file)?;
    let mut command = Command::new("ssh-keygen");
    command.args(["-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key).arg(file);
    // It may ask for a passphrase, so it has the terminal.
    let status = command.status().context("cannot run ssh-keygen")?;
    let signature = signature_of(file);
    if !status.success() || !signature.is_file() {
        bail!("{} is not signed: ssh-keygen has said why ({status})", file.display());
    }
    say(format!("{}: signed with {}", signature.display(), key.display()));
    Ok(())
}

/// Removes a file's signature, if it has one.
pub(super) fn remove(file: &Path) -> Result<()> {
    let signature = signature_of(file);
    match fs::remove_file(&signature) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", signature.display()))
        }
        _ => Ok(()),
    }
}

fn signature_of(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".sig");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::Path,
        process::{Command, Stdio},
    };

    use super::{remove, sign, signature_of};

    /// The check that docs/releasing.md tells a user to make.
    fn is_genuine(directory: &Path) -> bool {
        let mut command = Command::new("ssh-keygen");
        command.args(["-Y", "verify", "-f", "allowed_signers", "-I", "portsteer"]);
        command.args(["-n", "portsteer-release", "-s", "SHA256SUMS.sig"]);
        command.stdin(File::open(directory.join("SHA256SUMS")).unwrap());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir(directory).status().unwrap().success()
    }

    fn new_key(path: &Path) -> String {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f"]).arg(path);
        assert!(command.status().unwrap().success());
        fs::read_to_string(path.with_extension("pub")).unwrap()
    }

    #[test]
    fn a_signature_holds_for_its_key_and_for_the_signed_bytes_alone() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let (key, sums) = (directory.join("key"), directory.join("SHA256SUMS"));
        let signers = directory.join("allowed_signers");
        fs::write(&signers, format!("portsteer {}", new_key(&key))).unwrap();
        fs::write(&sums, "00  portsteer.deb\n").unwrap();
        sign(&key, &sums).unwrap();
        assert!(is_genuine(directory));

        // Other bytes, then another key, then again this key.
        fs::write(&sums, "01  portsteer.deb\n").unwrap();
        assert!(!is_genuine(directory));
        let other = directory.join("other");
        new_key(&other);
        sign(&other, &sums).unwrap();
        assert!(!is_genuine(directory));
        sign(&key, &sums).unwrap();
        assert!(is_genuine(directory));

        // No signature of older sums is left beside new ones, be it that they are not to be signed or cannot be.
        assert!(sign(&directory.join("no-such-key"), &sums).is_err());
        assert!(!signature_of(&sums).exists());
        remove(&sums).unwrap();
    }
}
