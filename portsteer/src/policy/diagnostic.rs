//! What is wrong with a policy, where in its file, and what would be right.
//!
//! A [`Diagnostic`] points into a text by bytes; [`render`] shows it with the line that it is
//! about. Neither asks anything of the text or of the spans: whatever they are, nothing in here
//! panics, and what is printed stays short however much is wrong.

use std::ops::Range;

use annotate_snippets::{
    Annotation, AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet,
    normalize_untrusted_str,
};

/// A text and what to call it.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file's name as the operator gave it.
    pub name: String,
    /// All of the file.
    pub text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The policy cannot be used.
    Error,
    /// The policy is legal, but hardly meant.
    Warning,
}

/// One thing that is wrong, or hardly meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// One line, without a full stop.
    pub message: String,
    /// What it is about, in bytes of the file; `None` if it is about the file as a whole.
    pub span: Option<Range<usize>>,
    /// A few words that stand beside the underlined text.
    pub label: Option<String>,
    /// More about it, a line each, without full stops.
    pub notes: Vec<String>,
    /// What to do about it.
    pub help: Option<String>,
    /// Other places that matter here, in bytes of the file, and why they do.
    pub related: Vec<(Range<usize>, String)>,
}

/// How many diagnostics [`render`] shows.
pub const MAX_SHOWN: usize = 20;

/// How many related places of one diagnostic [`render`] shows.
const MAX_RELATED: usize = 6;

/// The longest line that is quoted, in bytes. What is printed of it is shorter.
const MAX_LINE: usize = 64 << 10;

/// The longest part of the text that is quoted because places in it belong together, in bytes.
const MAX_TOGETHER: usize = 4 << 10;

/// The longest text that is underlined, in characters.
const MAX_UNDERLINED: usize = 100;

/// Related places at most this many lines from the main one are quoted together with it.
const NEAR_LINES: usize = 30;

impl Diagnostic {
    /// An error about the file as a whole.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Severity::Error, message.into())
    }

    /// A warning about the file as a whole.
    #[must_use]
    pub fn warning(message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, message.into())
    }

    fn new(severity: Severity, message: String) -> Self {
        Self {
            severity,
            message,
            span: None,
            label: None,
            notes: Vec::new(),
            help: None,
            related: Vec::new(),
        }
    }

    /// Points it at these bytes of the file.
    #[must_use]
    pub fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    /// Puts a few words beside the underlined text.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says more about it.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Points at another place that matters here.
    #[must_use]
    pub fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }
}

/// The diagnostics as text for people, each with the lines that it is about. Ends with a newline
/// unless there are none. Only the first [`MAX_SHOWN`] are shown, and the others counted. Control
/// characters from the file or its name are made visible.
#[must_use]
pub fn render(source: &Source, diagnostics: &[Diagnostic], color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let name = normalize_untrusted_str(&source.name);
    let mut shown: Vec<String> = diagnostics
        .iter()
        .take(MAX_SHOWN)
        .map(|diagnostic| renderer.render(&[group(&name, &source.text, diagnostic)]) + "\n")
        .collect();
    if diagnostics.len() > MAX_SHOWN {
        shown.push(format!("and {} more\n", diagnostics.len() - MAX_SHOWN));
    }
    shown.join("\n")
}

/// The line and column of a byte, both from 1, columns in characters. A byte order mark at the
/// text's start has no column. A byte within a character counts as its first; one beyond the text
/// as the text's end.
#[must_use]
pub fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let place = Place::new(text, &(offset..offset));
    (place.line, place.column)
}

/// The candidate that `word` was probably meant to be. Case does not matter; the more letters,
/// the more of them may be wrong.
#[must_use]
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 40; // the distance takes time in proportion to both lengths
    let len = word.chars().count();
    if !(2..=LONGEST).contains(&len) {
        return None;
    }
    let word = word.to_lowercase();
    let allowed = len.div_ceil(3).min(3);
    let mut best: Option<(usize, f64, &str)> = None;
    for candidate in candidates {
        if candidate.len().abs_diff(word.len()) > allowed {
            continue;
        }
        let distance = strsim::damerau_levenshtein(&word, candidate);
        if distance > allowed || best.is_some_and(|(least, ..)| distance > least) {
            continue;
        }
        let likeness = strsim::jaro_winkler(&word, candidate);
        if best.is_none_or(|(least, most, _)| distance < least || likeness > most) {
            best = Some((distance, likeness, candidate));
        }
    }
    best.map(|(.., candidate)| candidate)
}

/// Where a span is, cut to its first line.
struct Place {
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    /// The whole line without its end, in bytes of the text.
    line_span: Range<usize>,
    /// What to underline, within `line_span`.
    span: Range<usize>,
}

impl Place {
    fn new(text: &str, span: &Range<usize>) -> Self {
        let first = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let start = text.floor_char_boundary(span.start).max(first);
        let before = &text[first..start];
        let line_start = first + before.rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &text[line_start..];
        let line_text = rest.split('\n').next().unwrap_or(rest);
        let line_text = line_text.strip_suffix('\r').unwrap_or(line_text);
        let line_end = line_start + line_text.len();
        let start = start.min(line_end); // it may be the line's end itself
        let end = text.ceil_char_boundary(span.end).clamp(start, line_end);
        let mut characters = text[start..end].char_indices();
        let end = characters.nth(MAX_UNDERLINED).map_or(end, |(index, _)| start + index);
        Self {
            line: 1 + before.bytes().filter(|&byte| byte == b'\n').count(),
            column: 1 + text[line_start..start].chars().count(),
            line_span: line_start..line_end,
            span: start..end,
        }
    }

    fn annotation<'a>(
        &self,
        kind: AnnotationKind,
        label: Option<&'a str>,
        base: usize,
    ) -> Annotation<'a> {
        kind.span(self.span.start - base..self.span.end - base)
            .label(label.map(normalize_untrusted_str))
    }
}

fn group<'a>(name: &'a str, text: &'a str, diagnostic: &'a Diagnostic) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let group =
        Group::with_title(level.primary_title(normalize_untrusted_str(&diagnostic.message)));
    let group = group.elements(match &diagnostic.span {
        Some(span) => snippets(name, text, diagnostic, span),
        None => vec![Origin::path(name).into()],
    });
    let notes = diagnostic.notes.iter();
    let group =
        group.elements(notes.map(|note| Level::NOTE.message(normalize_untrusted_str(note))));
    group.elements(
        diagnostic.help.as_deref().map(|help| Level::HELP.message(normalize_untrusted_str(help))),
    )
}

/// The quoted lines: one piece for the main place and the related ones near it, one for each of
/// the others.
fn snippets<'a>(
    name: &'a str,
    text: &'a str,
    diagnostic: &'a Diagnostic,
    span: &Range<usize>,
) -> Vec<Element<'a>> {
    let main = Place::new(text, span);
    let mut quoted = main.line_span.clone();
    let mut first_line = main.line;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for (span, label) in diagnostic.related.iter().take(MAX_RELATED) {
        let place = Place::new(text, span);
        let both = quoted.start.min(place.line_span.start)..quoted.end.max(place.line_span.end);
        if place.line.abs_diff(main.line) <= NEAR_LINES && both.len() <= MAX_TOGETHER {
            quoted = both;
            first_line = first_line.min(place.line);
            near.push((place, label));
        } else {
            far.push((place, label));
        }
    }

    let label = diagnostic.label.as_deref();
    let mut elements = Vec::new();
    if quoted.len() <= MAX_LINE {
        let annotations = near.iter().map(|(place, label)| {
            place.annotation(AnnotationKind::Context, Some(label), quoted.start)
        });
        elements.push(
            Snippet::source(&text[quoted.clone()])
                .path(name)
                .line_start(first_line)
                .annotation(main.annotation(AnnotationKind::Primary, label, quoted.start))
                .annotations(annotations)
                .into(),
        );
    } else {
        elements.extend(unquoted(name, &main, label));
    }
    for (place, label) in far {
        if place.line_span.len() <= MAX_LINE {
            let annotation =
                place.annotation(AnnotationKind::Context, Some(label), place.line_span.start);
            elements.push(
                Snippet::source(&text[place.line_span.clone()])
                    .path(name)
                    .line_start(place.line)
                    .annotation(annotation)
                    .into(),
            );
        } else {
            elements.extend(unquoted(name, &place, Some(label)));
        }
    }
    if diagnostic.related.len() > MAX_RELATED {
        let count = diagnostic.related.len() - MAX_RELATED;
        elements.push(Level::NOTE.message(format!("and {count} more places")).into());
    }
    elements
}

/// A place whose line is too long to be quoted.
fn unquoted<'a>(name: &'a str, place: &Place, label: Option<&'a str>) -> [Element<'a>; 2] {
    let label = label.unwrap_or("the line is too long to be shown");
    [
        Origin::path(name).line(place.line).char_column(place.column).into(),
        Level::NOTE.message(normalize_untrusted_str(label)).into(),
    ]
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "p.toml".into(), text: text.into() }
    }

    fn shown(text: &str, diagnostic: Diagnostic) -> String {
        render(&source(text), &[diagnostic], false)
    }

    #[test]
    fn lines_and_columns() {
        for (text, offset, expected) in [
            ("", 0, (1, 1)),
            ("", 9, (1, 1)),
            ("ab", 0, (1, 1)),
            ("ab", 1, (1, 2)),
            ("ab", 2, (1, 3)),
            ("ab", usize::MAX, (1, 3)),
            ("a\nb", 1, (1, 2)),
            ("a\nb", 2, (2, 1)),
            ("a\nb\n", 4, (3, 1)),
            ("a\r\nb", 1, (1, 2)),
            ("a\r\nb", 2, (1, 2)),
            ("a\r\nb", 3, (2, 1)),
            ("a\tb", 2, (1, 3)),
            ("\u{e4}b", 1, (1, 1)),
            ("\u{e4}b", 2, (1, 2)),
            ("\u{1f600}b", 4, (1, 2)),
            ("\u{feff}ab", 0, (1, 1)),
            ("\u{feff}ab", 3, (1, 1)),
            ("\u{feff}ab\nc", 4, (1, 2)),
            ("\u{feff}ab\nc", 6, (2, 1)),
        ] {
            assert_eq!(line_column(text, offset), expected, "{text:?} {offset}");
        }
    }

    #[test]
    fn renderings() {
        for (text, diagnostic, expected) in [
            (
                "a = 1\n",
                Diagnostic::error("broken").help("mend it"),
                "error: broken\n--> p.toml\n = help: mend it\n",
            ),
            (
                "a = 1\nb = 2\n",
                Diagnostic::warning("odd").at(10..11).label("even"),
                "\
warning: odd
 --> p.toml:2:5
  |
2 | b = 2
  |     ^ even
",
            ),
            (
                "a =\t\"\u{e4}\u{4e2d}\" x\r\nb\r\n",
                Diagnostic::error("tab").at(4..11).label("wide"),
                "\
error: tab
 --> p.toml:1:5
  |
1 | a =    \"\u{e4}\u{4e2d}\" x
  |        ^^^^^ wide
",
            ),
            (
                "a = 1\n",
                Diagnostic::error("two").at(4..5).note("one").note("\u{1b}other").help("mend"),
                "\
error: two
 --> p.toml:1:5
  |
1 | a = 1
  |     ^
  |
  = note: one
  = note: \u{241b}other
  = help: mend
",
            ),
            (
                "a",
                Diagnostic::error("end").at(1..1),
                "error: end\n --> p.toml:1:2\n  |\n1 | a\n  |  ^\n",
            ),
            (
                "\u{feff}a = [\n1]",
                Diagnostic::error("lines").at(7..11).label("cut"),
                "error: lines\n --> p.toml:1:5\n  |\n1 | a = [\n  |     ^ cut\n",
            ),
        ] {
            assert_eq!(shown(text, diagnostic), expected);
        }
    }

    #[test]
    fn far_places_are_quoted_apart() {
        let text = "first\n".to_owned() + &"\n".repeat(98) + "last\n";
        let diagnostic = Diagnostic::error("far").at(104..108).related(0..5, "here");
        assert_eq!(
            shown(&text, diagnostic),
            "\
error: far
   --> p.toml:100:1
    |
100 | last
    | ^^^^
    |
   ::: p.toml:1:1
    |
  1 | first
    | ----- here
"
        );
    }

    #[test]
    fn several_are_set_apart_and_counted() {
        let one = Diagnostic::error("one");
        assert_eq!(render(&source(""), &[], false), "");
        assert_eq!(
            render(&source(""), &[one.clone(), one.clone()], false),
            "error: one\n--> p.toml\n\nerror: one\n--> p.toml\n"
        );
        let text = render(&source(""), &vec![one; 1_000_000], false);
        assert_eq!(text.matches("error: one").count(), MAX_SHOWN);
        assert!(text.ends_with("\n\nand 999980 more\n"));
    }

    #[test]
    fn what_is_printed_is_short() {
        let mut diagnostic = Diagnostic::error("long").at(0..10_000_000).label("label");
        for start in 0..1000 {
            diagnostic = diagnostic.related(start..10_000_000, "related");
        }
        for line in ["x".repeat(10_000_000), "\u{4e2d}\t".repeat(10_000), "x\n".repeat(1_000_000)] {
            let text = shown(&line, diagnostic.clone());
            assert!(text.len() < 10_000, "{}", text.len());
            assert!(text.contains("label"), "{text}");
        }
    }

    #[test]
    fn nothing_in_the_text_reaches_the_terminal_raw() {
        const RAW: &str = "\u{1b}[2J\u{202e}";
        let source = Source { name: RAW.into(), text: RAW.into() };
        let diagnostic = Diagnostic::error(RAW)
            .at(0..4)
            .label(RAW)
            .related(1..2, RAW)
            .help(RAW)
            .related(4..9, RAW);
        let text = render(&source, &[diagnostic, Diagnostic::warning(RAW)], false);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn color() {
        let text = render(&source("a"), &[Diagnostic::error("x").at(0..1)], true);
        assert!(text.contains("\u{1b}["));
    }

    #[test]
    fn suggestions() {
        const WORDS: [&str; 8] =
            ["http", "https", "tcp", "drop", "dst_port", "protocol", "ssh", "udplite"];
        for (word, expected) in [
            ("htps", Some("https")),
            ("htp", Some("http")),
            ("tpc", Some("tcp")),
            ("dorp", Some("drop")),
            ("DROP", Some("drop")),
            ("dst_prot", Some("dst_port")),
            ("destport", Some("dst_port")),
            ("protcol", Some("protocol")),
            ("udp-lite", Some("udplite")),
            ("sh", Some("ssh")),
            ("x", None),
            ("", None),
            ("xyz", None),
            ("something", None),
        ] {
            assert_eq!(suggest(word, WORDS), expected, "{word}");
        }
        assert_eq!(suggest(&"x".repeat(1_000_000), WORDS), None);
    }

    proptest! {
        #[test]
        fn no_span_panics(
            text in prop_oneof![any::<String>(), "[a\u{e4}\u{1f600}\u{feff}\r\n\t\u{0}]{0,40}"],
            spans in prop::collection::vec((0..60_usize, 0..60_usize), 0..5),
            color: bool,
        ) {
            let mut diagnostic = Diagnostic::error(text.clone()).label(text.clone());
            for (index, &(start, end)) in spans.iter().enumerate() {
                prop_assert!(line_column(&text, start) >= (1, 1));
                if index == 0 {
                    diagnostic = diagnostic.at(start..end);
                } else {
                    let mut label = text.clone();
                    write!(label, "{index}").unwrap();
                    diagnostic = diagnostic.related(start..end, label);
                }
            }
            let text = render(&source(&text), &[diagnostic], color);
            let start = if color { "\u{1b}[" } else { "error: " };
            prop_assert!(text.starts_with(start));
        }
    }
}
