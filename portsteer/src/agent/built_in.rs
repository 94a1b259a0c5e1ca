//! The built-in policy that keeps a host closed where no other can be put in force. It drops by default, as any
//! policy with `default = "drop"` does, and passes what gets an operator in: what `protect` names, SSH, and the
//! answers that give the host its address.

use toml::Value;

use super::{bundle::ContentHash, config::Protected};
use crate::{
    dataplane::Manifest,
    explain::described::Described,
    policy::{
        Policy,
        edit::{Edit, EditError, Edited, NewRule, Place, RuleAction, edit_text},
    },
};

/// What listings call it.
pub const PATH: &str = "(built in: closed but protected)";

/// How the names begin by which the kernel knows it. Those of kept policies are hashes alone.
const ID: &str = "built-in-";

/// The port of SSH (RFC 4253). An sshd elsewhere has to be named in `protect`.
const SSH: &str = "22";

/// The ports of DHCP, of the server and of the client (RFC 2131, RFC 8415).
const DHCP: [[&str; 2]; 2] = [["67", "68"], ["547", "546"]];

/// The built-in policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltIn {
    pub text: String,
    /// By which the pinned state names it.
    pub id: String,
}

/// Whether it is what is in force.
#[must_use]
pub fn is_in_force(manifest: &Manifest) -> bool {
    manifest.id.starts_with(ID)
}

impl BuiltIn {
    /// For the interfaces of another policy, in its mode; for all of Ethernet where none is known.
    ///
    /// # Errors
    ///
    /// What is to be protected cannot be written as a rule.
    pub fn new(instead_of: Option<&Policy>, protected: &[Protected]) -> Result<Self, EditError> {
        let string = |text: &str| Value::String(text.to_owned()).to_string();
        let (interfaces, mode) = match instead_of {
            Some(policy) => {
                let patterns = policy.interfaces.iter().map(|pattern| string(&pattern.text));
                (patterns.collect(), policy.mode.name())
            }
            None => (vec![string("*")], "auto"),
        };
        let mut text = format!(
            "version = 1\ninterfaces = [{}]\nmode = {}\ndefault = \"drop\"\n",
            interfaces.join(", "),
            string(mode)
        );
        for rule in rules(protected) {
            let edit = Edit::AddRule { rule: Box::new(rule), place: Place::Last };
            if let Edited::Text(edited) = edit_text(&text, &edit)? {
                text = edited;
            }
        }
        let id = format!("{ID}{}", ContentHash::of(text.as_bytes()).digits());
        Ok(Self { text, id })
    }
}

/// What passes.
fn rules(protected: &[Protected]) -> Vec<NewRule> {
    let to_port = |name: &str, protocol: &str, port: &str| NewRule {
        name: Some(name.to_owned()),
        protocol: vec![protocol.to_owned()],
        dst_port: vec![port.to_owned()],
        ..NewRule::any(RuleAction::Pass)
    };
    let mut rules = vec![to_port("ssh", "tcp", SSH)];
    for [server, client] in DHCP {
        let rule = to_port(&format!("dhcp-{client}"), "udp", client);
        rules.push(NewRule { src_port: vec![server.to_owned()], ..rule });
    }
    for (index, protected) in protected.iter().enumerate() {
        let name = format!("protected-{}", index + 1);
        rules.push(match protected {
            Protected::Port { port, .. } => to_port(&name, "tcp", &port.to_string()),
            Protected::Packet(packet) => NewRule { name: Some(name), ..rule_for(packet) },
        });
    }
    rules
}

/// A rule that passes packets like this one.
fn rule_for(packet: &Described) -> NewRule {
    let list = |text: Option<String>| text.into_iter().collect::<Vec<_>>();
    let port = |port: Option<u16>| {
        list(port.filter(|_| !packet.later_fragment).map(|port| port.to_string()))
    };
    let vlan = packet.vlan.map(|vlan| match vlan {
        0 => "untagged".to_owned(),
        id => id.to_string(),
    });
    NewRule {
        protocol: vec![packet.protocol.to_string()],
        src: list(packet.src.map(|address| address.to_string())),
        src_port: port(packet.src_port),
        dst: list(packet.dst.map(|address| address.to_string())),
        dst_port: port(packet.dst_port),
        icmp_type: list(packet.icmp.map(|(kind, code)| format!("{kind}/{code}"))),
        vlan: list(vlan),
        interface: list(packet.interface.clone()),
        ..NewRule::any(RuleAction::Pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::way_in,
        oracle,
        policy::{Action, file::parse, services::Services},
    };

    /// Packets that come in somehow, and whether they get in.
    #[test]
    fn what_is_protected_gets_in_and_nothing_else() {
        let protected: Vec<Protected> = [
            "8443",
            "tcp 198.51.100.7 -> :9000",
            "icmp -> any",
            "udp [2001:db8::1]:53 -> :4000 vlan 12",
            "47 -> 192.0.2.1 later-fragment vlan untagged",
        ]
        .iter()
        .map(|text| text.parse().expect(text))
        .collect();
        let other = "version = 1\ninterfaces = ['lo', 'no-such-\"one', 'e*']\nmode = 'generic'\n";
        let other = parse(other, &Services::embedded()).unwrap().policy;
        let built_in = BuiltIn::new(Some(&other), &protected).unwrap();
        let policy = parse(&built_in.text, &Services::embedded()).expect("a policy").policy;
        let names = |policy: &Policy| -> Vec<String> {
            policy.interfaces.iter().map(|pattern| pattern.text.clone()).collect()
        };
        assert_eq!((names(&policy), policy.mode), (names(&other), other.mode));
        for (packet, gets_in) in [
            ("tcp 203.0.113.9 -> 192.0.2.1:22", true),
            ("tcp 203.0.113.9 -> [2001:db8::1]:22", false),
            ("tcp 2001:db8::9 -> [2001:db8::1]:8443", true),
            ("tcp 203.0.113.9 -> 192.0.2.1:23", false),
            ("udp 203.0.113.9 -> 192.0.2.1:22", false),
            ("udp 192.0.2.3:67 -> 192.0.2.1:68", true),
            ("udp 192.0.2.3:66 -> 192.0.2.1:68", false),
            ("udp [fe80::3]:547 -> [fe80::1]:546", true),
            ("tcp 198.51.100.7 -> :9000", true),
            ("tcp 198.51.100.8 -> :9000", false),
            ("icmp 198.51.100.8 -> 192.0.2.1", true),
            ("icmp 198.51.100.8 -> 192.0.2.1 type 5", false),
            ("udp [2001:db8::1]:53 -> :4000 vlan 12", true),
            ("udp [2001:db8::1]:53 -> :4000 vlan 13", false),
            ("47 198.51.100.8 -> 192.0.2.1 later-fragment", true),
        ] {
            let Ok(Protected::Packet(described)) = packet.parse() else {
                // Two kinds of address are no packet at all.
                assert!(!gets_in, "{packet}");
                continue;
            };
            let decision = oracle::judge(&policy, &described.headers());
            assert_eq!(oracle::action(&policy, decision) == Action::Pass, gets_in, "{packet}");
        }
        assert!(way_in::check(&policy, &[], None, &protected).is_ok());
        assert!(built_in.id.starts_with(ID));
    }

    #[test]
    fn without_any_policy_it_is_for_every_interface() {
        let built_in = BuiltIn::new(None, &[]).unwrap();
        let policy = parse(&built_in.text, &Services::embedded()).expect("a policy").policy;
        assert!(policy.interfaces[0].is_glob && policy.interfaces[0].text == "*");
    }
}
