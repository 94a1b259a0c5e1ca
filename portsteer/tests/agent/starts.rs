//! What an agent begins with: what runs, what was accepted, a policy file, or nothing.

use std::fs;

use portsteer_testkit::{
    agent::Agent,
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::{INSTANCE, attached, is_open, policy, status};

/// Has nothing pinned any more, as after the machine has started anew.
fn reboot(site: &Site, agent: &mut Agent) {
    agent.kill();
    fs::remove_dir_all("/sys/fs/bpf/portsteer").unwrap();
    wait_until("nothing is attached", || attached(&site.host).is_empty());
}

#[test]
fn a_machine_starts_with_the_policy_that_was_accepted_last() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        reboot(&site, &mut agent);
        agent.resume();
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (true, false));
        assert_eq!(agent.ask(&["show"]).stdout, policy(&["uplink"], 3000));
        // What was accepted before can still be gone back to.
        agent.ask(&["rollback"]).expect(0, &[]);
        assert_eq!((is_open(&site, 2000), is_open(&site, 3000)), (false, true));
    });
}

#[test]
fn without_anything_accepted_the_policy_file_is_what_there_is() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        reboot(&site, &mut agent);
        fs::remove_dir_all(agent.state()).unwrap();
        agent.resume();
        assert!(!is_open(&site, 2000));
        reboot(&site, &mut agent);
        fs::remove_dir_all(agent.state()).unwrap();
        fs::remove_file(agent.policy_path()).unwrap();
        agent.resume_without_waiting();
        agent.wait_for_log("nothing is in force yet", 1);
        wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
        assert_eq!(status(&agent)["state"], "nothing");
        assert!(is_open(&site, 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        assert!(!is_open(&site, 3000));
    });
}

#[test]
fn what_was_detached_by_hand_stays_off_until_somebody_applies() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        assert!(is_open(&site, 2000));
        assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
        agent.resume_without_waiting();
        agent.wait_for_log("taken off by hand since the machine started", 1);
        wait_until("the agent listens", || agent.ask(&["status"]).code == Some(1));
        assert_eq!(status(&agent)["state"], "detached");
        assert_eq!(attached(&site.host), [] as [String; 0]);
        agent.signal(libc::SIGHUP);
        agent.wait_for_log("in force:", 2);
        assert!(!is_open(&site, 2000));
        // The machine's next start is another matter.
        agent.ask(&["detach"]).expect(0, &["detached from uplink"]);
        agent.kill();
        fs::write(agent.state().join("detached"), "\"an earlier boot\"").unwrap();
        agent.resume();
        assert!(!is_open(&site, 2000));
    });
}

#[test]
fn every_thread_of_an_agent_is_confined_and_has_three_capabilities() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        agent.apply(&policy(&["uplink"], 3000), &[]);
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
        let mut count = 0;
        for thread in threads {
            // One that was idle for long may just have ended.
            let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else {
                continue;
            };
            count += 1;
            // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF (capabilities(7)).
            let three = format!("{:016x}", 1_u64 << 12 | 1 << 38 | 1 << 39);
            for (what, expected) in [
                ("Seccomp", "2"),
                ("NoNewPrivs", "1"),
                ("CapEff", three.as_str()),
                ("CapPrm", three.as_str()),
                ("CapInh", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
            ] {
                let line = format!("{what}:\t{expected}");
                assert!(status.lines().any(|it| it == line), "no {line:?} in {status}");
            }
        }
        assert!(count > 1, "the thread that has put the policy in force is missing");
    });
}
