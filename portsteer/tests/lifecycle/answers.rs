//! Exit codes: 0 done, 1 a negative answer, 2 bad input, 3 refused.

use portsteer_testkit::{
    agent::{Agent, run},
    sandbox::{assert_no_pins, sandbox},
    site::Site,
};

use crate::{INSTANCE, assert_all_off, policy, rule};

#[test]
fn where_nothing_is_attached_the_answer_is_1() {
    sandbox(|| {
        let site = Site::quiet();
        for command in [
            &["status"][..],
            &["status", "--json"],
            &["stats"],
            &["stats", "--json"],
            &["detach"],
            &["detach", "--instance", "other"],
        ] {
            let outcome = run(&site.host, command);
            outcome.expect(1, &["is not attached to anything"]);
            assert_eq!(outcome.stdout, "", "{command:?}");
        }
        assert_no_pins();
    });
}

#[test]
fn where_something_is_attached_the_answer_is_0() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        run(&site.host, &["status"]).expect(0, &["uplink", "native", "attached", "1 rule"]);
        run(&site.host, &["status", "--json"]).expect(0, &["\"attached\": true"]);
        run(&site.host, &["stats"]).expect(0, &["blocked", "udp", "2000", "uplink"]);
        run(&site.host, &["stats", "--json"]).expect(0, &["\"generation\": 1"]);
        // Another instance is none of its business.
        run(&site.host, &["status", "--instance", "other"]).expect(1, &["`other`"]);
        let (status, log) = agent.end(libc::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
        run(&site.host, &["detach"]).expect(0, &["detached from uplink"]);
        run(&site.host, &["detach"]).expect(1, &["is not attached to anything"]);
        assert_all_off(&site);
    });
}

#[test]
fn check_answers_0_1_and_2() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let check = |text: &str, more: &[&str]| {
            let path = portsteer_testkit::agent::policy_file(directory.path(), text);
            run(&site.host, &[&["check", path.to_str().unwrap()], more].concat())
        };
        check(&policy(&["uplink"]), &[]).expect(0, &["1 rule", "default pass", "fine"]);
        check(&policy(&["uplink"]), &["--strict"]).expect(0, &[]);
        let shadowed = policy(&["uplink"]) + &rule("late", 2000, "pass");
        check(&shadowed, &[]).expect(0, &["warning", "late", "blocked"]);
        check(&shadowed, &["--strict"]).expect(1, &["warning"]);
        check("version = 1\ninterfaces = [\"uplink\"]\nmood = 1\n", &[])
            .expect(2, &["mood", ":3:1"]);
        run(&site.host, &["check", "/nowhere/policy.toml"])
            .expect(2, &["/nowhere/policy.toml", "No such file"]);
        assert_no_pins();
    });
}

#[test]
fn a_verbose_check_says_what_the_policy_takes() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("list.txt"), "192.0.2.0/24\n2001:db8::/32\n").unwrap();
        let text = policy(&["uplink"])
            + "src = \"@list\"\ninterface = \"uplink\"\n\
               [sets.list]\nfile = \"list.txt\"\n";
        let path = portsteer_testkit::agent::policy_file(directory.path(), &text);
        let path = path.to_str().unwrap();
        for option in ["--verbose", "-v"] {
            run(&site.host, &["check", option, path]).expect(
                0,
                &[
                    "1 rule, default pass, fine\n",
                    "memory in the kernel: ",
                    "MiB, tables ",
                    "src      rules ask for source addresses\n",
                    "extras   rules ask for VLANs, interfaces or source ports\n",
                    "src              1\n",
                    "list         2  list.txt\n",
                ],
            );
        }
        let outcome = run(&site.host, &["check", path]);
        assert_eq!(outcome.expect(0, &[]).stdout.lines().count(), 1, "{outcome:?}");
        assert_no_pins();
    });
}

#[test]
fn arguments_that_make_no_sense_are_bad_input() {
    sandbox(|| {
        let site = Site::quiet();
        let long = "x".repeat(33);
        for (arguments, said) in [
            (&[][..], "Usage"),
            (&["fly"], "unrecognized subcommand"),
            (&["agent"], "--policy"),
            (&["check"], "<FILE>"),
            (&["status", "--color"], "--color"),
            (&["status", "--instance", "a/b"], "no name for an instance"),
            (&["detach", "--instance", ".."], "no name for an instance"),
            (&["stats", "--instance", &long], "no name for an instance"),
            (&["agent", "--policy", "p", "--for", "soon"], "--for"),
            (&["agent", "--policy", "p", "--for", "0s"], "a time of zero"),
        ] {
            run(&site.host, arguments).expect(2, &[said]);
        }
        let file = include_str!("../../../portsteer-ebpf/portsteer.bpf.digest");
        let digest = file.lines().find_map(|line| line.strip_prefix("object = "));
        let digest = digest.expect("a digest of the object").trim_matches('"');
        run(&site.host, &["--version"]).expect(0, &["portsteer", "eBPF object: sha256", digest]);
        run(&site.host, &["--help"]).expect(0, &["Exit codes"]);
        assert_no_pins();
    });
}
