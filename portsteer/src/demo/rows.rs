//! What the demo tries, and what has to come of it.

use serde::Serialize;

use super::{
    agent::Stats,
    network::{HOST_NAME, PLACES},
    probe::{Experience, Outcome},
    servers::on_cpu,
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
    /// To this target.
    Steered(&'static str),
    Passed,
    Dropped,
    Default,
}

impl Group {
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Steered(_) => {
                "Rules that steer: the host serves these ports too, but the target answers."
            }
            Self::Passed => "Rules that pass: the host answers.",
            Self::Dropped => {
                "Rules that drop: the host serves these ports too, but nothing reaches it."
            }
            Self::Default => "No rule, the default passes: the host's own stack decides.",
        }
    }

    /// The action in the policy.
    pub(super) const fn action(self) -> &'static str {
        match self {
            Self::Steered(_) => "steer",
            Self::Passed | Self::Default => "pass",
            Self::Dropped => "drop",
        }
    }

    /// Where it steers to, if it does.
    pub(super) const fn target(self) -> Option<&'static str> {
        match self {
            Self::Steered(target) => Some(target),
            Self::Passed | Self::Dropped | Self::Default => None,
        }
    }
}

/// How a server and its client talk, and how the server says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// A web server whose page is its name.
    Http,
    /// Lines over TCP: a greeting with the server's name in it, a request, a reply.
    Lines { greeting: &'static str, request: &'static str, reply: &'static str },
    /// A name server that knows no name but its own, and on which CPU the question came in.
    Dns,
    /// Answers each datagram with its name.
    Datagrams,
}

/// What the client has to experience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Answer,
    Refusal,
    Silence,
}

const HTTP: Option<Server> = Some(Server::Http);
const MAIL: Option<Server> =
    Some(Server::Lines { greeting: "220", request: "NOOP", reply: "250 OK" });
const DNS: Option<Server> = Some(Server::Dns);
const IMAP: Option<Server> =
    Some(Server::Lines { greeting: "* OK", request: "a1 NOOP", reply: "a1 OK" });
const LINES: Option<Server> =
    Some(Server::Lines { greeting: "hello from", request: "hello", reply: "goodbye" });
const DATAGRAMS: Option<Server> = Some(Server::Datagrams);

use Group::{Default, Dropped, Passed, Steered};
use Protocol::{Tcp, Udp};

#[rustfmt::skip] // a table
pub(super) const ROWS: [Row; 17] = [
    row(Tcp, 80, "http", Some("web"), Steered("web"), HTTP),
    row(Tcp, 8443, "https-alt", Some("web-alt"), Steered("web2"), HTTP),
    row(Tcp, 25, "smtp", Some("mail-in"), Steered("mail"), MAIL),
    row(Tcp, 587, "submission", Some("submission"), Steered("mail"), MAIL),
    row(Udp, 53, "domain", Some("dns"), Steered("dns-cores"), DNS),
    row(Tcp, 8080, "http-alt", Some("status-page"), Passed, HTTP),
    row(Tcp, 23, "telnet", Some("telnet"), Dropped, LINES),
    row(Tcp, 3306, "mysql", Some("database"), Dropped, LINES),
    row(Tcp, 5432, "postgresql", Some("database"), Dropped, LINES),
    row(Udp, 11211, "memcache", Some("memcached"), Dropped, DATAGRAMS),
    row(Tcp, 9000, "", Some("high-ports"), Dropped, LINES),
    row(Udp, 9099, "", Some("high-ports"), Dropped, DATAGRAMS),
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

    /// What has to come of it, in words, where the target of CPUs has these.
    fn expected_text(&self, cpus: &[u32]) -> String {
        match self.expected() {
            Expected::Answer => format!("an answer from {}", self.answerers(cpus).join(" or ")),
            Expected::Refusal => format!("a refusal by the {HOST_NAME}"),
            Expected::Silence => "silence".to_owned(),
        }
    }

    /// Who may answer, if anybody does.
    fn answerers(&self, cpus: &[u32]) -> Vec<String> {
        match self.group.target() {
            None => vec![HOST_NAME.to_owned()],
            Some(target) if PLACES.contains(&target) => vec![target.to_owned()],
            Some(_) => cpus.iter().map(|&cpu| on_cpu(HOST_NAME, Some(cpu))).collect(),
        }
    }

    /// The counter that packets of this row go to.
    pub(super) fn counter(&self, stats: &Stats) -> u64 {
        match self.rule {
            Some(name) => stats.rule(name),
            None => stats.no_rule(),
        }
    }

    /// What was not as the policy says, given what the client experienced, by how much the counter
    /// grew meanwhile, and the target's CPUs.
    pub(super) fn deviations(
        &self,
        experiences: &[Experience; 2],
        packets: u64,
        cpus: &[u32],
    ) -> Vec<String> {
        let mut deviations = Vec::new();
        for (family, experience) in ["IPv4", "IPv6"].iter().zip(experiences) {
            let as_expected = match (self.expected(), &experience.outcome) {
                (Expected::Answer, Outcome::Answered { by: Some(by), .. }) => {
                    self.answerers(cpus).contains(by)
                }
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
                    self.expected_text(cpus),
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
    use crate::policy::{Action, Rule, file, services::Services};

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
            let target = match action {
                Action::Steer(id) => Some(policy.target(id).name.as_str()),
                Action::Pass | Action::Drop => None,
            };
            assert_eq!(target, row.group.target(), "{row:?}");
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

    fn row_of(protocol: Protocol, port: u16) -> Row {
        let is_it = |row: &Row| row.protocol == protocol && row.port == port;
        ROWS.into_iter().find(is_it).expect("a row")
    }

    #[test]
    fn a_row_is_judged_by_what_was_experienced_and_counted() {
        let dropped = row_of(Tcp, 23);
        assert_eq!(dropped.expected(), Expected::Silence);
        let deviations =
            |outcome, packets| dropped.deviations(&experiences(&outcome, 1), packets, &[0]).len();
        assert_eq!(deviations(Outcome::Silence, 2), 0);
        assert_eq!(deviations(Outcome::Silence, 3), 1, "one packet too many");
        assert_eq!(deviations(Outcome::Silence, 0), 1, "something else kept silent");
        assert_eq!(deviations(Outcome::Refused, 2), 2);
    }

    #[test]
    fn a_row_is_judged_by_who_answered() {
        let deviations = |row: Row, by: Option<&str>, packets| {
            let by = by.map(str::to_owned);
            let answer = Outcome::Answered { by, text: "200 OK".to_owned() };
            row.deviations(&experiences(&answer, 3), packets, &[2, 3]).len()
        };
        let web = row_of(Tcp, 80);
        assert_eq!(deviations(web, Some("web"), 9), 0);
        assert_eq!(deviations(web, Some("web"), 5), 1, "not counted by the rule");
        assert_eq!(deviations(web, Some("host"), 9), 2, "it was not steered");
        assert_eq!(deviations(web, None, 9), 2, "nobody knows");
        let dns = row_of(Udp, 53);
        assert_eq!(deviations(dns, Some("host, CPU 3"), 6), 0);
        assert_eq!(deviations(dns, Some("host, another CPU"), 6), 2);
        assert_eq!(deviations(row_of(Tcp, 143), Some("host"), 6), 0);
    }
}
