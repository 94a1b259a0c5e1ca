//! What a process with the right to it changes behind the agent's back: seen, put right, and said.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::symlink},
    path::Path,
};

use portsteer::dataplane::sys::{self, Instruction, map_type};
use portsteer_testkit::{
    agent::Agent,
    sandbox::{assert_no_pins, sandbox},
    site::{Site, wait_until},
};

use crate::{INSTANCE, another_device, attached, is_open, policy, status, wait_until_open};

fn pin(name: &str) -> std::path::PathBuf {
    Path::new("/sys/fs/bpf/portsteer").join(INSTANCE).join(name)
}

fn problems(agent: &Agent) -> String {
    status(agent)["problems"].to_string()
}

fn pass_all() -> std::os::fd::OwnedFd {
    let instruction = |code, immediate| Instruction { code, registers: 0, offset: 0, immediate };
    // r0 = XDP_PASS; exit
    sys::load_xdp("pass_all", &[instruction(0xb7, 2), instruction(0x95, 0)]).expect("a program")
}

#[test]
fn what_is_changed_behind_the_agents_back_is_put_right() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        assert!(!is_open(&site, 2000));

        // Another program on the link.
        let link = sys::open_pin(&pin("link_0")).unwrap();
        sys::link_update(link.as_fd(), pass_all().as_fd()).unwrap();
        assert!(is_open(&site, 2000));
        wait_until_open(&site, 2000, false);
        wait_until("it is said", || problems(&agent).contains("was replaced from outside"));

        // The link taken off its interface, and then its pin removed.
        let link = sys::open_pin(&pin("link_0")).unwrap();
        sys::link_detach(link.as_fd()).unwrap();
        drop(link);
        wait_until("it is attached again", || attached(&site.host) == ["uplink"]);
        wait_until_open(&site, 2000, false);
        wait_until("it is said", || problems(&agent).contains("was taken off uplink"));

        // Pins that are needed to read what is in force.
        for name in ["policy", "tables", "retired", "counters_0_64"] {
            // The slot is another one since the interface was attached again.
            let names = fs::read_dir(pin("")).unwrap().map(|it| it.unwrap().file_name());
            let name = match name {
                "counters_0_64" => names
                    .map(|it| it.into_string().unwrap())
                    .find(|it| it.starts_with("counters_"))
                    .expect("counters"),
                name => name.to_owned(),
            };
            fs::remove_file(pin(&name)).unwrap();
            wait_until("it is pinned again", || pin(&name).exists());
            wait_until("it is said", || problems(&agent).contains(&format!("the pin `{name}`")));
        }
        agent.ask(&["stats"]).expect(0, &["closed"]);
        assert!(!is_open(&site, 2000));

        // The word.
        let active = sys::open_pin(&pin("active")).unwrap();
        let mut word = [0; 8];
        sys::map_lookup(active.as_fd(), 0, &mut word).unwrap();
        let other: Vec<u8> =
            word.iter().enumerate().map(|(at, byte)| if at < 4 { !byte } else { *byte }).collect();
        sys::map_update(active.as_fd(), 0, &other).unwrap();
        wait_until("the word is put right", || {
            let mut now = [0; 8];
            sys::map_lookup(active.as_fd(), 0, &mut now).unwrap();
            now == word
        });
        wait_until("it is said", || problems(&agent).contains("the word that says"));
        assert!(!is_open(&site, 2000));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    });
}

#[test]
fn a_trial_whose_timer_is_removed_ends_all_the_same() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let path = agent.other_policy("trial.toml", &policy(&["uplink"], 3000));
        let trial = ["apply", path.to_str().unwrap(), "--confirm", "6s", "--force"];
        agent.ask(&trial).expect(0, &[]);
        fs::remove_file(pin("trial")).unwrap();
        wait_until("there is a timer again", || pin("trial").exists());
        // Which needs no agent.
        agent.kill();
        wait_until_open(&site, 3000, true);
        assert!(!is_open(&site, 2000));
        agent.resume();
        // A timer that is pinned, but was stopped.
        agent.ask(&trial).expect(0, &[]);
        let map = sys::open_pin(&pin("trial")).unwrap();
        assert_eq!(sys::map_shape(map.as_fd()).unwrap().map_type, map_type::ARRAY);
        sys::map_update(map.as_fd(), 0, &[0; 40]).unwrap();
        wait_until_open(&site, 3000, true);
        assert!(!is_open(&site, 2000));
        wait_until("it is said", || problems(&agent).contains("timer for the trial was removed"));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    });
}

#[test]
fn an_image_that_is_changed_is_put_in_force_anew() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let shown = agent.ask(&["show"]).stdout;
        wait_until("it was looked at", || {
            // The first look comes two seconds after the start.
            status(&agent)["started_at"].as_u64().is_some_and(|at| now() >= at + 5)
        });
        let map = sys::open_pin(&pin("policy")).unwrap();
        let shape = sys::map_shape(map.as_fd()).unwrap();
        let mut policy = vec![0; shape.value_size as usize];
        sys::map_lookup(map.as_fd(), 0, &mut policy).unwrap();
        // Every decision of both banks is to pass.
        let banks = 2 * size_of::<portsteer_common::Image>();
        for word in policy[..banks].chunks_exact_mut(4) {
            if word[0] & 7 == 1 {
                word[0] = word[0] & !7 | 2;
            }
        }
        sys::map_update(map.as_fd(), 0, &policy).unwrap();
        assert!(is_open(&site, 2000));
        wait_until_open(&site, 2000, false);
        assert!(problems(&agent).contains("image was changed"), "{}", agent.log());
        let rules = |shown: &str| shown.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rules(&agent.ask(&["show"]).stdout), rules(&shown));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    });
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock").as_secs()
}

/// Whoever mounts something over the pins hides them from commands, not from the agent.
#[test]
fn pins_that_are_mounted_over_are_not_called_detached() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        portsteer::lab::private_tmpfs(Path::new("/sys/fs/bpf")).unwrap();
        wait_until("it is said", || problems(&agent).contains("is mounted over"));
        assert_eq!(status(&agent)["state"], "in force");
        agent.apply(&policy(&["uplink"], 3000), &[]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        assert_eq!(attached(&site.host), [] as [String; 0]);
    });
}

/// An agent that hangs finds out when it goes on, and does not attach again.
#[test]
fn detach_does_not_wait_for_an_agent_that_hangs() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.signal(libc::SIGSTOP);
        agent.ask(&["detach"]).expect(0, &["detached from uplink", "the agent did not answer"]);
        assert_eq!(attached(&site.host), [] as [String; 0]);
        assert_no_pins();
        agent.signal(libc::SIGCONT);
        agent.wait_for_log("detached from outside", 1);
        wait_until("the agent says so", || status(&agent)["state"] == "detached");
        assert_eq!(attached(&site.host), [] as [String; 0]);
        agent.apply(&policy(&["uplink"], 3000), &[]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    });
}

/// A `detach` that was killed in the midst of its work is ended by the agent that finds its mark, or by the next one.
#[test]
fn a_detach_that_was_killed_is_ended() {
    sandbox(|| {
        let site = Site::quiet();
        let second = another_device(&site, "second");
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink", "second"], 2000));
        symlink("detached", pin("detached")).unwrap();
        wait_until("nothing is attached", || attached(&site.host).is_empty());
        wait_until("the agent says so", || status(&agent)["state"] == "detached");
        agent.apply(&policy(&["uplink", "second"], 2000), &[]);
        assert_eq!(attached(&site.host), ["uplink", "second"]);

        agent.kill();
        symlink("detached", pin("detached")).unwrap();
        agent.resume_without_waiting();
        agent.wait_for_log("a `portsteer detach` that was interrupted is done", 1);
        wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
        assert_eq!(status(&agent)["state"], "detached");
        assert_eq!(attached(&site.host), [] as [String; 0]);
        drop(second);
    });
}

/// The last link's pin is no mark of a `detach`.
#[test]
fn an_interface_whose_pin_is_removed_is_attached_again() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        fs::remove_file(pin("link_0")).unwrap();
        wait_until("it is said", || problems(&agent).contains("the pin of uplink was removed"));
        wait_until_open(&site, 2000, false);
        assert_eq!(attached(&site.host), ["uplink"]);
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    });
}
