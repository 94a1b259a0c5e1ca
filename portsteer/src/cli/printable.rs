//! Text as it may reach a terminal or a log: what clients of the agent have said is in it, and root reads it.

use std::borrow::Cow;

/// The text with characters that move a terminal's cursor, change the order of what is read or end lines
/// unseen written as `\u001b`, which means the same in JSON. Line feeds and tabs stay.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let mut rest = text.chars().peekable();
    let mut is_wrong = false;
    while let Some(character) = rest.next() {
        is_wrong |= match character {
            '\n' | '\t' => false,
            '\r' => rest.peek() != Some(&'\n'),
            other => is_deceptive(other),
        };
    }
    if !is_wrong {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\n' | '\t' => shown.push(character),
            '\r' if rest.peek() == Some(&'\n') => shown.push(character),
            other if is_deceptive(other) => shown.push_str(&escaped(other)),
            other => shown.push(other),
        }
    }
    Cow::Owned(shown)
}

/// The same on one line, for logs, where a line is an event.
#[must_use]
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    let is_wrong =
        |character: char| character == '\n' || character == '\t' || is_deceptive(character);
    if !text.contains(is_wrong) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|character| match is_wrong(character) {
        true => escaped(character),
        false => character.to_string(),
    });
    Cow::Owned(shown.collect())
}

fn escaped(character: char) -> String {
    format!("\\u{:04x}", u32::from(character))
}

/// Control characters (C0, DEL and C1), line separators, and those that reorder text (Unicode's Bidi_Control).
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_but_text() {
        for (text, shown, on_line) in [
            ("caf\u{e9}", "caf\u{e9}", "caf\u{e9}"),
            ("a\tb\r\nc", "a\tb\r\nc", "a\\u0009b\\u000d\\u000ac"),
            ("\u{1b}[2J", "\\u001b[2J", "\\u001b[2J"),
            ("a\rb\u{7f}\u{9b}2J", "a\\u000db\\u007f\\u009b2J", "a\\u000db\\u007f\\u009b2J"),
            ("\u{202e}x\u{2066}", "\\u202ex\\u2066", "\\u202ex\\u2066"),
        ] {
            assert_eq!((&*printable(text), &*on_one_line(text)), (shown, on_line));
        }
    }
}
