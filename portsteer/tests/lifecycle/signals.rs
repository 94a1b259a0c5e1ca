//! SIGTERM leaves the dataplane in force, SIGINT takes it off, SIGHUP reads the policy again.

use std::{fs, os::unix::net::UnixDatagram, time::Duration};

use portsteer_testkit::{
    agent::{Agent, Stats, binary, policy_file, run},
    sandbox::sandbox,
    site::Site,
};

use crate::{INSTANCE, assert_all_off, assert_in_force, policy, rule};

#[test]
fn sigterm_leaves_the_dataplane_in_force() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_in_force(&site);
        let (attached, counted) = (site.xdp(), Stats::read(&site.host, INSTANCE));
        assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
        assert!(agent.log().contains("the dataplane stays in force"), "{}", agent.log());
        assert_eq!(site.xdp(), attached);
        run(&site.host, &["status"]).expect(0, &["uplink", "attached"]);
        assert_in_force(&site);
        assert!(Stats::read(&site.host, INSTANCE).rule("blocked") > counted.rule("blocked"));

        agent.restart();
        assert!(agent.log().contains("still on uplink"), "{}", agent.log());
        assert_eq!(site.xdp(), attached);
        assert_in_force(&site);
        assert_eq!(Stats::read(&site.host, INSTANCE).rule("blocked"), 3);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn sigint_takes_the_dataplane_off() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_in_force(&site);
        let (status, log) = agent.end(libc::SIGINT);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("interrupted; detached from uplink"), "{log}");
        assert_all_off(&site);
        run(&site.host, &["status"]).expect(1, &[]);
    });
}

#[test]
fn the_dataplane_is_taken_off_when_its_time_is_up() {
    sandbox(|| {
        let site = Site::quiet();
        let policy = policy(&["uplink"]);
        let mut agent = Agent::start_with(&site.host, INSTANCE, &policy, &["--for", "1s"]);
        assert!(agent.log().contains("taking it off after 1s"), "{}", agent.log());
        assert_eq!(agent.wait().code(), Some(0));
        assert!(agent.log().contains("the time is up; detached from uplink"), "{}", agent.log());
        assert_all_off(&site);
    });
}

#[test]
fn a_trial_ends_with_the_agent_whatever_signal_ends_it() {
    sandbox(|| {
        let site = Site::quiet();
        for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM] {
            let policy = policy(&["uplink"]);
            let agent = Agent::start_with(&site.host, INSTANCE, &policy, &["--for", "60s"]);
            assert_in_force(&site);
            let (status, log) = agent.end(signal);
            assert_eq!(status.code(), Some(0), "signal {signal}: {log}");
            assert!(log.contains("ended before its time"), "signal {signal}: {log}");
            assert_all_off(&site);
        }
    });
}

#[test]
fn a_status_without_any_attached_interface_is_a_negative_answer() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        run(&site.host, &["status"]).expect(0, &["uplink", "attached"]);
        agent.stop(libc::SIGTERM);
        site.cable.left.delete().expect("the cable can be removed");
        run(&site.host, &["status"]).expect(1, &["uplink", "gone"]);
        run(&site.host, &["detach"]).expect(0, &["detached from uplink"]);
    });
}

#[test]
fn an_answer_that_cannot_be_written_is_no_success() {
    sandbox(|| {
        let site = Site::quiet();
        let _agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let full = fs::File::create("/dev/full").expect("a device");
        let output = site
            .host
            .command(binary())
            .args(["stats", "--json", "--instance", INSTANCE])
            .stdout(full)
            .output()
            .expect("a process");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(error.contains("writing the answer"), "{error}");
    });
}

#[test]
fn sighup_with_a_bad_file_changes_nothing() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        assert_in_force(&site);
        let bad = policy(&["uplink"]).replace("2000", "70000");
        for (round, (text, said)) in [
            (bad.as_str(), "70000"),
            ("", "version"),
            (&policy(&["uplnik"]), "did you mean `uplink`?"),
            (&policy(&["no*"]), "no interface matches"),
            (&policy(&["uplink", "lo"]), "`lo`"),
        ]
        .into_iter()
        .enumerate()
        {
            let log = agent.swap_refused(text);
            assert!(log.contains("error") && log.contains(said), "{said:?} is not in {log}");
            assert_in_force(&site);
            let stats = Stats::read(&site.host, INSTANCE);
            assert_eq!((stats.generation(), stats.rule("blocked")), (1, round as u64 + 2));
        }

        // A good file afterwards is taken, and the rule goes on counting.
        agent.swap(&(policy(&["uplink"]) + &rule("more", 2002, "drop")));
        let stats = Stats::read(&site.host, INSTANCE);
        assert_eq!((stats.generation(), stats.rule("blocked")), (2, 6));
        assert_in_force(&site);
    });
}

#[test]
fn sighup_after_the_policy_file_has_vanished_changes_nothing() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        fs::remove_file(agent.policy_path()).unwrap();
        let said = agent.hang_up_refused();
        assert!(said.contains("policy.toml") && said.contains("No such file"), "{said}");
        assert_in_force(&site);
        agent.swap(&policy(&["uplink"]));
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn many_sighups_at_once_do_no_harm() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        for _ in 0..50 {
            agent.signal(libc::SIGHUP);
        }
        agent.swap(&(policy(&["uplink"]) + &rule("last", 2002, "drop")));
        portsteer_testkit::site::wait_until("the last policy is in force", || {
            Stats::read(&site.host, INSTANCE).has_rule("last")
        });
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn a_service_manager_hears_that_the_agent_lives() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify.sock");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let file = policy_file(directory.path(), &policy(&["uplink"]));
        let mut agent = site
            .host
            .command(binary())
            .args(["agent", "--ephemeral", "--instance", INSTANCE, "--policy"])
            .arg(file)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "100000")
            .spawn()
            .unwrap();
        let mut said: Vec<String> = Vec::new();
        let count = |said: &[String], what: &str| said.iter().filter(|text| *text == what).count();
        while count(&said, "READY=1") < 1 || count(&said, "WATCHDOG=1") < 5 {
            let mut message = [0; 64];
            let len = manager.recv(&mut message).expect("a sign of life");
            said.push(String::from_utf8_lossy(&message[..len]).trim().to_owned());
        }
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(agent.id().cast_signed()),
            nix::sys::signal::Signal::SIGINT,
        )
        .unwrap();
        assert!(agent.wait().unwrap().success());
        assert_all_off(&site);
    });
}
