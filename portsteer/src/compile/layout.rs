//! Where the parts of a diagram lie in the tables. They stand in the order of a walk from the roots,
//! what a node leads to before the node itself; so the tables depend on the diagram alone, and not on how
//! it came to be. What the walk does not come by is left out.

use std::sync::Arc;

use portsteer_common::{
    Node,
    node::{LINE_WORDS, SEGMENT_LINES, SEGMENT_WORDS, Segment, TABLE_SEGMENTS},
};

use super::{
    budget::{Budget, MAX_WORDS, OverBudget},
    diagram::{Diagram, TABLE_LINES, TABLE_WORDS, len, nodes, table_number},
};

/// The order of a diagram's parts.
#[derive(Debug)]
pub(super) struct Layout {
    /// Where each table of the diagram comes, counted from 1; 0 if it does not.
    tables: Vec<u32>,
    /// Where each of the diagram's other lines comes that is a part's first, if it does.
    lines: Vec<u32>,
    /// Which of them do, one bit for each: this is asked far more often than there are any.
    has: Vec<u64>,
    table_order: Vec<Node>,
    order: Vec<Node>,
    /// How many words all but the tables take.
    words: usize,
}

impl Layout {
    /// The layout of what these nodes lead to.
    pub(super) fn new(
        diagram: &Diagram,
        roots: impl IntoIterator<Item = Node>,
        budget: &mut Budget,
    ) -> Result<Self, OverBudget> {
        let [tables, lines] = diagram.lines().map(|count| vec![0; count]);
        let order = Vec::with_capacity(diagram.count());
        let has = vec![0; lines.len().div_ceil(64)];
        let mut new = Self { tables, lines, has, table_order: Vec::new(), order, words: 0 };
        roots.into_iter().try_for_each(|root| match root.is_leaf() || new.has(root) {
            true => Ok(()),
            false => new.visit(diagram, root, budget),
        })?;
        if new.len() > MAX_WORDS {
            return Err(OverBudget::Words);
        }
        Ok(new)
    }

    /// Adds what a node leads to, which is no leaf and not in it yet.
    fn visit(
        &mut self,
        diagram: &Diagram,
        node: Node,
        budget: &mut Budget,
    ) -> Result<(), OverBudget> {
        let mut before = Node::NOTHING;
        let nodes = if diagram.leads_on(node) { diagram.nodes(node) } else { &[] };
        for &next in nodes {
            if next != before && !next.is_leaf() && !self.has(next) {
                self.visit(diagram, next, budget)?;
            }
            before = next;
        }
        if node.is_table() {
            budget.take_steps(0)?;
            self.table_order.push(node);
            self.tables[table_number(node)] = self.table_order.len() as u32;
            return Ok(());
        }
        let mut start = self.words.next_multiple_of(LINE_WORDS);
        if start % SEGMENT_WORDS + len(node) > SEGMENT_WORDS {
            start = start.next_multiple_of(SEGMENT_WORDS);
        }
        self.words = start + len(node);
        self.order.push(node);
        let line = node.line() as usize;
        self.lines[line] = (start / LINE_WORDS) as u32;
        self.has[line / 64] |= 1 << (line % 64);
        Ok(())
    }

    /// Whether a node, which is no leaf, is in it.
    pub(super) fn has(&self, node: Node) -> bool {
        if node.is_table() {
            self.tables[table_number(node)] != 0
        } else {
            let line = node.line() as usize;
            self.has[line / 64] >> (line % 64) & 1 != 0
        }
    }

    /// How many words all of it takes.
    pub(super) fn len(&self) -> usize {
        self.table_order.len() * TABLE_WORDS + self.words
    }

    /// Where a node leads when the tables begin in a segment.
    fn place(&self, node: Node, first_segment: usize) -> Node {
        if node.is_leaf() {
            return node;
        }
        let first = (first_segment * SEGMENT_LINES) as u32;
        if node.is_table() {
            return at(node, first + (self.tables[table_number(node)] - 1) * TABLE_LINES);
        }
        let before = self.table_order.len() as u32 * TABLE_LINES;
        at(node, first + before + self.lines[node.line() as usize])
    }
}

/// Most parts are paths, for which a call would cost more than the copy.
fn copy(to: &mut [u32], words: &[u32]) {
    match (<&mut [u32; 6]>::try_from(&mut *to), <&[u32; 6]>::try_from(words)) {
        (Ok(to), Ok(words)) => *to = *words,
        _ => to.copy_from_slice(words),
    }
}

/// The same node, but that what it leads to is at this line.
fn at(node: Node, line: u32) -> Node {
    Node::from_bits(node.to_bits() - node.line()).moved(line)
}

/// Finished tables, which can be written to any segments: a diagram, as it is laid out, and behind it
/// some words that are no nodes.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) diagram: Arc<Diagram>,
    pub(super) layout: Layout,
    pub(super) more: Vec<u32>,
}

impl Tables {
    /// How many segments they fill.
    pub(super) fn segments(&self) -> usize {
        let words = self.layout.words + self.more.len();
        self.layout.table_order.len() * TABLE_SEGMENTS + words.div_ceil(SEGMENT_WORDS)
    }

    /// Where a node leads when the tables begin in a segment.
    pub(super) fn place(&self, node: Node, first_segment: usize) -> Node {
        self.layout.place(node, first_segment)
    }

    /// The number of the first of the words that are no nodes.
    pub(super) fn more_at(&self, first_segment: usize) -> u32 {
        let before = first_segment + self.layout.table_order.len() * TABLE_SEGMENTS;
        (before * SEGMENT_WORDS + self.layout.words) as u32
    }

    /// Writes them to as many segments as they fill, of which the first has this number.
    pub(super) fn write(&self, segments: &mut [Segment], first_segment: usize) {
        let Self { diagram, layout, more } = self;
        let (tables, rest) = segments.split_at_mut(layout.table_order.len() * TABLE_SEGMENTS);
        let write = |to: &mut [u32], node: Node| {
            to.copy_from_slice(diagram.words(node));
            let mut before = [Node::NOTHING.to_bits(); 2];
            for word in &mut to[nodes(node)] {
                if *word != before[0] {
                    let placed = layout.place(Node::from_bits(*word), first_segment);
                    before = [*word, placed.to_bits()];
                }
                *word = before[1];
            }
        };
        let tables = tables.as_flattened_mut();
        for (to, &node) in tables.chunks_mut(TABLE_WORDS).zip(&layout.table_order) {
            write(to, node);
        }
        let rest = rest.as_flattened_mut();
        let mut end = 0;
        for &node in &layout.order {
            let start = layout.lines[node.line() as usize] as usize * LINE_WORDS;
            rest[end..start].fill(0);
            end = start + len(node);
            if diagram.leads_on(node) {
                write(&mut rest[start..end], node);
            } else {
                copy(&mut rest[start..end], diagram.words(node));
            }
        }
        rest[end..end + more.len()].copy_from_slice(more);
        rest[end + more.len()..].fill(0);
    }
}
