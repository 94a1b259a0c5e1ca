//! The agent: puts policies in force and keeps them so, serves the control socket, and follows the network. It
//! ends with the dataplane in force (SIGTERM) or taken off (Ctrl-C, when its time is up, or SIGTERM before
//! that).
//!
//! Everything that changes something is done by [`control`], one thing at a time, in a thread of its own;
//! meanwhile the loop here listens for whatever ends the agent, and the sockets answer those who only look.

use std::{
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    api::{ApplyAnswer, Kind, Refusal, default_socket},
    compile::{CompileError, Interrupt},
    dataplane::{Applied, Change, Detached, Error as DataplaneError, Instance, kernel::BPFFS},
    netlink::Watch,
    policy::diagnostic::{self, Diagnostic, Source},
};

pub mod access;
pub mod bundle;
mod busy;
pub mod config;
mod confinement;
mod connections;
mod control;
mod history;
mod loading;
mod memory;
mod privileges;
mod server;
mod set_files;
mod store;
mod way_in;

pub use bundle::Bundle;
pub use config::Config;
pub use control::Desired;
pub use loading::{LoadedPolicy, load_policy, services};
pub use server::Description;
pub use set_files::{MAX_SET_FILES_LEN, PolicyFiles};
pub use store::{DEFAULT_DIRECTORY, Store, StoreError};

use connections::{Address, Socket, group_id};
use control::Control;
use server::{Job, Shared};

/// What the agent is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The policy file: put in force at the start, unless `resume` finds something better, and at SIGHUP.
    pub policy: Option<PathBuf>,
    /// Go on with what is in force, else with what was accepted last.
    pub resume: bool,
    pub instance: Instance,
    /// Take the dataplane off after this time.
    pub lifetime: Option<Duration>,
    pub config: Config,
    /// Where policies are kept; None to keep nothing and to listen at no socket.
    pub state: Option<PathBuf>,
}

/// Why the agent did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// The policy file cannot be read.
    Unreadable { path: PathBuf, source: io::Error },
    /// The policy has errors.
    Policy { path: PathBuf, text: String, diagnostics: Vec<Diagnostic> },
    /// The kernel, or what is in it already, refused.
    Dataplane(DataplaneError),
    /// Anything else.
    Refused(Refusal),
    /// The signals cannot be listened for.
    Signals(io::Error),
    /// Changes of the network cannot be followed.
    Events(io::Error),
    /// There is no control socket to be had.
    Socket { path: PathBuf, source: io::Error },
}

impl From<DataplaneError> for Error {
    fn from(error: DataplaneError) -> Self {
        Self::Dataplane(error)
    }
}

impl Error {
    /// What a client is told.
    #[must_use]
    pub fn to_refusal(&self) -> Refusal {
        match self {
            Self::Unreadable { path, source } => {
                let refusal = Refusal::bad_input(format!("{}: {source}", path.display()));
                Refusal { help: access::advice(path, source), ..refusal }
            }
            Self::Policy { path, text, diagnostics } => {
                let count = diagnostics.len();
                let errors = if count == 1 { "an error" } else { "errors" };
                let details = render_diagnostics(&path.display().to_string(), text, diagnostics);
                Refusal {
                    details: Some(details),
                    ..Refusal::bad_input(format!("the policy has {errors}"))
                }
            }
            Self::Dataplane(error) => {
                let kind = match error {
                    DataplaneError::Compile(CompileError::Interrupted) => Kind::Refused,
                    DataplaneError::Compile(_) => Kind::BadInput,
                    DataplaneError::NotAttached(_)
                    | DataplaneError::NoTrial
                    | DataplaneError::TrialOver => Kind::Negative,
                    _ => Kind::Refused,
                };
                let (message, help) = (error.to_string(), error.help());
                Refusal { kind, message, help, details: None }
            }
            Self::Refused(refusal) => refusal.clone(),
            Self::Signals(error) => Refusal::refused(format!("listening for signals: {error}")),
            Self::Events(error) => {
                Refusal::refused(format!("following the network's changes: {error}"))
            }
            Self::Socket { path, source } => {
                let path = path.display();
                match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        Refusal::refused(format!("listening at {path} was not permitted: {source}"))
                            .help("run portsteer as root, or give another path with --socket")
                    }
                    _ => Refusal::refused(format!("the control socket {path}: {source}"))
                        .help("end whoever listens there, or give another path with --socket"),
                }
            }
        }
    }
}

/// What the parser and the lints have to say, as text for people.
fn render_diagnostics(name: &str, text: &str, diagnostics: &[Diagnostic]) -> String {
    let source = Source { name: name.to_owned(), text: text.to_owned() };
    diagnostic::render(&source, diagnostics, false)
}

/// What the agent has to say while it runs.
pub trait Reporter: Send {
    /// A policy is in force, or on trial.
    fn applied(&mut self, answer: &ApplyAnswer);
    /// What another agent left in force was taken over.
    fn taken_over(&mut self, desired: &Desired, applied: &Applied);
    /// A policy was not put in force, and the one before is.
    fn refused(&mut self, error: &Error);
    /// Anything else.
    fn note(&mut self, text: &str);
}

/// How often the agent looks at the targets if nothing wakes it.
const TARGET_INTERVAL: Duration = Duration::from_millis(500);

/// How often the agent looks whether somebody has detached its instance.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How often it looks at the interfaces if nothing wakes it, and tries to keep what it could not keep.
const SURVEY_INTERVAL: Duration = Duration::from_secs(20);

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
        tokio::select! {
            () = any(&mut self.terminate) => End::Terminated,
            _ = self.interrupt.recv() => End::Interrupted,
            () = until(time) => End::TimeIsUp,
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(Error::Signals)
}

/// Waits for a moment; for ever where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
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

/// What does the work and says what comes of it.
struct Hands {
    control: Control,
    reporter: Box<dyn Reporter>,
}

/// The agent's loop.
struct Agent {
    /// Back here whenever nothing is being done.
    hands: Option<Hands>,
    ends: Ends,
    ended: Option<End>,
    shared: Arc<Shared>,
    /// Whether anything was put in force since memory was given back.
    has_worked: bool,
}

impl Agent {
    /// Does something in a thread of its own: a large policy takes seconds, and whoever wants the agent to end
    /// does not wait for that.
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Hands, &Interrupt) -> T + Send + 'static,
    ) -> T {
        let interrupt = Interrupt::default();
        let Some(mut hands) = self.hands.take() else { unreachable!("nothing else is being done") };
        let mut work = spawn_blocking({
            let interrupt = interrupt.clone();
            move || {
                let result = work(&mut hands, &interrupt);
                (hands, result)
            }
        });
        let done = tokio::select! {
            done = &mut work => done,
            end = self.ends.next() => {
                self.ended = Some(end);
                interrupt.set();
                work.await
            }
        };
        match done {
            Ok((hands, result)) => {
                self.shared.show(hands.control.view(), hands.control.history.events());
                self.hands = Some(hands);
                result
            }
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// Does what came over the socket.
    async fn grant(&mut self, job: Job) {
        match job {
            Job::Apply(bundle, how, _room, reply) => {
                self.answer(reply, move |control, interrupt, reporter| {
                    control.apply(bundle, &how, interrupt, reporter)
                })
                .await;
            }
            Job::Edit(request, _room, reply) => {
                self.answer(reply, move |control, interrupt, reporter| {
                    control.edit(&request, interrupt, reporter)
                })
                .await;
            }
            Job::Confirm(reply) => {
                self.answer(reply, |control, _, reporter| control.confirm(reporter)).await;
                self.follow().await;
            }
            Job::Rollback(how, reply) => {
                self.answer(reply, move |control, interrupt, reporter| {
                    control.rollback(&how, interrupt, reporter)
                })
                .await;
                self.follow().await;
            }
            Job::Detach(reply) => {
                self.answer(reply, |control, _, reporter| control.detach(reporter)).await;
            }
        }
    }

    async fn answer<T: Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Result<T, Refusal>>,
        work: impl FnOnce(&mut Control, &Interrupt, &mut dyn Reporter) -> Result<T, Error>
        + Send
        + 'static,
    ) {
        let result = self
            .work(move |hands, interrupt| {
                let Hands { control, reporter } = hands;
                control.notice_detach(&mut **reporter);
                work(control, interrupt, &mut **reporter).map_err(|error| error.to_refusal())
            })
            .await;
        // Whoever asked may be gone.
        let _ = reply.send(result);
        self.has_worked = true;
        // Nobody waits for this.
        self.work(|hands, _| hands.control.keep_history()).await;
    }

    /// Attaches what a trial has kept from being attached as it should be.
    async fn follow(&mut self) {
        self.work(|hands, interrupt| {
            let Hands { control, reporter } = hands;
            control.follow_interfaces(interrupt, &mut **reporter);
        })
        .await;
    }

    fn trial_ends(&self) -> Option<Instant> {
        let ends = self.hands.as_ref().and_then(|hands| hands.control.trial_ends());
        // A moment later than the kernel, which is the one to end it.
        ends.map(|ends| Instant::from_std(ends) + Duration::from_millis(10))
    }
}

/// Runs the agent until a signal or its lifetime ends it.
///
/// # Errors
///
/// The policy cannot be put in force at the start. Later failures are reported and change
/// nothing.
pub async fn run(options: Options, mut reporter: Box<dyn Reporter>) -> Result<(), Error> {
    // Listened for before anything is attached, so that no signal finds the agent deaf.
    let mut hangup = listen(SignalKind::hangup())?;
    let ends = Ends::listen()?;
    let loaded = match &options.policy {
        Some(path) if !options.resume => Some(loading::load_own(path)?),
        _ => None,
    };
    let store = options.state.as_ref().map(|state| Store::new(state, &options.instance));
    let instance = options.instance.clone();
    let mut control = Control::new(instance.clone(), store, options.config.protect.clone());
    control.lock_instance()?;
    let shared = Arc::new(Shared::new(instance));
    let (jobs, mut ordered) = mpsc::channel(server::JOBS);
    let sockets = match &options.state {
        Some(_) => {
            serve(&options, &shared, jobs.clone()).inspect_err(|_| control.abandon_idle())?
        }
        None => Vec::new(),
    };

    // Before there are other threads, which begin with what this one has.
    if let Err(why) = privileges::give_up() {
        reporter.note(&why);
    }
    if let Err(why) = confinement::begin(&written(&options)) {
        reporter.note(&why);
    }
    let mut agent = Agent {
        hands: Some(Hands { control, reporter }),
        ends,
        ended: None,
        shared: Arc::clone(&shared),
        has_worked: true,
    };
    let path = options.policy.clone();
    let result = agent
        .work(move |hands, interrupt| {
            let Hands { control, reporter } = hands;
            let result = match loaded {
                Some(loaded) => control.start_with(loaded, interrupt, &mut **reporter),
                None => control.resume(path.as_deref(), interrupt, &mut **reporter),
            };
            if result.is_err() {
                control.abandon_idle();
            }
            result
        })
        .await;
    match result {
        Ok(()) => {}
        Err(_) if agent.ended.is_some() => return Ok(()),
        Err(error) => return Err(error),
    }
    // Nobody may have asked to be told.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    // Whatever it says, all is looked at: it only wakes the agent early.
    let watch = Watch::start().map_err(Error::Events)?;
    let every = |period| {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    };
    let (mut look, mut check) = (every(TARGET_INTERVAL), every(CHECK_INTERVAL));
    let mut survey = every(SURVEY_INTERVAL);
    agent.ends.time = options.lifetime.map(|lifetime| Instant::now() + lifetime);
    while agent.ended.is_none() {
        let trial_ends = agent.trial_ends();
        let has_targets = agent.hands.as_ref().is_some_and(|it| it.control.has_targets());
        tokio::select! {
            _ = hangup.recv() => reload(&mut agent, options.policy.as_deref()).await,
            Some(job) = ordered.recv() => agent.grant(job).await,
            end = agent.ends.next() => agent.ended = Some(end),
            () = until(trial_ends) => {
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    if let Err(error) = control.look_at_trial(&mut **reporter) {
                        reporter.refused(&error);
                    }
                    control.follow_interfaces(interrupt, &mut **reporter);
                }).await;
            }
            _ = check.tick() => {
                let detached =
                    agent.hands.as_ref().is_some_and(|hands| hands.control.is_detached_outside());
                if detached {
                    agent.work(|hands, _| hands.control.notice_detach(&mut *hands.reporter)).await;
                }
                if std::mem::take(&mut agent.has_worked) {
                    memory::trim();
                }
            }
            _ = look.tick(), if has_targets => {
                agent.work(|hands, _| {
                    hands.control.refresh_targets(true, &mut *hands.reporter);
                }).await;
            }
            changed = watch.changed() => {
                changed.map_err(Error::Events)?;
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    control.notice_detach(&mut **reporter);
                    control.refresh_targets(false, &mut **reporter);
                    control.follow_interfaces(interrupt, &mut **reporter);
                }).await;
            }
            _ = survey.tick() => {
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    control.notice_detach(&mut **reporter);
                    control.follow_interfaces(interrupt, &mut **reporter);
                    control.keep_again(&mut **reporter);
                }).await;
            }
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    for Serving { task, socket } in sockets {
        task.abort();
        // The file goes with it.
        drop(socket);
    }
    match (agent.ended, agent.hands) {
        (Some(end), Some(hands)) => finish(&options, end, hands),
        _ => Ok(()),
    }
}

/// A socket that is served.
struct Serving {
    task: JoinHandle<()>,
    socket: Arc<Socket>,
}

/// The directories that the agent writes in.
fn written(options: &Options) -> Vec<PathBuf> {
    let Options { state, config, instance, .. } = options;
    let socket = config.socket.clone().unwrap_or_else(|| default_socket(instance));
    let sockets = [Some(socket), config.monitor_socket.clone()];
    let beside = sockets.into_iter().flatten().filter_map(|it| Some(it.parent()?.to_owned()));
    state.iter().cloned().chain(beside).chain([PathBuf::from(BPFFS)]).collect()
}

/// Listens at the sockets that are asked for.
fn serve(
    options: &Options,
    shared: &Arc<Shared>,
    jobs: mpsc::Sender<Job>,
) -> Result<Vec<Serving>, Error> {
    let Config { socket, socket_group, socket_mode, .. } = &options.config;
    let control_path = socket.clone().unwrap_or_else(|| default_socket(&options.instance));
    let bind = |path: &Path, group: &Option<String>, mode: Option<config::SocketMode>| {
        let group = match group {
            Some(name) => Some(group_id(name).map_err(|why| {
                Error::Refused(Refusal::bad_input(format!("{}: {why}", path.display())))
            })?),
            None => None,
        };
        let usual = if group.is_some() { 0o660 } else { 0o600 };
        let address =
            Address { path: path.to_owned(), mode: mode.map_or(usual, |mode| mode.0), group };
        Socket::bind(&address)
            .map(Arc::new)
            .map_err(|source| Error::Socket { path: path.to_owned(), source })
    };
    let mut sockets = Vec::new();
    let mut begin = |socket: Arc<Socket>, router: axum::Router| {
        let task = tokio::spawn({
            let socket = Arc::clone(&socket);
            async move { socket.serve(router).await }
        });
        sockets.push(Serving { task, socket });
    };
    begin(
        bind(&control_path, socket_group, *socket_mode)?,
        server::control(Arc::clone(shared), jobs),
    );
    let Config { monitor_socket, monitor_socket_group, monitor_socket_mode, .. } = &options.config;
    if let Some(path) = monitor_socket {
        if *path == control_path {
            let refusal = Refusal::bad_input(format!(
                "{} is the control socket: the one for monitoring is another one",
                path.display()
            ));
            return Err(Error::Refused(refusal));
        }
        let socket = bind(path, monitor_socket_group, *monitor_socket_mode)?;
        begin(socket, server::monitor(Arc::clone(shared)));
    }
    Ok(sockets)
}

/// Reads the policy file again.
async fn reload(agent: &mut Agent, path: Option<&Path>) {
    let path = path.map(Path::to_owned);
    agent
        .work(move |hands, interrupt| {
            let Hands { control, reporter } = hands;
            control.notice_detach(&mut **reporter);
            let Some(path) = path else {
                reporter.note("there is no policy file to read again: `portsteer apply FILE`");
                return;
            };
            match control.reload(&path, interrupt, &mut **reporter) {
                // Whoever ends the agent does not ask how far it has come.
                Err(_) if interrupt.is_set() => {}
                Err(error) => reporter.refused(&error),
                Ok(()) => {}
            }
        })
        .await;
    agent.has_worked = true;
}

/// Ends as it is asked to.
fn finish(options: &Options, end: End, hands: Hands) -> Result<(), Error> {
    let Hands { mut control, mut reporter } = hands;
    let cause = match end {
        // A trial is a trial however the agent is ended.
        End::Terminated if options.lifetime.is_some() => "ended before its time",
        End::Terminated => {
            if control.is_attached() {
                let name = options.instance.name();
                reporter.note(&format!(
                    "ending; the dataplane stays in force (`portsteer detach --instance {name}` \
                     takes it off)"
                ));
            } else {
                control.abandon_idle();
            }
            return Ok(());
        }
        End::Interrupted => "interrupted",
        End::TimeIsUp => "the time is up",
    };
    if let Some(Detached { interfaces, notes }) = control.take_off()? {
        reporter.note(&format!("{cause}; detached from {}", interfaces.join(", ")));
        notes.iter().for_each(|note| reporter.note(note));
    }
    Ok(())
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
