use std::time::Instant;

use ipnet::IpNet;
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::policy::{Action, NumberRange, Rule, Set, file::parse, random, services::Services};

const TARGETS: &str = "[targets.web]\ninterface = 'veth-web'\nvia = '10.0.80.2'\n\
                       [targets.cores]\ncpus = [2, 3]\n";

fn policy(text: &str) -> Policy {
    let head = if text.contains("interfaces") { "" } else { "interfaces = ['eth0']\n" };
    let text = format!("version = 1\n{head}{text}");
    parse(&text, &Services::embedded()).unwrap_or_else(|errors| panic!("{errors:#?}")).policy
}

/// Two policies and what is said about them.
#[test]
fn renderings() {
    let web = "[[rules]]\nname = 'web'\nprotocol = 'tcp'\ndst_port = [80, 443]\naction = 'pass'\n";
    let drop = |name: &str, port: u16| {
        let name = if name.is_empty() { String::new() } else { format!("name = '{name}'\n") };
        format!("[[rules]]\n{name}dst_port = {port}\naction = 'drop'\n")
    };
    let all = |list: &[(&str, u16)]| -> String {
        list.iter().map(|&(name, port)| drop(name, port)).collect()
    };
    let set = |list: &str| {
        format!(
            "[sets.bad]\naddresses = [{list}]\n[[rules]]\nname = 'bad'\nsrc = '@bad'\naction = 'drop'\n"
        )
    };
    let cases: Vec<(String, String, &str)> = vec![
        (String::new(), String::new(), ""),
        (
            String::new(),
            "interfaces = ['eth0', 'veth-*']\nmode = 'native'\ndefault = 'drop'\n[options]\n\
             fragments = 'drop'\nmalformed = 'pass'\nunsupported = 'pass'\n"
                .to_owned(),
            "~ interfaces: eth0 -> eth0,veth-*\n\
             ~ mode: auto -> native\n\
             ~ default: pass -> drop\n\
             ~ options.fragments: pass -> drop\n\
             ~ options.malformed: drop -> pass\n\
             ~ options.unsupported: drop -> pass\n",
        ),
        (
            "interfaces = ['a', 'b']\n".to_owned(),
            "# other words, same meaning\ninterfaces = [\"b\", \"a\"]\nmode = 'auto'\n".to_owned(),
            "",
        ),
        (
            TARGETS.to_owned(),
            "[targets.web]\ninterface = 'veth-web'\nmac = '02:00:00:00:00:01'\n\
             [targets.mail]\ninterface = 'veth-mail'\nmac = 'keep'\n"
                .to_owned(),
            "- target cores: cpus 2,3 queue 2048\n\
             + target mail: veth-mail mac keep\n\
             ~ target web: veth-web via 10.0.80.2 -> veth-web mac 02:00:00:00:00:01\n",
        ),
        (
            set("'10.0.0.0/8', '::1'"),
            set("'::1', '10.0.0.0/8', '::1/128', '10.0.0.1', '192.0.2.0/24'"),
            "~ set bad: +2 -0, now 4 prefixes\n\
             +     10.0.0.1 192.0.2.0/24\n",
        ),
        (set("'10.0.0.0/8', '::1'"), set("'::1', '10.0.0.0/8'"), ""),
        (
            set("'::1', '::2'"),
            set("'::2', '::3'"),
            "~ set bad: +1 -1, now 2 prefixes\n-     ::1\n+     ::3\n",
        ),
        (
            String::new(),
            set("'::1'"),
            "+ set bad: 1 prefix\n+     ::1\n+ rule #1 bad: any src @bad, drop\n",
        ),
        (
            set("'::1', '::2'"),
            String::new(),
            "- set bad: 2 prefixes\n- rule #1 bad: any src @bad, drop\n",
        ),
        (
            web.to_owned(),
            format!(
                "{TARGETS}{}",
                web.replace("443", "8443").replace("'pass'", "{ steer = 'web' }")
            ),
            "+ target web: veth-web via 10.0.80.2\n\
             + target cores: cpus 2,3 queue 2048\n\
             ~ rule #1 web: dst_port 80,443 -> 80,8443; action pass -> steer web\n",
        ),
        (
            web.to_owned(),
            web.replace("dst_port = [80, 443]\n", ""),
            "~ rule #1 web: dst_port 80,443 -> any\n",
        ),
        (
            web.to_owned(),
            web.replace("'web'", "'www'"),
            "- rule #1 web: tcp dst_port 80,443, pass\n+ rule #1 www: tcp dst_port 80,443, pass\n",
        ),
        (
            all(&[("a", 1), ("b", 2), ("c", 3), ("d", 4)]),
            all(&[("new", 9), ("d", 4), ("a", 1), ("c", 33)]),
            "+ rule #1 new: any dst_port 9, drop\n\
             - rule #2 b: any dst_port 2, drop\n\
             ~ rule #2 d: moved from #4\n\
             ~ rule #4 c: dst_port 3 -> 33\n",
        ),
        (
            all(&[("a", 1), ("b", 2)]),
            all(&[("b", 22), ("a", 1)]),
            "~ rule #1 b: moved from #2; dst_port 2 -> 22\n",
        ),
        (
            all(&[("", 1), ("", 2), ("", 1)]),
            all(&[("", 2), ("", 1)]),
            "- rule #1: any dst_port 1, drop\n",
        ),
        (
            all(&[("", 1), ("", 1)]),
            all(&[("", 1), ("", 1), ("", 1)]),
            "+ rule #3: any dst_port 1, drop\n",
        ),
        (
            all(&[("", 1)]),
            all(&[("", 2)]),
            "- rule #1: any dst_port 1, drop\n+ rule #1: any dst_port 2, drop\n",
        ),
        (
            // A name that reads like a label.
            all(&[("any dst_port 1 drop", 1)]),
            all(&[("", 1)]),
            "- rule #1 any dst_port 1 drop: any dst_port 1, drop\n+ rule #1: any dst_port 1, drop\n",
        ),
    ];
    for (old, new, expected) in cases {
        let (old, new) = (policy(&old), policy(&new));
        let difference = diff(&old, &new);
        let rendered = difference.render();
        assert_eq!(rendered, expected);
        assert_eq!(difference.is_empty(), expected.is_empty());
        let json = serde_json::to_string(&difference).unwrap();
        assert_eq!(serde_json::from_str::<Difference>(&json).unwrap(), difference);
    }
}

#[test]
fn long_lists_show_what_differs() {
    let rule = |ports: std::ops::Range<u16>| {
        let ports: Vec<String> = ports.map(|port| (port * 10).to_string()).collect();
        policy(&format!(
            "[[rules]]\nname = 'a'\ndst_port = [{}]\naction = 'drop'\n",
            ports.join(", ")
        ))
    };
    assert_eq!(diff(&rule(1..40), &rule(2..42)).render(), "~ rule #1 a: dst_port -10 +400 +410\n");
    let many = diff(&rule(1..40), &rule(100..139)).render();
    assert!(
        many.contains(" -160 (-23 more) +1000 ") && many.ends_with(" +1150 (+23 more)\n"),
        "{many}"
    );
    let any = policy("[[rules]]\nname = 'a'\naction = 'drop'\n");
    let wider = diff(&rule(1..40), &any).render();
    assert!(wider.ends_with(",150,160 and 23 more -> any\n"), "{wider}");
}

#[test]
fn large_sets_show_the_first_prefixes() {
    let old = policy("[sets.a]\naddresses = []\n");
    let mut new = old.clone();
    new.sets[0].prefixes = (0..40_u128)
        .rev()
        .map(|last| {
            IpNet::new(std::net::Ipv6Addr::from((0x2001 << 112) + last).into(), 128).unwrap()
        })
        .collect::<Vec<_>>()
        .into();
    let difference = diff(&old, &new);
    assert_eq!(difference.sets.changed[0].added.len(), MAX_LISTED);
    let rendered = difference.render();
    assert!(
        rendered.starts_with("~ set a: +40 -0, now 40 prefixes\n+     2001:: 2001::1 2001::2 ")
    );
    assert!(rendered.ends_with(" 2001::f and 24 more\n"), "{rendered}");
    assert!(rendered.lines().all(|line| line.len() <= 100), "{rendered}");
}

#[test]
fn numbers_of_sets_and_targets_do_not_matter() {
    let rule = "[[rules]]\nname = 'r'\nsrc = ['@b', '10.0.0.1']\naction = { steer = 'web' }\n";
    let old = format!("{rule}{TARGETS}[sets.a]\naddresses = []\n[sets.b]\naddresses = []\n");
    let new = format!(
        "[sets.b]\naddresses = []\n[sets.a]\naddresses = []\n[targets.cores]\ncpus = '2-3'\n\
         [targets.web]\ninterface = 'veth-web'\nvia = '10.0.80.2'\n{}",
        rule.replace("'@b', '10.0.0.1'", "'10.0.0.1/32', '@b'")
    );
    assert_eq!(diff(&policy(&old), &policy(&new)).render(), "");
    let other = new.replace("@b", "@a");
    assert_eq!(
        diff(&policy(&old), &policy(&other)).render(),
        "~ rule #1 r: src @b,10.0.0.1 -> 10.0.0.1,@a\n"
    );
}

/// A policy of which every second rule has a name.
fn any_policy() -> impl Strategy<Value = Policy> {
    random::policy(8).prop_map(|mut policy| {
        for (index, rule) in policy.rules.iter_mut().enumerate().step_by(2) {
            rule.name = Some(format!("rule {index}"));
        }
        policy
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn one_edit_shows_as_one(
        (old, new_rule) in (any_policy(), random::rule()),
        (at, from) in (any::<Index>(), any::<Index>()),
    ) {
        let nothing = Difference::default();
        prop_assert_eq!(&diff(&old, &old.clone()), &nothing);

        // A rule comes, and goes.
        let mut new = old.clone();
        let at = at.index(old.rules.len() + 1);
        new.rules.insert(at, Rule { name: Some("new".to_owned()), ..new_rule.clone() });
        let difference = diff(&old, &new);
        prop_assert_eq!(difference.rules.added.len(), 1);
        prop_assert_eq!(difference.rules.added[0].position, at + 1);
        let rest = Difference { rules: RuleChanges { added: vec![], ..difference.rules.clone() }, ..difference.clone() };
        prop_assert_eq!(&rest, &nothing);
        let back = diff(&new, &old);
        prop_assert_eq!(&back.rules.removed, &difference.rules.added);
        let rest = Difference { rules: RuleChanges { removed: vec![], ..back.rules.clone() }, ..back };
        prop_assert_eq!(&rest, &nothing);

        // Without a name it does, too.
        let mut new = old.clone();
        new.rules.insert(at, new_rule.clone());
        let difference = diff(&old, &new);
        prop_assert_eq!(difference.rules.added.len(), 1);
        prop_assert_eq!(&difference.rules.added[0].matches, &new.matches(&new_rule));
        prop_assert!(difference.rules.moved.is_empty() && difference.rules.removed.is_empty());

        if !old.rules.is_empty() {
            // It moves.
            let from = from.index(old.rules.len());
            let mut new = old.clone();
            let rule = new.rules.remove(from);
            let to = at.min(new.rules.len());
            new.rules.insert(to, rule);
            let difference = diff(&old, &new);
            prop_assert!(difference.rules.moved.len() <= 1);
            prop_assert_eq!(difference.rules.moved.is_empty(), new.rules == old.rules);
            let rest = Difference { rules: RuleChanges { moved: vec![], ..difference.rules.clone() }, ..difference };
            prop_assert_eq!(&rest, &nothing);

            // It changes.
            let from = from / 2 * 2;
            let mut new = old.clone();
            new.rules[from].dst_ports = vec![NumberRange::single(7)];
            let difference = diff(&old, &new);
            prop_assert_eq!(difference.rules.changed.len(), 1);
            let change = &difference.rules.changed[0];
            prop_assert_eq!(change.position, from + 1);
            prop_assert_eq!(change.fields.len(), 1);
            prop_assert_eq!((&*change.fields[0].name, &*change.fields[0].new), ("dst_port", "7"));
            let rest = Difference { rules: RuleChanges { changed: vec![], ..difference.rules.clone() }, ..difference };
            prop_assert_eq!(&rest, &nothing);
        }

        // A prefix comes.
        let mut new = old.clone();
        let set = at % old.sets.len();
        std::sync::Arc::make_mut(&mut new.sets[set].prefixes).insert(0, "192.0.2.7/32".parse().unwrap());
        let difference = diff(&old, &new);
        prop_assert_eq!(difference.sets.changed.len(), 1);
        let change = &difference.sets.changed[0];
        prop_assert_eq!((change.added_count, change.removed_count), (1, 0));
        prop_assert_eq!(&change.added, &["192.0.2.7"]);
        prop_assert_eq!(difference.render().lines().count(), 2);
    }

    #[test]
    fn there_and_back(old in any_policy(), new in any_policy()) {
        let (there, back) = (diff(&old, &new), diff(&new, &old));
        prop_assert_eq!(&there.rules.added, &back.rules.removed);
        prop_assert_eq!(&there.rules.removed, &back.rules.added);
        prop_assert_eq!(there.rules.moved.len(), back.rules.moved.len());
        prop_assert_eq!(there.rules.changed.len(), back.rules.changed.len());
        prop_assert_eq!(there.settings.len(), back.settings.len());
        for line in there.render().lines() {
            prop_assert!(line.starts_with(['+', '-', '~']), "{}", line);
        }
    }
}

/// For a look at the time, with `--release --nocapture`.
#[test]
fn large_policies() {
    let (rules, prefixes) =
        if cfg!(debug_assertions) { (10_000, 1 << 16) } else { (100_000, 1 << 20) };
    let rule = |index: u32, name: bool| Rule {
        name: name.then(|| format!("rule {index}")),
        protocols: vec![6],
        dst_ports: vec![NumberRange::single(index as u16)],
        vlans: vec![NumberRange::single((index >> 16) as u16 + 1)],
        ..Rule::any(Action::Drop)
    };
    let prefix = |index: u32| {
        IpNet::new(std::net::Ipv4Addr::from(index.wrapping_mul(0x9e37_79b1)).into(), 32).unwrap()
    };
    let set = |first: u32| Set {
        name: "a".to_owned(),
        prefixes: (first..first + prefixes).map(prefix).collect::<Vec<_>>().into(),
        file: None,
        span: 0..0,
        line: 0,
    };
    let build =
        |first: u32, rules: Vec<Rule>| Policy { sets: vec![set(first)], rules, ..policy("") };
    for is_named in [true, false] {
        let list: Vec<Rule> = (0..rules).map(|index| rule(index, is_named)).collect();
        let old = build(0, list.clone());
        let reversed = build(1_000, list.iter().rev().cloned().collect());
        let other =
            build(5_000_000, (rules..2 * rules).map(|index| rule(index, is_named)).collect());
        let same = build(0, vec![rule(7, false); list.len()]);
        for (what, new, moved) in [
            ("the same", &old, 0),
            ("reversed", &reversed, list.len() - 1),
            ("others", &other, 0),
            ("one rule", &same, 0),
        ] {
            let start = Instant::now();
            let difference = diff(&old, new);
            let took = start.elapsed();
            println!("{rules} rules and {prefixes} prefixes, {what} (named: {is_named}): {took:?}");
            assert_eq!(difference.rules.moved.len(), moved);
            assert!(difference.render().lines().count() < 1_100);
            assert!(took.as_secs() < 30, "{took:?}");
        }
    }
}
