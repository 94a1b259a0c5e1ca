//! Policies of all kinds of rules: half of them have ports only, the others addresses as well.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{PolicyFile, STEER};
use portsteer_testkit::random::Random;

use crate::{
    PORT, Result,
    family::{Family, address_in, prefix},
    probes::{PROBES, Probe},
};

/// A policy of random rules, the last of which drops the [`packet`](Self::packet). None of the others
/// matches that, so nothing can decide about it early: whoever went through the rules would have to
/// go through all of them, and the verdict is the same with any number.
///
/// Of the rules that have addresses, two fifths have a source, two fifths a destination and one
/// fifth both; a quarter of them has no ports. More rules are always the same rules and others.
pub struct Mixed {
    family: Family,
    rules: Vec<Rule>,
}

/// What stands in the file.
struct Rule {
    src: Option<IpNet>,
    dst: Option<IpNet>,
    protocol: Option<&'static str>,
    /// The first and the last.
    dst_ports: Option<(u16, u16)>,
    drops: bool,
}

impl Mixed {
    pub fn new(count: usize, family: Family) -> Result<Self> {
        let mut random = Random::new(1);
        let packet = Self::packet(family);
        let mut rules = Vec::with_capacity(count);
        while rules.len() < count - 1 {
            let rule = Rule::random(family, rules.len() % 2 == 1, &mut random)?;
            if !rule.matches(&packet) {
                rules.push(rule);
            }
        }
        let wide = match family {
            Family::V4 => 24,
            Family::V6 => 48,
        };
        rules.push(Rule {
            src: Some(IpNet::new(packet.src, wide)?.trunc()),
            dst: Some(packet.dst.into()),
            protocol: Some("udp"),
            dst_ports: Some((PORT, PORT)),
            drops: true,
        });
        Ok(Self { family, rules })
    }

    /// The packet that the last rule drops.
    pub fn packet(family: Family) -> Probe {
        let (src, dst): (IpAddr, IpAddr) = match family {
            Family::V4 => {
                (Ipv4Addr::new(198, 51, 100, 7).into(), Ipv4Addr::new(192, 0, 2, 1).into())
            }
            Family::V6 => (
                Ipv6Addr::new(0x2001, 0xdb8, 0x5, 0x17, 0, 0, 0, 7).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1).into(),
            ),
        };
        Probe { src, dst, src_port: 40_000, dst_port: PORT }
    }

    /// The policy for this interface.
    pub fn file(&self, interface: &str) -> Result<PolicyFile> {
        let mut text = format!("version = 1\ninterfaces = [\"{interface}\"]\nmode = \"native\"\n");
        for (number, rule) in self.rules.iter().enumerate() {
            let _ = write!(text, "[[rules]]\nname = \"rule-{number}\"\n{}", rule.text());
        }
        PolicyFile::new(&text)
    }

    /// The same, but the last rule steers to a target, of which these are the lines in the policy, and so does
    /// one more for the other IP version's packet.
    pub fn steering_file(&self, interface: &str, target: &str) -> Result<PolicyFile> {
        let mut text = format!(
            "version = 1\ninterfaces = [\"{interface}\"]\nmode = \"native\"\n\
             [targets.target-0]\n{target}\n"
        );
        let others = &self.rules[..self.rules.len() - 1];
        for (number, rule) in others.iter().enumerate() {
            let _ = write!(text, "[[rules]]\nname = \"rule-{number}\"\n{}", rule.text());
        }
        for family in [Family::V4, Family::V6] {
            let Probe { src, dst, dst_port, .. } = Self::packet(family);
            let _ = write!(
                text,
                "[[rules]]\nname = \"steered-{}\"\nsrc = \"{src}\"\ndst = \"{dst}\"\nprotocol = \"udp\"\n\
                 dst_port = {dst_port}\naction = {STEER}\n",
                family.name()
            );
        }
        PolicyFile::new(&text)
    }

    /// Packets that have half of their addresses and destination ports from a random rule each, and
    /// the others at random.
    pub fn probes(&self) -> Vec<Probe> {
        let mut random = Random::new(2);
        let probe = |_| {
            let mut probe = Probe::random(self.family, &mut random);
            if random.below(2) == 0 {
                let rule = &self.rules[random.below(self.rules.len())];
                if let Some(prefix) = rule.src {
                    probe.src = address_in(prefix, &mut random);
                }
                if let Some(prefix) = rule.dst {
                    probe.dst = address_in(prefix, &mut random);
                }
                if let Some((first, last)) = rule.dst_ports {
                    probe.dst_port = random.within(first..=last);
                }
            }
            probe
        };
        (0..PROBES).map(probe).collect()
    }
}

impl Rule {
    fn random(family: Family, has_addresses: bool, random: &mut Random) -> Result<Self> {
        let kind = if has_addresses { random.below(5) } else { 5 };
        let (has_src, has_dst) = (matches!(kind, 0 | 1 | 4), matches!(kind, 2..=4));
        let mut prefix_if = |has: bool| {
            let len = prefix_len(family, random);
            has.then(|| prefix(family, len, random)).transpose()
        };
        let (src, dst) = (prefix_if(has_src)?, prefix_if(has_dst)?);
        let has_ports = !has_addresses || random.below(4) > 0;
        let first = random.port();
        let more = if random.below(3) == 0 { random.within(1..=1_000) } else { 0 };
        let dst_ports = has_ports.then(|| (first, first.saturating_add(more)));
        let protocol = [Some("tcp"), Some("udp"), None][random.below(3)];
        Ok(Self { src, dst, protocol, dst_ports, drops: random.below(2) == 0 })
    }

    fn matches(&self, packet: &Probe) -> bool {
        self.src.is_none_or(|prefix| prefix.contains(&packet.src))
            && self.dst.is_none_or(|prefix| prefix.contains(&packet.dst))
            && self.protocol.is_none_or(|protocol| protocol == "udp")
            && self.dst_ports.is_none_or(|(first, last)| (first..=last).contains(&packet.dst_port))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(src) = self.src {
            let _ = writeln!(text, "src = \"{src}\"");
        }
        if let Some(dst) = self.dst {
            let _ = writeln!(text, "dst = \"{dst}\"");
        }
        if let Some(protocol) = self.protocol {
            let _ = writeln!(text, "protocol = \"{protocol}\"");
        }
        let _ = match self.dst_ports {
            Some((first, last)) if first == last => writeln!(text, "dst_port = {first}"),
            Some((first, last)) => writeln!(text, "dst_port = \"{first}-{last}\""),
            None => Ok(()),
        };
        let _ = writeln!(text, "action = \"{}\"", if self.drops { "drop" } else { "pass" });
        text
    }
}

/// Few short prefixes and many long ones, as networks, hosts and providers have them.
fn prefix_len(family: Family, random: &mut Random) -> u16 {
    match (family, random.below(16)) {
        (Family::V4, 0) => random.within(8..=15),
        (Family::V4, 1..=6) => random.within(16..=23),
        (Family::V4, 7..=10) => 24,
        (Family::V4, 11..=13) => random.within(25..=31),
        (Family::V4, _) => 32,
        (Family::V6, 0..=3) => random.within(29..=47),
        (Family::V6, 4..=8) => 48,
        (Family::V6, 9..=12) => random.within(49..=63),
        (Family::V6, 13 | 14) => 64,
        (Family::V6, _) => 128,
    }
}
