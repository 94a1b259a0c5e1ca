//! Policy to image and tables. A pure function: no system calls, and the same policy, interfaces and
//! decisions give the same bytes.
//!
//! Rules are taken apart by which addresses they constrain: none, the source alone, the destination
//! alone, or both. [`fields`] finds for a list of rules which decides by everything but addresses;
//! [`partitions`] finds the lists, by address. What comes of it is a [`diagram`] of which equal parts
//! are there once. [`budget`] ends what would take too much, and says who is to blame.

use std::collections::HashMap;

use portsteer_common::{
    Decision, Image, Node, Verdict,
    image::{Cell, MAX_RULES, Roots, feature},
    node::Segment,
};

use crate::policy::{Action, InterfacePattern, NumberRange, Policy, Rule};

use budget::MAX_WORDS;
use diagram::Entries;
use fields::Match;
use layout::Tables;

pub use crate::interrupt::Interrupt;
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

/// Which of some interfaces patterns mean. Each pattern is looked at once, however many rules have it.
struct Slots<'a> {
    /// The interfaces that the policy is for, with their slots.
    interfaces: &'a [(u32, &'a str)],
    by_pattern: HashMap<&'a str, Vec<u32>>,
}

impl<'a> Slots<'a> {
    fn new(interfaces: &'a [(u32, &'a str)]) -> Self {
        Self { interfaces, by_pattern: HashMap::new() }
    }

    fn of_pattern(&mut self, pattern: &'a InterfacePattern) -> &[u32] {
        let interfaces = self.interfaces;
        self.by_pattern.entry(&pattern.text).or_insert_with(|| {
            let glob = match pattern.is_glob {
                true => globset::Glob::new(&pattern.text).ok().map(|glob| glob.compile_matcher()),
                false => None,
            };
            let is_meant = |name: &str| {
                name == pattern.text || glob.as_ref().is_some_and(|glob| glob.is_match(name))
            };
            let meant = interfaces.iter().filter(|(_, name)| is_meant(name));
            meant.map(|&(slot, _)| slot).collect()
        })
    }

    /// The slots of the interfaces that a rule asks for.
    fn of(&mut self, rule: &'a Rule) -> Option<Vec<NumberRange>> {
        if rule.interfaces.is_empty() {
            return None;
        }
        let mut slots: Vec<NumberRange> = Vec::new();
        for pattern in &rule.interfaces {
            let meant = self.of_pattern(pattern).iter();
            slots.extend(meant.map(|&slot| NumberRange::single(slot as u16)));
        }
        slots.sort_unstable();
        slots.dedup();
        Some(slots)
    }
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
