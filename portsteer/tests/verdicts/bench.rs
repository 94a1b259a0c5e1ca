//! The test bench: the program, attached to an interface of its own, and frames to run it on.

use std::os::fd::{AsFd, OwnedFd};

use portsteer::{
    compile::Interrupt,
    dataplane::{
        Dataplane, Instance, Order, Stats, program_in_slot, read_stats,
        sys::{self, TestRun},
    },
    lab::{self, End, Namespace, Veth},
    oracle::{self, Packet},
    policy::{Action, Policy, TargetId, file, services::Services},
};
use portsteer_common::Reason;
pub use portsteer_testkit::outcome::{Cause, Outcome};
use portsteer_testkit::{fuzzing::packet::parsed, reading};

/// The interface that every frame comes in by.
const INTERFACE: &str = "dut";

/// A policy in force.
pub struct Bench {
    pub policy: Policy,
    instance: Instance,
    dataplane: Dataplane,
    program: OwnedFd,
    _namespace: Namespace,
    _veth: Veth,
    /// `out`, where [`TARGETS`] lead, and `far`.
    street: Veth,
}

/// Targets that policies may have: the frame is rewritten, kept, or handed to a CPU.
pub const TARGETS: &str = "[targets.rewritten]\ninterface = \"out\"\nmac = \"02:00:00:00:00:99\"\n\
    [targets.kept]\ninterface = \"out\"\nmac = \"keep\"\n[targets.cpu]\ncpus = [0]\n";
/// Their names, in that order.
pub const TARGET_NAMES: [&str; 3] = ["rewritten", "kept", "cpu"];

/// Runs a test body in private mounts, where its pins vanish with it.
pub fn on_bench(policy: &str, body: impl FnOnce(&mut Bench) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            lab::private_mounts().expect("root is needed: this test mounts a private bpffs");
            let mut bench = Bench::new(policy);
            body(&mut bench);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn parse_policy(text: &str) -> Policy {
    match file::parse(text, &Services::embedded()) {
        Ok(parsed) => parsed.policy,
        Err(errors) => panic!("{errors:#?}\n{text}"),
    }
}

impl Bench {
    fn new(text: &str) -> Self {
        let namespace = Namespace::new().expect("root is needed: this test makes namespaces");
        // Not a packet may come over the wire: the counters are read to see what a test run did.
        namespace.run(|| {
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                std::fs::write(path, "1").expect("IPv6 can be switched off");
            }
        });
        let veth = Veth::between(End::new(&namespace, INTERFACE), End::new(&namespace, "peer"))
            .create()
            .expect("a veth pair");
        let street = Veth::between(End::new(&namespace, "out"), End::new(&namespace, "far"))
            .create()
            .expect("a veth pair");
        let instance = Instance::new("verdicts").unwrap();
        let policy = parse_policy(text);
        let dataplane = namespace.run(|| {
            let dataplane = Dataplane::lock(instance.clone()).unwrap();
            dataplane
                .apply(&Order::new(&policy, "verdicts.toml", text), &Interrupt::default())
                .unwrap();
            dataplane
        });
        let program = program_in_slot(&instance, 0).unwrap();
        Self { policy, instance, dataplane, program, _namespace: namespace, _veth: veth, street }
    }

    /// Puts another policy in force.
    pub fn swap(&mut self, text: &str) {
        self.swap_to(parse_policy(text), text);
    }

    /// The same for one that was not read from its text. Rules without a name are named by their
    /// place.
    pub fn swap_to(&mut self, mut policy: Policy, text: &str) {
        for (index, rule) in policy.rules.iter_mut().enumerate() {
            rule.name.get_or_insert_with(|| format!("rule-{index}"));
        }
        self.policy = policy;
        let Self { dataplane, policy, .. } = self;
        self._namespace
            .run(|| {
                dataplane.apply(&Order::new(policy, "verdicts.toml", text), &Interrupt::default())
            })
            .unwrap();
        // A policy that asks for other features has another program.
        self.program = program_in_slot(&self.instance, 0).unwrap();
    }

    /// How many instructions the verifier followed.
    pub fn verified_instructions(&self) -> u32 {
        sys::verified_instructions(self.program.as_fd()).unwrap()
    }

    pub fn stats(&self) -> Stats {
        read_stats(&self.instance).unwrap()
    }

    /// Has the kernel judge a frame, and reads from the counters why.
    pub fn judge(&self, frame: &[u8]) -> Outcome {
        self.judge_split(frame, None).unwrap()
    }

    /// The same with a first buffer of this length.
    pub fn judge_split(&self, frame: &[u8], first: Option<u32>) -> std::io::Result<Outcome> {
        let before = self.stats();
        let (result, left) = match first {
            None => sys::test_run_frame(self.program.as_fd(), frame)?,
            Some(_) => {
                let run = TestRun { frame, repeat: 1, live: false, first_buffer: first };
                (sys::test_run(self.program.as_fd(), run)?, frame.to_vec())
            }
        };
        let outcome = read_outcome(&before, &self.stats(), frame.len() as u64);
        let (action, name) = match outcome.action {
            Action::Drop => (1, ""),
            Action::Pass => (2, ""),
            Action::Steer(id) => (4, self.policy.targets[usize::from(id.0)].name.as_str()),
        };
        assert_eq!(result.action, action, "the counted verdict is the one given: {frame:02x?}");
        if first.is_none() {
            let mut wanted = frame.to_vec();
            if name == "rewritten" {
                wanted[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
                wanted[6..12].copy_from_slice(&self.street.left.mac());
            }
            assert_eq!(left, wanted, "what else it does to a frame: {outcome:?}");
        }
        Ok(outcome)
    }

    /// What the parser on the host and the oracle say.
    pub fn expect(&self, frame: &[u8]) -> Outcome {
        match parsed(frame) {
            Ok(packet) => {
                let packet = Packet { interface: Some(INTERFACE), ..packet };
                Outcome::decided(&self.policy, oracle::judge(&self.policy, &packet))
            }
            Err(reason) => Outcome::not_judged(&self.policy, reason),
        }
    }

    /// What the reading that shares no code with the parser and the oracle say.
    pub fn expect_read(&self, frame: &[u8]) -> Outcome {
        reading::expect(&self.policy, frame, INTERFACE)
    }

    /// Judges a frame in the kernel, on the host and by the reading, which must agree: not only in the
    /// verdict, but in all that rules can ask for.
    pub fn agree(&self, frame: &[u8]) -> Outcome {
        let (parsed, read) = (parsed(frame), reading::read(frame));
        assert_eq!(parsed, read, "parser (left) and reading (right) disagree on {frame:02x?}");
        let judged = self.judge(frame);
        let (expected, read) = (self.expect(frame), self.expect_read(frame));
        assert_eq!(judged, expected, "kernel (left) and host (right) disagree on {frame:02x?}");
        assert_eq!(judged, read, "kernel (left) and reading (right) disagree on {frame:02x?}");
        judged
    }
}

/// Exactly one reason has grown, by one packet of this length, and a rule's counter if and
/// only if the reason is a rule.
pub fn read_outcome(before: &Stats, after: &Stats, len: u64) -> Outcome {
    let mut grown = after.reasons.iter().filter_map(|now| {
        let same = |then: &&portsteer::dataplane::ReasonStats| {
            then.reason == now.reason && then.verdict == now.verdict
        };
        let then = before.reasons.iter().find(same).map_or((0, 0), |r| (r.packets, r.bytes));
        (now.packets != then.0).then(|| (now, now.packets - then.0, now.bytes - then.1))
    });
    let (entry, packets, bytes) = grown.next().expect("a reason was counted");
    assert!(grown.next().is_none(), "one reason was counted");
    assert_eq!((packets, bytes), (1, len), "one packet with all its bytes");

    let mut rules = after
        .rules
        .iter()
        .zip(&before.rules)
        .filter(|(now, then)| now.packets != then.packets)
        .map(|(now, then)| (now.name.clone(), now.packets - then.packets, now.bytes - then.bytes));
    let rule = rules.next();
    assert!(rules.next().is_none(), "at most one rule counts a packet");
    let reason = *Reason::ALL.iter().find(|reason| reason.name() == entry.reason).unwrap();
    let cause = match rule {
        Some((name, packets, bytes)) => {
            assert_eq!((packets, bytes), (1, len), "one packet with all its bytes");
            assert_eq!(reason, Reason::Rule);
            Cause::Rule(name)
        }
        None => {
            assert_ne!(reason, Reason::Rule);
            Cause::Reason(reason)
        }
    };
    let target = read_target(before, after, len);
    let action = match &*entry.verdict {
        "pass" => Action::Pass,
        "drop" => Action::Drop,
        "steer" => Action::Steer(TargetId(target.expect("a target was counted") as u16)),
        other => panic!("the verdict {other}"),
    };
    assert_eq!(target.is_some(), entry.verdict == "steer", "only steered packets are a target's");
    Outcome { action, cause }
}

/// The index of the target that has grown, if one has: by one packet of this length.
fn read_target(before: &Stats, after: &Stats, len: u64) -> Option<usize> {
    let grown: Vec<usize> = (0..after.targets.len())
        .filter(|&index| after.targets[index].packets != before.targets[index].packets)
        .collect();
    assert!(grown.len() <= 1, "at most one target counts a packet");
    for (now, then) in after.targets.iter().zip(&before.targets) {
        assert_eq!(now.lost, then.lost, "nothing is lost");
    }
    let index = *grown.first()?;
    let (now, then) = (&after.targets[index], &before.targets[index]);
    assert_eq!((now.packets - then.packets, now.bytes - then.bytes), (1, len));
    Some(index)
}
