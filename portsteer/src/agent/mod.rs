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
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until},
};

use crate::{
    api::{ApplyAnswer, Kind, Refusal, default_socket},
    compile::{CompileError, Interrupt},
    dataplane::{Applied, Change, Detached, Error as DataplaneError, Instance, kernel::BPFFS},
    netlink::News,
    policy::diagnostic::{self, Diagnostic, Source},
};

pub mod access;
mod built_in;
pub mod bundle;
mod busy;
mod conditions;
pub mod config;
mod confinement;
mod connections;
mod control;
mod described;
mod file_edits;
mod history;
mod loading;
mod looking;
mod memory;
mod orders;
mod pace;
mod privileges;
mod reading;
mod server;
mod set_files;
mod store;
mod threads;
mod way_in;

pub use bundle::Bundle;
pub use config::Config;
pub use control::{Desired, MAX_EDITS};
pub use loading::{LoadedPolicy, load_policy, read_file, services};
pub use server::Description;
pub use set_files::{MAX_SET_FILES_LEN, PolicyFiles};
pub use store::{DEFAULT_DIRECTORY, Store, StoreError};
pub use threads::runtime;

use conditions::Condition;
use connections::{Address, Socket, group_id};
use control::Control;
use orders::{Desk, Order, Orders};
use pace::Followed;
use server::{Denied, Job, Reply, Shared};
use threads::Worker;

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
    /// There is no thread to be had.
    Threads(io::Error),
    /// A second signal has ended it, whatever it was doing.
    Forced,
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
            Self::Threads(error) => {
                Refusal::refused(format!("no thread could be started: {error}"))
                    .help("let it have more: of a systemd unit, `TasksMax=` is the limit")
            }
            Self::Forced => Refusal::refused(
                "ended at once by a second signal, in the midst of something: what is in force stays so, \
                 and the next agent tidies up",
            ),
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
    watchdog: Watchdog,
}

/// Tells systemd that the loop is alive.
#[derive(Debug)]
struct Watchdog {
    /// None where nobody watches.
    due: Option<Interval>,
    /// Since when something is done that the loop waits for.
    busy_since: Option<Instant>,
}

/// How long something may be done before it is taken for hanging: longer than any policy takes.
const LONGEST_WORK: Duration = Duration::from_secs(600);

impl Watchdog {
    fn start() -> Self {
        // Twice in the time in which systemd wants to hear of it (sd_watchdog_enabled(3)).
        let due = sd_notify::watchdog_enabled().map(|time| interval(time / 2));
        Self { due, busy_since: None }
    }

    /// Tells it again and again.
    async fn tell(&mut self) -> std::convert::Infallible {
        loop {
            match &mut self.due {
                Some(due) => due.tick().await,
                None => std::future::pending().await,
            };
            if self.busy_since.is_none_or(|since| since.elapsed() < LONGEST_WORK) {
                // Nobody may have asked to be told.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
        }
    }
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
            watchdog: Watchdog::start(),
        })
    }

    /// Waits for the first of them.
    async fn next(&mut self) -> End {
        let time = self.time;
        tokio::select! {
            () = any(&mut self.terminate) => End::Terminated,
            _ = self.interrupt.recv() => End::Interrupted,
            () = until(time) => End::TimeIsUp,
            never = self.watchdog.tell() => match never {},
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
    worker: Worker,
    ends: Ends,
    ended: Option<End>,
    /// Whether the dataplane is to be taken off however the agent ends.
    is_for_a_time: bool,
    shared: Arc<Shared>,
    /// Whether anything was put in force since memory was given back.
    has_worked: bool,
}

/// Why something is not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// It has done nothing yet, and the agent is to end.
    Undone,
    /// A second signal came.
    Forced,
}

/// How long something is waited for that nobody wants any more, and that has done nothing yet.
const PATIENCE: Duration = Duration::from_millis(500);

impl Ends {
    /// Waits for work. The first signal interrupts it, the second leaves it alone.
    async fn wait_for<T>(
        &mut self,
        work: oneshot::Receiver<std::thread::Result<T>>,
        interrupt: &Interrupt,
        ended: &mut Option<End>,
        may_leave: bool,
    ) -> Result<T, Left> {
        tokio::pin!(work);
        self.watchdog.busy_since = Some(Instant::now());
        let done = loop {
            let is_to_end = ended.is_some();
            tokio::select! {
                done = &mut work => break done,
                end = self.next() => {
                    // Only whoever sends a signal twice has no patience.
                    self.time = None;
                    if is_to_end && end != End::TimeIsUp {
                        return Err(Left::Forced);
                    }
                    ended.get_or_insert(end);
                    interrupt.set();
                }
                () = sleep(PATIENCE), if is_to_end => {
                    if may_leave && *ended == Some(End::Terminated) && interrupt.is_harmless() {
                        return Err(Left::Undone);
                    }
                }
            }
        };
        self.watchdog.busy_since = None;
        match done {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // The worker ends with the agent.
            Err(_) => Err(Left::Forced),
        }
    }
}

impl Agent {
    /// Does something in a thread of its own: a large policy takes seconds, and whoever wants the agent to end
    /// does not wait for that.
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Hands, &Interrupt) -> T + Send + 'static,
    ) -> Result<T, Left> {
        let interrupt = Interrupt::default();
        let Some(mut hands) = self.hands.take() else { unreachable!("nothing else is being done") };
        let work = self.worker.run({
            let interrupt = interrupt.clone();
            move || {
                let result = work(&mut hands, &interrupt);
                (hands, result)
            }
        });
        let may_leave = !self.is_for_a_time;
        let done = self.ends.wait_for(work, &interrupt, &mut self.ended, may_leave);
        let (hands, result) = done.await?;
        self.shared.show(hands.control.view(), hands.control.history.events());
        self.hands = Some(hands);
        Ok(result)
    }

    /// Does what came over the socket.
    async fn grant(&mut self, order: Order) -> Result<(), Left> {
        let Order { condition, job } = order;
        match job {
            Job::Apply(bundle, how, _room, reply) => {
                self.answer(condition, reply, move |control, interrupt, reporter| {
                    control.apply(bundle, &how, interrupt, reporter)
                })
                .await
            }
            Job::Edit(request, _room, reply) => {
                self.answer(condition, reply, move |control, interrupt, reporter| {
                    control.edit(&request, interrupt, reporter)
                })
                .await
            }
            Job::Confirm(reply) => {
                self.answer(condition, reply, |control, _, reporter| control.confirm(reporter))
                    .await?;
                self.follow().await
            }
            Job::Rollback(how, reply) => {
                self.answer(condition, reply, move |control, interrupt, reporter| {
                    control.rollback(&how, interrupt, reporter)
                })
                .await?;
                self.follow().await
            }
            Job::Detach(reply) => {
                self.answer(condition, reply, |control, _, reporter| control.detach(reporter)).await
            }
        }
    }

    async fn answer<T: Send + 'static>(
        &mut self,
        condition: Condition,
        reply: Reply<T>,
        work: impl FnOnce(&mut Control, &Interrupt, &mut dyn Reporter) -> Result<T, Error>
        + Send
        + 'static,
    ) -> Result<(), Left> {
        // Its client has gone a moment ago.
        if reply.is_closed() {
            return Ok(());
        }
        let outcome = self
            .work(move |hands, interrupt| {
                let Hands { control, reporter } = hands;
                control.notice_detach(&mut **reporter);
                let result = match control.unmet(&condition, &mut **reporter) {
                    Some(refusal) => Err(Denied::Unmet(refusal)),
                    None => work(control, interrupt, &mut **reporter)
                        .map_err(|error| Denied::Refused(error.to_refusal())),
                };
                server::Outcome { result, tag: control.tag() }
            })
            .await?;
        // Whoever asked may be gone.
        let _ = reply.send(outcome);
        self.has_worked = true;
        // Nobody waits for this.
        self.work(|hands, _| hands.control.keep_history()).await
    }

    /// Attaches what a trial has kept from being attached as it should be.
    async fn follow(&mut self) -> Result<(), Left> {
        self.work(|hands, interrupt| {
            let Hands { control, reporter } = hands;
            control.follow_interfaces(interrupt, &mut **reporter);
        })
        .await
    }

    fn trial_ends(&self) -> Option<Instant> {
        let ends = self.hands.as_ref().and_then(|hands| hands.control.trial_ends());
        // A moment later than the kernel, which is the one to end it.
        ends.map(|ends| Instant::from_std(ends) + Duration::from_millis(10))
    }
}

/// How the agent has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With all that it was doing, and it has said so.
    Done,
    /// While it read a policy, which nobody waits for any more. What is in force stays so.
    WhileReading,
}

/// Runs the agent until a signal or its lifetime ends it. It has to be run by [`runtime`].
///
/// # Errors
///
/// The policy cannot be put in force at the start. Later failures are reported and change
/// nothing.
pub async fn run(options: Options, reporter: Box<dyn Reporter>) -> Result<Ended, Error> {
    let mut sockets = Vec::new();
    let result = serve_until_ended(&options, reporter, &mut sockets).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    for Serving { task, socket } in sockets {
        task.abort();
        // The file goes with it.
        drop(socket);
    }
    match result? {
        Outcome::Ended(end, hands) => finish(&options, end, *hands).map(|()| Ended::Done),
        Outcome::NotBegun => Ok(Ended::Done),
        Outcome::WhileReading => Ok(Ended::WhileReading),
    }
}

/// How the loop has ended.
enum Outcome {
    Ended(End, Box<Hands>),
    /// There is nothing to take off.
    NotBegun,
    WhileReading,
}

/// Runs the agent until something ends it.
async fn serve_until_ended(
    options: &Options,
    mut reporter: Box<dyn Reporter>,
    sockets: &mut Vec<Serving>,
) -> Result<Outcome, Error> {
    // Listened for before anything is attached, so that no signal finds the agent deaf.
    let mut hangup = listen(SignalKind::hangup())?;
    let mut ends = Ends::listen()?;
    let loaded = match &options.policy {
        Some(path) if !options.resume => {
            let (path, interrupt) = (path.clone(), Interrupt::default());
            let reader = Worker::start().map_err(Error::Threads)?;
            let work = reader.run({
                let interrupt = interrupt.clone();
                move || loading::load_own(&path, &interrupt)
            });
            let mut ended = None;
            let loaded = ends.wait_for(work, &interrupt, &mut ended, true).await;
            match (loaded, ended) {
                (Err(Left::Forced), _) => return Err(Error::Forced),
                (Err(Left::Undone), _) | (Ok(_), Some(_)) => return Ok(Outcome::NotBegun),
                (Ok(loaded), None) => Some(loaded?),
            }
        }
        _ => None,
    };
    let store = options.state.as_ref().map(|state| Store::new(state, &options.instance));
    let instance = options.instance.clone();
    let (protected, on_failure) = (options.config.protect.clone(), options.config.on_failure);
    let mut control = Control::new(instance.clone(), store, protected, on_failure);
    control.lock_instance()?;
    let shared = Arc::new(Shared::new(instance));
    let (desk, mut orders) = orders::desk();
    if options.state.is_some() {
        *sockets = serve(options, &shared, desk).inspect_err(|_| control.abandon_idle())?;
    }

    // Before there are other threads, which begin with what this one has.
    if let Err(why) = privileges::give_up() {
        reporter.note(&why);
    }
    if let Err(why) = confinement::begin(&written(options)) {
        reporter.note(&why);
    }
    let worker = match Worker::start() {
        Ok(worker) => threads::begin_to_look().await.map(|()| worker),
        Err(error) => Err(error),
    };
    let worker = worker.map_err(Error::Threads).inspect_err(|_| control.abandon_idle())?;
    let mut agent = Agent {
        hands: Some(Hands { control, reporter }),
        worker,
        ends,
        ended: None,
        is_for_a_time: options.lifetime.is_some(),
        shared: Arc::clone(&shared),
        has_worked: true,
    };
    let path = options.policy.clone();
    let begun = agent
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
    match begun {
        Ok(Ok(())) => {}
        Err(Left::Forced) => return Err(Error::Forced),
        Err(Left::Undone) => return Ok(Outcome::NotBegun),
        Ok(Err(_)) if agent.ended.is_some() => return Ok(Outcome::NotBegun),
        Ok(Err(error)) => return Err(error),
    }
    // Nobody may have asked to be told.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    agent.ends.time = options.lifetime.map(|lifetime| Instant::now() + lifetime);
    match follow_orders(&mut agent, options, &mut hangup, &mut orders).await {
        Ok(()) => Ok(match agent.ended.zip(agent.hands) {
            Some((end, hands)) => Outcome::Ended(end, Box::new(hands)),
            None => Outcome::NotBegun,
        }),
        Err(Left::Undone) => Ok(Outcome::WhileReading),
        Err(Left::Forced) => Err(Error::Forced),
    }
}

/// The loop.
async fn follow_orders(
    agent: &mut Agent,
    options: &Options,
    hangup: &mut Signal,
    orders: &mut Orders,
) -> Result<(), Left> {
    // Whatever they say, all is looked at: they only wake the agent early.
    let mut interfaces = Followed::new(News::Interfaces);
    // Only while a policy steers to one: anybody on the link can make the kernel learn new ones.
    let mut neighbours: Option<Followed> = None;
    let every = |period| {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    };
    let (mut look, mut check) = (every(TARGET_INTERVAL), every(CHECK_INTERVAL));
    let mut survey = every(SURVEY_INTERVAL);
    while agent.ended.is_none() {
        let trial_ends = agent.trial_ends();
        let control = agent.hands.as_ref().map(|hands| &hands.control);
        let has_targets = control.is_some_and(Control::has_targets);
        if !control.is_some_and(Control::has_neighbours) {
            neighbours = None;
        } else if neighbours.is_none() {
            neighbours = Some(Followed::new(News::Neighbours));
        }
        tokio::select! {
            _ = hangup.recv() => reload(agent, options.policy.as_deref()).await?,
            order = orders.next() => agent.grant(order).await?,
            end = agent.ends.next() => agent.ended = Some(end),
            () = until(trial_ends) => {
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    if let Err(error) = control.look_at_trial(&mut **reporter) {
                        control.complain(&error, &mut **reporter);
                    }
                    control.follow_interfaces(interrupt, &mut **reporter);
                }).await?;
            }
            _ = check.tick() => {
                let detached =
                    agent.hands.as_ref().is_some_and(|hands| hands.control.is_detached_outside());
                if detached {
                    agent.work(|hands, _| hands.control.notice_detach(&mut *hands.reporter)).await?;
                }
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    control.guard(interrupt, &mut **reporter);
                }).await?;
                if std::mem::take(&mut agent.has_worked) {
                    memory::trim();
                }
            }
            _ = look.tick(), if has_targets => {
                agent.work(|hands, _| {
                    hands.control.refresh_targets(true, &mut *hands.reporter);
                }).await?;
            }
            () = interfaces.changed() => {
                let began = Instant::now();
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    control.notice_detach(&mut **reporter);
                    control.refresh_targets(false, &mut **reporter);
                    control.follow_interfaces(interrupt, &mut **reporter);
                }).await?;
                interfaces.note_look(began);
            }
            () = changed(neighbours.as_mut()) => {
                let began = Instant::now();
                agent.work(|hands, _| {
                    hands.control.refresh_targets(false, &mut *hands.reporter);
                }).await?;
                if let Some(neighbours) = &mut neighbours {
                    neighbours.note_look(began);
                }
            }
            _ = survey.tick() => {
                agent.work(|hands, interrupt| {
                    let Hands { control, reporter } = hands;
                    control.notice_detach(&mut **reporter);
                    control.follow_interfaces(interrupt, &mut **reporter);
                    control.keep_again(&mut **reporter);
                }).await?;
            }
        }
    }
    Ok(())
}

/// Waits for what may not be followed at all.
async fn changed(followed: Option<&mut Followed>) {
    match followed {
        Some(followed) => followed.changed().await,
        None => std::future::pending().await,
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
fn serve(options: &Options, shared: &Arc<Shared>, desk: Desk) -> Result<Vec<Serving>, Error> {
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
        server::control(Arc::clone(shared), desk),
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
async fn reload(agent: &mut Agent, path: Option<&Path>) -> Result<(), Left> {
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
        .await?;
    agent.has_worked = true;
    Ok(())
}

/// Ends as it is asked to.
fn finish(options: &Options, end: End, hands: Hands) -> Result<(), Error> {
    let Hands { mut control, mut reporter } = hands;
    control.keep_history_now();
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    /// Has a worker do something that goes on until it is told, and raises signals.
    fn wait_with(signals: usize, is_harmless: bool) -> (Result<(), Left>, Option<End>) {
        runtime().unwrap().block_on(async {
            let mut ends = Ends::listen().unwrap();
            let worker = Worker::start().unwrap();
            let (interrupt, mut ended) = (Interrupt::default(), None);
            interrupt.note_harmless(is_harmless);
            let (go_on, told) = mpsc::channel::<()>();
            // Deaf to interrupts.
            let work = worker.run(move || {
                let _ = told.recv();
            });
            let raising = {
                let interrupt = interrupt.clone();
                async move {
                    for at in 0..signals {
                        raise(Number::SIGUSR1).unwrap();
                        while at == 0 && !interrupt.is_set() {
                            tokio::task::yield_now().await;
                        }
                    }
                    std::future::pending::<()>().await;
                }
            };
            let result = tokio::select! {
                result = ends.wait_for(work, &interrupt, &mut ended, true) => result,
                () = raising => unreachable!("it never ends"),
            };
            drop(go_on);
            (result, ended)
        })
    }

    #[test]
    fn a_second_signal_ends_the_agent_whatever_it_is_doing() {
        assert_eq!(wait_with(2, false), (Err(Left::Forced), Some(End::Terminated)));
    }

    #[test]
    fn reading_is_not_waited_for_once_the_agent_is_to_end() {
        assert_eq!(wait_with(1, true), (Err(Left::Undone), Some(End::Terminated)));
    }
}
