//! Files that sets name: with garbage in them, and gone while the agent runs.

use std::fs;

use portsteer_testkit::{
    agent::{Agent, Stats, is_slow, policy_file, run, run_agent},
    sandbox::sandbox,
    site::Site,
};

use crate::{INSTANCE, assert_all_off, assert_in_force, policy, rule};

/// The file that the policies here name.
const LIST: &str = "list.txt";

/// Another port is dropped from whoever stands in the list.
fn listing() -> String {
    format!("[sets.list]\nfile = \"{LIST}\"\n{}", rule("listed", 2002, "drop"))
        + "src = \"@list\"\n"
}

fn policy_with_list() -> String {
    policy(&["uplink"]) + &listing()
}

#[test]
fn wrong_lines_are_told_by_file_and_number() {
    const TOLD: usize = 20;
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = policy_file(directory.path(), &policy_with_list());
        let path = path.to_str().unwrap();
        let list = directory.path().join(LIST);
        let name = list.to_str().unwrap();
        let lines = if is_slow() { 1_000 } else { 100_000 };
        for wrong in [1, TOLD, TOLD + 1, lines] {
            // Each third line is wrong, and no two in the same way.
            let garbage = |index: usize| format!("# fine\n192.0.2.1\n192.0.2.{}\n", 256 + index);
            fs::write(&list, (0..wrong).map(garbage).collect::<String>()).unwrap();
            let outcome = run(&site.host, &["check", path]);
            outcome.expect(2, &[LIST]);
            let told = |index: usize| {
                let line =
                    format!("{LIST}:{}: `192.0.2.{}` is no address", 3 * index + 3, 256 + index);
                outcome.stderr.contains(&line)
            };
            let said = &outcome.stderr;
            assert!((0..wrong.min(TOLD)).all(told), "{wrong} in {name}: {said}");
            assert!(!(TOLD..wrong.min(2 * TOLD)).any(told), "{wrong} in {name}: {said}");
            let more = format!("and {} more", wrong.saturating_sub(TOLD));
            assert_eq!(said.contains(&more), wrong > TOLD, "{wrong} in {name}: {said}");
            assert!(said.lines().count() < 60, "{wrong} in {name}: {said}");
        }
        // No text at all.
        fs::write(&list, (0..=255_u8).cycle().take(70_000).collect::<Vec<u8>>()).unwrap();
        run(&site.host, &["check", path]).expect(2, &["list.txt:1: ", "and "]);
        assert_all_off(&site);
    });
}

#[test]
fn a_policy_whose_set_file_is_missing_is_refused() {
    sandbox(|| {
        let site = Site::quiet();
        run_agent(&site.host, INSTANCE, &policy_with_list())
            .expect(2, &[LIST, "No such file", "policy.toml:"]);
        assert_all_off(&site);
    });
}

#[test]
fn a_set_file_that_vanishes_leaves_the_policy_in_force() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let list = agent.policy_path().with_file_name(LIST);
        // Named, and not there yet: nothing is taken of the policy that names it.
        let said = agent.swap_refused(&policy_with_list());
        assert!(said.contains(LIST) && said.contains("No such file"), "{said}");
        assert_in_force(&site);

        fs::write(&list, "192.0.2.0/24\n").unwrap();
        agent.swap(&policy_with_list());
        let generation = Stats::read(&site.host, INSTANCE).generation();
        fs::remove_file(&list).unwrap();
        for content in [None, Some("what is this\n")] {
            if let Some(content) = content {
                fs::write(&list, content).unwrap();
            }
            let said = agent.hang_up_refused();
            let why = if content.is_some() { "`what is this`" } else { "No such file" };
            assert!(said.contains(LIST) && said.contains(why), "{said}");
            let stats = Stats::read(&site.host, INSTANCE);
            assert_eq!(stats.generation(), generation, "the policy before is in force");
            assert!(stats.has_rule("listed"));
            assert_in_force(&site);
        }

        fs::write(&list, "198.51.100.0/24\n").unwrap();
        agent.swap(&policy_with_list());
        assert_eq!(Stats::read(&site.host, INSTANCE).generation(), generation + 1);
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}
