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
    Decision, Image, Node, PortProtocol, Reason, Verdict,
    image::{Cell, MAX_RULES, Roots, column, feature},
    node::{Kind, SMALL_SEGMENTS, Segment, row},
};

use crate::policy::{Action, NumberRange, Policy, Rule};

use budget::{Budget, MAX_WORDS, OverBudget};
use diagram::{Diagram, Entries, Tables};
use fields::{Fields, Match};
use partitions::{Partitions, Side};
use ranges::{Resolver, V4, V6};

mod budget;
mod diagram;
pub mod evaluate;
mod fields;
mod partitions;
mod ranges;

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
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Ends the compilation soon.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
    assert_eq!(policy.rules.len(), decisions.len(), "each rule has a decision");
    if policy.rules.len() > MAX_RULES {
        return Err(CompileError::TooManyRules { count: policy.rules.len() });
    }
    for (rule, decision) in policy.rules.iter().zip(decisions) {
        assert_eq!(verdict(rule.action), decision.verdict(), "a rule's decision is its own");
    }
    let mut budget = Budget::new(policy.rules.len(), interrupt.clone());
    compile_within(policy, interfaces, decisions, &mut budget).map_err(|over| {
        let blamed = |(index, parts): (usize, u32)| {
            let rule = &policy.rules[index];
            Blamed { label: policy.label(rule), line: rule.line, parts }
        };
        let rules = budget.to_blame().into_iter().map(blamed).collect();
        match over {
            OverBudget::Words => CompileError::TooLarge { rules },
            OverBudget::Steps => CompileError::TooMuchWork { rules },
            OverBudget::Interrupted => CompileError::Interrupted,
        }
    })
}

fn compile_within(
    policy: &Policy,
    interfaces: &[(u32, &str)],
    decisions: &[Decision],
    budget: &mut Budget,
) -> Result<Compiled, OverBudget> {
    let mut matches = Vec::with_capacity(policy.rules.len());
    for rule in &policy.rules {
        matches.push(Match::new(rule, slots(rule, interfaces)));
    }
    let features = features(&matches);
    let mut image: Box<Image> = bytemuck::zeroed_box();
    image.features = features;
    image.default = Decision::without_rule(verdict(policy.default), Reason::NoRule);
    image.fragments =
        Decision::without_rule(verdict(policy.options.fragments), Reason::FragmentWithoutPorts);
    image.malformed = verdict(policy.options.malformed) as u32;
    image.unsupported = verdict(policy.options.unsupported) as u32;

    let mut diagram = Diagram::default();
    let mut partitions = Partitions::new(Fields::new(&matches), Resolver::new(policy));
    let of_partition = |src: bool, dst: bool| -> Vec<u32> {
        let is_in = |rule: &Rule| rule.src.is_any() != src && (src || rule.dst.is_any() != dst);
        (0..).zip(&policy.rules).filter(|(_, rule)| is_in(rule)).map(|(number, _)| number).collect()
    };
    let anywhere = of_partition(false, false);
    let fields = partitions.fields();
    for protocol in PortProtocol::ALL {
        let row = protocol as u32;
        let entries = fields.columns(&anywhere, row, &mut diagram, budget)?;
        let cells = &mut image.by_port[row as usize];
        for (range, node) in ranges_of(&entries) {
            let cell = cell(node, features, &image.default, &image.fragments, decisions);
            for port in range.first..=range.last {
                cells[usize::from(column(port.to_be_bytes()))] = cell;
            }
        }
    }
    let entries = fields.columns(&anywhere, row::OTHER, &mut diagram, budget)?;
    for (range, node) in ranges_of(&entries) {
        let cell = cell(node, features, &image.default, &image.fragments, decisions);
        let last = range.last.min(image.by_protocol.len() as u16 - 1);
        image.by_protocol[usize::from(range.first)..=usize::from(last)].fill(cell);
    }
    if features == 0 {
        return Ok(Compiled { image, tables: diagram.finish(&[]) });
    }
    let entries = fields.columns(&anywhere, row::ICMP, &mut diagram, budget)?;
    image.icmp = diagram.branch(Kind::Branch, entries, budget)?;
    let entries = fields.columns(&anywhere, row::ICMPV6, &mut diagram, budget)?;
    image.icmpv6 = diagram.branch(Kind::Branch, entries, budget)?;
    let src = of_partition(true, false);
    let dst = of_partition(false, true);
    let mut root =
        |side, rules: &[u32], version| partitions.root(side, rules, version, &mut diagram, budget);
    image.roots = Roots {
        src_v4: root(Side::Src, &src, V4)?,
        src_v6: root(Side::Src, &src, V6)?,
        dst_v4: root(Side::Dst, &dst, V4)?,
        dst_v6: root(Side::Dst, &dst, V6)?,
    };
    let decisions: Vec<u32> = decisions.iter().map(|decision| decision.to_bits()).collect();
    let tables = diagram.finish(&decisions);
    if tables.segments() > SMALL_SEGMENTS {
        image.features |= feature::LARGE;
    }
    Ok(Compiled { image, tables })
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
