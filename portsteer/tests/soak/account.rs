//! What became of every packet.

use std::fmt::Write as _;

use portsteer::dataplane::{Stats, TargetLosses};
use portsteer_common::Reason;

use crate::{
    policies::{self, Decider},
    second::AtEnds,
    traffic::Ledger,
};

/// How many frames a veth device's queue holds (`VETH_RING_SIZE`), which it discards in silence when it goes down.
const RING: u64 = 256;

/// All that was counted, by whomever.
pub struct Counts {
    /// By those who sent, for both cables.
    pub sent: [Ledger; 2],
    /// By the devices at the cables' ends.
    pub ends: [AtEnds; 2],
    /// How often the second cable's end at the host went down.
    pub downs: u64,
    /// By portsteer.
    pub stats: Stats,
    /// By a socket: what came to the host's stack over the first cable, and over any.
    pub to_stack: [u64; 2],
    /// By a program at the sink, for the targets `sink` and `other-sink`, and by its device.
    pub at_sink: [u64; 2],
    pub strayed: u64,
    pub sink_received: u64,
}

impl Counts {
    fn reason(&self, verdict: &str, reason: &str) -> u64 {
        let reasons = self.stats.reasons.iter();
        reasons.filter(|it| it.verdict == verdict && it.reason == reason).map(|it| it.packets).sum()
    }

    /// All with a verdict, over both interfaces.
    fn verdict(&self, verdict: &str) -> u64 {
        let reasons = self.stats.reasons.iter();
        reasons.filter(|it| it.verdict == verdict).map(|it| it.packets).sum()
    }

    fn rule(&self, name: &str) -> u64 {
        self.stats.rules.iter().filter(|it| it.name == name).map(|it| it.packets).sum()
    }

    fn lost(&self, target: &str) -> TargetLosses {
        let target = self.stats.targets.iter().find(|it| it.name == target);
        target.expect("a target of all policies").lost
    }

    /// What was judged on the first interface: in all, passed, dropped, steered, aborted.
    fn on_the_first(&self) -> [u64; 5] {
        let uplink = self.stats.interfaces.iter().find(|it| it.name == "uplink");
        let uplink = uplink.expect("the first interface");
        [uplink.packets, uplink.passed, uplink.dropped, uplink.steered, uplink.aborted]
    }

    /// The same on the second, in all its lives.
    fn on_the_second(&self) -> [u64; 5] {
        let first = self.on_the_first();
        let by_verdict = ["pass", "drop", "steer", "abort"].map(|it| self.verdict(it));
        let all = by_verdict.iter().sum();
        let mut both = [all, by_verdict[0], by_verdict[1], by_verdict[2], by_verdict[3]];
        for (both, first) in both.iter_mut().zip(first) {
            // A difference below zero is a sum that does not hold.
            *both = both.wrapping_sub(first);
        }
        both
    }
}

/// The account: a table, and the sums that do not hold.
#[derive(Debug, Default)]
pub struct Account {
    pub table: String,
    pub wrong: Vec<String>,
}

impl Account {
    fn head(&mut self, text: &str) {
        let _ = writeln!(self.table, "  {text}");
    }

    fn line(&mut self, depth: usize, text: &str, count: u64) {
        let text = format!("{}{text}", "  ".repeat(depth + 2));
        let _ = writeln!(self.table, "{text:<66}{count:>14}");
    }

    /// A sum that has to hold.
    fn equal(&mut self, what: &str, sides: [(&str, u64); 2]) {
        let [(left, a), (right, b)] = sides;
        if a != b {
            let difference = i128::from(a) - i128::from(b);
            self.wrong.push(format!("{what}: {left} {a}, {right} {b}, difference {difference}"));
        }
    }

    fn at_most(&mut self, what: &str, count: u64, most: u64) {
        if count > most {
            self.wrong.push(format!("{what}: {count}, and at most {most} can be"));
        }
    }

    pub fn of(counts: &Counts) -> Self {
        let mut account = Self::default();
        account.first_cable(counts);
        account.second_cable(counts);
        account.rules(counts);
        account.targets(counts);
        account.stack(counts);
        account
    }

    fn sent(&mut self, ledger: &Ledger) {
        self.line(0, "sent", ledger.sent.all());
        for (kind, sent) in &ledger.by_kind {
            self.line(1, kind, sent.all());
        }
        let by_kind: u64 = ledger.by_kind.values().map(|sent| sent.all()).sum();
        self.equal("kinds of packets", [("sent", ledger.sent.all()), ("by kind", by_kind)]);
    }

    fn verdicts(&mut self, what: &str, judged: [u64; 5]) {
        let [all, passed, dropped, steered, aborted] = judged;
        self.line(0, "judged by portsteer", all);
        self.line(1, "passed", passed);
        self.line(1, "dropped", dropped);
        self.line(1, "steered", steered);
        let sum = passed.wrapping_add(dropped).wrapping_add(steered).wrapping_add(aborted);
        self.equal(what, [("judged", all), ("passed, dropped, steered and aborted", sum)]);
        self.equal(what, [("aborted", aborted), ("expected", 0)]);
    }

    /// Nothing may be missing: it was there, and attached, all the time.
    fn first_cable(&mut self, counts: &Counts) {
        let (ledger, ends) = (&counts.sent[0], counts.ends[0]);
        self.head("the first cable, which stays");
        self.sent(ledger);
        self.line(0, "lost: no room in the interface's queue", ledger.sent.overrun);
        self.line(0, "received by the interface", ends.received);
        let what = "the first cable";
        self.equal(what, [("sent to nobody", ledger.sent.unheard), ("expected", 0)]);
        self.equal(
            what,
            [
                ("not taken, as the tracepoint tells,", ledger.sent.overrun + ledger.sent.unheard),
                ("as the device does", ends.not_taken),
            ],
        );
        self.equal(what, [("queued", ledger.sent.queued), ("received", ends.received)]);
        let judged = counts.on_the_first();
        self.equal(what, [("received", ends.received), ("judged", judged[0])]);
        self.verdicts(what, judged);
    }

    /// What its interface holds when it goes down is lost, and what comes while nothing is attached is not judged.
    fn second_cable(&mut self, counts: &Counts) {
        let (ledger, ends) = (&counts.sent[1], counts.ends[1]);
        let judged = counts.on_the_second();
        self.head("the second cable, which comes and goes");
        self.sent(ledger);
        self.line(0, "lost: the interface was down", ledger.sent.unheard);
        self.line(0, "lost: no room in the interface's queue", ledger.sent.overrun);
        let in_queue = ledger.sent.queued.wrapping_sub(ends.received);
        self.line(0, "lost: in the queue when the interface went down", in_queue);
        self.line(0, "received by the interface", ends.received);
        let what = "the second cable";
        self.equal(
            what,
            [
                ("not taken, as the tracepoint tells,", ledger.sent.overrun + ledger.sent.unheard),
                ("as the device does", ends.not_taken),
            ],
        );
        self.at_most("lost in the second interface's queue", in_queue, counts.downs * RING);
        let unjudged = ends.received.wrapping_sub(judged[0]);
        self.line(0, "not judged: nothing was attached, or no policy for it in force", unjudged);
        self.at_most("judged on the second interface", judged[0], ends.received);
        self.verdicts(what, judged);
    }

    fn rules(&mut self, counts: &Counts) {
        let queued = |ledger: usize, decider: Decider| {
            counts.sent[ledger].queued.get(&decider).copied().unwrap_or(0)
        };
        self.head("by what decided, over both interfaces");
        let mut by_verdict = [("pass", 0), ("drop", 0), ("steer", 0)];
        for (verdict, in_beginning) in &mut by_verdict {
            self.line(0, verdict, counts.verdict(verdict));
            let action = |name: &str| {
                let rule = counts.stats.rules.iter().find(|it| it.name == name);
                rule.map_or("", |rule| rule.action.split(' ').next().unwrap_or_default())
            };
            for index in policies::rules() {
                let name = policies::rule_name(index);
                if action(name) == *verdict {
                    *in_beginning += counts.rule(name);
                    self.line(1, &format!("rule {name}"), counts.rule(name));
                }
            }
            let others = counts.reason(verdict, "rule").wrapping_sub(*in_beginning);
            self.line(1, "rules that come and go", others);
            self.at_most("rules of the beginning", *in_beginning, counts.reason(verdict, "rule"));
            for reason in &counts.stats.reasons {
                if reason.verdict == *verdict && reason.reason != "rule" {
                    self.line(1, &reason.reason, reason.packets);
                }
            }
        }

        // What decides whichever policy is in force: to the packet.
        for index in policies::rules() {
            let (name, decider) = (policies::rule_name(index), Decider::Rule(index));
            let mut counted = counts.rule(name);
            // Where its target was not there, it was not steered.
            for (rule, target) in [("steered", "sink"), ("second-steered", "other-sink")] {
                if name == rule {
                    let lost = counts.lost(target);
                    counted += lost.gone + lost.down + lost.mtu + lost.unresolved;
                }
            }
            let what = format!("rule {name}, whichever policy is in force");
            if policies::is_seconds(index) {
                self.at_most(&what, counted, queued(1, decider));
            } else {
                self.equal(&what, [("received", queued(0, decider)), ("counted", counted)]);
            }
        }
        for &reason in Reason::ALL {
            let received = queued(0, Decider::Reason(reason));
            if received > 0 || reason.fault().is_some() {
                let verdict = policies::verdict(reason);
                let counted = counts.reason(verdict, reason.name());
                let what = format!("reason {}, whichever policy is in force", reason.name());
                self.equal(&what, [("received", received), ("counted", counted)]);
            }
        }
    }

    /// What was handed to a target's interface came out at its other end.
    fn targets(&mut self, counts: &Counts) {
        self.head("steered");
        let (mut steered, mut refused, mut not_taken) = (0, 0, 0);
        let targets = [("sink", "steered"), ("other-sink", "second-steered")];
        for ((target, rule), arrived) in targets.into_iter().zip(counts.at_sink) {
            self.at_most(&format!("arrived, for target {target}"), arrived, counts.rule(rule));
            steered += counts.rule(rule);
            refused += counts.lost(target).refused;
            not_taken += counts.lost(target).device;
        }
        // Both lead to the same interface, which does not tell whose frames it loses.
        self.line(0, "to an interface, by two targets", steered);
        for ((target, _), arrived) in targets.into_iter().zip(counts.at_sink) {
            self.line(1, &format!("arrived, for target {target}"), arrived);
        }
        self.line(1, "lost: the kernel refused it, the interface was down", refused);
        self.line(1, "lost: no room in the interface's queue", not_taken);
        let arrived: u64 = counts.at_sink.iter().sum();
        let sum = arrived + refused + not_taken;
        self.equal("the sink", [("steered", steered), ("arrived and lost", sum)]);
        self.equal("the sink", [("with other addresses", counts.strayed), ("expected", 0)]);
        self.equal(
            "the sink",
            [
                ("arrived, as the program there tells,", arrived + counts.strayed),
                ("as the device does", counts.sink_received),
            ],
        );
        let lost = counts.lost("cpu");
        self.line(
            0,
            "to a CPU, and arrived in the host's stack but for",
            counts.verdict("steer").wrapping_sub(steered),
        );
        self.line(1, "lost: no room in the CPU's queue", lost.queue);
        self.line(1, "lost: the kernel refused it", lost.refused);
        for (reason, lost) in [
            ("target-down", |it: TargetLosses| it.down),
            ("target-mtu", |it: TargetLosses| it.mtu),
            ("target-unresolved", |it: TargetLosses| it.unresolved),
        ] as [(&str, fn(TargetLosses) -> u64); 3]
        {
            let targets = ["sink", "other-sink", "cpu"].map(|it| lost(counts.lost(it)));
            let (by_target, by_reason) = (targets.iter().sum(), counts.reason("drop", reason));
            self.equal(reason, [("by target", by_target), ("by reason", by_reason)]);
        }
    }

    /// What was passed, was not judged, or went to a CPU came to the host's stack.
    fn stack(&mut self, counts: &Counts) {
        self.head("the host's stack");
        let (first, second) = (counts.on_the_first(), counts.on_the_second());
        let unjudged = counts.ends[1].received.wrapping_sub(second[0]);
        let to_cpu = [
            first[3].wrapping_sub(counts.rule("steered")),
            second[3].wrapping_sub(counts.rule("second-steered")),
        ];
        let sent_there = [
            first[1].wrapping_add(to_cpu[0]),
            second[1].wrapping_add(to_cpu[1]).wrapping_add(unjudged),
        ];
        let arrived = [counts.to_stack[0], counts.to_stack[1] - counts.to_stack[0]];
        for (name, sent, arrived) in [
            ("the first interface", sent_there[0], arrived[0]),
            ("the second interface", sent_there[1], arrived[1]),
        ] {
            self.line(0, &format!("by {name}: passed, not judged, to a CPU"), sent);
            self.line(1, "arrived", arrived);
            self.at_most(&format!("arrived by {name}"), arrived, sent);
        }
        let cpu = counts.lost("cpu");
        let missing = sent_there[0]
            .wrapping_add(sent_there[1])
            .wrapping_sub(arrived[0])
            .wrapping_sub(arrived[1]);
        // The kernel may have no memory for a packet, and tells nobody; that has not been seen.
        let lost = cpu.queue + cpu.refused;
        self.equal("the host's stack", [("not arrived", missing), ("lost by a CPU's queue", lost)]);
    }
}

/// An account that finds nothing wrong is worth what it would find.
mod tests {
    use portsteer::dataplane::{
        AttachedMode, InterfaceStats, PolicyInfo, ReasonStats, RuleStats, TargetState, TargetStats,
    };

    use super::*;
    use crate::{meter::Sent, policies::rule_name};

    /// Ten packets that were sent over the first cable: five dropped, three passed, two steered to the sink.
    fn ten() -> Counts {
        let sent = |queued| Sent { queued, ..Sent::default() };
        let rule = |name: &str, packets| RuleStats {
            name: name.to_owned(),
            line: 1,
            matches: String::new(),
            action: match name {
                "passed" | "second-passed" => "pass",
                "steered" | "second-steered" | "to-cpu" => "steer there",
                _ => "drop",
            }
            .to_owned(),
            packets,
            bytes: 60 * packets,
        };
        let counts = [("dropped", 5), ("passed", 3), ("steered", 2)];
        let count = |name| counts.iter().find(|it| it.0 == name).map_or(0, |it| it.1);
        let mut ledger = Ledger { sent: sent(10), ..Ledger::default() };
        ledger.by_kind.insert("all", sent(10));
        for index in policies::rules() {
            ledger.queued.insert(Decider::Rule(index), count(rule_name(index)));
        }
        let reason = |verdict: &'static str, packets| ReasonStats {
            verdict: verdict.into(),
            reason: "rule".into(),
            help: "".into(),
            packets,
            bytes: 60 * packets,
        };
        let target = |name: &str, packets| TargetStats {
            name: name.to_owned(),
            to: String::new(),
            state: TargetState::Ready,
            packets,
            bytes: 60 * packets,
            lost: TargetLosses {
                gone: 0,
                down: 0,
                mtu: 0,
                unresolved: 0,
                refused: 0,
                device: 0,
                queue: 0,
            },
            interface_dropped: None,
        };
        let stats = Stats {
            instance: "main".to_owned(),
            policy: PolicyInfo {
                path: String::new(),
                generation: 1,
                applied_at: 0,
                default: "pass".to_owned(),
                rules: 10,
                on_trial: false,
            },
            rules: policies::rules().map(|it| rule(rule_name(it), count(rule_name(it)))).collect(),
            targets: vec![target("sink", 2), target("other-sink", 0), target("cpu", 0)],
            reasons: vec![reason("drop", 5), reason("pass", 3), reason("steer", 2)],
            interfaces: vec![InterfaceStats {
                name: "uplink".to_owned(),
                index: 1,
                mode: AttachedMode::Native,
                attached: true,
                packets: 10,
                bytes: 600,
                passed: 3,
                steered: 2,
                dropped: 5,
                aborted: 0,
            }],
        };
        Counts {
            sent: [ledger, Ledger::default()],
            ends: [AtEnds { received: 10, not_taken: 0 }, AtEnds::default()],
            downs: 0,
            stats,
            to_stack: [3, 3],
            at_sink: [2, 0],
            strayed: 0,
            sink_received: 2,
        }
    }

    type Change = fn(&mut Counts);

    #[test]
    fn what_adds_up_is_not_wrong() {
        assert_eq!(Account::of(&ten()).wrong, [] as [String; 0]);
    }

    #[test]
    fn a_packet_that_nobody_explains_is_missed_wherever_it_went() {
        let ways: [(&str, Change); 14] = [
            ("sent and not received", |it| it.ends[0].received -= 1),
            ("sent to nobody", |it| it.sent[0].sent.unheard += 1),
            ("not taken, by one of two", |it| it.ends[0].not_taken += 1),
            ("received and not judged", |it| it.stats.interfaces[0].packets -= 1),
            ("judged and neither passed nor dropped", |it| it.stats.interfaces[0].dropped -= 1),
            ("aborted", |it| {
                it.stats.interfaces[0].dropped -= 1;
                it.stats.interfaces[0].aborted += 1;
            }),
            ("dropped by another rule", |it| {
                it.stats.rules[0].packets -= 1;
                it.stats.rules[1].packets += 1;
            }),
            ("passed by what drops", |it| {
                it.stats.rules[0].packets -= 1;
                it.stats.rules[2].packets += 1;
            }),
            ("malformed, though it was not", |it| {
                it.stats.rules[0].packets -= 1;
                it.stats.reasons[0].packets -= 1;
                let mut truncated = it.stats.reasons[0].clone();
                (truncated.reason, truncated.packets) = ("truncated".into(), 1);
                it.stats.reasons.push(truncated);
            }),
            ("steered and not arrived", |it| {
                it.at_sink[0] -= 1;
                it.sink_received -= 1;
            }),
            ("arrived for another target", |it| it.at_sink = [1, 1]),
            ("arrived for nobody", |it| {
                it.at_sink[0] -= 1;
                it.strayed += 1;
            }),
            ("passed and not arrived", |it| it.to_stack = [2, 2]),
            ("on the second interface, by whomever", |it| it.stats.reasons[1].packets += 1),
        ];
        for (what, change) in ways {
            let mut counts = ten();
            change(&mut counts);
            assert_ne!(Account::of(&counts).wrong, [] as [String; 0], "{what}");
        }
    }
}
