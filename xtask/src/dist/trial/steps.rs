//! What is tried, step by step.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::file;
use crate::process::{output, run as run_command, say};

/// The interface that portsteer is attached to.
const INTERFACE: &str = "uplink";
/// The operator's configuration.
const CONFFILE: &str = "etc/portsteer/agent.toml";
/// A policy of the operator's.
const POLICY: &str = "etc/portsteer/policy.toml";
/// What the agent remembers.
const STATE: &str = "var/lib/portsteer";
/// Where it pins what it loads.
const PINS: &str = "sys/fs/bpf/portsteer";
/// What the package documents its use with.
const EXAMPLE: &str = "/usr/share/doc/portsteer/examples/count-only/policy.toml";

/// Runs all steps in a Debian without portsteer, given the packages' versions.
pub(super) fn run(root: &Path, old: &str, new: &str) -> Result<()> {
    let debian = Debian { root };
    debian.set_up()?;
    let bare = links()?;

    step("install", || {
        debian.install(old)?;
        debian.check_installed(old)?;
        ensure!(debian.wanted_by().is_empty(), "it is started at boot, unasked");
        ensure!(links()? == bare, "an interface has changed");
        ensure!(!debian.has(POLICY), "there is a policy that nobody has written");
        let users = debian.read("etc/passwd")?;
        ensure!(users.contains("\nportsteer:x:"), "the user that the agent runs as is missing");
        Ok(())
    })?;

    // As an operator would leave things.
    let edited = debian.append(CONFFILE, "socket_mode = \"0600\"\n")?;
    debian.write(&format!("{STATE}/state"), "what the agent remembers\n")?;
    debian.enable()?;
    debian.attach()?;
    let attached = links()?;
    ensure!(attached != bare, "nothing is attached, so that what follows would show nothing");

    step("upgrade", || {
        debian.install(new)?;
        debian.check_installed(new)?;
        ensure!(debian.read(CONFFILE)? == edited, "the operator's configuration has changed");
        ensure!(debian.has(&format!("{STATE}/state")), "the agent's state is gone");
        ensure!(links()? == attached, "what was in force has changed");
        Ok(())
    })?;

    step("remove, in a chroot", || {
        debian.dpkg(&["--remove", "portsteer"])?;
        debian.check_removed(new)?;
        ensure!(debian.read(CONFFILE)? == edited, "the operator's configuration has changed");
        ensure!(debian.has(&format!("{STATE}/state")), "the agent's state is gone");
        ensure!(links()? == attached, "it took off what is the surrounding host's");
        Ok(())
    })?;

    step("install again, and remove as a machine does", || {
        debian.install(new)?;
        ensure!(debian.read(CONFFILE)? == edited, "the operator's configuration has changed");
        ensure!(links()? == attached, "what was in force has changed");
        debian.write("victim/deep/file", "none of portsteer's\n")?;
        symlink("/victim", debian.root.join(PINS).join("victim"))?;
        run_command(&mut debian.as_machine(&["dpkg", "--remove", "portsteer"]))?;
        ensure!(debian.has("victim/deep/file"), "it followed a link among the pins");
        debian.check_removed(new)?;
        ensure!(links()? == bare, "what was attached still is, or something else has changed");
        Ok(())
    })?;

    step("remove, with the pins' directory led elsewhere", || {
        debian.install(new)?;
        let pins = debian.root.join(PINS);
        fs::rename(&pins, pins.with_file_name("elsewhere"))?;
        symlink("/victim", &pins)?;
        run_command(&mut debian.as_machine(&["dpkg", "--remove", "portsteer"]))?;
        ensure!(debian.has("victim/deep/file"), "it followed the link in its directory's place");
        debian.check_removed(new)?;
        fs::remove_file(&pins)?;
        Ok(())
    })?;

    step("purge", || {
        debian.dpkg(&["--purge", "portsteer"])?;
        debian.check_removed(new)?;
        debian.check_purged()?;
        ensure!(!debian.has("etc/portsteer"), "/etc/portsteer is left");
        Ok(())
    })?;

    step("purge at once, with a policy of the operator's", || {
        debian.install(old)?;
        debian.write(POLICY, "version = 1\n")?;
        debian.dpkg(&["--purge", "portsteer"])?;
        debian.check_purged()?;
        ensure!(debian.has(POLICY), "the operator's policy is gone");
        ensure!(links()? == bare, "an interface has changed");
        Ok(())
    })
}

/// Takes a step, and says so.
fn step(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    body().with_context(|| format!("the step \"{name}\" went wrong"))?;
    say(format!("{name}: as it should be ({:.1} s)", started.elapsed().as_secs_f32()));
    Ok(())
}

/// All interfaces of this namespace, as `ip` shows them.
fn links() -> Result<Value> {
    Ok(serde_json::from_str(&output(Command::new("ip").args(["-details", "-json", "link"]))?)?)
}

/// The Debian in the directory.
struct Debian<'a> {
    root: &'a Path,
}

impl Debian<'_> {
    /// Mounts what a running system has, and makes the interface. All of it is in this process's
    /// namespaces.
    fn set_up(&self) -> Result<()> {
        for (kind, place) in [("proc", "proc"), ("sysfs", "sys"), ("bpf", "sys/fs/bpf")] {
            let mut mount = Command::new("mount");
            run_command(mount.args(["-t", kind, kind]).arg(self.root.join(place)))?;
        }
        for line in [
            format!("link add {INTERFACE} type veth peer name far"),
            format!("link set {INTERFACE} up"),
            "link set far up".to_owned(),
        ] {
            run_command(Command::new("ip").args(line.split(' ')))?;
        }
        // Nothing changes by itself from here on.
        wait_for("the interface", || {
            Ok(links()?.to_string().matches("\"operstate\":\"UP\"").count() == 2)
        })
    }

    fn install(&self, version: &str) -> Result<()> {
        let package = Path::new("/").join(file(version));
        self.dpkg(&["--install", &package.to_string_lossy()])
    }

    /// Everything is there and works.
    fn check_installed(&self, version: &str) -> Result<()> {
        let status = self.output(&[
            "dpkg-query",
            "--show",
            "--showformat=${Status} ${Version}",
            "portsteer",
        ])?;
        ensure!(status == format!("install ok installed {version}"), "dpkg says `{status}`");
        self.check_dpkg_is_content()?;
        let changed = self.output(&["dpkg", "--verify", "portsteer"])?;
        let changed: Vec<_> = changed.lines().filter(|line| !line.ends_with(CONFFILE)).collect();
        ensure!(changed.is_empty(), "`dpkg --verify` says {changed:?}");
        for path in self.files_of(version)? {
            ensure!(self.has(&path), "{path} is not there");
            if path.ends_with(".gz") {
                self.output(&["gzip", "--test", &format!("/{path}")])?;
            }
        }
        for path in ["usr/bin/portsteer", "usr/share/man/man1/portsteer-agent.1.gz", CONFFILE] {
            ensure!(self.has(path), "{path} is not there");
        }
        let said = self.output(&["portsteer", "--version"])?;
        ensure!(said.starts_with("portsteer "), "it calls itself `{said}`");
        let said = self.output(&["portsteer", "check", "--strict", EXAMPLE])?;
        ensure!(said.trim_end().ends_with("fine"), "of the example it says `{said}`");
        Ok(())
    }

    /// Nothing is there but what belongs to the operator.
    fn check_removed(&self, version: &str) -> Result<()> {
        for path in self.files_of(version)?.iter().filter(|path| *path != CONFFILE) {
            ensure!(!self.has(path), "{path} is still there");
        }
        ensure!(!self.has("usr/share/doc/portsteer"), "an empty directory is left");
        self.check_dpkg_is_content()
    }

    /// There is no trace of it.
    fn check_purged(&self) -> Result<()> {
        ensure!(!self.has(CONFFILE), "/{CONFFILE} is left");
        ensure!(!self.has(STATE), "/{STATE} is left");
        ensure!(self.wanted_by().is_empty(), "it would still be started at boot");
        let known = self.output(&["dpkg-query", "--show", "--showformat=${Package}\n"])?;
        ensure!(!known.lines().any(|name| name == "portsteer"), "dpkg still knows of it");
        self.check_dpkg_is_content()
    }

    fn check_dpkg_is_content(&self) -> Result<()> {
        let complaints = self.output(&["dpkg", "--audit"])?;
        ensure!(complaints.is_empty(), "`dpkg --audit` says {complaints}");
        Ok(())
    }

    /// The files in a version's package, without a slash at the beginning.
    fn files_of(&self, version: &str) -> Result<Vec<String>> {
        let package = Path::new("/").join(file(version));
        let list = self.output(&["dpkg-deb", "--contents", &package.to_string_lossy()])?;
        let paths = list.lines().filter_map(|line| line.split_once(" ./")).map(|(_, path)| path);
        let files: Vec<_> = paths
            .filter(|path| !path.is_empty() && !path.ends_with('/'))
            .map(str::to_owned)
            .collect();
        ensure!(files.len() > 20, "the package has only {} files", files.len());
        Ok(files)
    }

    /// What the service manager would start it for.
    fn wanted_by(&self) -> Vec<PathBuf> {
        let units =
            fs::read_dir(self.root.join("etc/systemd/system")).into_iter().flatten().flatten();
        let wants = units.map(|entry| entry.path().join("portsteer.service"));
        wants.filter(|path| path.symlink_metadata().is_ok()).collect()
    }

    /// Has the service manager start it at boot, as `systemctl enable` does.
    fn enable(&self) -> Result<()> {
        let wants = self.root.join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants)?;
        symlink("/usr/lib/systemd/system/portsteer.service", wants.join("portsteer.service"))?;
        Ok(())
    }

    /// Puts the example in force, and ends the agent as a service manager does.
    fn attach(&self) -> Result<()> {
        let example = self.read(EXAMPLE.trim_start_matches('/'))?;
        self.write("trial.toml", &example.replace("eth0", INTERFACE))?;
        let mut command = self.command(&["portsteer", "agent", "--policy", "/trial.toml"]);
        let mut agent = command.stdin(Stdio::null()).spawn().context("no agent")?;
        let is_attached = || {
            let mut status = self.command(&["portsteer", "status"]);
            Ok(status.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
        };
        wait_for("the agent", is_attached)?;
        end(&mut agent)?;
        ensure!(is_attached()?, "it was taken off when the agent ended");
        Ok(())
    }

    fn dpkg(&self, arguments: &[&str]) -> Result<()> {
        let mut words = vec!["dpkg"];
        words.extend(arguments);
        run_command(self.command(&words).stdout(Stdio::null()))
    }

    fn output(&self, words: &[&str]) -> Result<String> {
        output(&mut self.command(words))
    }

    /// A command in a chroot.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        in_its_environment(command.arg(self.root).args(words));
        command
    }

    /// A command in a system of its own, in which nothing tells that there is another one around it.
    fn as_machine(&self, words: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--root"]);
        in_its_environment(command.arg(self.root).args(words));
        command
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).symlink_metadata().is_ok()
    }

    fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.root.join(path)).with_context(|| format!("cannot read /{path}"))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds to a file, and returns all of it.
    fn append(&self, path: &str, text: &str) -> Result<String> {
        let whole = self.read(path)? + text;
        self.write(path, &whole)?;
        Ok(whole)
    }
}

fn in_its_environment(command: &mut Command) {
    command.env_clear().envs([
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("LC_ALL", "C"),
    ]);
}

/// Ends a process by SIGTERM.
fn end(child: &mut Child) -> Result<()> {
    run_command(Command::new("kill").arg(child.id().to_string()))?;
    child.wait()?;
    Ok(())
}

fn wait_for(what: &str, is_there: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_there()? {
        if Instant::now() > end {
            bail!("{what} did not get ready");
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
