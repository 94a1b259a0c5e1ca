//! Interfaces that come, go and change while an agent runs.

use portsteer::lab::{End, Veth};
use portsteer_testkit::{
    agent::{Agent, Stats, run},
    packet::{IPV4, UDP, ethernet, ipv4, udp},
    raw_socket::RawSocket,
    sandbox::{assert_no_pins, sandbox},
    site::{CLIENT_V4, HOST_V4, Site, wait_until},
};

use crate::{
    INSTANCE, another_device, assert_all_off, assert_in_force, attached, policy, policy_in,
};

#[test]
fn a_deleted_interface_is_gone_and_comes_back_by_sighup() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_in_force(&site);
        let Site { client, host, cable } = site;
        cable.right.delete().unwrap();
        run(&host, &["status"]).expect(1, &["uplink", "gone"]);
        run(&host, &["status", "--json"]).expect(1, &["\"attached\": false", "\"index\": 0"]);
        run(&host, &["stats"]).expect(0, &["gone", "blocked"]);
        assert_eq!(Stats::read(&host, INSTANCE).rule("blocked"), 1);

        // Still gone: refused, and nothing worse.
        let said = agent.hang_up_refused();
        assert!(said.contains("no interface `uplink`"), "{said}");

        let site = recreate(client, host);
        assert_eq!(site.xdp(), None);
        agent.signal(libc::SIGHUP);
        agent.wait_for_log("in force:", 2);
        assert_eq!(agent.log().matches("attached to uplink").count(), 2, "{}", agent.log());
        assert_in_force(&site);
        // The rule has gone on counting; the interface is a new one.
        let stats = Stats::read(&site.host, INSTANCE);
        assert_eq!(stats.rule("blocked"), 2);
        assert_eq!(stats.interface("uplink"), 2);
        run(&site.host, &["status"]).expect(0, &["attached"]);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

/// The cable again, as it was.
fn recreate(client: portsteer::lab::Namespace, host: portsteer::lab::Namespace) -> Site {
    let cable = Veth::between(
        End::new(&client, "client").address(CLIENT_V4, 24),
        End::new(&host, "uplink").address(HOST_V4, 24),
    )
    .static_neighbors()
    .create()
    .unwrap();
    Site { client, host, cable }
}

#[test]
fn an_agent_whose_interface_was_deleted_ends_in_peace() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        site.cable.right.clone().delete().unwrap();
        let (status, log) = agent.end(libc::SIGINT);
        assert_eq!(status.code(), Some(0), "{log}");
        assert_no_pins();
    });
}

#[test]
fn what_a_deleted_interface_left_is_taken_off_by_detach() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_eq!(agent.end(libc::SIGTERM).0.code(), Some(0));
        site.cable.right.clone().delete().unwrap();
        run(&site.host, &["detach"]).expect(0, &["uplink"]);
        assert_no_pins();
    });
}

#[test]
fn interfaces_are_added_and_removed_by_sighup() {
    sandbox(|| {
        let site = Site::quiet();
        another_device(&site, "second");
        another_device(&site, "third");
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let uplink = site.xdp();
        agent.swap(&policy(&["uplink", "second", "third"]));
        assert_eq!(attached(&site.host), ["uplink", "second", "third"]);
        agent.swap(&policy(&["uplink", "third"]));
        assert!(agent.log().contains("detached from second"), "{}", agent.log());
        assert_eq!(attached(&site.host), ["uplink", "third"]);
        // A slot is used again.
        agent.swap(&policy(&["uplink", "second"]));
        assert_eq!(attached(&site.host), ["uplink", "second"]);
        assert_eq!(site.xdp(), uplink, "it was never touched");
        assert_in_force(&site);
        agent.swap(&policy(&["second"]));
        assert_eq!(attached(&site.host), ["second"]);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn an_interface_in_a_slot_that_was_used_before_counts_from_zero() {
    sandbox(|| {
        let site = Site::quiet();
        let ends = ["peer", "second"]
            .map(|name| End::new(if name == "peer" { &site.client } else { &site.host }, name));
        let [peer, second] = ends;
        let second = Veth::between(peer, second).create().unwrap();
        let socket = RawSocket::open(&second.left).unwrap();
        let counted = || Stats::read(&site.host, INSTANCE).interface("second");
        let both = policy(&["uplink", "second"]);
        let mut agent = Agent::start(&site.host, INSTANCE, &both);
        for _ in 0..2 {
            assert_eq!(counted(), 0);
            for _ in 0..5 {
                socket.send(&ethernet(IPV4, ipv4(UDP, udp(1, 2000, b"")))).unwrap();
            }
            wait_until("all are counted", || counted() == 5);
            agent.swap(&policy(&["uplink"]));
            agent.swap(&both);
        }
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("blocked"), 10, "the rule goes on");
    });
}

#[test]
fn a_glob_takes_all_that_match_and_no_other() {
    sandbox(|| {
        let site = Site::quiet();
        for name in ["port1", "port2", "other"] {
            another_device(&site, name);
        }
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["port*", "uplink"]));
        assert_eq!(attached(&site.host), ["uplink", "port1", "port2"]);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn a_change_of_mode_is_refused() {
    sandbox(|| {
        for (first, second) in [("native", "generic"), ("generic", "native")] {
            let site = Site::quiet();
            let mut agent = Agent::start(&site.host, INSTANCE, &policy_in(first, &["uplink"]));
            let before = site.xdp();
            let said = agent.swap_refused(&policy_in(second, &["uplink"]));
            let words = format!("attached in {first} mode, and the policy now asks for {second}");
            assert!(said.contains(&words) && said.contains("portsteer detach"), "{said}");
            assert_eq!(site.xdp(), before);
            assert_in_force(&site);
            // Auto takes what there is.
            agent.swap(&policy_in("auto", &["uplink"]));
            assert_eq!(site.xdp(), before);
            assert_in_force(&site);
            agent.end(libc::SIGINT);
            assert_all_off(&site);
        }
    });
}
