//! What reading a policy costs grows as the policy does, whatever kind of thing there is more of.

use std::fmt::Write as _;

use super::{super::bundle::SetFile, *};
use crate::policy::diff;

const HEAD: &str = "version = 1\ninterfaces = [\"eth0\"]\n";

/// What `work` takes of one CPU, in nanoseconds: the least of several tries (proc_schedstat, first field).
fn cost(mut work: impl FnMut()) -> u64 {
    let now = || {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let tries = (0..3).map(|_| {
        let before = now();
        work();
        now() - before
    });
    tries.min().unwrap()
}

/// Doubles an input; a second look makes sure that it was no coincidence.
fn assert_grows_evenly<T>(what: &str, size: usize, make: impl Fn(usize) -> T, work: impl Fn(&T)) {
    /// The clock's granule, and what is the same for every input.
    const CONSTANT: u64 = 8_000_000;
    let (one, two) = (make(size), make(2 * size));
    let mut seen = Vec::new();
    for _ in 0..4 {
        let (one, two) = (cost(|| work(&one)), cost(|| work(&two)));
        if two <= one * 5 / 2 + CONSTANT {
            return;
        }
        seen.push((one / 1_000_000, two / 1_000_000));
    }
    panic!("{what}: twice as much takes (ms) {seen:?}");
}

fn text(size: usize, line: impl Fn(usize) -> String) -> Bundle {
    let lines: String = (0..size).map(line).collect();
    Bundle::of_text("p.toml", format!("{HEAD}{lines}"))
}

fn read(bundle: &Bundle) {
    match understand(bundle.clone()) {
        Ok(_) => {}
        Err(error) => assert!(!error.to_refusal().message.is_empty()),
    }
}

#[test]
fn twice_as_much_takes_twice_as_long() {
    let drop = "action = \"drop\"\n";
    type Line<'a> = &'a dyn Fn(usize) -> String;
    let kinds: [(&str, usize, Line<'_>); 16] = [
        ("rules", 3_000, &|at| {
            format!("[[rules]]\nname = \"r{at}\"\ndst_port = {}\n{drop}", at % 60_000)
        }),
        ("rules with addresses", 2_000, &|at| {
            format!(
                "[[rules]]\nsrc = \"10.{}.{}.0/24\"\ndst_port = \"7-{}\"\n{drop}",
                at >> 8,
                at & 255,
                8 + at
            )
        }),
        ("sets", 5_000, &|at| {
            format!("[sets.s{at}]\naddresses = [\"10.0.{}.{}\"]\n", at >> 8, at & 255)
        }),
        ("rules that name unknown sets", 3_000, &|at| {
            format!("[sets.s{at}]\naddresses = [\"::1\"]\n[[rules]]\nsrc = \"@set{at}\"\n{drop}")
        }),
        ("targets", 5_000, &|at| format!("[targets.t{at}]\ncpus = [0]\n")),
        ("unknown keys", 20_000, &|at| format!("k{at} = 1\n")),
        ("missing values", 20_000, &|at| format!("k{at} =\n")),
        ("the same key", 20_000, &|_| "a=1\n".to_owned()),
        ("unknown tables", 10_000, &|at| format!("[a.b{at}.c{at}]\n")),
        ("nested tables", 10_000, &|at| {
            format!("{}1{}", "x = {a = ".repeat(usize::from(at == 0)), "")
        }),
        ("brackets", 50_000, &|at| if at == 0 { "x = [".to_owned() } else { "[".to_owned() }),
        ("a list of ports", 20_000, &|at| match at {
            0 => format!("[[rules]]\n{drop}protocol = \"udp\"\ndst_port = [1"),
            at => format!(",{}", at % 60_000),
        }),
        ("a list of addresses", 10_000, &|at| match at {
            0 => format!("[[rules]]\n{drop}src = [\"::1\""),
            at => format!(",\"10.1.{}.{}\"", at >> 8, at & 255),
        }),
        ("rules' interfaces", 3_000, &|at| {
            format!("[[rules]]\ninterface = [\"eth{at}\", \"veth-{}*\"]\n{drop}", at % 200)
        }),
        ("rules' globs", 3_000, &|at| format!("[[rules]]\ninterface = \"h{at}*\"\n{drop}")),
        ("rules of one name", 5_000, &|_| format!("[[rules]]\nname = \"a\"\n{drop}")),
    ];
    for (what, size, line) in kinds {
        assert_grows_evenly(what, size, |size| text(size, line), read);
    }
}

#[test]
fn twice_as_many_interfaces_or_globs_take_twice_as_long() {
    for (what, pattern) in [("interfaces", "eth"), ("globs", "*a*")] {
        let make = |size: usize| {
            let mut list = String::new();
            (0..size).for_each(|at| write!(list, "\"{pattern}{at}\",").unwrap());
            Bundle::of_text("p.toml", format!("version = 1\ninterfaces = [{list}]\n"))
        };
        assert_grows_evenly(what, 20_000, make, read);
    }
}

#[test]
fn twice_as_many_set_files_take_twice_as_long() {
    // The one that is wanted last stands first.
    let make = |size: usize| {
        let mut bundle =
            text(size, |at| format!("[sets.the-set-of-number-{at}]\nfile = \"f{at}\"\n"));
        let file = |at: usize| SetFile { name: format!("f{at}"), content: b"10.0.0.1\n".to_vec() };
        bundle.files = (0..size).rev().map(file).collect();
        bundle
    };
    assert_grows_evenly("set files", 2_000, make, read);
    assert_grows_evenly("too many set files", 20_000, make, read);
}

#[test]
fn comparing_twice_as_much_takes_twice_as_long() {
    let make = |size: usize| {
        let policy = |shift: usize| {
            let bundle = text(size, |at| {
                let at = at + shift;
                format!(
                    "[[rules]]\nname = \"r{at}\"\ndst_port = {}\naction = \"drop\"\n",
                    at % 60_000
                )
            });
            understand(bundle).unwrap().policy
        };
        (policy(0), policy(size / 2))
    };
    assert_grows_evenly("differences", 3_000, make, |(old, new)| {
        assert!(!diff::diff(old, new).is_empty());
    });
}

#[test]
fn a_policy_is_read_while_no_other_is() {
    let alone = READING.lock().unwrap_or_else(PoisonError::into_inner);
    let interrupt = Interrupt::default();
    let bundle = text(1, |_| String::new());
    let reader = thread::spawn({
        let (bundle, interrupt) = (bundle.clone(), interrupt.clone());
        move || understand_until(bundle, &interrupt).map(drop)
    });
    while !interrupt.is_harmless() {
        thread::yield_now();
    }
    assert!(!reader.is_finished());
    // Whoever waits hears that nobody does any more.
    interrupt.set();
    let Err(error) = reader.join().unwrap() else { panic!("it was not its turn") };
    assert!(error.to_refusal().message.contains("interrupted"));
    drop(alone);
    assert!(understand(bundle).is_ok());
}

#[test]
fn too_many_files_are_refused_with_the_limit() {
    let mut bundle = text(1, |_| String::new());
    let file = SetFile { name: "a".to_owned(), content: Vec::new() };
    bundle.files = vec![file; MAX_SET_FILES + 1];
    let Err(error) = understand(bundle) else { panic!("too many files") };
    let refusal = error.to_refusal();
    assert!(refusal.message.contains("4097") && refusal.message.contains("4096"), "{refusal:?}");
    assert!(refusal.help.is_some());
}
