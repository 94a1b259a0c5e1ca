//! Edits of the policy in force.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Control, Desired, applying::answer, content_is_lost};
use crate::{
    agent::{
        Bundle, Error, Reporter,
        bundle::{SetFile, lost_files},
        file_edits::{FileEdit, Folded},
        loading::{check_len, host_facts, not_interrupted, services},
        store::{MAX_EDITED, Record},
    },
    api::{ApplyAnswer, EditRequest, Kind, Refusal},
    compile::Interrupt,
    dataplane::{Applied, Interfaces},
    policy::{
        self, Policy, SetId,
        edit::{Edit, Edited, edit_text, not_in_set},
        lint,
        set_edit::{SetEdit, SetEdited},
    },
};

impl Control {
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
            return Err(Error::Refused(content_is_lost()));
        }
        let mut plan = Plan::new(&desired, &request.edits, interrupt)?;
        let changes_text = plan.text != *desired.text;
        let (policy, warnings) = match changes_text {
            true => plan.read(&desired, interrupt)?,
            false => {
                let mut policy = (*desired.policy).clone();
                plan.edit_sets(&mut policy, interrupt)?;
                (policy, String::new())
            }
        };
        if !changes_text && plan.files.is_empty() {
            // Nothing to go back from, either.
            let kept = self.not_kept.is_none();
            let mut answer = answer(&desired, &Applied::default(), None, warnings, kept);
            answer.notes.push("nothing is changed: it is so already".to_owned());
            return Ok(answer);
        }
        let mut record = desired.record.with_text(&plan.text).with_edits(&plan.file_edits());
        // Content that is on disk stays there, and the edits beside it, unless they have become too many.
        let is_long = |change: &FileChange| record.edited(&change.file) > MAX_EDITED;
        let whole = match (&desired.unkept, &self.store) {
            (Some(bundle), _) if bundle.files.len() == record.files.len() => Some(bundle.clone()),
            (None, Some(store)) if plan.files.iter().any(is_long) => {
                Some(store.read_bundle(&desired.record, interrupt)?)
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
            unkeepable: None,
        };
        self.swap(next, &request.how, Interfaces::Kept, warnings, interrupt, reporter)
    }
}

/// What the text with the edits is called: it is no file.
const EDITED: &str = "the policy with this edit";

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

/// The most edits that are made together.
pub const MAX_EDITS: usize = 1_000;

/// Through how many bytes the edits of a request go at most: each reads all of the policy's text, and goes
/// through all prefixes of its set. Reading so much takes half a minute.
const MAX_WORK: usize = 256 << 20;

/// What going through a prefix costs, as bytes of text.
const PREFIX_WORK: usize = 16;

/// Refuses edits that would keep the agent from everything else for long.
fn check_work(desired: &Desired, edits: &[Edit]) -> Result<(), Error> {
    let refuse = |message: String, most: usize| {
        let help = match most {
            0 | 1 => "apply the policy instead".to_owned(),
            most => format!("send at most {most} in a request, or apply the policy instead"),
        };
        Err(Error::Refused(Refusal::bad_input(message).help(help)))
    };
    let count = edits.len();
    if count > MAX_EDITS {
        let message =
            format!("the request has {count} edits, and at most {MAX_EDITS} are made together");
        return refuse(message, MAX_EDITS);
    }
    let prefixes: HashMap<&str, usize> =
        desired.policy.sets.iter().map(|set| (&*set.name, set.prefixes.len())).collect();
    let work: usize = edits
        .iter()
        .map(|edit| {
            let of_set = match edit {
                Edit::AddPrefixes { set, .. } | Edit::RemovePrefixes { set, .. } => {
                    prefixes.get(&**set).copied().unwrap_or(0)
                }
                _ => 0,
            };
            desired.text.len() + of_set * PREFIX_WORK
        })
        .sum();
    // One edit is always made.
    if count > 1 && work > MAX_WORK {
        let message = format!("{count} edits of so long a policy would take too long together");
        return refuse(message, MAX_WORK / work.div_ceil(count));
    }
    Ok(())
}

impl Plan {
    pub(super) fn new(
        desired: &Desired,
        edits: &[Edit],
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        check_work(desired, edits)?;
        let mut plan = Self { text: desired.text.to_string(), files: Vec::new() };
        for edit in edits {
            not_interrupted(interrupt)?;
            // Each of them may make it longer.
            check_len(&plan.text)?;
            match edit_text(&plan.text, edit)? {
                Edited::Text(text) => plan.text = text,
                Edited::SetFile(file) => {
                    let (adds, prefixes) = match edit {
                        Edit::AddPrefixes { prefixes, .. } => (true, prefixes),
                        Edit::RemovePrefixes { prefixes, .. } => (false, prefixes),
                        _ => continue,
                    };
                    match plan.files.last_mut() {
                        // Adding is the same in one go or in several.
                        Some(last) if adds && last.adds && last.file == file => {
                            last.prefixes.extend(prefixes);
                        }
                        _ => plan.files.push(FileChange { file, adds, prefixes: prefixes.clone() }),
                    }
                }
            }
        }
        Ok(plan)
    }

    /// Changes what sets have from files. Changes that change nothing are forgotten.
    fn edit_sets(&mut self, policy: &mut Policy, interrupt: &Interrupt) -> Result<(), Error> {
        let mut effective = Vec::new();
        for FileChange { file, adds, prefixes } in std::mem::take(&mut self.files) {
            not_interrupted(interrupt)?;
            let ids = (0..).map(SetId).take(policy.sets.len());
            let is_of = |id: &SetId| policy.set(*id).file.as_ref() == Some(&file);
            let ids: Vec<SetId> = ids.filter(is_of).collect();
            let Some(&first) = ids.first() else { continue };
            let before = Arc::clone(&policy.set(first).prefixes);
            let (remove, add) =
                if adds { (Vec::new(), prefixes.clone()) } else { (prefixes.clone(), Vec::new()) };
            let edited = policy
                .edit_set(first, &SetEdit { remove, add })
                .map_err(|error| Error::Refused(Refusal::bad_input(error.to_string())))?;
            let named: HashSet<_> = prefixes.iter().copied().collect();
            let removed: HashSet<_> = edited.removed.iter().copied().collect();
            if !adds && removed.len() < named.len() {
                let name = &policy.set(first).name;
                return Err(not_in_set(name, &prefixes, &removed, before.iter().copied()).into());
            }
            // What the others have is the same.
            let after = Arc::clone(&policy.set(first).prefixes);
            for set in policy.sets.iter_mut().filter(|set| set.file.as_ref() == Some(&file)) {
                set.prefixes = Arc::clone(&after);
            }
            if edited != SetEdited::default() {
                effective.push(FileChange { file, adds, prefixes });
            }
        }
        self.files = effective;
        Ok(())
    }

    /// Reads the changed text; what files have is known already.
    fn read(
        &mut self,
        desired: &Desired,
        interrupt: &Interrupt,
    ) -> Result<(Policy, String), Error> {
        check_len(&self.text)?;
        let (services, mut files) = (services(), lost_files);
        let parsed = policy::file::parse_until(&self.text, &services, Some(&mut files), interrupt);
        not_interrupted(interrupt)?;
        let mut parsed = parsed.map_err(|diagnostics| Error::Policy {
            path: EDITED.into(),
            text: self.text.clone(),
            diagnostics,
        })?;
        let files = desired.policy.sets.iter();
        let known: HashMap<&str, &Arc<Vec<IpNet>>> =
            files.filter_map(|set| Some((set.file.as_deref()?, &set.prefixes))).collect();
        for set in parsed.policy.sets.iter_mut().filter(|set| set.file.is_some()) {
            if let Some(known) = set.file.as_deref().and_then(|file| known.get(file)) {
                set.prefixes = Arc::clone(known);
            }
        }
        let mut policy = parsed.policy;
        self.edit_sets(&mut policy, interrupt)?;
        let mut warnings = parsed.warnings;
        const FEW: usize = 100_000;
        if policy.sets.iter().map(|set| set.prefixes.len()).sum::<usize>() < FEW {
            warnings.extend(lint::lint(&policy, &host_facts()));
        }
        let text = crate::agent::render_diagnostics(EDITED, &self.text, &warnings);
        Ok((policy, text))
    }

    /// What becomes of set files, each with its name.
    fn file_edits(&self) -> Vec<(&str, FileEdit)> {
        let edit = |change: &FileChange| FileEdit::new(change.adds, &change.prefixes);
        self.files.iter().map(|change| (change.file.as_str(), edit(change))).collect()
    }

    /// The whole policy, as it is to be kept.
    fn edited(&self, mut bundle: Bundle) -> Result<Bundle, Error> {
        bundle.text.clone_from(&self.text);
        let edits = self.file_edits();
        for SetFile { name, content } in &mut bundle.files {
            let of_file = edits.iter().filter(|(file, _)| file == name).map(|(_, edit)| edit);
            let edited = Folded::of(of_file).and_then(|folded| folded.apply(content));
            *content = edited.map_err(|why| Error::Refused(Refusal::bad_input(why)))?;
        }
        Ok(bundle)
    }
}

impl From<policy::edit::EditError> for Error {
    fn from(error: policy::edit::EditError) -> Self {
        Self::Refused(Refusal { kind: Kind::BadInput, ..Refusal::bad_input(error.to_string()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::loading::understand,
        policy::edit::{Place, RuleRef},
    };

    fn desired() -> Desired {
        let rules: String =
            (0..3).map(|at| format!("[[rules]]\nname = \"r{at}\"\naction = \"drop\"\n")).collect();
        let text = format!("version = 1\ninterfaces = [\"eth0\"]\n[sets.s]\nfile = \"f\"\n{rules}");
        let file = SetFile { name: "f".to_owned(), content: b"10.0.0.1\n".to_vec() };
        let bundle = Bundle { files: vec![file], ..Bundle::of_text("p.toml", text) };
        Desired::of(understand(bundle).expect("a policy"))
    }

    fn moves(count: usize) -> Vec<Edit> {
        let edit = Edit::MoveRule { rule: RuleRef::Name("r0".to_owned()), place: Place::Last };
        vec![edit; count]
    }

    #[test]
    fn an_interrupt_is_heard_between_edits() {
        let interrupt = Interrupt::default();
        assert!(Plan::new(&desired(), &moves(2), &interrupt).is_ok());
        interrupt.set();
        let Err(error) = Plan::new(&desired(), &moves(2), &interrupt) else { panic!("not heard") };
        assert!(error.to_refusal().message.contains("interrupted"));
    }

    #[test]
    fn edits_are_refused_beyond_their_limit() {
        assert!(check_work(&desired(), &moves(MAX_EDITS)).is_ok());
        assert!(check_work(&desired(), &moves(MAX_EDITS + 1)).is_err());
        let long = Desired { text: "#".repeat(MAX_WORK / 4).into(), ..desired() };
        assert!(check_work(&long, &moves(4)).is_ok() && check_work(&long, &moves(5)).is_err());
        let longer = Desired { text: "#".repeat(MAX_WORK + 1).into(), ..desired() };
        assert!(check_work(&longer, &moves(1)).is_ok(), "one edit is always made");
    }

    #[test]
    fn additions_to_one_file_are_made_as_one() {
        let add = |address: &str| Edit::AddPrefixes {
            set: "s".to_owned(),
            prefixes: vec![address.parse().expect("a prefix")],
        };
        let edits: Vec<Edit> = (0..100).map(|at| add(&format!("10.1.0.{at}/32"))).collect();
        let plan = Plan::new(&desired(), &edits, &Interrupt::default()).expect("edits");
        assert_eq!(plan.files.len(), 1);
        assert_eq!(plan.files[0].prefixes.len(), 100);
    }
}
