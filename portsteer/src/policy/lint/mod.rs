//! What is legal in a policy, but hardly meant.
//!
//! [`reach`] works out which rules decide anything, and each of the others looks for one kind of
//! mistake. Nothing is said that is not certain, and the time that it takes is bounded: where a policy
//! would take more, less is said about it.

use super::{Policy, PortRange, diagnostic::Diagnostic};

mod addresses;
mod cells;
mod defaults;
mod families;
mod fragments;
mod host;
mod interfaces;
mod nothing;
mod numbers;
mod reach;
mod shadow;
#[cfg(test)]
mod short;
mod targets;
mod unused;

use reach::Reach;

/// What is known about the host that the policy is for.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The ports that its own connections start from (`net.ipv4.ip_local_port_range`).
    pub ephemeral_ports: Option<PortRange>,
    /// Whether it forwards packets between its interfaces, with IPv4 or IPv6.
    pub forwards: Option<bool>,
}

/// Warnings about a policy: first those about all of it, then those about single rules, sets and
/// targets, in the file's order.
#[must_use]
pub fn lint(policy: &Policy, host: &HostFacts) -> Vec<Diagnostic> {
    let ephemeral = host.ephemeral_ports.filter(|range| range.first <= range.last);
    let reach = Reach::new(policy, |addresses, key, rule, family| {
        host::replies(addresses, key, rule, family, ephemeral?)
    });
    let mut warnings = Vec::new();
    warnings.extend(defaults::default_drop(policy));
    warnings.extend(host::forwarding(policy, host, &reach));
    warnings.extend(ephemeral.and_then(|ports| host::ephemeral_ports(policy, ports, &reach)));
    let mut about_parts = shadow::shadowed(policy, &reach);
    about_parts.extend(nothing::nothing(policy, &reach));
    about_parts.extend(defaults::neighbor_discovery(policy, &reach));
    about_parts.extend(defaults::idle_default(policy, &reach));
    about_parts.extend(families::other_icmp(policy, &reach));
    about_parts.extend(families::only_ipv4(policy, &reach));
    about_parts.extend(families::extension_headers(policy));
    about_parts.extend(fragments::later_fragments(policy, &reach));
    about_parts.extend(unused::sets(policy));
    about_parts.extend(unused::targets(policy));
    about_parts.extend(targets::too_many_cpus(policy));
    about_parts.sort_by_key(|warning| warning.span.as_ref().map(|span| span.start));
    warnings.extend(about_parts);
    warnings
}

/// How many rules one warning names.
const MAX_NAMED: usize = 4;

/// Of what a rule may ask for in a field: nothing.
const ANY: u32 = 0;

/// How much more may be done.
#[derive(Debug)]
struct Steps(usize);

impl Steps {
    /// Takes some; `None` if there are not that many left, and from then on none are.
    fn spend(&mut self, count: usize) -> Option<()> {
        let left = self.0.checked_sub(count);
        self.0 = left.unwrap_or(0);
        left.map(|_| ())
    }
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
    use super::short::{UNKNOWN_HOST, policy};
    use super::*;
    use crate::policy::{
        Action, Rule,
        diagnostic::{Source, render},
        file::parse,
        services::Services,
    };

    const TCP: u8 = 6;
    const UDP: u8 = 17;

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
}
