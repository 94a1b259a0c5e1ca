//! Undoes what was changed in the kernel behind the agent's back, and says so.

use super::Control;
use crate::{
    agent::{Error, Reporter},
    compile::Interrupt,
    dataplane::{Findings, Interfaces},
};

/// How many differences `status` remembers.
const REMEMBERED: usize = 8;

impl Control {
    /// Looks whether the kernel has what was put in force, and puts it right.
    pub fn guard(&mut self, interrupt: &Interrupt, reporter: &mut dyn Reporter) {
        if let Err(error) = self.try_to_guard(interrupt, reporter) {
            self.complain(&error, reporter);
        }
    }

    fn try_to_guard(
        &mut self,
        interrupt: &Interrupt,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let Some(dataplane) = &self.dataplane else { return Ok(()) };
        self.is_hidden = dataplane.is_hidden();
        let Findings { differences, attach, apply } = dataplane.guard()?;
        if differences.is_empty() {
            return Ok(());
        }
        for difference in differences {
            reporter.note(&difference);
            self.history.add(None, &difference);
            self.tampered.retain(|known| *known != difference);
            self.tampered.push(difference);
        }
        let forgotten = self.tampered.len().saturating_sub(REMEMBERED);
        self.tampered.drain(..forgotten);
        let Some(desired) = self.desired.clone() else { return Ok(()) };
        if apply && desired.is_whole && self.trial_ends.is_none() {
            let order = desired.order(None, Interfaces::Kept);
            let applied = self.dataplane()?.apply(&order, interrupt)?;
            if let Some(desired) = &mut self.desired {
                desired.generation = applied.generation;
            }
            reporter.note("the policy was put in force anew");
        } else if attach {
            self.follow_interfaces(interrupt, reporter);
            if self.trial_ends.is_none() {
                self.dataplane()?.attach_missing(&desired.policy)?;
            }
            reporter.note("the programs were put back");
        }
        Ok(())
    }
}
