//! `portsteer explain`: packets from the command line, from hexadecimal digits and from captures, and
//! what is said about them.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::Write as _,
    fs::File,
    io::{BufReader, Read as _, Seek as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context as _, bail};
use pcap_file::{
    DataLink,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};
use serde_json::{Value, json};

use super::{BAD_INPUT, complain, listings, print, show_diagnostics, show_error};
use crate::{
    agent::{self, LoadedPolicy},
    explain::{
        Cause, Explainer, Explanation,
        captured::{self, MIN_LEN},
        described::{self, Described},
        explain_reason, shortened,
    },
    oracle::Packet,
    policy::{Action, Policy},
};

/// What to explain.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The policy file.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The packet: PROTOCOL [FROM] -> TO, in quotes, and more: vlan ID, vlan untagged, on INTERFACE,
    /// type N, code N, later-fragment. FROM and TO are ADDRESS, :PORT, or ADDRESS:PORT
    #[arg(required_unless_present_any = ["hex", "pcap"], conflicts_with_all = ["hex", "pcap"])]
    packet: Vec<String>,
    /// A whole Ethernet frame as hexadecimal digits
    #[arg(long, value_name = "DIGITS", conflicts_with = "pcap")]
    hex: Option<String>,
    /// Every packet of a capture (pcap or pcapng)
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// The interface that the frames come in by, for rules with `interface`: no such rule matches without
    #[arg(long, value_name = "INTERFACE", conflicts_with = "packet")]
    on: Option<String>,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> u8 {
    let loaded = match agent::load_policy(&options.policy) {
        Ok(loaded) => loaded,
        Err(error) => {
            show_error(&error);
            return BAD_INPUT;
        }
    };
    let teller = Teller::new(&loaded, options);
    if let Some(path) = &options.pcap {
        return teller.capture(path);
    }
    if let Some(digits) = &options.hex {
        return match captured::from_hex(digits) {
            Ok(bytes) => print(&teller.frame(&bytes, bytes.len()).text, 0),
            Err(error) => {
                complain(&format!("--hex: {error}"), None);
                BAD_INPUT
            }
        };
    }
    let text = options.packet.join(" ");
    match described::parse(&text, &agent::services()) {
        Ok(packet) => {
            let explanation = teller.explainer.explain(&packet.headers());
            print(&teller.tell(&packet.to_string(), &explanation), 0)
        }
        Err(error) => {
            show_diagnostics(Path::new("packet"), &text, &[*error]);
            BAD_INPUT
        }
    }
}

/// What is said of a frame whose headers are not in the capture.
const NOT_CAPTURED: &str = "unknown: its headers were not captured";

/// What is told about a frame.
struct Told {
    text: String,
    /// What becomes of it and why, on one line: the same for all of whom it is the same.
    fate: String,
}

/// Tells what a policy does with packets.
struct Teller<'a> {
    loaded: &'a LoadedPolicy,
    explainer: Explainer<'a>,
    /// Where frames come in.
    interface: Option<&'a str>,
    json: bool,
    /// What the rules match that were told of, in words.
    matches: RefCell<HashMap<usize, Rc<str>>>,
}

impl<'a> Teller<'a> {
    fn new(loaded: &'a LoadedPolicy, options: &'a Options) -> Self {
        Self {
            loaded,
            explainer: Explainer::new(&loaded.policy),
            interface: options.on.as_deref(),
            json: options.json,
            matches: RefCell::default(),
        }
    }

    /// What a rule matches: all of it in JSON, shortened for people.
    fn matches(&self, index: usize) -> Rc<str> {
        let text = || {
            let rule = &self.policy().rules[index];
            if self.json { self.policy().matches(rule) } else { shortened(self.policy(), rule) }
        };
        Rc::clone(self.matches.borrow_mut().entry(index).or_insert_with(|| text().into()))
    }

    fn policy(&self) -> &Policy {
        &self.loaded.policy
    }

    /// About a frame, of which `len` bytes were on the wire.
    fn frame(&self, bytes: &[u8], len: usize) -> Told {
        let (packet, explanation) = match captured::read(bytes, len) {
            Ok(headers) => {
                let interface = self.interface;
                let described = Described {
                    interface: interface.map(str::to_owned),
                    ..captured::describe(bytes, headers)
                };
                let packet = Packet { interface, ..captured::packet(bytes, headers) };
                (described.to_string(), self.explainer.explain(&packet))
            }
            Err(Some(reason)) => {
                (format!("a frame of {len} bytes"), explain_reason(self.policy(), reason))
            }
            Err(None) => {
                let packet = format!("a frame of {len} bytes, {} of them captured", bytes.len());
                let text = if self.json {
                    let json =
                        json!({ "packet": packet, "action": null, "reason": "not-captured" });
                    format!("{json}\n")
                } else {
                    format!("{packet}\n  {NOT_CAPTURED}\n")
                };
                return Told { text, fate: NOT_CAPTURED.to_owned() };
            }
        };
        let fate = format!("{}: {}", self.does(&explanation), self.why(&explanation));
        Told { text: self.tell(&packet, &explanation), fate }
    }

    fn tell(&self, packet: &str, explanation: &Explanation) -> String {
        if self.json {
            return format!("{}\n", self.json(packet, explanation));
        }
        let mut text =
            format!("{packet}\n  {}: {}\n", self.does(explanation), self.why(explanation));
        if !explanation.close.is_empty() {
            text.push_str("  earlier rules that come close:\n");
        }
        for miss in &explanation.close {
            let _ = writeln!(text, "    {}: {}: {}", self.rule(miss.rule), miss.field, miss.why);
        }
        text
    }

    /// What happens: `pass`, `drop`, `steer web`.
    fn does(&self, explanation: &Explanation) -> String {
        match explanation.action {
            Action::Steer(target) => format!("steer {}", self.policy().target(target).name),
            action => action.name().to_owned(),
        }
    }

    fn why(&self, explanation: &Explanation) -> String {
        match explanation.cause {
            Cause::Rule(index) => format!("{}: {}", self.rule(index), self.matches(index)),
            Cause::Fragments(index) if self.policy().rules[index].icmp_types.is_empty() => format!(
                "options.fragments, since a later fragment has no ports, and {} asks for one",
                self.rule(index)
            ),
            Cause::Fragments(index) => format!(
                "options.fragments, since a later fragment has no ICMP type, and {} asks for one",
                self.rule(index)
            ),
            Cause::Default => "no rule matches, the default decides".to_owned(),
            Cause::Reason(reason) => match reason.fault() {
                Some(_) => format!("{}, as the options say", reason.help()),
                None => reason.help().to_owned(),
            },
        }
    }

    /// A rule by its name, if it has one, and line.
    fn rule(&self, index: usize) -> String {
        let rule = &self.policy().rules[index];
        let name = rule.name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
        format!("rule{name} (line {})", rule.line)
    }

    fn json(&self, packet: &str, explanation: &Explanation) -> Value {
        let rule = |index: usize| {
            let rule = &self.policy().rules[index];
            json!({ "name": rule.name, "line": rule.line, "match": &*self.matches(index) })
        };
        let (cause, decides) = match explanation.cause {
            Cause::Rule(index) => ("rule", Some(rule(index))),
            Cause::Fragments(index) => ("fragment-without-ports", Some(rule(index))),
            Cause::Default => ("no-rule", None),
            Cause::Reason(reason) => (reason.name(), None),
        };
        let close: Vec<Value> = explanation
            .close
            .iter()
            .map(|miss| json!({ "rule": rule(miss.rule), "field": miss.field, "why": miss.why }))
            .collect();
        json!({
            "packet": packet, "action": self.does(explanation), "reason": cause, "rule": decides,
            "close": close,
        })
    }

    /// About every packet of a capture, and how many had which fate.
    fn capture(&self, path: &Path) -> u8 {
        let (mut fates, mut places) = (Vec::<(String, u64)>::new(), HashMap::new());
        let told = read_capture(path, |number, bytes, len| {
            let Told { text, fate } = self.frame(bytes, len);
            let place = *places.entry(fate).or_insert_with_key(|fate| {
                fates.push((fate.clone(), 0));
                fates.len() - 1
            });
            fates[place].1 += 1;
            let text = if self.json { text } else { format!("#{number} {text}") };
            print(&text, 0) == 0
        });
        if let Err(error) = told {
            complain(&format!("{}: {error:#}", path.display()), None);
            return BAD_INPUT;
        }
        if self.json {
            return 0;
        }
        let total: u64 = fates.iter().map(|(_, count)| count).sum();
        let mut text = format!("\n{} in all\n", listings::count(total as usize, "packet"));
        for (fate, count) in fates {
            let _ = writeln!(text, "  {count:>8}  {fate}");
        }
        print(&text, 0)
    }
}

const NO_CAPTURE: &str = "it is neither a pcap nor a pcapng file";
const DAMAGED: &str = "what follows is damaged";

/// Hands every Ethernet frame of a capture to `take`, with its number and its length on the wire, for as
/// long as that wants more.
fn read_capture(
    path: &Path,
    mut take: impl FnMut(u64, &[u8], usize) -> bool,
) -> anyhow::Result<()> {
    const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
    let mut file = BufReader::new(File::open(path)?);
    let mut magic = [0; 4];
    file.read_exact(&mut magic).context("it is too short for a capture")?;
    file.rewind()?;
    let mut number = 0;
    let mut frame = |bytes: &[u8], len: u32| {
        number += 1;
        bytes.len() < MIN_LEN || take(number, bytes, len as usize)
    };
    if magic == PCAPNG {
        let mut reader = PcapNgReader::new(file).context(NO_CAPTURE)?;
        while let Some(block) = reader.next_block() {
            let (bytes, len) = match block.context(DAMAGED)? {
                Block::EnhancedPacket(packet) => (packet.data.into_owned(), packet.original_len),
                Block::SimplePacket(packet) => (packet.data.into_owned(), packet.original_len),
                Block::InterfaceDescription(interface)
                    if interface.linktype != DataLink::ETHERNET =>
                {
                    bail!("it has {:?} packets, not Ethernet frames", interface.linktype);
                }
                _ => continue,
            };
            if !frame(&bytes, len) {
                break;
            }
        }
        return Ok(());
    }
    let mut reader = PcapReader::new(file).context(NO_CAPTURE)?;
    let kind = reader.header().datalink;
    if kind != DataLink::ETHERNET {
        bail!("it has {kind:?} packets, not Ethernet frames");
    }
    while let Some(packet) = reader.next_packet() {
        let packet = packet.context(DAMAGED)?;
        if !frame(&packet.data, packet.orig_len) {
            break;
        }
    }
    Ok(())
}
