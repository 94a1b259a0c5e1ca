//! Interfaces that go and come back, are renamed and changed: attached again by themselves, and `status` tells.

use std::{os::fd::AsFd as _, path::Path};

use portsteer::{
    dataplane::sys,
    lab::{Device, End, Namespace, Veth, VirtualKind},
};
use portsteer_testkit::{
    agent::{Agent, Stats},
    flood::{assert_all_judged, under_flood},
    sandbox::{sandbox, skip},
    site::{CLIENT_V4, HOST_V4, Site, wait_until},
};

use crate::{INSTANCE, another_device, attached, generation, is_open, policy, status};

/// The cable again, as it was.
pub(crate) fn recreate(client: Namespace, host: Namespace) -> Site {
    let cable = Veth::between(
        End::new(&client, "client").address(CLIENT_V4, 24),
        End::new(&host, "uplink").address(HOST_V4, 24),
    )
    .static_neighbors()
    .create()
    .unwrap();
    Site { client, host, cable }
}

/// Whether the history tells this of an interface.
fn tells(agent: &Agent, interface: &str, what: &str) -> bool {
    let status = status(agent);
    let events = status["history"].as_array().expect("a history");
    events.iter().any(|event| {
        event["interface"] == interface
            && event["what"].as_str().is_some_and(|text| text.contains(what))
    })
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    sandbox(|| {
        let mut site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        for round in 1..=3 {
            assert!(!is_open(&site, 2000));
            let counted = Stats::read(&site.host, INSTANCE).rule("closed");
            let Site { client, host, cable } = site;
            cable.right.delete().unwrap();
            wait_until("the agent sees that it is gone", || {
                agent.log().matches("uplink is gone from here").count() == round
            });
            site = recreate(client, host);
            wait_until("it is attached again", || attached(&site.host) == ["uplink"]);
            assert!(!is_open(&site, 2000));
            wait_until("the agent says so", || {
                agent.log().matches("attached to uplink").count() == round + 1
            });
            assert_eq!(Stats::read(&site.host, INSTANCE).rule("closed"), counted + 1);
        }
        wait_until("the agent says so", || {
            tells(&agent, "uplink", "gone") && tells(&agent, "uplink", "attached")
        });
        assert_eq!(generation(&site), 1, "the policy is the same");
        agent.ask(&["status"]).expect(0, &["gone", "attached (native mode)"]);
    });
}

#[test]
fn a_policy_waits_for_its_interfaces() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent =
            Agent::serve(&site.host, INSTANCE, &policy(&["uplink", "later", "tap-*"], 2000));
        assert_eq!(attached(&site.host), ["uplink"]);
        assert_eq!(status(&agent)["waiting"], serde_json::json!(["later"]));
        agent.ask(&["status"]).expect(0, &["waiting for `later`, which does not exist"]);
        another_device(&site, "later");
        wait_until("it is attached", || attached(&site.host) == ["uplink", "later"]);
        wait_until("nothing is waited for", || status(&agent)["waiting"] == serde_json::json!([]));
        // A glob means those that come later as well.
        another_device(&site, "tap-1");
        wait_until("it is attached", || attached(&site.host) == ["uplink", "later", "tap-1"]);
        another_device(&site, "other");
        another_device(&site, "tap-2");
        wait_until("it is attached", || {
            attached(&site.host) == ["uplink", "later", "tap-1", "tap-2"]
        });
        // An agent that was killed meanwhile catches up.
        agent.kill();
        another_device(&site, "tap-3");
        agent.resume();
        wait_until("it is attached", || attached(&site.host).len() == 5);
        // Over the socket, a missing interface is a mistake.
        let wrong = agent.other_policy("wrong.toml", &policy(&["uplink", "latter"], 3000));
        agent
            .ask(&["apply", wrong.to_str().unwrap()])
            .expect(3, &["there is no interface `latter`", "did you mean `later`?"]);
        assert!(!is_open(&site, 2000));
    });
}

#[test]
fn a_policy_none_of_whose_interfaces_exist_waits_too() {
    sandbox(|| {
        let site = Site::quiet();
        let text = policy(&["later"], 2000);
        let mut agent = Agent::launch(
            &site.host,
            INSTANCE,
            &text,
            &[
                "--state-dir",
                "/nonexistent/portsteer",
                "--socket",
                "/tmp/portsteer-test-later.sock",
            ],
        );
        agent.wait_for_log("waiting for `later`, which does not exist", 1);
        assert!(!agent.log().contains("in force:"), "{}", agent.log());
        assert_eq!(attached(&site.host), [] as [String; 0]);
        another_device(&site, "later");
        agent.wait_for_log("in force:", 1);
        assert_eq!(attached(&site.host), ["later"]);
        agent.end(libc::SIGINT);
    });
}

#[test]
fn rules_for_interfaces_hold_for_those_that_come_later() {
    sandbox(|| {
        let site = Site::quiet();
        let mut text = policy(&["tap-*", "up*"], 2000);
        text += "[[rules]]\nname = \"on-uplink\"\ninterface = \"uplink\"\nprotocol = \"udp\"\n\
                 dst_port = 3000\naction = \"drop\"\n";
        let Site { client, host, cable } = site;
        another_device(
            &Site { client: client.clone(), host: host.clone(), cable: cable.clone() },
            "tap-1",
        );
        cable.right.delete().unwrap();
        let agent = Agent::serve(&host, INSTANCE, &text);
        assert_eq!(attached(&host), ["tap-1"]);
        let site = recreate(client, host);
        wait_until("it is attached", || attached(&site.host).len() == 2);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, false));
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("on-uplink"), 1);
        wait_until("the agent says so", || tells(&agent, "uplink", "attached"));
    });
}

#[test]
fn an_interface_that_is_renamed_stays_attached() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let program = site.xdp();
        ip(&site.host, &["link", "set", "dev", "uplink", "down"]);
        ip(&site.host, &["link", "set", "dev", "uplink", "name", "wan0"]);
        ip(&site.host, &["link", "set", "dev", "wan0", "up"]);
        wait_until("the agent sees it", || tells(&agent, "uplink", "is called wan0 now"));
        let links = site.host.run(portsteer::netlink::links).unwrap();
        let renamed = links.iter().find(|link| link.name == "wan0").unwrap();
        assert_eq!(renamed.xdp, program);
        wait_until("status has its name", || {
            agent.ask_json(&["status"])["interfaces"][0]["name"] == "wan0"
        });
        assert_eq!(status(&agent)["waiting"], serde_json::json!(["uplink"]));
        assert_eq!(attached(&site.host), ["wan0"]);
        // And another one of the name that the policy names is attached as well.
        another_device(&site, "uplink");
        wait_until("it is attached", || attached(&site.host).len() == 2);
        // What the policy names is what it is for, as soon as somebody applies it.
        agent.apply(&policy(&["uplink"], 2000), &[]);
        assert_eq!(attached(&site.host), ["uplink"]);
    });
}

fn ip(namespace: &Namespace, arguments: &[&str]) {
    let status = namespace.command("ip").args(arguments).status().expect("ip");
    assert!(status.success(), "ip {arguments:?}");
}

#[test]
fn changes_of_an_interface_change_no_verdict() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let (_, account) = under_flood(&site, || {
            site.cable.right.set_mtu(1400).unwrap();
            wait_until("the agent sees it", || tells(&agent, "uplink", "has an MTU of 1400 now"));
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        site.cable.right.set_down().unwrap();
        wait_until("the agent sees it", || tells(&agent, "uplink", "is down"));
        site.cable.right.set_up().unwrap();
        wait_until("the agent sees it", || tells(&agent, "uplink", "is up"));
        site.cable.right.wait_until_ready().unwrap();
        // Its neighbours went with its addresses.
        site.cable.right.add_neighbor(CLIENT_V4, site.cable.left.mac()).unwrap();
        assert!(!is_open(&site, 2000));
        assert_eq!(attached(&site.host), ["uplink"]);
        assert_eq!(generation(&site), 1);
    });
}

#[test]
fn an_interface_that_joins_a_bond_stays_attached() {
    sandbox(|| {
        let site = Site::quiet();
        let bond = match Device::create(&site.host, "bond0", VirtualKind::Bond) {
            Ok(bond) => bond,
            Err(error) => return skip(format!("no bond can be made: {error}")),
        };
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let program = site.xdp();
        assert!(!is_open(&site, 2000));
        site.cable.right.set_down().unwrap();
        site.cable.right.join(&bond).unwrap();
        wait_until("the agent sees it", || tells(&agent, "uplink", "has joined bond0"));
        bond.add_address(HOST_V4, 24).unwrap();
        bond.wait_until_ready().unwrap();
        assert_eq!(site.xdp(), program);
        assert!(!is_open(&site, 2000));
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("closed"), 2);
        ip(&site.host, &["link", "set", "dev", "uplink", "nomaster"]);
        wait_until("the agent sees it", || tells(&agent, "uplink", "has left bond0"));
        assert_eq!(site.xdp(), program);
    });
}

/// What is edited is a policy for the same interfaces, whatever has become of them.
#[test]
fn a_policy_is_edited_whatever_became_of_its_interfaces() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink", "later"], 2000));
        let add = |agent: &Agent, port: u16| {
            let port = format!("{port}/udp");
            agent.ask(&["port", "drop", &port]).expect(0, &["in force"]);
        };
        add(&agent, 2001);
        agent.ask(&["rollback"]).expect(0, &["waiting for `later`", "in force: 2 rules"]);
        add(&agent, 2001);

        // Under another name.
        let program = site.xdp();
        ip(&site.host, &["link", "set", "dev", "uplink", "down"]);
        ip(&site.host, &["link", "set", "dev", "uplink", "name", "wan0"]);
        ip(&site.host, &["link", "set", "dev", "wan0", "up"]);
        let links = || site.host.run(portsteer::netlink::links).unwrap();
        let is_attached = || links().iter().any(|link| link.name == "wan0" && link.xdp.is_some());
        add(&agent, 2002);
        assert!(is_attached());
        agent.ask(&["rollback"]).expect(0, &["still on wan0"]);
        add(&agent, 2002);
        ip(&site.host, &["link", "set", "dev", "wan0", "down"]);
        ip(&site.host, &["link", "set", "dev", "wan0", "name", "uplink"]);
        ip(&site.host, &["link", "set", "dev", "uplink", "up"]);
        assert_eq!(site.xdp(), program);

        // Gone, and edited by another agent too.
        let Site { client, host, cable } = site;
        cable.left.delete().unwrap();
        add(&agent, 2003);
        agent.kill();
        agent.resume();
        add(&agent, 2004);
        agent.ask(&["rule", "list"]).expect(0, &["2001", "2002", "2003", "2004"]);
        let site = recreate(client, host);
        wait_until("it is attached", || site.xdp().is_some());
        for port in 2000..2005 {
            assert!(!is_open(&site, port), "{port}");
        }
    });
}

/// What the programs on the kernel's tracepoints know of targets' interfaces: those that there are, and none that are gone.
#[test]
fn interfaces_of_targets_that_are_gone_are_forgotten() {
    sandbox(|| {
        let site = Site::quiet();
        let text = policy(&["uplink"], 2000);
        let (head, rules) = text.split_at(text.find("[[").expect("rules"));
        let targets = "mode = \"generic\"\n[targets.t]\ninterface = \"out\"\nmac = \"keep\"\n[[rules]]\nname = \"s\"\n\
                       protocol = \"udp\"\ndst_port = 7\naction = { steer = \"t\" }\n";
        let mut out = another_device(&site, "out");
        let agent = Agent::serve(&site.host, INSTANCE, &format!("{head}{targets}{rules}"));
        let path = Path::new("/sys/fs/bpf/portsteer").join(INSTANCE).join("device_slots");
        let map = sys::open_pin(&path).expect("a map");
        let known = || {
            let (mut known, mut key) = (Vec::new(), None);
            while let Some(next) = sys::map_next_key(map.as_fd(), key).expect("a key") {
                known.push(next);
                key = Some(next);
            }
            known
        };
        for _ in 0..4 {
            wait_until("it is known alone", || known() == [out.index()]);
            out.delete().unwrap();
            out = another_device(&site, "out");
        }
        wait_until("it is known alone", || known() == [out.index()]);
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
    });
}
