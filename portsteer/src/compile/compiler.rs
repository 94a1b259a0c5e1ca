//! Compiles policies one after the other. What was built for the last one is kept, with what it was built
//! from: if the next differs in its sets alone, only addresses are looked at where these differ, and all
//! else is there. The tables are the same as if nothing had been kept.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use portsteer_common::{
    Decision, Image, Node, PortProtocol, Reason,
    image::{MAX_RULES, Roots, column, feature},
    node::{Kind, SMALL_SEGMENTS, row},
};

use super::{
    Blamed, CompileError, Compiled, Interrupt, Slots,
    asked::asked,
    budget::{Budget, OverBudget},
    cell,
    changes::Changes,
    diagram::Diagram,
    features,
    fields::{Fields, Match, Tails},
    layout::{Layout, Tables},
    partitions::{ByDestination, Partitions, Side},
    ranges::{Region, V4, V6},
    ranges_of, verdict,
};
use crate::policy::{AddressItem, Addresses, Policy};

/// Compiles policies, the faster the less a policy's sets differ from those of the one before.
#[derive(Default)]
pub struct Compiler {
    kept: Option<Kept>,
    is_forgetful: bool,
}

/// What is kept of a policy.
struct Kept {
    asked: Vec<u8>,
    sets: Vec<Arc<Vec<IpNet>>>,
    built: Built,
    /// How many words and steps it took.
    words: usize,
    steps: u64,
}

/// What was built for a policy, of nodes of one diagram.
struct Built {
    image: Box<Image>,
    diagram: Arc<Diagram>,
    tails: Tails,
    by_destination: ByDestination,
}

/// What is compiled.
struct Input<'a> {
    policy: &'a Policy,
    matches: &'a [Match<'a>],
    decisions: &'a [Decision],
}

impl Compiler {
    /// One that keeps nothing.
    pub(super) fn forgetful() -> Self {
        Self { kept: None, is_forgetful: true }
    }

    /// Compiles a policy, as [`compile`](super::compile) does it.
    ///
    /// # Errors
    ///
    /// The policy is beyond the budget, or compiling it was interrupted. Then nothing is kept.
    ///
    /// # Panics
    ///
    /// If there are not as many decisions as rules, or one has another verdict than its rule.
    pub fn compile(
        &mut self,
        policy: &Policy,
        interfaces: &[(u32, &str)],
        decisions: &[Decision],
        interrupt: &Interrupt,
    ) -> Result<Compiled, CompileError> {
        assert_eq!(policy.rules.len(), decisions.len(), "each rule has a decision");
        let count = policy.rules.len();
        if count > MAX_RULES {
            return Err(CompileError::TooManyRules { count });
        }
        for (rule, decision) in policy.rules.iter().zip(decisions) {
            assert_eq!(verdict(rule.action), decision.verdict(), "a rule's decision is its own");
        }
        let mut slots = Slots::new(interfaces);
        let matches = policy.rules.iter().map(|rule| Match::new(rule, slots.of(rule)));
        let matches: Vec<Match<'_>> = matches.collect();
        let input = Input { policy, matches: &matches, decisions };
        let asked = if self.is_forgetful { Vec::new() } else { asked(&matches) };
        if let Some(kept) = self.kept.take().filter(|kept| kept.asked == asked)
            && let Some(changes) = Changes::between(&kept.sets, &policy.sets)
        {
            let mut budget = Budget::resumed(count, kept.words, kept.steps, interrupt.clone());
            let compiled = rebuild(&input, kept.built, changes, &mut budget)
                .and_then(|built| self.finish(&input, kept.asked, built, &mut budget));
            match compiled {
                Ok(compiled) => return Ok(compiled),
                Err(OverBudget::Interrupted) => return Err(CompileError::Interrupted),
                // Whether it is too much, and who is to blame, is found out from the beginning.
                Err(OverBudget::Words | OverBudget::Steps) => {}
            }
        }
        let mut budget = Budget::new(count, interrupt.clone());
        build(&input, &mut budget)
            .and_then(|built| self.finish(&input, asked, built, &mut budget))
            .map_err(|over| {
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

    /// Lays out what was built, and keeps it.
    fn finish(
        &mut self,
        input: &Input<'_>,
        asked: Vec<u8>,
        built: Built,
        budget: &mut Budget,
    ) -> Result<Compiled, OverBudget> {
        let Input { policy, matches, decisions } = *input;
        let Built { mut image, mut diagram, mut tails, mut by_destination } = built;
        let features = features(matches);
        let layout = Layout::new(&diagram, nodes_of(&image, features), budget)?;
        let is_kept = !self.is_forgetful && features != 0 && !policy.sets.is_empty();
        // Nobody else has it yet.
        if is_kept
            && let Some(diagram) = Arc::get_mut(&mut diagram)
            && diagram.sweep(&layout)
        {
            let is_left = |node: Node| node.is_leaf() || layout.has(node);
            tails.retain(is_left);
            by_destination.retain(|_, node| is_left(*node));
        }
        let words = layout.len();
        let more: Vec<u32> = match features {
            0 => Vec::new(),
            _ => decisions.iter().map(|decision| decision.to_bits()).collect(),
        };
        let tables = Tables { diagram: diagram.clone(), layout, more };
        image.features = features;
        if tables.segments() > SMALL_SEGMENTS {
            image.features |= feature::LARGE;
        }
        self.kept = is_kept.then(|| Kept {
            asked,
            sets: policy.sets.iter().map(|set| set.prefixes.clone()).collect(),
            built: Built { image: image.clone(), diagram, tails, by_destination },
            words,
            steps: budget.steps(),
        });
        Ok(Compiled { image, tables })
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}

/// The nodes that stand in an image, whose program needs these features, in the order in which they do.
fn nodes_of(image: &Image, features: u32) -> impl Iterator<Item = Node> {
    let Roots { src_v4, src_v6, dst_v4, dst_v6 } = image.roots;
    const CHUNK: usize = 256;
    let chunks = image.by_port.as_flattened().chunks(CHUNK).chain(image.by_protocol.chunks(CHUNK));
    // They are decisions without features, and hardly ever anything but leaves with them.
    let chunks = chunks.filter(move |chunk| {
        let greatest = chunk.iter().fold(0, |greatest, cell| cell.0.max(greatest));
        features != 0 && !Node::from_bits(greatest).is_leaf()
    });
    let cells = chunks.flatten().map(|cell| Node::from_bits(cell.0));
    cells.chain([image.icmp, image.icmpv6, src_v4, src_v6, dst_v4, dst_v6])
}

/// The numbers of the rules that constrain the source or, without a source, the destination, or neither.
fn of_partition(policy: &Policy, src: bool, dst: bool) -> Vec<u32> {
    let rules = (0..)
        .zip(&policy.rules)
        .filter(|(_, rule)| rule.src.is_any() != src && (src || rule.dst.is_any() != dst));
    rules.map(|(number, _)| number).collect()
}

/// Builds everything.
fn build(input: &Input<'_>, budget: &mut Budget) -> Result<Built, OverBudget> {
    let Input { policy, matches, decisions } = *input;
    let features = features(matches);
    let mut image: Box<Image> = bytemuck::zeroed_box();
    set_options(policy, &mut image);
    let mut diagram = Diagram::default();
    let mut partitions = Partitions::new(Fields::new(matches, Tails::default()), policy);
    let anywhere = of_partition(policy, false, false);
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
    if features != 0 {
        let entries = fields.columns(&anywhere, row::ICMP, &mut diagram, budget)?;
        image.icmp = diagram.branch(Kind::Branch, entries, budget)?;
        let entries = fields.columns(&anywhere, row::ICMPV6, &mut diagram, budget)?;
        image.icmpv6 = diagram.branch(Kind::Branch, entries, budget)?;
        let src = of_partition(policy, true, false);
        let dst = of_partition(policy, false, true);
        let mut root = |side, rules: &[u32], version| {
            partitions.root(side, rules, version, &mut diagram, budget)
        };
        image.roots = Roots {
            src_v4: root(Side::Src, &src, V4)?,
            src_v6: root(Side::Src, &src, V6)?,
            dst_v4: root(Side::Dst, &dst, V4)?,
            dst_v6: root(Side::Dst, &dst, V6)?,
        };
    }
    let (fields, by_destination) = partitions.into_parts();
    Ok(Built { image, diagram: Arc::new(diagram), tails: fields.into_known(), by_destination })
}

/// Builds what is another now that there are changes.
fn rebuild(
    input: &Input<'_>,
    built: Built,
    changes: Changes,
    budget: &mut Budget,
) -> Result<Built, OverBudget> {
    let Input { policy, matches, .. } = *input;
    let Built { mut image, mut diagram, tails, by_destination } = built;
    let (tails, by_destination) = {
        let diagram = Arc::make_mut(&mut diagram);
        set_options(policy, &mut image);
        let has_changed = |addresses: &Addresses| {
            addresses.positive.iter().chain(&addresses.negative).any(|item| match item {
                AddressItem::Set(id) => changes.sets[id.0 as usize],
                AddressItem::Prefix(_) => false,
            })
        };
        let rule = |number: u32| &policy.rules[number as usize];
        let has_changed_src = |&number: &u32| has_changed(&rule(number).src);
        let has_changed_dst = |&number: &u32| has_changed(&rule(number).dst);
        let src = of_partition(policy, true, false);
        let dst = of_partition(policy, false, true);
        let is_empty = changes.ranges.0.each_ref().map(Vec::is_empty);
        let fields = Fields::new(matches, tails);
        let region = Region::within(changes.ranges);
        let mut partitions = Partitions::changed(fields, policy, region, by_destination);
        let is_other = src.iter().any(has_changed_dst)
            && partitions.patch_destinations(|number| has_changed_dst(&number), diagram, budget)?;
        let Roots { src_v4, src_v6, dst_v4, dst_v6 } = &mut image.roots;
        for (version, root) in [(V4, src_v4), (V6, src_v6)] {
            if is_other {
                // What stands all over the tree is another.
                *root = partitions.root(Side::Src, &src, version, diagram, budget)?;
            } else if !is_empty[version] && src.iter().any(has_changed_src) {
                let tree = (Side::Src, version);
                *root = partitions.patched_root(tree, &src, *root, diagram, budget)?;
            }
        }
        for (version, root) in [(V4, dst_v4), (V6, dst_v6)] {
            if !is_empty[version] && dst.iter().any(has_changed_dst) {
                let tree = (Side::Dst, version);
                *root = partitions.patched_root(tree, &dst, *root, diagram, budget)?;
            }
        }
        let (fields, by_destination) = partitions.into_parts();
        (fields.into_known(), by_destination)
    };
    Ok(Built { image, diagram, tails, by_destination })
}

/// What an image has of a policy besides its rules.
fn set_options(policy: &Policy, image: &mut Image) {
    image.default = Decision::without_rule(verdict(policy.default), Reason::NoRule);
    image.fragments =
        Decision::without_rule(verdict(policy.options.fragments), Reason::FragmentWithoutPorts);
    image.malformed = verdict(policy.options.malformed) as u32;
    image.unsupported = verdict(policy.options.unsupported) as u32;
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use portsteer_common::node::{SEGMENT_WORDS, Segment};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        compile::{compile, evaluate::Evaluator},
        oracle::{self, Packet},
        policy::{
            Mode, Options, Rule, Set, SetId,
            random::{policy, prefix},
            set_edit::SetEdit,
        },
    };

    fn decisions(policy: &Policy) -> Vec<Decision> {
        let rules = (1_000..).zip(&policy.rules);
        rules.map(|(counter, rule)| Decision::new(verdict(rule.action), counter)).collect()
    }

    fn written(compiled: &Compiled) -> (Box<Image>, Vec<Segment>) {
        let mut image: Box<Image> = bytemuck::zeroed_box();
        let mut segments = vec![[0xa5a5_a5a5; SEGMENT_WORDS]; compiled.segments()];
        compiled.write(&mut image, &mut segments, 3);
        (image, segments)
    }

    fn again(compiler: &mut Compiler, policy: &Policy) -> Compiled {
        compiler.compile(policy, &[], &decisions(policy), &Interrupt::default()).unwrap()
    }

    /// Whether a compiler that has compiled other policies makes the same tables as a new one.
    fn is_as_new(compiler: &mut Compiler, policy: &Policy) -> bool {
        let (image, segments) = written(&again(compiler, policy));
        let new = compile(policy, &[], &decisions(policy), &Interrupt::default()).unwrap();
        let (new_image, new_segments) = written(&new);
        bytemuck::bytes_of(&*image) == bytemuck::bytes_of(&*new_image) && segments == new_segments
    }

    fn edit() -> impl Strategy<Value = (usize, Vec<prop::sample::Index>, Vec<IpNet>)> {
        let remove = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
        (any::<prop::sample::Index>(), remove, prop::collection::vec(prefix(), 0..4))
            .prop_map(|(set, remove, add)| (set.index(1 << 16), remove, add))
    }

    proptest! {
        // Whole images are compared, which takes its time without optimization.
        #![proptest_config(ProptestConfig {
            cases: if cfg!(debug_assertions) { 40 } else { 400 },
            ..ProptestConfig::default()
        })]

        /// A chain of edits gives the tables that each policy has when it is compiled first.
        #[test]
        fn edited_policies_are_as_new(
            mut policy in policy(12),
            edits in prop::collection::vec(edit(), 1..8),
        ) {
            let mut compiler = Compiler::default();
            prop_assert!(is_as_new(&mut compiler, &policy));
            for (set, remove, add) in edits {
                let id = SetId((set % policy.sets.len()) as u32);
                let prefixes = policy.set(id).prefixes.clone();
                let remove = remove.iter().filter(|_| !prefixes.is_empty());
                let remove = remove.map(|index| prefixes[index.index(prefixes.len())]).collect();
                policy.edit_set(id, &SetEdit { remove, add }).unwrap();
                prop_assert!(is_as_new(&mut compiler, &policy));
            }
        }
    }

    /// Rules by number of a set, each with some prefixes.
    fn with_sets(sets: Vec<Vec<IpNet>>, rules: Vec<Rule>) -> Policy {
        let set = |prefixes| Set {
            name: String::new(),
            prefixes: Arc::new(prefixes),
            file: None,
            span: 0..0,
            line: 0,
        };
        Policy {
            interfaces: Vec::new(),
            mode: Mode::Auto,
            default: crate::policy::Action::Pass,
            options: Options::default(),
            targets: Vec::new(),
            sets: sets.into_iter().map(set).collect(),
            rules,
        }
    }

    fn rule(src: Option<AddressItem>, dst: Option<AddressItem>, port: u16) -> Rule {
        let mut rule = Rule::any(crate::policy::Action::Drop);
        rule.src.positive.extend(src);
        rule.dst.positive.extend(dst);
        if port != 0 {
            rule.dst_ports.push(crate::policy::NumberRange::single(port));
        }
        rule
    }

    /// Numbers that look random (splitmix64: Steele, Lea and Flood, 2014).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }

        /// A prefix of either version; half of them are crowded.
        fn prefix(&mut self) -> IpNet {
            let (kind, bits) =
                (self.next(), u128::from(self.next()) << 64 | u128::from(self.next()));
            let len = (self.next() % 17) as u8;
            let prefix = match kind % 4 {
                0 => IpNet::new(Ipv4Addr::from_bits(bits as u32).into(), 32 - len),
                1 => IpNet::new(
                    Ipv4Addr::from_bits(10 << 24 | bits as u32 >> 10).into(),
                    32 - len % 5,
                ),
                2 => IpNet::new(Ipv6Addr::from_bits(1 << 125 | bits >> 3).into(), 128 - 5 * len),
                _ => IpNet::new(
                    Ipv6Addr::from_bits(0x2a02 << 112 | bits >> 84 << 64).into(),
                    64 - len % 9,
                ),
            };
            prefix.unwrap().trunc()
        }
    }

    /// Large sets in all kinds of rules, and edits of some and of many prefixes.
    #[test]
    fn edited_large_sets_are_as_new() {
        let count = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
        let mut numbers = Numbers(1);
        let large: Vec<IpNet> = (0..count).map(|_| numbers.prefix()).collect();
        let small: Vec<IpNet> = (0..50).map(|_| numbers.prefix()).collect();
        let (big, few) = (Some(AddressItem::Set(SetId(0))), Some(AddressItem::Set(SetId(1))));
        let mut not = rule(few, None, 7);
        not.src.negative.extend(big);
        for rules in [
            vec![rule(big, None, 0)],
            vec![
                rule(few, None, 22),
                rule(big, None, 23),
                rule(None, big, 24),
                rule(None, None, 9),
            ],
            vec![rule(few, big, 22), rule(big, few, 23), not, rule(big, None, 0)],
        ] {
            let mut policy = with_sets(vec![large.clone(), small.clone()], rules);
            let mut compiler = Compiler::default();
            assert!(is_as_new(&mut compiler, &policy));
            for changed in [1, 0, 30, 500, 10_000, 3] {
                let prefixes = policy.sets[0].prefixes.clone();
                let any =
                    |numbers: &mut Numbers| prefixes[numbers.next() as usize % prefixes.len()];
                let edit = SetEdit {
                    remove: (0..changed).map(|_| any(&mut numbers)).collect(),
                    add: (0..changed).map(|_| numbers.prefix()).collect(),
                };
                policy.edit_set(SetId(0), &edit).unwrap();
                let add = vec![numbers.prefix()];
                policy.edit_set(SetId(1), &SetEdit { add, ..SetEdit::default() }).unwrap();
                assert!(is_as_new(&mut compiler, &policy), "{changed}");
            }
        }
    }

    /// All addresses that end in the same way are not the addresses that begin in this way.
    #[test]
    fn what_is_the_same_everywhere_is_looked_up_in_its_place() {
        let same = |address: fn(u128) -> IpNet| (0..1 << 16).map(address).collect::<Vec<_>>();
        let v4 = same(|n| {
            IpNet::from(std::net::IpAddr::from(Ipv4Addr::from_bits((n << 16 | 1) as u32)))
        });
        let v6 = same(|n| {
            let bits = 0x2001 << 112 | n << 96 | 5 << 80;
            IpNet::new(Ipv6Addr::from_bits(bits).into(), 48).unwrap()
        });
        let big = Some(AddressItem::Set(SetId(0)));
        let mut policy = with_sets(vec![Vec::new()], vec![rule(big, None, 0)]);
        let mut compiler = Compiler::default();
        for add in [v4[1..].to_vec(), v4[..1].to_vec(), v6[1..].to_vec(), v6[..1].to_vec()] {
            policy.edit_set(SetId(0), &SetEdit { add, ..SetEdit::default() }).unwrap();
            assert!(is_as_new(&mut compiler, &policy));
            let compiled = again(&mut compiler, &policy);
            let (mut image, mut segments) = (written(&compiled).0, vec![[0; SEGMENT_WORDS]; 100]);
            let count = compiled.segments();
            compiled.write(&mut image, &mut segments[..count], 0);
            let evaluator = Evaluator { image: &image, segments: &segments };
            for src in [
                "1.0.0.1",
                "0.0.0.1",
                "0.1.0.0",
                "9.9.9.9",
                "2001:7:5::1",
                "2001:5:7::1",
                "2001:5::",
            ] {
                let packet = Packet {
                    src: Some(src.parse().unwrap()),
                    dst: Some(if src.contains(':') { "::1" } else { "1.1.1.1" }.parse().unwrap()),
                    ..Packet::new(17)
                };
                let expected = oracle::action(&policy, oracle::judge(&policy, &packet));
                assert_eq!(evaluator.decide(&packet, 0).verdict(), verdict(expected), "{src}");
            }
        }
    }
}
