//! A policy file as lines and sections, comments and blank lines included.

use std::ops::Range;

use toml_parser::{Source, lexer::TokenKind};

/// The lines of a file. One that begins within brackets or a string belongs to the one before.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Vec<Line>,
    /// The headers' lines, ascending.
    headers: Vec<usize>,
}

#[derive(Debug)]
struct Line {
    kind: Kind,
    /// Where it begins, in bytes.
    start: usize,
    /// Where the next one begins.
    end: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blank,
    Comment,
    /// `[...]` or `[[...]]`.
    Header,
    Entry,
}

/// A header's line with all that belongs to it, as line numbers from 0: the comment lines right
/// above it, its entries, and the comment lines right below the last of these, unless the next
/// header is right below them.
pub(super) type Body = Range<usize>;

impl Lines {
    /// Reads TOML without errors of syntax, each line of which has an end.
    pub(super) fn new(text: &str) -> Self {
        let (mut lines, mut headers) = (Vec::new(), Vec::new());
        let mut depth = 0_usize;
        let mut begun: Option<(usize, Kind)> = None;
        for token in Source::new(text).lex() {
            let (kind, span) = (token.kind(), token.span());
            let (start, line_kind) = begun.get_or_insert((span.start(), Kind::Blank));
            match kind {
                TokenKind::Comment if *line_kind == Kind::Blank => *line_kind = Kind::Comment,
                TokenKind::LeftSquareBracket if *line_kind == Kind::Blank => {
                    *line_kind = Kind::Header;
                    headers.push(lines.len());
                }
                TokenKind::Whitespace
                | TokenKind::Comment
                | TokenKind::Newline
                | TokenKind::Eof => {}
                _ if *line_kind == Kind::Blank => *line_kind = Kind::Entry,
                _ => {}
            }
            match kind {
                TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => depth += 1,
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                    depth = depth.saturating_sub(1);
                }
                TokenKind::Newline if depth == 0 => {
                    lines.push(Line { kind: *line_kind, start: *start, end: span.end() });
                    begun = None;
                }
                _ => {}
            }
        }
        Self { lines, headers }
    }

    /// The section that a byte stands in, from 0; `None` before the first header.
    pub(super) fn section_at(&self, offset: usize) -> Option<usize> {
        let after = self.headers.partition_point(|&header| self.lines[header].start <= offset);
        after.checked_sub(1)
    }

    /// What belongs to a section.
    pub(super) fn body(&self, section: usize) -> Body {
        let header = self.headers[section];
        let next = self.headers.get(section + 1).copied().unwrap_or(self.lines.len());
        let entries = self.run_before(next, |kind| matches!(kind, Kind::Blank | Kind::Comment));
        let end = self.run_after(entries, Kind::Comment);
        let end = if end == next && next < self.lines.len() { entries } else { end };
        let start = self.run_before(header, |kind| kind == Kind::Comment);
        start..end
    }

    /// The blank lines right above a line.
    pub(super) fn blank_before(&self, line: usize) -> Range<usize> {
        self.run_before(line, |kind| kind == Kind::Blank)..line
    }

    /// The blank lines from this one on.
    pub(super) fn blank_after(&self, line: usize) -> Range<usize> {
        line..self.run_after(line, Kind::Blank)
    }

    /// Whether the line before this one is a comment.
    pub(super) fn is_after_comment(&self, line: usize) -> bool {
        line > 0 && self.lines[line - 1].kind == Kind::Comment
    }

    /// The line after the last one that is not blank.
    pub(super) fn after_last(&self) -> usize {
        self.blank_before(self.lines.len()).start
    }

    /// Where a line begins in the text, also the one after the last.
    pub(super) fn offset(&self, line: usize) -> usize {
        match self.lines.get(line) {
            Some(line) => line.start,
            None => self.lines.last().map_or(0, |line| line.end),
        }
    }

    /// Lines as bytes of the text.
    pub(super) fn span(&self, lines: &Range<usize>) -> Range<usize> {
        self.offset(lines.start)..self.offset(lines.end)
    }

    fn run_before(&self, line: usize, is_in: impl Fn(Kind) -> bool) -> usize {
        line - self.lines[..line].iter().rev().take_while(|line| is_in(line.kind)).count()
    }

    fn run_after(&self, line: usize, kind: Kind) -> usize {
        line + self.lines[line..].iter().take_while(|line| line.kind == kind).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let text = "\u{feff}version = 1 # [x]\n\
            a = [ # {\n\n  '[b]',\n]\n\
            # lead\n [[rules]] # 1\n\n  x = '''\n\n[y]'''\n# trail\n\n\
            # free\n\n\
            [[rules]]\r\n# lead of 3\r\n[sets.x]\n# end\n\n# free\n";
        let lines = Lines::new(text);
        let bodies: Vec<&str> =
            (0..3).map(|section| &text[lines.span(&lines.body(section))]).collect();
        assert_eq!(
            bodies,
            [
                "# lead\n [[rules]] # 1\n\n  x = '''\n\n[y]'''\n# trail\n",
                "[[rules]]\r\n",
                "# lead of 3\r\n[sets.x]\n# end\n",
            ]
        );
        let at = |found: &str| lines.section_at(text.find(found).unwrap());
        assert_eq!([at("[x]"), at("'[b]'"), at("# 1"), at("[y]")], [None, None, Some(0), Some(0)]);
        assert_eq!([at("[[rules]]\r"), at("[sets")], [Some(1), Some(2)]);
        assert_eq!(lines.headers.len(), 3);
        assert_eq!(lines.offset(lines.after_last()), text.len());
    }
}
