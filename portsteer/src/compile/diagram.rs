//! The tables under construction: a decision diagram of which equal parts are there once, whatever was
//! built in which order. So a policy has one diagram, and [`layout`](super::layout) gives it one form.

use std::{collections::HashMap, ops::Range};

use portsteer_common::{
    Node,
    node::{
        Kind, LINE_WORDS, MAX_STEPS, MIN_STEPS, SEGMENT_LINES, SEGMENT_WORDS, TABLE_SEGMENTS, row,
    },
};

use super::{
    budget::{Budget, OverBudget},
    known::Known,
    layout::Layout,
};

pub(super) const TABLE_LINES: u32 = (TABLE_SEGMENTS * SEGMENT_LINES) as u32;
pub(super) const TABLE_WORDS: usize = TABLE_SEGMENTS * SEGMENT_WORDS;

/// From which key on there is which node: ascending, the first from 0 on.
pub(super) type Entries = Vec<(u16, Node)>;

/// The parts of a policy's tables, and perhaps some that no longer belong to it. Lines count from 0: those
/// of tables of 65,536 nodes among themselves, and those of all else.
#[derive(Debug, Clone, Default)]
pub(super) struct Diagram {
    /// Empty where there is none any more.
    tables: Vec<Box<[u32]>>,
    free_tables: Vec<u32>,
    words: Vec<u32>,
    /// At which lines a part begins that leads on to others, one bit for each: nobody has to look at the
    /// rest of them, which are most.
    leading: Vec<u64>,
    /// Lines where nothing is any more, by how many there are in a row.
    free: HashMap<usize, Vec<u32>>,
    known: Known,
    /// How many words have been filled since [`Diagram::sweep`].
    filled: usize,
}

impl Diagram {
    /// A node that leads to these by a key; just the first if there is one alone.
    pub(super) fn branch(
        &mut self,
        kind: Kind,
        mut entries: Entries,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        entries.dedup_by_key(|entry| entry.1);
        match entries[..] {
            [(_, node)] => Ok(node),
            _ => self.list(kind, entries, budget),
        }
    }

    /// A node that leads to these by a key, of which no two neighbours are the same.
    pub(super) fn list(
        &mut self,
        kind: Kind,
        mut entries: Entries,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        if entries.len() > 1 << MAX_STEPS {
            return self.table(kind, &entries, budget);
        }
        let steps = entries.len().next_power_of_two().trailing_zeros().max(MIN_STEPS);
        let last = entries[entries.len() - 1];
        entries.resize(1 << steps, last);
        let starts = entries.chunks_exact(2).map(|pair| match *pair {
            [(first, _), (second, _)] => u32::from(first) | u32::from(second) << 16,
            _ => unreachable!("a power of two above 1"),
        });
        let mut words = Vec::with_capacity(entries.len() / 2 * 3);
        words.extend(starts);
        words.extend(entries.iter().map(|(_, node)| node.to_bits()));
        self.share(&words, |line| Node::list(kind, line, steps), budget)
    }

    /// The same as a table of 65,536 nodes, however many there are.
    pub(super) fn table(
        &mut self,
        kind: Kind,
        entries: &[(u16, Node)],
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let mut table = vec![0; TABLE_WORDS].into_boxed_slice();
        for (index, &(start, node)) in entries.iter().enumerate() {
            let end = entries.get(index + 1).map_or(TABLE_WORDS, |next| usize::from(next.0));
            table[usize::from(start)..end].fill(node.to_bits());
        }
        let hash = hash(&table, Node::table(kind, 0));
        let is_same = |node: Node| {
            node.is(kind) && node.is_table() && self.tables[table_number(node)] == table
        };
        if let Some(node) = self.known.find(hash, is_same) {
            return Ok(node);
        }
        budget.take_words(TABLE_WORDS)?;
        self.filled += TABLE_WORDS;
        let number = match self.free_tables.pop() {
            Some(number) => number,
            None => {
                self.tables.push(Box::default());
                self.tables.len() as u32 - 1
            }
        };
        self.tables[number as usize] = table;
        let node = Node::table(kind, number * TABLE_LINES);
        self.known.insert(hash, node);
        Ok(node)
    }

    /// A node that leads to these by row.
    pub(super) fn rows(
        &mut self,
        rows: [Node; row::COUNT],
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        // A branch by column may not stand where one by address might.
        if rows.iter().all(|node| *node == rows[0]) && !rows[0].is(Kind::Branch) {
            return Ok(rows[0]);
        }
        self.share(&rows.map(Node::to_bits), record(Kind::Rows), budget)
    }

    /// A node that leads to rules that constrain the source alone, and to the root of those that
    /// constrain the destination too.
    pub(super) fn fork(
        &mut self,
        alone: Node,
        by_destination: Node,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        if by_destination == Node::NOTHING {
            return Ok(alone);
        }
        let words = [alone.to_bits(), by_destination.to_bits()];
        self.share(&words, record(Kind::Fork), budget)
    }

    /// A node that leads to one of two, by whether the next 64 bits of an address under a mask are these.
    pub(super) fn path(
        &mut self,
        mask: u64,
        value: u64,
        [same, other]: [Node; 2],
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let [mask_low, mask_high] = [mask as u32, (mask >> 32) as u32];
        let [low, high] = [value as u32, (value >> 32) as u32];
        let words = [mask_low, mask_high, low, high, same.to_bits(), other.to_bits()];
        self.share(&words, record(Kind::Path), budget)
    }

    /// What a node leads to, which is no leaf.
    pub(super) fn words(&self, node: Node) -> &[u32] {
        if node.is_table() {
            return &self.tables[table_number(node)];
        }
        let start = node.line() as usize * LINE_WORDS;
        &self.words[start..start + len(node)]
    }

    /// Whether any of the nodes to which one leads, which is no leaf, leads on.
    pub(super) fn leads_on(&self, node: Node) -> bool {
        let line = node.line() as usize;
        node.is_table() || self.leading[line / 64] >> (line % 64) & 1 != 0
    }

    /// The nodes among them.
    pub(super) fn nodes(&self, node: Node) -> &[Node] {
        bytemuck::cast_slice(&self.words(node)[nodes(node)])
    }

    /// From which key on a node leads to which, no two neighbours the same. It is a list or a table.
    pub(super) fn entries(&self, node: Node) -> Entries {
        let nodes = self.nodes(node);
        let mut entries = Entries::new();
        let mut add = |start: u16, node: Node| {
            if entries.last().is_none_or(|last| last.1 != node) {
                entries.push((start, node));
            }
        };
        if node.is_table() {
            (0..=u16::MAX).zip(nodes).for_each(|(start, &node)| add(start, node));
        } else {
            let starts = self.words(node)[..nodes.len() / 2].iter();
            let starts = starts.flat_map(|&pair| [pair as u16, (pair >> 16) as u16]);
            starts.zip(nodes).for_each(|(start, &node)| add(start, node));
        }
        entries
    }

    /// How many lines there are, of tables and of all else.
    pub(super) fn lines(&self) -> [usize; 2] {
        [self.tables.len(), self.words.len().div_ceil(LINE_WORDS)]
    }

    /// How many parts there are.
    pub(super) fn count(&self) -> usize {
        self.known.count()
    }

    /// Forgets all parts that are in no layout, so that others can take their place; not before they are
    /// some share of all. Says whether it did: then nobody may go on with a node that is not in it.
    pub(super) fn sweep(&mut self, layout: &Layout) -> bool {
        if self.filled < layout.len() / 8 {
            return false;
        }
        self.filled = 0;
        let Self { tables, free_tables, free, known, .. } = self;
        known.retain(|node| {
            let is_kept = layout.has(node);
            if !is_kept && node.is_table() {
                tables[table_number(node)] = Box::default();
                free_tables.push(table_number(node) as u32);
            } else if !is_kept {
                free.entry(len(node).div_ceil(LINE_WORDS)).or_default().push(node.line());
            }
            is_kept
        });
        true
    }

    /// These words: where they are already, or at a line of their own.
    fn share(
        &mut self,
        words: &[u32],
        make: impl Fn(u32) -> Node,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let hash = hash(words, make(0));
        let is_same = |node: Node| {
            let start = node.line() as usize * LINE_WORDS;
            node == make(node.line()) && self.words.get(start..start + words.len()) == Some(words)
        };
        if let Some(node) = self.known.find(hash, is_same) {
            return Ok(node);
        }
        let lines = words.len().div_ceil(LINE_WORDS);
        budget.take_words(lines * LINE_WORDS)?;
        self.filled += lines * LINE_WORDS;
        let line = match self.free.get_mut(&lines).and_then(Vec::pop) {
            Some(line) => {
                let start = line as usize * LINE_WORDS;
                self.words[start..start + words.len()].copy_from_slice(words);
                line
            }
            None => {
                let start = self.words.len();
                self.words.extend(words);
                self.words.resize(start + lines * LINE_WORDS, 0);
                (start / LINE_WORDS) as u32
            }
        };
        let node = make(line);
        let leads_on = words[nodes(node)].iter().any(|&word| !Node::from_bits(word).is_leaf());
        let (at, bit) = (line as usize / 64, 1 << (line % 64));
        self.leading.resize(self.leading.len().max(at + 1), 0);
        self.leading[at] = self.leading[at] & !bit | if leads_on { bit } else { 0 };
        self.known.insert(hash, node);
        Ok(node)
    }
}

fn record(kind: Kind) -> impl Fn(u32) -> Node {
    move |line| Node::record(kind, line)
}

/// The number of a table among the tables.
pub(super) fn table_number(node: Node) -> usize {
    (node.line() / TABLE_LINES) as usize
}

/// How many words there are where a node leads.
pub(super) fn len(node: Node) -> usize {
    nodes(node).end
}

/// Which of the words where a node leads are nodes: all of them from some on.
pub(super) fn nodes(node: Node) -> Range<usize> {
    match node.kind() {
        Kind::Leaf => 0..0,
        Kind::Rows => 0..row::COUNT,
        Kind::Fork => 0..2,
        Kind::Path => 4..6,
        Kind::Branch | Kind::Vlan | Kind::Interface | Kind::SrcPort if node.is_table() => {
            0..TABLE_WORDS
        }
        Kind::Branch | Kind::Vlan | Kind::Interface | Kind::SrcPort => {
            1 << node.steps() >> 1..3 << node.steps() >> 1
        }
    }
}

/// Equal contents are compared, so that nothing but time depends on this.
fn hash(words: &[u32], shape: Node) -> u32 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = u64::from(shape.to_bits()) ^ MULTIPLIER;
    let mut mix = |double: u64| hash = (hash.rotate_left(26) ^ double).wrapping_mul(MULTIPLIER);
    let (pairs, rest) = words.as_chunks::<2>();
    for &[low, high] in pairs {
        mix(u64::from(low) | u64::from(high) << 32);
    }
    rest.iter().for_each(|&word| mix(u64::from(word)));
    (hash ^ hash >> 29).wrapping_mul(MULTIPLIER).wrapping_shr(32) as u32
}
