//! Policy to image and tables. A pure function: no system calls, and the same policy, interfaces and
//! decisions give the same bytes.
//!
//! Rules are taken apart by which addresses they constrain: none, the source alone, the destination
//! alone, or both. [`fields`] finds for a list of rules which decides by everything but addresses;
//! [`partitions`] finds the lists, by address. What comes of it is a [`diagram`] of which equal parts
//! are there once. [`budget`] ends what would take too much, and says who is to blame.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use portsteer_common::{
    Decision, Image, Node, Verdict,
    image::{Cell, MAX_RULES, Roots, feature},
    node::Segment,
};

use crate::policy::{Action, NumberRange, Policy, Rule};

use budget::MAX_WORDS;
use diagram::Entries;
use fields::Match;
use layout::Tables;

pub use compiler::Compiler;

mod asked;
mod budget;
mod changes;
mod compiler;
mod diagram;
pub mod evaluate;
mod fields;
mod known;
mod layout;
mod partitions;
mod patch;
mod ranges;
mod tree;

/// Why a policy cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More rules than an image holds.
    #[error("the policy has {count} rules, and this portsteer takes at most {MAX_RULES}")]
    TooManyRules { count: usize },
    /// The rules' addresses, ports and VLANs meet in too many ways.
    #[error(
        "the policy's tables would be larger than {} MiB{}",
        (MAX_WORDS * 4) >> 20,
        blame(rules)
    )]
    TooLarge { rules: Vec<Blamed> },
    /// The same, found out in another way.
    #[error("the policy's rules meet in too many ways to be compiled{}", blame(rules))]
    TooMuchWork { rules: Vec<Blamed> },
    /// By [`Interrupt::set`].
    #[error("interrupted before the policy was compiled")]
    Interrupted,
}

/// With a clone of this, another thread ends a compilation that nobody waits for any more.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    own: Arc<AtomicBool>,
    /// That of the work which this is a part of.
    outer: Option<Arc<Self>>,
}

impl Interrupt {
    /// Another one, for a part of the work: it is set when this one is, and can be set alone.
    #[must_use]
    pub fn for_a_part(&self) -> Self {
        Self { own: Arc::default(), outer: Some(Arc::new(self.clone())) }
    }

    /// Ends the compilation soon.
    pub fn set(&self) {
        self.own.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.own.load(Ordering::Relaxed) || self.outer.as_ref().is_some_and(|outer| outer.is_set())
    }
}

/// A rule that has to be in many parts of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blamed {
    /// What listings call it.
    pub label: String,
    /// The line in the policy file.
    pub line: usize,
    /// In how many parts.
    pub parts: u32,
}

fn blame(rules: &[Blamed]) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let rules: Vec<String> = rules
        .iter()
        .map(|rule| format!("`{}` (line {}) in {} parts", rule.label, rule.line, rule.parts))
        .collect();
    format!(
        ": wide rules that overlap many narrow ones have to be repeated in each. Most of all: {}. \
         Join rules that differ in their addresses alone by a set, or make wide ones narrower",
        rules.join(", ")
    )
}

/// A compiled policy, which can be written to any segments of the tables.
#[expect(missing_debug_implementations, reason = "as for the image")]
pub struct Compiled {
    /// Nodes count from the tables' own start.
    image: Box<Image>,
    tables: Tables,
}

impl Compiled {
    /// Bits of [`feature`].
    #[must_use]
    pub fn features(&self) -> u32 {
        self.image.features
    }

    /// How many segments the tables fill.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.tables.segments()
    }

    /// How many bytes of memory the policy takes in the kernel, tables and image.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.segments() * size_of::<Segment>() + size_of::<Image>()
    }

    /// Writes the policy to an image and to as many segments as it fills, of which the first has this
    /// number, whatever they held before.
    ///
    /// # Panics
    ///
    /// If there are not as many segments.
    pub fn write(&self, image: &mut Image, segments: &mut [Segment], first_segment: usize) {
        assert_eq!(segments.len(), self.segments(), "as many segments as the policy fills");
        self.tables.write(segments, first_segment);
        image.clone_from(&self.image);
        if self.image.features == 0 {
            return;
        }
        let place = |node: Node| self.tables.place(node, first_segment);
        let cells = image.by_port.as_flattened_mut().iter_mut().chain(&mut image.by_protocol);
        for cell in cells {
            *cell = place(Node::from_bits(cell.0)).into();
        }
        let Roots { src_v4, src_v6, dst_v4, dst_v6 } = &mut image.roots;
        for node in [src_v4, src_v6, dst_v4, dst_v6, &mut image.icmp, &mut image.icmpv6] {
            *node = place(*node);
        }
        image.decisions = self.tables.more_at(first_segment);
        image.first_segment = first_segment as u32;
        image.segments = segments.len() as u32;
    }
}

/// Compiles a policy. Packets that rule `i` matches get `decisions[i]`, of which only the counter and
/// the target's slot are news: the verdict is the rule's own. `interfaces` are those that the policy is
/// for, with their slots.
///
/// # Errors
///
/// The policy is beyond the budget, or compiling it was interrupted.
///
/// # Panics
///
/// If there are not as many decisions as rules, or one has another verdict than its rule.
pub fn compile(
    policy: &Policy,
    interfaces: &[(u32, &str)],
    decisions: &[Decision],
    interrupt: &Interrupt,
) -> Result<Compiled, CompileError> {
    Compiler::forgetful().compile(policy, interfaces, decisions, interrupt)
}

/// The verdict that an action asks for.
#[must_use]
pub const fn verdict(action: Action) -> Verdict {
    match action {
        Action::Pass => Verdict::Pass,
        Action::Drop => Verdict::Drop,
        Action::Steer(_) => Verdict::Steer,
    }
}

/// The slots of the interfaces that a rule asks for.
fn slots(rule: &Rule, interfaces: &[(u32, &str)]) -> Option<Vec<NumberRange>> {
    if rule.interfaces.is_empty() {
        return None;
    }
    let globs: Vec<_> = rule
        .interfaces
        .iter()
        .filter(|pattern| pattern.is_glob)
        .filter_map(|pattern| globset::Glob::new(&pattern.text).ok())
        .map(|glob| glob.compile_matcher())
        .collect();
    let is_named = |name: &str| rule.interfaces.iter().any(|pattern| pattern.text == name);
    let mut slots: Vec<NumberRange> = interfaces
        .iter()
        .filter(|(_, name)| is_named(name) || globs.iter().any(|glob| glob.is_match(name)))
        .map(|&(slot, _)| NumberRange::single(slot as u16))
        .collect();
    slots.sort_unstable();
    Some(slots)
}

fn features(rules: &[Match<'_>]) -> u32 {
    let mut features = 0;
    for found in rules {
        let rule = found.rule;
        features |= match (!rule.src.is_any(), !rule.dst.is_any()) {
            (true, true) => feature::BOTH,
            (true, false) => feature::SRC,
            (false, true) => feature::DST,
            (false, false) => 0,
        };
        if found.has_extras(false) {
            features |= feature::EXTRAS;
        }
        if !rule.icmp_types.is_empty() {
            features |= feature::RULES;
        }
    }
    if features == 0 { 0 } else { features | feature::RULES }
}

/// From entries to ranges of keys.
fn ranges_of(entries: &Entries) -> impl Iterator<Item = (NumberRange, Node)> {
    entries.iter().enumerate().map(|(index, &(first, node))| {
        let last = entries.get(index + 1).map_or(u16::MAX, |next| next.0 - 1);
        (NumberRange { first, last }, node)
    })
}

fn cell(
    node: Node,
    features: u32,
    default: &Decision,
    fragments: &Decision,
    decisions: &[Decision],
) -> Cell {
    if features != 0 {
        node.into()
    } else if node == Node::NOTHING {
        (*default).into()
    } else if node.is_later() {
        (*fragments).into()
    } else {
        decisions[node.rule_number() as usize].into()
    }
}
