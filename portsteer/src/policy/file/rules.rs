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
            if self.is_over() {
                break;
            }
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

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{
        super::{
            MAX_NAME_CHARS,
            tests::{HEAD, brief, errors, policy},
        },
        *,
    };
    use crate::policy::diagnostic::line_column;

    /// Errors in a rule: its lines, what is said about it. They begin on line 4.
    #[test]
    fn errors_of_a_rule() {
        let cases: &[(&str, &str)] = &[
            (
                r#"name = "x"
"#,
                r#"3:1 [[[rules]]] the rule has no `action` (what happens to a packet that matches?) add `action = "pass"`, `action = "drop"` or `action = { steer = "NAME" }`
"#,
            ),
            (
                r#"name = ""
action = "drop"
"#,
                r#"4:8 [""] this is no name for a rule (a name has at least one character)
"#,
            ),
            (
                r#"name = " x"
action = "drop"
"#,
                r#"4:8 [" x"] this is no name for a rule (a name neither begins nor ends with white space)
"#,
            ),
            (
                r#"name = "a\tb"
action = "drop"
"#,
                r#"4:8 ["a\tb"] this is no name for a rule (a name has no control characters)
"#,
            ),
            (
                "name = \"a\u{202e}b\"\naction = \"drop\"\n",
                "4:8 [\"a\u{202e}b\"] this is no name for a rule (a name has no invisible characters)\n",
            ),
            (
                r#"name = 1
action = "drop"
"#,
                r#"4:8 [1] an integer cannot stand here (expected a string)
"#,
            ),
            (
                r#"protocol = "tpc"
action = "drop"
"#,
                r#"4:12 ["tpc"] unknown protocol `tpc` (not a protocol) did you mean "tcp"?
"#,
            ),
            (
                r#"protocol = "TCP"
action = "drop"
"#,
                r#"4:12 ["TCP"] unknown protocol `TCP` (not a protocol) did you mean "tcp"?
"#,
            ),
            (
                r#"protocol = "any"
action = "drop"
"#,
                r#"4:12 ["any"] unknown protocol `any` (not a protocol) leave `protocol` out to match any
"#,
            ),
            (
                r#"protocol = "gre"
action = "drop"
"#,
                r#"4:12 ["gre"] unknown protocol `gre` (not a protocol) write its number: 47
"#,
            ),
            (
                r#"protocol = "6"
action = "drop"
"#,
                r#"4:12 ["6"] unknown protocol `6` (not a protocol) write the number without quotes: 6
"#,
            ),
            (
                r#"protocol = "udp-lite"
action = "drop"
"#,
                r#"4:12 ["udp-lite"] unknown protocol `udp-lite` (not a protocol) did you mean "udplite"?
"#,
            ),
            (
                r#"protocol = "xyzzy"
action = "drop"
"#,
                r#"4:12 ["xyzzy"] unknown protocol `xyzzy` (not a protocol) protocols are tcp, udp, udplite, sctp, dccp, icmp, icmpv6, or a number from 0 to 255
"#,
            ),
            (
                r#"protocol = 256
action = "drop"
"#,
                r#"4:12 [256] this is no IP protocol number (protocol numbers are 0 to 255)
"#,
            ),
            (
                r#"protocol = -1
action = "drop"
"#,
                r#"4:12 [-1] this is no IP protocol number (protocol numbers are 0 to 255)
"#,
            ),
            (
                r#"protocol = []
action = "drop"
"#,
                r#"4:12 [[]] `protocol` is empty, so the rule matches nothing leave `protocol` out to match any
"#,
            ),
            (
                r#"protocol = ["tcp", true]
action = "drop"
"#,
                r#"4:20 [true] a boolean cannot stand here (expected a protocol's name or number, or a list of them)
"#,
            ),
            (
                r#"protocol = "icmp"
dst_port = 1
action = "drop"
"#,
                r#"4:12 ["icmp"] protocol `icmp` has no ports (cannot stand beside `dst_port`) remove `dst_port`
"#,
            ),
            (
                r#"dst_port = [80]
protocol = ["tcp", "icmpv6", 47]
action = "drop"
"#,
                r#"5:20 ["icmpv6"] protocol `icmpv6` has no ports (cannot stand beside `dst_port`) give it a rule of its own, without `dst_port`
5:30 [47] protocol `47` has no ports (cannot stand beside `dst_port`) give it a rule of its own, without `dst_port`
"#,
            ),
            (
                r#"dst_port = "htps"
action = "drop"
"#,
                r#"4:12 ["htps"] `htps` names no port (neither a port, nor a range, nor a service's name) did you mean "https"?
"#,
            ),
            (
                r#"dst_port = 65536
action = "drop"
"#,
                r#"4:12 [65536] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = -1
action = "drop"
"#,
                r#"4:12 [-1] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "70000"
action = "drop"
"#,
                r#"4:12 ["70000"] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "1-70000"
action = "drop"
"#,
                r#"4:12 ["1-70000"] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "9099-9000"
action = "drop"
"#,
                r#"4:12 ["9099-9000"] the range `9099-9000` runs backwards (it ends before it begins) did you mean "9000-9099"?
"#,
            ),
            (
                r#"dst_port = []
action = "drop"
"#,
                r#"4:12 [[]] `dst_port` is empty, so the rule matches nothing leave `dst_port` out to match any
"#,
            ),
            (
                r#"dst_port = 1.5
action = "drop"
"#,
                r#"4:12 [1.5] a float cannot stand here (expected a port, a range such as "9000-9099", a service's name, or a list of them)
"#,
            ),
            (
                r#"dst_port = [80, [81]]
action = "drop"
"#,
                r#"4:17 [[81]] a list cannot stand here (expected a port, a range such as "9000-9099", a service's name, or a list of them)
"#,
            ),
            (
                r#"dst_port = 99999999999999999999
action = "drop"
"#,
                r#"4:12 [99999999999999999999] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"dst_port = "9000 - 9099"
action = "drop"
"#,
                r#"4:12 ["9000 - 9099"] `9000 - 9099` names no port (neither a port, nor a range, nor a service's name) did you mean "9000-9099"?
"#,
            ),
            (
                r#"dst_port = "9000:9099"
action = "drop"
"#,
                r#"4:12 ["9000:9099"] `9000:9099` names no port (neither a port, nor a range, nor a service's name) did you mean "9000-9099"?
"#,
            ),
            (
                r#"dst_port = "1024-"
action = "drop"
"#,
                r#"4:12 ["1024-"] `1024-` names no port (neither a port, nor a range, nor a service's name) write both ends: "1024-65535"
"#,
            ),
            (
                r#"dst_port = "-1"
action = "drop"
"#,
                r#"4:12 ["-1"] `-1` names no port (neither a port, nor a range, nor a service's name) write both ends: "0-1"
"#,
            ),
            (
                r#"dst_port = "80,443"
action = "drop"
"#,
                r#"4:12 ["80,443"] `80,443` names no port (neither a port, nor a range, nor a service's name) write several ports as a list: `[80, "9000-9099"]`
"#,
            ),
            (
                r#"dst_port = " 80"
action = "drop"
"#,
                r#"4:12 [" 80"] ` 80` names no port (neither a port, nor a range, nor a service's name) did you mean 80?
"#,
            ),
            (
                r#"dst_port = "any"
action = "drop"
"#,
                r#"4:12 ["any"] `any` names no port (neither a port, nor a range, nor a service's name) leave `dst_port` out to match any
"#,
            ),
            (
                r#"dst_port = "SSH"
action = "drop"
"#,
                r#"4:12 ["SSH"] `SSH` names no port (neither a port, nor a range, nor a service's name) did you mean "ssh"?
"#,
            ),
            (
                r#"dst_port = "welknown"
action = "drop"
"#,
                r#"4:12 ["welknown"] `welknown` names no port (neither a port, nor a range, nor a service's name) did you mean "well-known"?
"#,
            ),
            (
                r#"dst_port = ""
action = "drop"
"#,
                r#"4:12 [""] `""` names no port (neither a port, nor a range, nor a service's name)
"#,
            ),
            (
                r#"action = "allow"
"#,
                r#"4:10 ["allow"] `action` cannot be `allow` (expected "pass", "drop" or { steer = "NAME" }) did you mean "pass"?
"#,
            ),
            (
                r#"action = "block"
"#,
                r#"4:10 ["block"] `action` cannot be `block` (expected "pass", "drop" or { steer = "NAME" }) did you mean "drop"?
"#,
            ),
            (
                r#"action = "Drop"
"#,
                r#"4:10 ["Drop"] `action` cannot be `Drop` (expected "pass", "drop" or { steer = "NAME" }) did you mean "drop"?
"#,
            ),
            (
                r#"action = "reject"
"#,
                r#"4:10 ["reject"] the action `reject` is not there yet (this release can pass, drop and steer) "drop" discards without an answer
"#,
            ),
            (
                r#"action = "steer"
"#,
                r#"4:10 ["steer"] the rule does not say where it steers to (a target is missing) write `action = { steer = "NAME" }`
"#,
            ),
            (
                r#"action = { steer = "web" }
"#,
                r#"4:20 ["web"] there is no target `web` (unknown target) the policy has no targets: add `[targets.web]`
"#,
            ),
            (
                r#"action = { drop = 1 }
"#,
                r#"4:12 [drop] an action has no key `drop` (unknown key) write `action = "drop"`
"#,
            ),
            (
                r#"action = 1
"#,
                r#"4:10 [1] an integer cannot stand here (expected "pass", "drop" or { steer = "NAME" })
"#,
            ),
            (
                r#"action = drop
"#,
                r#"4:10 [drop] string values must be quoted (expected a string, a number or a list) write "drop"
"#,
            ),
            (
                r#"dst_prot = 80
action = "drop"
"#,
                r#"4:1 [dst_prot] a rule has no key `dst_prot` (unknown key) did you mean `dst_port`?
"#,
            ),
            (
                r#"port = 80
proto = "tcp"
action = "drop"
"#,
                r#"4:1 [port] a rule has no key `port` (unknown key) did you mean `dst_port`?
5:1 [proto] a rule has no key `proto` (unknown key) did you mean `protocol`?
"#,
            ),
            (
                r#"default = "drop"
malformed = "drop"
action = "drop"
"#,
                r#"4:1 [default] a rule has no key `default` (unknown key) `default` belongs at the top of the file, before the first `[`
5:1 [malformed] a rule has no key `malformed` (unknown key) `malformed` belongs in the section `[options]`
"#,
            ),
            (
                r#"xyzzy = 1
action = "drop"
"#,
                r#"4:1 [xyzzy] a rule has no key `xyzzy` (unknown key) the keys here are name, protocol, src, src_port, dst, dst_port, icmp_type, vlan, interface, action
"#,
            ),
            (
                r#"protocol = "icmp"
src_port = 1
action = "drop"
"#,
                r#"4:12 ["icmp"] protocol `icmp` has no ports (cannot stand beside `src_port`) remove `src_port`
"#,
            ),
            (
                r#"dst_port = 1
protocol = ["tcp", "icmp"]
src_port = 1
action = "drop"
"#,
                r#"5:20 ["icmp"] protocol `icmp` has no ports (cannot stand beside `dst_port` and `src_port`) give it a rule of its own, without `dst_port` and `src_port`
"#,
            ),
            (
                r#"src_port = []
action = "drop"
"#,
                r#"4:12 [[]] `src_port` is empty, so the rule matches nothing leave `src_port` out to match any
"#,
            ),
            (
                r#"src_port = "any"
action = "drop"
"#,
                r#"4:12 ["any"] `any` names no port (neither a port, nor a range, nor a service's name) leave `src_port` out to match any
"#,
            ),
            (
                r#"src_port = "htps"
action = "drop"
"#,
                r#"4:12 ["htps"] `htps` names no port (neither a port, nor a range, nor a service's name) did you mean "https"?
"#,
            ),
            (
                r#"src_port = 65536
action = "drop"
"#,
                r#"4:12 [65536] this is no port (ports are 0 to 65535)
"#,
            ),
            (
                r#"source = "::1"
daddr = "::1"
sport = 1
source_port = 1
iface = "eth0"
in = "eth0"
vid = 1
vlan_id = 1
type = 8
icmp = 8
to = "::1"
from = "::1"
action = "drop"
"#,
                r#"4:1 [source] a rule has no key `source` (unknown key) did you mean `src`?
5:1 [daddr] a rule has no key `daddr` (unknown key) did you mean `dst`?
6:1 [sport] a rule has no key `sport` (unknown key) did you mean `src_port`?
7:1 [source_port] a rule has no key `source_port` (unknown key) did you mean `src_port`?
8:1 [iface] a rule has no key `iface` (unknown key) did you mean `interface`?
9:1 [in] a rule has no key `in` (unknown key) did you mean `interface`?
10:1 [vid] a rule has no key `vid` (unknown key) did you mean `vlan`?
11:1 [vlan_id] a rule has no key `vlan_id` (unknown key) did you mean `vlan`?
12:1 [type] a rule has no key `type` (unknown key) did you mean `icmp_type`?
13:1 [icmp] a rule has no key `icmp` (unknown key) did you mean `icmp_type`?
14:1 [to] a rule has no key `to` (unknown key) did you mean `dst`?
15:1 [from] a rule has no key `from` (unknown key) did you mean `src`?
"#,
            ),
            (
                r#"scr = "::1"
action = "drop"
"#,
                r#"4:1 [scr] a rule has no key `scr` (unknown key) did you mean `src`?
"#,
            ),
            (
                r#"dts = "::1"
action = "drop"
"#,
                r#"4:1 [dts] a rule has no key `dts` (unknown key) did you mean `dst`?
"#,
            ),
            (
                r#"vlam = 1
action = "drop"
"#,
                r#"4:1 [vlam] a rule has no key `vlam` (unknown key) did you mean `vlan`?
"#,
            ),
            (
                r#"interfce = "eth0"
action = "drop"
"#,
                r#"4:1 [interfce] a rule has no key `interfce` (unknown key) did you mean `interface`?
"#,
            ),
            (
                r#"icmp_typ = 1
action = "drop"
"#,
                r#"4:1 [icmp_typ] a rule has no key `icmp_typ` (unknown key) did you mean `icmp_type`?
"#,
            ),
            (
                r#"interfaces = ["eth0"]
action = "drop"
"#,
                r#"4:1 [interfaces] a rule has no key `interfaces` (unknown key) did you mean `interface`?
"#,
            ),
            (
                r#"cpus = [1]
action = "drop"
"#,
                r#"4:1 [cpus] a rule has no key `cpus` (unknown key) `cpus` belongs in a target, after a line `[targets.NAME]`
"#,
            ),
            (
                r#"sets = []
action = "drop"
"#,
                r#"4:1 [sets] a rule has no key `sets` (unknown key) `sets` belongs at the top of the file, before the first `[`
"#,
            ),
            (
                r#"src_prt = 1
action = "drop"
"#,
                r#"4:1 [src_prt] a rule has no key `src_prt` (unknown key) did you mean `src_port`?
"#,
            ),
            (
                r#"action = "drop"
name = "x"
[[rules]]
action = "drop"
name = "x"
"#,
                r#"8:8 ["x"] two rules are named `x` (again here) a rule's counter belongs to its name, so names are unique
"#,
            ),
            (
                r#"dst_port = 80
dst_port = 81
action = "drop"
"#,
                r#"5:1 [dst_port] the key `dst_port` is there twice (again here)
"#,
            ),
            (
                r#"dst_port = [https]
action = tcp
"#,
                r#"4:13 [https] string values must be quoted (expected a string, a number or a list) write "https"
5:10 [tcp] string values must be quoted (expected a string, a number or a list) write "tcp"
"#,
            ),
            (
                r#"protocol = "tcp" dst_port = 80
action = "drop"
"#,
                r#"4:18 [] unexpected key or value (expected newline, `#`)
"#,
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{HEAD}[[rules]]\n{lines}");
            assert_eq!(brief(&text, &errors(&text)), *expected, "{lines}");
        }
    }

    #[test]
    fn related_places() {
        for (lines, expected) in [
            ("name = 'a'\naction = 'drop'\n[[rules]]\nname = 'a'\naction = 'drop'\n", "4:8"),
            ("dst_port = 1\naction = 'drop'\ndst_port = 2\n", "4:1"),
            ("protocol = 'icmp'\ndst_port = 1\naction = 'drop'\n", "5:1"),
        ] {
            let text = format!("{HEAD}[[rules]]\n{lines}");
            let errors = errors(&text);
            let (line, column) = line_column(&text, errors[0].related[0].0.start);
            assert_eq!(format!("{line}:{column}"), expected);
        }
    }

    #[test]
    fn names_have_their_limit() {
        let name = "\u{e4}".repeat(MAX_NAME_CHARS);
        let text = |name: &str| format!("{HEAD}[[rules]]\nname = \"{name}\"\naction = \"drop\"\n");
        assert_eq!(policy(&text(&name)).rules[0].name.as_deref(), Some(&*name));
        assert_eq!(errors(&text(&(name + "x"))).len(), 1);
    }

    #[test]
    fn many_rules() {
        let mut text = HEAD.to_owned();
        for number in 0..MAX_RULES {
            let port = number % 65_536;
            writeln!(text, "[[rules]]\nname=\"r{number}\"\ndst_port={port}\naction=\"drop\"")
                .unwrap();
        }
        let parsed = policy(&text);
        assert_eq!(parsed.rules.len(), MAX_RULES);
        assert_eq!(parsed.rules[MAX_RULES - 1].line, 3 + (MAX_RULES - 1) * 4);

        text.push_str("[[rules]]\naction = \"drop\"\n[[rules]]\naction = 1\n");
        let line = 3 + MAX_RULES * 4;
        assert_eq!(
            brief(&text, &errors(&text)),
            format!(
                "{line}:1 [[[rules]]] the policy has {} rules, but there is room for {MAX_RULES} \
                 (the first rule that is too many)\n",
                MAX_RULES + 2
            )
        );
    }
}
