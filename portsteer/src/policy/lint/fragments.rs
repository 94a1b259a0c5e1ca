//! Later fragments, which lack what rules ask for.

use portsteer_common::PortProtocol;

use super::{cells::Protocols, describe, reach::Reach};
use crate::policy::{Action, Policy, Rule, diagnostic::Diagnostic};

/// One warning, at the first rule that it is about, however many there are.
pub(super) fn later_fragments(policy: &Policy, reach: &Reach<'_>) -> Option<Diagnostic> {
    const DATAGRAMS: [u8; 2] = [PortProtocol::Udp.number(), PortProtocol::UdpLite.number()];
    let steers_in_part = |&(index, rule): &(usize, &Rule)| {
        matches!(rule.action, Action::Steer(_))
            && rule.needs_transport()
            && (!rule.icmp_types.is_empty()
                || DATAGRAMS.iter().any(|&number| Protocols::of(rule).contains(number)))
            && !reach.is_idle[index]
    };
    let (index, rule) = policy.rules.iter().enumerate().find(steers_in_part)?;
    let fate = match policy.options.fragments {
        Action::Drop => "drops them",
        Action::Pass | Action::Steer(_) => "passes them to this host",
    };
    let (what, label, lack) = if rule.icmp_types.is_empty() {
        ("datagrams by port", "steers UDP by port", "port")
    } else {
        ("ICMP messages by type", "steers ICMP by type", "type")
    };
    Some(
        Diagnostic::warning(format!(
            "{} steers {what}, but not the later fragments of those that come in several",
            describe(policy, index)
        ))
        .at(rule.span.clone())
        .label(label)
        .help(format!("later fragments carry no {lack}: `options.fragments` {fate}")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{
        lint,
        short::{UNKNOWN_HOST, messages, policy},
    };
    use super::*;

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
    fn what_else_later_fragments_lack() {
        for (rules, expected) in [
            ("a udp - steer:web src_port=53", Some("later fragments carry no port")),
            ("a icmp - steer:web icmp_type=8", Some("later fragments carry no type")),
            ("a icmp - steer:web", None),
            ("a udp - steer:web src=10.0.0.1 vlan=7", None),
            ("a udp 53 steer:web src=10.0.0.1 dst=fd00::1", None),
        ] {
            let warnings = lint(&policy(rules), &UNKNOWN_HOST);
            let found =
                warnings.iter().filter_map(|warning| warning.help.as_deref()).find_map(|help| {
                    help.starts_with("later").then(|| help.split(':').next()).flatten()
                });
            assert_eq!(found, expected, "{rules}");
        }
    }
}
