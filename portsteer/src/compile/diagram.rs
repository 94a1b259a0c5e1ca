//! The tables under construction: a decision diagram of which equal parts are there once.

use std::collections::HashMap;

use portsteer_common::{
    Node,
    node::{
        Kind, LINE_WORDS, MAX_STEPS, MIN_STEPS, SEGMENT_LINES, SEGMENT_WORDS, Segment,
        TABLE_SEGMENTS, row,
    },
};

use super::budget::{Budget, OverBudget};

const TABLE_LINES: u32 = (TABLE_SEGMENTS * SEGMENT_LINES) as u32;
const TABLE_WORDS: usize = TABLE_SEGMENTS * SEGMENT_WORDS;

/// From which key on there is which node: ascending, the first from 0 on.
pub(super) type Entries = Vec<(u16, Node)>;

/// The tables of a policy. Lines count from 0: those of tables of 65,536 nodes among themselves, and
/// those of all else.
#[derive(Debug, Default)]
pub(super) struct Diagram {
    tables: Vec<Box<[u32]>>,
    words: Vec<u32>,
    /// Which of the words are nodes: first and count.
    nodes: Vec<(u32, u32)>,
    /// What there is, by a hash of what it holds.
    known: HashMap<u64, Node>,
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
        if let [(_, node)] = entries[..] {
            return Ok(node);
        }
        if entries.len() > 1 << MAX_STEPS {
            return self.table(kind, &entries, budget);
        }
        let steps = entries.len().next_power_of_two().trailing_zeros().max(MIN_STEPS);
        let last = entries[entries.len() - 1];
        entries.resize(1 << steps, last);
        let starts = entries.chunks(2).map(|pair| match *pair {
            [(first, _), (second, _)] => u32::from(first) | u32::from(second) << 16,
            _ => unreachable!("a power of two above 1"),
        });
        let mut words: Vec<u32> = starts.collect();
        let first_node = words.len();
        words.extend(entries.iter().map(|(_, node)| node.to_bits()));
        let make = |line| Node::list(kind, line, steps);
        self.share(&words, first_node, u64::from(steps) << 8 | kind as u64, make, budget)
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
        let hash = hash(&table, 0xff00 | kind as u64);
        if let Some(&node) = self.known.get(&hash)
            && node.is(kind)
            && node.is_table()
            && self.tables[(node.line() / TABLE_LINES) as usize] == table
        {
            return Ok(node);
        }
        budget.take_words(TABLE_WORDS)?;
        let node = Node::table(kind, self.tables.len() as u32 * TABLE_LINES);
        self.tables.push(table);
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
        self.share(&rows.map(Node::to_bits), 0, Kind::Rows as u64, record(Kind::Rows), budget)
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
        self.share(&words, 0, Kind::Fork as u64, record(Kind::Fork), budget)
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
        self.share(&words, 4, Kind::Path as u64, record(Kind::Path), budget)
    }

    /// These words, of which the ones from `first_node` on are nodes: where they are already, or at a
    /// line of their own.
    fn share(
        &mut self,
        words: &[u32],
        first_node: usize,
        seed: u64,
        make: impl Fn(u32) -> Node,
        budget: &mut Budget,
    ) -> Result<Node, OverBudget> {
        let hash = hash(words, seed);
        if let Some(&node) = self.known.get(&hash) {
            let start = node.line() as usize * LINE_WORDS;
            if node == make(node.line())
                && self.words.get(start..start + words.len()) == Some(words)
            {
                return Ok(node);
            }
        }
        let mut start = self.words.len().next_multiple_of(LINE_WORDS);
        if start % SEGMENT_WORDS + words.len() > SEGMENT_WORDS {
            start = start.next_multiple_of(SEGMENT_WORDS);
        }
        budget.take_words(start + words.len() - self.words.len())?;
        self.words.resize(start, 0);
        self.words.extend(words);
        self.nodes.push(((start + first_node) as u32, (words.len() - first_node) as u32));
        let node = make((start / LINE_WORDS) as u32);
        self.known.insert(hash, node);
        Ok(node)
    }

    /// What the program needs of it: the tables, with these words, which are no nodes, behind them.
    pub(super) fn finish(mut self, more: &[u32]) -> Tables {
        let more_at = self.words.len();
        self.words.extend(more);
        Tables { tables: self.tables, words: self.words, nodes: self.nodes, more_at }
    }
}

fn record(kind: Kind) -> impl Fn(u32) -> Node {
    move |line| Node::record(kind, line)
}

/// Equal contents are compared, so that nothing but time depends on this.
fn hash(words: &[u32], seed: u64) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = seed ^ MULTIPLIER;
    for &word in words {
        hash = (hash.rotate_left(26) ^ u64::from(word)).wrapping_mul(MULTIPLIER);
    }
    hash ^ hash >> 32
}

/// Finished tables, which can be written to any segments.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<Box<[u32]>>,
    words: Vec<u32>,
    nodes: Vec<(u32, u32)>,
    more_at: usize,
}

impl Tables {
    /// How many segments they fill.
    pub(super) fn segments(&self) -> usize {
        self.tables.len() * TABLE_SEGMENTS + self.words.len().div_ceil(SEGMENT_WORDS)
    }

    /// Where a node leads when the tables begin in a segment.
    pub(super) fn place(&self, node: Node, first_segment: usize) -> Node {
        let before = match node.is_table() {
            true => 0,
            false => self.tables.len() * TABLE_SEGMENTS,
        };
        node.moved(((first_segment + before) * SEGMENT_LINES) as u32)
    }

    /// The number of the first of the words that [`Diagram::finish`] was given.
    pub(super) fn more_at(&self, first_segment: usize) -> u32 {
        let before = first_segment + self.tables.len() * TABLE_SEGMENTS;
        (before * SEGMENT_WORDS + self.more_at) as u32
    }

    /// Writes them to as many segments as they fill, of which the first has this number.
    pub(super) fn write(&self, segments: &mut [Segment], first_segment: usize) {
        let place = |word: u32| self.place(Node::from_bits(word), first_segment).to_bits();
        let (tables, rest) = segments.split_at_mut(self.tables.len() * TABLE_SEGMENTS);
        let tables = tables.as_flattened_mut();
        for (to, from) in tables.chunks_mut(TABLE_WORDS).zip(&self.tables) {
            for (to, &word) in to.iter_mut().zip(from) {
                *to = place(word);
            }
        }
        let rest = rest.as_flattened_mut();
        rest[..self.words.len()].copy_from_slice(&self.words);
        rest[self.words.len()..].fill(0);
        for &(first, count) in &self.nodes {
            for word in &mut rest[first as usize..(first + count) as usize] {
                *word = place(*word);
            }
        }
    }
}
