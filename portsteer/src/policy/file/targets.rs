//! The policy file's `[targets.NAME]`: where rules can steer to.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

use portsteer_common::steering::MAX_TARGETS;
use toml::de::{DeTable, DeValue};

use super::{
    ANY_WORDS, Entry, Key, Reader, Value, did_you_mean, in_order,
    interfaces::wrong_interface,
    is_complete, is_number, known, name_fault, number_of, quote,
    ranges::{RangeFault, parse_range, range_form, runs_backwards},
    toml_key,
};
use crate::policy::{
    DEFAULT_QUEUE, NextHop, NumberRange, Target, TargetId, TargetKind, diagnostic::Diagnostic,
};

/// The longest queue of a CPU, in packets: the kernel's limit.
const MAX_QUEUE: u32 = 16_384;

pub(super) const TARGET_KEYS: [&str; 5] = ["interface", "via", "mac", "cpus", "queue"];

/// Words that other tools use, with the key that means the same here.
const TARGET_KEY_SYNONYMS: [(&str, &str); 19] = [
    ("iface", "interface"),
    ("device", "interface"),
    ("dev", "interface"),
    ("oif", "interface"),
    ("port", "interface"),
    ("gateway", "via"),
    ("gw", "via"),
    ("next_hop", "via"),
    ("nexthop", "via"),
    ("address", "via"),
    ("ip", "via"),
    ("dst_mac", "mac"),
    ("mac_address", "mac"),
    ("lladdr", "mac"),
    ("cpu", "cpus"),
    ("core", "cpus"),
    ("cores", "cpus"),
    ("queue_size", "queue"),
    ("qsize", "queue"),
];

const SECTION: &str = "write it as a section: `[targets.NAME]`";
const VIA_EXPECTED: &str = "expected one such as \"10.0.80.2\" or \"fe80::2\"";
const MAC_EXPECTED: &str = "expected one such as \"02:00:00:00:00:01\", or \"keep\"";

/// The targets of a file, those with faults included: rules that name these are not wrong.
pub(super) struct Targets<'t> {
    /// The ones without faults, in the file's order.
    pub list: Vec<Target>,
    /// All names, in the file's order.
    pub names: Vec<&'t str>,
    /// By name; `None` where the target has a fault.
    pub ids: HashMap<&'t str, Option<TargetId>>,
    /// Whether these are all that the file was meant to have.
    is_complete: bool,
}

impl Targets<'_> {
    pub(super) fn none() -> Self {
        Self { list: Vec::new(), names: Vec::new(), ids: HashMap::new(), is_complete: true }
    }
}

/// The keys of a target that are there, wherever their values are right.
#[derive(Default)]
struct Keys {
    interface: Option<Range<usize>>,
    via: Option<Range<usize>>,
    mac: Option<Range<usize>>,
    cpus: Option<Range<usize>>,
    queue: Option<Range<usize>>,
}

impl Reader<'_> {
    pub(super) fn read_targets<'t>(&mut self, value: &'t Value<'_>) -> Targets<'t> {
        let mut targets = Targets::none();
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(value, "a table of targets", Some(SECTION.to_owned()));
            targets.is_complete = false;
            return targets;
        };
        let mut entries: Vec<Entry<'_, '_>> = table.iter().filter(is_complete).collect();
        entries.sort_by_key(|(key, _)| key.span().start); // the table sorts by name
        if let Some((first_too_many, _)) = entries.get(MAX_TARGETS) {
            self.errors.push(
                Diagnostic::error(format!(
                    "the policy has {} targets, but there is room for {MAX_TARGETS}",
                    entries.len()
                ))
                .at(first_too_many.span())
                .label("the first target that is too many"),
            );
        }
        for (index, &(key, value)) in entries.iter().enumerate() {
            let name = key.get_ref().as_ref();
            let target = if index < MAX_TARGETS { self.read_target(key, value) } else { None };
            let id = u16::try_from(targets.list.len()).ok().map(TargetId);
            targets.names.push(name);
            targets.ids.insert(name, target.as_ref().and(id));
            targets.list.extend(target);
        }
        targets
    }

    fn read_target(&mut self, key: &Key<'_>, value: &Value<'_>) -> Option<Target> {
        let name = key.get_ref().as_ref();
        let DeValue::Table(table) = value.get_ref() else {
            let help = if TARGET_KEYS.contains(&name) {
                format!("a target has a name: begin it with a line `[targets.NAME]`, then `{name}`")
            } else {
                format!("write it as a section: `[targets.{}]`", toml_key(name))
            };
            self.wrong_type(value, "a table", Some(help));
            return None;
        };
        let fault = name_fault(name);
        let is_named = fault.is_none();
        if let Some(fault) = fault {
            self.errors.push(
                Diagnostic::error("this is no name for a target").at(key.span()).label(fault),
            );
        }
        let kind = self.read_target_kind(key, table)?;
        let span = key.span();
        let line = self.line_starts.partition_point(|&start| start <= span.start);
        is_named.then(|| Target { name: name.to_owned(), kind, span, line })
    }

    fn read_target_kind(&mut self, name: &Key<'_>, table: &DeTable<'_>) -> Option<TargetKind> {
        let mut keys = Keys::default();
        let mut interface = None;
        let (mut via, mut mac) = (None, None);
        let mut cpus = None;
        let mut queue = Some(DEFAULT_QUEUE);
        for (key, value) in table.iter().filter(is_complete) {
            let span = Some(key.span());
            match key.get_ref().as_ref() {
                "interface" => {
                    keys.interface = span;
                    interface = self.read_target_interface(value);
                }
                "via" => {
                    keys.via = span;
                    via = self.read_via(value);
                }
                "mac" => {
                    keys.mac = span;
                    mac = self.read_mac(value);
                }
                "cpus" => {
                    keys.cpus = span;
                    cpus = self.read_cpus(value);
                }
                "queue" => {
                    keys.queue = span;
                    queue = self.read_queue(value);
                }
                _ => self.refuse_target_key(key),
            }
        }
        if !self.target_is_one_thing(name, &keys) {
            return None;
        }
        if keys.cpus.is_some() {
            return Some(TargetKind::Cpus { cpus: cpus?, queue: queue? });
        }
        Some(TargetKind::Interface { interface: interface?, next_hop: via.or(mac)? })
    }

    /// Reports keys that are missing, and those that cannot stand beside others.
    fn target_is_one_thing(&mut self, name: &Key<'_>, keys: &Keys) -> bool {
        let shown = quote(name.get_ref().as_ref());
        let errors_before = self.errors.len();
        match (&keys.interface, &keys.cpus) {
            (Some(interface), Some(cpus)) => {
                let (first, second) = in_order(interface, cpus);
                self.errors.push(
                    Diagnostic::error(format!(
                        "the target {shown} has both `interface` and `cpus`"
                    ))
                    .at(second)
                    .label("a target is one or the other")
                    .related(first, "beside this")
                    .help("make them two targets"),
                );
                return false;
            }
            (None, None) if self.is_whole => {
                let help = if keys.via.is_some() || keys.mac.is_some() {
                    "add the interface to send from: `interface = \"veth-web\"`"
                } else if keys.queue.is_some() {
                    "add the CPUs: `cpus = [2, 3]`"
                } else {
                    "add `interface` with `via` or `mac`, or add `cpus`"
                };
                self.errors.push(
                    Diagnostic::error(format!("the target {shown} leads nowhere"))
                        .at(name.span())
                        .label("it has neither `interface` nor `cpus`")
                        .help(help),
                );
            }
            _ => {}
        }
        for (word, key, owner, beside) in [
            ("via", &keys.via, "interface", &keys.cpus),
            ("mac", &keys.mac, "interface", &keys.cpus),
            ("queue", &keys.queue, "cpus", &keys.interface),
        ] {
            let (Some(key), Some(beside)) = (key, beside) else { continue };
            let other = if owner == "cpus" { "interface" } else { "cpus" };
            self.errors.push(
                Diagnostic::error(format!("a target with `{other}` has no `{word}`"))
                    .at(key.clone())
                    .label(format!("`{word}` goes with `{owner}`"))
                    .related(beside.clone(), "cannot stand beside this")
                    .help(format!("remove `{word}`")),
            );
        }
        match (&keys.via, &keys.mac, &keys.interface) {
            (Some(via), Some(mac), _) if keys.cpus.is_none() => {
                let (first, second) = in_order(via, mac);
                self.errors.push(
                    Diagnostic::error(format!("the target {shown} has both `via` and `mac`"))
                        .at(second)
                        .label("frames have one destination")
                        .related(first, "beside this")
                        .help("keep `via` to have the MAC address looked up, or `mac` to set it"),
                );
            }
            (None, None, Some(interface)) if self.is_whole => {
                self.errors.push(
                    Diagnostic::error(format!(
                        "the target {shown} does not say where its frames are addressed to"
                    ))
                    .at(interface.clone())
                    .label("neither `via` nor `mac`")
                    .help(
                        "a host discards frames with a foreign destination MAC: add \
                         `via = \"10.0.80.2\"` (the next hop's IP address), \
                         `mac = \"02:00:00:00:00:01\"`, or `mac = \"keep\"` to leave them as they \
                         are",
                    ),
                );
            }
            _ => {}
        }
        self.errors.len() == errors_before
    }

    fn read_target_interface(&mut self, value: &Value<'_>) -> Option<String> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, "an interface's name, as a string", None);
            return None;
        };
        if text.contains(['*', '?', '[', '{']) {
            self.errors.push(
                Diagnostic::error(format!("{} is a glob", quote(text)))
                    .at(value.span())
                    .label("a target is one interface")
                    .help("write its whole name"),
            );
            return None;
        }
        if let Some(error) = wrong_interface(text, false) {
            self.errors.push(error.at(value.span()));
            return None;
        }
        Some(text.to_owned())
    }

    fn read_via(&mut self, value: &Value<'_>) -> Option<NextHop> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, "the next hop's IP address, as a string", None);
            return None;
        };
        let error = match text.parse::<IpAddr>() {
            Ok(address) => match via_fault(address) {
                None => return Some(NextHop::Via(address)),
                Some(fault) => {
                    let mut error = Diagnostic::error(format!("{} is no next hop", quote(text)))
                        .help("write the address of the host that the frames are for");
                    if let IpAddr::V6(v6) = address
                        && let Some(v4) = v6.to_ipv4_mapped()
                        && via_fault(v4.into()).is_none()
                    {
                        error.help = Some(did_you_mean(&format!("\"{v4}\"")));
                    }
                    error.label(fault)
                }
            },
            Err(_) => {
                let mut error = Diagnostic::error(format!("{} is no IP address", quote(text)))
                    .label(VIA_EXPECTED);
                error.help = if parse_mac(text).is_some() || text == "keep" {
                    Some(format!("write `mac = \"{text}\"`"))
                } else {
                    bare_address(text).map(|address| did_you_mean(&format!("\"{address}\"")))
                };
                error
            }
        };
        self.errors.push(error.at(value.span()));
        None
    }

    fn read_mac(&mut self, value: &Value<'_>) -> Option<NextHop> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, "a MAC address or \"keep\", as a string", None);
            return None;
        };
        if text == "keep" {
            return Some(NextHop::Keep);
        }
        let error = match parse_mac(text) {
            Some(mac) => match mac_fault(mac) {
                None => return Some(NextHop::Mac(mac)),
                Some(fault) => {
                    Diagnostic::error(format!("{} is no host's MAC address", quote(text)))
                        .label(fault)
                        .help("write the next hop's own address, or its IP address as `via`")
                }
            },
            None => {
                let mut error = Diagnostic::error(format!("{} is no MAC address", quote(text)))
                    .label(MAC_EXPECTED);
                error.help = if text.parse::<IpAddr>().is_ok() {
                    Some(format!("write `via = \"{text}\"`"))
                } else {
                    mac_form(text)
                        .or_else(|| self.suggest(text, ["keep"]).map(str::to_owned))
                        .map(|near| did_you_mean(&format!("\"{near}\"")))
                };
                error
            }
        };
        self.errors.push(error.at(value.span()));
        None
    }

    fn read_cpus(&mut self, value: &Value<'_>) -> Option<Vec<u32>> {
        let mut ranges = match value.get_ref() {
            DeValue::Array(items) => {
                if items.is_empty() {
                    self.errors.push(
                        Diagnostic::error("`cpus` is empty, so the target leads nowhere")
                            .at(value.span())
                            .label("at least one CPU number"),
                    );
                }
                let errors_before = self.errors.len();
                let ranges: Vec<_> = items.iter().filter_map(|item| self.read_cpu(item)).collect();
                (self.errors.len() == errors_before && !items.is_empty()).then_some(ranges)?
            }
            _ => vec![self.read_cpu(value)?],
        };
        ranges.sort_unstable();
        let mut cpus: Vec<u32> = Vec::new();
        let mut next = 0; // above all that are there already
        for NumberRange { first, last } in ranges {
            let (first, last) = (u32::from(first), u32::from(last));
            cpus.extend(first.max(next)..=last);
            next = next.max(last + 1);
        }
        Some(cpus)
    }

    fn read_cpu(&mut self, value: &Value<'_>) -> Option<NumberRange> {
        let range = match value.get_ref() {
            DeValue::Integer(number) => {
                let number = number_of(number).and_then(|number| u16::try_from(number).ok());
                number.map(NumberRange::single).ok_or(RangeFault::OutOfRange)
            }
            DeValue::String(word) => parse_range(word).unwrap_or(Err(RangeFault::Unknown)),
            _ => {
                let expected = "a CPU number, a range such as \"2-5\", or a list of them";
                self.wrong_type(value, expected, None);
                return None;
            }
        };
        range.map_err(|fault| self.wrong_cpu(&fault, value)).ok()
    }

    fn wrong_cpu(&mut self, fault: &RangeFault, value: &Value<'_>) {
        let word = value.get_ref().as_str().unwrap_or_default();
        let error = match fault {
            RangeFault::OutOfRange => {
                Diagnostic::error("this is no CPU number").label("CPU numbers are 0 to 65535")
            }
            RangeFault::Backwards(first, last) => runs_backwards(word, &format!("{last}-{first}")),
            RangeFault::Unknown => {
                let mut error = Diagnostic::error(format!("{} names no CPU", quote(word)))
                    .label("neither a CPU number nor a range of them");
                error.help = cpus_form(word.trim());
                error
            }
        };
        self.errors.push(error.at(value.span()));
    }

    fn read_queue(&mut self, value: &Value<'_>) -> Option<u32> {
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(value, "a number of packets", None);
            return None;
        };
        let queue = number_of(number)
            .and_then(|number| u32::try_from(number).ok())
            .filter(|queue| (1..=MAX_QUEUE).contains(queue));
        if queue.is_none() {
            self.errors.push(
                Diagnostic::error("this is no queue length")
                    .at(value.span())
                    .label(format!("the kernel queues 1 to {MAX_QUEUE} packets for a CPU"))
                    .help(format!("leave `queue` out for {DEFAULT_QUEUE}")),
            );
        }
        queue
    }

    fn refuse_target_key(&mut self, key: &Key<'_>) {
        let word = key.get_ref().as_ref();
        let help = if word == "name" {
            Some("a target's name stands in its header: `[targets.NAME]`".to_owned())
        } else if let Some(near) = known(&TARGET_KEY_SYNONYMS, word) {
            Some(did_you_mean(&format!("`{near}`")))
        } else {
            self.elsewhere(word, "targets").or_else(|| {
                self.suggest(word, TARGET_KEYS).map(|near| did_you_mean(&format!("`{near}`")))
            })
        };
        self.unknown_key(key, "a target", help, &TARGET_KEYS);
    }

    /// Reads the name of a target in a rule.
    pub(super) fn read_steer_target(
        &mut self,
        value: &Value<'_>,
        targets: &Targets<'_>,
    ) -> Option<TargetId> {
        let Some(name) = value.get_ref().as_str() else {
            self.wrong_type(value, "a target's name, as a string", None);
            return None;
        };
        if let Some(&id) = targets.ids.get(name) {
            return id;
        }
        if !self.is_whole || !targets.is_complete {
            return None; // it may stand in what could not be read
        }
        let help = self.near_name(name, &targets.names, "", "target").unwrap_or_else(|| {
            format!("the policy has no targets: add `[targets.{}]`", toml_key(name))
        });
        self.errors.push(
            Diagnostic::error(format!("there is no target {}", quote(name)))
                .at(value.span())
                .label("unknown target")
                .help(help),
        );
        None
    }
}

/// Why an address is no neighbour's.
fn via_fault(address: IpAddr) -> Option<&'static str> {
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Some("an IPv4 address is not written as an IPv6 one");
    }
    if address.is_unspecified() {
        Some("it stands for no address")
    } else if address.is_loopback() {
        Some("it is this host itself")
    } else if address.is_multicast() {
        Some("it is a multicast address, no host's")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("it is the broadcast address, no host's")
    } else if matches!(address, IpAddr::V4(v4) if v4.octets()[0] >= 240) {
        Some("it is of a range that no host has (RFC 1112 section 4)")
    } else {
        None
    }
}

/// The address in a text that has more than that: a prefix length, a zone, brackets, a port.
fn bare_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let text = text.split_once(['/', '%']).map_or(text, |(address, _)| address);
    let text = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => text,
    };
    let without_port =
        text.split_once(':').filter(|(_, port)| is_number(port)).map(|(address, _)| address);
    [Some(text), without_port]
        .into_iter()
        .flatten()
        .find_map(|text| text.parse().ok())
        .filter(|&address| via_fault(address).is_none())
}

/// Six bytes of two hexadecimal digits each, with `:` between all of them, or `-`.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut mac = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut mac {
        let part = parts.next()?;
        let is_hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        *byte = is_hex.then(|| u8::from_str_radix(part, 16).ok())??;
    }
    parts.next().is_none().then_some(mac)
}

/// Why a MAC address is no host's.
fn mac_fault(mac: [u8; 6]) -> Option<&'static str> {
    if mac == [0; 6] {
        Some("it stands for no address")
    } else if mac == [0xff; 6] {
        Some("it is the broadcast address")
    } else if mac[0] & 1 == 1 {
        Some("it is a multicast address: its first byte is odd")
    } else {
        None
    }
}

/// How to write what looks like a MAC address in another notation.
fn mac_form(text: &str) -> Option<String> {
    if text.len() > 32 {
        return None;
    }
    let digits: String = text.chars().filter(|c| !":-. ".contains(*c)).collect();
    if digits.len() != 12 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let bytes: Vec<&str> = (0..12).step_by(2).map(|start| &digits[start..start + 2]).collect();
    let mac = bytes.join(":").to_lowercase();
    parse_mac(&mac).is_some_and(|mac| mac_fault(mac).is_none()).then_some(mac)
}

/// How to write what looks like CPUs in another notation.
fn cpus_form(trimmed: &str) -> Option<String> {
    if is_number(trimmed) {
        return Some(did_you_mean(trimmed));
    }
    if ANY_WORDS.contains(&trimmed.to_lowercase().as_str()) {
        return Some("name them: \"0-3\" are the first four".to_owned());
    }
    if trimmed.contains(',') {
        return Some("write several CPUs as a list: `[2, \"4-7\"]`".to_owned());
    }
    range_form(trimmed, "0", "N")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{
        super::tests::{HEAD, brief, errors, policy},
        *,
    };
    use crate::policy::{Action, Policy};

    fn interface(interface: &str, next_hop: NextHop) -> TargetKind {
        TargetKind::Interface { interface: interface.to_owned(), next_hop }
    }

    fn via(address: &str) -> NextHop {
        NextHop::Via(address.parse().unwrap())
    }

    fn actions(policy: &Policy) -> Vec<Action> {
        policy.rules.iter().map(|rule| rule.action).collect()
    }

    #[test]
    fn a_whole_file() {
        let text = "version = 1\ninterfaces = [\"eth0\"]\n\
            [[rules]]\ndst_port = 80\naction = { steer = \"web\" }\n\
            [targets.web]\ninterface = \"veth-web\"\nvia = \"10.0.80.2\"\n\
            [targets.\"a b\"]\ncpus = [7, \"2-5\", \"3\", 3, \"5-6\"]\nqueue = 16384\n\
            [[rules]]\naction.steer = 'a b'\n\
            [[rules]]\naction = \"pass\"\n\
            [[rules]]\n[rules.action]\nsteer = \"web\"\n";
        let policy = policy(text);
        let [web, spaced] = &policy.targets[..] else { panic!("{:?}", policy.targets) };
        assert_eq!(web.kind, interface("veth-web", via("10.0.80.2")));
        assert_eq!(spaced.kind, TargetKind::Cpus { cpus: (2..=7).collect(), queue: 16_384 });
        assert_eq!([&web.name, &spaced.name], ["web", "a b"]);
        assert_eq!([web.line, spaced.line], [6, 9]);
        assert_eq!([&text[web.span.clone()], &text[spaced.span.clone()]], ["web", "\"a b\""]);
        let [web, spaced] = [0, 1].map(|index| Action::Steer(TargetId(index)));
        assert_eq!(actions(&policy), [web, spaced, Action::Pass, web]);
        assert_eq!(policy.label(&policy.rules[1]), "any steer a b");
    }

    #[test]
    fn kinds() {
        let mac = NextHop::Mac([2, 0, 0, 0, 0xab, 1]);
        for (lines, expected) in [
            ("interface = 'i'\nvia = '10.0.80.2'", interface("i", via("10.0.80.2"))),
            ("interface = 'i'\nvia = 'fe80::1'", interface("i", via("fe80::1"))),
            ("interface = 'i'\nmac = '02:00:00:00:ab:01'", interface("i", mac)),
            ("mac = '02-00-00-00-AB-01'\ninterface = 'i'", interface("i", mac)),
            ("interface = 'i'\nmac = 'keep'", interface("i", NextHop::Keep)),
            ("cpus = 0", TargetKind::Cpus { cpus: vec![0], queue: DEFAULT_QUEUE }),
            ("cpus = '2-3'\nqueue = 1", TargetKind::Cpus { cpus: vec![2, 3], queue: 1 }),
            ("cpus = 65535", TargetKind::Cpus { cpus: vec![65_535], queue: DEFAULT_QUEUE }),
        ] {
            let policy = policy(&format!("{HEAD}[targets.t]\n{lines}\n"));
            assert_eq!(policy.targets[0].kind, expected, "{lines}");
        }
        let all = policy(&format!("{HEAD}[targets.t]\ncpus = ['0-65535', '1-65535', 0]\n"));
        let TargetKind::Cpus { cpus, .. } = &all.targets[0].kind else { panic!() };
        assert!(cpus.iter().copied().eq(0..=65_535));
    }

    #[test]
    fn other_ways_to_write_it() {
        let text = "version = 1\ninterfaces = ['eth0']\ntargets.b.interface = 'x'\n\
            targets.b.mac = 'keep'\ntargets.a = { cpus = 1 }\nrules = [{ action.steer = 'a' }]\n";
        let policy = policy(text);
        let places: Vec<_> = policy
            .targets
            .iter()
            .map(|target| (&*target.name, target.line, &text[target.span.clone()]))
            .collect();
        assert_eq!(places, [("b", 3, "b"), ("a", 5, "a")]);
        assert_eq!(actions(&policy), [Action::Steer(TargetId(1))]);
    }

    /// Errors in a target: its lines, what is said about it. They begin on line 4.
    #[test]
    fn errors_of_a_target() {
        let cases: &[(&str, &str)] = &[
            (
                r#"interface = "x"
cpus = 1
"#,
                r#"5:1 [cpus] the target `web` has both `interface` and `cpus` (a target is one or the other) make them two targets
"#,
            ),
            (
                r#"interface = "x"
"#,
                r#"4:1 [interface] the target `web` does not say where its frames are addressed to (neither `via` nor `mac`) a host discards frames with a foreign destination MAC: add `via = "10.0.80.2"` (the next hop's IP address), `mac = "02:00:00:00:00:01"`, or `mac = "keep"` to leave them as they are
"#,
            ),
            (
                r#"via = "10.0.0.1"
"#,
                r#"3:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add the interface to send from: `interface = "veth-web"`
"#,
            ),
            (
                r#"queue = 5
"#,
                r#"3:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add the CPUs: `cpus = [2, 3]`
"#,
            ),
            (
                r#"interface = "x"
via = "10.0.0.1"
mac = "keep"
"#,
                r#"6:1 [mac] the target `web` has both `via` and `mac` (frames have one destination) keep `via` to have the MAC address looked up, or `mac` to set it
"#,
            ),
            (
                r#"cpus = [1]
via = "10.0.0.1"
mac = "keep"
"#,
                r#"5:1 [via] a target with `cpus` has no `via` (`via` goes with `interface`) remove `via`
6:1 [mac] a target with `cpus` has no `mac` (`mac` goes with `interface`) remove `mac`
"#,
            ),
            (
                r#"queue = 10
interface = "x"
mac = "keep"
"#,
                r#"4:1 [queue] a target with `interface` has no `queue` (`queue` goes with `cpus`) remove `queue`
"#,
            ),
            (
                r#"interface = "veth-*"
mac = "keep"
"#,
                r#"4:13 ["veth-*"] `veth-*` is a glob (a target is one interface) write its whole name
"#,
            ),
            (
                r#"interface = "a/b"
mac = "keep"
"#,
                r#"4:13 ["a/b"] `a/b` is no interface name (no interface's name has '/' in it)
"#,
            ),
            (
                r#"interface = "sixteen-bytes-xx"
mac = "keep"
"#,
                r#"4:13 ["sixteen-bytes-xx"] `sixteen-bytes-xx` is no interface name (a name has at most 15 bytes)
"#,
            ),
            (
                r#"interface = ["x"]
mac = "keep"
"#,
                r#"4:13 [["x"]] a list cannot stand here (expected an interface's name, as a string)
"#,
            ),
            (
                r#"interface = "x"
via = "10.0.80"
"#,
                r#"5:7 ["10.0.80"] `10.0.80` is no IP address (expected one such as "10.0.80.2" or "fe80::2")
"#,
            ),
            (
                r#"interface = "x"
via = "10.0.80.2/24"
"#,
                r#"5:7 ["10.0.80.2/24"] `10.0.80.2/24` is no IP address (expected one such as "10.0.80.2" or "fe80::2") did you mean "10.0.80.2"?
"#,
            ),
            (
                r#"interface = "x"
via = "10.0.80.2:80"
"#,
                r#"5:7 ["10.0.80.2:80"] `10.0.80.2:80` is no IP address (expected one such as "10.0.80.2" or "fe80::2") did you mean "10.0.80.2"?
"#,
            ),
            (
                r#"interface = "x"
via = "fe80::1%eth0"
"#,
                r#"5:7 ["fe80::1%eth0"] `fe80::1%eth0` is no IP address (expected one such as "10.0.80.2" or "fe80::2") did you mean "fe80::1"?
"#,
            ),
            (
                r#"interface = "x"
via = "02:00:00:00:00:01"
"#,
                r#"5:7 ["02:00:00:00:00:01"] `02:00:00:00:00:01` is no IP address (expected one such as "10.0.80.2" or "fe80::2") write `mac = "02:00:00:00:00:01"`
"#,
            ),
            (
                r#"interface = "x"
via = "0.0.0.0"
"#,
                r#"5:7 ["0.0.0.0"] `0.0.0.0` is no next hop (it stands for no address) write the address of the host that the frames are for
"#,
            ),
            (
                r#"interface = "x"
via = "::1"
"#,
                r#"5:7 ["::1"] `::1` is no next hop (it is this host itself) write the address of the host that the frames are for
"#,
            ),
            (
                r#"interface = "x"
via = "224.0.0.1"
"#,
                r#"5:7 ["224.0.0.1"] `224.0.0.1` is no next hop (it is a multicast address, no host's) write the address of the host that the frames are for
"#,
            ),
            (
                r#"interface = "x"
via = "255.255.255.255"
"#,
                r#"5:7 ["255.255.255.255"] `255.255.255.255` is no next hop (it is the broadcast address, no host's) write the address of the host that the frames are for
"#,
            ),
            (
                r#"interface = "x"
via = "::ffff:10.0.80.2"
"#,
                r#"5:7 ["::ffff:10.0.80.2"] `::ffff:10.0.80.2` is no next hop (an IPv4 address is not written as an IPv6 one) did you mean "10.0.80.2"?
"#,
            ),
            (
                r#"interface = "x"
via = 1
"#,
                r#"5:7 [1] an integer cannot stand here (expected the next hop's IP address, as a string)
"#,
            ),
            (
                r#"interface = "x"
mac = "02:00:00:00:00"
"#,
                r#"5:7 ["02:00:00:00:00"] `02:00:00:00:00` is no MAC address (expected one such as "02:00:00:00:00:01", or "keep")
"#,
            ),
            (
                r#"interface = "x"
mac = "02:00:00:00:00:0g"
"#,
                r#"5:7 ["02:00:00:00:00:0g"] `02:00:00:00:00:0g` is no MAC address (expected one such as "02:00:00:00:00:01", or "keep")
"#,
            ),
            (
                r#"interface = "x"
mac = "0200.0000.0001"
"#,
                r#"5:7 ["0200.0000.0001"] `0200.0000.0001` is no MAC address (expected one such as "02:00:00:00:00:01", or "keep") did you mean "02:00:00:00:00:01"?
"#,
            ),
            (
                r#"interface = "x"
mac = "02:00-00:00:00:01"
"#,
                r#"5:7 ["02:00-00:00:00:01"] `02:00-00:00:00:01` is no MAC address (expected one such as "02:00:00:00:00:01", or "keep") did you mean "02:00:00:00:00:01"?
"#,
            ),
            (
                r#"interface = "x"
mac = "Keep"
"#,
                r#"5:7 ["Keep"] `Keep` is no MAC address (expected one such as "02:00:00:00:00:01", or "keep") did you mean "keep"?
"#,
            ),
            (
                r#"interface = "x"
mac = "10.0.80.2"
"#,
                r#"5:7 ["10.0.80.2"] `10.0.80.2` is no MAC address (expected one such as "02:00:00:00:00:01", or "keep") write `via = "10.0.80.2"`
"#,
            ),
            (
                r#"interface = "x"
mac = "01:00:5e:00:00:01"
"#,
                r#"5:7 ["01:00:5e:00:00:01"] `01:00:5e:00:00:01` is no host's MAC address (it is a multicast address: its first byte is odd) write the next hop's own address, or its IP address as `via`
"#,
            ),
            (
                r#"interface = "x"
mac = "ff:ff:ff:ff:ff:ff"
"#,
                r#"5:7 ["ff:ff:ff:ff:ff:ff"] `ff:ff:ff:ff:ff:ff` is no host's MAC address (it is the broadcast address) write the next hop's own address, or its IP address as `via`
"#,
            ),
            (
                r#"interface = "x"
mac = "00:00:00:00:00:00"
"#,
                r#"5:7 ["00:00:00:00:00:00"] `00:00:00:00:00:00` is no host's MAC address (it stands for no address) write the next hop's own address, or its IP address as `via`
"#,
            ),
            (
                r#"interface = "x"
mac = true
"#,
                r#"5:7 [true] a boolean cannot stand here (expected a MAC address or "keep", as a string)
"#,
            ),
            (
                r#"interface = "x"
mac = keep
"#,
                r#"5:7 [keep] string values must be quoted (expected a string, a number or a list) write "keep"
"#,
            ),
            (
                r#"cpus = []
"#,
                r#"4:8 [[]] `cpus` is empty, so the target leads nowhere (at least one CPU number)
"#,
            ),
            (
                r#"cpus = -1
"#,
                r#"4:8 [-1] this is no CPU number (CPU numbers are 0 to 65535)
"#,
            ),
            (
                r#"cpus = 65536
"#,
                r#"4:8 [65536] this is no CPU number (CPU numbers are 0 to 65535)
"#,
            ),
            (
                r#"cpus = "0-65536"
"#,
                r#"4:8 ["0-65536"] this is no CPU number (CPU numbers are 0 to 65535)
"#,
            ),
            (
                r#"cpus = ["5-2", 1.5, "all"]
"#,
                r#"4:9 ["5-2"] the range `5-2` runs backwards (it ends before it begins) did you mean "2-5"?
4:16 [1.5] a float cannot stand here (expected a CPU number, a range such as "2-5", or a list of them)
4:21 ["all"] `all` names no CPU (neither a CPU number nor a range of them) name them: "0-3" are the first four
"#,
            ),
            (
                r#"cpus = "2,3"
"#,
                r#"4:8 ["2,3"] `2,3` names no CPU (neither a CPU number nor a range of them) write several CPUs as a list: `[2, "4-7"]`
"#,
            ),
            (
                r#"cpus = "2..5"
"#,
                r#"4:8 ["2..5"] `2..5` names no CPU (neither a CPU number nor a range of them) did you mean "2-5"?
"#,
            ),
            (
                r#"cpus = "2-"
"#,
                r#"4:8 ["2-"] `2-` names no CPU (neither a CPU number nor a range of them) write both ends: "2-N"
"#,
            ),
            (
                r#"cpus = 2-5
"#,
                r#"4:8 [2-5] a range must be quoted (expected a string, a number or a list) write "2-5"
"#,
            ),
            (
                r#"cpus = 1
queue = 0
"#,
                r#"5:9 [0] this is no queue length (the kernel queues 1 to 16384 packets for a CPU) leave `queue` out for 2048
"#,
            ),
            (
                r#"cpus = 1
queue = 16385
"#,
                r#"5:9 [16385] this is no queue length (the kernel queues 1 to 16384 packets for a CPU) leave `queue` out for 2048
"#,
            ),
            (
                r#"cpus = 1
queue = "2048"
"#,
                r#"5:9 ["2048"] a string cannot stand here (expected a number of packets)
"#,
            ),
            (
                r#"cpu = 1
"#,
                r#"3:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add `interface` with `via` or `mac`, or add `cpus`
4:1 [cpu] a target has no key `cpu` (unknown key) did you mean `cpus`?
"#,
            ),
            (
                r#"interfce = "x"
gateway = "10.0.0.1"
"#,
                r#"3:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add `interface` with `via` or `mac`, or add `cpus`
4:1 [interfce] a target has no key `interfce` (unknown key) did you mean `interface`?
5:1 [gateway] a target has no key `gateway` (unknown key) did you mean `via`?
"#,
            ),
            (
                r#"name = "x"
xyzzy = 1
default = "drop"
dst_port = 1
cpus = 1
"#,
                r#"4:1 [name] a target has no key `name` (unknown key) a target's name stands in its header: `[targets.NAME]`
5:1 [xyzzy] a target has no key `xyzzy` (unknown key) the keys here are interface, via, mac, cpus, queue
6:1 [default] a target has no key `default` (unknown key) `default` belongs at the top of the file, before the first `[`
7:1 [dst_port] a target has no key `dst_port` (unknown key) `dst_port` belongs in a rule, after a line `[[rules]]`
"#,
            ),
            (
                r#"cpus = 1
cpus = 2
"#,
                r#"5:1 [cpus] the key `cpus` is there twice (again here)
"#,
            ),
            (
                r#"cpus = 1
[targets.web]
cpus = 2
"#,
                r#"5:10 [web] the key `web` is there twice (again here)
6:1 [cpus] the key `cpus` is there twice (again here)
"#,
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{HEAD}[targets.web]\n{lines}");
            assert_eq!(brief(&text, &errors(&text)), *expected, "{lines}");
        }
    }

    /// Errors in what steers: what follows the head, what is said about it.
    #[test]
    fn errors_of_steering() {
        let cases: &[(&str, &str)] = &[
            (
                r#"targets = 1
"#,
                r#"3:11 [1] an integer cannot stand here (expected a table of targets) write it as a section: `[targets.NAME]`
"#,
            ),
            (
                r#"[[targets]]
name = "web"
cpus = 1
[[rules]]
action.steer = "web"
"#,
                r#"3:1 [[[targets]]] a list cannot stand here (expected a table of targets) write it as a section: `[targets.NAME]`
"#,
            ),
            (
                r#"[targets]
cpus = [1]
web = "veth-web"
"#,
                r#"4:8 [[1]] a list cannot stand here (expected a table) a target has a name: begin it with a line `[targets.NAME]`, then `cpus`
5:7 ["veth-web"] a string cannot stand here (expected a table) write it as a section: `[targets.web]`
"#,
            ),
            (
                r#"[targets.""]
cpus = 1
[targets." x"]
cpus = 1
[[rules]]
action.steer = " x"
"#,
                r#"3:10 [""] this is no name for a target (a name has at least one character)
5:10 [" x"] this is no name for a target (a name neither begins nor ends with white space)
"#,
            ),
            (
                r#"[targets.web]
[[rules]]
action.steer = "web"
"#,
                r#"3:10 [web] the target `web` leads nowhere (it has neither `interface` nor `cpus`) add `interface` with `via` or `mac`, or add `cpus`
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[[rules]]
action.steer = "wbe"
"#,
                r#"6:16 ["wbe"] there is no target `wbe` (unknown target) did you mean "web"?
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[targets.dns]
cpus = 1
[[rules]]
action.steer = "somewhere"
"#,
                r#"8:16 ["somewhere"] there is no target `somewhere` (unknown target) the targets are `web`, `dns`
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[[rules]]
action = "steer"
"#,
                r#"6:10 ["steer"] the rule does not say where it steers to (a target is missing) write `action = { steer = "web" }`
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[[rules]]
action = "web"
"#,
                r#"6:10 ["web"] `action` cannot be `web` (expected "pass", "drop" or { steer = "NAME" }) did you mean { steer = "web" }?
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[[rules]]
action = "redirect"
"#,
                r#"6:10 ["redirect"] `action` cannot be `redirect` (expected "pass", "drop" or { steer = "NAME" }) did you mean { steer = "web" }?
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[[rules]]
action = "stear"
"#,
                r#"6:10 ["stear"] `action` cannot be `stear` (expected "pass", "drop" or { steer = "NAME" }) did you mean { steer = "web" }?
"#,
            ),
            (
                r#"[[rules]]
action = { steer = "my web" }
"#,
                r#"4:20 ["my web"] there is no target `my web` (unknown target) the policy has no targets: add `[targets."my web"]`
"#,
            ),
            (
                r#"[[rules]]
action = { steer = 1 }
"#,
                r#"4:20 [1] an integer cannot stand here (expected a target's name, as a string)
"#,
            ),
            (
                r#"[[rules]]
action = { steer = ["a", "b"] }
"#,
                r#"4:20 [["a", "b"]] a list cannot stand here (expected a target's name, as a string)
"#,
            ),
            (
                r#"[[rules]]
action = {}
"#,
                r#"4:10 [{}] a table cannot stand here (expected "pass", "drop" or { steer = "NAME" })
"#,
            ),
            (
                r#"[[rules]]
action = { reject = true }
"#,
                r#"4:10 [{ reject = true }] the action `reject` is not there yet (this release can pass, drop and steer) "drop" discards without an answer
"#,
            ),
            (
                r#"[[rules]]
action = { to = "web" }
"#,
                r#"4:12 [to] an action has no key `to` (unknown key) did you mean `steer`?
"#,
            ),
            (
                r#"[[rules]]
action = { ster = "web" }
"#,
                r#"4:12 [ster] an action has no key `ster` (unknown key) did you mean `steer`?
"#,
            ),
            (
                r#"[[rules]]
action = { xyzzy = "web" }
"#,
                r#"4:12 [xyzzy] an action has no key `xyzzy` (unknown key) write { steer = "NAME" }
"#,
            ),
            (
                r#"[targets.web]
cpus = 1
[[rules]]
action = { steer = "web", via = "x" }
"#,
                r#"6:27 [via] an action has no key `via` (unknown key) what steers takes the name of a target and nothing else
"#,
            ),
            (
                r#"[[rules]]
steer = "web"
via = "10.0.0.1"
action = "pass"
"#,
                r#"4:1 [steer] a rule has no key `steer` (unknown key) write `action = { steer = "NAME" }`
5:1 [via] a rule has no key `via` (unknown key) `via` belongs in a target, after a line `[targets.NAME]`
"#,
            ),
            (
                r#"[target.web]
cpus = 1
"#,
                r#"3:2 [target] the policy has no key `target` (unknown key) begin every target with a line `[targets.NAME]`
"#,
            ),
            (
                r#"[options]
fragments = { steer = "web" }
malformed = "steer"
unsupported = { drop = 1 }
"#,
                r#"4:13 [{ steer = "web" }] `fragments` cannot steer (only rules steer) write "pass" or "drop"
5:13 ["steer"] `malformed` cannot steer (only rules steer) write "pass" or "drop"
6:15 [{ drop = 1 }] a table cannot stand here (expected "pass" or "drop")
"#,
            ),
            (
                r#"default = "steer"
"#,
                r#"3:11 ["steer"] `default` cannot steer (only rules steer) to steer what no other rule matches, end with a rule that has nothing but `action = { steer = "NAME" }`
"#,
            ),
            (
                r#"default.steer = "web"
"#,
                r#"3:1 [default] `default` cannot steer (only rules steer) to steer what no other rule matches, end with a rule that has nothing but `action = { steer = "NAME" }`
"#,
            ),
            (
                r#"default.reject = 1
"#,
                r#"3:1 [default] the action `reject` is not there yet (this release can pass, drop and steer) "drop" discards without an answer
"#,
            ),
            (
                r#"via = "10.0.0.1"
"#,
                r#"3:1 [via] the policy has no key `via` (unknown key) `via` belongs in a target, after a line `[targets.NAME]`
"#,
            ),
            (
                r#"[targets.web]
cpus = "0-3"
[[rules]]
action = [ "steer" ]
"#,
                r#"6:10 [[ "steer" ]] a list cannot stand here (expected "pass", "drop" or { steer = "NAME" })
"#,
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{HEAD}{lines}");
            assert_eq!(brief(&text, &errors(&text)), *expected, "{lines}");
        }
    }

    #[test]
    fn many_targets() {
        let mut text = HEAD.to_owned();
        for number in 0..MAX_TARGETS {
            writeln!(text, "[targets.t{number}]\ncpus = 1").unwrap();
        }
        let last = MAX_TARGETS - 1;
        writeln!(text, "[[rules]]\naction.steer = \"t{last}\"").unwrap();
        let parsed = policy(&text);
        let names: Vec<&str> = parsed.targets.iter().map(|target| &*target.name).collect();
        assert_eq!(names.len(), MAX_TARGETS);
        assert_eq!([names[2], names[10], names[last]], ["t2", "t10", &format!("t{last}")]);
        assert_eq!(actions(&parsed), [Action::Steer(TargetId(last as u16))]);

        text.push_str("[[rules]]\naction.steer = \"more\"\n[targets.more]\n[targets.evenmore]\n");
        let line = 7 + MAX_TARGETS * 2;
        assert_eq!(
            brief(&text, &errors(&text)),
            format!(
                "{line}:10 [more] the policy has {} targets, but there is room for {MAX_TARGETS} \
                 (the first target that is too many)\n",
                MAX_TARGETS + 2
            )
        );
    }

    #[test]
    fn what_is_missing_proves_nothing_in_a_broken_file() {
        let text = format!("{HEAD}[targets.web\ncpus = 1\n[[rules]]\naction.steer = 'web'\n");
        let messages: Vec<_> = errors(&text).into_iter().map(|error| error.message).collect();
        assert!(!messages.iter().any(|message| message.contains("target")), "{messages:?}");
    }
}
