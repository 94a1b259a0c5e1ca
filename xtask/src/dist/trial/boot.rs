//! The service under a real service manager: the fresh Debian is booted in a container, and what it runs
//! last says how things went.

use std::{fs, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result};

use crate::process::{run as run_command, say};

/// What is run there.
const SCRIPT: &str = include_str!("boot.sh");
/// What has it run.
const UNIT: &str = "[Unit]
After=multi-user.target

[Service]
Type=oneshot
Environment=OLD=@OLD@ NEW=@NEW@
ExecStart=/bin/sh /boot.sh
StandardOutput=file:/boot.log
StandardError=inherit
";
/// What runs the container. Its own traces go with the mounts.
const SET_UP: &str = "mount -t tmpfs tmpfs /run && exec \"$@\"";

/// Boots a Debian that has systemd, and is without portsteer but for its packages of these versions.
pub(super) fn run(root: &Path, old: &str, new: &str) -> Result<()> {
    let started = Instant::now();
    fs::write(root.join("boot.sh"), SCRIPT)?;
    let unit = UNIT.replace("@OLD@", old).replace("@NEW@", new);
    fs::write(root.join("etc/systemd/system/boot-trial.service"), unit)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--propagation", "private", "--", "sh", "-c", SET_UP, "sh"])
        .args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe"])
        // All that a machine's own root may do, but in namespaces.
        .args(["--capability=all", "--system-call-filter=bpf perf_event_open"])
        .args(["--network-veth", "--boot", "--directory"])
        .arg(root)
        .args(["systemd.wants=boot-trial.service", "systemd.show_status=false"]);
    let outcome = run_command(&mut command);
    let log = fs::read_to_string(root.join("boot.log")).unwrap_or_default();
    outcome.with_context(|| format!("the service did not do as it should:\n{log}"))?;
    say(format!("booted: as it should be ({:.1} s)", started.elapsed().as_secs_f32()));
    Ok(())
}
