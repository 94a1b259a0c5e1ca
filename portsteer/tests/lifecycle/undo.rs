//! What fails on the n-th interface is undone on the others.

use std::os::fd::OwnedFd;

use portsteer::{lab::Device, netlink::XdpMode};
use portsteer_testkit::{
    agent::{Agent, Stats, run_agent},
    sandbox::{assert_no_pins, pins, sandbox},
    site::{Site, attach_other_program},
};

use crate::{INSTANCE, another_device, assert_all_off, assert_in_force, attached, policy, rule};

/// A device of the host with somebody else's program.
fn busy_device(site: &Site, name: &str) -> (Device, OwnedFd) {
    let device = another_device(site, name);
    let program = attach_other_program(&device, XdpMode::Native);
    (device, program)
}

#[test]
fn an_interface_that_is_busy_at_the_start_undoes_the_others() {
    sandbox(|| {
        let site = Site::quiet();
        let second = another_device(&site, "second");
        let (third, other) = busy_device(&site, "third");
        let before = third.link().unwrap().xdp;
        assert!(site.cable.right.index() < second.index() && second.index() < third.index());
        let outcome = run_agent(&site.host, INSTANCE, &policy(&["uplink", "second", "third"]));
        outcome.expect(3, &["another XDP program", "`third`"]);
        assert!(!outcome.stderr.contains("in force"), "{outcome:#?}");
        assert_eq!(attached(&site.host), ["third"]);
        assert_eq!(third.link().unwrap().xdp, before);
        assert_no_pins();
        drop(other);
        assert_all_off(&site);
    });
}

#[test]
fn an_interface_that_is_busy_at_sighup_leaves_the_policy_before_in_force() {
    sandbox(|| {
        let site = Site::quiet();
        let second = another_device(&site, "second");
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_in_force(&site);
        let (third, other) = busy_device(&site, "third");
        let before = (site.xdp(), second.link().unwrap().xdp, third.link().unwrap().xdp, pins());

        let harmless = policy(&["uplink", "second", "third"]).replace("2000", "2999");
        let said = agent.swap_refused(&harmless);
        assert!(said.contains("another XDP program") && said.contains("`third`"), "{said}");
        let now = (site.xdp(), second.link().unwrap().xdp, third.link().unwrap().xdp);
        assert_eq!((now.0, now.1, now.2), (before.0, None, before.2));
        let links = |pins: &[std::path::PathBuf]| {
            pins.iter().filter(|pin| pin.to_string_lossy().contains("link_")).count()
        };
        assert_eq!((links(&before.3), links(&pins())), (1, 1));
        assert_in_force(&site);
        assert_eq!(Stats::read(&site.host, INSTANCE).generation(), 1);

        // Once the way is free the same policy goes through.
        drop(other);
        let all = policy(&["uplink", "second", "third"]) + &rule("more", 2002, "drop");
        agent.swap(&all);
        assert_eq!(attached(&site.host), ["uplink", "second", "third"]);
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}
