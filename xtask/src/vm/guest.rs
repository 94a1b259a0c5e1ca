//! What runs in the guest: portsteer, its tests and the init, linked statically, with the modules
//! in one archive.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{initramfs::Initramfs, kernel::Promise, modules::Module};
use crate::{
    before,
    musl::{self, TARGET, link_statically, this_cargo},
    process::{output, run, say, shown},
    workspace,
};

/// Integration tests of the package portsteer that run in the guest as well as on the host.
const TESTS: &[&str] = &["verdicts", "end_to_end", "fuzz"];
/// What they read of the source tree, at the place where it was when they were built.
const INPUTS: [&str; 2] = ["fuzz/seeds", "fuzz/regressions"];
/// Of another one, those tests that ask most of the kernel, and for no programs that a guest lacks.
const TESTS_IN_PART: (&str, &[&str]) =
    ("agent", &["trials::", "clocks::", "kills::the_next", "kills::an_upgrade", "upgrades::"]);
/// Those that run where the kernel is too old.
const TESTS_BELOW_FLOOR: &[&str] = &["floor"];
/// How long such a test binary may take there.
const TEST_SECONDS: u32 = 1_500;
/// How long `portsteer demo` may take there.
const DEMO_SECONDS: u32 = 180;
/// How long a command of one's own may take there.
const OWN_SECONDS: u32 = 600;

/// A command that the guest runs.
#[derive(Debug, Clone)]
pub(super) struct GuestCommand {
    name: String,
    seconds: u32,
    words: Vec<String>,
}

impl GuestCommand {
    /// A command that somebody typed.
    pub(super) fn own(words: &[String]) -> Result<Self> {
        if words.iter().any(|word| word.contains(['\t', '\n'])) {
            bail!("the guest's commands cannot have tabs or line ends in them");
        }
        Ok(Self { name: words.join(" "), seconds: OWN_SECONDS, words: words.to_vec() })
    }

    /// How long it may take.
    pub(super) fn seconds(&self) -> u32 {
        self.seconds
    }
}

/// The binaries that all kernels' guests share.
#[derive(Debug)]
pub(super) struct Guest {
    programs: Vec<(String, PathBuf)>,
    /// What the tests read, without the slash that its path begins with.
    inputs: Vec<(String, Vec<u8>)>,
    /// What somebody typed, to be run instead of everything.
    own: Option<GuestCommand>,
}

impl Guest {
    /// Builds the binaries: all tests, or, with a command of one's own, the one that it names.
    pub(super) fn build(own: Option<GuestCommand>) -> Result<Self> {
        musl::add_target()?;
        let root = workspace::root()?;
        say("building the guest's programs");
        run(cargo(&root).arg("build").args(["--package", "xtask", "--bin", "vm-init"]).args([
            "--package",
            "portsteer",
            "--bin",
            "portsteer",
        ]))?;
        let built = root.join("target/vm").join(TARGET).join("debug");
        let mut guest = Self {
            programs: vec![
                ("init".to_owned(), built.join("vm-init")),
                ("bin/portsteer".to_owned(), built.join("portsteer")),
            ],
            inputs: Vec::new(),
            own,
        };
        if let Some(before) = before::binary()? {
            guest.programs.push(("bin/portsteer-before".to_owned(), before));
        }
        for directory in INPUTS {
            read_all(&root.join(directory), &mut guest.inputs)?;
        }
        for &test in TESTS.iter().chain([&TESTS_IN_PART.0]).chain(TESTS_BELOW_FLOOR) {
            let is_asked_for =
                |own: &GuestCommand| own.words.first() == Some(&format!("/{}", place(test)));
            if guest.own.as_ref().is_none_or(is_asked_for) {
                guest.programs.push((place(test), build_test(&root, test)?));
            }
        }
        Ok(guest)
    }

    /// What to run on a kernel of which this is expected.
    pub(super) fn commands(&self, promise: Promise) -> Vec<GuestCommand> {
        if let Some(own) = &self.own {
            return vec![own.clone()];
        }
        let test = |&test: &&str| GuestCommand {
            name: format!("test-{test}"),
            seconds: TEST_SECONDS,
            words: vec![format!("/{}", place(test))],
        };
        if promise == Promise::Refuses {
            return TESTS_BELOW_FLOOR.iter().map(test).collect();
        }
        let demo = GuestCommand {
            name: "demo".to_owned(),
            seconds: DEMO_SECONDS,
            words: vec!["/bin/portsteer".to_owned(), "demo".to_owned()],
        };
        let (name, parts) = TESTS_IN_PART;
        let mut in_part = test(&name);
        in_part.words.extend(parts.iter().map(|&part| part.to_owned()));
        std::iter::once(demo).chain(TESTS.iter().map(test)).chain([in_part]).collect()
    }

    /// The guest's file system for a kernel with these modules.
    pub(super) fn initramfs(
        &self,
        modules: &[Module],
        commands: &[GuestCommand],
    ) -> Result<Vec<u8>> {
        let mut archive = Initramfs::default();
        for (path, file) in &self.programs {
            let content =
                fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            archive.program(path, &content);
        }
        for (path, content) in &self.inputs {
            archive.file(path, content);
        }
        let mut list = String::new();
        for module in modules {
            let path = format!("lib/modules/{}.ko", module.name);
            archive.file(&path, &module.content);
            list.push_str(&format!("/{path}\n"));
        }
        archive.file("etc/portsteer-vm/modules", list.as_bytes());
        let lines: Vec<String> = commands
            .iter()
            .map(|command| {
                format!("{}\t{}\t{}\n", command.name, command.seconds, command.words.join("\t"))
            })
            .collect();
        archive.file("etc/portsteer-vm/commands", lines.concat().as_bytes());
        // The init's standard output, before it mounts anything.
        archive.device("dev/console", (5, 1));
        Ok(archive.finish())
    }
}

/// Adds all files below a directory, which may be missing, with their absolute paths.
fn read_all(directory: &Path, files: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let shown = directory.display();
    let mut entries: Vec<PathBuf> = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries
            .and_then(|entries| entries.map(|entry| entry.map(|it| it.path())).collect())
            .with_context(|| format!("cannot read {shown}"))?,
    };
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_all(&path, files)?;
        } else {
            let content =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.push((path.to_string_lossy().trim_start_matches('/').to_owned(), content));
        }
    }
    Ok(())
}

/// Where a test's binary is in the guest.
fn place(test: &str) -> String {
    format!("bin/test-{test}")
}

/// Builds an integration test of the package portsteer and returns the binary.
fn build_test(root: &Path, name: &str) -> Result<PathBuf> {
    let mut command = cargo(root);
    command.args(["test", "--no-run", "--package", "portsteer", "--test", name]);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let messages = output(&mut command)?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name && message["profile"]["test"] == true;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    executable.with_context(|| format!("{} named no executable", shown(&command)))
}

/// Cargo, set up to link statically.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new(this_cargo());
    link_statically(&mut command, &root.join("target/vm"));
    command
        .current_dir(root)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // Emulation is slow enough.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    command
}
