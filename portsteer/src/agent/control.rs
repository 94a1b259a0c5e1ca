//! What the agent can do, one thing at a time: put policies in force, on trial or back, edit them, and follow
//! the network. Everything here blocks; [`super::run`] gives it a thread.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    Bundle, Error, LoadedPolicy, Reporter,
    bundle::{SetFile, lost_files},
    config::Protected,
    history::History,
    loading::{check_len, load_own, services, understand},
    store::{FileEdit, MAX_EDITED, Record, Store, StoreError, Which},
    way_in,
};
use crate::{
    api::{ApplyAnswer, Attachment, DoneAnswer, EditRequest, How, Kind, Refusal, RemovedRule},
    compile::Interrupt,
    dataplane::{
        Applied, AttachedMode, Change, Concluded, Dataplane, Error as DataplaneError, Instance,
        Manifest, Order, Refreshed, Survey, TargetChange, TargetState, TrialState,
    },
    policy::{
        self, Policy, SetId,
        edit::{Edit, Edited, edit_set_file, edit_text, not_in_set},
        lint,
        set_edit::SetEdit,
    },
};

/// A policy that is in force, or waits for its interfaces.
#[derive(Debug, Clone)]
pub struct Desired {
    pub record: Record,
    pub text: Arc<str>,
    pub policy: Arc<Policy>,
    pub generation: u64,
    /// Whether the content of its sets is known. It is not where the state directory was lost: then the policy
    /// stays in force, and cannot be compiled anew.
    pub is_whole: bool,
    /// What could not be kept, to be kept later.
    unkept: Option<Bundle>,
}

/// What others may look at while something is done.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub desired: Option<Desired>,
    pub is_attached: bool,
    /// When the trial ends, and by which clock nobody sets.
    pub trial_ends: Option<Instant>,
    pub was_detached: bool,
    pub waiting: Vec<String>,
    pub not_kept: Option<String>,
    pub problems: Vec<String>,
}

/// The agent's hands.
#[derive(Debug)]
pub struct Control {
    instance: Instance,
    dataplane: Option<Dataplane>,
    desired: Option<Desired>,
    /// What comes back when the trial is over.
    before_trial: Option<Desired>,
    trial_ends: Option<Instant>,
    /// None where nothing is to be kept.
    store: Option<Store>,
    not_kept: Option<String>,
    protected: Vec<Protected>,
    waiting: Vec<String>,
    was_detached: bool,
    /// What was said last of what could not be done, so that it is said once.
    last_problem: Option<String>,
    pub history: History,
}

/// Whether interfaces have to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Refused,
    WaitedFor,
}

impl Control {
    pub fn new(instance: Instance, store: Option<Store>, protected: Vec<Protected>) -> Self {
        let history = store.as_ref().map_or_else(History::default, History::read);
        Self {
            instance,
            dataplane: None,
            desired: None,
            before_trial: None,
            trial_ends: None,
            store,
            not_kept: None,
            protected,
            waiting: Vec::new(),
            was_detached: false,
            last_problem: None,
            history,
        }
    }

    /// What others may look at.
    pub fn view(&self) -> View {
        View {
            desired: self.desired.clone(),
            is_attached: self.is_attached(),
            trial_ends: self.trial_ends,
            was_detached: self.was_detached,
            waiting: self.waiting.clone(),
            not_kept: self.not_kept.clone(),
            problems: self.last_problem.iter().cloned().collect(),
        }
    }

    /// Whether any interface is attached.
    pub fn is_attached(&self) -> bool {
        self.dataplane.as_ref().is_some_and(|dataplane| !dataplane.is_idle())
    }

    /// When the trial ends.
    pub fn trial_ends(&self) -> Option<Instant> {
        self.trial_ends
    }

    /// Takes the instance's lock, unless this has it.
    fn lock(&mut self) -> Result<&Dataplane, Error> {
        // A lock on a directory that `portsteer detach` has removed keeps nobody out.
        if self.dataplane.as_ref().is_some_and(|dataplane| !dataplane.holds_lock()) {
            self.dataplane = None;
        }
        if self.dataplane.is_none() {
            self.dataplane = Some(Dataplane::lock(self.instance.clone())?);
        }
        // Just made.
        self.dataplane.as_ref().ok_or_else(|| Error::Refused(Refusal::refused("no lock")))
    }

    /// Gives an instance with nothing in it back without a trace.
    pub fn abandon_idle(&mut self) {
        if let Some(idle) = self.dataplane.take_if(|dataplane| dataplane.is_idle()) {
            idle.abandon();
        }
    }

    /// Takes the right to change the instance.
    pub fn lock_instance(&mut self) -> Result<(), Error> {
        self.lock().map(drop)
    }

    /// Whether the policy steers.
    pub fn has_targets(&self) -> bool {
        let has = |desired: &Option<Desired>| {
            desired.as_ref().is_some_and(|desired| !desired.policy.targets.is_empty())
        };
        has(&self.desired) || has(&self.before_trial)
    }

    /// Starts with a policy, whatever is in force.
    pub fn start_with(
        &mut self,
        loaded: LoadedPolicy,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let dataplane = self.lock()?;
        if dataplane.trial()? != TrialState::None {
            let before = dataplane.manifest_before_trial()?;
            let before = before.and_then(|manifest| policy_of(&manifest));
            dataplane.end_trial(before.as_ref())?;
            self.discard();
            reporter.note("a trial that was under way is over");
        }
        self.put_in_force(loaded, &How::default(), Missing::WaitedFor, interrupt, reporter)
            .map(drop)
    }

    /// Goes on with what is in force, else with what was accepted last, else with a policy file.
    pub fn resume(
        &mut self,
        path: Option<&Path>,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let dataplane = self.lock()?;
        match (dataplane.manifest()?, dataplane.trial()?) {
            (Some(manifest), state) => {
                let result = self.take_over(&manifest, state, reporter);
                // Whatever it was, the policy is in force.
                if let Err(error) = result {
                    self.complain(&error, reporter);
                }
                return Ok(());
            }
            (None, TrialState::Lapsed) => {
                dataplane.end_trial(None)?;
                self.discard();
                reporter.note("the trial of a first policy was over; taken off");
                self.lock()?;
            }
            _ => {}
        }
        if self.store.as_ref().is_some_and(Store::was_detached) {
            self.was_detached = true;
            reporter.note("taken off by hand since the machine started: `portsteer apply` puts a policy in force");
            return Ok(());
        }
        match self.kept(Which::Accepted) {
            Ok(Some(record)) => match self.load_kept(&record) {
                Ok(loaded) => {
                    // It was accepted before, by whoever forced it if it had to be.
                    let how = How { force: true, ..How::default() };
                    self.put_in_force(loaded, &how, Missing::WaitedFor, interrupt, reporter)?;
                    return Ok(());
                }
                Err(error) => self.complain(&error, reporter),
            },
            Ok(None) => {}
            Err(error) => self.complain(&error.into(), reporter),
        }
        match path {
            Some(path) if path.exists() => self.start_with(load_own(path)?, interrupt, reporter),
            _ => {
                reporter
                    .note("nothing is in force yet: `portsteer apply FILE` puts a policy in force");
                Ok(())
            }
        }
    }

    /// Takes over what another agent has left in force.
    fn take_over(
        &mut self,
        manifest: &Manifest,
        state: TrialState,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let manifest = manifest.clone();
        let accepted = self.kept_or_complain(Which::Accepted, reporter);
        let pending = self.kept_or_complain(Which::Pending, reporter);
        let is = |record: &Option<Record>, manifest: &Manifest| {
            record.as_ref().is_some_and(|record| record.id == manifest.id)
        };
        match state {
            TrialState::Running { left } => {
                let record = pending.filter(|record| record.id == manifest.id);
                self.desired = Some(self.reconstruct(&manifest, record, reporter));
                let before = self.dataplane()?.manifest_before_trial()?;
                self.before_trial = before.map(|before| {
                    let record = accepted.filter(|record| record.id == before.id);
                    self.reconstruct(&before, record, reporter)
                });
                self.trial_ends = Some(Instant::now() + left);
                reporter.note(&format!(
                    "{} is on trial for {} more",
                    manifest.path,
                    humantime::format_duration(Duration::from_secs(left.as_secs()))
                ));
            }
            TrialState::Lapsed => {
                let record = accepted.filter(|record| record.id == manifest.id);
                let desired = self.reconstruct(&manifest, record, reporter);
                let concluded = self.dataplane()?.end_trial(Some(&desired.policy))?;
                self.desired = Some(desired);
                self.discard();
                reporter.note(&format!(
                    "the trial was over while no agent ran: {} is back in force",
                    manifest.path
                ));
                self.history.add(None, "a trial was over; the policy before is back");
                report_concluded(&concluded, reporter);
            }
            TrialState::None => {
                let record = if is(&accepted, &manifest) {
                    if pending.is_some() {
                        self.discard();
                        reporter.note(
                            "an apply that was interrupted had changed nothing, and is forgotten",
                        );
                    }
                    accepted
                } else if is(&pending, &manifest) {
                    reporter.note("an apply that was interrupted was complete, and is accepted");
                    self.accept(reporter);
                    pending
                } else {
                    if self.store.is_some() && accepted.is_some() {
                        reporter.note("what is in force is not what was kept");
                    }
                    None
                };
                self.desired = Some(self.reconstruct(&manifest, record, reporter));
            }
        }
        let desired = self.desired.clone();
        let policy = desired.as_ref().map(|desired| Arc::clone(&desired.policy));
        let policy = policy.ok_or(DataplaneError::NoTrial)?;
        let (concluded, applied) = self.dataplane()?.take_over(&policy)?;
        self.waiting.clone_from(&applied.waiting);
        report_concluded(&concluded, reporter);
        if let Some(desired) = desired {
            reporter.taken_over(&desired, &applied);
        }
        Ok(())
    }

    /// What is in force, as far as it can be known.
    fn reconstruct(
        &mut self,
        manifest: &Manifest,
        record: Option<Record>,
        reporter: &mut dyn Reporter,
    ) -> Desired {
        let mut loaded = None;
        if let Some(record) = &record {
            match self.load_kept(record) {
                Ok(found) => loaded = Some(found),
                Err(error) => self.complain(&error, reporter),
            }
        }
        let mut unkept = None;
        let (policy, is_whole, record) = match (loaded, record) {
            (Some(loaded), Some(record)) => (loaded.policy, true, record),
            // The kernel has the text, and not what files had.
            (_, record) => {
                let whole = policy::file::parse(&manifest.text, &services());
                let is_whole = whole.is_ok();
                let parsed = whole.ok().map(|parsed| parsed.policy);
                let policy = parsed.or_else(|| policy_of(manifest));
                let bundle = Bundle::of_text(&*manifest.path, &*manifest.text);
                let record = record.unwrap_or_else(|| Record::of(&bundle));
                if is_whole {
                    self.not_kept = None;
                    self.keep_now(&record, &bundle, reporter);
                    unkept = self.not_kept.is_some().then_some(bundle);
                } else {
                    self.not_kept = Some("the content of its set files is lost".to_owned());
                    reporter.note(
                        "the content of the policy's set files is lost: it stays in force as it is; \
                         apply it again to change anything",
                    );
                }
                (policy.unwrap_or_else(nothing), is_whole, record)
            }
        };
        Desired {
            record,
            text: manifest.text.as_str().into(),
            policy: Arc::new(policy),
            generation: manifest.generation,
            is_whole,
            unkept,
        }
    }

    /// Reads the policy file again.
    pub fn reload(
        &mut self,
        path: &Path,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        // A pipe would keep the agent waiting for whoever writes to it.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let source =
                std::io::Error::other("it is not a regular file, and cannot be read again");
            return Err(Error::Unreadable { path: path.to_owned(), source });
        }
        let loaded = load_own(path)?;
        let how = How::default();
        self.put_in_force(loaded, &how, Missing::Refused, interrupt, reporter).map(drop)
    }

    /// Puts a policy in force that came over the socket.
    pub fn apply(
        &mut self,
        bundle: Bundle,
        how: &How,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        let loaded = understand(bundle)?;
        self.put_in_force(loaded, how, Missing::Refused, interrupt, reporter)
    }

    fn put_in_force(
        &mut self,
        loaded: LoadedPolicy,
        how: &How,
        missing: Missing,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        let record = Record::of(&loaded.bundle);
        let warnings = render_warnings(&loaded);
        let next = Desired {
            record,
            text: loaded.bundle.text.as_str().into(),
            policy: Arc::new(loaded.policy),
            generation: 0,
            is_whole: true,
            unkept: Some(loaded.bundle),
        };
        self.swap(next, how, missing, warnings, interrupt, reporter)
    }

    /// Puts a policy in force that is made ready: kept first as the one to come, then in force, then accepted.
    fn swap(
        &mut self,
        mut next: Desired,
        how: &How,
        missing: Missing,
        warnings: String,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        self.refuse_while_on_trial()?;
        if !how.force {
            way_in::check(&next.policy, how.ssh_connection.as_deref(), &self.protected)?;
        }
        self.lock()?;
        let mut bundle = next.unkept.take();
        let staged = self.stage(&next.record, bundle.as_ref());
        let trial = how.confirm_seconds.map(Duration::from_secs);
        let order = Order {
            policy: &next.policy,
            path: &next.record.path,
            text: &next.text,
            id: &next.record.id,
            trial,
            waits: missing == Missing::WaitedFor,
        };
        let applied = match self.dataplane()?.apply(&order, interrupt) {
            Ok(applied) => applied,
            // All of them are missing.
            Err(DataplaneError::NoInterface { targets, .. })
                if missing == Missing::WaitedFor && targets.is_empty() && !self.is_attached() =>
            {
                let names = next.policy.interfaces.iter().map(|pattern| pattern.text.clone());
                Applied { waiting: names.collect(), ..Applied::default() }
            }
            Err(error) => {
                self.discard();
                return Err(error.into());
            }
        };
        next.generation = applied.generation;
        self.waiting.clone_from(&applied.waiting);
        self.was_detached = false;
        if trial.is_some() {
            self.trial_ends = trial.map(|time| Instant::now() + time);
            self.before_trial = self.desired.take();
            self.not_kept = Some("it is on trial".to_owned());
        } else {
            self.note_staged(staged, reporter);
        }
        if self.not_kept.is_none() {
            bundle = None;
        }
        next.unkept = bundle;
        let mut answer = answer(&next, &applied, trial, warnings, self.not_kept.is_none());
        answer.notes.extend(waiting_notes(&applied.waiting));
        reporter.applied(&answer);
        self.history.add(None, &describe_swap(&answer));
        self.desired = Some(next);
        Ok(answer)
    }

    /// Makes edits of the policy in force, all or none.
    pub fn edit(
        &mut self,
        request: &EditRequest,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        let Some(desired) = self.desired.clone() else {
            return Err(Error::Refused(Refusal::negative("nothing is in force")));
        };
        self.refuse_while_on_trial()?;
        if !desired.is_whole {
            let refusal = Refusal::refused("the content of the policy's set files is lost");
            return Err(Error::Refused(refusal.help("apply the policy again from its file")));
        }
        let plan = Plan::new(&desired, &request.edits)?;
        let mut record = desired.record.with_text(&plan.text);
        for change in &plan.files {
            record = record.with_edit(&change.file, FileEdit::new(change.adds, &change.prefixes));
        }
        let changes_text = plan.text != *desired.text;
        let (policy, warnings) = match changes_text {
            true => plan.read(&desired, &record.path)?,
            false => {
                let mut policy = (*desired.policy).clone();
                plan.edit_sets(&mut policy)?;
                (policy, String::new())
            }
        };
        // Content that is on disk stays there, and the edits beside it, unless they have become too many.
        let is_long = |change: &FileChange| record.edited(&change.file) > MAX_EDITED;
        let whole = match (&desired.unkept, &self.store) {
            (Some(bundle), _) if bundle.files.len() == record.files.len() => Some(bundle.clone()),
            (None, Some(store)) if plan.files.iter().any(is_long) => {
                Some(store.read_bundle(&desired.record)?)
            }
            _ => None,
        };
        let bundle = match whole {
            Some(whole) => {
                let whole = plan.edited(whole)?;
                record = Record::of(&whole);
                whole
            }
            None => Bundle::of_text(&*record.path, &*plan.text),
        };
        let next = Desired {
            record,
            text: plan.text.as_str().into(),
            policy: Arc::new(policy),
            generation: 0,
            is_whole: true,
            unkept: Some(bundle),
        };
        self.swap(next, &request.how, Missing::WaitedFor, warnings, interrupt, reporter)
    }

    /// Keeps the policy on trial for good.
    pub fn confirm(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let Some(desired) = self.desired.clone().filter(|_| self.trial_ends.is_some()) else {
            return Err(DataplaneError::NoTrial.into());
        };
        match self.dataplane()?.confirm(&desired.policy) {
            Ok(concluded) => {
                self.trial_ends = None;
                self.before_trial = None;
                let staged = match &desired.unkept {
                    // Staged once before, unless that failed.
                    Some(bundle) => self.stage(&desired.record, Some(bundle)),
                    None => Ok(()),
                };
                self.note_staged(staged, reporter);
                if self.not_kept.is_none()
                    && let Some(desired) = &mut self.desired
                {
                    desired.unkept = None;
                }
                self.history.add(None, "the policy on trial was confirmed");
                reporter.note("confirmed: the policy stays in force");
                Ok(done(&concluded))
            }
            Err(DataplaneError::TrialOver) => {
                self.end_trial(reporter)?;
                Err(DataplaneError::TrialOver.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a trial whose time is up, if that is so.
    pub fn look_at_trial(&mut self, reporter: &mut dyn Reporter) -> Result<(), Error> {
        if self.trial_ends.is_none() {
            return Ok(());
        }
        match self.dataplane()?.trial()? {
            TrialState::Lapsed => self.end_trial(reporter).map(drop),
            TrialState::Running { left } => {
                // The kernel's clock is the one that counts; a moment more, so that it is over then.
                let left = left.max(Duration::from_millis(20));
                self.trial_ends = Some(Instant::now() + left);
                Ok(())
            }
            TrialState::None => {
                self.trial_ends = None;
                Ok(())
            }
        }
    }

    fn end_trial(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let before = self.before_trial.clone();
        let policy = before.as_ref().map(|before| Arc::clone(&before.policy));
        let concluded = self.dataplane()?.end_trial(policy.as_deref())?;
        self.trial_ends = None;
        self.desired = self.before_trial.take();
        self.discard();
        self.not_kept = None;
        let text = match &self.desired {
            Some(before) => format!("the trial is over: {} is back in force", before.record.path),
            None => "the trial is over: nothing is in force, as before".to_owned(),
        };
        reporter.note(&text);
        self.history.add(None, &text);
        report_concluded(&concluded, reporter);
        Ok(done(&concluded))
    }

    /// Ends a trial now, or goes back to the policy that was accepted before.
    pub fn rollback(
        &mut self,
        how: &How,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<ApplyAnswer, Error> {
        if self.trial_ends.is_some() {
            let done = self.end_trial(reporter)?;
            let mut answer = match &self.desired {
                Some(desired) => answer(desired, &Applied::default(), None, String::new(), true),
                None => ApplyAnswer::nothing(),
            };
            (answer.detached, answer.notes) = (done.detached, done.notes);
            return Ok(answer);
        }
        let record = self.kept(Which::Previous)?;
        let record = record
            .ok_or_else(|| Error::Refused(Refusal::negative("there is no policy to go back to")))?;
        let loaded = self.load_kept(&record)?;
        self.put_in_force(loaded, how, Missing::Refused, interrupt, reporter)
    }

    /// Takes the dataplane off, until the next apply.
    pub fn detach(&mut self, reporter: &mut dyn Reporter) -> Result<DoneAnswer, Error> {
        let detached = match &self.dataplane {
            Some(dataplane) => dataplane.detach(),
            None => Err(DataplaneError::NotAttached(self.instance.name().to_owned())),
        };
        let detached = match detached {
            Err(DataplaneError::NotAttached(_)) if self.desired.is_some() => Default::default(),
            result => result?,
        };
        self.note_detached(reporter);
        let text = match detached.interfaces.is_empty() {
            true => "detached".to_owned(),
            false => format!("detached from {}", detached.interfaces.join(", ")),
        };
        reporter.note(&format!("{text}; `portsteer apply` attaches again"));
        self.history.add(None, "detached");
        Ok(DoneAnswer { detached: detached.interfaces, notes: detached.notes })
    }

    fn note_detached(&mut self, reporter: &mut dyn Reporter) {
        self.dataplane = None;
        (self.desired, self.before_trial, self.trial_ends) = (None, None, None);
        (self.was_detached, self.not_kept) = (true, None);
        self.waiting.clear();
        if let Some(store) = &self.store
            && let Err(error) = store.note_detached()
        {
            reporter.note(&format!("that it is detached cannot be kept: {error}"));
        }
        self.discard();
    }

    /// Ends the agent's own dataplane.
    pub fn take_off(&mut self) -> Result<Option<crate::dataplane::Detached>, Error> {
        let Some(dataplane) = self.dataplane.take() else { return Ok(None) };
        match dataplane.detach() {
            Ok(detached) => Ok(Some(detached)),
            Err(DataplaneError::NotAttached(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether somebody else has taken the dataplane off. A quick look.
    pub fn is_detached_outside(&self) -> bool {
        self.has_attached_before() && self.dataplane.as_ref().is_some_and(Dataplane::was_detached)
    }

    /// After `portsteer detach` without the agent's doing, the agent keeps its hands off until it is told to
    /// apply again.
    pub fn notice_detach(&mut self, reporter: &mut dyn Reporter) {
        if !self.has_attached_before() {
            return;
        }
        if let Some(dataplane) = self.dataplane.take_if(|dataplane| dataplane.was_detached()) {
            reporter.note("detached from outside; SIGHUP or `portsteer apply` attaches again");
            match dataplane.switch_back() {
                Ok(notes) => notes.iter().for_each(|note| reporter.note(note)),
                Err(error) => reporter.note(&format!("switching offloads back: {error}")),
            }
            drop(dataplane);
            self.history.add(None, "detached from outside");
            self.note_detached(reporter);
        }
    }

    /// Whether the policy was ever on an interface: while it waits for its first one, no link is no sign.
    fn has_attached_before(&self) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.generation != 0)
    }

    /// Follows interfaces: attaches what comes, and tells what goes and changes.
    pub fn follow_interfaces(&mut self, interrupt: &Interrupt, reporter: &mut dyn Reporter) {
        if let Err(error) = self.try_to_follow(interrupt, reporter) {
            self.complain(&error, reporter);
        } else {
            self.last_problem = None;
        }
        if let Some(store) = &self.store {
            self.history.write(store);
        }
    }

    fn try_to_follow(
        &mut self,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let Some(desired) = self.desired.clone() else { return Ok(()) };
        if !self.has_attached_before() {
            return self.try_to_begin(desired, interrupt, reporter);
        }
        let survey = match self.dataplane()?.survey(&desired.policy) {
            // Detached a moment ago: the next look at that says so.
            Err(DataplaneError::NotAttached(_)) => return Ok(()),
            result => result?,
        };
        let Survey { gone, changed, missing, waiting } = survey;
        for name in &gone {
            self.history.add(Some(name), "gone");
            reporter.note(&format!(
                "{name} is gone from here, and the policy with it; it is attached again when it is back"
            ));
        }
        for (name, what) in &changed {
            self.history.add(Some(name), what);
            reporter.note(&format!("{name} {what}"));
        }
        self.waiting = waiting;
        // While a policy is on trial, nothing is attached that would have to be taken off again.
        if missing.is_empty() || self.trial_ends.is_some() {
            return Ok(());
        }
        let by_interface = desired.policy.rules.iter().any(|rule| !rule.interfaces.is_empty());
        let applied = if by_interface && desired.is_whole {
            // Which interface a rule means is compiled in.
            let order = Order {
                policy: &desired.policy,
                path: &desired.record.path,
                text: &desired.text,
                id: &desired.record.id,
                trial: None,
                waits: true,
            };
            let applied = self.dataplane()?.apply(&order, interrupt)?;
            if let Some(desired) = &mut self.desired {
                desired.generation = applied.generation;
            }
            applied
        } else {
            self.dataplane()?.attach_missing(&desired.policy)?
        };
        self.waiting.clone_from(&applied.waiting);
        for attached in applied.attached.iter().filter(|attached| missing.contains(&attached.name))
        {
            let what = format!("attached ({} mode)", attached.mode.name());
            self.history.add(Some(&attached.name), &what);
            reporter.note(&format!(
                "attached to {} ({} mode)",
                attached.name,
                attached.mode.name()
            ));
        }
        applied.notes.iter().for_each(|note| reporter.note(note));
        Ok(())
    }

    /// A policy that waits for its first interface.
    fn try_to_begin(
        &mut self,
        desired: Desired,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let order = Order {
            policy: &desired.policy,
            path: &desired.record.path,
            text: &desired.text,
            id: &desired.record.id,
            trial: None,
            waits: true,
        };
        let applied = match self.lock()?.apply(&order, interrupt) {
            Err(DataplaneError::NoInterface { .. }) => return Ok(()),
            result => result?,
        };
        for attached in &applied.attached {
            self.history.add(Some(&attached.name), "attached");
        }
        self.waiting.clone_from(&applied.waiting);
        let mut desired = desired;
        desired.generation = applied.generation;
        let kept = self.not_kept.is_none();
        reporter.applied(&answer(&desired, &applied, None, String::new(), kept));
        self.desired = Some(desired);
        Ok(())
    }

    /// Follows neighbours, CPUs and the interfaces of targets.
    pub fn refresh_targets(&mut self, ask_again: bool, reporter: &mut dyn Reporter) {
        let Some(dataplane) = &self.dataplane else { return };
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

    /// Tries again to keep what could not be kept.
    pub fn keep_again(&mut self, reporter: &mut dyn Reporter) {
        if self.not_kept.is_none() || self.trial_ends.is_some() {
            return;
        }
        let Some(desired) = &mut self.desired else { return };
        let Some(bundle) = desired.unkept.take() else { return };
        let record = desired.record.clone();
        self.keep_now(&record, &bundle, reporter);
        if self.not_kept.is_some()
            && let Some(desired) = &mut self.desired
        {
            desired.unkept = Some(bundle);
        }
    }

    fn keep_now(&mut self, record: &Record, bundle: &Bundle, reporter: &mut dyn Reporter) {
        let staged = self.stage(record, Some(bundle));
        let before = self.not_kept.take();
        if staged.is_err() && before.is_some() {
            // That was said already.
            self.not_kept = before;
            return;
        }
        self.note_staged(staged, reporter);
        if before.is_some() && self.not_kept.is_none() {
            reporter.note("the policy in force is kept now");
        }
    }

    fn stage(&self, record: &Record, bundle: Option<&Bundle>) -> Result<(), StoreError> {
        match (&self.store, bundle) {
            (Some(store), Some(bundle)) => store.stage(record, bundle),
            _ => Ok(()),
        }
    }

    /// Accepts what was staged, or says that it could not be.
    fn note_staged(&mut self, staged: Result<(), StoreError>, reporter: &mut dyn Reporter) {
        self.not_kept = None;
        match staged {
            Ok(()) => self.accept(reporter),
            Err(error) => self.note_not_kept(&error, reporter),
        }
    }

    fn accept(&mut self, reporter: &mut dyn Reporter) {
        let Some(store) = &self.store else { return };
        store.note_applied();
        if let Err(error) = store.accept() {
            self.note_not_kept(&error, reporter);
        }
    }

    fn note_not_kept(&mut self, error: &StoreError, reporter: &mut dyn Reporter) {
        reporter.note(&format!(
            "in force, but not kept: after a restart of the machine the policy before would be back: {error}"
        ));
        self.not_kept = Some(error.to_string());
    }

    /// Forgets what was staged.
    fn discard(&self) {
        if let Some(store) = &self.store {
            // The next agent forgets it as well, since it is not in force.
            let _ = store.discard();
        }
    }

    fn kept(&self, which: Which) -> Result<Option<Record>, StoreError> {
        self.store.as_ref().map_or(Ok(None), |store| store.read_record(which))
    }

    fn kept_or_complain(&mut self, which: Which, reporter: &mut dyn Reporter) -> Option<Record> {
        match self.kept(which) {
            Ok(record) => record,
            Err(error) => {
                self.complain(&error.into(), reporter);
                None
            }
        }
    }

    fn load_kept(&self, record: &Record) -> Result<LoadedPolicy, Error> {
        let Some(store) = &self.store else {
            return Err(Error::Refused(Refusal::refused("nothing is kept")));
        };
        understand(store.read_bundle(record)?)
    }

    fn dataplane(&self) -> Result<&Dataplane, Error> {
        let name = || self.instance.name().to_owned();
        self.dataplane.as_ref().ok_or_else(|| DataplaneError::NotAttached(name()).into())
    }

    fn refuse_while_on_trial(&self) -> Result<(), Error> {
        match self.trial_ends {
            Some(ends) => Err(DataplaneError::OnTrial {
                instance: self.instance.name().to_owned(),
                left: ends.saturating_duration_since(Instant::now()),
            }
            .into()),
            None => Ok(()),
        }
    }

    /// Says what is wrong, once.
    fn complain(&mut self, error: &Error, reporter: &mut dyn Reporter) {
        let text = error.to_refusal().message;
        if self.last_problem.as_ref() != Some(&text) {
            reporter.note(&text);
            self.last_problem = Some(text);
        }
    }
}

/// What edits come to.
struct Plan {
    text: String,
    files: Vec<FileChange>,
}

/// What becomes of a set's file.
struct FileChange {
    file: String,
    /// Else they are removed.
    adds: bool,
    prefixes: Vec<IpNet>,
}

impl Plan {
    fn new(desired: &Desired, edits: &[Edit]) -> Result<Self, Error> {
        let mut plan = Self { text: desired.text.to_string(), files: Vec::new() };
        for edit in edits {
            match edit_text(&plan.text, edit)? {
                Edited::Text(text) => plan.text = text,
                Edited::SetFile(file) => {
                    let (adds, prefixes) = match edit {
                        Edit::AddPrefixes { prefixes, .. } => (true, prefixes.clone()),
                        Edit::RemovePrefixes { prefixes, .. } => (false, prefixes.clone()),
                        _ => continue,
                    };
                    plan.files.push(FileChange { file, adds, prefixes });
                }
            }
        }
        Ok(plan)
    }

    /// Changes what sets have from files.
    fn edit_sets(&self, policy: &mut Policy) -> Result<(), Error> {
        for FileChange { file, adds, prefixes } in &self.files {
            let ids = (0..).map(SetId).take(policy.sets.len());
            let is_of = |id: &SetId| policy.set(*id).file.as_deref() == Some(file);
            let ids: Vec<SetId> = ids.filter(is_of).collect();
            let Some(&first) = ids.first() else { continue };
            let before = Arc::clone(&policy.set(first).prefixes);
            let (remove, add) =
                if *adds { (Vec::new(), prefixes.clone()) } else { (prefixes.clone(), Vec::new()) };
            let edited = policy
                .edit_set(first, &SetEdit { remove, add })
                .map_err(|error| Error::Refused(Refusal::bad_input(error.to_string())))?;
            let named: HashSet<_> = prefixes.iter().copied().collect();
            let removed: HashSet<_> = edited.removed.iter().copied().collect();
            if !adds && removed.len() < named.len() {
                let name = &policy.set(first).name;
                return Err(not_in_set(name, prefixes, &removed, before.iter().copied()).into());
            }
            // What the others have is the same.
            let after = Arc::clone(&policy.set(first).prefixes);
            for set in policy.sets.iter_mut().filter(|set| set.file.as_deref() == Some(file)) {
                set.prefixes = Arc::clone(&after);
            }
        }
        Ok(())
    }

    /// Reads the changed text; what files have is known already.
    fn read(&self, desired: &Desired, path: &str) -> Result<(Policy, String), Error> {
        check_len(&self.text)?;
        let parsed = policy::file::parse_with(&self.text, &services(), &mut lost_files);
        let mut parsed = parsed.map_err(|diagnostics| Error::Policy {
            path: path.into(),
            text: self.text.clone(),
            diagnostics,
        })?;
        for set in parsed.policy.sets.iter_mut().filter(|set| set.file.is_some()) {
            let known = desired.policy.sets.iter().find(|known| known.file == set.file);
            if let Some(known) = known {
                set.prefixes = Arc::clone(&known.prefixes);
            }
        }
        let mut policy = parsed.policy;
        self.edit_sets(&mut policy)?;
        let mut warnings = parsed.warnings;
        const FEW: usize = 100_000;
        if policy.sets.iter().map(|set| set.prefixes.len()).sum::<usize>() < FEW {
            warnings.extend(lint::lint(&policy, &super::loading::host_facts()));
        }
        let text = super::render_diagnostics(path, &self.text, &warnings);
        Ok((policy, text))
    }

    /// The whole policy, as it is to be kept.
    fn edited(&self, mut bundle: Bundle) -> Result<Bundle, Error> {
        bundle.text.clone_from(&self.text);
        for SetFile { name, content } in &mut bundle.files {
            for change in self.files.iter().filter(|change| change.file == *name) {
                let (set, prefixes) = (String::new(), change.prefixes.clone());
                let edit = match change.adds {
                    true => Edit::AddPrefixes { set, prefixes },
                    false => Edit::RemovePrefixes { set, prefixes },
                };
                *content = edit_set_file(content, &edit)?;
            }
        }
        Ok(bundle)
    }
}

/// The policy of a text whose set files are not at hand.
fn policy_of(manifest: &Manifest) -> Option<Policy> {
    let parsed = policy::file::parse_with(&manifest.text, &services(), &mut lost_files);
    parsed.ok().map(|parsed| parsed.policy)
}

/// A policy for no interface, where nothing better is known.
fn nothing() -> Policy {
    Policy {
        interfaces: Vec::new(),
        mode: policy::Mode::Auto,
        default: policy::Action::Pass,
        options: policy::Options::default(),
        targets: Vec::new(),
        sets: Vec::new(),
        rules: Vec::new(),
    }
}

/// What is to be said of interfaces that do not exist.
fn waiting_notes(waiting: &[String]) -> Vec<String> {
    if waiting.is_empty() {
        return Vec::new();
    }
    let links = crate::netlink::links().unwrap_or_default();
    let existing: Vec<String> = links.into_iter().map(|link| link.name).collect();
    let note = |name: &String| {
        let error =
            DataplaneError::UnknownInterface { name: name.clone(), existing: existing.clone() };
        let hint = error.help().map_or_else(String::new, |help| format!("; {help}"));
        format!("waiting for `{name}`, which does not exist{hint}")
    };
    waiting.iter().map(note).collect()
}

fn render_warnings(loaded: &LoadedPolicy) -> String {
    super::render_diagnostics(&loaded.bundle.path, loaded.text(), &loaded.warnings)
}

fn report_concluded(concluded: &Concluded, reporter: &mut dyn Reporter) {
    for name in &concluded.detached {
        reporter.note(&format!("detached from {name}"));
    }
    concluded.notes.iter().for_each(|note| reporter.note(note));
}

fn done(concluded: &Concluded) -> DoneAnswer {
    DoneAnswer { detached: concluded.detached.clone(), notes: concluded.notes.clone() }
}

fn describe_swap(answer: &ApplyAnswer) -> String {
    match answer.trial_seconds {
        Some(seconds) => format!("{} on trial for {seconds} s", answer.path),
        None => format!("{} in force", answer.path),
    }
}

fn answer(
    desired: &Desired,
    applied: &Applied,
    trial: Option<Duration>,
    warnings: String,
    kept: bool,
) -> ApplyAnswer {
    let attached = applied.attached.iter().map(|attached| Attachment {
        name: attached.name.clone(),
        mode: AttachedMode::name(attached.mode).to_owned(),
        change: match attached.change {
            Change::New => "new",
            Change::Kept => "kept",
            Change::Upgraded => "upgraded",
        }
        .to_owned(),
        native_refused: attached.native_refused.clone(),
    });
    let removed = applied.removed.iter().map(|(name, counter)| RemovedRule {
        name: name.clone(),
        packets: counter.packets,
        bytes: counter.bytes,
    });
    ApplyAnswer {
        generation: desired.generation,
        path: desired.record.path.clone(),
        rules: desired.policy.rules.len(),
        default: desired.policy.default.name().to_owned(),
        trial_seconds: trial.map(|time| time.as_secs()),
        attached: attached.collect(),
        detached: applied.detached.clone(),
        waiting: applied.waiting.clone(),
        removed: removed.collect(),
        warnings,
        notes: applied.notes.clone(),
        kept,
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Refused(Refusal::refused(error.to_string()))
    }
}

impl From<policy::edit::EditError> for Error {
    fn from(error: policy::edit::EditError) -> Self {
        Self::Refused(Refusal { kind: Kind::BadInput, ..Refusal::bad_input(error.to_string()) })
    }
}
