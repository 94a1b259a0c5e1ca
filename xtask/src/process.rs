//! Running other programs: what they inherit, and what is said when they fail.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The variables that reach a program whose result has to be the same everywhere: where things
/// are and how to reach the network, nothing that changes what a compiler does.
const KEPT: &[&str] = &[
    "ALL_PROXY",
    "CARGO_HOME",
    "CI",
    "CURL_CA_BUNDLE",
    "FTP_PROXY",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LOGNAME",
    "NO_PROXY",
    "PATH",
    "RUSTUP_DIST_SERVER",
    "RUSTUP_HOME",
    "RUSTUP_UPDATE_ROOT",
    "TERM",
    "TMPDIR",
    "USER",
];
/// The same, by the beginning of the name.
const KEPT_PREFIXES: &[&str] =
    &["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_", "SSL_CERT_"];

/// A command that inherits [`KEPT`] and no other variable.
pub(crate) fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(env::vars_os().filter(|(name, _)| is_kept(name)));
    command
}

fn is_kept(name: &OsString) -> bool {
    let name = name.to_string_lossy().to_uppercase();
    KEPT.contains(&name.as_str()) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Runs a command to its end; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}\n{}", shown(command), output.status, complaint.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} wrote something other than text", shown(command)))
}

/// Whether a program of this name can be run.
pub(crate) fn exists(program: &str) -> bool {
    let probe = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    !matches!(probe, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    // SAFETY: a plain system call without pointers, which cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Says what is being done.
pub(crate) fn say(what: impl AsRef<str>) {
    eprintln!("xtask: {}", what.as_ref());
}
