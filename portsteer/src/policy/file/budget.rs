//! How much of a policy file is read: as many tokens as there is memory for, and errors up to a number that
//! an operator can still use.
//!
//! The parser keeps some 100 bytes for every token and some 600 for every error, and cannot be stopped. So a
//! long text is looked through before, in pieces, by the same lexer and with a tree of nothing but names.

use std::{borrow::Cow, cell::Cell, collections::HashMap};

use toml_parser::{
    ErrorSink, ParseError, Source, Span,
    decoder::{Encoding, ScalarKind},
    lexer::{Token, TokenKind},
    parser::{EventReceiver, RecursionGuard, ValidateWhitespace, parse_document},
};

use crate::interrupt::Interrupt;

/// The most tokens that a policy file has: words, numbers, strings, signs, and the space between them. The
/// most rules that there may be, with seven keys each, are some 12 million.
pub const MAX_TOKENS: usize = 16 << 20;

/// How many errors, or warnings, of one policy are kept.
pub const MAX_ERRORS: usize = 1_000;

/// A text that is shorter, in bytes, cannot have so many errors that it would matter.
const SHORT: usize = 64 << 10;

/// How many tokens a piece has at least.
const PIECE: usize = 4 << 10;

/// As the parser has it, so that the same is looked at.
const MAX_DEPTH: u32 = 80;

/// How much of a text is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Whole,
    /// Up to this byte, where the last error ends that is kept.
    UpTo(usize),
    /// There are too many tokens: this is where the first one begins that is too many.
    TooLong(usize),
    Interrupted,
}

/// Finds out how much of a text is to be read. Takes time in proportion to its length.
pub(super) fn extent(text: &str, interrupt: &Interrupt) -> Extent {
    if text.len() <= SHORT {
        return Extent::Whole;
    }
    let source = Source::new(text);
    let errors = Errors::default();
    let mut names = Names::new(source, &errors);
    let (mut piece, mut depth) = (Vec::with_capacity(2 * PIECE), 0_usize);
    for (count, token) in source.lex().enumerate() {
        if count == MAX_TOKENS {
            return Extent::TooLong(token.span().start());
        }
        if count % PIECE == 0 && interrupt.is_set() {
            return Extent::Interrupted;
        }
        piece.push(token);
        match token.kind() {
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => depth += 1,
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                depth = depth.saturating_sub(1);
            }
            // Here the parser begins anew, whatever came before.
            TokenKind::Newline if depth == 0 && piece.len() >= PIECE => {
                names.read(&piece);
                piece.clear();
            }
            _ => {}
        }
        if errors.end.get().is_some() {
            break;
        }
    }
    names.read(&piece);
    match errors.end.get() {
        Some(end) => Extent::UpTo(text.ceil_char_boundary(end)),
        None => Extent::Whole,
    }
}

/// Counts errors.
#[derive(Debug, Default)]
struct Errors {
    count: Cell<usize>,
    /// Where the last one ends that is kept.
    end: Cell<Option<usize>>,
}

impl Errors {
    fn add(&self, span: Option<Span>) {
        self.count.set(self.count.get() + 1);
        if self.count.get() >= MAX_ERRORS && self.end.get().is_none() {
            self.end.set(span.map(|span| span.end()));
        }
    }
}

impl ErrorSink for &Errors {
    fn report_error(&mut self, error: ParseError) {
        self.add(error.unexpected().or(error.context()));
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Value,
    /// A table that dotted keys made.
    Dotted,
    /// A table that a longer header made.
    Implicit,
    /// A table with a header.
    Explicit,
    /// The last of several tables, each with a header.
    Element,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    kind: Kind,
    /// The number of the table, if it is one.
    table: u32,
}

/// The file's own table.
const ROOT: u32 = 0;

/// The parts of a dotted key, and where they stand.
type Keys<'t> = Vec<(Cow<'t, str>, Span)>;

/// Which names are in which table, to find those that are there twice.
struct Names<'t, 'e> {
    source: Source<'t>,
    errors: &'e Errors,
    known: HashMap<(u32, Cow<'t, str>), Known>,
    tables: u32,
    /// The tables that keys are put into, the innermost last, each with the keys that were read and not put.
    open: Vec<(u32, Keys<'t>)>,
}

impl<'t, 'e> Names<'t, 'e> {
    fn new(source: Source<'t>, errors: &'e Errors) -> Self {
        let open = vec![(ROOT, Vec::new())];
        Self { source, errors, known: HashMap::new(), tables: ROOT, open }
    }

    /// Reads whole lines.
    fn read(&mut self, tokens: &[Token]) {
        self.open.truncate(1);
        let (source, mut errors) = (self.source, self.errors);
        let mut receiver = ValidateWhitespace::new(self, source);
        let mut receiver = RecursionGuard::new(&mut receiver, MAX_DEPTH);
        parse_document(tokens, &mut receiver, &mut errors);
    }

    fn new_table(&mut self) -> u32 {
        self.tables = self.tables.saturating_add(1);
        self.tables
    }

    fn take_path(&mut self) -> Keys<'t> {
        self.open.last_mut().map_or_else(Vec::new, |(_, path)| std::mem::take(path))
    }

    /// Goes down a path from a table, and makes what is missing.
    fn descend(&mut self, mut table: u32, path: Keys<'t>, missing: Kind) -> Option<u32> {
        for (name, span) in path {
            let fresh = self.new_table();
            let entry = self.known.entry((table, name));
            let known = *entry.or_insert(Known { kind: missing, table: fresh });
            let is_closed = match known.kind {
                Kind::Value => true,
                Kind::Dotted | Kind::Implicit => false,
                Kind::Explicit | Kind::Element => missing == Kind::Dotted,
            };
            if is_closed {
                self.errors.add(Some(span));
                return None;
            }
            table = known.table;
        }
        Some(table)
    }

    /// A header has come whole.
    fn begin(&mut self, kind: Kind) {
        let mut path = self.take_path();
        let fresh = self.new_table();
        self.open[0].0 = fresh;
        let Some((name, span)) = path.pop() else { return };
        let Some(parent) = self.descend(ROOT, path, Kind::Implicit) else { return };
        let known = self.known.entry((parent, name)).or_insert(Known { kind, table: fresh });
        if known.table == fresh {
            return;
        }
        match (known.kind, kind) {
            (Kind::Element, Kind::Element) => known.table = fresh,
            (Kind::Implicit, Kind::Explicit) => {
                known.kind = kind;
                self.open[0].0 = known.table;
            }
            _ => self.errors.add(Some(span)),
        }
    }
}

impl EventReceiver for Names<'_, '_> {
    fn std_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.open.truncate(1);
        self.take_path();
    }

    fn std_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.begin(Kind::Explicit);
    }

    fn array_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.open.truncate(1);
        self.take_path();
    }

    fn array_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.begin(Kind::Element);
    }

    fn inline_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) -> bool {
        let table = self.new_table();
        self.open.push((table, Vec::new()));
        true
    }

    fn inline_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        if self.open.len() > 1 {
            self.open.pop();
        }
    }

    fn simple_key(&mut self, span: Span, encoding: Option<Encoding>, errors: &mut dyn ErrorSink) {
        let mut name = Cow::Borrowed("");
        let raw = self.source.input().get(span.start()..span.end()).unwrap_or_default();
        toml_parser::Raw::new_unchecked(raw, encoding, span).decode_key(&mut name, errors);
        // The parser refuses a longer one as a whole.
        if let Some((_, path)) = self.open.last_mut()
            && path.len() <= MAX_DEPTH as usize
        {
            path.push((name, span));
        }
    }

    fn scalar(&mut self, span: Span, encoding: Option<Encoding>, errors: &mut dyn ErrorSink) {
        let raw = self.source.input().get(span.start()..span.end()).unwrap_or_default();
        let value = toml_parser::Raw::new_unchecked(raw, encoding, span);
        let kind = value.decode_scalar(&mut (), errors);
        if kind == ScalarKind::DateTime && raw.parse::<toml::value::Datetime>().is_err() {
            self.errors.add(Some(span));
        }
    }

    fn key_val_sep(&mut self, _: Span, _: &mut dyn ErrorSink) {
        let mut path = self.take_path();
        let Some((name, span)) = path.pop() else { return };
        let Some(&(table, _)) = self.open.last() else { return };
        let Some(table) = self.descend(table, path, Kind::Dotted) else { return };
        let value = Known { kind: Kind::Value, table };
        if self.known.insert((table, name), value).is_some() {
            self.errors.add(Some(span));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        file::{parse_until, tests::HEAD},
        services::Services,
    };

    fn of(text: &str) -> Extent {
        extent(text, &Interrupt::default())
    }

    /// A text that is too long to be read without a look.
    fn long(line: impl Fn(usize) -> String) -> String {
        (0..200_000).map(line).collect()
    }

    #[test]
    fn what_is_right_is_read_whole() {
        let rules = long(|at| format!("[[rules]]\nname = \"{at}\"\nsrc = [\"::1\",\n \"@a\"]\n"));
        let sets = long(|at| {
            format!(
                "[sets.s{at}]\nfile = \"a\"\n[a.b.'{at}']\nx.y = 1\nx.z = {{ a = [{{ b = 1 }}, {{ b = 2 }}] }}\n"
            )
        });
        for text in [rules, sets] {
            assert_eq!(of(&text), Extent::Whole);
            let (_, errors) = toml::de::DeTable::parse_recoverable(&text);
            assert!(errors.is_empty(), "{errors:?}");
        }
    }

    /// The same errors as the parser's, for every way to make many of them.
    #[test]
    fn reading_stops_after_some_errors() {
        let kinds: [&dyn Fn(usize) -> String; 14] = [
            &|_| "a=1\n".to_owned(),
            &|_| "\"\\u0061\"=1\na=1\n".to_owned(),
            &|at| format!("k{at}=\n"),
            &|at| format!("k{at}=1999-99-99\n"),
            &|at| format!("k{at}=\"\\x\"\n"),
            &|_| "[a]\n".to_owned(),
            &|at| format!("[t{at}]\nx = 1\n[t{at}.x.y]\n"),
            &|at| format!("[[a]]\n[a]\nx={at}\n"),
            &|at| format!("b = {{ x = {at}, x = 1 }}\n[[c]]\n"),
            &|at| format!("[[c]]\nx.a = {at}\nx.a = 1\n"),
            &|at| format!("[a.t{at}]\n[a]\nt{at}.b = 1\n"),
            &|at| format!("[t{at}]\ny.x = 1\n[t{at}.y]\n"),
            &|_| "= = = ]\n".to_owned(),
            &|at| if at == 0 { "x = [\n".to_owned() } else { "= , = ".to_owned() },
        ];
        for (index, line) in kinds.iter().enumerate() {
            let text = long(line);
            let Extent::UpTo(end) = of(&text) else { panic!("{index}: {:?}", &text[..60]) };
            let (_, errors) = toml::de::DeTable::parse_recoverable(&text[..end]);
            let expected = MAX_ERRORS / 2..=4 * MAX_ERRORS;
            assert!(expected.contains(&errors.len()), "{index}: {}", errors.len());
        }
    }

    #[test]
    fn a_text_of_too_many_tokens_is_refused() {
        let text = format!("{HEAD}x = [{}]\n", "1,".repeat(MAX_TOKENS / 2));
        let parsed = parse_until(&text, &Services::embedded(), None, &Interrupt::default());
        let errors = parsed.expect_err("too long");
        assert_eq!(errors.len(), 1);
        assert!(errors[0].message.contains("16777216"), "{}", errors[0].message);
    }

    #[test]
    fn a_look_can_be_interrupted() {
        let interrupt = Interrupt::default();
        interrupt.set();
        assert_eq!(extent(&long(|at| format!("k{at}=1\n")), &interrupt), Extent::Interrupted);
    }
}
