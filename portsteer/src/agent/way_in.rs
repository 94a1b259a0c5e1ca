//! The operator's own way in: a policy that would cut it is not put in force unprompted.

use std::net::IpAddr;

use globset::Glob;

use super::{Error, config::Protected};
use crate::{
    api::Refusal,
    dataplane::Dataplane,
    explain::described::Described,
    netlink::{self, Link},
    oracle::{self, Decision, Packet},
    policy::{Action, Addresses, Policy, TargetKind},
};

/// TCP's number.
const TCP: u8 = 6;

/// Refuses a policy that would cut the connection by which the operator is here, or what is to be protected.
/// `kept` are interfaces that the policy comes to be on besides those that it means. `ssh_connection` is as
/// OpenSSH has it: client address and port, server address and port.
///
/// # Errors
///
/// What would be cut, and the rule that does it.
pub fn check(
    policy: &Policy,
    kept: &[Link],
    ssh_connection: Option<&str>,
    protected: &[Protected],
) -> Result<(), Error> {
    if ssh_connection.is_none() && protected.is_empty() {
        return Ok(());
    }
    let connection = ssh_connection.map(parse_connection).transpose()?;
    let links = netlink::links().map_err(unknown)?;
    let mut attached = Dataplane::meant(policy)?;
    let is_new = |link: &&Link| attached.iter().all(|known| known.index != link.index);
    let more: Vec<Link> = kept.iter().filter(is_new).cloned().collect();
    attached.extend(more);
    if let Some(connection) = &connection {
        for (interface, vlan) in ways_in(connection.src, &links, &attached)? {
            let packet = Described {
                interface: Some(interface),
                vlan,
                ..connection.packet(connection.dst_port, true)
            };
            refuse_if_cut(policy, &packet, "your own connection")?;
        }
    }
    for protected in protected {
        let what = format!("what is to be protected (`{protected}`)");
        match (protected, &connection) {
            (Protected::Packet(packet), _) => {
                // Where no policy is, none cuts anything.
                let is_meant = |name: &String| {
                    is_meant(policy, name) || attached.iter().any(|link| link.name == *name)
                };
                if !packet.interface.as_ref().is_none_or(is_meant) {
                    continue;
                }
                for packet in on_each(packet, &attached) {
                    refuse_if_cut(policy, &packet, &what)?;
                }
            }
            (Protected::Port { port, .. }, Some(connection)) => {
                for (interface, vlan) in ways_in(connection.src, &links, &attached)? {
                    let packet = Described {
                        interface: Some(interface),
                        vlan,
                        ..connection.packet(*port, false)
                    };
                    refuse_if_cut(policy, &packet, &what)?;
                }
            }
            (Protected::Port { port, .. }, None) => {
                let packet =
                    Described { protocol: TCP, dst_port: Some(*port), ..Described::default() };
                for packet in on_each(&packet, &attached) {
                    // Nobody knows from where the operator comes: somebody at least has to get through.
                    refuse_if_cut(&without_sources(policy), &packet, &what)?;
                }
            }
        }
    }
    Ok(())
}

fn unknown(error: std::io::Error) -> Error {
    Error::Refused(Refusal::refused(format!("looking for your own connection: {error}")))
}

/// A connection to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    src: IpAddr,
    src_port: u16,
    dst: IpAddr,
    dst_port: u16,
}

impl Connection {
    /// A packet from the same place, to this port; `same` for one of this very connection.
    fn packet(&self, dst_port: u16, same: bool) -> Described {
        Described {
            protocol: TCP,
            src: Some(self.src),
            // Another connection has another port.
            src_port: same.then_some(self.src_port),
            dst: Some(self.dst),
            dst_port: Some(dst_port),
            ..Described::default()
        }
    }
}

fn parse_connection(text: &str) -> Result<Connection, Error> {
    let wrong = || {
        let refusal = Refusal::bad_input(format!("`{text}` is no connection"));
        let help = "as SSH_CONNECTION has it: client address and port, server address and port";
        Error::Refused(refusal.help(help))
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let [src, src_port, dst, dst_port] = words[..] else { return Err(wrong()) };
    // A link-local address may come with its interface.
    let address = |text: &str| {
        let text = text.split_once('%').map_or(text, |(address, _)| address);
        text.parse::<IpAddr>().map(|address| address.to_canonical())
    };
    Ok(Connection {
        src: address(src).map_err(|_| wrong())?,
        src_port: src_port.parse().map_err(|_| wrong())?,
        dst: address(dst).map_err(|_| wrong())?,
        dst_port: dst_port.parse().map_err(|_| wrong())?,
    })
}

/// The attached interfaces by which packets from this address come in, each with the VLAN that they are tagged
/// with there: those that the answers leave by, the parts of a bond or bridge, and what a VLAN is on.
fn ways_in(
    address: IpAddr,
    links: &[Link],
    attached: &[Link],
) -> Result<Vec<(String, Option<u16>)>, Error> {
    if address.is_loopback() {
        return Ok(Vec::new());
    }
    let Some(index) = netlink::route_to(address).map_err(unknown)? else { return Ok(Vec::new()) };
    Ok(below(index, links, attached))
}

/// The kinds of devices that get their packets as they came in by another device.
const ON_OTHERS: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];

fn below(index: u32, links: &[Link], attached: &[Link]) -> Vec<(String, Option<u16>)> {
    let mut found = Vec::new();
    let mut next = vec![(index, None)];
    let mut seen = Vec::new();
    while let Some((index, vlan)) = next.pop() {
        if seen.contains(&(index, vlan)) {
            continue;
        }
        seen.push((index, vlan));
        let Some(link) = links.iter().find(|link| link.index == index) else { continue };
        if attached.iter().any(|attached| attached.index == index) {
            found.push((link.name.clone(), vlan));
        }
        // Below a tunnel, packets are others.
        let lower = link.lower.filter(|_| ON_OTHERS.contains(&link.kind.as_deref().unwrap_or("")));
        next.extend(lower.map(|lower| (lower, link.vlan.or(vlan))));
        let parts = links.iter().filter(|part| part.master == Some(index));
        next.extend(parts.map(|part| (part.index, vlan)));
    }
    found
}

/// Whether the policy means an interface of this name.
fn is_meant(policy: &Policy, name: &str) -> bool {
    policy.interfaces.iter().any(|pattern| match pattern.is_glob {
        true => Glob::new(&pattern.text).is_ok_and(|glob| glob.compile_matcher().is_match(name)),
        false => pattern.text == name,
    })
}

/// The packet on the interface that it says, else on each that is attached.
fn on_each(packet: &Described, attached: &[Link]) -> Vec<Described> {
    if packet.interface.is_some() || attached.is_empty() {
        return vec![packet.clone()];
    }
    let on = |link: &Link| Described { interface: Some(link.name.clone()), ..packet.clone() };
    attached.iter().map(on).collect()
}

/// The policy as whoever has the best of all addresses sees it: rules that pass match whatever source they ask
/// for, and rules that do not pass only if they ask for none.
fn without_sources(policy: &Policy) -> Policy {
    let mut policy = policy.clone();
    policy.rules.retain(|rule| rule.src.is_any() || rule.action == Action::Pass);
    policy.rules.iter_mut().for_each(|rule| rule.src = Addresses::default());
    policy
}

fn refuse_if_cut(policy: &Policy, packet: &Described, what: &str) -> Result<(), Error> {
    let headers: Packet<'_> = packet.headers();
    let decision = oracle::judge(policy, &headers);
    let gets_in = match oracle::action(policy, decision) {
        Action::Pass => true,
        Action::Drop => false,
        // Which hands it to the host's own stack in the end.
        Action::Steer(id) => matches!(policy.target(id).kind, TargetKind::Cpus { .. }),
    };
    if gets_in {
        return Ok(());
    }
    let by = match decision {
        Decision::Rule(index) => {
            let rule = &policy.rules[index];
            let name = rule.name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
            let does = match rule.action {
                Action::Steer(id) => format!("steers it to `{}`", policy.target(id).name),
                _ => "drops it".to_owned(),
            };
            format!("rule{name} (line {}) {does}", rule.line)
        }
        Decision::Fragments => "options.fragments drops it".to_owned(),
        _ => "no rule matches it, and the default drops it".to_owned(),
    };
    let refusal = Refusal::refused(format!("the policy would cut {what}: {packet}: {by}"));
    Err(Error::Refused(refusal.help(
        "let it through by a rule before that one; `--force` of the commands that change a policy does it all the \
         same; `portsteer explain` tells more",
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{file::parse, services::Services};

    fn policy(rules: &str) -> Policy {
        let text = format!("version = 1\ninterfaces = [\"lo\"]\n{rules}");
        parse(&text, &Services::embedded()).expect("a policy").policy
    }

    fn refusal(result: Result<(), Error>) -> String {
        match result {
            Err(Error::Refused(refusal)) => refusal.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn connections_are_read_as_openssh_has_them() {
        let connection = parse_connection("198.51.100.7 51000 192.0.2.1 22").expect("it");
        assert_eq!(connection.src, IpAddr::from([198, 51, 100, 7]));
        assert_eq!((connection.src_port, connection.dst_port), (51_000, 22));
        assert!(parse_connection("fe80::1%eth0 51000 fe80::2%eth0 22").is_ok());
        let mapped = parse_connection("::ffff:198.51.100.7 51000 ::ffff:192.0.2.1 22");
        assert_eq!(mapped.expect("it"), connection);
        for text in ["", "198.51.100.7 51000 192.0.2.1", "a b c d", "1.2.3.4 99999 1.2.3.5 22"] {
            assert!(parse_connection(text).is_err(), "{text}");
        }
    }

    /// A device: its index, name and kind, and what it is on and part of.
    fn link(
        index: u32,
        name: &str,
        kind: &str,
        [lower, master]: [Option<u32>; 2],
        vlan: Option<u16>,
    ) -> Link {
        let lo = || netlink::links().ok()?.into_iter().find(|link| link.index == 1);
        let lo = lo().expect("a loopback interface");
        let (name, kind) = (name.to_owned(), Some(kind.to_owned()));
        Link { index, name, kind, lower, master, vlan, ..lo }
    }

    #[test]
    fn packets_come_in_below_and_tagged() {
        let links = [
            link(2, "eth0", "", [None, Some(4)], None),
            link(3, "eth1", "", [None, Some(4)], None),
            link(4, "bond0", "bond", [None, None], None),
            link(5, "outer", "vlan", [Some(4), None], Some(9)),
            link(6, "inner", "vlan", [Some(5), None], Some(12)),
            link(7, "twin", "macvlan", [Some(5), None], None),
            link(8, "bridge", "bridge", [None, None], None),
            link(9, "port", "vlan", [Some(4), Some(8)], Some(30)),
            link(10, "tunnel", "vxlan", [Some(4), None], None),
        ];
        let found = |index, attached: &[&str]| {
            let is_attached = |link: &&Link| attached.contains(&link.name.as_str());
            let attached: Vec<Link> = links.iter().filter(is_attached).cloned().collect();
            let mut found = below(index, &links, &attached);
            found.sort();
            found
        };
        let on = |name: &str, vlan| (name.to_owned(), vlan);
        let ports = ["eth0", "eth1"];
        assert_eq!(found(4, &ports), [on("eth0", None), on("eth1", None)]);
        assert_eq!(found(4, &["bond0", "eth1"]), [on("bond0", None), on("eth1", None)]);
        assert_eq!(found(5, &ports), [on("eth0", Some(9)), on("eth1", Some(9))]);
        assert_eq!(found(5, &["outer"]), [on("outer", None)]);
        // The outermost tag is the last that is put on.
        assert_eq!(found(6, &["outer", "eth0"]), [on("eth0", Some(9)), on("outer", Some(12))]);
        assert_eq!(found(7, &["eth0"]), [on("eth0", Some(9))]);
        assert_eq!(found(8, &["eth0"]), [on("eth0", Some(30))]);
        assert_eq!(found(10, &ports), []);
        assert_eq!(found(2, &["eth1"]), []);
        assert_eq!(found(99, &ports), []);
    }

    #[test]
    fn what_cuts_is_named() {
        let cut = policy(
            "[[rules]]\nname = \"out\"\nprotocol = \"tcp\"\ndst_port = 22\naction = \"drop\"\n",
        );
        let connection = parse_connection("198.51.100.7 51000 192.0.2.1 22").expect("it");
        let said = refusal(refuse_if_cut(&cut, &connection.packet(22, true), "it"));
        assert!(said.contains("rule `out` (line 3) drops it"), "{said}");
        assert!(refuse_if_cut(&cut, &connection.packet(23, true), "it").is_ok());
        let said = refusal(refuse_if_cut(
            &policy("default = \"drop\"\n"),
            &connection.packet(22, true),
            "it",
        ));
        assert!(said.contains("the default drops it"), "{said}");
        let steered = policy(
            "[targets.a]\ninterface = \"x\"\nmac = \"keep\"\n[targets.b]\ncpus = [0]\n\
             [[rules]]\ndst_port = 22\naction = { steer = \"a\" }\n\
             [[rules]]\ndst_port = 23\naction = { steer = \"b\" }\n",
        );
        let said = refusal(refuse_if_cut(&steered, &connection.packet(22, true), "it"));
        assert!(said.contains("steers it to `a`"), "{said}");
        assert!(refuse_if_cut(&steered, &connection.packet(23, true), "it").is_ok());
    }

    #[test]
    fn where_nobody_knows_the_operator_somebody_has_to_get_through() {
        let port = [Protected::Port { text: "ssh".to_owned(), port: 22 }];
        let office = "[[rules]]\nname = \"office\"\nprotocol = \"tcp\"\ndst_port = 22\n\
                      src = \"198.51.100.0/24\"\naction = \"pass\"\n";
        let only_office = policy(&format!("default = \"drop\"\n{office}"));
        assert!(check(&only_office, &[], None, &port).is_ok());
        let nobody = policy("default = \"drop\"\n");
        assert!(refusal(check(&nobody, &[], None, &port)).contains("`ssh`"));
        let blocked = policy(&format!(
            "[[rules]]\nname = \"block\"\nsrc = \"203.0.113.0/24\"\naction = \"drop\"\n{office}"
        ));
        assert!(check(&blocked, &[], None, &port).is_ok());
        let packet = "tcp 203.0.113.5 -> :22".parse().expect("a packet");
        assert!(refusal(check(&blocked, &[], None, &[packet])).contains("rule `block`"));
        // Over the loopback interface nothing comes in from outside.
        assert!(check(&nobody, &[], Some("127.0.0.1 5000 127.0.0.1 22"), &[]).is_ok());
    }
}
