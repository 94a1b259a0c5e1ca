//! A TOML array as it is laid out, and changes that fit in.
//!
//! An array on one line keeps to it. One of several lines gets a line for every new item, indented
//! like those that it has. An item that leaves takes its line along if it was alone on it, with the
//! comment behind it; what stands on other lines stays, unless the comments right above shall go too.

use std::ops::Range;

use toml_parser::{Source, lexer::TokenKind};

use super::{newline, splice::Splices};

/// An array in a text.
#[derive(Debug)]
pub(super) struct Array<'t> {
    text: &'t str,
    /// Where the first byte after `[` is.
    open: usize,
    items: Vec<Item>,
    /// At least one: the first has `[`, the last has `]`. Lines within an item do not count.
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Item {
    span: Range<usize>,
    /// Where the comma after it is.
    comma: Option<usize>,
    row: usize,
}

#[derive(Debug, Default)]
struct Row {
    /// With the line's end; the brackets are left out.
    span: Range<usize>,
    items: Range<usize>,
    has_comment: bool,
}

/// What becomes of the comment lines right above an item that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comments {
    Stay,
    Leave,
}

impl<'t> Array<'t> {
    /// Reads the array that begins at this byte of a text without errors of syntax.
    pub(super) fn new(text: &'t str, start: usize) -> Self {
        let open = start + 1;
        let mut array = Self { text, open, items: Vec::new(), rows: Vec::new() };
        let mut row = Row { span: open..open, ..Row::default() };
        let mut current: Option<Range<usize>> = None;
        let mut depth = 0_usize;
        let mut is_comma_first = false;
        for token in Source::new(&text[open..]).lex() {
            let span = open + token.span().start()..open + token.span().end();
            match token.kind() {
                TokenKind::RightSquareBracket if depth == 0 => {
                    row.span.end = span.start;
                    array.finish_item(&mut current);
                    break;
                }
                TokenKind::Comma if depth == 0 => {
                    array.finish_item(&mut current);
                    let row_index = array.rows.len();
                    if let Some(item) = array.items.last_mut() {
                        item.comma = Some(span.start);
                        is_comma_first |= item.row != row_index;
                    }
                    continue;
                }
                TokenKind::Newline if depth == 0 => {
                    array.finish_item(&mut current);
                    row.span.end = span.end;
                    row.items.end = array.items.len();
                    array.rows.push(row);
                    let first = array.items.len();
                    row = Row { span: span.end..span.end, items: first..first, has_comment: false };
                    continue;
                }
                TokenKind::Comment if depth == 0 => {
                    row.has_comment = true;
                    continue;
                }
                TokenKind::Whitespace if depth == 0 => continue,
                TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => depth += 1,
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => depth -= 1,
                _ => {}
            }
            match &mut current {
                Some(item) => item.end = span.end,
                None => current = Some(span),
            }
        }
        row.items.end = array.items.len();
        array.rows.push(row);
        if is_comma_first {
            array.join_rows();
        }
        array
    }

    fn finish_item(&mut self, current: &mut Option<Range<usize>>) {
        if let Some(span) = current.take() {
            self.items.push(Item { span, comma: None, row: self.rows.len() });
        }
    }

    /// Takes an array with commas before its items as if it were on one line: no line of it can
    /// leave alone.
    fn join_rows(&mut self) {
        let span = self.open..self.rows.last().map_or(self.open, |row| row.span.end);
        let has_comment = self.rows.iter().any(|row| row.has_comment);
        self.rows = vec![Row { span, items: 0..self.items.len(), has_comment }];
        self.items.iter_mut().for_each(|item| item.row = 0);
    }

    /// The last item as it is written.
    pub(super) fn last_item(&self) -> Option<&'t str> {
        self.items.last().map(|item| &self.text[item.span.clone()])
    }

    /// Puts items after the last one.
    pub(super) fn append(&self, new: &[String], splices: &mut Splices) {
        if new.is_empty() {
            return;
        }
        let newline = newline(&self.text.as_bytes()[self.open..]);
        let last_row = self.rows.len() - 1;
        let Some(last) = self.items.last() else {
            if last_row == 0 {
                splices.insert(self.open, new.join(", "));
            } else {
                let indent = self.indent();
                let lines: String =
                    new.iter().map(|item| format!("{indent}{item},{newline}")).collect();
                splices.insert(self.rows[last_row].span.start, lines);
            }
            return;
        };
        if last_row == 0 {
            let separator = self.separator();
            let items: String = new.iter().map(|item| format!("{separator}{item}")).collect();
            splices.insert(last.span.end, items);
            return;
        }
        let indent = self.indent();
        if last.row == last_row {
            let items: String =
                new.iter().map(|item| format!(",{newline}{indent}{item}")).collect();
            splices.insert(last.span.end, items);
            return;
        }
        let mut lines = new
            .iter()
            .map(|item| format!("{indent}{item}"))
            .collect::<Vec<_>>()
            .join(&format!(",{newline}"));
        if last.comma.is_some() {
            lines.push(',');
        } else {
            splices.insert(last.span.end, ",");
        }
        lines.push_str(newline);
        splices.insert(self.rows[last.row].span.end, lines);
    }

    /// Puts an item before the one at `index`, or after the last one.
    pub(super) fn insert(&self, index: usize, new: &str, splices: &mut Splices) {
        let Some(next) = self.items.get(index) else {
            self.append(&[new.to_owned()], splices);
            return;
        };
        if next.row > 0 && self.rows[next.row].items.start == index {
            let at = self.rows[self.first_row(next.row, Comments::Leave)].span.start;
            let indent = self.indent_of(next.row);
            let newline = newline(&self.text.as_bytes()[self.open..]);
            splices.insert(at, format!("{indent}{new},{newline}"));
        } else if index > 0 {
            splices.insert(self.items[index - 1].span.end, format!("{}{new}", self.separator()));
        } else {
            splices.insert(next.span.start, format!("{new}, "));
        }
    }

    /// Takes the items out that are marked. As many are marked or not as the array has.
    pub(super) fn remove(&self, marked: &[bool], comments: Comments, splices: &mut Splices) {
        let last_row = self.rows.len() - 1;
        let mut last_kept: Option<&Item> = None;
        for (index, row) in self.rows.iter().enumerate() {
            let is_whole = !row.items.is_empty() && row.items.clone().all(|item| marked[item]);
            if is_whole && index > 0 && index < last_row {
                let first = self.first_row(index, comments);
                splices.remove(self.rows[first].span.start..row.span.end);
                continue;
            }
            let mut is_first = true; // no item of this row stays before
            for item in row.items.clone() {
                let this = &self.items[item];
                if !marked[item] {
                    (is_first, last_kept) = (false, Some(this));
                } else if !is_first {
                    splices.remove(self.items[item - 1].span.end..this.span.end);
                } else if item + 1 < row.items.end {
                    splices.remove(this.span.start..self.items[item + 1].span.start);
                } else if let Some(kept) = last_kept
                    && index == last_row
                    && !self.rows[kept.row..index].iter().any(|row| row.has_comment)
                {
                    splices.remove(kept.span.end..this.span.end);
                } else {
                    splices.remove(this.span.start..this.comma.map_or(this.span.end, |at| at + 1));
                }
            }
        }
        // The last item of those that stay has a comma only if the last one had.
        if let (Some(last), Some(kept)) = (self.items.last(), last_kept)
            && last.comma.is_none()
            && let Some(comma) = kept.comma
        {
            splices.remove(comma..comma + 1);
        }
    }

    /// Moves the item at `from` so that it comes to stand at `to`. It takes its line and the comments
    /// right above along if all items have lines of their own; else comments stay where they are.
    pub(super) fn relocate(&self, from: usize, to: usize) -> String {
        let mut splices = Splices::default();
        if !self.has_a_row_for_each() {
            let (low, high) = (from.min(to), from.max(to));
            let mut order: Vec<usize> = (low..=high).collect();
            if from < to {
                order.rotate_left(1);
            } else {
                order.rotate_right(1);
            }
            for (slot, item) in (low..=high).zip(order) {
                let item = &self.text[self.items[item].span.clone()];
                splices.replace(self.items[slot].span.clone(), item);
            }
            return splices.apply(self.text);
        }
        let item = &self.items[from];
        let first = self.first_row(item.row, Comments::Leave);
        let before = &self.text[self.rows[first].span.start..item.span.end];
        let rest_start = item.comma.map_or(item.span.end, |at| at + 1);
        let after = &self.text[rest_start..self.rows[item.row].span.end];
        let mut marked = vec![false; self.items.len()];
        marked[from] = true;
        self.remove(&marked, Comments::Leave, &mut splices);
        // As the array is without the item.
        let others: Vec<&Item> = self
            .items
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != from)
            .map(|(_, item)| item)
            .collect();
        match (others.get(to), others.last()) {
            (Some(next), _) => {
                let at = self.rows[self.first_row(next.row, Comments::Leave)].span.start;
                splices.insert(at, format!("{before},{after}"));
            }
            (None, Some(last)) if self.items.last().is_some_and(|item| item.comma.is_none()) => {
                // It becomes the last one, which has no comma.
                splices.insert(last.span.end, ",");
                splices.insert(self.rows[last.row].span.end, format!("{before}{after}"));
            }
            (None, Some(last)) => {
                splices.insert(self.rows[last.row].span.end, format!("{before},{after}"));
            }
            (None, None) => return self.text.to_owned(),
        }
        splices.apply(self.text)
    }

    /// Whether every item stands alone on its row, and none beside a bracket.
    fn has_a_row_for_each(&self) -> bool {
        let last_row = self.rows.len() - 1;
        self.rows[0].items.is_empty()
            && self.rows[last_row].items.is_empty()
            && self.rows.iter().all(|row| row.items.len() <= 1)
    }

    /// The first row that leaves with this one.
    fn first_row(&self, row: usize, comments: Comments) -> usize {
        let is_comment = |row: &&Row| row.has_comment && row.items.is_empty();
        match comments {
            Comments::Stay => row,
            // The first row has the bracket.
            Comments::Leave => row - self.rows[1..row].iter().rev().take_while(is_comment).count(),
        }
    }

    /// What stands between two items on one line.
    fn separator(&self) -> &'t str {
        match &self.items[..] {
            [.., a, b] if a.row == b.row => {
                let between = &self.text[a.span.end..b.span.start];
                if between.contains(['#', '\n']) { ", " } else { between }
            }
            _ => ", ",
        }
    }

    /// How far items on lines of their own are indented.
    fn indent(&self) -> String {
        let by_item = self.items.last().map(|item| item.row).filter(|&row| row > 0);
        let by_comment = || (1..self.rows.len()).find(|&row| self.rows[row].has_comment);
        match by_item.or_else(by_comment) {
            Some(row) => self.indent_of(row).to_owned(),
            None => format!("{}    ", self.indent_of(self.rows.len() - 1)),
        }
    }

    fn indent_of(&self, row: usize) -> &'t str {
        let line = &self.text[self.rows[row].span.clone()];
        &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
    }
}
