//! How an agent begins on a machine without a dataplane: with the policy that was accepted last, else the one
//! before, else the policy file, each within a time limit; and if none of them can be put in force, with what
//! the settings say.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::{Control, Desired};
use crate::{
    agent::{
        Bundle, Error, Reporter,
        built_in::{self, BuiltIn},
        bundle::lost_files,
        config::OnFailure,
        loading::{load_own, services},
        reading::read_still,
        store::{Record, Which},
    },
    api::{How, Refusal},
    compile::Interrupt,
    dataplane::{Error as DataplaneError, Interfaces},
    policy::{self, Policy},
};

/// How long a policy may take to come into force at the start. There are three to try, and a service manager waits
/// for the agent (`TimeoutStartSec=` in packaging/portsteer.service).
const PATIENCE: Duration = Duration::from_secs(20);

/// Why what is in force since the start would not be back after another one.
pub(super) const NOT_ACCEPTED: &str =
    "it is not the policy that was accepted last, which could not be put in force at the start";

/// What to begin with, in the order in which it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Accepted,
    Previous,
    File,
}

impl Step {
    const ALL: [Self; 3] = [Self::Accepted, Self::Previous, Self::File];

    const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "the policy that was accepted last",
            Self::Previous => "the policy before that",
            Self::File => "the policy file",
        }
    }
}

/// A step that led nowhere.
#[derive(Debug)]
struct Failed {
    step: Step,
    error: Error,
    /// Whether its time was up.
    is_late: bool,
}

impl Failed {
    fn why(&self) -> String {
        if self.is_late {
            return format!("{}: not in force within {} s", self.step.name(), PATIENCE.as_secs());
        }
        let Refusal { message, details, .. } = self.error.to_refusal();
        // Of errors in a policy, the first one.
        let first = details.as_deref().and_then(|details| details.lines().next());
        let first = first.map_or_else(String::new, |line| format!(" ({line})"));
        format!("{}: {message}{first}", self.step.name())
    }

    /// Whether it may go well the next time: what is damaged stays so.
    fn is_passing(&self) -> bool {
        self.is_late || matches!(self.error, Error::Dataplane(_))
    }

    /// Whether the kernel refused, which may be another matter in a moment.
    fn is_kernel(&self) -> bool {
        let is_compiling = matches!(self.error, Error::Dataplane(DataplaneError::Compile(_)));
        matches!(self.error, Error::Dataplane(_)) && !is_compiling
    }
}

impl Control {
    /// Puts something in force where nothing is, or the built-in policy.
    pub(super) fn start_anew(
        &mut self,
        path: Option<&Path>,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let mut failed: Vec<Failed> = Vec::new();
        for step in Step::ALL {
            let is_first = failed.is_empty();
            if step == Step::Previous && is_first {
                continue;
            }
            let (result, is_late) = within(PATIENCE, interrupt, |interrupt| {
                let result = self.try_step(step, path, &failed, interrupt, reporter);
                (result, interrupt.is_set())
            });
            match result {
                Ok(false) => {}
                Ok(true) => {
                    if !is_first {
                        self.tell_start(&failed, step.name(), reporter);
                    }
                    return Ok(());
                }
                Err(error) if interrupt.is_set() => return Err(error),
                Err(error) => {
                    let why = Failed { step, error, is_late };
                    reporter.note(&format!("NOT IN FORCE: {}", why.why()));
                    failed.push(why);
                }
            }
        }
        if failed.is_empty() {
            reporter.note("nothing is in force yet: `portsteer apply FILE` puts a policy in force");
            return Ok(());
        }
        // Once the host is closed, it stays so.
        if self.on_failure == OnFailure::ClosedButProtected || self.is_attached() {
            self.start_closed(path, interrupt, reporter)?;
            self.tell_start(&failed, "the built-in policy: closed but protected", reporter);
            return Ok(());
        }
        // Nothing is kept that an operator would have to be told of over the socket; or it may go well the next time.
        let ends = |failed: &Failed| failed.step == Step::File || failed.is_kernel();
        if failed.iter().all(ends) {
            return Err(failed.swap_remove(0).error);
        }
        self.tell_start(&failed, "no policy: everything passes", reporter);
        Ok(())
    }

    /// Whether there was something to put in force.
    fn try_step(
        &mut self,
        step: Step,
        path: Option<&Path>,
        failed: &[Failed],
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<bool, Error> {
        let which = match step {
            Step::Accepted => Which::Accepted,
            Step::Previous => Which::Previous,
            Step::File => {
                let Some(path) = path.filter(|path| path.exists()) else { return Ok(false) };
                let loaded = load_own(path, interrupt)?;
                // Where nothing that is kept can be used, it is what is to be kept.
                if !failed.iter().any(Failed::is_passing) {
                    self.start_with(loaded, interrupt, reporter)?;
                    return Ok(true);
                }
                let how = How::default();
                self.start_provisionally(Desired::of(loaded), &how, interrupt, reporter)?;
                return Ok(true);
            }
        };
        let Some(record) = self.kept(which)? else { return Ok(false) };
        let desired = self.load_desired(record, interrupt)?;
        // It was accepted before, and forced if that was needed.
        let how = How { force: true, ..How::default() };
        if failed.is_empty() {
            let (interfaces, warnings) = (Interfaces::Awaited, String::new());
            self.swap(desired, &how, interfaces, warnings, interrupt, reporter)?;
        } else {
            self.start_provisionally(desired, &how, interrupt, reporter)?;
        }
        Ok(true)
    }

    /// Puts a policy in force that does not take the place of the one that was accepted: at the next start that one
    /// is tried again.
    fn start_provisionally(
        &mut self,
        desired: Desired,
        how: &How,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let next = Desired { unkeepable: Some(NOT_ACCEPTED.to_owned()), ..desired };
        self.swap(next, how, Interfaces::Awaited, String::new(), interrupt, reporter).map(drop)
    }

    /// Puts the built-in policy in force.
    fn start_closed(
        &mut self,
        path: Option<&Path>,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let instead_of = self.what_was_meant(path, interrupt);
        let built_in = BuiltIn::new(instead_of.as_ref(), &self.protected)?;
        let policy = understand_text(&built_in.text).map_err(|()| {
            Error::Refused(Refusal::refused("the built-in policy cannot be put together"))
        })?;
        let mut record = Record::of(&Bundle::of_text(built_in::PATH, &*built_in.text));
        record.id = built_in.id;
        let desired = Desired {
            record,
            text: built_in.text.as_str().into(),
            policy: Arc::new(policy),
            generation: 0,
            is_whole: true,
            unkept: None,
            unkeepable: None,
        };
        let how = How { force: true, ..How::default() };
        self.start_provisionally(desired, &how, interrupt, reporter)
    }

    /// What can be known of a policy that was to be in force: all but the addresses of its set files.
    fn what_was_meant(&self, path: Option<&Path>, interrupt: &Interrupt) -> Option<Policy> {
        let kept = [Which::Accepted, Which::Previous].into_iter().find_map(|which| {
            let record = self.kept(which).ok()??;
            let text = self.store.as_ref()?.read_text(&record, interrupt).ok()?;
            understand_text(&text).ok()
        });
        kept.or_else(|| {
            let bytes = read_still(path?, crate::agent::loading::MAX_POLICY_LEN, interrupt).ok()?;
            understand_text(&String::from_utf8(bytes).ok()?).ok()
        })
    }

    /// Says loudly what is in force instead of what should be.
    fn tell_start(&mut self, failed: &[Failed], in_force: &str, reporter: &mut dyn Reporter) {
        let failed: Vec<String> = failed.iter().map(Failed::why).collect();
        let problem = format!(
            "AT THE START, POLICIES COULD NOT BE PUT IN FORCE: {}. In force is {in_force}. `portsteer apply FILE` puts \
             another policy in force",
            failed.join("; ")
        );
        reporter.note(&problem);
        self.history.add(None, &problem);
        self.start_problem = Some(problem);
    }
}

/// A policy of which the addresses of set files do not matter.
fn understand_text(text: &str) -> Result<Policy, ()> {
    let parsed = policy::file::parse_with(text, &services(), &mut lost_files);
    parsed.map(|parsed| parsed.policy).map_err(drop)
}

/// Does something for so long at most: then its interrupt is set, as it is when the outer one is.
fn within<T>(patience: Duration, interrupt: &Interrupt, work: impl FnOnce(&Interrupt) -> T) -> T {
    let part = interrupt.for_a_part();
    let (done, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let timer = part.clone();
        // Where there is no thread to be had, there is no time limit either.
        let _ =
            thread::Builder::new().name("time limit".to_owned()).spawn_scoped(scope, move || {
                if over.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                    timer.set();
                }
            });
        let result = work(&part);
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_interrupted_when_its_time_is_up_or_the_agent_is_to_end() {
        let until_set = |interrupt: &Interrupt| {
            while !interrupt.is_set() {
                thread::yield_now();
            }
        };
        let agent = Interrupt::default();
        within(Duration::from_millis(1), &agent, until_set);
        assert!(!agent.is_set(), "only the work is over");
        thread::scope(|scope| {
            scope.spawn(|| agent.set());
            within(Duration::MAX, &agent, until_set);
        });
        // And otherwise nobody waits.
        let quick = within(Duration::MAX, &Interrupt::default(), Interrupt::is_set);
        assert!(!quick);
    }
}
