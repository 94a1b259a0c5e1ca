//! Agents of this version that find what the version before has in force, whose pins have another layout: carried over
//! with its counters and its trial, under traffic, and whole whenever the agent is killed.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use portsteer::dataplane::sys;
use portsteer_testkit::{
    agent::{Agent, Stats, binary, binary_before, is_slow, run},
    flood::{FLOODED_PORT, assert_all_judged, under_flood},
    sandbox::{assert_no_pins, sandbox},
    site::{HOST_V4, Site, wait_until},
};

use crate::{
    INSTANCE, another_device, attached, generation, is_open, policy, rule, status, wait_until_open,
};

const NEXT: &str = "/sys/fs/bpf/portsteer/main+next";

/// An agent of the version before, with a policy in force.
fn begin(site: &Site, before: &Path, policy: &str) -> Agent {
    Agent::serve_of(before, &site.host, INSTANCE, policy)
}

/// A policy that needs tables, sets, and each kind of decision.
fn rich_policy(port: u16) -> String {
    format!(
        "version = 1\ninterfaces = [\"uplink\"]\ndefault = \"drop\"\n\
         [[sets.friends]]\naddresses = [\"198.51.100.0/28\", \"2001:db8::/64\"]\n\
         {}{}\
         [[rules]]\nname = \"friends\"\nprotocol = \"udp\"\nsrc = \"@friends\"\naction = \"pass\"\n",
        rule("closed", port),
        rule("flooded", FLOODED_PORT)
    )
    .replace("[[sets.friends]]", "[sets.friends]")
}

#[test]
fn what_is_in_force_is_carried_over_and_no_packet_is_lost() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        for policy in [policy(&["uplink"], 2000), rich_policy(2000)] {
            let site = Site::quiet();
            let mut agent = begin(&site, &before, &policy);
            let (_, account) = under_flood(&site, || {
                agent.apply(&policy.replace("2000", "2100"), &[]);
                agent.apply(&policy, &[]);
                thread::sleep(Duration::from_millis(50));
                agent.kill_for(&binary());
                agent.resume();
                assert!(agent.log().contains("was carried over"), "{}", agent.log());
                assert!(agent.log().contains("taken over, "), "{}", agent.log());
            });
            assert_all_judged(&site, INSTANCE, "flooded", account.received);
            assert_eq!(
                (generation(&site), is_open(&site, 2000), is_open(&site, 4000)),
                (3, false, true)
            );
            assert!(!Path::new(NEXT).exists());
            // What was counted before goes on to be counted.
            let counted = Stats::read(&site.host, INSTANCE).rule("closed");
            assert!(!is_open(&site, 2000));
            wait_until("it is counted", || {
                Stats::read(&site.host, INSTANCE).rule("closed") == counted + 1
            });
            agent.ask(&["rollback"]).expect(0, &[]);
            assert_eq!((is_open(&site, 2000), is_open(&site, 2100)), (true, false));
            agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
            drop(agent);
            assert_no_pins();
        }
    });
}

#[test]
fn a_trial_goes_on_for_the_time_that_is_left() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = begin(&site, &before, &policy(&["uplink"], 2000));
        let start = Instant::now();
        try_out(&agent, 3000, 15);
        agent.kill_for(&binary());
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        let left = status(&agent)["trial_seconds_left"].as_u64().expect("it is on trial");
        assert!(left <= 15 - start.elapsed().as_secs() + 1, "{left}");
        // Its own timer ends it, also without an agent.
        agent.kill();
        wait_until_open(&site, 2000, false);
        assert!(is_open(&site, 3000) && start.elapsed() >= Duration::from_secs(14));
        agent.resume();
        assert_eq!(generation(&site), 1);

        // Confirmed by this version, what the version before has begun stays.
        agent.kill();
        drop(agent);
        run(&site.host, &["detach"]).expect(0, &[]);
        let mut agent = begin(&site, &before, &policy(&["uplink"], 2000));
        try_out(&agent, 3000, 600);
        agent.kill_for(&binary());
        agent.resume();
        agent.ask(&["confirm"]).expect(0, &["confirmed"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        drop(agent);
        run(&site.host, &["detach"]).expect(0, &[]);
    });
}

/// The time was up while no agent ran, before it is carried over or just then.
#[test]
fn a_trial_that_is_over_is_over() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        for early in [0, 5, 20, 40, 80, 200] {
            let site = Site::quiet();
            let mut agent = begin(&site, &before, &policy(&["uplink"], 2000));
            try_out(&agent, 3000, 1);
            let deadline = Instant::now() + Duration::from_secs(1);
            agent.kill_for(&binary());
            let start = deadline - Duration::from_millis(early);
            thread::sleep(start.saturating_duration_since(Instant::now()));
            agent.resume();
            wait_until("the policy before is back", || generation(&site) == 1);
            assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
            wait_until("the agent knows", || status(&agent)["state"] == "in force");
            drop(agent);
            run(&site.host, &["detach"]).expect(0, &[]);
        }
    });
}

#[test]
fn interfaces_of_both_policies_of_a_trial_are_carried_over() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        let site = Site::quiet();
        let second = another_device(&site, "second");
        let mut agent = begin(&site, &before, &policy(&["uplink"], 2000));
        let path = agent.other_policy("trial.toml", &policy(&["second"], 3000));
        agent
            .ask(&["apply", path.to_str().unwrap(), "--confirm", "600s", "--force"])
            .expect(0, &[]);
        agent.kill_for(&binary());
        agent.resume();
        assert_eq!(attached(&site.host), ["uplink", "second"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, true));
        agent.ask(&["rollback"]).expect(0, &[]);
        assert_eq!(attached(&site.host), ["uplink"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        drop((agent, second));
        run(&site.host, &["detach"]).expect(0, &[]);
    });
}

/// An agent that is killed at any moment of it leaves one of the two layouts whole: either version goes on.
#[test]
fn an_agent_killed_at_any_moment_of_it_leaves_one_layout_whole() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        let site = Site::quiet();
        let mut seen = (0, 0);
        for round in 0..if is_slow() { 4_u64 } else { 24 } {
            let mut agent = begin(&site, &before, &rich_policy(2000));
            let on_trial = round % 3 == 2;
            let (_, account) = under_flood(&site, || {
                if on_trial {
                    try_out(&agent, 3000, 600);
                }
                agent.kill_for(&binary());
                agent.resume_without_waiting();
                thread::sleep(Duration::from_micros(round * 12_000 + 3_000));
                agent.kill();
                let is_carried = Path::new("/sys/fs/bpf/portsteer/main/active").exists();
                let is_begun = Path::new(NEXT).exists();
                seen.0 += u32::from(is_carried);
                seen.1 += u32::from(is_begun && !is_carried);
                if round % 4 == 3 && !is_carried {
                    // Back to the version before.
                    agent.kill_for(&before);
                    agent.resume();
                    agent.kill_for(&binary());
                }
                agent.resume();
            });
            let closed = if on_trial { 3000 } else { 2000 };
            assert!(!is_open(&site, closed), "round {round}: {}", agent.log());
            if round % 4 != 3 {
                let judged = Stats::read(&site.host, INSTANCE).rule("flooded");
                assert!(judged >= account.received, "{judged} of {}", account.received);
            }
            assert!(!Path::new(NEXT).exists());
            agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
            drop(agent);
            assert_no_pins();
        }
        eprintln!(
            "killed behind the last step: {}, between the first and the last: {}",
            seen.0, seen.1
        );
    });
}

/// One step forward that is cut short, one back, where another policy comes into force, and one forward again.
#[test]
fn what_the_version_before_did_in_between_holds() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        for on_trial in [false, true] {
            let site = Site::quiet();
            // Some come through before they are killed.
            let mut agent = loop {
                let mut agent = begin(&site, &before, &policy(&["uplink"], 2000));
                if on_trial {
                    try_out(&agent, 2500, 600);
                }
                agent.kill_for(&binary());
                agent.resume_without_waiting();
                let ready = Path::new(NEXT).join("link_0");
                let carried = Path::new("/sys/fs/bpf/portsteer/main/active");
                wait_until("it has begun", || ready.exists() || carried.exists());
                agent.kill();
                if ready.exists() && !carried.exists() {
                    break agent;
                }
                drop(agent);
                run(&site.host, &["detach"]).expect(0, &[]);
            };
            agent.kill_for(&before);
            agent.resume();
            if on_trial {
                agent.ask(&["rollback"]).expect(0, &[]);
            }
            agent.apply(&policy(&["uplink"], 3000), &[]);
            assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
            let counted = Stats(agent.ask_json(&["stats"])).rule("closed");
            assert_eq!(counted, 1, "the version before counts");
            agent.kill_for(&binary());
            agent.resume();
            assert!(agent.log().contains("was carried over"), "{}", agent.log());
            let open = [2000, 2500, 3000].map(|port| is_open(&site, port));
            assert_eq!(open, [true, true, false], "{}", agent.log());
            assert_eq!(status(&agent)["state"], "in force");
            agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
            assert!(!Path::new(NEXT).exists());
        }
    });
}

/// What stands ready goes with what it was to take the place of.
#[test]
fn detach_in_the_middle_of_it_leaves_nothing() {
    let Some(before) = binary_before() else { return };
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = begin(&site, &before, &policy(&["uplink"], 2000));
        agent.kill();
        let pins = Path::new("/sys/fs/bpf/portsteer/main");
        fs::create_dir(NEXT).unwrap();
        let link = sys::open_pin(&pins.join("link_0")).unwrap();
        sys::pin(link.as_fd(), &PathBuf::from(NEXT).join("link_0")).unwrap();
        drop(link);
        run(&site.host, &["detach"]).expect(0, &["detached from uplink"]);
        assert_no_pins();
        site.udp_echo(HOST_V4, 2000, 1);
    });
}

/// Puts a policy for another port on trial.
fn try_out(agent: &Agent, port: u16, seconds: u64) {
    let path = agent.other_policy("trial.toml", &policy(&["uplink"], port));
    let time = format!("{seconds}s");
    agent.ask(&["apply", path.to_str().unwrap(), "--confirm", &time, "--force"]).expect(0, &[]);
}
