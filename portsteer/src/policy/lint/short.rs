//! Policies in short, for the tests of this module.

use super::{HostFacts, lint, reach::Reach};
use crate::policy::{
    AddressItem, Addresses, IcmpRange, InterfacePattern, NumberRange, Policy, Rule, Set, SetId,
    file::parse, services::Services,
};

pub(super) const UNKNOWN_HOST: HostFacts = HostFacts { ephemeral_ports: None, forwards: None };

/// Rules in short, a line each: a name, protocols, ports, and an action; `-` for nothing.
/// `steer:web` and `steer:workers` steer. Whatever else is asked for follows: `src=`, `dst=`,
/// `src_port=`, `icmp_type=`, `vlan=`, `interface=`, each with a list. Other lines: `default - - drop`,
/// `set NAME PREFIXES`, `interfaces NAMES`.
pub(super) fn policy(rules: &str) -> Policy {
    let mut text = String::from("version = 1\ninterfaces = [\"eth0\"]\n");
    let (mut more, mut sets, mut interfaces) = (Vec::new(), Vec::new(), None);
    for line in rules.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, protocols, ports, action] = match words[..] {
            ["set", name] => {
                sets.push(set(name, ""));
                continue;
            }
            ["set", name, prefixes] => {
                sets.push(set(name, prefixes));
                continue;
            }
            ["interfaces", names] => {
                interfaces = Some(patterns(names));
                continue;
            }
            [name, protocols, ports, action, ..] => [name, protocols, ports, action],
            _ => panic!("{line}"),
        };
        if name == "default" {
            text += &format!("default = \"{action}\"\n");
            continue;
        }
        more.push(words[4..].to_vec());
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
    let mut policy =
        parse(&text, &Services::embedded()).expect("the test's policy is valid").policy;
    policy.sets = sets;
    policy.interfaces = interfaces.unwrap_or(policy.interfaces);
    for (rule, fields) in policy.rules.iter_mut().zip(more) {
        for field in fields {
            let (key, list) = field.split_once('=').unwrap();
            ask(rule, key, list, &policy.sets);
        }
    }
    policy
}

fn set(name: &str, prefixes: &str) -> Set {
    let prefixes = prefixes.split(',').filter(|prefix| !prefix.is_empty());
    Set {
        name: name.to_owned(),
        prefixes: prefixes.map(prefix).collect::<Vec<_>>().into(),
        file: None,
        span: 0..0,
        line: 0,
    }
}

fn patterns(names: &str) -> Vec<InterfacePattern> {
    let pattern = |text: &str| InterfacePattern {
        text: text.to_owned(),
        is_glob: text.contains(['*', '?', '[', '{']),
        span: 0..0,
    };
    names.split(',').map(pattern).collect()
}

fn ask(rule: &mut Rule, key: &str, list: &str, sets: &[Set]) {
    let numbers = || {
        list.split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            NumberRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
        })
    };
    match key {
        "src" => rule.src = addresses(list, sets),
        "dst" => rule.dst = addresses(list, sets),
        "src_port" => rule.src_ports = numbers().collect(),
        "vlan" => rule.vlans = numbers().collect(),
        "icmp_type" => {
            let all_codes = |types: NumberRange| IcmpRange {
                first: types.first << 8,
                last: types.last << 8 | 0xff,
            };
            rule.icmp_types = numbers().map(all_codes).collect();
        }
        "interface" => rule.interfaces = patterns(list),
        _ => panic!("{key}"),
    }
}

/// A prefix, or an address.
fn prefix(text: &str) -> ipnet::IpNet {
    text.parse().unwrap_or_else(|_| text.parse::<std::net::IpAddr>().unwrap().into())
}

fn addresses(list: &str, sets: &[Set]) -> Addresses {
    let mut addresses = Addresses::default();
    for item in list.split(',') {
        let (items, item) = match item.strip_prefix('!') {
            Some(item) => (&mut addresses.negative, item),
            None => (&mut addresses.positive, item),
        };
        items.push(match item.strip_prefix('@') {
            Some(name) => {
                let index = sets.iter().position(|set| set.name == name).unwrap();
                AddressItem::Set(SetId(index as u32))
            }
            None => AddressItem::Prefix(prefix(item)),
        });
    }
    addresses
}

pub(super) fn messages(policy: &Policy, host: &HostFacts) -> Vec<String> {
    lint(policy, host).into_iter().map(|warning| warning.message).collect()
}

pub(super) fn reach(policy: &Policy) -> Reach<'_> {
    Reach::new(policy, |_, _, _, _| None)
}

/// The rules that are shadowed, each with those that shadow it.
pub(super) fn shadows(rules: &str) -> String {
    let policy = policy(rules);
    let name = |index: usize| policy.rules[index].name.clone().unwrap_or_default();
    let reach = reach(&policy);
    let lines = reach.shadowed.iter().map(|shadowed| {
        let by: Vec<String> = shadowed.by.iter().map(|&index| name(index)).collect();
        let more = if shadowed.is_complete { "" } else { ",..." };
        format!("{}<{}{more}", name(shadowed.rule), by.join(","))
    });
    lines.collect::<Vec<_>>().join(" ")
}
