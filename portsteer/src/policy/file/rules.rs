//! The policy file's `[[rules]]`.

use std::{collections::HashMap, ops::Range};

use portsteer_common::image::MAX_RULES;
use toml::de::{DeTable, DeValue};

use super::{
    Key, Reader, STEER, Value, actions::steer_to, did_you_mean, interfaces::Attached, is_complete,
    known, name_fault, protocols::Protocols, quote, ranges::merge, sets::Sets, targets::Targets,
};
use crate::policy::{Action, Rule, diagnostic::Diagnostic};

pub(super) const RULE_KEYS: [&str; 10] = [
    "name",
    "protocol",
    "src",
    "src_port",
    "dst",
    "dst_port",
    "icmp_type",
    "vlan",
    "interface",
    "action",
];

/// Words that other tools use, with the key that means the same here.
pub(super) const RULE_KEY_SYNONYMS: [(&str, &str); 67] = [
    ("port", "dst_port"),
    ("ports", "dst_port"),
    ("dport", "dst_port"),
    ("dports", "dst_port"),
    ("dst_ports", "dst_port"),
    ("dstport", "dst_port"),
    ("destination_port", "dst_port"),
    ("to_port", "dst_port"),
    ("source", "src"),
    ("sources", "src"),
    ("saddr", "src"),
    ("src_ip", "src"),
    ("srcip", "src"),
    ("source_ip", "src"),
    ("src_addr", "src"),
    ("src_address", "src"),
    ("source_address", "src"),
    ("from", "src"),
    ("destination", "dst"),
    ("destinations", "dst"),
    ("dest", "dst"),
    ("daddr", "dst"),
    ("dst_ip", "dst"),
    ("dstip", "dst"),
    ("destination_ip", "dst"),
    ("dst_addr", "dst"),
    ("dst_address", "dst"),
    ("destination_address", "dst"),
    ("to", "dst"),
    ("sport", "src_port"),
    ("sports", "src_port"),
    ("src_ports", "src_port"),
    ("srcport", "src_port"),
    ("source_port", "src_port"),
    ("from_port", "src_port"),
    ("interfaces", "interface"),
    ("iface", "interface"),
    ("ifaces", "interface"),
    ("device", "interface"),
    ("dev", "interface"),
    ("in", "interface"),
    ("iif", "interface"),
    ("iifname", "interface"),
    ("in_interface", "interface"),
    ("vlans", "vlan"),
    ("vlan_id", "vlan"),
    ("vid", "vlan"),
    ("tag", "vlan"),
    ("type", "icmp_type"),
    ("types", "icmp_type"),
    ("icmp", "icmp_type"),
    ("icmp_types", "icmp_type"),
    ("icmpv6", "icmp_type"),
    ("icmpv6_type", "icmp_type"),
    ("icmp6_type", "icmp_type"),
    ("service", "dst_port"),
    ("services", "dst_port"),
    ("proto", "protocol"),
    ("protocols", "protocol"),
    ("ip_protocol", "protocol"),
    ("target", "action"),
    ("verdict", "action"),
    ("policy", "action"),
    ("then", "action"),
    ("id", "name"),
    ("label", "name"),
    ("title", "name"),
];

/// What rules can name.
pub(super) struct Named<'a, 't> {
    pub attached: Attached<'a>,
    pub sets: &'a Sets<'t>,
    pub targets: &'a Targets<'t>,
}

impl Reader<'_> {
    pub(super) fn read_rules(
        &mut self,
        key: &Key<'_>,
        value: &Value<'_>,
        named: &Named<'_, '_>,
    ) -> Vec<Rule> {
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            DeValue::Table(_) => {
                self.errors.push(
                    Diagnostic::error("`rules` is one table, but a list of tables is expected")
                        .at(key.span())
                        .label("one pair of brackets is missing")
                        .help("begin every rule with a line `[[rules]]`"),
                );
                return Vec::new();
            }
            _ => {
                let help = "begin every rule with a line `[[rules]]`";
                self.wrong_type(value, "a list of tables", Some(help.to_owned()));
                return Vec::new();
            }
        };
        if let Some(first_too_many) = items.get(MAX_RULES) {
            self.errors.push(
                Diagnostic::error(format!(
                    "the policy has {} rules, but there is room for {MAX_RULES}",
                    items.len()
                ))
                .at(first_too_many.span())
                .label("the first rule that is too many"),
            );
        }
        let mut first_spans = HashMap::new();
        let mut rules = Vec::with_capacity(items.len().min(MAX_RULES));
        for item in items.iter().take(MAX_RULES) {
            match item.get_ref() {
                DeValue::Table(table) => {
                    rules.extend(self.read_rule(table, item.span(), named, &mut first_spans));
                }
                _ => self.wrong_type(item, "a table", None),
            }
        }
        rules
    }

    fn read_rule<'t>(
        &mut self,
        table: &'t DeTable<'_>,
        span: Range<usize>,
        named: &Named<'_, '_>,
        first_spans: &mut HashMap<&'t str, Range<usize>>,
    ) -> Option<Rule> {
        let mut rule = Rule::any(Action::Pass);
        let mut action = None;
        let mut protocols = Protocols::default();
        let mut port_keys = Vec::new();
        let mut icmp_types = None;
        for entry in table.iter().filter(is_complete) {
            let (key, value) = entry;
            match key.get_ref().as_ref() {
                "name" => rule.name = self.read_name(value, first_spans),
                "protocol" => protocols = self.read_protocols(value),
                "src" => rule.src = self.read_addresses("src", value, named.sets),
                "dst" => rule.dst = self.read_addresses("dst", value, named.sets),
                "src_port" => {
                    port_keys.push(key);
                    rule.src_ports = merge(self.read_ports("src_port", value));
                }
                "dst_port" => {
                    port_keys.push(key);
                    rule.dst_ports = merge(self.read_ports("dst_port", value));
                }
                "icmp_type" => icmp_types = Some(entry),
                "vlan" => rule.vlans = merge(self.read_vlans(value)),
                "interface" => {
                    rule.interfaces = self.read_rule_interfaces(value, &named.attached);
                }
                "action" => action = self.read_rule_action(value, named.targets),
                _ => self.refuse_rule_key(key),
            }
        }
        if !port_keys.is_empty() {
            port_keys.sort_by_key(|key| key.span().start); // the table sorts by name
            self.refuse_protocols_without_ports(&protocols, &port_keys);
        }
        if let Some((key, value)) = icmp_types {
            rule.icmp_types = merge(self.read_icmp_types(key, value, &protocols));
        }
        if self.is_whole && table.get("action").is_none() {
            self.errors.push(
                Diagnostic::error("the rule has no `action`")
                    .at(span.clone())
                    .label("what happens to a packet that matches?")
                    .help(
                        "add `action = \"pass\"`, `action = \"drop\"` or \
                         `action = { steer = \"NAME\" }`",
                    ),
            );
        }
        rule.protocols = protocols.items.into_iter().map(|item| item.number).collect();
        rule.protocols.sort_unstable();
        rule.line = self.line_starts.partition_point(|&start| start <= span.start);
        rule.span = span;
        rule.action = action?;
        Some(rule)
    }

    fn read_name<'t>(
        &mut self,
        value: &'t Value<'_>,
        first_spans: &mut HashMap<&'t str, Range<usize>>,
    ) -> Option<String> {
        let Some(name) = value.get_ref().as_str() else {
            self.wrong_type(value, "a string", None);
            return None;
        };
        if let Some(fault) = name_fault(name) {
            self.errors.push(
                Diagnostic::error("this is no name for a rule").at(value.span()).label(fault),
            );
            return None;
        }
        if let Some(first) = first_spans.get(name) {
            self.errors.push(
                Diagnostic::error(format!("two rules are named {}", quote(name)))
                    .at(value.span())
                    .label("again here")
                    .related(first.clone(), "first here")
                    .help("a rule's counter belongs to its name, so names are unique"),
            );
            return None;
        }
        first_spans.insert(name, value.span());
        Some(name.to_owned())
    }

    fn refuse_rule_key(&mut self, key: &Key<'_>) {
        let word = key.get_ref().as_ref();
        let help = if word == STEER {
            Some(format!("write `action = {}`", steer_to("NAME")))
        } else if let Some(near) = known(&RULE_KEY_SYNONYMS, word) {
            Some(did_you_mean(&format!("`{near}`")))
        } else {
            self.elsewhere(word, "rules").or_else(|| {
                self.suggest(word, RULE_KEYS).map(|near| did_you_mean(&format!("`{near}`")))
            })
        };
        self.unknown_key(key, "a rule", help, &RULE_KEYS);
    }
}
