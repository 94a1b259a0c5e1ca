//! Whole edits: tables of texts before and after, and random edits of random policies in random
//! layouts, compared with the same edit of the policy's meaning.

use std::fmt::Write as _;

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::policy::{
    Action, Addresses, Policy, Rule, file::parse, icmp_text, random, services::Services, vlan_text,
};

const HEAD: &str = "version = 1\ninterfaces = [\"*\"]\n";

fn prefix(text: &str) -> IpNet {
    parse_prefix(text).unwrap()
}

fn prefixes_of(texts: &str) -> Vec<IpNet> {
    texts.split_whitespace().map(prefix).collect()
}

fn add_prefixes(texts: &str) -> Edit {
    Edit::AddPrefixes { set: "x".to_owned(), prefixes: prefixes_of(texts) }
}

fn remove_prefixes(texts: &str) -> Edit {
    Edit::RemovePrefixes { set: "x".to_owned(), prefixes: prefixes_of(texts) }
}

fn add_rule(name: &str, place: Place) -> Edit {
    let name = (!name.is_empty()).then(|| name.to_owned());
    Edit::AddRule { rule: Box::new(NewRule { name, ..NewRule::any(RuleAction::Drop) }), place }
}

fn rule_ref(text: &str) -> RuleRef {
    text.parse().unwrap()
}

fn remove_rule(rule: &str) -> Edit {
    Edit::RemoveRule { rule: rule_ref(rule) }
}

fn move_rule(rule: &str, place: Place) -> Edit {
    Edit::MoveRule { rule: rule_ref(rule), place }
}

fn before(rule: &str) -> Place {
    Place::Before(rule_ref(rule))
}

fn after(rule: &str) -> Place {
    Place::After(rule_ref(rule))
}

fn edited(text: &str, edit: &Edit) -> String {
    match edit_text(text, edit) {
        Ok(Edited::Text(text)) => text,
        other => panic!("{other:?} for {edit:?} of\n{text}"),
    }
}

fn error(text: &str, edit: &Edit) -> String {
    edit_text(text, edit).expect_err(text).to_string()
}

/// What becomes of a set's list.
#[test]
fn lists_of_prefixes() {
    let add = |list: &str, texts: &str, expected: &str| {
        for tail in ["", " # end", "\n[sets.y]\naddresses = ['::1']\n"] {
            let policy = |list: &str| format!("[sets.x] # x\naddresses = {list}{tail}");
            let text = edited(&policy(list), &add_prefixes(texts));
            assert_eq!(text, policy(expected), "{texts} into {list}");
            assert_eq!(edited(&text, &remove_prefixes(texts)), policy(list), "{texts} from {text}");
        }
    };
    add("[]", "10.0.0.0/8", "[\"10.0.0.0/8\"]");
    add("[]", "::1 10.0.0.1/32", "[\"::1\", \"10.0.0.1\"]");
    add("['::1']", "::2", "['::1', '::2']");
    add("[ \"::1\" ]", "::2", "[ \"::1\", \"::2\" ]");
    add("[\"::1\",\"::2\"]", "::3", "[\"::1\",\"::2\",\"::3\"]");
    add("[\"::1\", \"::2\",]", "::3", "[\"::1\", \"::2\", \"::3\",]");
    add("[\n]", "::3", "[\n    \"::3\",\n]");
    add("[ # none\n\t# yet\n]", "::3", "[ # none\n\t# yet\n\t\"::3\",\n]");
    add("[\n  '::1', # one\n\n]", "::2 ::3", "[\n  '::1', # one\n  '::2',\n  '::3',\n\n]");
    add("[\n  '::1' # one\n]", "::2 ::3", "[\n  '::1', # one\n  '::2',\n  '::3'\n]");
    add("['::1',\n '::2']", "::3", "['::1',\n '::2',\n '::3']");
    add("['::1',\n '::2',\n]", "::3", "['::1',\n '::2',\n '::3',\n]");
    add("[\n  '::1', '::2',\n  '::4',\n]", "::3", "[\n  '::1', '::2',\n  '::4',\n  '::3',\n]");
    add("[ '::1'\n, '::2'\n]", "::3", "[ '::1'\n, '::2', '::3'\n]");
    add(
        "[\n  '::1'\n  # one\n  , '::2' # two\n]",
        "::3",
        "[\n  '::1'\n  # one\n  , '::2', '::3' # two\n]",
    );

    let remove = |list: &str, texts: &str, expected: &str| {
        let policy = |list: &str| format!("sets = {{ x = {{ addresses = {list} }} }}");
        assert_eq!(edited(&policy(list), &remove_prefixes(texts)), policy(expected), "{list}");
    };
    remove("[\"10.0.0.1\", '10.0.0.1/32', '::1']", "10.0.0.1", "['::1']");
    remove("['::1', '::2', '::3']", "::2", "['::1', '::3']");
    remove("['::1', '::2', '::3']", "::1 ::2", "['::3']");
    remove("['::1', '::2', '::3']", "::2 ::3", "['::1']");
    remove("['::1', '::2',  '::3', ]", "::1 ::3", "['::2', ]");
    remove("['::1', '::2']", "::1 ::2", "[]");
    remove("[ '0::1', ]", "::1", "[  ]");
    let list = "[\n  # a\n  '::1', # one\n  '::2', '::3', # two, three\n  # b\n  '::4' # four\n]";
    remove(list, "::1", "[\n  # a\n  '::2', '::3', # two, three\n  # b\n  '::4' # four\n]");
    remove(
        list,
        "::2",
        "[\n  # a\n  '::1', # one\n  '::3', # two, three\n  # b\n  '::4' # four\n]",
    );
    remove(
        list,
        "::3",
        "[\n  # a\n  '::1', # one\n  '::2', # two, three\n  # b\n  '::4' # four\n]",
    );
    remove(list, "::2 ::3", "[\n  # a\n  '::1', # one\n  # b\n  '::4' # four\n]");
    remove(list, "::4", "[\n  # a\n  '::1', # one\n  '::2', '::3' # two, three\n  # b\n]");
    remove(list, "::4 ::1 ::2 ::3", "[\n  # a\n  # b\n]");
    remove("['::1', # one\n '::2']", "::2", "['::1' # one\n ]");
    remove("['::1', # one\n '::2']", "::1", "[ # one\n '::2']");
    remove("[ '::1'\n, '::2'\n, '::3'\n]", "::2", "[ '::1'\n, '::3'\n]");
    remove("[\n  '::1'\n, '::2'\n]", "::1", "[\n  '::2'\n]");
}

#[test]
fn other_ways_to_write_sets() {
    for (text, expected) in [
        ("sets.x.addresses = []\r\nmode = 'auto'", "sets.x.addresses = [\"::1\"]\r\nmode = 'auto'"),
        ("\u{feff}[sets]\nx.addresses=[\n]\n", "\u{feff}[sets]\nx.addresses=[\n    \"::1\",\n]\n"),
        (
            "[sets.\"x\"]\naddresses = [\r\n]\r\n",
            "[sets.\"x\"]\naddresses = [\r\n    \"::1\",\r\n]\r\n",
        ),
    ] {
        assert_eq!(edited(text, &add_prefixes("::1")), expected);
        assert_eq!(edited(expected, &remove_prefixes("::1")), text);
        assert_eq!(edited(expected, &add_prefixes("::1 ::1/128")), expected);
        assert_eq!(edited(text, &add_prefixes("")), text);
    }
    let text = "[sets.x]\nfile = 'x.txt'";
    let in_file = Ok(Edited::SetFile("x.txt".to_owned()));
    assert_eq!(edit_text(text, &add_prefixes("::1")), in_file);
    assert_eq!(edit_text(text, &remove_prefixes("::1")), in_file);
}

/// Rules by name, `-` for a blank line and `#` for a comment, before and after.
#[test]
fn sections_of_rules() {
    let write = |short: &str| -> String {
        let mut text = HEAD.to_owned();
        for word in short.split_whitespace() {
            match word {
                "-" => text.push('\n'),
                _ if word.starts_with('#') => writeln!(text, "{word}").unwrap(),
                _ if word.starts_with('[') => writeln!(text, "{word}").unwrap(),
                name => {
                    writeln!(text, "[[rules]]\nname = \"{name}\"\naction = \"drop\"").unwrap();
                }
            }
        }
        text
    };
    let cases = [
        ("", add_rule("n", Place::Last), "- n"),
        ("# -", add_rule("n", Place::First), "# - n -"),
        ("a", add_rule("n", Place::First), "n - a"),
        ("a", add_rule("n", Place::Last), "a - n"),
        ("a b", add_rule("n", before("b")), "a n b"),
        ("a b", add_rule("n", after("a")), "a n b"),
        ("a - - b", add_rule("n", Place::Last), "a - - b - - n"),
        ("- #1 a - #2 b -", add_rule("n", before("#2")), "- #1 a - n - #2 b -"),
        ("a - #free - b", add_rule("n", after("a")), "a - n - #free - b"),
        ("a - #free - b", add_rule("n", before("b")), "a - #free - n - b"),
        ("a #trail - [sets] - b", add_rule("n", after("a")), "a #trail - n - [sets] - b"),
        ("a b #trail", add_rule("n", Place::Last), "a b #trail - n"),
        ("a - [sets]", add_rule("n", Place::Last), "a - n - [sets]"),
        ("- a - #2 b #t - c", remove_rule("b"), "- a - c"),
        ("- a - #2 b #t - c", remove_rule("c"), "- a - #2 b #t"),
        ("- a - #2 b #t - c", remove_rule("#1"), "- #2 b #t - c"),
        ("- a - - b - #free - c", remove_rule("b"), "- a - #free - c"),
        ("a b c", remove_rule("b"), "a c"),
        ("- a - [sets]", remove_rule("a"), "- [sets]"),
        ("a #2 b c", remove_rule("b"), "a c"),
        ("a #2 b c", remove_rule("a"), "#2 b c"),
        ("- a - #2 b - c", move_rule("b", Place::First), "- #2 b - a - c"),
        ("- a - #2 b - c", move_rule("b", Place::Last), "- a - c - #2 b"),
        ("- a - #2 b - c", move_rule("#1", after("#2")), "- #2 b - a - c"),
        ("- a - #2 b - c", move_rule("c", before("b")), "- a - c - #2 b"),
        ("- a - #2 b - c", move_rule("a", before("b")), "- a - #2 b - c"),
        ("- a - #2 b - c", move_rule("c", Place::Last), "- a - #2 b - c"),
        ("a b", move_rule("b", Place::First), "b a"),
        ("a - #free - b", move_rule("b", Place::First), "b - a - #free"),
        ("a - #free - b - c", move_rule("a", Place::Last), "- #free - b - c - a"),
        ("a #t - [sets] b", move_rule("a", Place::Last), "- [sets] b - a #t"),
        ("a #lead [sets] b", remove_rule("a"), "#lead [sets] b"),
        ("a b #t", move_rule("b", Place::First), "b #t - a"),
    ];
    for (short, edit, expected) in cases {
        // A section's first line is not blank.
        let (text, expected) = (write(short), write(expected));
        for (old, new) in [("", ""), ("\n", "\r\n")] {
            let with_ends =
                |text: &str| if old.is_empty() { text.to_owned() } else { text.replace(old, new) };
            let (text, expected) = (with_ends(&text), with_ends(&expected));
            assert_eq!(edited(&text, &edit), expected, "{edit:?}");
            let cut = |text: &str| {
                text.strip_suffix("\n")
                    .map(|text| text.strip_suffix("\r").unwrap_or(text))
                    .unwrap()
                    .to_owned()
            };
            assert_eq!(edited(&cut(&text), &edit), cut(&expected), "{edit:?} without an end");
        }
    }
}

#[test]
fn a_rule_of_several_sections() {
    let text = "[[rules]]\nname = 'a'\n\n# where to\n[rules.action]\nsteer = 'w'\n\n\
                [targets.w]\ncpus = 1\n\n[[rules]]\nname = 'b'\naction = 'drop'\n";
    assert_eq!(
        edited(text, &remove_rule("a")),
        "\n[targets.w]\ncpus = 1\n\n[[rules]]\nname = 'b'\naction = 'drop'\n"
    );
    assert_eq!(
        edited(text, &move_rule("a", Place::Last)),
        "\n[targets.w]\ncpus = 1\n\n[[rules]]\nname = 'b'\naction = 'drop'\n\n\
         [[rules]]\nname = 'a'\n# where to\n[rules.action]\nsteer = 'w'\n"
    );
    assert_eq!(
        edited(text, &move_rule("b", before("a"))),
        "[[rules]]\nname = 'b'\naction = 'drop'\n\n\
         [[rules]]\nname = 'a'\n\n# where to\n[rules.action]\nsteer = 'w'\n\n\
         [targets.w]\ncpus = 1\n"
    );
}

#[test]
fn lists_of_rules() {
    let item = |name: &str| format!("{{ name = \"{name}\", action = \"drop\" }}");
    let write = |list: &str| {
        let mut text = String::from("rules = ");
        for part in list.split_inclusive(['a', 'b', 'c', 'n']) {
            match part.char_indices().next_back() {
                Some((at, name @ ('a' | 'b' | 'c' | 'n'))) => {
                    text.push_str(&part[..at]);
                    text.push_str(&item(&name.to_string()));
                }
                _ => text.push_str(part),
            }
        }
        text + "\nversion = 1\n"
    };
    let cases = [
        ("[]", add_rule("n", Place::First), "[n]"),
        ("[a, b]", add_rule("n", Place::Last), "[a, b, n]"),
        ("[a, b]", add_rule("n", Place::First), "[n, a, b]"),
        ("[a, b]", add_rule("n", after("a")), "[a, n, b]"),
        (
            "[\n  # 1\n  a,\n  # 2\n  b,\n]",
            add_rule("n", before("b")),
            "[\n  # 1\n  a,\n  n,\n  # 2\n  b,\n]",
        ),
        (
            "[\n  # 1\n  a,\n  # 2\n  b # 3\n]",
            add_rule("n", Place::Last),
            "[\n  # 1\n  a,\n  # 2\n  b, # 3\n  n\n]",
        ),
        ("[\n  # 1\n  a,\n  # 2\n  b # 3\n]", remove_rule("b"), "[\n  # 1\n  a\n]"),
        ("[\n  # 1\n  a,\n  # 2\n  b # 3\n]", remove_rule("a"), "[\n  # 2\n  b # 3\n]"),
        ("[a, b, c]", move_rule("a", Place::Last), "[b, c, a]"),
        ("[a, b, c]", move_rule("c", Place::First), "[c, a, b]"),
        ("[a, b, # 1\n c]", move_rule("c", before("b")), "[a, c, # 1\n b]"),
        (
            "[\n  # 1\n  a, # 2\n\n  b, # 3\n  c\n]",
            move_rule("a", Place::Last),
            "[\n\n  b, # 3\n  c,\n  # 1\n  a # 2\n]",
        ),
        (
            "[\n  # 1\n  a, # 2\n  # 3\n  b # 4\n]",
            move_rule("b", Place::First),
            "[\n  # 3\n  b, # 4\n  # 1\n  a # 2\n]",
        ),
        ("[\n a,\n b,\n c,\n]", move_rule("a", before("c")), "[\n b,\n a,\n c,\n]"),
    ];
    for (list, edit, expected) in cases {
        assert_eq!(edited(&write(list), &edit), write(expected), "{edit:?}");
    }
}

#[test]
fn errors() {
    let text = "version = 1\n[[rules]]\nname = 'web'\naction = 'drop'\n[[rules]]\naction = 'drop'\n\
                [[rules]]\nname = '7'\naction = 'drop'\n\
                [sets.x]\naddresses = ['10.0.0.0/8', '10.1.0.0/16', '::1']\n[sets.office]\naddresses = []\n";
    for (edit, expected) in [
        (remove_rule("wbe"), "there is no rule `wbe`: did you mean `web`?"),
        (remove_rule("mail"), "there is no rule `mail`: the named rules are `web`, `7`"),
        (
            remove_rule("7"),
            "`7` may be a rule's number, and is the name of rule #3: `name=7` means that one",
        ),
        (
            add_rule("web", Place::Last),
            "rule #1 is named `web` already: choose another name, or remove that rule first",
        ),
        (add_rule("n", before("wbe")), "there is no rule `wbe`: did you mean `web`?"),
        (
            add_rule(" n", Place::Last),
            "` n` is no name for a rule: a name neither begins nor ends with white space",
        ),
        (
            move_rule("web", after("#1")),
            "rule `web` cannot come before or after itself: name another rule",
        ),
        (move_rule("#9", Place::First), "there is no rule #9: the policy has 3 rules"),
        (
            Edit::AddPrefixes { set: "ofice".into(), prefixes: vec![] },
            "there is no set `ofice`: did you mean `office`?",
        ),
        (
            Edit::RemovePrefixes { set: "guests".into(), prefixes: vec![] },
            "there is no set `guests`: the sets are `x`, `office`",
        ),
        (
            Edit::AddPrefixes { set: "x".into(), prefixes: vec!["10.0.0.1/8".parse().unwrap()] },
            "`10.0.0.1/8` has host bits set: did you mean `10.0.0.0/8`, or `10.0.0.1` for the one address?",
        ),
        (
            remove_prefixes("::1 10.1.2.3 10.2.0.0/16 ::2 ::2"),
            "the set `x` does not have `10.1.2.3` (only as part of `10.1.0.0/16`), \
             `10.2.0.0/16` (only as part of `10.0.0.0/8`), `::2`: \
             an entry can only be removed whole: remove it, and add what shall stay",
        ),
        (
            remove_prefixes("::2 ::3 ::4 ::5 0.0.0.0/0 ::/0"),
            "the set `x` does not have `::2`, `::3`, `::4`, `::5`, and 2 more: nothing was removed",
        ),
    ] {
        assert_eq!(error(text, &edit), expected);
    }
    assert!(edited(text, &remove_rule("name=7")).find("'7'").is_none());
    for (text, edit, expected) in [
        (
            "a = 1\nb",
            remove_rule("a"),
            "line 2 of the policy file is wrong (key with no value, expected `=`): `portsteer check` shows it",
        ),
        (
            "rules = 1",
            remove_rule("a"),
            "`rules` is no list of tables in the policy file: `portsteer check` shows what is wrong with it",
        ),
        ("", remove_rule("a"), "there is no rule `a`: the policy has no named rules"),
        ("", remove_rule("1"), "there is no rule #1: the policy has no rules"),
        ("", add_prefixes("::1"), "there is no set `x`: the policy has no sets"),
        (
            "[sets.x]",
            add_prefixes("::1"),
            "the set `x` has neither `addresses` nor `file` in the policy file: `portsteer check` shows what is wrong with it",
        ),
    ] {
        assert_eq!(error(text, &edit), expected);
    }
}

#[test]
fn json() {
    let edits = [
        (
            add_rule("n", Place::Last),
            r#"{"edit":"add-rule","rule":{"name":"n","action":"drop"},"place":"last"}"#,
        ),
        (
            move_rule("a", before("#2")),
            r##"{"edit":"move-rule","rule":"a","place":{"before":"#2"}}"##,
        ),
        (remove_rule("name=3"), r#"{"edit":"remove-rule","rule":"name=3"}"#),
        (
            add_prefixes("10.0.0.1 ::/0"),
            r#"{"edit":"add-prefixes","set":"x","prefixes":["10.0.0.1","::/0"]}"#,
        ),
    ];
    for (edit, json) in edits {
        assert_eq!(serde_json::to_string(&edit).unwrap(), json);
        assert_eq!(serde_json::from_str::<Edit>(json).unwrap(), edit);
    }
    let default = r#"{"edit":"add-rule","rule":{"name":"n","action":"drop"}}"#;
    assert_eq!(serde_json::from_str::<Edit>(default).unwrap(), add_rule("n", Place::Last));
    for wrong in [
        r#"{"edit":"remove-rule","rule":"a","more":1}"#,
        r#"{"edit":"remove-rule","rule":"0"}"#,
        r#"{"edit":"add-prefixes","set":"x","prefixes":["10.0.0.1/8"]}"#,
        r#"{"edit":"add-prefixes","set":"x","prefixes":["nonsense"]}"#,
        r#"{"edit":"burn"}"#,
    ] {
        assert!(serde_json::from_str::<Edit>(wrong).is_err(), "{wrong}");
    }
}

/// How a random policy is written.
#[derive(Debug, Clone)]
struct Style {
    is_list: bool,
    /// For what a list is laid out like.
    list: u8,
    /// For each rule, what stands before it.
    before: Vec<Vec<&'static str>>,
    has_crlf: bool,
    has_mark: bool,
    has_end: bool,
}

fn style() -> impl Strategy<Value = Style> {
    let trivia = prop::sample::select(vec!["", "", "# [[rules]]", "  # a 'comment", "#"]);
    (
        prop::bool::weighted(0.3),
        0..6_u8,
        prop::collection::vec(prop::collection::vec(trivia, 0..4), 12),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(is_list, list, before, has_crlf, has_mark, has_end)| Style {
            is_list,
            list,
            before,
            has_crlf,
            has_mark,
            has_end,
        })
}

impl Style {
    /// A list on one or more lines.
    fn list(&self, items: &[String], seed: usize) -> String {
        let comment =
            |index: usize| if (index + seed).is_multiple_of(2) { " # a, b ]" } else { "" };
        let mut text = String::from("[");
        match (usize::from(self.list) + seed) % 6 {
            0 => text.push_str(&items.join(", ")),
            1 => {
                text.push_str(" # ]\n");
                for (index, item) in items.iter().enumerate() {
                    writeln!(text, "    {item},{}", comment(index)).unwrap();
                }
            }
            2 => {
                text.push('\n');
                for (index, item) in items.iter().enumerate() {
                    let comma = if index + 1 < items.len() { "," } else { "" };
                    writeln!(text, "\t# lead\n\t{item}{comma}{}\n", comment(index)).unwrap();
                }
            }
            3 => text.push_str(&items.join(",\n             ")),
            4 => {
                for pair in items.chunks(2) {
                    write!(text, "\n  {}, # two", pair.join(", ")).unwrap();
                }
                text.push('\n');
            }
            _ => {
                text.push_str(&items.join("\n  , "));
                text.push('\n');
            }
        }
        text.push(']');
        text
    }

    fn write(&self, rules: &[NewRule], sets: &[Vec<IpNet>]) -> String {
        let mut text = HEAD.to_owned();
        let mut sets = sets.iter().enumerate().map(|(index, prefixes)| {
            let items: Vec<String> =
                prefixes.iter().map(|&prefix| format!("'{}'", prefixes::bare(prefix))).collect();
            let list = self.list(&items, index);
            match index {
                0 if self.is_list => format!("sets.set-0.addresses = {list} # dotted\n"),
                _ => format!("# set\n[sets.set-{index}]\naddresses = {list}\n"),
            }
        });
        if self.is_list {
            text.push_str(&sets.next().unwrap());
            let rules: Vec<String> = rules.iter().map(NewRule::inline).collect();
            writeln!(text, "rules = {} # the end", self.list(&rules, 0)).unwrap();
        } else {
            for (rule, before) in rules.iter().zip(&self.before) {
                for line in before {
                    writeln!(text, "{line}").unwrap();
                }
                if before.len() == 1 {
                    text.extend(sets.next());
                }
                text.push_str(&rule.section());
            }
        }
        text.extend(sets);
        if self.has_mark {
            text.insert(0, '\u{feff}');
        }
        if !self.has_end {
            text.truncate(text.trim_end().len());
        }
        if self.has_crlf { text.replace('\n', "\r\n") } else { text }
    }
}

/// A rule as it is asked for; without what has no text of its own.
fn new_rule(policy: &Policy, rule: &Rule, name: Option<String>) -> NewRule {
    let addresses = |addresses: &Addresses| -> Vec<String> {
        let text = policy.addresses(addresses);
        text.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
    };
    let types: Vec<String> = rule.icmp_types.iter().map(icmp_text).collect();
    let has_text = types.iter().all(|text| text.matches('/').count() <= 1);
    let vlans = rule.vlans.iter().filter(|range| range.last < 4095);
    let mut interfaces: Vec<String> =
        rule.interfaces.iter().map(|pattern| pattern.text.clone()).collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    NewRule {
        name,
        protocol: rule.protocols.iter().map(ToString::to_string).collect(),
        src: addresses(&rule.src),
        src_port: rule.src_ports.iter().map(ToString::to_string).collect(),
        dst: addresses(&rule.dst),
        dst_port: rule.dst_ports.iter().map(ToString::to_string).collect(),
        icmp_type: if has_text { types } else { Vec::new() },
        vlan: vlans
            .map(vlan_text)
            .flat_map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>())
            .collect(),
        interface: interfaces,
        action: if rule.action == Action::Drop { RuleAction::Drop } else { RuleAction::Pass },
    }
}

/// What a text means, without places.
fn meaning(text: &str) -> Policy {
    let parsed = parse(text, &Services::embedded());
    let mut policy = parsed.unwrap_or_else(|errors| panic!("{errors:#?} in\n{text}")).policy;
    for rule in &mut policy.rules {
        (rule.span, rule.line) = (0..0, 0);
        rule.interfaces.iter_mut().for_each(|pattern| pattern.span = 0..0);
    }
    policy.interfaces.iter_mut().for_each(|pattern| pattern.span = 0..0);
    policy.sets.iter_mut().for_each(|set| (set.span, set.line) = (0..0, 0));
    policy.sets.sort_by(|a, b| a.name.cmp(&b.name));
    policy
}

/// The policy with addresses by name of their sets, which may have other numbers: as text.
fn told(policy: &Policy) -> Vec<(Option<String>, String, String)> {
    let tell = |rule: &Rule| (rule.name.clone(), policy.matches(rule), policy.does(rule));
    policy.rules.iter().map(tell).collect()
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.sort_unstable();
    lines
}

fn is_subsequence(part: &str, whole: &str) -> bool {
    let mut lines = whole.lines();
    part.lines().all(|line| lines.any(|other| other == line))
}

fn comments(text: &str) -> usize {
    text.matches('#').count()
}

fn place(index: usize, kind: u8, count: usize) -> (Place, usize) {
    let number = RuleRef::Number(index + 1);
    match kind {
        _ if count == 0 => (Place::Last, 0),
        0 => (Place::First, 0),
        1 => (Place::Last, count),
        2 => (Place::Before(number), index),
        _ => (Place::After(number), index + 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_edit_means_what_it_says(
        (policy, style) in (random::policy(6), style()),
        (new, name) in (random::rule(), "[a-z]{1,3}"),
        (from, beside, kind) in (any::<Index>(), any::<Index>(), 0..4_u8),
    ) {
        let mut rules: Vec<NewRule> = Vec::new();
        for (index, rule) in policy.rules.iter().enumerate() {
            let name = (index % 2 == 0).then(|| format!("rule {index}"));
            rules.push(new_rule(&policy, rule, name));
        }
        let sets: Vec<Vec<IpNet>> = policy.sets.iter().map(|set| set.prefixes.to_vec()).collect();
        let text = style.write(&rules, &sets);
        let old = meaning(&text);
        let count = old.rules.len();
        prop_assert_eq!(count, rules.len());

        // A rule comes and goes.
        let new = new_rule(&policy, &new, Some(name));
        let alone = style.write(std::slice::from_ref(&new), &sets);
        let beside = if count == 0 { 0 } else { beside.index(count) };
        let (at, index) = place(beside, kind, count);
        let added = edited(&text, &Edit::AddRule { rule: Box::new(new.clone()), place: at.clone() });
        let mut expected = told(&old);
        expected.insert(index, told(&meaning(&alone))[0].clone());
        prop_assert_eq!(told(&meaning(&added)), expected, "{}\n---\n{}", text, added);
        prop_assert_eq!(&meaning(&added).sets, &old.sets);
        prop_assert_eq!(comments(&added), comments(&text));
        if !style.is_list {
            prop_assert!(is_subsequence(text.trim_start_matches('\u{feff}'), added.trim_start_matches('\u{feff}')), "{}\n---\n{}", text, added);
        }
        let removed = edited(&added, &remove_rule(&format!("name={}", new.name.unwrap())));
        prop_assert_eq!(&removed, &text, "{}", added);

        if count > 0 {
            // One goes.
            let from = from.index(count);
            let removed = edited(&text, &Edit::RemoveRule { rule: RuleRef::Number(from + 1) });
            let mut expected = told(&old);
            let gone = expected.remove(from);
            prop_assert_eq!(told(&meaning(&removed)), expected.clone(), "{}\n---\n{}", text, removed);
            prop_assert_eq!(&meaning(&removed).sets, &old.sets);
            if !style.is_list {
                prop_assert!(is_subsequence(&removed, &text), "{}\n---\n{}", text, removed);
            }

            // It moves.
            let edit = Edit::MoveRule { rule: RuleRef::Number(from + 1), place: at.clone() };
            if beside == from && matches!(at, Place::Before(_) | Place::After(_)) {
                let is_refused =
                    matches!(edit_text(&text, &edit), Err(EditError::BesideItself { .. }));
                prop_assert!(is_refused);
            } else {
                let moved = edited(&text, &edit);
                let to = if index > from { index - 1 } else { index };
                expected.insert(to, gone);
                prop_assert_eq!(told(&meaning(&moved)), expected, "{}\n---\n{}", text, moved);
                prop_assert_eq!(&meaning(&moved).sets, &old.sets);
                prop_assert_eq!(comments(&moved), comments(&text), "{}\n---\n{}", text, moved);
                if !style.is_list {
                    prop_assert_eq!(lines(&moved), lines(&text));
                }
                if to == from {
                    prop_assert_eq!(&moved, &text);
                }
            }
        }
    }

    #[test]
    fn prefixes_come_and_go(
        (policy, style) in (random::policy(3), style()),
        (set, new) in (0..3_usize, prop::collection::vec(0..9_u8, 0..4)),
        gone in prop::collection::vec(any::<bool>(), 4),
    ) {
        let rules: Vec<NewRule> =
            policy.rules.iter().map(|rule| new_rule(&policy, rule, None)).collect();
        let sets: Vec<Vec<IpNet>> = policy.sets.iter().map(|set| set.prefixes.to_vec()).collect();
        let text = style.write(&rules, &sets);
        let old = meaning(&text);
        let name = format!("set-{set}");
        let new: Vec<IpNet> = new.iter().map(|last| prefix(&format!("172.16.0.{last}"))).collect();

        let added = edited(&text, &Edit::AddPrefixes { set: name.clone(), prefixes: new.clone() });
        let mut expected = old.clone();
        for &prefix in &new {
            if !expected.sets[set].prefixes.contains(&prefix) {
                std::sync::Arc::make_mut(&mut expected.sets[set].prefixes).push(prefix);
            }
        }
        prop_assert_eq!(told(&meaning(&added)), told(&expected));
        prop_assert_eq!(&meaning(&added).sets, &expected.sets, "{}\n---\n{}", text, added);
        prop_assert_eq!(comments(&added), comments(&text));
        let removed = edited(&added, &Edit::RemovePrefixes { set: name.clone(), prefixes: new });
        prop_assert_eq!(&removed, &text, "{}", added);

        let (gone, stay): (Vec<_>, Vec<_>) =
            old.sets[set].prefixes.iter().zip(gone).partition(|(_, is_gone)| *is_gone);
        let bare = |list: Vec<(&IpNet, bool)>| -> Vec<IpNet> {
            list.into_iter().map(|(&prefix, _)| prefix).collect()
        };
        let removed = edited(&text, &Edit::RemovePrefixes { set: name, prefixes: bare(gone) });
        expected.sets[set].prefixes = bare(stay).into();
        prop_assert_eq!(told(&meaning(&removed)), told(&expected));
        prop_assert_eq!(&meaning(&removed).sets, &expected.sets, "{}\n---\n{}", text, removed);
        let header = format!("set-{set}");
        let start = text.find(&header).unwrap();
        prop_assert_eq!(&removed[..start], &text[..start]);
    }

    #[test]
    fn no_text_panics(text in "[\\[\\]{}=,'\"#. \n\r]{0,24}(rules|sets|x)?[\\[\\]{}=,'\"#. \n\r0]{0,24}") {
        for edit in [
            add_rule("n", Place::First),
            remove_rule("1"),
            move_rule("1", Place::Last),
            add_prefixes("::1"),
            remove_prefixes("::1"),
        ] {
            let _ = edit_text(&text, &edit);
        }
    }
}
