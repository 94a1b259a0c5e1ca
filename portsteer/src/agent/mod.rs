//! The agent in the foreground: attaches, applies the policy file again on SIGHUP, and ends with
//! the dataplane in force (SIGTERM) or taken off (Ctrl-C, when its time is up, or SIGTERM before
//! that).

use std::{
    fs,
    future::poll_fn,
    io::{self, Read},
    path::{Path, PathBuf},
    task::Poll,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    compile::Interrupt,
    dataplane::{
        Applied, Change, Dataplane, Detached, Error as DataplaneError, Instance, Refreshed,
        TargetChange, TargetState,
    },
    netlink::Watch,
    policy::{self, Policy, diagnostic::Diagnostic, services::Services},
};

mod set_files;

pub use set_files::{MAX_SET_FILES_LEN, PolicyFiles};

/// What the agent is to do.
#[derive(Debug, Clone)]
pub struct Options {
    pub policy: PathBuf,
    pub instance: Instance,
    /// Take the dataplane off after this time.
    pub lifetime: Option<Duration>,
}

/// Why the agent ended without doing its work.
#[derive(Debug)]
pub enum Error {
    /// The policy file cannot be read.
    Unreadable { path: PathBuf, source: io::Error },
    /// The policy has errors.
    Policy { path: PathBuf, text: String, diagnostics: Vec<Diagnostic> },
    /// The kernel, or what is in it already, refused.
    Dataplane(DataplaneError),
    /// The signals cannot be listened for.
    Signals(io::Error),
    /// Changes of the network cannot be followed.
    Events(io::Error),
}

impl From<DataplaneError> for Error {
    fn from(error: DataplaneError) -> Self {
        Self::Dataplane(error)
    }
}

/// A policy file that was read and understood.
#[derive(Debug)]
pub struct LoadedPolicy {
    pub path: PathBuf,
    pub text: String,
    pub policy: Policy,
    /// What the parser and the lints have to say.
    pub warnings: Vec<Diagnostic>,
}

/// The names of ports: the embedded ones, and those that the host's own file adds.
#[must_use]
pub fn services() -> Services {
    match fs::read_to_string("/etc/services") {
        Ok(text) => Services::embedded().with_etc_services(&text),
        Err(_) => Services::embedded(),
    }
}

/// The longest policy file that is read, in bytes. 100,000 rules of every kind are some 12 MiB; a
/// file of this length that is made to be large takes up to 4 GiB while it is read.
const MAX_POLICY_LEN: u64 = 32 << 20;

/// Reads a policy file, and the files that its sets name.
///
/// # Errors
///
/// It cannot be read, or it has errors, which those of the sets' files are among.
pub fn load_policy(path: &Path) -> Result<LoadedPolicy, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_POLICY_LEN + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_POLICY_LEN {
        let text = format!("it is longer than {} MiB", MAX_POLICY_LEN >> 20);
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        unreadable(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is not UTF-8 from byte {at} on"),
        ))
    })?;
    match policy::file::parse_with(&text, &services(), &mut PolicyFiles::beside(path)) {
        Ok(parsed) => {
            let mut warnings = parsed.warnings;
            warnings.extend(policy::lint::lint(&parsed.policy, &host_facts()));
            Ok(LoadedPolicy { path: path.to_owned(), text, policy: parsed.policy, warnings })
        }
        Err(diagnostics) => Err(Error::Policy { path: path.to_owned(), text, diagnostics }),
    }
}

/// What the lints want to know of this host.
fn host_facts() -> policy::lint::HostFacts {
    let read = |path: &str| fs::read_to_string(path).ok();
    let ephemeral_ports = read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| {
        let mut numbers = text.split_whitespace().map(str::parse::<u16>);
        let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (first <= last).then_some(policy::PortRange { first, last })
    });
    let forwards = |path| read(path).map(|text| text.trim() != "0");
    let v4 = forwards("/proc/sys/net/ipv4/ip_forward");
    let v6 = forwards("/proc/sys/net/ipv6/conf/all/forwarding");
    let forwards = match (v4, v6) {
        (None, None) => None,
        (v4, v6) => Some(v4 == Some(true) || v6 == Some(true)),
    };
    policy::lint::HostFacts { ephemeral_ports, forwards }
}

/// What the agent has to say while it runs.
pub trait Reporter {
    /// A policy is in force.
    fn applied(&mut self, loaded: &LoadedPolicy, applied: &Applied);
    /// A policy was not put in force, and the one before is.
    fn refused(&mut self, error: &Error);
    /// Anything else.
    fn note(&mut self, text: &str);
}

/// How often the agent looks at the targets if nothing wakes it.
const TARGET_INTERVAL: Duration = Duration::from_millis(500);

/// How often the agent looks whether somebody has detached its instance.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Why the agent is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Terminated,
    Interrupted,
    TimeIsUp,
}

/// What ends the agent.
#[derive(Debug)]
struct Ends {
    interrupt: Signal,
    terminate: [Signal; 5],
    time: Option<Instant>,
}

impl Ends {
    fn listen() -> Result<Self, Error> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            // Whoever sends one of the others wants it to end as well; unheard, they would end it at
            // once.
            terminate: [
                listen(SignalKind::terminate())?,
                listen(SignalKind::quit())?,
                listen(SignalKind::user_defined1())?,
                listen(SignalKind::user_defined2())?,
                listen(SignalKind::alarm())?,
            ],
            time: None,
        })
    }

    /// Waits for the first of them.
    async fn next(&mut self) -> End {
        let time = self.time;
        let lifetime = async {
            match time {
                Some(time) => sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = any(&mut self.terminate) => End::Terminated,
            _ = self.interrupt.recv() => End::Interrupted,
            () = lifetime => End::TimeIsUp,
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(Error::Signals)
}

/// Runs the agent until a signal or its lifetime ends it.
///
/// # Errors
///
/// The policy cannot be put in force at the start. Later failures are reported and change
/// nothing.
pub async fn run(options: Options, reporter: &mut impl Reporter) -> Result<(), Error> {
    // Listened for before anything is attached, so that no signal finds the agent deaf.
    let mut hangup = listen(SignalKind::hangup())?;
    let mut ends = Ends::listen()?;

    let (mut running, result, mut ended) =
        put_in_force(&options, None, Reading::First, &mut ends).await;
    match result {
        Ok((loaded, applied)) => reporter.applied(&loaded, &applied),
        Err(_) if ended.is_some() => return Ok(()),
        Err(error) => return Err(error),
    }

    // Whatever it says, all is looked at: it only wakes the agent early.
    let watch = Watch::start().map_err(Error::Events)?;
    let mut look = interval(TARGET_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);

    ends.time = options.lifetime.map(|lifetime| Instant::now() + lifetime);
    let mut check = interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if let Some(end) = ended {
            return finish(&options, end, running, reporter);
        }
        tokio::select! {
            _ = hangup.recv() => {
                notice_detach(&mut running, reporter);
                let (after, result, end) = put_in_force(&options, running, Reading::Again, &mut ends).await;
                (running, ended) = (after, end);
                match result {
                    Ok((loaded, applied)) => reporter.applied(&loaded, &applied),
                    // Whoever ends the agent does not ask how far it has come.
                    Err(_) if end.is_some() => {}
                    Err(error) => reporter.refused(&error),
                }
            }
            end = ends.next() => ended = Some(end),
            _ = check.tick() => {
                notice_detach(&mut running, reporter);
                notice_gone_interfaces(running.as_ref(), reporter);
            }
            _ = look.tick() => refresh_targets(running.as_ref(), true, reporter),
            changed = watch.changed() => {
                changed.map_err(Error::Events)?;
                refresh_targets(running.as_ref(), false, reporter);
            }
        }
    }
}

/// Ends as it is asked to.
fn finish(
    options: &Options,
    end: End,
    running: Option<Dataplane>,
    reporter: &mut impl Reporter,
) -> Result<(), Error> {
    match end {
        // A trial is a trial however the agent is ended.
        End::Terminated if options.lifetime.is_some() => {
            take_off(running, "ended before its time", reporter)
        }
        End::Terminated => {
            if running.is_some() {
                let name = options.instance.name();
                reporter.note(&format!(
                    "ending; the dataplane stays in force (`portsteer detach --instance {name}` \
                     takes it off)"
                ));
            }
            Ok(())
        }
        End::Interrupted => take_off(running, "interrupted", reporter),
        End::TimeIsUp => take_off(running, "the time is up", reporter),
    }
}

/// Whether the policy file has been read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    First,
    Again,
}

/// Reads the policy file and puts it in force, in a thread of its own: a large policy takes seconds, and
/// whoever wants the agent to end does not wait for that. Gives the dataplane back, which there is none of
/// if it was a start and failed, and says whether the agent is to end.
async fn put_in_force(
    options: &Options,
    running: Option<Dataplane>,
    reading: Reading,
    ends: &mut Ends,
) -> (Option<Dataplane>, Result<(LoadedPolicy, Applied), Error>, Option<End>) {
    let interrupt = Interrupt::default();
    let mut work = spawn_blocking({
        let (options, interrupt) = (options.clone(), interrupt.clone());
        move || {
            let is_start = running.is_none();
            let mut running = running;
            let result = apply(&options, &mut running, reading, &interrupt);
            if result.is_err()
                && let Some(idle) = running.take_if(|running| is_start && running.is_idle())
            {
                idle.abandon();
            }
            (running, result)
        }
    });
    let mut ended = None;
    let done = tokio::select! {
        done = &mut work => done,
        end = ends.next() => {
            ended = Some(end);
            interrupt.set();
            work.await
        }
    };
    match done {
        Ok((running, result)) => (running, result, ended),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Waits for any of these signals.
async fn any(signals: &mut [Signal]) {
    poll_fn(|context| {
        let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if came { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Follows interfaces, neighbours and CPUs.
fn refresh_targets(running: Option<&Dataplane>, ask_again: bool, reporter: &mut impl Reporter) {
    let Some(dataplane) = running else { return };
    match dataplane.refresh_targets(ask_again) {
        Ok(Refreshed { changes, notes }) => {
            notes.iter().for_each(|note| reporter.note(note));
            for TargetChange { name, state } in changes {
                let hint = match state {
                    TargetState::Refusing => {
                        ": its interface takes no frames from native mode (of a veth pair, the \
                         other end needs GRO on: `ethtool -K DEVICE gro on`)"
                    }
                    _ => "",
                };
                reporter.note(&format!("target `{name}` is {}{hint}", state.name()));
            }
        }
        // Detached a moment ago: the next look at that says so.
        Err(DataplaneError::NotAttached(_)) => {}
        Err(error) => reporter.note(&format!("following the targets: {error}")),
    }
}

fn apply(
    options: &Options,
    running: &mut Option<Dataplane>,
    reading: Reading,
    interrupt: &Interrupt,
) -> Result<(LoadedPolicy, Applied), Error> {
    let path = &options.policy;
    // A pipe would keep the agent waiting for whoever writes to it.
    if reading == Reading::Again && fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let source = io::Error::other("it is not a regular file, and cannot be read again");
        return Err(Error::Unreadable { path: path.clone(), source });
    }
    let loaded = load_policy(path)?;
    let dataplane = match running {
        Some(dataplane) => dataplane,
        None => running.insert(Dataplane::lock(options.instance.clone())?),
    };
    let source = (&*loaded.path.to_string_lossy(), &*loaded.text);
    let applied = dataplane.apply(&loaded.policy, source.0, source.1, interrupt)?;
    Ok((loaded, applied))
}

/// An interface that goes takes its attachment with it.
fn notice_gone_interfaces(running: Option<&Dataplane>, reporter: &mut impl Reporter) {
    let Some(Ok(gone)) = running.map(Dataplane::gone_interfaces) else { return };
    for name in gone {
        reporter.note(&format!(
            "{name} is gone from here, and the policy with it; SIGHUP attaches again what there is"
        ));
    }
}

/// After `portsteer detach` the agent keeps its hands off until it is told to apply again.
fn notice_detach(running: &mut Option<Dataplane>, reporter: &mut impl Reporter) {
    if let Some(dataplane) = running.take_if(|dataplane| dataplane.was_detached()) {
        reporter.note("detached from outside; SIGHUP attaches again");
        match dataplane.switch_back() {
            Ok(notes) => notes.iter().for_each(|note| reporter.note(note)),
            Err(error) => reporter.note(&format!("switching offloads back: {error}")),
        }
    }
}

fn take_off(
    running: Option<Dataplane>,
    cause: &str,
    reporter: &mut impl Reporter,
) -> Result<(), Error> {
    let Some(dataplane) = running else { return Ok(()) };
    match dataplane.detach() {
        Ok(Detached { interfaces, notes }) => {
            reporter.note(&format!("{cause}; detached from {}", interfaces.join(", ")));
            notes.iter().for_each(|note| reporter.note(note));
            Ok(())
        }
        Err(DataplaneError::NotAttached(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How a change of an interface is put.
#[must_use]
pub const fn change_word(change: Change) -> &'static str {
    match change {
        Change::New => "attached to",
        Change::Kept => "still on",
        Change::Upgraded => "program replaced on",
    }
}
