//! Why a packet gets its verdict, in words: which rule decides, and which earlier ones nearly did.
//!
//! [`described`] reads a packet as people write it, [`captured`] reads its bytes. The decision is the
//! oracle's, found faster, as the tests compare; what is said about the other rules is only said.
//! Nothing in here does any I/O.

use portsteer_common::{Fault, Reason};

use self::index::{Fields, Index, Met};
use crate::{
    oracle::Packet,
    policy::{Action, Policy},
};

pub mod captured;
pub mod described;
mod index;
mod misses;

pub use misses::shortened;

/// The most rules that are said to have come close.
const MAX_CLOSE: usize = 5;

/// Why a packet gets its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub action: Action,
    pub cause: Cause,
    /// Earlier rules that match in all but one field, the last of them: at most five.
    pub close: Vec<Miss>,
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The rule at this index.
    Rule(usize),
    /// `options.fragments`: the rule at this index would have to know the ports or the ICMP type, which a
    /// later fragment does not have.
    Fragments(usize),
    /// No rule matches: `default`.
    Default,
    /// The packet is one that `default = "drop"` spares, or one that the rules are not asked about.
    Reason(Reason),
}

/// A rule that does not match for one field alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The rule's index.
    pub rule: usize,
    pub field: &'static str,
    /// In words: `udp is not tcp`.
    pub why: String,
}

/// Explains what a policy does with packets. What takes long whatever the packet is done once.
#[derive(Debug)]
pub struct Explainer<'a> {
    policy: &'a Policy,
    index: Index<'a>,
}

impl<'a> Explainer<'a> {
    #[must_use]
    pub fn new(policy: &'a Policy) -> Self {
        Self { policy, index: Index::new(policy) }
    }

    /// Explains what happens to a packet whose headers the rules see.
    #[must_use]
    pub fn explain(&self, packet: &Packet<'_>) -> Explanation {
        let compared = self.index.compare(packet);
        let mut single_misses = Vec::new();
        let mut decided = None;
        for rule in 0..self.policy.rules.len() {
            match compared.met(rule) {
                Met::Decides => decided = Some(Cause::Rule(rule)),
                Met::Fragment => decided = Some(Cause::Fragments(rule)),
                Met::Misses(fields) if fields.count() == 1 => single_misses.push((rule, fields)),
                Met::Misses(_) => {}
            }
            if decided.is_some() {
                break;
            }
        }
        let cause = decided.unwrap_or_else(|| undecided(self.policy, packet));
        let action = match cause {
            Cause::Rule(rule) => self.policy.rules[rule].action,
            Cause::Fragments(_) => self.policy.options.fragments,
            Cause::Default => self.policy.default,
            Cause::Reason(_) => Action::Pass,
        };
        // A rule that asks for one thing alone is not close because it asks for another.
        let is_close = |(rule, _): &(usize, Fields)| compared.asked(*rule).count() > 1;
        let close = single_misses.into_iter().rev().filter(is_close).take(MAX_CLOSE);
        let told = close.flat_map(|(rule, fields)| {
            let misses =
                misses::told(self.policy, &self.index, &self.policy.rules[rule], packet, fields);
            misses.into_iter().map(move |(field, why)| Miss { rule, field, why })
        });
        Explanation { action, cause, close: told.collect() }
    }

    /// The fields in which the rule at this index does not match, each with why.
    #[must_use]
    pub fn misses(&self, rule: usize, packet: &Packet<'_>) -> Vec<(&'static str, String)> {
        let fields = self.index.compare(packet).misses(rule);
        misses::told(self.policy, &self.index, &self.policy.rules[rule], packet, fields)
    }
}

/// Why a packet that no rule matches gets its verdict.
fn undecided(policy: &Policy, packet: &Packet<'_>) -> Cause {
    match (policy.default, packet.icmp, packet.icmpv6) {
        (Action::Drop, Some((3, 4)), _) | (Action::Drop, _, Some((2, _))) => {
            Cause::Reason(Reason::PathMtu)
        }
        (Action::Drop, _, Some((133..=136, _))) => Cause::Reason(Reason::NeighborDiscovery),
        _ => Cause::Default,
    }
}

/// Explains what happens to a packet that has no headers for the rules to see.
#[must_use]
pub fn explain_reason(policy: &Policy, reason: Reason) -> Explanation {
    let action = match reason.fault() {
        Some(Fault::Malformed) => policy.options.malformed,
        Some(Fault::Unsupported) => policy.options.unsupported,
        None => Action::Pass,
    };
    Explanation { action, cause: Cause::Reason(reason), close: Vec::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        oracle::{self, Decision},
        policy::{file, random, services::Services},
    };

    fn policy(rules: &str) -> Policy {
        let text = format!("version = 1\ninterfaces = [\"eth0\", \"eth1\", \"veth-*\"]\n{rules}");
        file::parse(&text, &Services::embedded()).expect("a policy").policy
    }

    fn explained(policy: &Policy, text: &str) -> Explanation {
        let described = described::parse(text, &Services::embedded()).expect("a packet");
        Explainer::new(policy).explain(&described.headers())
    }

    #[test]
    fn the_nearest_misses_are_told() {
        let policy = policy(
            "[[rules]]\nprotocol = \"tcp\"\ndst_port = [80, \"8000-8080\"]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\ndst_port = 443\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\ndst_port = 53\naction = \"drop\"\n\
             [[rules]]\nname = \"https\"\nprotocol = \"tcp\"\ndst_port = 443\naction = \"pass\"\n",
        );
        let explanation = explained(&policy, "tcp 203.0.113.9:51000 -> 192.0.2.10:443");
        assert_eq!((explanation.action, explanation.cause), (Action::Pass, Cause::Rule(4)));
        let misses: Vec<(usize, &str, &str)> =
            explanation.close.iter().map(|miss| (miss.rule, miss.field, &*miss.why)).collect();
        assert_eq!(
            misses,
            [(1, "protocol", "tcp is not udp"), (0, "dst_port", "443 is not in 80,8000-8080")]
        );
    }

    #[test]
    fn every_field_can_miss() {
        let policy = policy(
            "[sets.office]\naddresses = [\"192.0.2.0/24\"]\n\
             [[rules]]\nprotocol = \"tcp\"\nsrc = [\"@office\", \"198.51.100.7\"]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"tcp\"\nsrc = [\"!203.0.113.0/24\", \"!@office\"]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"tcp\"\nsrc_port = [53, \"1000-1999\"]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"tcp\"\ndst = \"2001:db8::/32\"\naction = \"drop\"\n\
             [[rules]]\ndst_port = 22\ninterface = \"eth0\"\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"icmp\"\nicmp_type = [3, 11]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"tcp\"\nvlan = \"100-199\"\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"tcp\"\ninterface = [\"eth1\", \"veth-*\"]\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"udp\"\nvlan = \"untagged\"\naction = \"drop\"\n",
        );
        let explainer = Explainer::new(&policy);
        let told = |text: &str| -> Vec<String> {
            let packet = described::parse(text, &Services::embedded()).expect("a packet");
            (0..policy.rules.len())
                .map(|rule| {
                    let misses = explainer.misses(rule, &packet.headers()).into_iter();
                    misses
                        .map(|(field, why)| format!("{field}: {why}"))
                        .collect::<Vec<_>>()
                        .join("; ")
                })
                .collect()
        };
        assert_eq!(
            told("tcp 203.0.113.9:51000 -> 192.0.2.10:443 on eth0"),
            [
                "src: 203.0.113.9 is not in @office,198.51.100.7",
                "src: 203.0.113.9 is in 203.0.113.0/24, which is excluded",
                "src_port: 51000 is not in 53,1000-1999",
                "dst: 192.0.2.10 is not in 2001:db8::/32",
                "dst_port: 443 is not in 22",
                "protocol: tcp is not icmp; icmp_type: tcp has no type",
                "vlan: untagged is not in 100-199",
                "interface: eth0 is not in eth1,veth-*",
                "protocol: tcp is not udp",
            ]
        );
        let told = told("icmp 192.0.2.1 -> 192.0.2.10 type 8 vlan 12");
        assert_eq!(
            told[1],
            "protocol: icmp is not tcp; src: 192.0.2.1 is in @office, which is excluded"
        );
        assert_eq!(
            told[4],
            "dst_port: icmp has no ports; interface: the packet's interface is not given"
        );
        assert_eq!(told[5], "icmp_type: type 8 code 0 is not in 3,11");
        assert_eq!(told[6], "protocol: icmp is not tcp; vlan: 12 is not in 100-199");
        assert_eq!(told[8], "protocol: icmp is not udp; vlan: 12 is not in untagged");
    }

    #[test]
    fn what_nobody_said_is_told() {
        let policy = policy(
            "[[rules]]\nsrc = \"192.0.2.1\"\ndst = \"192.0.2.2\"\nsrc_port = 7\naction = \"drop\"\n\
             [[rules]]\nprotocol = \"icmp\"\nicmp_type = 8\naction = \"drop\"\n",
        );
        let explainer = Explainer::new(&policy);
        let whys = |text: &str, rule| -> Vec<String> {
            let packet = described::parse(text, &Services::embedded()).expect("a packet");
            let misses = explainer.misses(rule, &packet.headers());
            misses.into_iter().map(|(_, why)| why).collect()
        };
        assert_eq!(
            whys("tcp -> :80", 0),
            [
                "the packet's source address is not given",
                "the packet's source port is not given",
                "the packet's destination address is not given",
            ]
        );
        let later = "udp 192.0.2.1 -> 192.0.2.2 later-fragment";
        assert_eq!(whys(later, 0), ["a later fragment has no ports"]);
        let later = "icmp 192.0.2.1 -> 192.0.2.2 later-fragment";
        assert_eq!(whys(later, 1), ["a later fragment has no type"]);
        assert_eq!(
            whys("icmp fe80::1 -> fe80::2 type 8", 1),
            ["this icmp has no type: it is of the other IP version"]
        );
    }

    #[test]
    fn long_lists_are_shortened() {
        let addresses: Vec<String> = (0..20).map(|host| format!("\"192.0.2.{host}\"")).collect();
        let ports: Vec<String> = (0..9).map(|port| (port * 2).to_string()).collect();
        let policy = policy(&format!(
            "[[rules]]\nprotocol = \"tcp\"\nsrc = [{}]\ndst = \"!10.0.0.0/8\"\ndst_port = [{}]\n\
             vlan = [1, 3, 5]\naction = \"drop\"\n",
            addresses.join(", "),
            ports.join(", ")
        ));
        assert_eq!(
            shortened(&policy, &policy.rules[0]),
            "tcp src 192.0.2.0,192.0.2.1,192.0.2.2,192.0.2.3,192.0.2.4,192.0.2.5,192.0.2.6,192.0.2.7,... \
             dst !10.0.0.0/8 dst_port 0,2,4,6,8,10,12,14,... vlan 1,3,5"
        );
        let explanation = explained(&policy, "tcp 192.0.2.9 -> 11.0.0.0:1 vlan 5");
        assert_eq!(explanation.close[0].why, "1 is not in 0,2,4,6,8,10,12,14,...");
        let explanation = explained(&policy, "tcp 192.0.3.0 -> 11.0.0.0:2 vlan 5");
        assert!(explanation.close[0].why.ends_with("192.0.2.7,..."), "{explanation:?}");
    }

    #[test]
    fn fragments_stop_at_the_first_rule_that_asks_for_a_port() {
        let policy = policy(
            "[options]\nfragments = \"drop\"\n[[rules]]\nprotocol = \"tcp\"\ndst_port = 80\naction = \
             \"pass\"\n[[rules]]\ndst_port = 53\naction = \"pass\"\n",
        );
        let explanation = explained(&policy, "udp -> 192.0.2.10 later-fragment");
        assert_eq!((explanation.action, explanation.cause), (Action::Drop, Cause::Fragments(1)));
    }

    #[test]
    fn fragments_stop_where_all_else_matches() {
        let policy = policy(
            "[options]\nfragments = \"drop\"\n\
             [[rules]]\nprotocol = \"tcp\"\nsrc = \"192.0.2.0/24\"\ndst_port = 80\naction = \"pass\"\n\
             [[rules]]\nprotocol = \"icmp\"\nicmp_type = 8\naction = \"pass\"\n\
             [[rules]]\nsrc_port = 53\nvlan = 7\naction = \"pass\"\n\
             [[rules]]\nsrc_port = 54\naction = \"pass\"\n",
        );
        for (text, cause) in [
            ("tcp 192.0.2.1 -> 192.0.2.10 later-fragment", Cause::Fragments(0)),
            ("tcp 192.0.3.1 -> 192.0.2.10 later-fragment", Cause::Fragments(3)),
            ("udp 192.0.3.1 -> 192.0.2.10 later-fragment vlan 7", Cause::Fragments(2)),
            ("icmp 192.0.3.1 -> 192.0.2.10 later-fragment", Cause::Fragments(1)),
            ("icmpv6 fe80::1 -> fe80::2 later-fragment", Cause::Default),
        ] {
            assert_eq!(explained(&policy, text).cause, cause, "{text}");
        }
    }

    #[test]
    fn what_a_silent_default_spares_is_told() {
        let policy = policy("default = \"drop\"\n");
        let spared = explained(&policy, "icmpv6 fe80::1 -> ff02::1 type 135");
        assert_eq!(spared.cause, Cause::Reason(Reason::NeighborDiscovery));
        assert_eq!(spared.action, Action::Pass);
        let spared = explained(&policy, "icmp 192.0.2.1 -> 192.0.2.10 type 3 code 4");
        assert_eq!(spared.cause, Cause::Reason(Reason::PathMtu));
        let ping = explained(&policy, "icmp 192.0.2.1 -> 192.0.2.10");
        assert_eq!((ping.action, ping.cause), (Action::Drop, Cause::Default));
    }

    /// Many rules with an address each, and large sets with exceptions.
    #[test]
    fn captures_do_not_take_long() {
        let start = std::time::Instant::now();
        let addresses: Vec<String> = (0..50_000_u32)
            .map(|host| format!("\"10.{}.{}.0/25\"", host >> 8, host & 255))
            .collect();
        let mut text = format!("[sets.big]\naddresses = [{}]\n", addresses.join(","));
        for host in 0..5_000 {
            text += &format!(
                "[[rules]]\nprotocol = \"tcp\"\nsrc = [\"@big\", \"!10.0.{}.{}\"]\ndst_port = {host}\n\
                 action = \"drop\"\n",
                host >> 8,
                host & 255
            );
        }
        let policy = policy(&text);
        let explainer = Explainer::new(&policy);
        for port in 10_000..10_200 {
            let text = format!("tcp 10.0.0.77:7 -> 192.0.2.1:{port}");
            let packet = described::parse(&text, &Services::embedded()).expect("a packet");
            assert_eq!(explainer.explain(&packet.headers()).close.len(), MAX_CLOSE);
        }
        assert!(start.elapsed().as_secs() < 30);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// What is decided is what the oracle decides; of what is told of the rules nothing contradicts it.
        #[test]
        fn explanations_agree_with_the_oracle(
            policy in random::policy(8),
            packets in prop::collection::vec(random::packet(), 40),
            is_known in any::<[bool; 3]>(),
        ) {
            let explainer = Explainer::new(&policy);
            for packet in packets {
                let packet = Packet {
                    src: packet.src.filter(|_| is_known[0]),
                    dst: packet.dst.filter(|_| is_known[1]),
                    interface: packet.interface.filter(|_| is_known[2]),
                    ..packet
                };
                let explanation = explainer.explain(&packet);
                let decision = oracle::judge(&policy, &packet);
                prop_assert_eq!(explanation.action, oracle::action(&policy, decision));
                let reached = match (explanation.cause, decision) {
                    (Cause::Rule(index), Decision::Rule(decided)) => {
                        prop_assert_eq!(index, decided);
                        prop_assert_eq!(explainer.misses(index, &packet), []);
                        index
                    }
                    (Cause::Fragments(index), Decision::Fragments) => {
                        let rules = policy.rules[..index].to_vec();
                        let before = Policy { rules, default: Action::Pass, ..policy.clone() };
                        prop_assert_eq!(oracle::judge(&before, &packet), Decision::Default);
                        let rules = policy.rules[..=index].to_vec();
                        let up_to = Policy { rules, ..policy.clone() };
                        prop_assert_eq!(oracle::judge(&up_to, &packet), Decision::Fragments);
                        index
                    }
                    (Cause::Default, Decision::Default)
                    | (Cause::Reason(Reason::PathMtu), Decision::SparedPathMtu)
                    | (Cause::Reason(Reason::NeighborDiscovery), Decision::SparedDiscovery) => {
                        policy.rules.len()
                    }
                    other => return Err(TestCaseError::fail(format!("{other:?}"))),
                };
                for index in 0..reached {
                    let misses = explainer.misses(index, &packet);
                    prop_assert!(!misses.is_empty());
                    prop_assert!(misses.iter().all(|(_, why)| !why.ends_with("in ")), "{misses:?}");
                    let is_told = explanation.close.iter().any(|miss| miss.rule == index);
                    prop_assert!(!is_told || misses.len() == 1);
                }
            }
        }
    }
}
