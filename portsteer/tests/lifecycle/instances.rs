//! Several agents, several instances, and pins that are not what they should be.

use std::{fs, os::fd::AsFd as _, path::Path};

use portsteer::dataplane::sys::{self, MapShape, map_type};
use portsteer_testkit::{
    agent::{Agent, run, run_agent},
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::{INSTANCE, another_device, assert_all_off, assert_in_force, attached, policy};

const DIRECTORY: &str = "/sys/fs/bpf/portsteer/main";

#[test]
fn a_second_agent_on_the_same_instance_is_refused() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let pid = format!("process {}", agent.pid());
        run_agent(&site.host, INSTANCE, &policy(&["uplink"]))
            .expect(3, &["another agent", &pid, "instance `main`"]);
        assert_in_force(&site);
        // Also where it asks for something else.
        another_device(&site, "second");
        run_agent(&site.host, INSTANCE, &policy(&["second"])).expect(3, &["another agent", &pid]);
        assert_eq!(attached(&site.host), ["uplink"]);
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn two_instances_live_side_by_side() {
    sandbox(|| {
        let site = Site::quiet();
        another_device(&site, "second");
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let other = Agent::start(&site.host, "other", &policy(&["second"]));
        assert_eq!(attached(&site.host), ["uplink", "second"]);
        run(&site.host, &["status"]).expect(0, &["uplink"]);
        run(&site.host, &["status", "--instance", "other"]).expect(0, &["second"]);
        other.end(libc::SIGINT);
        assert_eq!(attached(&site.host), ["uplink"]);
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn an_interface_of_another_instance_is_busy() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let before = site.xdp();
        run_agent(&site.host, "other", &policy(&["uplink"]))
            .expect(3, &["another XDP program", "`uplink`"]);
        assert_eq!(site.xdp(), before);
        assert!(!Path::new("/sys/fs/bpf/portsteer/other").exists());
        assert_in_force(&site);
        drop(agent);
    });
}

#[test]
fn an_instance_of_another_network_namespace_is_refused() {
    sandbox(|| {
        let (site, elsewhere) = (Site::quiet(), Site::quiet());
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_eq!(agent.end(libc::SIGTERM).0.code(), Some(0));
        run_agent(&elsewhere.host, INSTANCE, &policy(&["uplink"]))
            .expect(3, &["another network namespace", "--instance"]);
        assert_eq!(elsewhere.xdp(), None);
        assert_in_force(&site);
    });
}

#[test]
fn a_map_of_another_shape_is_refused_and_detach_cleans_up() {
    sandbox(|| {
        let site = Site::quiet();
        leave_dataplane(&site);
        let policy = Path::new(DIRECTORY).join("policy");
        fs::remove_file(&policy).unwrap();
        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 64,
            max_entries: 2,
            flags: 0,
        };
        let map = sys::map_create("policy", shape, None).unwrap();
        sys::pin(map.as_fd(), &policy).unwrap();
        refused_until_detached(&site, "the map `policy`");
    });
}

#[test]
fn a_missing_map_is_refused_and_detach_cleans_up() {
    sandbox(|| {
        let site = Site::quiet();
        leave_dataplane(&site);
        fs::remove_file(Path::new(DIRECTORY).join("retired")).unwrap();
        refused_until_detached(&site, "the map `retired` is missing");
    });
}

#[test]
fn a_garbled_manifest_is_refused_and_detach_cleans_up() {
    sandbox(|| {
        let site = Site::quiet();
        leave_dataplane(&site);
        garble_manifests();
        refused_until_detached(&site, "the manifest");
    });
}

#[test]
fn a_missing_manifest_is_refused_and_detach_cleans_up() {
    sandbox(|| {
        let site = Site::quiet();
        leave_dataplane(&site);
        for bank in 0..2 {
            let _ = fs::remove_file(Path::new(DIRECTORY).join(format!("manifest_{bank}")));
        }
        refused_until_detached(&site, "manifest_");
    });
}

/// An agent that has come and gone.
fn leave_dataplane(site: &Site) {
    let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
    assert_in_force(site);
    assert_eq!(agent.end(libc::SIGTERM).0.code(), Some(0));
}

/// Overwrites the start of whichever manifests there are.
fn garble_manifests() {
    let mut garbled = 0;
    for bank in 0..2 {
        let path = Path::new(DIRECTORY).join(format!("manifest_{bank}"));
        let Ok(map) = sys::open_pin(&path) else { continue };
        let shape = sys::map_shape(map.as_fd()).unwrap();
        let mut value = vec![b'!'; shape.value_size as usize];
        value[..8].copy_from_slice(&100_u64.to_ne_bytes());
        sys::map_update(map.as_fd(), 0, &value).unwrap();
        garbled += 1;
    }
    assert!(garbled > 0, "there is no manifest");
}

/// The agent and the listings refuse, the program stays where it is, and `detach` takes it off.
fn refused_until_detached(site: &Site, said: &str) {
    let before = site.xdp();
    let help = "portsteer detach --instance main";
    let said = ["holds pins of another layout", said, help];
    run_agent(&site.host, INSTANCE, &policy(&["uplink"])).expect(3, &said);
    for command in ["status", "stats"] {
        run(&site.host, &[command]).expect(3, &said);
    }
    assert_eq!(site.xdp(), before, "what was there is still there");
    run(&site.host, &["detach"]).expect(0, &["detached from uplink"]);
    assert_all_off(site);
    let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
    assert_in_force(site);
    agent.end(libc::SIGINT);
    assert_all_off(site);
}

#[test]
fn detach_beside_an_agent_is_noticed_and_sighup_attaches_again() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        run(&site.host, &["detach"]).expect(0, &["detached from uplink"]);
        assert_eq!(site.xdp(), None);
        agent.wait_for_log("detached from outside; SIGHUP", 1);
        assert_all_off(&site);

        agent.signal(libc::SIGHUP);
        agent.wait_for_log("in force:", 2);
        assert_in_force(&site);
        // This time it is told before it looks by itself.
        run(&site.host, &["detach"]).expect(0, &[]);
        agent.signal(libc::SIGHUP);
        agent.wait_for_log("in force:", 3);
        assert_in_force(&site);
        assert_eq!(agent.end(libc::SIGINT).0.code(), Some(0));
        assert_all_off(&site);
    });
}

#[test]
fn an_agent_whose_dataplane_was_detached_ends_in_peace() {
    sandbox(|| {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let site = Site::quiet();
            let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
            run(&site.host, &["detach"]).expect(0, &[]);
            let (status, log) = agent.end(signal);
            assert_eq!(status.code(), Some(0), "{log}");
            assert_all_off(&site);
        }
    });
}

#[test]
fn an_instance_may_be_taken_by_another_agent_after_detach() {
    sandbox(|| {
        let site = Site::quiet();
        let mut first = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        run(&site.host, &["detach"]).expect(0, &[]);
        let second = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        first.wait_for_log("detached from outside", 1);
        // The first may not have it back.
        let said = first.hang_up_refused();
        assert!(said.contains(&format!("process {}", second.pid())), "{said}");
        assert_eq!(first.end(libc::SIGINT).0.code(), Some(0));
        wait_until("the second is unharmed", || site.xdp().is_some());
        assert_in_force(&site);
        second.end(libc::SIGINT);
        assert_all_off(&site);
    });
}
