//! What others on the link can make the agent do: learn of new neighbours, see interfaces flap. It costs a bounded
//! number of looks, lines and writes.

use std::{fs, thread, time::Duration};

use portsteer_testkit::{
    agent::Agent,
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::{INSTANCE, another_device, attached, policy, rule, status};

/// How often the agent's threads have begun to wait, which they do once or twice for every look (proc_pid_status(5)).
fn waits(agent: &Agent) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("the agent's threads");
    let of_task = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    tasks.filter_map(|task| of_task(task.ok()?)).sum()
}

const MANY: u32 = 4_000;

/// Makes the kernel learn of neighbours, as strangers do by ARP. They come as quickly as the agent looks at all.
fn meet_neighbours(site: &Site, agent: &Agent) -> u64 {
    let before = waits(agent);
    for at in 0..MANY {
        let [a, b] = (at as u16).to_be_bytes();
        let address = std::net::Ipv4Addr::new(198, 18, a, b);
        site.cable.right.add_neighbor(address, [2, 0, 0, 0, a, b]).expect("a neighbour");
        if at % 10 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    waits(agent) - before
}

#[test]
fn new_neighbours_do_not_wake_an_agent_that_steers_to_none() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let waits = meet_neighbours(&site, &agent);
        assert!(waits < 100, "{waits} waits for {MANY} neighbours");
    });
}

#[test]
fn many_new_neighbours_are_one_look() {
    sandbox(|| {
        let site = Site::quiet();
        let _target = another_device(&site, "target");
        let targets = "mode = \"generic\"\n[targets.t]\ninterface = \"target\"\nvia = \"198.18.255.1\"\n\
                       [[rules]]\nname = \"s\"\nprotocol = \"udp\"\ndst_port = 7\naction = { steer = \"t\" }\n";
        let text = policy(&["uplink"], 2000);
        let (head, rules) = text.split_at(text.find("[[").expect("rules"));
        let agent = Agent::serve(&site.host, INSTANCE, &format!("{head}{targets}{rules}"));
        let waits = meet_neighbours(&site, &agent);
        assert!(waits < u64::from(MANY) / 4, "{waits} waits for {MANY} neighbours");
    });
}

#[test]
fn an_interface_that_flaps_is_told_of_a_few_times_and_counted() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let uplink = &site.cable.right;
        let history = || fs::metadata(agent.state().join("main/history.json")).ok();
        let mut writes = 0;
        let mut last = None;
        for _ in 0..100 {
            for up in [false, true] {
                if up { uplink.set_up() } else { uplink.set_down() }.expect("the link");
                // The agent sees this one, and not several as one.
                let said = if up { "is up" } else { "is down" };
                let seen = |log: &str| log.matches(said).count();
                let before = seen(&agent.log());
                let deadline = std::time::Instant::now() + Duration::from_millis(60);
                while seen(&agent.log()) == before && std::time::Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(2));
                }
                let now = history().map(|file| {
                    use std::os::unix::fs::MetadataExt as _;
                    (file.ino(), file.mtime(), file.mtime_nsec())
                });
                writes += usize::from(now != last);
                last = now;
            }
        }
        let log = agent.log();
        let lines = log.lines().filter(|line| line.contains("uplink is ")).count();
        assert!((2..=20).contains(&lines), "{lines} lines: {log}");
        assert!(writes <= 6, "{writes} writes");
        let events = status(&agent)["history"].as_array().expect("a history").len();
        assert!(events <= 24, "{events} events");
        // It is followed all the same.
        wait_until("it is attached", || attached(&site.host) == ["uplink"]);
        let more = policy(&["uplink"], 2000) + &rule("more", 2001);
        agent.apply(&more, &[]).expect(0, &[]);
    });
}
