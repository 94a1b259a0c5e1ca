//! What is legal in a policy, but hardly meant.
//!
//! Rules are judged exactly: which rule decides is worked out for every port of every protocol
//! that has ports and for every protocol number, the way the compiled policy has it (see
//! [`portsteer_common::image`]), in time near linear in the size of the policy.

use std::collections::{BTreeSet, HashSet};

use portsteer_common::{
    PortProtocol,
    steering::SPREAD_PLACES,
    wire::{ExtensionHeader, protocol},
};

use super::{Action, Policy, PortRange, Rule, TargetId, TargetKind, diagnostic::Diagnostic};

/// What is known about the host that the policy is for.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The ports that its own connections start from (`net.ipv4.ip_local_port_range`).
    pub ephemeral_ports: Option<PortRange>,
    /// Whether it forwards packets between its interfaces, with IPv4 or IPv6.
    pub forwards: Option<bool>,
}

/// Warnings about a policy: first those about all of it, then those about single rules and
/// targets, in the file's order.
#[must_use]
pub fn lint(policy: &Policy, host: &HostFacts) -> Vec<Diagnostic> {
    let owners = Owners::new(&policy.rules);
    let mut warnings = Vec::new();
    warnings.extend(default_drop(policy));
    warnings.extend(forwarding(policy, host, &owners));
    warnings.extend(ephemeral_ports(policy, host, &owners));
    let mut about_parts = shadowed(policy, &owners);
    about_parts.extend(neighbor_discovery(policy, &owners));
    about_parts.extend(idle_default(policy));
    about_parts.extend(extension_headers(policy));
    about_parts.extend(later_fragments(policy, &owners));
    about_parts.extend(unused_targets(policy));
    about_parts.extend(too_many_cpus(policy));
    about_parts.sort_by_key(|warning| warning.span.as_ref().map(|span| span.start));
    warnings.extend(about_parts);
    warnings
}

/// How many rules one warning names.
const MAX_NAMED: usize = 4;

/// How many steps are spent on finding out which rules shadow the others, over the whole policy.
/// That a rule is shadowed is always known; beyond this, not all are named that shadow it.
const MAX_STEPS: usize = 4_000_000;

/// No rule.
const NOBODY: u32 = u32::MAX;

/// Which rule decides about what, as indexes into the policy's rules.
struct Owners {
    rows: [Row; PortProtocol::ALL.len()],
    /// By protocol number, for packets without ports. Where the protocol has ports these are the
    /// later fragments: there a rule with ports is the owner too, because it ends their walk and
    /// leaves them to `options.fragments`.
    by_protocol: [u32; 256],
    /// The rules that own nothing, ascending.
    idle: Vec<usize>,
}

/// One protocol's ports.
struct Row {
    /// By port.
    owners: Vec<u32>,
    /// By port: the first port above that has another owner.
    run_ends: Vec<u32>,
}

impl Owners {
    fn new(rules: &[Rule]) -> Self {
        let mut free = PortProtocol::ALL.map(|_| FreePorts::new());
        let mut by_protocol = [NOBODY; 256];
        let mut idle = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let owner = u32::try_from(index).unwrap_or(NOBODY);
            let mut owns = false;
            for number in protocols_of(rule) {
                let slot = &mut by_protocol[usize::from(number)];
                if *slot == NOBODY {
                    *slot = owner;
                    owns = true;
                }
                if let Some(protocol) = PortProtocol::from_number(number) {
                    for range in ports_of(rule) {
                        owns |= free[protocol as usize].take(*range, owner);
                    }
                }
            }
            if !owns {
                idle.push(index);
            }
        }
        Self { rows: free.map(FreePorts::into_row), by_protocol, idle }
    }

    /// The rules that own what the rule matches, ascending, and whether these are all of them.
    fn of(&self, rule: &Rule, steps: &mut usize) -> (BTreeSet<usize>, bool) {
        let mut found = BTreeSet::new();
        let mut is_enough = |owner: u32| {
            found.insert(owner as usize);
            *steps = steps.saturating_sub(1);
            found.len() > MAX_NAMED || *steps == 0
        };
        for number in protocols_of(rule) {
            if is_enough(self.by_protocol[usize::from(number)]) {
                return (found, false);
            }
            let Some(protocol) = PortProtocol::from_number(number) else { continue };
            let row = &self.rows[protocol as usize];
            for range in ports_of(rule) {
                let mut port = u32::from(range.first);
                while port <= u32::from(range.last) {
                    if is_enough(row.owners[port as usize]) {
                        return (found, false);
                    }
                    port = row.run_ends[port as usize];
                }
            }
        }
        (found, true)
    }
}

/// The ports of one protocol that no rule has taken so far.
struct FreePorts {
    /// By port: a port at or above it that may be free, its own number if it is. One entry more
    /// than there are ports, which is never taken.
    next: Vec<u32>,
    owners: Vec<u32>,
}

impl FreePorts {
    fn new() -> Self {
        Self { next: (0..=65_536).collect(), owners: vec![NOBODY; 65_536] }
    }

    /// The first free port from `port` on, 65,536 if there is none.
    fn find(&mut self, port: u32) -> u32 {
        let mut root = port;
        while self.next[root as usize] != root {
            root = self.next[root as usize];
        }
        let mut port = port;
        while self.next[port as usize] != root {
            port = std::mem::replace(&mut self.next[port as usize], root);
        }
        root
    }

    /// Gives the range's free ports to `owner`. Returns whether there were any.
    fn take(&mut self, range: PortRange, owner: u32) -> bool {
        let mut took = false;
        let mut port = self.find(range.first.into());
        while port <= u32::from(range.last) {
            self.owners[port as usize] = owner;
            self.next[port as usize] = port + 1;
            took = true;
            port = self.find(port + 1);
        }
        took
    }

    fn into_row(self) -> Row {
        let mut run_ends = vec![65_536; self.owners.len()];
        for port in (0..self.owners.len() - 1).rev() {
            run_ends[port] = if self.owners[port] == self.owners[port + 1] {
                run_ends[port + 1]
            } else {
                port as u32 + 1
            };
        }
        Row { owners: self.owners, run_ends }
    }
}

/// The numbers of the protocols that a rule matches.
fn protocols_of(rule: &Rule) -> impl Iterator<Item = u8> {
    let all_with_ports = PortProtocol::ALL.into_iter().map(PortProtocol::number);
    let (listed, with_ports, all) = match (rule.protocols.is_empty(), rule.dst_ports.is_empty()) {
        (false, _) => (Some(rule.protocols.iter().copied()), None, None),
        (true, false) => (None, Some(all_with_ports), None),
        (true, true) => (None, None, Some(0..=u8::MAX)),
    };
    listed
        .into_iter()
        .flatten()
        .chain(with_ports.into_iter().flatten())
        .chain(all.into_iter().flatten())
}

/// The ports that a rule matches in a protocol that has ports.
fn ports_of(rule: &Rule) -> &[PortRange] {
    const ALL: &[PortRange] = &[PortRange { first: 0, last: u16::MAX }];
    if rule.dst_ports.is_empty() { ALL } else { &rule.dst_ports }
}

fn default_drop(policy: &Policy) -> Option<Diagnostic> {
    (policy.default == Action::Drop).then(|| {
        Diagnostic::warning(
            "default = \"drop\" also drops the replies to this host's own connections",
        )
        .help(
            "there is no reply tracking yet, so pass what the host must receive with rules; the \
             default spares only what is not IP, IPv6 neighbour and router discovery, and ICMP \
             messages that a packet is too big",
        )
    })
}

fn forwarding(policy: &Policy, host: &HostFacts, owners: &Owners) -> Option<Diagnostic> {
    let drops = |index: &usize| policy.rules[*index].action == Action::Drop;
    let idle: BTreeSet<usize> = owners.idle.iter().copied().collect();
    let rules: Vec<usize> =
        (0..policy.rules.len()).filter(|index| drops(index) && !idle.contains(index)).collect();
    if host.forwards != Some(true) || (rules.is_empty() && policy.default == Action::Pass) {
        return None;
    }
    let mut what = Vec::new();
    if !rules.is_empty() {
        what.push(list_rules(policy, &rules, true));
    }
    if policy.default == Action::Drop {
        what.push("the default".to_owned());
    }
    let warning = Diagnostic::warning(
        "this host forwards packets, and what the policy drops it drops on their way through too",
    )
    .help(format!(
        "without `dst`, which is not there yet, a rule also takes traffic that merely passes \
         through: look at {}",
        what.join(", and ")
    ));
    Some(at_rules(warning, policy, &rules, "drops"))
}

fn ephemeral_ports(policy: &Policy, host: &HostFacts, owners: &Owners) -> Option<Diagnostic> {
    let ephemeral = host.ephemeral_ports.filter(|range| range.first <= range.last)?;
    let mut rules = BTreeSet::new();
    for protocol in [PortProtocol::Tcp, PortProtocol::Udp] {
        let row = &owners.rows[protocol as usize];
        for &owner in &row.owners[usize::from(ephemeral.first)..=usize::from(ephemeral.last)] {
            let drops = |rule: &Rule| rule.action == Action::Drop;
            if policy.rules.get(owner as usize).is_some_and(drops) {
                rules.insert(owner as usize);
            }
        }
    }
    if rules.is_empty() {
        return None;
    }
    let rules: Vec<usize> = rules.into_iter().collect();
    let warning = Diagnostic::warning(format!(
        "this host's own connections start from ports {ephemeral}, and rules drop what comes there"
    ))
    .help(format!(
        "replies to them arrive at these ports (net.ipv4.ip_local_port_range): look at {}",
        list_rules(policy, &rules, true)
    ));
    Some(at_rules(warning, policy, &rules, "drops some of them"))
}

fn shadowed(policy: &Policy, owners: &Owners) -> Vec<Diagnostic> {
    let mut steps = MAX_STEPS;
    let warn = |&index: &usize| {
        let rule = &policy.rules[index];
        let (by, is_complete) = owners.of(rule, &mut steps);
        let by: Vec<usize> = by.into_iter().take(MAX_NAMED).collect();
        let names = list_rules(policy, &by, is_complete);
        let match_first = if is_complete && by.len() == 1 { "matches" } else { "match" };
        let same_action = by.iter().all(|&other| policy.rules[other].action == rule.action);
        let help = match (is_complete && same_action, by.len()) {
            (true, _) => "remove it: that changes nothing",
            (false, 1) => "put it before that rule, or remove it",
            (false, _) => "put it before those rules, or remove it",
        };
        let warning = Diagnostic::warning(format!(
            "{} can never decide: {names} {match_first} first whatever it matches",
            describe(policy, index)
        ))
        .at(rule.span.clone())
        .label("shadowed")
        .help(help);
        by.iter().fold(warning, |warning, &other| {
            warning.related(policy.rules[other].span.clone(), "matches first")
        })
    };
    owners.idle.iter().map(warn).collect()
}

fn neighbor_discovery(policy: &Policy, owners: &Owners) -> Option<Diagnostic> {
    let index = owners.by_protocol[usize::from(protocol::ICMPV6)] as usize;
    let rule = policy.rules.get(index).filter(|rule| rule.action == Action::Drop)?;
    Some(
        Diagnostic::warning(format!(
            "{} drops all of ICMPv6, neighbour discovery included: IPv6 stops",
            describe(policy, index)
        ))
        .at(rule.span.clone())
        .label("rules spare nothing, unlike the default")
        .help(
            "put a rule with `protocol = \"icmpv6\"` and `action = \"pass\"` before it; packet \
             too big, which connections need, is ICMPv6 as well",
        ),
    )
}

fn extension_headers(policy: &Policy) -> impl Iterator<Item = Diagnostic> {
    policy.rules.iter().enumerate().filter_map(|(index, rule)| {
        let numbers: Vec<String> = rule
            .protocols
            .iter()
            .filter(|&&number| ExtensionHeader::is_extension(number))
            .map(ToString::to_string)
            .collect();
        let (noun, verb) = match numbers.len() {
            0 => return None,
            1 => ("protocol", "is an extension header"),
            _ => ("protocols", "are extension headers"),
        };
        Some(
            Diagnostic::warning(format!(
                "{} matches {noun} {} in IPv4 only",
                describe(policy, index),
                numbers.join(", ")
            ))
            .at(rule.span.clone())
            .label(format!("in IPv6 {} {verb}", numbers.join(", ")))
            .help("IPv6 extension headers are skipped: rules see the protocol that follows them"),
        )
    })
}

/// One warning, at the first rule that it is about, however many there are.
fn later_fragments(policy: &Policy, owners: &Owners) -> Option<Diagnostic> {
    const DATAGRAMS: [u8; 2] = [PortProtocol::Udp.number(), PortProtocol::UdpLite.number()];
    let steers_datagrams = |&(index, rule): &(usize, &Rule)| {
        matches!(rule.action, Action::Steer(_))
            && !rule.dst_ports.is_empty()
            && protocols_of(rule).any(|number| DATAGRAMS.contains(&number))
            && owners.idle.binary_search(&index).is_err()
    };
    let (index, rule) = policy.rules.iter().enumerate().find(steers_datagrams)?;
    let fate = match policy.options.fragments {
        Action::Drop => "drops them",
        Action::Pass | Action::Steer(_) => "passes them to this host",
    };
    Some(
        Diagnostic::warning(format!(
            "{} steers datagrams by port, but not the later fragments of those that come in several",
            describe(policy, index)
        ))
        .at(rule.span.clone())
        .label("steers UDP by port")
        .help(format!("later fragments carry no port: `options.fragments` {fate}")),
    )
}

/// A rule that leaves the default nothing to decide, and says otherwise.
fn idle_default(policy: &Policy) -> Option<Diagnostic> {
    let matches_all = |rule: &Rule| rule.protocols.is_empty() && rule.dst_ports.is_empty();
    let index = policy.rules.iter().position(matches_all)?;
    let rule = &policy.rules[index];
    if rule.action == policy.default {
        return None;
    }
    let warning = Diagnostic::warning(format!(
        "default = \"{}\" never decides: {} matches every IP packet",
        policy.default.name(),
        describe(policy, index)
    ))
    .at(rule.span.clone())
    .label("matches whatever the rules before it leave");
    match rule.action {
        Action::Drop => Some(warning.help(
            "write `default = \"drop\"` instead of the rule: it spares neighbour discovery and packet \
             too big, which a rule does not",
        )),
        Action::Pass => {
            Some(warning.help("write `default = \"pass\"` instead of the rule, or beside it"))
        }
        // No default can do that.
        Action::Steer(_) => None,
    }
}

fn unused_targets(policy: &Policy) -> impl Iterator<Item = Diagnostic> {
    let used: HashSet<TargetId> = policy
        .rules
        .iter()
        .filter_map(|rule| match rule.action {
            Action::Steer(id) => Some(id),
            Action::Pass | Action::Drop => None,
        })
        .collect();
    let is_unused = move |index| u16::try_from(index).is_ok_and(|id| !used.contains(&TargetId(id)));
    policy.targets.iter().enumerate().filter(move |&(index, _)| is_unused(index)).map(
        |(_, target)| {
            Diagnostic::warning(format!("no rule steers to the target `{}`", target.name))
                .at(target.span.clone())
                .label("unused")
                .help("remove it, or name it in a rule's action")
        },
    )
}

fn too_many_cpus(policy: &Policy) -> impl Iterator<Item = Diagnostic> {
    policy.targets.iter().filter_map(|target| {
        let TargetKind::Cpus { cpus, .. } = &target.kind else { return None };
        (cpus.len() > SPREAD_PLACES).then(|| {
            Diagnostic::warning(format!(
                "the target `{}` has {} CPUs, but flows are spread over {SPREAD_PLACES} at most",
                target.name,
                cpus.len()
            ))
            .at(target.span.clone())
            .label("some of its CPUs get nothing")
            .help("name fewer CPUs")
        })
    })
}

/// Points a warning about several rules at the first of them, and at some of the others.
fn at_rules(warning: Diagnostic, policy: &Policy, rules: &[usize], label: &str) -> Diagnostic {
    let Some((&first, others)) = rules.split_first() else { return warning };
    let warning = warning.at(policy.rules[first].span.clone()).label(label);
    others
        .iter()
        .take(MAX_NAMED - 1)
        .fold(warning, |warning, &other| warning.related(policy.rules[other].span.clone(), label))
}

/// The rules in words: `a` (line 3), rule 2 (line 9) and 5 more.
fn list_rules(policy: &Policy, rules: &[usize], is_complete: bool) -> String {
    let mut words: Vec<String> =
        rules.iter().take(MAX_NAMED).map(|&index| describe(policy, index)).collect();
    if !is_complete {
        words.push("others".to_owned());
    } else if rules.len() > MAX_NAMED {
        words.push(format!("{} more", rules.len() - MAX_NAMED));
    }
    match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => words.concat(),
    }
}

/// A rule in words, by its name or else its number from 1.
fn describe(policy: &Policy, index: usize) -> String {
    let rule = &policy.rules[index];
    match &rule.name {
        Some(name) => format!("`{name}` (line {})", rule.line),
        None => format!("rule {} (line {})", index + 1, rule.line),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{
        diagnostic::{Source, render},
        file::parse,
        services::Services,
    };

    const TCP: u8 = PortProtocol::Tcp.number();
    const UDP: u8 = PortProtocol::Udp.number();

    const UNKNOWN_HOST: HostFacts = HostFacts { ephemeral_ports: None, forwards: None };

    /// Rules in short, a line each: a name, protocols, ports, and an action; `-` for nothing.
    /// `steer:web` and `steer:workers` steer.
    fn policy(rules: &str) -> Policy {
        let mut text = String::from("version = 1\ninterfaces = [\"eth0\"]\n");
        for line in rules.lines() {
            let [name, protocols, ports, action]: [&str; 4] =
                line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            if name == "default" {
                text += &format!("default = \"{action}\"\n");
                continue;
            }
            text += "[[rules]]\n";
            for (key, value) in [("name", name), ("protocol", protocols), ("dst_port", ports)] {
                let values: Vec<String> = value
                    .split(',')
                    .map(|value| match value.parse::<u8>() {
                        Ok(number) if key == "protocol" => number.to_string(),
                        _ => format!("\"{value}\""),
                    })
                    .collect();
                match (value, key) {
                    ("-", _) => {}
                    (_, "name") => text += &format!("name = {}\n", values[0]),
                    _ => text += &format!("{key} = [{}]\n", values.join(", ")),
                }
            }
            let target = action.strip_prefix("steer:");
            text += &match target {
                Some(target) => format!("action = {{ steer = \"{target}\" }}\n"),
                None => format!("action = \"{action}\"\n"),
            };
        }
        for (name, lines) in
            [("web", "interface = \"veth-web\"\nmac = \"keep\""), ("workers", "cpus = [2, 3]")]
        {
            if rules.contains(&format!("steer:{name}")) {
                text += &format!("[targets.{name}]\n{lines}\n");
            }
        }
        parse(&text, &Services::embedded()).expect("the test's policy is valid").policy
    }

    fn messages(policy: &Policy, host: &HostFacts) -> Vec<String> {
        lint(policy, host).into_iter().map(|warning| warning.message).collect()
    }

    /// The rules that are shadowed, each with those that shadow it.
    fn shadows(rules: &str) -> String {
        let policy = policy(rules);
        let owners = Owners::new(&policy.rules);
        let name = |index: usize| policy.rules[index].name.clone().unwrap_or_default();
        let lines = owners.idle.iter().map(|&index| {
            let (by, is_complete) = owners.of(&policy.rules[index], &mut MAX_STEPS.clone());
            let by: Vec<String> = by.into_iter().map(name).collect();
            format!("{}<{}{}", name(index), by.join(","), if is_complete { "" } else { ",..." })
        });
        lines.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn shadowed_rules() {
        for (rules, expected) in [
            ("a tcp 80 pass\nb tcp 80 drop", "b<a"),
            ("a tcp 80 pass\nb tcp 81 drop", ""),
            ("a tcp 80 pass\nb udp 80 drop", ""),
            ("a tcp 80 pass\nb tcp,udp 80 drop", ""),
            ("a tcp 80 pass\nb udp 80 pass\nc tcp,udp 80 drop", "c<a,b"),
            // A union shadows, with and without a gap.
            ("a tcp 80 pass\nb tcp 81-90 drop\nc tcp 80-90 drop", "c<a,b"),
            ("a tcp 80 pass\nb tcp 82-90 drop\nc tcp 80-90 drop", ""),
            // Only the rules that take something are named.
            ("a tcp 1-9 pass\nb tcp 20 pass\nc tcp 5,20 drop", "c<a,b"),
            ("a tcp 1-9 pass\nb tcp 1-9 pass\nc tcp 5 drop", "b<a c<a"),
            // Rules without ports.
            ("a tcp - pass\nb tcp 80 drop\nc tcp - drop", "b<a c<a"),
            (
                "a - - pass\nb tcp 80 drop\nc icmp - drop\nd 255 - drop\ne - - drop",
                "b<a c<a d<a e<a",
            ),
            ("a tcp 80 pass\nb tcp - drop", ""),
            ("a icmp - pass\nb icmpv6 - pass\nc icmp,icmpv6 - drop", "c<a,b"),
            // Ports without a protocol mean all five.
            ("a - 80 pass\nb tcp 80 drop\nc dccp 80 drop\nd icmp - drop", "b<a c<a"),
            ("a tcp,udp,udplite,sctp 80 pass\nb - 80 drop\nc dccp 80 drop", "c<b"),
            ("a - 0-65535 pass\nb - - drop", ""),
            // Whoever has all ports leaves the later fragments to `options.fragments`.
            ("a tcp 0-65535 pass\nb tcp - drop", "b<a"),
            ("a tcp 0-65534 pass\nb tcp - drop", ""),
            (
                "a tcp 0-65534 pass\nb tcp 65535 pass\nc tcp 0-65535 drop\nd tcp - drop",
                "c<a,b d<a,b",
            ),
            // More than are named.
            (
                "a tcp 1 pass\nb tcp 2 pass\nc tcp 3 pass\nd tcp 4 pass\ne tcp 5 pass\nf tcp 1-5 pass",
                "f<a,b,c,d,e,...",
            ),
        ] {
            assert_eq!(shadows(rules), expected, "{rules}");
        }
    }

    #[test]
    fn what_is_said_about_shadowed_rules() {
        let policy = policy("a tcp 80 pass\n- tcp 81-90 drop\nc tcp 80-90 drop\nd tcp 80 pass");
        let warnings = lint(&policy, &UNKNOWN_HOST);
        assert_eq!(warnings.len(), 2);
        assert_eq!(
            warnings[0].message,
            "`c` (line 12) can never decide: `a` (line 3) and rule 2 (line 8) match first whatever \
             it matches"
        );
        assert_eq!(warnings[0].span, Some(policy.rules[2].span.clone()));
        assert_eq!(warnings[0].related.len(), 2);
        assert_eq!(warnings[0].related[1].0, policy.rules[1].span);
        assert_eq!(warnings[0].help.as_deref(), Some("put it before those rules, or remove it"));
        assert_eq!(warnings[1].help.as_deref(), Some("remove it: that changes nothing"));
    }

    #[test]
    fn rules_that_only_count_are_no_fault() {
        let policy = policy("a tcp 80 pass\nb udp - pass\nc - - pass");
        assert_eq!(lint(&policy, &UNKNOWN_HOST), []);
    }

    #[test]
    fn default_drop_is_loud() {
        let warnings = lint(&policy("default - - drop\na tcp 22 pass"), &UNKNOWN_HOST);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.message.contains("replies to this host's own connections"));
        let help = warning.help.as_deref().unwrap();
        assert!(help.contains("neighbour") && help.contains("too big"), "{help}");
    }

    #[test]
    fn ephemeral_ports_that_are_dropped() {
        let host = HostFacts {
            ephemeral_ports: Some(PortRange { first: 32_768, last: 60_999 }),
            forwards: None,
        };
        for (rules, expected) in [
            ("a tcp 40000 drop", Some("`a` (line 3)")),
            ("a udp 60999-65535 drop", Some("`a` (line 3)")),
            ("a - dynamic drop\nb tcp - drop", Some("`a` (line 3) and `b` (line 7)")),
            ("a tcp 32767 drop\nb tcp 61000-65535 drop", None),
            ("a tcp 40000 pass", None),
            ("a sctp 40000 drop", None),
            ("a tcp,udp 30000-61000 pass\nb tcp - drop", None),
            ("a tcp,udp 30000-61000 pass\nb icmp - drop", None),
            (
                "a tcp 40000 drop\nb tcp 40001 drop\nc tcp 40002 drop\nd tcp 40003 drop\n\
                 e tcp 40004 drop\nf tcp 40005 drop",
                Some("`a` (line 3), `b` (line 8), `c` (line 13), `d` (line 18) and 2 more"),
            ),
        ] {
            let warnings = lint(&policy(rules), &host);
            let found = warnings.iter().find(|warning| warning.message.contains("32768-60999"));
            let rules_named =
                found.and_then(|warning| warning.help.as_deref()?.split("look at ").nth(1));
            assert_eq!(rules_named, expected, "{rules}");
            assert_eq!(
                messages(&policy(rules), &UNKNOWN_HOST).len(),
                warnings.len() - usize::from(expected.is_some())
            );
        }
    }

    #[test]
    fn hosts_that_forward() {
        let forwards = |forwards| HostFacts { ephemeral_ports: None, forwards };
        for (rules, host, expected) in [
            ("a tcp 80 drop", Some(true), 1),
            ("a tcp 80 drop", Some(false), 0),
            ("a tcp 80 drop", None, 0),
            ("a tcp 80 pass", Some(true), 0),
            ("default - - drop\na tcp 80 pass", Some(true), 1),
            ("a - - pass\nb tcp 80 drop", Some(true), 0),
        ] {
            let messages = messages(&policy(rules), &forwards(host));
            let found = messages.iter().filter(|message| message.contains("forwards"));
            assert_eq!(found.count(), expected, "{rules}");
        }
    }

    #[test]
    fn neighbour_discovery() {
        for (rules, expected) in [
            ("a icmpv6 - drop", true),
            ("a - - drop", true),
            ("a icmpv6 - pass\nb - - drop", false),
            ("a icmp - drop", false),
            ("a - 80 drop", false),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().any(|message| message.contains("neighbour discovery"));
            assert_eq!(found, expected, "{rules}");
        }
    }

    #[test]
    fn a_default_that_never_decides() {
        for (rules, expected) in [
            ("a - - drop", true),
            ("default - - drop\na - - pass", true),
            ("a - - pass", false),
            ("a - - steer:web", false),
            ("a tcp - drop", false),
            ("a - 80 drop", false),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found = messages.iter().any(|message| message.contains("never decides"));
            assert_eq!(found, expected, "{rules}");
        }
    }

    #[test]
    fn extension_headers_are_skipped_in_ipv6() {
        let all: Vec<String> = (0..=u8::MAX).map(|number| format!("- {number} - pass")).collect();
        let found: Vec<String> = lint(&policy(&all.join("\n")), &UNKNOWN_HOST)
            .into_iter()
            .filter_map(|warning| warning.label)
            .collect();
        let expected =
            [0, 43, 44, 51, 60].map(|number| format!("in IPv6 {number} is an extension header"));
        assert_eq!(found, expected);
        assert_eq!(
            messages(&policy("a 60,tcp,0 - pass"), &UNKNOWN_HOST),
            ["`a` (line 3) matches protocols 0, 60 in IPv4 only"]
        );
    }

    #[test]
    fn steering_rules_shadow_too() {
        for (rules, help) in [
            ("a tcp 80 steer:web\nb tcp 80 steer:web", "remove it: that changes nothing"),
            ("a tcp 80 steer:web\nb tcp 80 steer:workers", "put it before that rule, or remove it"),
            ("a tcp 80 steer:web\nb tcp 80 pass", "put it before that rule, or remove it"),
        ] {
            let warnings = lint(&policy(rules), &UNKNOWN_HOST);
            let found =
                warnings.iter().find(|warning| warning.label.as_deref() == Some("shadowed"));
            assert_eq!(found.and_then(|warning| warning.help.as_deref()), Some(help), "{rules}");
        }
    }

    #[test]
    fn later_fragments_cannot_be_steered() {
        for (rules, expected) in [
            ("a tcp 80 steer:web", None),
            ("a sctp 80 steer:web", None),
            ("a udp - steer:web", None),
            ("a - - steer:web", None),
            ("a udp 53 pass", None),
            ("a udp 53 pass\nb udp 53 steer:web", None),
            ("a udp 53 steer:web", Some("`a` (line 3)")),
            ("a tcp,udp 53 steer:workers", Some("`a` (line 3)")),
            ("a udplite 53 steer:workers", Some("`a` (line 3)")),
            ("a tcp 53 steer:web\n- - 54 steer:web\nc udp 55 steer:web", Some("rule 2 (line 8)")),
        ] {
            let messages = messages(&policy(rules), &UNKNOWN_HOST);
            let found: Vec<&str> =
                messages.iter().filter_map(|text| text.split(" steers datagrams").nth(1)).collect();
            assert_eq!(found.len(), usize::from(expected.is_some()), "{rules}: {messages:?}");
            let names = messages.iter().find_map(|text| Some(text.split_once(" steers")?.0));
            assert_eq!(names, expected, "{rules}");
        }
        let mut policy = policy("a udp 53 steer:web");
        let help = |policy: &Policy| lint(policy, &UNKNOWN_HOST)[0].help.clone().unwrap();
        assert!(help(&policy).ends_with("`options.fragments` passes them to this host"));
        policy.options.fragments = Action::Drop;
        assert!(help(&policy).ends_with("`options.fragments` drops them"));
    }

    #[test]
    fn targets() {
        let text = "version = 1\ninterfaces = [\"eth0\"]\n[targets.b]\ncpus = \"0-128\"\n\
            [targets.a]\ncpus = \"0-127\"\n[[rules]]\nprotocol = \"tcp\"\n\
            action.steer = \"b\"\n";
        let policy = parse(text, &Services::embedded()).unwrap().policy;
        let warnings = lint(&policy, &UNKNOWN_HOST);
        let found: Vec<_> = warnings
            .iter()
            .map(|warning| (warning.message.as_str(), &text[warning.span.clone().unwrap()]))
            .collect();
        assert_eq!(
            found,
            [
                ("the target `b` has 129 CPUs, but flows are spread over 128 at most", "b"),
                ("no rule steers to the target `a`", "a"),
            ]
        );
    }

    fn many(rules: impl Iterator<Item = (Vec<u8>, Vec<PortRange>)>) -> Policy {
        let rules = rules.enumerate().map(|(index, (protocols, dst_ports))| Rule {
            protocols,
            dst_ports,
            line: index + 1,
            ..Rule::any(Action::Drop)
        });
        Policy { rules: rules.collect(), ..policy("") }
    }

    #[test]
    fn many_rules() {
        let start = std::time::Instant::now();
        let ports = || (0..=u16::MAX).map(|port| vec![PortRange::single(port)]);
        let singles = || ports().map(|ports| (vec![TCP], ports));
        assert_eq!(lint(&many(singles()), &UNKNOWN_HOST), []);
        // Every rule after these is shadowed by thousands of runs of two rules.
        let every_other =
            |first: u16| (first..=u16::MAX).step_by(2).map(PortRange::single).collect();
        let comb = [(vec![TCP, UDP], every_other(0)), (vec![TCP, UDP], every_other(1))];
        let after = std::iter::repeat_n((vec![TCP, UDP], vec![]), 20_000);
        let warnings = lint(&many(comb.into_iter().chain(after)), &UNKNOWN_HOST);
        assert_eq!(warnings.len(), 20_000);
        assert!(warnings[0].message.contains(": rule 1 (line 1) and rule 2 (line 2) match"));
        assert!(warnings[19_999].message.contains(": rule 1 (line 1) and others match"));
        // Seconds at most even unoptimised; a quadratic lint takes minutes.
        assert!(start.elapsed().as_secs() < 30);
    }

    #[test]
    fn rendering() {
        let text = "version = 1\ninterfaces = [\"eth0\"]\n\n\
            [[rules]]\nname = \"web\"\nprotocol = \"tcp\"\ndst_port = \"80-90\"\naction = \"drop\"\n\n\
            [[rules]]\nname = \"status\"\nprotocol = \"tcp\"\ndst_port = 88\naction = \"pass\"\n";
        let policy = parse(text, &Services::embedded()).unwrap().policy;
        let source = Source { name: "p.toml".into(), text: text.into() };
        assert_eq!(
            render(&source, &lint(&policy, &UNKNOWN_HOST), false),
            "\
warning: `status` (line 10) can never decide: `web` (line 4) matches first whatever it matches
  --> p.toml:10:1
   |
 4 | [[rules]]
   | --------- matches first
...
10 | [[rules]]
   | ^^^^^^^^^ shadowed
   |
   = help: put it before that rule, or remove it
"
        );
    }

    /// What decides about a packet of this protocol, with this port or, `None`, without any.
    fn walk(rules: &[Rule], number: u8, port: Option<u16>) -> Option<usize> {
        rules.iter().position(|rule| {
            let with_ports = !rule.dst_ports.is_empty();
            let protocol_matches = if rule.protocols.is_empty() {
                !with_ports || PortProtocol::from_number(number).is_some()
            } else {
                rule.protocols.contains(&number)
            };
            // A rule with ports ends a later fragment's walk.
            let in_range = |range: &PortRange, port| range.first <= port && port <= range.last;
            protocol_matches
                && port.is_none_or(|port| {
                    !with_ports || rule.dst_ports.iter().any(|range| in_range(range, port))
                })
        })
    }

    fn any_rules() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<PortRange>)>> {
        let protocols =
            prop::collection::btree_set(prop::sample::select(vec![1, TCP, UDP, 58]), 0..3);
        let port = prop_oneof![0..8_u16, 65_530..=65_535_u16, Just(0), Just(65_535)];
        let ports = prop::collection::vec((port.clone(), port), 0..3);
        let rule = (protocols, ports).prop_map(|(protocols, ports)| {
            let range = |(a, b): (u16, u16)| PortRange { first: a.min(b), last: a.max(b) };
            let ports = if protocols.contains(&1) || protocols.contains(&58) {
                vec![]
            } else {
                ports.into_iter().map(range).collect()
            };
            (protocols.into_iter().collect(), ports)
        });
        prop::collection::vec(rule, 0..10)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn owners_are_what_a_walk_finds(rules in any_rules()) {
            let policy = many(rules.into_iter());
            let owners = Owners::new(&policy.rules);
            let ports: Vec<u16> = (0..10).chain(65_528..=65_535).collect();
            let mut deciding = BTreeSet::new();
            for number in 0..=u8::MAX {
                let decides = walk(&policy.rules, number, None);
                deciding.extend(decides);
                let owner = owners.by_protocol[usize::from(number)];
                prop_assert_eq!(decides, (owner != NOBODY).then_some(owner as usize));
                if let Some(protocol) = PortProtocol::from_number(number) {
                    for &port in &ports {
                        let decides = walk(&policy.rules, number, Some(port));
                        deciding.extend(decides);
                        let owner = owners.rows[protocol as usize].owners[usize::from(port)];
                        prop_assert_eq!(decides, (owner != NOBODY).then_some(owner as usize));
                    }
                }
            }
            let idle: Vec<usize> =
                (0..policy.rules.len()).filter(|index| !deciding.contains(index)).collect();
            prop_assert_eq!(&owners.idle, &idle);
        }
    }
}
