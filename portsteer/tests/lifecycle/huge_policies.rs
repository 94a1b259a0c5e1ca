//! Policies that are too much: refused in bounded time, offline and by an agent, which keeps the one that
//! is in force.

use std::{fmt::Write as _, thread, time::Duration};

use portsteer_testkit::{
    agent::{Agent, Outcome, Stats, is_slow, policy_file, run, run_agent},
    sandbox::sandbox,
    site::Site,
};

use crate::{INSTANCE, assert_all_off, assert_in_force, policy};

const HEAD: &str = "version = 1\ninterfaces = [\"uplink\"]\n";

fn check(site: &Site, text: &str) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let path = policy_file(directory.path(), text);
    // It ends in time, or this fails.
    run(&site.host, &["check", path.to_str().unwrap()])
}

#[test]
fn a_million_lines_are_read_or_refused_in_time() {
    sandbox(|| {
        let site = Site::quiet();
        let lines = if is_slow() { 50_000 } else { 1_000_000 };
        let last = "[[rules]]\nprotocol = \"udp\"\ndst_port = 7\naction = \"drop\"\n";
        let comments = format!("{HEAD}{}{last}", "# of many words\n".repeat(lines));
        check(&site, &comments).expect(0, &["1 rule, default pass, fine"]);

        let mut ports =
            format!("{HEAD}[[rules]]\nprotocol = \"udp\"\naction = \"pass\"\ndst_port = [\n");
        (0..lines).for_each(|line| writeln!(ports, "{},", line % 65_536).unwrap());
        check(&site, &(ports + "]\n")).expect(0, &["1 rule, default pass"]);

        check(&site, &format!("{HEAD}{}", "[[rules]\n".repeat(lines)))
            .expect(2, &["unclosed array table", "policy.toml:3:9"]);

        let mut rules = HEAD.to_owned();
        for rule in 0..lines / 3 {
            let port = rule % 65_536;
            writeln!(rules, "[[rules]]\ndst_port = {port}\naction = \"drop\"").unwrap();
        }
        if is_slow() {
            check(&site, &rules).expect(0, &["16666 rules"]);
        } else {
            check(&site, &rules).expect(2, &["the policy has 333333 rules, but there is room for"]);
        }
        assert_all_off(&site);
    });
}

/// Each of a few machines has thousands of ports of its own at all destinations, and each of many
/// destinations one more port: every pair of both has to be a table of its own.
fn beyond_the_budget() -> String {
    const MACHINES: usize = 8;
    const DESTINATIONS: usize = 300;
    const PORTS: usize = 5_000;
    let mut text = policy(&["uplink"]);
    for machine in 0..MACHINES {
        let ports: Vec<String> =
            (0..PORTS).map(|port| (3_000 + machine + 12 * port).to_string()).collect();
        write!(
            text,
            "[[rules]]\nname = \"machine-{machine}\"\nprotocol = \"udp\"\nsrc = \"10.1.0.{machine}\"\n\
             dst = \"172.16.0.0/12\"\ndst_port = [{}]\naction = \"pass\"\n",
            ports.join(", ")
        )
        .unwrap();
    }
    for index in 0..DESTINATIONS {
        let (dst, port) = (format!("172.16.{}.{}", index / 256, index % 256), 40_000 + index);
        write!(
            text,
            "[[rules]]\nname = \"place-{index}\"\nprotocol = \"udp\"\nsrc = \"10.0.0.0/8\"\n\
             dst = \"{dst}\"\ndst_port = {port}\naction = \"drop\"\n"
        )
        .unwrap();
    }
    text
}

#[test]
fn a_policy_beyond_the_budget_is_refused_and_its_rules_are_named() {
    const SAID: [&str; 3] =
        ["tables would be larger than 256 MiB", "`machine-0` (line 9) in 302 parts", "by a set"];
    sandbox(|| {
        let site = Site::quiet();
        let beyond = beyond_the_budget();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let said = agent.swap_refused(&beyond);
        assert!(SAID.iter().all(|part| said.contains(part)), "{said}");
        assert_in_force(&site);
        let stats = Stats::read(&site.host, INSTANCE);
        assert_eq!((stats.generation(), stats.has_rule("machine-0")), (1, false));
        // Nor is there anything left of it in the way of the next.
        agent.swap(&policy(&["uplink"]));
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);

        let outcome = check(&site, &beyond);
        outcome.expect(2, &SAID);
        assert_eq!(outcome.stdout, "");
        if !is_slow() {
            run_agent(&site.host, INSTANCE, &beyond).expect(2, &SAID);
            assert_all_off(&site);
        }
    });
}

/// All rules overlap in both addresses: it takes many seconds until that is too much.
fn slow_to_refuse() -> String {
    let mut text = policy(&["uplink"]);
    for index in 0..1_000 {
        let (high, low) = (index / 256, index % 256);
        write!(
            text,
            "[[rules]]\nsrc = \"!10.{high}.{low}.0/24\"\ndst = \"!172.16.{high}.{low}\"\n\
             dst_port = {index}\naction = \"drop\"\n"
        )
        .unwrap();
    }
    text
}

#[test]
fn an_agent_ends_when_it_is_to_whatever_it_compiles() {
    const REFUSED: &str = "nothing was changed";
    let begin = |agent: &mut Agent| {
        agent.write_policy(&slow_to_refuse());
        agent.signal(libc::SIGHUP);
        // It is read quickly.
        thread::sleep(Duration::from_secs(1));
    };
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        begin(&mut agent);
        let (status, log) = agent.end(libc::SIGTERM);
        assert!(status.success() && !log.contains(REFUSED), "{status}: {log}");
        assert!(log.contains("the dataplane stays in force"), "{log}");
        assert_in_force(&site);

        // It takes over what is in force, on trial.
        let time = ["--for", if is_slow() { "10s" } else { "3s" }];
        let mut agent = Agent::start_with(&site.host, INSTANCE, &policy(&["uplink"]), &time);
        begin(&mut agent);
        let status = agent.wait();
        let log = agent.log();
        assert!(status.success() && !log.contains(REFUSED), "{status}: {log}");
        assert!(log.contains("the time is up; detached from uplink"), "{log}");
        assert_all_off(&site);

        // Nor does a start keep it.
        let agent = Agent::launch(&site.host, INSTANCE, &slow_to_refuse(), &[]);
        thread::sleep(Duration::from_secs(2));
        let (status, log) = agent.end(libc::SIGINT);
        assert!(status.success() && log.is_empty(), "{status}: {log}");
        assert_all_off(&site);
    });
}
