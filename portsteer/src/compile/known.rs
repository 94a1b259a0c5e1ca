//! Which parts of a diagram there are already, by a hash of what they hold: a table of open addresses
//! that has eight bytes for each, since there are a million of them.

use portsteer_common::Node;

/// One entry; none where the node's bits are zero, which is a leaf and never a part.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    hash: u32,
    node: u32,
}

/// Nodes by hash. Several may have the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// A power of two of them, never full; an entry stands at or behind the place that its hash names.
    entries: Vec<Entry>,
    count: usize,
}

const LEAST: usize = 64;

impl Known {
    /// How many nodes are known.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The node with this hash that holds the same.
    pub(super) fn find(&self, hash: u32, is_same: impl Fn(Node) -> bool) -> Option<Node> {
        if self.entries.is_empty() {
            return None;
        }
        let mut at = self.place(hash);
        loop {
            let entry = self.entries[at];
            if entry.node == 0 {
                return None;
            }
            let node = Node::from_bits(entry.node);
            if entry.hash == hash && is_same(node) {
                return Some(node);
            }
            at = (at + 1) & (self.entries.len() - 1);
        }
    }

    /// Adds one that [`Known::find`] did not find.
    pub(super) fn insert(&mut self, hash: u32, node: Node) {
        if 4 * (self.count + 1) > 3 * self.entries.len() {
            self.rebuild(|_| true, 2 * self.entries.len());
        }
        self.put(Entry { hash, node: node.to_bits() });
    }

    /// Forgets all others, of which each is told.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(Node) -> bool) {
        self.rebuild(|entry| is_kept(Node::from_bits(entry.node)), self.entries.len());
    }

    /// Hashes are in the order of their places, so this reads and writes from front to end.
    fn rebuild(&mut self, mut is_kept: impl FnMut(Entry) -> bool, len: usize) {
        let new = vec![Entry::default(); len.max(LEAST)];
        let old = std::mem::replace(&mut self.entries, new);
        self.count = 0;
        for entry in old {
            if entry.node != 0 && is_kept(entry) {
                self.put(entry);
            }
        }
    }

    fn put(&mut self, entry: Entry) {
        let mut at = self.place(entry.hash);
        while self.entries[at].node != 0 {
            at = (at + 1) & (self.entries.len() - 1);
        }
        self.entries[at] = entry;
        self.count += 1;
    }

    fn place(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.entries.len() as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those with the same hash are kept apart, also at the end of the table, and what is forgotten is
    /// gone.
    #[test]
    fn what_is_known_is_found() {
        let mut known = Known::default();
        let node = |number: u32| Node::rule(number, true);
        let hash = |number: u32| u32::MAX - number % 7;
        for number in 0..1_000 {
            assert_eq!(known.find(hash(number), |found| found == node(number)), None);
            known.insert(hash(number), node(number));
        }
        let find = |known: &Known, number| known.find(hash(number), |found| found == node(number));
        assert!((0..1_000).all(|number| find(&known, number) == Some(node(number))));
        let mut forgotten = 0;
        known.retain(|found| {
            forgotten += found.rule_number() % 2;
            found.rule_number() % 2 == 0
        });
        assert_eq!(forgotten, 500);
        assert!((0..1_000).all(|number| find(&known, number).is_some() == (number % 2 == 0)));
    }
}
