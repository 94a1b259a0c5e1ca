//! Agents that are killed, at any moment and of any of their works, and what the next one finds.

use std::{
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use portsteer::dataplane::{OBJECT_DIGEST, sys};
use portsteer_testkit::{
    agent::{Agent, Stats, is_slow, run, soak_minutes},
    flood::{assert_all_judged, under_flood},
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::{INSTANCE, attached, generation, is_open, policy, status};

#[test]
fn the_next_agent_reports_the_same_policy_and_the_same_counters() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let program = site.xdp();
        let (_, account) = under_flood(&site, || {
            agent.apply(&policy(&["uplink"], 3000), &[]);
            for _ in 0..3 {
                let shown = agent.ask(&["show"]).stdout;
                agent.kill();
                let killed = Stats::read(&site.host, INSTANCE);
                wait_until("packets are counted without an agent", || {
                    Stats::read(&site.host, INSTANCE).rule("flooded") > killed.rule("flooded")
                });
                agent.resume();
                assert_eq!(agent.ask(&["show"]).stdout, shown);
                assert_eq!(site.xdp(), program, "the program stays");
                assert_eq!(generation(&site), 2, "nothing was applied");
            }
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert!(agent.log().contains("taken over, "), "{}", agent.log());
    });
}

/// An agent of another version takes over.
#[test]
fn an_upgrade_replaces_the_program_and_loses_no_packet() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let (_, account) = under_flood(&site, || {
            for round in 1..=3 {
                let program = site.xdp();
                agent.kill();
                forget_the_object();
                agent.resume();
                assert_ne!(site.xdp(), program, "a new program");
                let replaced = agent.log().matches("program replaced on uplink").count();
                assert_eq!(replaced, round, "{}", agent.log());
            }
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert_eq!(generation(&site), 1, "nothing was applied");
    });
}

/// Has the pinned state say that the uplink's program came from another object.
fn forget_the_object() {
    let path = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE).join("interfaces");
    let map = sys::open_pin(&path).expect("the map of interfaces");
    let shape = sys::map_shape(map.as_fd()).expect("its shape");
    let mut slot = vec![0; shape.value_size as usize];
    sys::map_lookup(map.as_fd(), 0, &mut slot).expect("the first slot");
    let digest = u8::from_str_radix(&OBJECT_DIGEST[..2], 16).expect("a hexadecimal number");
    let place = slot.len() - OBJECT_DIGEST.len() / 2;
    assert_eq!(slot[place], digest, "a slot ends with the object's digest");
    slot[place] ^= 1;
    sys::map_update(map.as_fd(), 0, &slot).expect("the first slot is written");
}

#[test]
fn pins_of_another_layout_are_refused_and_left_alone() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.kill();
        let program = site.xdp();
        let pins = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE);
        std::fs::rename(pins.join("policy"), pins.join("policy_of_old")).unwrap();
        agent.resume_without_waiting();
        assert_eq!(agent.wait().code(), Some(3), "{}", agent.log());
        let log = agent.log();
        for said in ["holds pins of another layout", "portsteer detach --instance main"] {
            assert!(log.contains(said), "{log}");
        }
        assert_eq!(site.xdp(), program);
        assert!(!is_open(&site, 2000), "it stays in force");
        std::fs::rename(pins.join("policy_of_old"), pins.join("policy")).unwrap();
        agent.resume();
        assert_eq!(site.xdp(), program);
    });
}

#[test]
fn of_two_agents_one_wins_and_the_other_says_who() {
    sandbox(|| {
        let site = Site::quiet();
        let policy = policy(&["uplink"], 2000);
        let one = Agent::serve(&site.host, INSTANCE, &policy);
        let state = one.state();
        let path = one.policy_path();
        let arguments = [
            "agent",
            "--instance",
            INSTANCE,
            "--policy",
            path.to_str().unwrap(),
            "--state-dir",
            state.to_str().unwrap(),
            "--socket",
            "/nowhere/at/all.sock",
        ];
        let who = format!("another agent (process {}) runs instance `main`", one.pid());
        let start = |name: &str| {
            Agent::launch(
                &site.host,
                INSTANCE,
                &policy,
                &["--state-dir", state.to_str().unwrap(), "--socket", &format!("/tmp/{name}.sock")],
            )
        };
        let in_force = |agent: &Agent| agent.log().contains("in force:");
        let lost = |agent: &Agent| agent.log().contains("another agent");
        let (mut both, account) = under_flood(&site, || {
            run(&site.host, &arguments).expect(3, &[&who]);
            assert_eq!(status(&one)["state"], "in force");
            // The same instance from two at once: whoever it is, one is left.
            drop(one);
            let both = [start("portsteer-test-one"), start("portsteer-test-two")];
            wait_until("one has won and one has lost", || {
                both.iter().any(in_force) && both.iter().any(lost)
            });
            both
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert!(!is_open(&site, 2000));
        both.iter_mut().for_each(Agent::kill);
        for name in ["one", "two"] {
            let _ = std::fs::remove_file(format!("/tmp/portsteer-test-{name}.sock"));
        }
    });
}

/// How many agents are killed: 200 in `cargo xtask test --soak`, fewer otherwise.
fn kills() -> u32 {
    match soak_minutes() {
        Some(_) => 200,
        None if is_slow() => 8,
        None => 40,
    }
}

/// Kills agents at random moments of applies, and sees that whatever is in force is the old policy or the new one,
/// that the next agent knows which, and that no packet was lost or judged by anything else.
#[test]
fn an_agent_killed_at_any_moment_of_an_apply_leaves_one_policy_whole() {
    sandbox(|| {
        let site = Site::quiet();
        // Every other one steers to a CPU, has rules with addresses, is on a second interface or on trial, so
        // that there is something to be half done.
        crate::another_device(&site, "second");
        let policies = [2000, 3000].map(|port| {
            let interfaces: &[&str] =
                if port == 2000 { &["uplink"] } else { &["uplink", "second"] };
            let mut text = policy(interfaces, port);
            if port == 3000 {
                text = text.replace(
                    "[[rules]]\nname = \"closed\"",
                    "[targets.cpu]\ncpus = [0]\n[[rules]]\nname = \"to-cpu\"\nprotocol = \"udp\"\n\
                     dst_port = 1000\naction = { steer = \"cpu\" }\n\
                     [[rules]]\nname = \"closed\"",
                );
                text +=
                    "[[rules]]\nname = \"source\"\nsrc = \"203.0.113.0/24\"\naction = \"drop\"\n";
            }
            text
        });
        let mut agent = Agent::serve(&site.host, INSTANCE, &policies[0]);
        let paths = [0, 1]
            .map(|index: usize| agent.other_policy(&format!("{index}.toml"), &policies[index]));
        let whole = {
            let start = Instant::now();
            agent.ask(&["apply", paths[1].to_str().unwrap()]).expect(0, &["in force"]);
            start.elapsed()
        };
        let (_, account) = under_flood(&site, || {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            let mut outcomes = [0; 2];
            for round in 0..kills() {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let next = round as usize % 2;
                let before = agent.ask(&["show"]).stdout;
                let mut arguments = vec!["apply", paths[next].to_str().unwrap()];
                let on_trial = random.is_multiple_of(4);
                if on_trial {
                    arguments.extend(["--confirm", "1h"]);
                }
                let mut client = client(&site, &agent, &arguments);
                thread::sleep(whole.mul_f64((random >> 32) as f64 / f64::from(u32::MAX) * 1.2));
                agent.kill();
                let _ = client.wait();
                // Without an agent, one of the two is in force.
                let found = Stats::read(&site.host, INSTANCE);
                assert!(found.has_rule("closed") && found.has_rule("flooded"), "{found:?}");
                agent.resume();
                let shown = agent.ask(&["show"]).stdout;
                let is_new = shown == policies[next];
                assert!(is_new || shown == before, "round {round}:\n{shown}\n{}", agent.log());
                outcomes[usize::from(is_new)] += 1;
                let closed = if shown == policies[0] { 2000 } else { 3000 };
                let line = found_line(&found, closed);
                assert!(line, "round {round}: port {closed} is not in {found:?}");
                if status(&agent)["state"] == "on trial" {
                    assert!(on_trial && is_new, "round {round}");
                    agent.ask(&["rollback"]).expect(0, &[]);
                    assert_eq!(agent.ask(&["show"]).stdout, before, "round {round}");
                }
                let not_kept = status(&agent)["not_kept"].clone();
                assert!(not_kept.is_null(), "round {round}: {not_kept}");
                let wanted: &[&str] = match agent.ask(&["show"]).stdout == policies[0] {
                    true => &["uplink"],
                    false => &["uplink", "second"],
                };
                assert_eq!(attached(&site.host), wanted, "round {round}:\n{}", agent.log());
            }
            eprintln!("{} kills: {} before, {} after", kills(), outcomes[0], outcomes[1]);
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        eprintln!("{account:?}");
    });
}

/// Whether the rule `closed` of these stats closes this port.
fn found_line(stats: &Stats, port: u16) -> bool {
    let rules = stats.0["rules"].as_array().expect("rules");
    rules.iter().any(|rule| {
        rule["name"] == "closed" && rule["match"] == format!("udp dst_port {port}").as_str()
    })
}

fn client(site: &Site, agent: &Agent, arguments: &[&str]) -> std::process::Child {
    let socket = agent.socket();
    let mut command: Command = site.host.command(portsteer_testkit::agent::binary());
    command
        .args(arguments)
        .args(["--instance", INSTANCE, "--socket", socket.to_str().unwrap()])
        .env("SSH_CONNECTION", "")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    command.spawn().expect("a client")
}

/// An agent that is stopped by a service manager and started again changes no verdict.
#[test]
fn a_restart_of_the_service_changes_no_verdict() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        let (_, account) = under_flood(&site, || {
            for _ in 0..3 {
                assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
                thread::sleep(Duration::from_millis(50));
                agent.resume();
            }
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        // Not that of the policy file, which is still as it was.
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
    });
}
