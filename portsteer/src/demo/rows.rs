//! What the demo tries, and what has to come of it.

use serde::Serialize;

use super::{
    agent::Stats,
    probe::{Experience, Outcome},
};

/// One port that the client tries, over IPv4 and IPv6.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) service: &'static str,
    /// The rule that decides; none where the policy's default does.
    pub(super) rule: Option<&'static str>,
    pub(super) group: Group,
    /// What listens on the port, if anything does.
    pub(super) server: Option<Server>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What the policy has to say about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Passed,
    Dropped,
    Default,
}

impl Group {
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Passed => "Rules that pass: the server answers.",
            Self::Dropped => "Rules that drop: a server listens here too, but nothing reaches it.",
            Self::Default => "No rule, the default passes: the host's own stack decides.",
        }
    }

    /// The action in the policy.
    pub(super) const fn action(self) -> &'static str {
        match self {
            Self::Passed | Self::Default => "pass",
            Self::Dropped => "drop",
        }
    }
}

/// How a server and its client talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// A web server that gives every request a page with this text.
    Http(&'static str),
    /// Lines over TCP: a greeting, a request, a reply.
    Lines { greeting: &'static str, request: &'static str, reply: &'static str },
    /// A name server that knows one address for every name.
    Dns,
    /// Sends each datagram back.
    Echo,
}

/// What the client has to experience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Answer,
    Refusal,
    Silence,
}

impl Expected {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Answer => "an answer",
            Self::Refusal => "a refusal by the host",
            Self::Silence => "silence",
        }
    }
}

const MAIL: Option<Server> =
    Some(Server::Lines { greeting: "220 mail ready", request: "NOOP", reply: "250 OK" });
const IMAP: Option<Server> =
    Some(Server::Lines { greeting: "* OK ready", request: "a1 NOOP", reply: "a1 OK" });
const LINES: Option<Server> =
    Some(Server::Lines { greeting: "hello", request: "hello", reply: "goodbye" });

use Group::{Default, Dropped, Passed};
use Protocol::{Tcp, Udp};

#[rustfmt::skip] // a table
pub(super) const ROWS: [Row; 16] = [
    row(Tcp, 80, "http", Some("web"), Passed, Some(Server::Http("web"))),
    row(Tcp, 8080, "http-alt", Some("web-alt"), Passed, Some(Server::Http("web-alt"))),
    row(Tcp, 25, "smtp", Some("mail-in"), Passed, MAIL),
    row(Tcp, 587, "submission", Some("submission"), Passed, MAIL),
    row(Udp, 53, "domain", Some("dns"), Passed, Some(Server::Dns)),
    row(Tcp, 23, "telnet", Some("telnet"), Dropped, LINES),
    row(Tcp, 3306, "mysql", Some("database"), Dropped, LINES),
    row(Tcp, 5432, "postgresql", Some("database"), Dropped, LINES),
    row(Udp, 11211, "memcache", Some("memcached"), Dropped, Some(Server::Echo)),
    row(Tcp, 9000, "", Some("high-ports"), Dropped, LINES),
    row(Udp, 9099, "", Some("high-ports"), Dropped, Some(Server::Echo)),
    row(Tcp, 143, "imap", None, Default, IMAP),
    row(Tcp, 81, "", None, Default, None),
    row(Tcp, 8999, "", None, Default, None),
    row(Tcp, 9100, "", None, Default, None),
    row(Udp, 54, "", None, Default, None),
];

const fn row(
    protocol: Protocol,
    port: u16,
    service: &'static str,
    rule: Option<&'static str>,
    group: Group,
    server: Option<Server>,
) -> Row {
    Row { protocol, port, service, rule, group, server }
}

/// A first attempt to connect is sent again after a second.
const SENT_AGAIN_AFTER_MS: f64 = 900.0;

impl Row {
    pub(super) const fn expected(&self) -> Expected {
        match (self.group, self.server) {
            (Group::Dropped, _) => Expected::Silence,
            (_, Some(_)) => Expected::Answer,
            (_, None) => Expected::Refusal,
        }
    }

    /// The counter that packets of this row go to.
    pub(super) fn counter(&self, stats: &Stats) -> u64 {
        match self.rule {
            Some(name) => stats.rule(name),
            None => stats.no_rule(),
        }
    }

    /// What was not as the policy says, given what the client experienced and by how much the
    /// counter grew meanwhile.
    pub(super) fn deviations(&self, experiences: &[Experience; 2], packets: u64) -> Vec<String> {
        let mut deviations = Vec::new();
        for (family, experience) in ["IPv4", "IPv6"].iter().zip(experiences) {
            let as_expected = match (self.expected(), &experience.outcome) {
                (Expected::Answer, Outcome::Answered { as_it_should_be, .. }) => *as_it_should_be,
                (Expected::Refusal, Outcome::Refused) | (Expected::Silence, Outcome::Silence) => {
                    true
                }
                _ => false,
            };
            if !as_expected {
                deviations.push(format!(
                    "{} {}: expected {} over {family}, but: {experience}",
                    self.protocol.name(),
                    self.port,
                    self.expected().text(),
                ));
            }
        }
        let least = experiences.iter().map(|experience| experience.sent_at_least).sum();
        // Silence ends before anything is sent again, so a rule that drops sees exactly what was
        // sent. The default's counter also sees what IPv6 sends of its own.
        let exact = self.group == Group::Dropped
            && experiences.iter().all(|experience| {
                matches!(experience.outcome, Outcome::Silence)
                    && experience.milliseconds < SENT_AGAIN_AFTER_MS
            });
        if packets < least || (exact && packets != least) {
            let wanted = if exact { "exactly" } else { "at least" };
            deviations.push(format!(
                "{} {}: expected {wanted} {least} packets counted by {}, but: {packets}",
                self.protocol.name(),
                self.port,
                self.rule.map_or_else(|| "the default".to_owned(), |rule| format!("rule {rule}")),
            ));
        }
        deviations
    }
}

/// What a row came to.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) row: Row,
    /// Over IPv4 and over IPv6.
    pub(super) experiences: [Experience; 2],
    /// By how much the rule's counter grew.
    pub(super) packets: u64,
    pub(super) deviations: Vec<String>,
}

#[cfg(test)]
mod tests {
    use portsteer_common::PortProtocol;

    use super::*;
    use crate::policy::{Rule, file, services::Services};

    fn experiences(outcome: &Outcome, sent_at_least: u64) -> [Experience; 2] {
        [(), ()].map(|()| Experience {
            outcome: outcome.clone(),
            milliseconds: 400.0,
            sent_at_least,
        })
    }

    #[test]
    fn the_rows_say_what_the_policy_says() {
        let policy = file::parse(super::super::POLICY, &Services::embedded()).expect("a policy");
        assert!(policy.warnings.is_empty());
        let policy = policy.policy;
        for row in ROWS {
            let protocol = match row.protocol {
                Tcp => PortProtocol::Tcp,
                Udp => PortProtocol::Udp,
            };
            let matches = |rule: &&Rule| {
                (rule.protocols.is_empty() || rule.protocols.contains(&protocol.number()))
                    && rule
                        .dst_ports
                        .iter()
                        .any(|range| (range.first..=range.last).contains(&row.port))
            };
            let decided = policy.rules.iter().find(matches);
            assert_eq!(decided.map(|rule| policy.label(rule)).as_deref(), row.rule, "{row:?}");
            let action = decided.map_or(policy.default, |rule| rule.action);
            assert_eq!(action.name(), row.group.action(), "{row:?}");
            assert_eq!(decided.is_none(), row.group == Default, "{row:?}");
        }
        for rule in &policy.rules {
            assert!(
                ROWS.iter().any(|row| row.rule == Some(&policy.label(rule))),
                "{} is never tried",
                policy.label(rule)
            );
        }
    }

    #[test]
    fn a_row_is_judged_by_what_was_experienced_and_counted() {
        let dropped = ROWS[5];
        assert_eq!(dropped.expected(), Expected::Silence);
        let silence = experiences(&Outcome::Silence, 1);
        assert!(dropped.deviations(&silence, 2).is_empty());
        assert_eq!(dropped.deviations(&silence, 3).len(), 1, "one packet too many");
        assert_eq!(dropped.deviations(&silence, 0).len(), 1, "something else kept silent");
        assert_eq!(dropped.deviations(&experiences(&Outcome::Refused, 1), 2).len(), 2);

        let passed = ROWS[0];
        let answer = |as_it_should_be| {
            experiences(&Outcome::Answered { text: "200 OK".to_owned(), as_it_should_be }, 3)
        };
        assert!(passed.deviations(&answer(true), 9).is_empty());
        assert_eq!(passed.deviations(&answer(false), 9).len(), 2, "a wrong page");
        assert_eq!(passed.deviations(&answer(true), 5).len(), 1, "not counted by the rule");
    }
}
