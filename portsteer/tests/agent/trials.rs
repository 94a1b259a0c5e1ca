//! Policies on trial: the policy before comes back by itself, whatever becomes of the agent.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use portsteer::ethtool::Offload;
use portsteer_testkit::{
    agent::{Agent, is_slow, run, soak_minutes},
    flood::{assert_all_judged, under_flood},
    sandbox::{assert_no_pins, sandbox},
    site::{HOST_V4, Site, wait_until},
};

use crate::{
    INSTANCE, another_device, attached, generation, interfaces::recreate, is_open, policy, rule,
    status, wait_until_open,
};

/// How long the shortest trial is that an agent can do something in meanwhile, in seconds.
fn short() -> u64 {
    if is_slow() { 15 } else { 3 }
}

/// Applies a policy on trial. Returns when that began.
fn try_out(agent: &Agent, policy: &str, seconds: u64) -> Instant {
    let start = Instant::now();
    let outcome = agent.apply(policy, &["--confirm", &format!("{seconds}s")]);
    outcome.expect(0, &["on trial for", "` keeps it"]);
    start
}

#[test]
fn a_trial_lapses_and_no_packet_is_lost() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let program = site.xdp();
        let (_, account) = under_flood(&site, || {
            let start = try_out(&agent, &policy(&["uplink"], 3000), short());
            assert_eq!(status(&agent)["state"], "on trial");
            assert_eq!(generation(&site), 2);
            wait_until("the policy before is back", || generation(&site) == 1);
            assert!(start.elapsed() >= Duration::from_secs(short()), "{:?}", start.elapsed());
            wait_until("the agent knows", || status(&agent)["state"] == "in force");
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        assert_eq!(site.xdp(), program, "the program was never replaced");
        assert!(agent.log().contains("the trial is over: "), "{}", agent.log());
        let shown = agent.ask(&["show"]);
        assert_eq!(shown.stdout, policy(&["uplink"], 2000));
        // The next one has a number of its own.
        agent.apply(&policy(&["uplink"], 4000), &[]);
        assert_eq!(generation(&site), 3);
    });
}

#[test]
fn a_trial_lapses_without_an_agent() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let (_, account) = under_flood(&site, || {
            let start = try_out(&agent, &policy(&["uplink"], 3000), short());
            agent.kill();
            let before = generation(&site);
            assert!(before == 2 || start.elapsed() >= Duration::from_secs(short()));
            wait_until("the policy before is back", || generation(&site) == 1);
            assert!(start.elapsed() >= Duration::from_secs(short()), "{:?}", start.elapsed());
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        agent.resume();
        let log = agent.log();
        assert!(log.contains("the trial was over while no agent ran"), "{log}");
        assert_eq!(status(&agent)["state"], "in force");
        agent.ask(&["confirm"]).expect(1, &["no policy is on trial"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        // Nothing of it is left: the next agent has nothing to tell.
        agent.kill();
        agent.resume();
        assert_eq!(agent.log().matches("the trial was over").count(), 1, "{}", agent.log());
    });
}

#[test]
fn the_next_agent_confirms_what_another_has_put_on_trial() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let seconds = 4 * short();
        let start = try_out(&agent, &policy(&["uplink"], 3000), seconds);
        agent.kill();
        agent.resume();
        assert!(agent.log().contains("is on trial for"), "{}", agent.log());
        assert_eq!(status(&agent)["state"], "on trial");
        agent.ask(&["confirm"]).expect(0, &["confirmed"]);
        let over = Duration::from_secs(seconds) + Duration::from_millis(500);
        std::thread::sleep(over.saturating_sub(start.elapsed()));
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        assert_eq!(generation(&site), 2);
        // It was accepted, so the next one begins with it also where nothing is pinned.
        agent.kill();
        agent.resume();
        assert_eq!(status(&agent)["state"], "in force");
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
    });
}

#[test]
fn the_next_agent_ends_a_trial_that_another_has_begun() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let start = try_out(&agent, &policy(&["uplink"], 3000), short() + 2);
        agent.kill();
        agent.resume();
        wait_until("the policy before is back", || generation(&site) == 1);
        assert!(start.elapsed() >= Duration::from_secs(short() + 2), "{:?}", start.elapsed());
        wait_until("the agent knows", || status(&agent)["state"] == "in force");
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        assert_eq!(agent.ask(&["show"]).stdout, policy(&["uplink"], 2000));
    });
}

#[test]
fn while_a_policy_is_on_trial_nothing_else_is_changed() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        try_out(&agent, &policy(&["uplink"], 3000), 600);
        let other = agent.other_policy("other.toml", &policy(&["uplink"], 4000));
        let other = other.to_str().unwrap();
        for refused in [
            &["apply", other][..],
            &["apply", other, "--confirm", "5s"],
            &["rule", "add", "drop", "--dst-port", "5000"],
        ] {
            agent.ask(refused).expect(3, &["has a policy on trial", "portsteer confirm"]);
        }
        let said = agent.hang_up_refused();
        assert!(said.contains("has a policy on trial"), "{said}");
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        agent.ask(&["confirm"]).expect(1, &["no policy is on trial"]);
        // What was refused is granted now.
        agent.ask(&["apply", other]).expect(0, &["in force"]);
        assert!(!is_open(&site, 4000));
    });
}

#[test]
fn interfaces_of_one_policy_alone_are_judged_by_that_one_alone() {
    sandbox(|| {
        let site = Site::quiet();
        let second = another_device(&site, "second");
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        try_out(&agent, &policy(&["second"], 3000), short());
        let counted = |name: &str| agent.stats(&site.host).interface(name);
        // Meanwhile everything passes where only the other policy is, uncounted.
        let before = counted("uplink");
        let (is_2000_open, is_3000_open) = (is_open(&site, 2000), is_open(&site, 3000));
        if generation(&site) == 2 {
            assert!(is_2000_open && is_3000_open);
            assert_eq!(counted("uplink"), before);
            assert_eq!(attached(&site.host), ["uplink", "second"]);
        }
        wait_until("the policy before is back", || generation(&site) == 1);
        wait_until("the other interface is let go", || attached(&site.host) == ["uplink"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        assert!(counted("uplink") > before);

        // The same where nobody is there to let it go.
        try_out(&agent, &policy(&["second"], 3000), short());
        agent.kill();
        wait_until("the policy before is back", || generation(&site) == 1);
        assert_eq!(attached(&site.host), ["uplink", "second"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        agent.resume();
        wait_until("the other interface is let go", || attached(&site.host) == ["uplink"]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));

        // And where it is confirmed.
        try_out(&agent, &policy(&["second"], 3000), 600);
        agent.ask(&["confirm"]).expect(0, &["detached from uplink"]);
        assert_eq!(attached(&site.host), ["second"]);
        drop(second);
    });
}

#[test]
fn a_first_policy_can_be_tried_out_too() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        assert_eq!(status(&agent)["state"], "detached");
        try_out(&agent, &policy(&["uplink"], 3000), short());
        wait_until_open(&site, 3000, true);
        wait_until("nothing is attached", || attached(&site.host).is_empty());
        wait_until("the agent knows", || agent.ask(&["show"]).code == Some(1));

        try_out(&agent, &policy(&["uplink"], 3000), short());
        agent.kill();
        wait_until_open(&site, 3000, true);
        // As good as off: everything passes, and nothing is counted.
        run(&site.host, &["status"]).expect(1, &["is not attached to anything"]);
        agent.resume_without_waiting();
        wait_until("nothing is attached", || attached(&site.host).is_empty());
        agent.wait_for_log("the trial of a first policy was over", 1);

        try_out_once_more(&mut agent, &site);
    });
}

fn try_out_once_more(agent: &mut Agent, site: &Site) {
    wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
    try_out(agent, &policy(&["uplink"], 3000), 600);
    assert!(!is_open(site, 3000));
    agent.ask(&["rollback"]).expect(0, &["nothing is in force any more"]);
    assert!(is_open(site, 3000));
    try_out(agent, &policy(&["uplink"], 3000), 600);
    agent.ask(&["confirm"]).expect(0, &["confirmed"]);
    assert!(!is_open(site, 3000));
    agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
    assert_no_pins();
}

/// Larger tables and other programs than the policy before has.
#[test]
fn the_policy_before_is_whole_whatever_was_tried_out() {
    sandbox(|| {
        let site = Site::quiet();
        let by_source = |sources: u32| {
            let mut text = policy(&["uplink"], 2000);
            for index in 0..sources {
                let [_, _, a, b] = index.to_be_bytes();
                text += &format!(
                    "[[rules]]\nname = \"other-{a}-{b}\"\nsrc = \"10.{a}.{b}.0/24\"\ndst_port = {}\n\
                     action = \"drop\"\n",
                    10_000 + index
                );
            }
            text
        };
        let few = by_source(3);
        let many = by_source(if is_slow() { 1_000 } else { 20_000 })
            .replace("dst_port = 2000\n", "dst_port = 3000\n");
        let agent = Agent::serve(&site.host, INSTANCE, &few);
        let (_, account) = under_flood(&site, || {
            for ports_alone in [true, false] {
                let tried = if ports_alone { policy(&["uplink"], 3000) } else { many.clone() };
                try_out(&agent, &tried, 600);
                agent.ask(&["rollback"]).expect(0, &["in force"]);
            }
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        agent.apply(&many, &[]);
        try_out(&agent, &few, short());
        wait_until_open(&site, 2000, true);
        assert!(!is_open(&site, 3000));
    });
}

#[test]
fn targets_of_the_policy_before_are_right_when_it_comes_back() {
    sandbox(|| {
        let site = Site::quiet();
        let steering = |cpus: &str| {
            format!(
                "version = 1\ninterfaces = [\"uplink\"]\n[targets.there]\ncpus = {cpus}\n\
                 [[rules]]\nname = \"to\"\nprotocol = \"udp\"\ndst_port = 1000\n\
                 action = {{ steer = \"there\" }}\n{}",
                rule("closed", 2000)
            )
        };
        // What is steered leaves as it came.
        site.cable.left.set_offload(Offload::TxChecksum, false).unwrap();
        let agent = Agent::serve(&site.host, INSTANCE, &steering("[0]"));
        site.udp_echo(HOST_V4, 1000, 3);
        for tried in [policy(&["uplink"], 3000), steering("[1]")] {
            try_out(&agent, &tried, short());
            site.udp_echo(HOST_V4, 1000, 3);
            wait_until("the policy before is back", || status(&agent)["state"] == "in force");
            site.udp_echo(HOST_V4, 1000, 3);
            let stats = agent.stats(&site.host);
            assert_eq!(stats.target("state"), "ready", "{stats:?}");
            assert_eq!(stats.target("to"), "CPU 0", "{stats:?}");
            for lost in ["gone", "down", "queue", "refused"] {
                assert_eq!(stats.lost(lost), 0, "{stats:?}");
            }
        }
        let log = agent.log();
        assert!(!log.contains("problem"), "{log}");
    });
}

#[test]
fn a_trial_is_not_what_a_machine_starts_with() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        try_out(&agent, &policy(&["uplink"], 3000), 600);
        agent.kill();
        // As when the machine starts anew: nothing is pinned.
        fs::remove_dir_all("/sys/fs/bpf/portsteer").unwrap();
        wait_until("nothing is attached", || attached(&site.host).is_empty());
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
        assert_eq!(status(&agent)["state"], "in force");
    });
}

/// An interface that comes back in a trial is what both policies are for, and one that only the policy on trial
/// means is judged by that one alone.
#[test]
fn interfaces_that_come_during_a_trial_are_attached() {
    sandbox(|| {
        let by_interface = "[[rules]]\nname = \"by-interface\"\nprotocol = \"udp\"\ndst_port = 4000\n\
                            interface = \"uplink\"\naction = \"drop\"\n";
        let before = policy(&["uplink"], 2000) + by_interface;
        let tried = policy(&["uplink", "late*"], 3000) + by_interface;
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &before);
        let mut site = site;
        for confirms in [false, true] {
            try_out(&agent, &tried, 600);
            let Site { client, host, cable } = site;
            cable.left.delete().unwrap();
            wait_until("it is gone", || attached(&host).is_empty());
            site = recreate(client, host);
            wait_until("it is attached", || attached(&site.host) == ["uplink"]);
            assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
            let late = another_device(&site, "late1");
            wait_until("it is attached", || attached(&site.host).len() == 2);
            run(&site.host, &["status"]).expect(0, &["late1", "on trial"]);
            agent.kill();
            let said = ["the policy is on trial", "the kernel puts the one before back in"];
            run(&site.host, &["status"]).expect(0, &said);
            agent.resume();
            if confirms {
                agent.ask(&["confirm"]).expect(0, &["confirmed"]);
                assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
                assert_eq!(attached(&site.host).len(), 2);
            } else {
                agent.ask(&["rollback"]).expect(0, &["in force", "detached from late1"]);
                assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
                assert_eq!(attached(&site.host), ["uplink"]);
            }
            wait_until_open(&site, 4000, false);
            late.delete().unwrap();
        }
    });
}

/// Whatever happens at the moment when the time is up: confirmed or over, never both, and what is over stays over, in the
/// kernel, for the agent and on disk.
#[test]
fn at_the_deadline_a_trial_is_confirmed_or_over() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink", "more*"], 2000));
        let end =
            soak_minutes().map(|minutes| Instant::now() + Duration::from_secs_f64(60.0 * minutes));
        let (mut round, mut confirmed_in_time) = (0_u64, 0);
        while round < 12 || end.is_some_and(|end| Instant::now() < end) {
            try_out(&agent, &policy(&["uplink", "more*"], 3000), 1);
            let deadline = Instant::now() + Duration::from_secs(1);
            // From 145 ms before it to some after, in an order in which each kind comes at each time.
            let early = Duration::from_micros(round * 17_389 % 160_000);
            let start = deadline + Duration::from_millis(15) - early;
            thread::sleep(start.saturating_duration_since(Instant::now()));
            let mut device = None;
            let mut confirmed = false;
            match round % 4 {
                0 => confirmed = agent.ask(&["confirm"]).code == Some(0),
                1 => {
                    agent.kill();
                    agent.resume_without_waiting();
                }
                2 => {
                    let name = format!("more{round}");
                    device = Some(another_device(&site, &name));
                    wait_until("it is attached", || attached(&site.host).contains(&name));
                }
                _ => {
                    agent.kill();
                    agent.resume_without_waiting();
                    wait_until("the agent listens", || agent.ask(&["status"]).code == Some(0));
                    confirmed = agent.ask(&["confirm"]).code == Some(0);
                }
            }
            wait_until("the trial is over", || {
                let status = agent.ask(&["status", "--json"]);
                status.code == Some(0) && status.stdout.contains("\"state\":\"in force\"")
                    || status.stdout.contains("\"state\": \"in force\"")
            });
            confirmed_in_time += u32::from(confirmed);
            let said = format!("round {round}, confirmed {confirmed}:\n{}", agent.log());
            for _ in 0..2 {
                assert_eq!(is_open(&site, 2000), confirmed, "{said}");
                assert_eq!(is_open(&site, 3000), !confirmed, "{said}");
                thread::sleep(Duration::from_millis(30));
            }
            assert_eq!(agent.ask(&["show"]).stdout.contains("3000"), confirmed, "{said}");
            assert_eq!(accepted_text(&agent).contains("dst_port = 3000"), confirmed, "{said}");
            if confirmed {
                agent.apply(&policy(&["uplink", "more*"], 2000), &[]);
            }
            drop(device);
            round += 1;
        }
        eprintln!("deadlines: {round}, of which {confirmed_in_time} were confirmed in time");
        agent.ask(&["detach"]).expect(0, &[]);
    });
}

/// An agent that goes on in the midst of a trial keeps nothing of it, whatever has become of the disk meanwhile.
#[test]
fn a_trial_that_was_not_confirmed_is_never_accepted() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        // It cannot be staged, as on a full disk.
        let in_the_way = agent.state().join("pending.json.new");
        fs::create_dir(&in_the_way).unwrap();
        try_out(&agent, &policy(&["uplink"], 3000), short());
        agent.kill();
        fs::remove_dir(&in_the_way).unwrap();
        agent.resume();
        assert!(accepted_text(&agent).contains("dst_port = 2000"), "{}", agent.log());
        wait_until_open(&site, 3000, true);
        wait_until("the agent knows", || status(&agent)["state"] == "in force");
        assert!(accepted_text(&agent).contains("dst_port = 2000"), "{}", agent.log());
        assert!(!is_open(&site, 2000));
        agent.ask(&["detach"]).expect(0, &[]);
    });
}

/// And one that is confirmed is accepted, whatever has become of the disk meanwhile.
#[test]
fn a_trial_that_is_confirmed_is_accepted() {
    sandbox(|| {
        let site = Site::quiet();
        for lost in ["accepted.json", "pending.json"] {
            let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
            try_out(&agent, &policy(&["uplink"], 3000), 600);
            fs::write(agent.state().join(lost), "").unwrap();
            agent.kill();
            agent.resume();
            agent.ask(&["confirm"]).expect(0, &["confirmed"]);
            assert!(accepted_text(&agent).contains("dst_port = 3000"), "{lost}: {}", agent.log());
            assert!(status(&agent)["not_kept"].is_null(), "{}", status(&agent));
            agent.ask(&["detach"]).expect(0, &[]);
        }
    });
}

/// The text of the policy that a restarted machine would begin with.
fn accepted_text(agent: &Agent) -> String {
    let accepted = fs::read_to_string(agent.state().join("accepted.json")).expect("it is kept");
    let accepted: serde_json::Value = serde_json::from_str(&accepted).expect("JSON");
    let content = agent.state().join("content").join(accepted["text"].as_str().expect("a hash"));
    fs::read_to_string(content).expect("the text")
}
