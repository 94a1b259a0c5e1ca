//! A frame, judged by three policies: in the kernel, by the program's parser on the host, and by a reading of the
//! specification that shares no code with either.

use std::os::fd::{AsFd as _, OwnedFd};

use portsteer::{
    compile::Interrupt,
    dataplane::{Dataplane, Instance, Order, program_in_slot, sys},
    explain::captured,
    lab::{Device, End, Namespace, Veth},
    oracle::Packet,
    policy::{Action, Policy, file, services::Services},
};
use portsteer_common::{Reason, Verdict};
use portsteer_ebpf::{frame::Frame, parse::parse};

use crate::{
    ledger::{Entry, Ledger},
    outcome::{Cause, Outcome},
    reading,
};

/// The shortest frame that a test run takes, and the longest that it does not split.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=3_500;

/// Where frames come in.
const INTERFACE: &str = "dut";

/// Ports and protocols alone, for which the program has its smallest form.
const PORTS: &str = r#"
default = "pass"
[options]
fragments = "drop"
malformed = "drop"
unsupported = "pass"
[[rules]]
name = "nine"
dst_port = 9
action = "drop"
[[rules]]
name = "tcp-range"
protocol = "tcp"
dst_port = ["100-200", 65535]
action = "drop"
[[rules]]
name = "udp-zero"
protocol = ["udp", "sctp"]
dst_port = [0, "1024-4999"]
action = { steer = "rewritten" }
[[rules]]
name = "gre"
protocol = [47, 41, 4]
action = "drop"
[[rules]]
name = "ping"
protocol = "icmp"
action = { steer = "kept" }
[[rules]]
name = "canary"
dst_port = 61166
action = "drop"
"#;

/// Everything that a rule can ask for.
const RULES: &str = r#"
default = "drop"
[options]
fragments = "pass"
malformed = "pass"
unsupported = "drop"
[sets.some]
addresses = ["10.0.0.0/16", "192.0.2.0/25", "2001:db8:5::/48", "::1"]
[sets.others]
addresses = ["198.51.100.7", "2001:db8::/64", "10.0.0.1"]
[[rules]]
name = "from-some-to-others"
src = "@some"
dst = ["@others", "!10.0.0.1"]
dst_port = ["9", "100-200"]
action = "pass"
[[rules]]
name = "tagged"
vlan = [12, 4094]
protocol = ["tcp", "udp", "udplite"]
src_port = "0-1023"
action = { steer = "rewritten" }
[[rules]]
name = "elsewhere"
interface = "else*"
action = "drop"
[[rules]]
name = "from-nowhere"
src = ["0.0.0.0", "255.255.255.255", "::"]
action = "drop"
[[rules]]
name = "to-others"
dst = "@others"
protocol = ["tcp", "dccp", "sctp", 47]
action = "pass"
[[rules]]
name = "unreachable-ports"
protocol = ["icmp"]
icmp_type = ["3/1-4", "8"]
action = "drop"
[[rules]]
name = "echo-6"
protocol = ["icmpv6"]
icmp_type = ["128", "2"]
interface = "dut"
action = "pass"
[[rules]]
name = "untagged"
vlan = "untagged"
dst_port = ["5000-65534"]
src = "!@some"
action = { steer = "kept" }
[[rules]]
name = "canary"
dst_port = 61166
action = "pass"
"#;

/// A default that spares what the host cannot do without.
const SPARING: &str = r#"
default = "drop"
[options]
fragments = "drop"
malformed = "pass"
unsupported = "pass"
[[rules]]
name = "v6-only"
src = "::/0"
dst = ["::/0", "!2001:db8::/64"]
protocol = ["tcp", "udp"]
action = "pass"
[[rules]]
name = "odd-protocols"
protocol = [0, 43, 44, 50, 51, 59, 60, 135, 253, 255]
action = "pass"
"#;

/// Where the rules steer: the frame is rewritten, or kept.
const TARGETS: &str = "[targets.rewritten]\ninterface = \"out\"\nmac = \"02:00:00:00:00:99\"\n\
    [targets.kept]\ninterface = \"out\"\nmac = \"keep\"\n";

/// A policy in force on an interface of its own.
#[derive(Debug)]
struct Judge {
    policy: Policy,
    program: OwnedFd,
    ledger: Ledger,
    /// Where the targets lead.
    out: Device,
    _kept: (Dataplane, Namespace, [Veth; 2]),
}

impl Judge {
    fn new(name: &str, rest: &str) -> Self {
        // The keys of the file as a whole come before its tables.
        let (head, tables) = rest.split_at(rest.find("\n[").expect("a table"));
        let head = format!("version = 1\ninterfaces = [\"{INTERFACE}\"]{head}");
        let text = if rest.contains("steer") {
            [&head, "\n", TARGETS, tables].concat()
        } else {
            head + tables
        };
        let parsed = file::parse(&text, &Services::embedded());
        let policy = parsed.unwrap_or_else(|errors| panic!("{errors:#?}\n{text}")).policy;
        let namespace = Namespace::new().expect("root is needed: this makes namespaces");
        // Not a packet may come over the wire: the counters tell what a test run did.
        namespace.run(|| {
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                std::fs::write(path, "1").expect("IPv6 can be switched off");
            }
        });
        let pair = |left: &str, right: &str| {
            let end = |name: &str| End::new(&namespace, name);
            Veth::between(end(left), end(right)).create().expect("a veth pair")
        };
        let veths = [pair(INTERFACE, "peer"), pair("out", "far")];
        let instance = Instance::new(name).expect("a name");
        let order = Order::new(&policy, "fuzz.toml", &text);
        let dataplane = namespace.run(|| {
            let dataplane = Dataplane::lock(instance.clone()).expect("the instance is free");
            dataplane.apply(&order, &Interrupt::default()).expect("the policy can be put in force");
            dataplane
        });
        Self {
            program: program_in_slot(&instance, 0).expect("the attached program"),
            ledger: Ledger::open(&instance),
            out: veths[1].left.clone(),
            policy,
            _kept: (dataplane, namespace, veths),
        }
    }

    /// What the kernel does with a frame, and why.
    fn judge(&mut self, frame: &[u8]) -> Outcome {
        let (result, left) = sys::test_run_frame(self.program.as_fd(), frame).expect("a test run");
        let (outcome, returned) = match self.ledger.entry(frame.len()) {
            Entry::Rule(index) => {
                let rule = &self.policy.rules[index];
                let returned = match rule.action {
                    Action::Drop => Verdict::Drop,
                    Action::Pass => Verdict::Pass,
                    Action::Steer(_) => Verdict::Steer,
                };
                let cause = Cause::Rule(self.policy.label(rule));
                (Outcome { action: rule.action, cause }, returned)
            }
            Entry::Outcome(verdict, reason) => {
                let action = match verdict {
                    Verdict::Drop => Action::Drop,
                    Verdict::Pass => Action::Pass,
                    other => panic!("no rule has decided this: {other:?}"),
                };
                (Outcome { action, cause: Cause::Reason(reason) }, verdict)
            }
        };
        assert_eq!(result.action, returned as u32, "the verdict that is counted is the one given");
        let mut wanted = frame.to_vec();
        if let Action::Steer(target) = outcome.action
            && self.policy.target(target).name == "rewritten"
        {
            wanted[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
            wanted[6..12].copy_from_slice(&self.out.mac());
        }
        assert_eq!(left, wanted, "what else it does to a frame: {outcome:?}");
        outcome
    }
}

/// Policies in force, each on an interface of its own.
#[derive(Debug)]
pub struct Judges([Judge; 3]);

impl Judges {
    /// Puts them in force. Their pins are in the calling thread's mounts, which are to be private, and last.
    ///
    /// # Panics
    ///
    /// Without root.
    #[must_use]
    pub fn new() -> Self {
        Self([
            Judge::new("ports", PORTS),
            Judge::new("rules", RULES),
            Judge::new("sparing", SPARING),
        ])
    }

    /// Has a frame judged by everyone, and says by what each policy's verdict came. What is too short to be a frame,
    /// or too long for one buffer, nobody judges.
    ///
    /// # Panics
    ///
    /// If two of them are not of the same opinion.
    pub fn packet(&mut self, frame: &[u8]) -> Vec<Cause> {
        if !LENGTHS.contains(&frame.len()) {
            return Vec::new();
        }
        let (parsed, read) = (parsed(frame), reading::read(frame));
        assert_eq!(parsed, read, "parser (left) and reading (right) of {frame:02x?}");
        let causes = self.0.iter_mut().map(|judge| {
            let expected = reading::expect(&judge.policy, frame, INTERFACE);
            let judged = judge.judge(frame);
            assert_eq!(judged, expected, "kernel (left) and reading (right) of {frame:02x?}");
            judged.cause
        });
        causes.collect()
    }
}

impl Default for Judges {
    fn default() -> Self {
        Self::new()
    }
}

/// What the program's own parser, built for the host, makes of a frame.
///
/// # Errors
///
/// Why the rules cannot judge it.
pub fn parsed(frame: &[u8]) -> Result<Packet<'static>, Reason> {
    parse(&mut Frame::new(frame)).map(|headers| captured::packet(frame, headers))
}
