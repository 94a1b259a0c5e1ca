//! Agents that are killed at any moment, and policies of great size.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use portsteer::dataplane::sys::{self, MapShape, map_type};
use portsteer_testkit::{
    agent::{Agent, Stats, run},
    sandbox::sandbox,
    site::{HOST_V4, Site, wait_until},
};

use crate::{INSTANCE, another_device, assert_all_off, assert_in_force, policy, rule};

/// How many moments are tried, spread evenly over what is interrupted.
const ROUNDS: u32 = 20;

fn duration(body: impl FnOnce()) -> Duration {
    let start = Instant::now();
    body();
    start.elapsed()
}

#[test]
fn an_agent_killed_at_any_moment_of_its_start_leaves_no_obstacle() {
    sandbox(|| {
        let site = Site::quiet();
        another_device(&site, "second");
        let policy = policy(&["uplink", "second"]);
        let whole = duration(|| {
            Agent::start(&site.host, INSTANCE, &policy).end(libc::SIGINT);
        });
        for round in 0..ROUNDS {
            let mut agent = Agent::launch(&site.host, INSTANCE, &policy, &[]);
            thread::sleep(whole * round / ROUNDS);
            agent.kill();
            if round % 2 == 0 {
                // The next one begins with whatever is there.
                continue;
            }
            agent.restart();
            assert_in_force(&site);
            let (status, log) = agent.end(libc::SIGINT);
            assert_eq!(status.code(), Some(0), "{log}");
            assert_all_off(&site);
        }
    });
}

#[test]
fn pins_without_a_link_are_no_obstacle() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE);
        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 64,
            max_entries: 1,
            flags: 0,
        };
        for names in [&[][..], &["policy"], &["counters_0_64", "interfaces"], &["manifest_new"]] {
            fs::create_dir_all(&directory).unwrap();
            for name in names {
                let map = sys::map_create("debris", shape, None).unwrap();
                sys::pin(map.as_fd(), &directory.join(name)).unwrap();
            }
            for command in ["status", "stats"] {
                run(&site.host, &[command]).expect(1, &["is not attached to anything"]);
            }
            let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
            assert_in_force(&site);
            agent.end(libc::SIGINT);
            assert_all_off(&site);
        }
    });
}

#[test]
fn detach_clears_pins_without_a_link() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE);
        fs::create_dir_all(&directory).unwrap();
        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 64,
            max_entries: 1,
            flags: 0,
        };
        let map = sys::map_create("debris", shape, None).unwrap();
        sys::pin(map.as_fd(), &directory.join("policy")).unwrap();
        run(&site.host, &["detach"]).expect(1, &["is not attached to anything"]);
        assert_all_off(&site);
    });
}

#[test]
fn an_agent_killed_during_swaps_leaves_one_policy_whole() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let attached = site.xdp();
        let whole = duration(|| agent.swap(&policy(&["uplink"])));
        for round in 0..ROUNDS {
            let more = rule(&format!("r{round}"), 3000 + round as u16, "drop");
            agent.write_policy(&(policy(&["uplink"]) + &more));
            agent.signal(libc::SIGHUP);
            thread::sleep(whole * round / ROUNDS);
            agent.kill();
            assert_eq!(site.xdp(), attached);
            assert_in_force(&site);
            let stats = Stats::read(&site.host, INSTANCE);
            let before = round.checked_sub(1).map(|before| format!("r{before}"));
            let old = before.is_none_or(|before| stats.has_rule(&before));
            assert!(old != stats.has_rule(&format!("r{round}")) || round == 0, "{stats:?}");
            agent.restart();
            assert!(Stats::read(&site.host, INSTANCE).has_rule(&format!("r{round}")));
            assert_eq!(site.xdp(), attached);
        }
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("blocked"), u64::from(ROUNDS));
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

/// From a policy of ports to one whose tables need another map and another program, and back.
#[test]
fn an_agent_killed_while_tables_are_replaced_leaves_one_policy_whole() {
    const ROUNDS: u32 = 8;
    // Three or so for each first digit: more than the 4 MiB that lie in one value.
    const PREFIXES: u32 = 200_000;
    sandbox(|| {
        let site = Site::quiet();
        let small = |round: u32| policy(&["uplink"]) + &rule(&format!("r{round}"), 3000, "drop");
        let large = |round: u32| {
            small(round)
                + "[sets.many]\nfile = \"many.txt\"\n[[rules]]\nname = \"many\"\nsrc = \"@many\"\n\
                   action = \"drop\"\n"
        };
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let addresses: String = (0..PREFIXES)
            .map(|index| {
                let [a, b, c, d] = index.wrapping_mul(2_654_435_761).to_be_bytes();
                format!("{}.{b}.{c}.{d}\n", 1 + a % 100)
            })
            .collect();
        let beside = agent.policy_path();
        fs::write(beside.with_file_name("many.txt"), addresses).unwrap();
        let whole = duration(|| agent.swap(&large(ROUNDS)));
        agent.swap(&small(ROUNDS + 1));
        let mut blocked = Stats::read(&site.host, INSTANCE).rule("blocked");
        for round in 0..ROUNDS {
            let next = if round % 2 == 0 { large(round) } else { small(round) };
            agent.write_policy(&next);
            agent.signal(libc::SIGHUP);
            // Reading and compiling is most of it; what is interrupted is mostly the end.
            thread::sleep(whole * (ROUNDS + round) / (2 * ROUNDS));
            agent.kill();
            assert_in_force(&site);
            let stats = Stats::read(&site.host, INSTANCE);
            let known: Vec<u32> =
                (0..=ROUNDS + 1).filter(|other| stats.has_rule(&format!("r{other}"))).collect();
            let before = round.checked_sub(1).unwrap_or(ROUNDS + 1);
            assert!(known == [round] || known == [before], "round {round}: {known:?}");
            agent.restart();
            assert_in_force(&site);
            let stats = Stats::read(&site.host, INSTANCE);
            assert!(stats.has_rule(&format!("r{round}")));
            assert_eq!(stats.has_rule("many"), round % 2 == 0);
            assert!(stats.rule("blocked") >= blocked + 2, "{stats:?}");
            blocked = stats.rule("blocked");
        }
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

/// A policy of so many rules, all with this action, and all after those of [`policy`].
fn many_rules(count: u16, action: &str) -> String {
    let mut text = policy(&["uplink"]);
    for port in 10_000..10_000 + count {
        text.push_str(&rule(&format!("{action}{port}"), port, action));
    }
    text
}

#[test]
fn counters_grow_with_the_policy_and_forget_nothing() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let attached = site.xdp();
        let stats = || Stats::read(&site.host, INSTANCE);
        let maps = || {
            let pins = fs::read_dir(Path::new("/sys/fs/bpf/portsteer").join(INSTANCE)).unwrap();
            let names = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with("counters_0")).count()
        };
        let count_one = |port: u16, rule: &str| {
            let before = stats();
            site.udp_client(HOST_V4, port).send(b"count me").unwrap();
            wait_until("it is counted", || stats().rule(rule) == before.rule(rule) + 1);
        };
        assert_in_force(&site);
        assert_eq!((maps(), stats().rule("blocked")), (1, 1));
        // Room for 16,000 rules, then for these, then for as many that do something else.
        agent.swap(&many_rules(25_000, "drop"));
        assert_eq!((maps(), stats().rule("blocked")), (2, 1));
        assert_ne!(site.xdp(), attached, "the program was replaced");
        count_one(34_999, "drop34999");
        agent.swap(&many_rules(25_000, "pass"));
        assert_eq!(maps(), 3);
        count_one(34_999, "pass34999");
        assert_in_force(&site);
        assert_eq!(stats().rule("blocked"), 2);
        let whole = stats();

        // Somebody else finds the sum of all of them.
        agent.kill();
        assert_eq!(stats().rule("pass34999"), 1);
        agent.restart();
        let again = stats();
        assert_eq!((again.rule("blocked"), again.rule("pass34999")), (2, 1));
        assert_eq!(again.reason("drop", "rule"), whole.reason("drop", "rule"));
        assert_eq!(whole.reason("drop", "rule"), 3);
        agent.swap(&policy(&["uplink"]));
        assert_in_force(&site);
        assert_eq!((maps(), stats().rule("blocked")), (3, 3));
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn an_agent_killed_while_counters_grow_leaves_one_policy_whole() {
    const ROUNDS: u32 = 8;
    sandbox(|| {
        let site = Site::quiet();
        let large = many_rules(17_000, "drop");
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let whole = duration(|| agent.swap(&large));
        agent.end(libc::SIGINT);
        for round in 0..ROUNDS {
            let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
            assert_in_force(&site);
            agent.write_policy(&large);
            agent.signal(libc::SIGHUP);
            // Reading and compiling is most of it; what is interrupted is mostly the end.
            thread::sleep(whole * (ROUNDS + round) / (2 * ROUNDS));
            agent.kill();
            assert_in_force(&site);
            let stats = Stats::read(&site.host, INSTANCE);
            assert_eq!(stats.rule("blocked"), 2, "round {round}");
            let rules = stats.0["rules"].as_array().unwrap().len();
            assert!(rules == 1 || rules == 17_001, "round {round}: {rules}");
            agent.restart();
            assert_in_force(&site);
            let stats = Stats::read(&site.host, INSTANCE);
            assert_eq!((stats.rule("blocked"), stats.has_rule("drop26999")), (3, true));
            agent.end(libc::SIGINT);
            assert_all_off(&site);
        }
    });
}

/// The number in the pins of the uplink.
fn slot_of_uplink(site: &Site) -> u32 {
    let is_it = |slot: &u32| {
        let link = sys::open_pin(&pin(&format!("link_{slot}")));
        let info = link.and_then(|link| sys::xdp_link_info(link.as_fd()));
        info.is_ok_and(|info| info.ifindex == site.cable.right.index())
    };
    (0..8).find(is_it).expect("the uplink is attached")
}

fn pin(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf/portsteer").join(INSTANCE).join(name)
}

/// Its program counts from the moment it is attached.
#[test]
fn an_agent_killed_before_it_pins_a_link_loses_no_count() {
    sandbox(|| {
        let site = Site::quiet();
        another_device(&site, "second");
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink", "second"]));
        assert_in_force(&site);
        let before = Stats::read(&site.host, INSTANCE).all_reasons();
        let slot = slot_of_uplink(&site);
        agent.kill();
        fs::remove_file(pin(&format!("link_{slot}"))).unwrap();
        wait_until("nothing is attached", || site.xdp().is_none());
        agent.restart();
        let stats = Stats::read(&site.host, INSTANCE);
        assert_eq!((stats.rule("blocked"), stats.all_reasons()), (1, before), "{stats:?}");
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

/// What an interface has counted that is let go is added to what is retired, and then its pins are removed: whoever is
/// killed in between has it counted once, even if other interfaces are let go before that is tidied up.
#[test]
fn an_agent_killed_while_it_lets_an_interface_go_counts_nothing_twice() {
    sandbox(|| {
        let site = Site::quiet();
        another_device(&site, "second");
        another_device(&site, "third");
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink", "second"]));
        assert_in_force(&site);
        let before = Stats::read(&site.host, INSTANCE).all_reasons();
        let slot = slot_of_uplink(&site);
        let pins = [format!("link_{slot}"), format!("counters_{slot}_64")].map(|name| pin(&name));
        let kept = [0, 1].map(|index: usize| sys::open_pin(&pins[index]).unwrap());
        agent.swap(&policy(&["second"]));
        agent.kill();
        // As if it had been, right then.
        for (pin, kept) in pins.iter().zip(&kept) {
            assert!(!pin.exists());
            sys::pin(kept.as_fd(), pin).unwrap();
        }
        let assert_once = || {
            let stats = Stats::read(&site.host, INSTANCE);
            assert_eq!((stats.rule("blocked"), stats.all_reasons()), (1, before), "{stats:?}");
        };
        assert_once();
        agent.restart();
        assert_once();
        for interfaces in [&["second", "third"][..], &["second"]] {
            agent.swap(&policy(interfaces));
            assert_once();
        }
        assert!(!pins.iter().any(|pin| pin.exists()), "it is tidied up");
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn thirty_thousand_rules_start_swap_and_are_listed() {
    sandbox(|| {
        let rules = 30_000;
        let site = Site::quiet();
        let large = |last: &str| {
            let mut text = policy(&["uplink"]);
            for port in 10_000..10_000 + rules - 1 {
                text.push_str(&rule(&format!("r{port}"), port, "drop"));
            }
            text + &rule("last", 9_999, last)
        };
        let mut agent = Agent::start(&site.host, INSTANCE, &large("drop"));
        assert_in_force(&site);
        let stats = || Stats::read(&site.host, INSTANCE);
        let client = site.udp_client(HOST_V4, 9_999);
        client.send(b"count me").unwrap();
        wait_until("it is counted", || stats().rule("last") == 1);
        run(&site.host, &["stats"]).expect(0, &["r10000", "r39998", "last"]);

        agent.swap(&large("pass"));
        site.udp_echo(HOST_V4, 9_999, 1);
        let now = stats();
        assert_eq!(now.0["rules"].as_array().unwrap().len(), usize::from(rules) + 1);
        assert_eq!((now.rule("last"), now.rule("blocked")), (2, 1));
        // To a small one and back.
        agent.swap(&policy(&["uplink"]));
        assert_in_force(&site);
        agent.swap(&large("drop"));
        assert_eq!(stats().rule("last"), 0, "it is a new rule");
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}
