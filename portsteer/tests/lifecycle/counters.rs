//! Counters belong to a rule's name, whatever else about it changes.

use portsteer_testkit::{
    agent::{Agent, Stats},
    sandbox::sandbox,
    site::{HOST_V4, Site, wait_until},
};

use crate::{INSTANCE, rule};

fn policy(rules: &[String]) -> String {
    format!(
        "version = 1\ninterfaces = [\"uplink\"]\nmode = \"native\"\ndefault = \"drop\"\n{}",
        rules.concat()
    )
}

/// Sends datagrams and waits until all are counted under the rule.
fn send_counted(site: &Site, port: u16, name: &str, count: u64) -> u64 {
    let counted = || Stats::read(&site.host, INSTANCE).rule(name);
    let (before, client) = (counted(), site.udp_client(HOST_V4, port));
    for _ in 0..count {
        client.send(b"count me").expect("a datagram can be sent");
    }
    wait_until("all are counted", || counted() >= before + count);
    counted()
}

#[test]
fn a_rule_with_a_changed_match_goes_on_counting() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&[rule("a", 1000, "drop")]));
        assert_eq!(send_counted(&site, 1000, "a", 3), 3);
        // Another port, another action, another place, another line.
        agent.swap(&policy(&[rule("b", 1001, "drop"), rule("a", 1002, "drop")]));
        assert!(!agent.log().contains("is gone"), "{}", agent.log());
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("a"), 3);
        assert_eq!(send_counted(&site, 1002, "a", 4), 7);
        assert_eq!(send_counted(&site, 1001, "b", 1), 1);
        agent.swap(&policy(&[rule("a", 1000, "drop")]));
        assert_eq!(send_counted(&site, 1000, "a", 2), 9);
    });
}

#[test]
fn a_removed_rules_final_count_is_reported() {
    sandbox(|| {
        let site = Site::quiet();
        let (a, b) = (rule("a", 1000, "drop"), rule("b", 1001, "drop"));
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&[a.clone(), b.clone()]));
        assert_eq!(send_counted(&site, 1000, "a", 5), 5);
        send_counted(&site, 1001, "b", 6);
        agent.swap(&policy(&[a]));
        // 8 bytes of data, 8 of UDP, 20 of IPv4, 14 of Ethernet.
        let said = "rule `b` is gone; it counted 6 packets, 300 bytes";
        agent.wait_for_log(said, 1);
        let stats = Stats::read(&site.host, INSTANCE);
        assert!(!stats.has_rule("b") && stats.rule("a") == 5, "{stats:?}");
        // Under its old name it is a new rule.
        agent.swap(&policy(&[rule("a", 1000, "drop"), b]));
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("b"), 0);
        assert_eq!(send_counted(&site, 1001, "b", 2), 2);
    });
}

#[test]
fn a_new_rule_starts_at_zero_though_its_counter_was_used_before() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&[rule("r0", 1000, "drop")]));
        // Of any two successive rules one has the counter of the rule before them.
        for round in 0..6 {
            let (name, next) = (format!("r{round}"), format!("r{}", round + 1));
            assert_eq!(Stats::read(&site.host, INSTANCE).rule(&name), 0);
            let count = round + 2;
            assert_eq!(send_counted(&site, 1000, &name, count), count);
            agent.swap(&policy(&[rule(&next, 1000, "drop")]));
            agent.wait_for_log(&format!("`{name}` is gone; it counted {count} packets"), 1);
        }
    });
}

#[test]
fn counters_survive_the_agent() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&[rule("a", 1000, "drop")]));
        send_counted(&site, 1000, "a", 3);
        agent.swap(&policy(&[rule("new", 1001, "drop"), rule("a", 1000, "drop")]));
        send_counted(&site, 1001, "new", 2);
        agent.stop(libc::SIGTERM);
        send_counted(&site, 1000, "a", 3);
        // While no agent runs the file changes.
        agent.write_policy(&policy(&[rule("a", 1000, "drop")]));
        agent.restart();
        assert!(agent.log().contains("`new` is gone; it counted 2 packets"), "{}", agent.log());
        assert_eq!(send_counted(&site, 1000, "a", 1), 7);
        assert_eq!(Stats::read(&site.host, INSTANCE).generation(), 3);
    });
}
