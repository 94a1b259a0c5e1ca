//! Cutting text out and putting text in.

use std::ops::Range;

/// Changes of one text. Their places are those in the text before any of them.
#[derive(Debug, Default)]
pub(super) struct Splices {
    list: Vec<(Range<usize>, String)>,
}

impl Splices {
    /// Cuts these bytes out. They may have been cut out before, wholly or in part.
    pub(super) fn remove(&mut self, span: Range<usize>) {
        self.list.push((span, String::new()));
    }

    /// Puts text before this byte. At the same byte, what is put first comes first.
    pub(super) fn insert(&mut self, at: usize, text: impl Into<String>) {
        self.list.push((at..at, text.into()));
    }

    /// Puts text in place of these bytes.
    pub(super) fn replace(&mut self, span: Range<usize>, text: impl Into<String>) {
        self.list.push((span, text.into()));
    }

    /// The changed text.
    pub(super) fn apply(mut self, text: &str) -> String {
        self.list.sort_by_key(|(span, _)| span.start);
        let added: usize = self.list.iter().map(|(_, new)| new.len()).sum();
        let mut changed = String::with_capacity(text.len() + added);
        let mut done = 0;
        for (span, new) in self.list {
            if span.start > done {
                changed.push_str(&text[done..span.start]);
            }
            changed.push_str(&new);
            done = done.max(span.end);
        }
        changed.push_str(&text[done..]);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splices() {
        let mut splices = Splices::default();
        splices.remove(4..6);
        splices.insert(2, "A");
        splices.insert(2, "B");
        splices.remove(3..5);
        splices.replace(8..9, "C");
        assert_eq!(splices.apply("0123456789"), "01AB267C9");
        assert_eq!(Splices::default().apply("as it is"), "as it is");
    }
}
