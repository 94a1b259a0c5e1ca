//! The policies that take turns. All of them begin with the same rules and have the same options and targets, so
//! that for most packets it is known what happens to them whichever policy is in force; what comes after
//! that is another in each.

use std::{fmt::Write as _, sync::LazyLock};

use portsteer::{
    explain::captured,
    oracle::{self, Decision},
    policy::{Policy, file, services::Services},
};
use portsteer_common::Reason;
use portsteer_ebpf::{frame::Frame, parse::parse};
use portsteer_testkit::agent::is_slow;

use portsteer_testkit::random::Random;

use crate::sink;

/// The last bytes of the Ethernet addresses of the targets `sink` and `other-sink`, by which the sink tells them apart.
pub const SINK: u8 = 1;
pub const OTHER_SINK: u8 = 2;

/// The rules that all policies begin with: name, protocols, destination port (0: any), action. Those whose names begin
/// with `second` are for what comes over the second cable.
const RULES: [(&str, &str, u16, &str); 10] = [
    ("dropped", "\"udp\"", 1001, "\"drop\""),
    ("dropped-tcp", "\"tcp\"", 1002, "\"drop\""),
    ("passed", "[\"tcp\", \"udp\"]", 1003, "\"pass\""),
    ("steered", "[\"tcp\", \"udp\"]", 1004, "{ steer = \"sink\" }"),
    ("to-cpu", "\"udp\"", 1005, "{ steer = \"cpu\" }"),
    ("esp", "50", 0, "\"drop\""),
    ("icmp", "\"icmp\"", 0, "\"drop\""),
    ("second-dropped", "\"udp\"", 2001, "\"drop\""),
    ("second-passed", "\"udp\"", 2002, "\"pass\""),
    ("second-steered", "[\"tcp\", \"udp\"]", 2003, "{ steer = \"other-sink\" }"),
];

/// The name of a rule that all policies begin with.
pub fn rule_name(index: usize) -> &'static str {
    RULES[index].0
}

/// The indices of the rules that all policies begin with.
pub fn rules() -> std::ops::Range<usize> {
    0..RULES.len()
}

/// Whether the rule is for what comes over the second cable.
pub fn is_seconds(index: usize) -> bool {
    rule_name(index).starts_with("second")
}

/// What decides about a packet in every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decider {
    /// One of the rules that all begin with.
    Rule(usize),
    /// Something about the packet, and options that are the same in all.
    Reason(Reason),
    /// Whatever the policy in force has beside that.
    Changing,
}

/// What all policies begin with, as a policy.
static BEGINNING: LazyLock<Policy> = LazyLock::new(|| {
    let text = beginning("interfaces = [\"uplink\"]\ndefault = \"pass\"", "") + &constant_rules();
    file::parse(&text, &Services::embedded()).expect("a policy").policy
});

/// What decides about a frame.
pub fn decider(frame: &[u8]) -> Decider {
    match parse(&mut Frame::new(frame)) {
        Ok(headers) => match oracle::judge(&BEGINNING, &captured::packet(frame, headers)) {
            Decision::Rule(index) => Decider::Rule(index),
            Decision::Fragments => Decider::Reason(Reason::FragmentWithoutPorts),
            Decision::Default | Decision::SparedDiscovery | Decision::SparedPathMtu => {
                Decider::Changing
            }
        },
        Err(reason) => Decider::Reason(reason),
    }
}

/// The verdict about packets with a reason that is the same in all policies.
pub fn verdict(reason: Reason) -> &'static str {
    match reason {
        Reason::NotIp | Reason::FragmentWithoutPorts => "pass",
        _ => "drop",
    }
}

fn beginning(head: &str, targets: &str) -> String {
    let mac = sink::mac;
    format!(
        "version = 1\n{head}\n\
         [options]\nfragments = \"pass\"\nmalformed = \"drop\"\nunsupported = \"drop\"\n\
         [targets.sink]\ninterface = \"{interface}\"\nmac = \"{}\"\n\
         [targets.other-sink]\ninterface = \"{interface}\"\nmac = \"{}\"\n\
         [targets.cpu]\ncpus = [0]\n{targets}",
        mac(SINK),
        mac(OTHER_SINK),
        interface = sink::INTERFACE,
    )
}

fn constant_rules() -> String {
    let mut text = String::new();
    for (name, protocol, port, action) in RULES {
        let _ = write!(text, "[[rules]]\nname = \"{name}\"\nprotocol = {protocol}\n");
        if port > 0 {
            let _ = writeln!(text, "dst_port = {port}");
        }
        let _ = writeln!(text, "action = {action}");
    }
    text
}

fn rule(name: &str, fields: &str, action: &str) -> String {
    format!("[[rules]]\nname = \"{name}\"\n{fields}\naction = {action}\n")
}

/// The kinds of policies that there are.
pub const KINDS: usize = 6;

/// The set that edits change.
pub const SET: &str = "moving";

/// A policy of one of [`KINDS`] kinds. Rules with ports name their protocols, and none is for ICMP types, so
/// that what decides about later fragments is the same in all.
pub fn policy(kind: usize, random: &mut Random) -> String {
    let both = "interfaces = [\"uplink\", \"sec*\"]\n";
    let pass = "default = \"pass\"";
    let action = random.pick(&["\"pass\"", "\"drop\""]);
    let varies = rule("varies", "protocol = \"udp\"\ndst_port = \"3000-3003\"", action);
    let set = format!("[sets.{SET}]\naddresses = [\"192.0.2.128/25\", \"2001:db8:5::/48\"]\n");
    let from_set = rule("moving", &format!("src = [\"@{SET}\"]"), "\"drop\"");
    let (head, targets, rules) = match kind {
        // Nothing but ports.
        0 => (format!("{both}{pass}"), String::new(), varies),
        // Addresses, a set, a tag, source ports.
        1 => (
            format!("{both}{pass}"),
            set,
            [
                from_set,
                rule("tagged", "vlan = 13", action),
                rule("from-port", "protocol = \"udp\"\nsrc_port = 7", action),
                varies,
            ]
            .concat(),
        ),
        // What is not named is dropped.
        2 => (
            "interfaces = [\"uplink\", \"second\"]\ndefault = \"drop\"".to_owned(),
            set,
            from_set + &varies,
        ),
        // Many rules, whose tables are large.
        3 => {
            let mut rules = from_set + &varies;
            for index in 0..if is_slow() { 100u32 } else { 1_500 } {
                let [_, _, a, b] = index.to_be_bytes();
                let fields = format!(
                    "src = \"10.{a}.{b}.0/24\"\nprotocol = \"udp\"\ndst_port = {}",
                    10_000 + index
                );
                rules += &rule(&format!("many-{index}"), &fields, action);
            }
            (format!("{both}{pass}"), set, rules)
        }
        // The second interface is none of its business, and a target does not exist.
        4 => (
            format!("interfaces = [\"uplink\"]\n{pass}"),
            format!("[targets.nowhere]\ninterface = \"to-nowhere\"\nmac = \"{}\"\n", sink::mac(3)),
            [
                rule("nowhere", "protocol = \"udp\"\ndst_port = 3004", "{ steer = \"nowhere\" }"),
                varies,
            ]
            .concat(),
        ),
        // Rules for interfaces, which have to be compiled anew when one comes back.
        _ => (
            format!("{both}{pass}"),
            set,
            [
                from_set,
                rule(
                    "on-second",
                    "interface = \"second\"\nprotocol = \"udp\"\ndst_port = \"3000-3009\"",
                    "\"drop\"",
                ),
                rule(
                    "on-uplink",
                    "interface = \"uplink\"\nprotocol = \"udp\"\ndst_port = 3005",
                    action,
                ),
                varies,
            ]
            .concat(),
        ),
    };
    beginning(&head, &targets) + &constant_rules() + &rules
}

#[cfg(test)]
mod tests {
    use portsteer_testkit::packet::*;

    use super::*;

    #[test]
    fn what_decides_is_known() {
        let is = |frame: &[u8]| match decider(frame) {
            Decider::Rule(index) => rule_name(index),
            Decider::Reason(reason) => reason.name(),
            Decider::Changing => "changing",
        };
        assert_eq!(is(&ethernet(IPV4, ipv4(UDP, udp(7, 1001, b"")))), "dropped");
        assert_eq!(is(&ethernet(IPV6, ipv6(TCP, tcp(7, 1003, b"")))), "passed");
        assert_eq!(is(&ethernet(IPV4, ipv4(UDP, udp(7, 3000, b"")))), "changing");
        assert_eq!(is(&ethernet(ARP, [0; 28])), "not-ip");
        assert_eq!(is(&ethernet(IPV4, [0; 3])), "truncated");
        let later = Ipv4 { fragment_offset: 800, ..Ipv4::default() };
        assert_eq!(is(&ethernet(IPV4, later.packet(UDP, [0; 64]))), "fragment-without-ports");
    }

    #[test]
    fn all_kinds_are_policies() {
        let mut random = Random::new(1);
        for kind in 0..KINDS {
            let text = policy(kind, &mut random);
            file::parse(&text, &Services::embedded()).unwrap();
        }
    }
}
