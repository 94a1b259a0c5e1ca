//! What another user can put where the pins belong: the kernel's BPF file system is writable for everybody unless
//! it is mounted with a mode. No command may follow it anywhere, nor remove anything but pins.

use std::{
    fs,
    os::{
        fd::AsFd as _,
        unix::fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use portsteer::dataplane::sys::{self, MapShape, map_type};
use portsteer_testkit::{
    agent::{Agent, Outcome, run, run_agent},
    sandbox::sandbox,
    site::Site,
};

use crate::{INSTANCE, assert_all_off, assert_in_force, attached, policy};

const ALL: &str = "/sys/fs/bpf/portsteer";
const OWN: &str = "/sys/fs/bpf/portsteer/main";

/// A tree that must not be touched, as another user's link may lead to.
struct Victim {
    directory: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("deep/deeper")).unwrap();
        for name in ["secret", "link_0", "policy", "deep/deeper/secret"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn assert_whole(&self) {
        for name in ["secret", "link_0", "policy", "deep/deeper/secret"] {
            assert_eq!(fs::read_to_string(self.path().join(name)).unwrap(), name);
        }
    }
}

/// What every command says where the pins are not portsteer's own.
fn every_command_refuses(site: &Site, said: &[&str]) {
    let mut outcomes: Vec<Outcome> = vec![run_agent(&site.host, INSTANCE, &policy(&["uplink"]))];
    for command in ["status", "stats", "detach"] {
        outcomes.push(run(&site.host, &[command]));
    }
    for outcome in outcomes {
        outcome.expect(3, said);
    }
    assert_eq!(attached(&site.host), [] as [String; 0]);
}

fn give_to_nobody(path: &Path) {
    std::os::unix::fs::lchown(path, Some(65_534), Some(65_534)).unwrap();
}

#[test]
fn a_link_in_the_place_of_the_directories_is_not_followed() {
    sandbox(|| {
        let site = Site::quiet();
        let victim = Victim::new();
        // In the place of the directory of all instances.
        symlink(victim.path(), ALL).unwrap();
        give_to_nobody(Path::new(ALL));
        every_command_refuses(&site, &[ALL, "it is a link", "rm -r"]);
        fs::remove_file(ALL).unwrap();
        // In the place of an instance's, which is in a directory of root's, and in one of another user's.
        for foreign in [false, true] {
            fs::create_dir(ALL).unwrap();
            symlink(victim.path(), OWN).unwrap();
            give_to_nobody(Path::new(OWN));
            if foreign {
                give_to_nobody(Path::new(ALL));
            }
            let said = if foreign { "it belongs to user 65534" } else { "it is a link" };
            every_command_refuses(&site, &[ALL, said]);
            fs::remove_file(OWN).unwrap();
            fs::remove_dir(ALL).unwrap();
        }
        victim.assert_whole();
    });
}

#[test]
fn what_others_may_write_to_is_not_used() {
    sandbox(|| {
        let site = Site::quiet();
        for writable in [ALL, OWN] {
            fs::create_dir_all(OWN).unwrap();
            fs::set_permissions(writable, fs::Permissions::from_mode(0o777)).unwrap();
            every_command_refuses(&site, &[writable, "others than its owner may write to it"]);
            fs::remove_dir(OWN).unwrap();
            fs::remove_dir(ALL).unwrap();
        }
        // Where others may only read, they could take the lock: that is mended.
        fs::create_dir_all(OWN).unwrap();
        fs::set_permissions(OWN, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        for directory in [ALL, OWN] {
            assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);
        }
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

#[test]
fn another_file_system_is_not_used() {
    sandbox(|| {
        let site = Site::quiet();
        for place in [ALL, OWN] {
            fs::create_dir_all(OWN).unwrap();
            portsteer::lab::private_tmpfs(Path::new(place)).unwrap();
            fs::create_dir_all(OWN).unwrap();
            fs::set_permissions(place, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(Path::new(OWN).join("precious"), "kept").unwrap();
            every_command_refuses(&site, &[place, "not in a BPF file system"]);
            assert_eq!(fs::read_to_string(Path::new(OWN).join("precious")).unwrap(), "kept");
            rustix::mount::unmount(place, rustix::mount::UnmountFlags::empty()).unwrap();
        }
    });
}

/// A service's user may be led astray itself: what is in its directory is no more to be followed than what is in
/// another user's.
#[test]
fn detach_removes_pins_and_nothing_else() {
    sandbox(|| {
        let site = Site::quiet();
        let victim = Victim::new();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        agent.kill();
        let own = Path::new(OWN);
        // Pins of another version, links to a tree and to a file, and directories with something in them.
        let shape = MapShape {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            flags: 0,
        };
        let map = sys::map_create("of_another", shape, None).unwrap();
        sys::pin(map.as_fd(), &own.join("of_another_version")).unwrap();
        for (name, target) in [
            ("tree", victim.path().to_owned()),
            ("link_7", victim.path().join("link_0")),
            ("counters_7_64", victim.path().to_owned()),
        ] {
            symlink(target, own.join(name)).unwrap();
        }
        fs::create_dir_all(own.join("link_9/inside")).unwrap();
        fs::create_dir(own.join("somebodys")).unwrap();
        sys::pin(map.as_fd(), &own.join("somebodys/pin")).unwrap();
        run(&site.host, &["detach"])
            .expect(0, &["detached from uplink", "left as it is", "link_9", "somebodys"]);
        victim.assert_whole();
        assert_eq!(attached(&site.host), [] as [String; 0]);
        let mut left: Vec<PathBuf> =
            fs::read_dir(own).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [own.join("link_9"), own.join("somebodys")]);
        assert!(own.join("link_9/inside").exists() && own.join("somebodys/pin").exists());
        // Nothing is attached any more, whatever lies about.
        run(&site.host, &["status"]).expect(1, &["is not attached to anything"]);
    });
}

/// Whatever an agent meets in the place of its pins while it runs, it goes on with those that it has opened.
#[test]
fn an_agent_is_not_led_elsewhere_while_it_runs() {
    sandbox(|| {
        let site = Site::quiet();
        let victim = Victim::new();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        let aside = Path::new("/sys/fs/bpf/portsteer/aside");
        fs::rename(OWN, aside).unwrap();
        symlink(victim.path(), OWN).unwrap();
        for port in [2001, 2002, 2003] {
            agent.swap(&format!("{}{}", policy(&["uplink"]), crate::rule("more", port, "drop")));
        }
        victim.assert_whole();
        for command in ["status", "stats", "detach"] {
            run(&site.host, &[command]).expect(3, &["it is a link"]);
        }
        victim.assert_whole();
        fs::remove_file(OWN).unwrap();
        fs::rename(aside, OWN).unwrap();
        assert_in_force(&site);
        agent.end(libc::SIGINT);
        assert_all_off(&site);
    });
}

/// Pins are found by their names alone, and a name may be a link to another pin.
#[test]
fn a_pin_that_is_a_link_is_not_opened() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::start(&site.host, INSTANCE, &policy(&["uplink"]));
        agent.kill();
        let own = Path::new(OWN);
        fs::rename(own.join("policy"), own.join("elsewhere")).unwrap();
        symlink(own.join("elsewhere"), own.join("policy")).unwrap();
        run(&site.host, &["status"]).expect(3, &["`policy`", "it is no pin"]);
        fs::remove_file(own.join("policy")).unwrap();
        fs::rename(own.join("elsewhere"), own.join("policy")).unwrap();
        run(&site.host, &["status"]).expect(0, &["uplink"]);
        run(&site.host, &["detach"]).expect(0, &["detached from uplink"]);
        assert_all_off(&site);
    });
}
