//! Somebody who never stops changing the policy, and somebody who talks nonsense to the agent. Whether there is an
//! agent is nobody's concern: commands that find none fail.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    ops::Range,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portsteer::lab::Namespace;
use portsteer_testkit::agent::{Outcome, binary};
use portsteer_testkit::random::Random;
use tempfile::TempDir;

use crate::{
    INSTANCE,
    deeds::Deeds,
    policies::{self, KINDS, SET},
};

/// The first of the ports that edited rules are for, how many there are, and those that the second cable has packets
/// for as well.
pub const EDITED_PORT: usize = 7000;
pub const EDITS: usize = 6;
pub const SECONDS_EDITS: Range<usize> = 0..3;

/// The longest time that a policy is on trial.
const TRIAL_SECONDS: usize = 2;

pub struct Operator<'a> {
    pub host: Namespace,
    pub socket: PathBuf,
    pub deeds: &'a Deeds,
    directory: TempDir,
}

impl<'a> Operator<'a> {
    pub fn new(host: &Namespace, socket: PathBuf, deeds: &'a Deeds) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        Self { host: host.clone(), socket, deeds, directory }
    }

    /// Does one thing after the other until it is over.
    pub fn work_until(&self, over: &AtomicBool, random: &mut Random) {
        while !over.load(Ordering::Relaxed) {
            match random.below(20) {
                0..5 => self.apply(random),
                5..7 => self.try_out(random),
                7..10 => self.add_rule(random),
                10..13 => self.remove_rule(random),
                13..16 => self.edit_set(random),
                16 => self.apply_nonsense(random),
                17 => {
                    self.ask("rollback", &["rollback"]);
                }
                _ => self.talk_nonsense(random),
            }
            thread::sleep(random.milliseconds(40));
        }
    }

    /// `portsteer ARGUMENTS`, to its end. Notes how that was.
    fn ask(&self, what: &'static str, arguments: &[&str]) -> Outcome {
        let mut all = arguments.to_vec();
        let socket = self.socket.to_str().expect("a path of text");
        all.extend(["--instance", INSTANCE, "--socket", socket]);
        let mut command = self.host.command(binary());
        let outcome = Outcome::of(command.env("SSH_CONNECTION", "").args(all));
        let ended = match outcome.code {
            Some(0) => "done",
            Some(1) => "in vain",
            Some(2) => "refused as written",
            Some(3) if outcome.stderr.contains("on trial") => "refused for a trial",
            Some(3) if outcome.stderr.contains("no agent answers") => "without an agent",
            Some(3) if outcome.stderr.contains("whether it took effect") => "cut short",
            Some(3) => "refused",
            _ => panic!("portsteer {arguments:?}: {outcome:#?}"),
        };
        outcome.expect(outcome.code.unwrap_or_default(), &[]);
        self.deeds.add(what, ended);
        outcome
    }

    fn policy_file(&self, random: &mut Random) -> String {
        let kind = random.below(KINDS);
        let path = self.directory.path().join(format!("policy-{kind}.toml"));
        fs::write(&path, policies::policy(kind, random)).expect("a policy file");
        path.to_str().expect("a path of text").to_owned()
    }

    fn apply(&self, random: &mut Random) {
        let path = self.policy_file(random);
        self.ask("applies", &["apply", &path]);
    }

    fn try_out(&self, random: &mut Random) {
        let path = self.policy_file(random);
        let seconds = format!("{}s", 1 + random.below(TRIAL_SECONDS));
        let applied = self.ask("trials begun", &["apply", &path, "--confirm", &seconds]);
        if applied.code != Some(0) {
            return;
        }
        thread::sleep(random.milliseconds(1_500));
        match random.below(3) {
            0 => drop(self.ask("trials confirmed", &["confirm"])),
            1 => drop(self.ask("trials rolled back", &["rollback"])),
            // It lapses, with or without an agent.
            _ => {
                self.deeds.add("trials left to lapse", "done");
                thread::sleep(Duration::from_secs(TRIAL_SECONDS as u64));
            }
        }
    }

    /// Half of the edits are written into the file that the policy in force came from.
    fn edit(&self, what: &'static str, mut arguments: Vec<&str>, random: &mut Random) {
        if random.once_in(2) {
            arguments.push("--save");
        }
        self.ask(what, &arguments);
    }

    fn add_rule(&self, random: &mut Random) {
        let number = random.below(EDITS);
        let (name, port) = (format!("edit-{number}"), format!("{}", EDITED_PORT + number));
        // Nothing that comes over the second cable goes to a CPU, whose queue would go on naming an interface that is
        // removed.
        let actions = ["pass", "drop", "steer=cpu"];
        let action = actions[random.below(if SECONDS_EDITS.contains(&number) { 2 } else { 3 })];
        let mut arguments = vec!["rule", "add", action, "--name", &name];
        arguments.extend(["--protocol", "udp", "--dst-port", &port]);
        arguments.extend(random.once_in(2).then_some("--first"));
        self.edit("rules added", arguments, random);
    }

    fn remove_rule(&self, random: &mut Random) {
        let name = format!("edit-{}", random.below(EDITS));
        self.edit("rules removed", vec!["rule", "remove", &name], random);
    }

    fn edit_set(&self, random: &mut Random) {
        let address = format!("192.0.2.{}", 1 + random.below(3));
        let (what, word) =
            random.pick(&[("set members added", "add"), ("set members removed", "remove")]);
        self.edit(what, vec!["set", word, SET, &address], random);
    }

    fn apply_nonsense(&self, random: &mut Random) {
        let path = self.policy_file(random);
        let text = fs::read_to_string(&path).expect("the policy");
        let wrong = match random.below(4) {
            0 => text.replace("version = 1", "version = 7"),
            1 => text.replace("{ steer = \"cpu\" }", "{ steer = \"nobody\" }"),
            2 => text.replace("\"uplink\"", "\"uplink\", \"missing\""),
            _ => text.replace("cpus = [0]", "cpus = [4095]"),
        };
        fs::write(&path, wrong).expect("a policy file");
        let outcome = self.ask("applies of what is no policy", &["apply", &path]);
        assert_ne!(outcome.code, Some(0), "it was applied: {outcome:#?}");
    }

    /// Bytes that are no request, or a part of one.
    fn talk_nonsense(&self, random: &mut Random) {
        const REQUEST: &[u8] = b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Type: \
            application/json\r\nContent-Length: 24\r\n\r\n{\"policy\":\"version = 7\"}";
        let mut bytes = REQUEST.to_vec();
        match random.below(3) {
            0 => bytes.iter_mut().for_each(|byte| *byte = random.number() as u8),
            1 => bytes.truncate(random.below(REQUEST.len())),
            _ => {
                for _ in 0..4 {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        let Ok(mut stream) = UnixStream::connect(&self.socket) else {
            return self.deeds.add("requests of nonsense", "without an agent");
        };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        // The agent may hang up, or be killed.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0; 256]);
        self.deeds.add("requests of nonsense", "sent");
    }
}
