//! Disks that are full, read-only or damaged: the dataplane keeps its policy, and the agent says what is wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use portsteer_testkit::{
    agent::Agent,
    flood::{assert_all_judged, under_flood},
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::{INSTANCE, is_open, policy, status};

/// Does something under the traffic that a site sees first, and sees every packet judged by the rule for it.
fn flooded(site: &Site, body: impl FnOnce()) {
    let ((), account) = under_flood(site, body);
    assert_all_judged(site, INSTANCE, "flooded", account.received);
}

/// An agent whose state is on a small disk of its own.
fn on_a_small_disk(site: &Site) -> (Agent, PathBuf) {
    let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
    agent.kill();
    let disk = agent.state().parent().expect("a directory").to_owned();
    mount(&["-t", "tmpfs", "-o", "size=256k", "disk"], &disk);
    agent.resume();
    assert!(status(&agent)["not_kept"].is_null(), "{}", agent.log());
    (agent, disk)
}

fn mount(arguments: &[&str], on: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(on).status().expect("mount");
    assert!(mounted.success(), "{arguments:?}");
}

/// Fills a disk to its last byte.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filling");
    let mut len = 256 << 10;
    let mut content = Vec::new();
    while len > 0 {
        let more = vec![0; len];
        let mut longer = content.clone();
        longer.extend(&more);
        match fs::write(&path, &longer) {
            Ok(()) => content = longer,
            Err(_) => len /= 2,
        }
    }
    path
}

#[test]
fn on_a_full_disk_policies_come_into_force_and_are_kept_once_there_is_room() {
    sandbox(|| {
        let site = Site::quiet();
        let (mut agent, disk) = on_a_small_disk(&site);
        let filling = fill(&disk);
        flooded(&site, || {
            let said = agent.apply(&policy(&["uplink"], 3000), &[]);
            said.expect(0, &["in force", "it is not kept on disk"]);
            assert!(agent.log().contains("No space left on device"), "{}", agent.log());
            let not_kept = status(&agent)["not_kept"].clone();
            let is_told = not_kept.as_str().is_some_and(|why| why.contains("No space left"));
            assert!(is_told, "{not_kept}");
            // The next agent knows what is in force, and that it is not kept.
            agent.kill();
            agent.resume();
            assert_eq!(agent.ask(&["show"]).stdout, policy(&["uplink"], 3000));
            assert!(status(&agent)["not_kept"].is_string());
            fs::remove_file(filling).unwrap();
            wait_until("it is kept", || status(&agent)["not_kept"].is_null());
        });
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        agent.ask(&["rule", "remove", "closed"]).expect(0, &["in force"]);
        assert!(is_open(&site, 3000));
        agent.kill();
        agent.resume();
        assert!(is_open(&site, 3000));
        assert!(status(&agent)["not_kept"].is_null());
    });
}

#[test]
fn on_a_disk_that_may_not_be_written_to_policies_come_into_force() {
    sandbox(|| {
        let site = Site::quiet();
        let (mut agent, disk) = on_a_small_disk(&site);
        mount(&["-o", "remount,ro"], &disk);
        flooded(&site, || {
            let said = agent.apply(&policy(&["uplink"], 3000), &[]);
            said.expect(0, &["in force", "it is not kept on disk"]);
            assert!(agent.log().contains("Read-only file system"), "{}", agent.log());
            agent.kill();
            agent.resume();
        });
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        agent.apply(&policy(&["uplink"], 4000), &["--confirm", "1h"]);
        agent.ask(&["confirm"]).expect(0, &["confirmed"]);
        assert!(!is_open(&site, 4000));
        assert!(status(&agent)["not_kept"].is_string());
        mount(&["-o", "remount,rw"], &disk);
        wait_until("it is kept", || status(&agent)["not_kept"].is_null());
    });
}

#[test]
fn whatever_is_damaged_the_policy_stays_in_force() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let accepted = agent.state().join("accepted.json");
        let truncate = |path: &Path| {
            let content = fs::read(path).unwrap();
            fs::write(path, &content[..content.len() / 2]).unwrap();
        };
        let damages: [&dyn Fn(); 6] = [
            &|| truncate(&accepted),
            &|| fs::write(&accepted, "").unwrap(),
            &|| fs::write(&accepted, [0xff; 4096]).unwrap(),
            &|| fs::write(accepted.with_file_name("pending.json"), "{\"version\":1}").unwrap(),
            &|| {
                for content in fs::read_dir(accepted.with_file_name("content")).unwrap() {
                    truncate(&content.unwrap().path());
                }
            },
            &|| {
                fs::remove_file(&accepted).unwrap();
                fs::create_dir(&accepted).unwrap();
            },
        ];
        flooded(&site, || {
            for (number, damage) in damages.iter().enumerate() {
                agent.kill();
                damage();
                agent.resume();
                let shown = agent.ask(&["show"]).stdout;
                assert_eq!(shown, policy(&["uplink"], 2000), "damage {number}:\n{}", agent.log());
                if number == 5 {
                    fs::remove_dir(&accepted).unwrap();
                }
                wait_until("it is kept again", || status(&agent)["not_kept"].is_null());
            }
        });
        assert!(!is_open(&site, 2000));
        let damaged = agent.log().matches("is damaged").count();
        assert!(damaged >= 5, "{damaged}:\n{}", agent.log());
        // And as ever.
        agent.apply(&policy(&["uplink"], 3000), &[]);
        agent.kill();
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
    });
}

/// Where nothing is pinned and what was accepted is damaged, the policy file is what is left.
#[test]
fn damaged_state_is_no_obstacle_to_a_start() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.kill();
        fs::remove_dir_all("/sys/fs/bpf/portsteer").unwrap();
        fs::write(agent.state().join("accepted.json"), "[]").unwrap();
        agent.resume();
        assert!(agent.log().contains("accepted.json is damaged"), "{}", agent.log());
        assert!(!is_open(&site, 2000));
        wait_until("it is kept again", || status(&agent)["not_kept"].is_null());
    });
}

/// A policy whose set's addresses stand in a file: the kernel does not have them.
#[test]
fn without_the_set_files_the_policy_stays_in_force_and_is_not_changed() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let text = policy(&["uplink"], 3000)
            + "[sets.all]\nfile = \"all.txt\"\n\
               [[rules]]\nname = \"all\"\nsrc = \"@all\"\nprotocol = \"udp\"\ndst_port = 4000\n\
               action = \"drop\"\n";
        let set = agent.other_policy("all.txt", "198.51.100.0/24\n");
        assert!(set.exists());
        let file = agent.other_policy("sets.toml", &text);
        let file = file.to_str().unwrap();
        agent.ask(&["apply", file]).expect(0, &["in force"]);
        flooded(&site, || {
            agent.kill();
            fs::remove_dir_all(agent.state()).unwrap();
            agent.resume();
            assert!(agent.log().contains("set files is lost"), "{}", agent.log());
        });
        assert_eq!((is_open(&site, 3000), is_open(&site, 4000)), (false, false));
        let refused = ["the content of the policy's set files is lost", "apply the policy again"];
        agent.ask(&["set", "add", "all", "192.0.2.1"]).expect(3, &refused);
        agent.ask(&["show", "--set", "all"]).expect(3, &refused);
        agent.ask(&["diff", file]).expect(3, &refused);
        agent.ask(&["rule", "remove", "closed"]).expect(3, &refused);
        assert_eq!((is_open(&site, 3000), is_open(&site, 4000)), (false, false));
        agent.ask(&["apply", file]).expect(0, &["in force"]);
        agent.ask(&["rule", "remove", "closed"]).expect(0, &["in force"]);
        assert_eq!((is_open(&site, 3000), is_open(&site, 4000)), (true, false));
        agent.kill();
        agent.resume();
        assert_eq!((is_open(&site, 3000), is_open(&site, 4000)), (true, false));
    });
}

/// What was in force a moment ago can be gone back to, whatever the disk has.
#[test]
fn without_a_disk_there_is_a_policy_to_go_back_to() {
    sandbox(|| {
        let site = Site::quiet();
        let (agent, disk) = on_a_small_disk(&site);
        let with_set = policy(&["uplink"], 3000)
            + "[sets.all]\nfile = \"all.txt\"\n\
               [[rules]]\nname = \"all\"\nsrc = \"@all\"\nprotocol = \"udp\"\ndst_port = 4000\n\
               action = \"drop\"\n";
        let set = agent.other_policy("all.txt", "# theirs\n198.51.100.0/24\n192.0.2.0/24\n");
        assert!(set.exists());
        let filling = fill(&disk);
        agent.apply(&with_set, &[]).expect(0, &["it is not kept on disk"]);
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_eq!((is_open(&site, 3000), is_open(&site, 4000)), (false, false));
        fs::remove_file(filling).unwrap();
        wait_until("it is kept", || status(&agent)["not_kept"].is_null());

        fs::remove_dir_all(agent.state()).unwrap();
        agent.apply(&policy(&["uplink"], 2000), &[]);
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_eq!((is_open(&site, 3000), is_open(&site, 4000)), (false, false));
        assert!(status(&agent)["not_kept"].is_null(), "{}", agent.log());

        // One that was edited and read again is the same one still.
        agent.ask(&["rollback"]).expect(0, &[]);
        agent.ask(&["rollback"]).expect(0, &[]);
        agent.ask(&["set", "add", "all", "203.0.113.0/24"]).expect(0, &[]);
        let filling = fill(&disk);
        agent.apply(&policy(&["uplink"], 2000), &[]).expect(0, &["it is not kept on disk"]);
        for _ in 0..2 {
            agent.ask(&["rollback"]).expect(0, &[]);
            agent.ask(&["show", "--set", "all"]).expect(0, &["203.0.113.0/24"]);
            agent.ask(&["rollback"]).expect(0, &[]);
            assert_eq!(agent.ask(&["show"]).stdout, policy(&["uplink"], 2000));
        }
        fs::remove_file(filling).unwrap();
        agent.ask(&["detach"]).expect(0, &[]);
        agent.ask(&["rollback"]).expect(1, &["nothing is in force", "portsteer apply"]);
    });
}
