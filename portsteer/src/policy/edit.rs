//! Edits of a policy file's text: a rule or a prefix comes, goes or moves, and not a byte of the rest
//! changes.
//!
//! The parser that reads policies tells where everything stands, and an edit cuts text out and puts
//! text in there. So comments, blank lines, the order, the way of quoting, CRLF, a byte order mark
//! and a last line without an end stay as they are; writing a parsed file out again, as libraries do
//! it, keeps only some of that.
//!
//! An edit looks at no more of a file than it has to. What comes out is to be read with
//! [`super::file`], which says whether it is a policy.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use toml::de::DeTable;
use utoipa::ToSchema;

pub(crate) use self::sets::not_in_set;
pub use self::{
    error::{EditError, NotInSet},
    new_rule::{NewRule, RuleAction},
    reference::RuleRef,
    set_file::{change_set_file, edit_set_file},
};
use super::{diagnostic::line_column, file::dismantle, prefixes};

mod array;
mod error;
mod lines;
mod new_rule;
mod prefix_texts;
mod reference;
mod rules;
mod set_file;
mod sets;
mod splice;
#[cfg(test)]
mod tests;
mod wanted;

/// What an operator does to a policy.
///
/// As JSON, `edit` says which it is:
/// `{"edit":"move-rule","rule":"web","place":{"before":"#3"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "edit", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Edit {
    /// Writes a new rule.
    AddRule {
        rule: Box<NewRule>,
        #[serde(default)]
        place: Place,
    },
    /// Takes a rule out, with the comment lines right above it.
    RemoveRule { rule: RuleRef },
    /// Moves a rule, with the comment lines right above it.
    MoveRule { rule: RuleRef, place: Place },
    /// Puts prefixes into a set. Those that it has are not repeated.
    AddPrefixes {
        set: String,
        /// Without host bits; as text, an address stands for the prefix of full length.
        #[serde(with = "prefix_texts")]
        #[schema(value_type = Vec<String>)]
        prefixes: Vec<IpNet>,
    },
    /// Takes prefixes out of a set, each of which has to be an entry of it.
    RemovePrefixes {
        set: String,
        /// As those of [`Edit::AddPrefixes`].
        #[serde(with = "prefix_texts")]
        #[schema(value_type = Vec<String>)]
        prefixes: Vec<IpNet>,
    },
}

/// Where a rule goes among the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    First,
    #[default]
    Last,
    /// Right before this rule.
    Before(RuleRef),
    /// Right after this rule.
    After(RuleRef),
}

/// What an edit comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edited {
    /// The policy file's text from now on. It is the old one where there was nothing to do.
    Text(String),
    /// The policy file stays as it is: the set's prefixes stand in this file, as the policy names it.
    /// Its content goes through [`edit_set_file`]. All sets that name the file change.
    SetFile(String),
}

/// Edits a policy file's text.
///
/// # Errors
///
/// The edit asks for what is not there, or puts what cannot be, or the text is no TOML. Nothing is to
/// be changed then.
pub fn edit_text(text: &str, edit: &Edit) -> Result<Edited, EditError> {
    let whole = WholeLines::new(text);
    let edited = match edit {
        Edit::AddRule { rule, place } => rules::add(whole.text(), rule, place)?,
        Edit::RemoveRule { rule } => rules::remove(whole.text(), rule)?,
        Edit::MoveRule { rule, place } => rules::relocate(whole.text(), rule, place)?,
        Edit::AddPrefixes { set, prefixes } => match sets::add(whole.text(), set, prefixes)? {
            Edited::Text(text) => text,
            in_file @ Edited::SetFile(_) => return Ok(in_file),
        },
        Edit::RemovePrefixes { set, prefixes } => {
            match sets::remove(whole.text(), set, prefixes)? {
                Edited::Text(text) => text,
                in_file @ Edited::SetFile(_) => return Ok(in_file),
            }
        }
    };
    Ok(Edited::Text(whole.restore(edited)))
}

/// Reads an address or a prefix as a policy has them.
///
/// # Errors
///
/// [`EditError::WrongPrefix`]: the text is neither, or has host bits.
pub fn parse_prefix(text: &str) -> Result<IpNet, EditError> {
    prefixes::parse(text).map_err(|fault| {
        let complaint = prefixes::complain(text, fault, "", prefixes::Place::Line);
        let hint = complaint.help.unwrap_or(complaint.label);
        EditError::WrongPrefix { message: format!("{}: {hint}", complaint.message) }
    })
}

/// Refuses prefixes with host bits, which no set has.
fn check_prefixes(prefixes: &[IpNet]) -> Result<(), EditError> {
    let has_host_bits = |prefix: &&IpNet| prefix.trunc() != **prefix;
    match prefixes.iter().find(has_host_bits) {
        Some(prefix) => parse_prefix(&prefix.to_string()).map(|_| ()),
        None => Ok(()),
    }
}

/// Parses a text, and shows the tree.
fn with_tree<T>(
    text: &str,
    look: impl FnOnce(&DeTable<'_>) -> Result<T, EditError>,
) -> Result<T, EditError> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let root = root.into_inner();
    let found = match errors.first() {
        None => look(&root),
        Some(error) => {
            let line = error.span().map_or(1, |span| line_column(text, span.start).0);
            Err(EditError::Syntax { line, message: error.message().to_owned() })
        }
    };
    dismantle(root);
    found
}

/// A text of which every line has an end.
struct WholeLines<'t> {
    text: std::borrow::Cow<'t, str>,
    /// What was put after the last line.
    added: &'static str,
}

impl<'t> WholeLines<'t> {
    fn new(text: &'t str) -> Self {
        if text.is_empty() || text.ends_with('\n') {
            return Self { text: text.into(), added: "" };
        }
        let added = newline(text.as_bytes());
        Self { text: format!("{text}{added}").into(), added }
    }

    fn text(&self) -> &str {
        &self.text
    }

    /// Takes the last line's end away again if it had none.
    fn restore(&self, mut edited: String) -> String {
        if edited.ends_with(self.added) {
            edited.truncate(edited.len() - self.added.len());
        }
        edited
    }
}

/// How the text's lines end: as its first one does.
fn newline(text: &[u8]) -> &'static str {
    match memchr::memchr(b'\n', text) {
        Some(end) if text[..end].ends_with(b"\r") => "\r\n",
        _ => "\n",
    }
}
