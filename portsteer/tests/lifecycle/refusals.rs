//! What the kernel or its present state refuses: exit code 3, the reason, what to do about it, and
//! nothing half attached.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use portsteer::{
    lab::{self, End, Namespace, Tap, TapKind, Veth},
    netlink::XdpMode,
};
use portsteer_testkit::{
    agent::{Agent, Outcome, binary, policy_file, run, run_agent},
    sandbox::{assert_no_pins, sandbox},
    site::{HOST_V4, Site, attach_other_program},
};

use crate::{INSTANCE, assert_all_off, attached, policy, policy_in};

/// Starts an agent that must be refused and leave nothing.
fn refused(site: &Site, policy: &str, said: &[&str]) {
    let before = attached(&site.host);
    run_agent(&site.host, INSTANCE, policy).expect(3, said);
    assert_eq!(attached(&site.host), before);
    assert_no_pins();
}

#[test]
fn interfaces_that_do_not_exist_are_waited_for_with_a_suggestion() {
    sandbox(|| {
        let site = Site::quiet();
        let waits = |interfaces: &[&str], said: &[&str]| {
            let mut agent = Agent::launch(&site.host, INSTANCE, &policy(interfaces), &[]);
            said.iter().for_each(|said| agent.wait_for_log(said, 1));
            agent.end(libc::SIGINT);
            assert_all_off(&site);
        };
        waits(
            &["uplnik"],
            &[
                "waiting for `uplnik`, which does not exist; did you mean `uplink`?",
                "waits for its",
            ],
        );
        // The others are attached.
        waits(&["uplink", "uplnik"], &["attached to uplink", "waiting for `uplnik`", "in force:"]);
        waits(&["wlan0"], &["waiting for `wlan0`, which does not exist; there are: lo, uplink"]);
        waits(&["eth*"], &["waiting for `eth*`"]);
    });
}

#[test]
fn a_device_without_ethernet_is_refused_and_a_glob_leaves_it_out() {
    sandbox(|| {
        let site = Site::quiet();
        let _tun = Tap::create(&site.host, "up-tun", TapKind::Tun).unwrap();
        let said = ["`up-tun` carries no Ethernet frames", "the device below it"];
        refused(&site, &policy_in("generic", &["up-tun"]), &said);
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["up*"]));
        assert_eq!(attached(&site.host), ["uplink"]);
        drop(agent);
    });
}

#[test]
fn without_privileges_every_command_says_so() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("portsteer");
        fs::copy(binary(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = policy_file(directory.path(), &policy(&["uplink"]));
        let path = path.to_str().unwrap();

        run_as_nobody(&site.host, &program, &["check", path]).expect(0, &["fine"]);
        let said = ["not permitted", "run portsteer as root"];
        run_as_nobody(&site.host, &program, &["agent", "--policy", path]).expect(3, &said);
        assert_all_off(&site);

        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        for command in ["status", "stats", "detach"] {
            run_as_nobody(&site.host, &program, &[command]).expect(3, &said);
        }
        assert_eq!(attached(&site.host), ["uplink"]);
        run(&site.host, &["status"]).expect(0, &[]);
        drop(agent);
    });
}

/// Runs a program as user 65534, without any capability.
fn run_as_nobody(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Outcome {
    // From a thread inside the namespace: nobody may not enter it.
    namespace.run(|| {
        let mut command = Command::new(program);
        command.args(arguments).uid(65_534).gid(65_534).stdin(Stdio::null());
        // A test beside this one may have forked while the program's copy was open for writing,
        // and hold it until its exec.
        while let Err(error) = Command::new(program).arg("--version").output() {
            assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy, "{error}");
        }
        Outcome::of(&mut command)
    })
}

#[test]
fn without_a_bpffs_the_mount_command_is_told() {
    sandbox(|| {
        let site = Site::quiet();
        lab::private_tmpfs(Path::new("/sys/fs/bpf")).unwrap();
        let said = [
            "no BPF file system is mounted on /sys/fs/bpf",
            "mount -t bpf -o mode=0700 bpf /sys/fs/bpf",
        ];
        refused(&site, &policy(&["uplink"]), &said);
        for command in ["status", "stats", "detach"] {
            run(&site.host, &[command]).expect(3, &said);
        }
    });
}

#[test]
fn a_directory_of_another_user_is_not_trusted() {
    sandbox(|| {
        let site = Site::quiet();
        let all = Path::new("/sys/fs/bpf/portsteer");
        let own = all.join(INSTANCE);
        for foreign in [all, &own] {
            fs::create_dir_all(&own).unwrap();
            chown(foreign, Some(65_534), None).unwrap();
            let said = [foreign.to_str().unwrap(), "it belongs to user 65534", "rm -r"];
            run_agent(&site.host, INSTANCE, &policy(&["uplink"])).expect(3, &said);
            fs::remove_dir_all(all).unwrap();
        }
    });
}

#[test]
fn another_xdp_program_is_left_alone() {
    sandbox(|| {
        for other_mode in [XdpMode::Native, XdpMode::Generic] {
            let site = Site::quiet();
            let other = attach_other_program(&site.cable.right, other_mode);
            let before = site.xdp();
            assert_eq!(before.map(|xdp| xdp.mode), Some(other_mode));
            for mode in ["auto", "native", "generic"] {
                let policy = policy_in(mode, &["uplink"]);
                refused(&site, &policy, &["another XDP program", "`uplink`", "take it off first"]);
                assert_eq!(site.xdp(), before, "the other program is still there");
            }
            drop(other);
            let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
            assert_eq!(agent.end(libc::SIGINT).0.code(), Some(0));
            assert_all_off(&site);
        }
    });
}

/// A host whose device has fewer queues for receiving than its peer has for sending, which
/// native XDP on veth refuses (`veth_xdp_set` in the kernel's drivers/net/veth.c).
fn narrow_site() -> Site {
    let site = Site::quiet();
    let Site { client, host, cable } = site;
    cable.right.delete().unwrap();
    let cable = Veth::between(
        End::new(&client, "client").address(portsteer_testkit::site::CLIENT_V4, 24),
        End::new(&host, "uplink").address(HOST_V4, 24).rx_queues(1),
    )
    .queues(2)
    .static_neighbors()
    .create()
    .unwrap();
    Site { client, host, cable }
}

#[test]
fn native_mode_that_the_driver_refuses_is_refused_with_the_reason() {
    sandbox(|| {
        let site = narrow_site();
        let said = ["`uplink` refuses native mode", "too few receive queues", "mode = \"generic\""];
        refused(&site, &policy(&["uplink"]), &said);
        assert_all_off(&site);
    });
}

#[test]
fn auto_mode_falls_back_to_generic_and_says_why() {
    sandbox(|| {
        let site = narrow_site();
        let agent = Agent::start(&site.host, INSTANCE, &policy_in("auto", &["uplink"]));
        let log = agent.log();
        assert!(log.contains("attached to uplink (generic mode)"), "{log}");
        assert!(log.contains("generic mode, because `uplink` refuses native mode"), "{log}");
        assert!(log.contains("too few receive queues"), "{log}");
        assert_eq!(site.xdp_mode(), Some(XdpMode::Generic));
        run(&site.host, &["status", "--json"]).expect(0, &["\"mode\": \"generic\""]);
        crate::assert_in_force(&site);
    });
}

#[test]
fn auto_mode_prefers_native() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::start(&site.host, INSTANCE, &policy_in("auto", &["uplink"]));
        assert!(agent.log().contains("attached to uplink (native mode)"), "{}", agent.log());
        assert_eq!(site.xdp_mode(), Some(XdpMode::Native));
    });
}

#[test]
fn more_interfaces_than_slots_are_refused_whole() {
    sandbox(|| {
        let host = Namespace::new().unwrap();
        let pairs = portsteer_common::INTERFACE_SLOTS as usize / 2 + 1;
        for index in 0..pairs {
            let name = |side| format!("{side}{index}");
            Veth::between(End::new(&host, &name("a")), End::new(&host, &name("b")))
                .create()
                .unwrap();
        }
        let said = format!("match {} devices", 2 * pairs);
        run_agent(&host, INSTANCE, &policy(&["a*", "b*"])).expect(3, &[&said]);
        assert_eq!(attached(&host), [] as [String; 0]);
        assert_no_pins();
    });
}
