//! Booting a guest under emulation and telling from its console how it went.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{kernel::Kernel, wires};
use crate::process::say;

/// The emulator.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The beginning of the init's own lines.
const SIGN: &str = "portsteer-vm: ";
/// A console that is silent for so long belongs to a guest that hangs: while a command runs, the
/// init says so every ten seconds.
const SILENCE: Duration = Duration::from_secs(90);
/// The processors, emulated, by one thread for all: with one for each, a processor may run into a
/// breakpoint that another has taken out of the kernel's code already, which no real one does, and
/// kernels that change their XDP dispatcher under load crash.
const EMULATION: [&str; 4] = ["-accel", "tcg,thread=single", "-cpu", "max"];
/// The same without `cmpxchg16b`, as Linux 6.12 does not come up where QEMU 7.2 emulates it. Linux 7 needs it
/// to start BPF timers: what they are allocated with is nothing without (`kmalloc_nolock` in mm/slub.c).
const EMULATION_WITHOUT_CX16: [&str; 4] = ["-accel", "tcg,thread=single", "-cpu", "max,cx16=off"];
/// The machine's own processor.
const KVM: [&str; 4] = ["-accel", "kvm", "-cpu", "host"];
/// How long a guest may take to come up with KVM, which takes a second or two where it works.
const KVM_PROBE: Duration = Duration::from_secs(10);
/// What a kernel may go on to say after its first word of distress.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How much of the console a failure shows.
const TAIL: usize = 30;

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All commands succeeded.
    Success,
    /// These commands failed, and why.
    Failures(Vec<String>),
    /// The kernel crashed, or complained of itself: its words.
    KernelFault(String),
    /// It came up, and then nothing came for a while.
    Hangs,
    /// It came up and went on talking beyond the time that its commands have together.
    TooSlow,
    /// It did not come as far as the init: why the wait was over.
    DoesNotBoot(&'static str),
    /// It came up and stopped without a result.
    Stopped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => write!(f, "success"),
            Self::Failures(failures) => write!(f, "failed: {}", failures.join("; ")),
            Self::KernelFault(words) => write!(f, "the guest's kernel crashed: {words}"),
            Self::Hangs => {
                write!(f, "the guest hangs: nothing on its console for {} s", SILENCE.as_secs())
            }
            Self::TooSlow => write!(f, "the guest took longer than its commands may together"),
            Self::DoesNotBoot(why) => write!(f, "the image does not boot: {why}"),
            Self::Stopped => write!(f, "the guest stopped before its commands were done"),
        }
    }
}

/// A boot, and what came of it.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) outcome: Outcome,
    /// What `uname -r` says in the guest, if it got that far.
    pub(super) release: Option<String>,
    /// All of its console.
    pub(super) log: PathBuf,
    /// The last lines of its console.
    pub(super) tail: Vec<String>,
}

/// A line of the kernel's that says how many NICs the guest has: the kernel hands what it does not know
/// to the init, as a variable of its environment.
const NICS: &str = "PORTSTEER_NICS";

/// Where guests are booted.
#[derive(Debug)]
pub(super) struct Machine {
    dir: PathBuf,
    /// Whether hardware virtualization really boots kernels here, once it has been tried.
    kvm: OnceLock<bool>,
    /// Whether the guests have NICs.
    nics: bool,
}

impl Machine {
    /// A machine that keeps its files in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        let obstacle = wires::obstacle();
        if let Some(obstacle) = &obstacle {
            say(format!("the guests have no network interfaces: {obstacle}"));
        }
        Self { dir: dir.to_owned(), kvm: OnceLock::new(), nics: obstacle.is_none() }
    }

    /// Boots a kernel with this file system and waits for its end, at most `limit`.
    pub(super) fn boot(
        &self,
        kernel: &Kernel,
        initramfs: &[u8],
        limit: Duration,
    ) -> Result<Report> {
        let dir = &self.dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let image = dir.join(format!("{}.cpio", kernel.name));
        fs::write(&image, initramfs)
            .with_context(|| format!("cannot write {}", image.display()))?;
        let log = dir.join(format!("{}.log", kernel.name));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;

        let accelerator = match self.has_kvm(kernel, &image) {
            true => &KVM,
            false if kernel.name.starts_with("6.12") => &EMULATION_WITHOUT_CX16,
            false => &EMULATION,
        };
        let mut child = self.start(accelerator, kernel, &image)?;
        let console = child.stdout.take().context("the console is not a pipe")?;
        let lines = read_lines(console, Some((file, kernel.name.clone())));
        let mut watch = Watch::default();
        let ended = watch.follow(&lines, SILENCE, limit);
        stop(&mut child);
        let release = watch.release.clone();
        Ok(Report { outcome: watch.outcome(ended), release, log, tail: watch.tail.into() })
    }

    /// Whether this kernel boots with hardware virtualization. The device may be there and guests
    /// hang all the same, as where the machine is a guest itself, so it is tried, once.
    fn has_kvm(&self, kernel: &Kernel, image: &Path) -> bool {
        *self.kvm.get_or_init(|| {
            let boots = Path::new("/dev/kvm").exists() && self.boots_with_kvm(kernel, image);
            let (with, without) =
                ("guests run with KVM", "guests are emulated: KVM boots none here");
            say(if boots { with } else { without });
            boots
        })
    }

    fn boots_with_kvm(&self, kernel: &Kernel, image: &Path) -> bool {
        let Ok(mut child) = self.start(&KVM, kernel, image) else { return false };
        let Some(console) = child.stdout.take() else { return false };
        let lines = read_lines(console, None);
        let deadline = Instant::now() + KVM_PROBE;
        let mut watch = Watch::default();
        while watch.release.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => watch.take(line),
                Err(_) => break,
            }
        }
        stop(&mut child);
        watch.release.is_some() && watch.fault.is_none()
    }

    fn start(&self, accelerator: &[&str], kernel: &Kernel, image: &Path) -> Result<Child> {
        let nics = if self.nics { wires::arguments() } else { Vec::new() };
        let mut arguments: Vec<OsString> = [QEMU]
            .iter()
            .chain(accelerator)
            .chain(&["-smp", "2", "-m", "1536", "-nodefaults", "-no-user-config"])
            .chain(&["-display", "none", "-no-reboot", "-serial", "stdio"])
            .map(OsString::from)
            .chain(nics.iter().map(OsString::from))
            .collect();
        let count = if self.nics { 2 } else { 0 };
        let append = format!("console=ttyS0 quiet panic=-1 oops=panic {NICS}={count}");
        arguments.extend(["-kernel".into(), kernel.image.clone().into()]);
        arguments.extend(["-initrd".into(), image.into(), "-append".into(), append.into()]);
        let mut command = if self.nics {
            wires::inside(&arguments)
        } else {
            let mut command = Command::new(&arguments[0]);
            command.args(&arguments[1..]);
            command
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot run {QEMU}"))
    }
}

/// Reads the console in a thread of its own: lines into the log and, behind the guest's name, to standard
/// output, if there is a log, and into the channel, which closes when the guest is off.
fn read_lines(console: ChildStdout, mut log: Option<(File, String)>) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = printable(&line);
            if let Some((log, name)) = &mut log {
                // Should the log be lost, the console is still on the terminal.
                let _ = log.write_all(&line);
                println!("{name:>6} | {text}");
            }
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// A line without what moves a terminal's cursor: the firmware clears the screen.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut kept = String::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' => {
                let _ = rest.by_ref().find(char::is_ascii_alphabetic);
            }
            '\t' => kept.push(character),
            _ if character.is_control() => {}
            _ => kept.push(character),
        }
    }
    kept
}

fn stop(child: &mut Child) {
    // It may be off already; killing and waiting are then harmless.
    let _ = child.kill();
    let _ = child.wait();
}

/// Why the wait for a guest was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Off,
    Silent,
    Late,
}

/// What is known from the console so far.
#[derive(Debug, Default)]
struct Watch {
    release: Option<String>,
    succeeded: bool,
    failures: Vec<String>,
    fault: Option<String>,
    tail: VecDeque<String>,
}

impl Watch {
    /// Reads lines until the guest is off or the wait is not worth while.
    fn follow(&mut self, lines: &Receiver<String>, silence: Duration, limit: Duration) -> Ended {
        let mut deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ended::Late;
            }
            match lines.recv_timeout(left.min(silence)) {
                Ok(line) => {
                    let was_well = self.fault.is_none();
                    self.take(line);
                    if was_well && self.fault.is_some() {
                        deadline = deadline.min(Instant::now() + LAST_WORDS);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ended::Off,
                Err(RecvTimeoutError::Timeout) if left > silence => return Ended::Silent,
                Err(RecvTimeoutError::Timeout) => return Ended::Late,
            }
        }
    }

    fn take(&mut self, line: String) {
        if let Some((_, own)) = line.split_once(SIGN) {
            if let Some(release) = own.strip_prefix("up, Linux ") {
                self.release = Some(release.to_owned());
            } else if let Some(failure) = own.strip_prefix("failure ") {
                self.failures.push(failure.to_owned());
            } else if own == "success" {
                self.succeeded = true;
            }
        } else if self.fault.is_none() && is_kernel_fault(&line) {
            self.fault = Some(line.clone());
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn outcome(&self, ended: Ended) -> Outcome {
        if let Some(fault) = &self.fault {
            return Outcome::KernelFault(fault.clone());
        }
        if !self.failures.is_empty() {
            return Outcome::Failures(self.failures.clone());
        }
        if self.succeeded {
            return Outcome::Success;
        }
        match (&self.release, ended) {
            (None, Ended::Off) => Outcome::DoesNotBoot("the machine stopped before its init ran"),
            (None, _) => Outcome::DoesNotBoot("its init never ran"),
            (Some(_), Ended::Off) => Outcome::Stopped,
            (Some(_), Ended::Silent) => Outcome::Hangs,
            (Some(_), Ended::Late) => Outcome::TooSlow,
        }
    }
}

/// Whether the kernel itself says that something is badly wrong. Its lines begin with a time in
/// brackets, which tells them from what the commands print.
fn is_kernel_fault(line: &str) -> bool {
    let Some((time, message)) = line.trim_start().split_once("] ") else {
        return false;
    };
    time.starts_with('[')
        && ["Kernel panic", "BUG: ", "Oops", "kernel BUG at", "general protection fault"]
            .iter()
            .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use super::{Ended, Outcome, Watch, is_kernel_fault, printable};

    fn after(lines: &[&str], ended: Ended) -> Outcome {
        let mut watch = Watch::default();
        for line in lines {
            watch.take((*line).to_owned());
        }
        watch.outcome(ended)
    }

    const UP: &str = "portsteer-vm: up, Linux 6.1.0";

    #[test]
    fn each_way_to_end_is_told_apart() {
        assert_eq!(after(&[UP, "portsteer-vm: success"], Ended::Off), Outcome::Success);
        assert_eq!(
            after(&[UP, "portsteer-vm: failure demo: exit status: 1"], Ended::Off),
            Outcome::Failures(vec!["demo: exit status: 1".to_owned()])
        );
        assert_eq!(after(&[UP], Ended::Silent), Outcome::Hangs);
        assert_eq!(after(&[UP], Ended::Late), Outcome::TooSlow);
        assert_eq!(after(&[UP], Ended::Off), Outcome::Stopped);
        for ended in [Ended::Off, Ended::Silent, Ended::Late] {
            assert!(matches!(after(&["SeaBIOS"], ended), Outcome::DoesNotBoot(_)));
        }
    }

    #[test]
    fn a_crash_counts_for_more_than_a_success() {
        let crash = "[    3.141592] BUG: kernel NULL pointer dereference, address: 0";
        assert_eq!(
            after(&[UP, crash, "portsteer-vm: success"], Ended::Off),
            Outcome::KernelFault(crash.to_owned())
        );
        assert!(is_kernel_fault("[    1.0] Kernel panic - not syncing: VFS"));
        assert!(!is_kernel_fault("test panics_say_BUG: ... ok"));
    }

    #[test]
    fn silence_and_lateness_end_the_wait() {
        let (sender, lines) = channel();
        let mut watch = Watch::default();
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(60));
        assert_eq!(watch.follow(&lines, short, long), Ended::Silent);
        assert_eq!(watch.follow(&lines, long, short), Ended::Late);
        drop(sender);
        assert_eq!(watch.follow(&lines, long, long), Ended::Off);
    }

    #[test]
    fn cursor_movements_are_left_out() {
        assert_eq!(printable(b"\x1bc\x1b[?7l\x1b[2Jhello\tworld\r\n"), "hello\tworld");
    }
}
