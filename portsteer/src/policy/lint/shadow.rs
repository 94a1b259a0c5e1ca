//! Rules that decide nothing, because earlier ones match first.

use super::{MAX_NAMED, describe, list_rules, reach::Reach};
use crate::policy::{Policy, diagnostic::Diagnostic};

pub(super) fn shadowed(policy: &Policy, reach: &Reach<'_>) -> Vec<Diagnostic> {
    let warn = |shadowed: &super::reach::Shadowed| {
        let rule = &policy.rules[shadowed.rule];
        let is_complete = shadowed.is_complete;
        let by: Vec<usize> = shadowed.by.iter().copied().take(MAX_NAMED).collect();
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
            describe(policy, shadowed.rule)
        ))
        .at(rule.span.clone())
        .label("shadowed")
        .help(help);
        by.iter().fold(warning, |warning, &other| {
            warning.related(policy.rules[other].span.clone(), "matches first")
        })
    };
    reach.shadowed.iter().map(warn).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{
        lint,
        short::{UNKNOWN_HOST, policy, shadows},
    };

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
}
