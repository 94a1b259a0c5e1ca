//! The policies in `examples/`: each does with each packet of its table what the table says, and
//! `portsteer check` warns of what the policy announces. So the examples are true, and the table shows
//! what a policy means to four readers: the oracle, the compiled tables, `explain`, and the kernel.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use portsteer::{
    agent::load_policy,
    compile::{Interrupt, evaluate::Evaluator},
    dataplane::{Dataplane, Instance, Order, program_in_slot, read_stats, sys},
    explain::{self, Explainer, described},
    lab::{End, Namespace, Veth},
    oracle::{self, Packet},
    policy::{Action, NextHop, Policy, TargetKind, services::Services},
};
use portsteer_common::Reason;
use portsteer_testkit::{
    agent::run,
    boundaries::frame,
    sandbox::{sandbox, skip},
    tables::{compiled, decision},
};
use tempfile::TempDir;

use crate::bench::{Cause, Outcome, read_outcome};

/// A directory of `examples/`, as it was when this test was built: a guest has no source tree.
struct Example {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
}

macro_rules! example {
    ($name:literal: $($file:literal),+) => {
        Example {
            name: $name,
            files: &[$(($file, include_str!(concat!("../../../examples/", $name, "/", $file)))),+],
        }
    };
}

const EXAMPLES: [Example; 5] = [
    example!("count-only": "packets.txt", "policy.toml"),
    example!("dns-server": "packets.txt", "policy.toml"),
    example!("gateway": "packets.txt", "policy.toml"),
    example!("internet-host": "blocklist.txt", "packets.txt", "policy.toml"),
    example!("vlan-lab": "packets.txt", "policy.toml"),
];

/// The fewest packets that a table has.
const FEWEST: usize = 15;

/// A row of a table.
struct Row {
    /// Where it stands.
    place: String,
    packet: described::Described,
    /// `pass`, `drop`, `steer TARGET`.
    action: String,
    /// A rule's name, `default`, or a reason's name.
    why: String,
}

impl Example {
    fn text(&self, file: &str) -> &'static str {
        let found = self.files.iter().find(|(name, _)| *name == file);
        found.unwrap_or_else(|| panic!("{} has a {file}", self.name)).1
    }

    /// The example as a directory, for what reads files.
    fn unpack(&self) -> TempDir {
        let directory = TempDir::new().expect("a temporary directory");
        for (file, text) in self.files {
            fs::write(directory.path().join(file), text).expect("a file");
        }
        directory
    }

    /// What the comment at the policy's beginning says that `portsteer check` warns of.
    fn announced(&self) -> BTreeSet<String> {
        let head = self.text("policy.toml").lines().take_while(|line| line.starts_with('#'));
        head.filter_map(|line| line.strip_prefix("#   warning: ")).map(str::to_owned).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let lines = self.text("packets.txt").lines().enumerate();
        let rows = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let read = |(index, line): (usize, &str)| {
            let place = format!("examples/{}/packets.txt:{}", self.name, index + 1);
            let form = || panic!("{place}: not of the form PACKET => ACTION by WHAT: {line}");
            let (packet, fate) = line.split_once("=>").unwrap_or_else(form);
            let (action, why) = fate.split_once(" by ").unwrap_or_else(form);
            let packet = described::parse(packet.trim(), &Services::embedded())
                .unwrap_or_else(|error| panic!("{place}: {}", error.message));
            let (action, why) = (action.trim().to_owned(), why.trim().to_owned());
            Row { place, packet, action, why }
        };
        rows.map(read).collect()
    }
}

#[test]
fn every_example_is_tried() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    if !directory.exists() {
        return skip("there is no source tree here");
    }
    let names = |path: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(path).expect("a directory");
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut tried: BTreeSet<String> =
        EXAMPLES.iter().map(|example| example.name.to_owned()).collect();
    tried.insert("README.md".to_owned());
    assert_eq!(names(&directory), tried, "examples/ (left), and what is tried here (right)");
    let readme = fs::read_to_string(directory.join("README.md")).expect("a README");
    for Example { name, files } in &EXAMPLES {
        let listed = files.iter().map(|(file, _)| (*file).to_owned()).collect();
        assert_eq!(names(&directory.join(name)), listed, "examples/{name}");
        assert!(readme.contains(&format!("`{name}`")), "examples/README.md has no `{name}`");
    }
}

/// With and without forwarding, nothing is said that is not announced, and all of that is.
#[test]
fn examples_are_checked_with_the_warnings_that_they_announce() {
    sandbox(|| {
        let host = Namespace::new().expect("a namespace");
        for example in &EXAMPLES {
            let directory = example.unpack();
            let path = directory.path().join("policy.toml");
            let mut said = BTreeSet::new();
            for forwards in ["0", "1"] {
                host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", forwards)).unwrap();
                let outcome = run(&host, &["check", path.to_str().unwrap()]);
                outcome.expect(0, &[]);
                let lines = outcome.stderr.lines();
                said.extend(lines.filter_map(|line| line.strip_prefix("warning: ")).map(no_lines));
            }
            assert_eq!(said, example.announced(), "{}: said, and announced", example.name);
        }
    });
}

/// A message without the numbers of lines.
fn no_lines(message: &str) -> String {
    let mut parts = message.split(" (line ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or(part, |(_, rest)| rest))
}

#[test]
fn every_packet_of_the_examples_meets_its_fate() {
    sandbox(|| EXAMPLES.iter().for_each(judge));
}

fn judge(example: &Example) {
    let directory = example.unpack();
    let loaded = load_policy(&directory.path().join("policy.toml"))
        .unwrap_or_else(|error| panic!("{}: {error:?}", example.name));
    let mut policy = loaded.policy;
    for target in &mut policy.targets {
        // Which CPUs there are differs from machine to machine, and the verdict does not.
        if let TargetKind::Cpus { cpus, .. } = &mut target.kind {
            *cpus = vec![0];
        }
    }
    let bench = Bench::new(example.name, &policy, &loaded.bundle.text);
    let slots: Vec<(u32, &str)> = (7..).zip(bench.interfaces()).collect();
    let (image, segments) = compiled(&policy, &slots).unwrap();
    let evaluator = Evaluator { image: &image, segments: &segments };
    let explainer = Explainer::new(&policy);

    let rows = example.rows();
    assert!(rows.len() >= FEWEST, "{}: only {} packets", example.name, rows.len());
    let mut unused: BTreeSet<&str> =
        policy.rules.iter().map(|rule| rule.name.as_deref().expect("a name")).collect();
    for row in &rows {
        let place = &row.place;
        let mut packet = row.packet.headers();
        assert!(packet.src.is_some() && packet.dst.is_some(), "{place}: both addresses are needed");
        packet.interface.get_or_insert(bench.interfaces().next().expect("an interface"));
        let told = |outcome: &Outcome| in_words(&policy, outcome);
        let table = (row.action.clone(), row.why.clone());

        let judged = oracle::judge(&policy, &packet);
        assert_eq!(
            told(&Outcome::decided(&policy, judged)),
            table,
            "{place}: the oracle, and the table"
        );

        let slot = slots.iter().find(|(_, name)| packet.interface == Some(*name));
        let slot = slot.unwrap_or_else(|| panic!("{place}: no such interface")).0;
        let found = decision(&policy, evaluator.decide(&packet, slot));
        assert_eq!(
            told(&Outcome::decided(&policy, found)),
            table,
            "{place}: the tables, and the table"
        );

        let explanation = explainer.explain(&packet);
        let cause = match explanation.cause {
            explain::Cause::Rule(index) => Cause::Rule(policy.label(&policy.rules[index])),
            explain::Cause::Fragments(_) => Cause::Reason(Reason::FragmentWithoutPorts),
            explain::Cause::Default => Cause::Reason(Reason::NoRule),
            explain::Cause::Reason(reason) => Cause::Reason(reason),
        };
        let explained = Outcome { action: explanation.action, cause };
        assert_eq!(told(&explained), table, "{place}: `explain`, and the table");

        assert_eq!(told(&bench.judge(&packet)), table, "{place}: the kernel, and the table");
        unused.remove(row.why.as_str());
    }
    assert!(unused.is_empty(), "{}: no packet is decided by {unused:?}", example.name);
}

/// As a row has it.
fn in_words(policy: &Policy, outcome: &Outcome) -> (String, String) {
    let action = match outcome.action {
        Action::Steer(id) => format!("steer {}", policy.target(id).name),
        action => action.name().to_owned(),
    };
    let why = match &outcome.cause {
        Cause::Rule(name) => name.clone(),
        Cause::Reason(Reason::NoRule) => "default".to_owned(),
        Cause::Reason(reason) => reason.name().to_owned(),
    };
    (action, why)
}

/// An example in force, in a namespace that has its interfaces by their names.
struct Bench<'p> {
    policy: &'p Policy,
    instance: Instance,
    _dataplane: Dataplane,
    /// The programs by the interfaces' names.
    programs: Vec<(&'p str, OwnedFd)>,
    /// By target: where frames leave, if they do.
    ways: Vec<Option<Veth>>,
    _namespace: Namespace,
}

/// Whoever has the next hop's address.
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 0x42];

impl<'p> Bench<'p> {
    fn new(name: &str, policy: &'p Policy, text: &str) -> Self {
        let namespace = Namespace::new().expect("root is needed: this test makes namespaces");
        // Not a packet may come over the wire: the counters are read to see what a test run did.
        namespace.run(|| {
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                fs::write(path, "1").expect("IPv6 can be switched off");
            }
        });
        let mut count = 0;
        let mut cable = |name: &str| {
            count += 1;
            let far = End::new(&namespace, &format!("far{count}"));
            Veth::between(End::new(&namespace, name), far).create().expect("a veth pair")
        };
        let interfaces: Vec<&str> = policy.interfaces.iter().map(|one| &*one.text).collect();
        interfaces.iter().for_each(|name| drop(cable(name)));
        let mut ways = Vec::new();
        for target in &policy.targets {
            ways.push(match &target.kind {
                TargetKind::Interface { interface, next_hop } => {
                    let way = cable(interface);
                    if let NextHop::Via(address) = next_hop {
                        way.left.add_neighbor(*address, NEIGHBOUR).expect("a neighbour");
                    }
                    Some(way)
                }
                TargetKind::Cpus { .. } => None,
            });
        }
        let instance = Instance::new(name).unwrap();
        let dataplane = namespace.run(|| {
            let dataplane = Dataplane::lock(instance.clone()).unwrap();
            dataplane
                .apply(&Order::new(policy, "policy.toml", text), &Interrupt::default())
                .unwrap();
            dataplane
        });
        // The slots are those of an instance that is new: in the policy's order.
        let program = |slot| program_in_slot(&instance, slot).unwrap();
        let programs = interfaces.into_iter().zip((0..).map(program)).collect();
        Self { policy, programs, instance, _dataplane: dataplane, ways, _namespace: namespace }
    }

    /// The names of the interfaces, in the policy's order.
    fn interfaces(&self) -> impl Iterator<Item = &'p str> {
        self.programs.iter().map(|(name, _)| *name)
    }

    /// Has the kernel judge a packet that comes in by its interface.
    fn judge(&self, packet: &Packet<'_>) -> Outcome {
        let name = packet.interface.expect("an interface");
        let (_, program) = self.programs.iter().find(|(known, _)| *known == name).unwrap();
        let frame = frame(packet);
        let stats = || read_stats(&self.instance).unwrap();
        let before = stats();
        let (result, left) = sys::test_run_frame(program.as_fd(), &frame).expect("a test run");
        let after = stats();
        let outcome = read_outcome(&before, &after, frame.len() as u64);
        for (now, then) in after.interfaces.iter().zip(&before.interfaces) {
            let is_its = u64::from(now.name == name);
            assert_eq!(now.packets - then.packets, is_its, "{} counts its own", now.name);
        }
        let mut wanted = frame;
        let code = match outcome.action {
            Action::Drop => 1,
            Action::Pass => 2,
            Action::Steer(id) => {
                let kind = &self.policy.target(id).kind;
                if let (TargetKind::Interface { next_hop, .. }, Some(way)) =
                    (kind, &self.ways[usize::from(id.0)])
                {
                    let mac = match next_hop {
                        NextHop::Via(_) => Some(NEIGHBOUR),
                        NextHop::Mac(mac) => Some(*mac),
                        NextHop::Keep => None,
                    };
                    if let Some(mac) = mac {
                        wanted[..6].copy_from_slice(&mac);
                        wanted[6..12].copy_from_slice(&way.left.mac());
                    }
                }
                4
            }
        };
        assert_eq!(result.action, code, "the counted verdict is the one given");
        assert_eq!(left, wanted, "what else it does to a frame");
        outcome
    }
}
