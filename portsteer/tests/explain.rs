//! `portsteer explain` as its users run it: described packets, bytes, captures, and what is none of
//! these. Needs no privileges.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use pcap_file::{
    DataLink,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::EnhancedPacketBlock, interface_description::InterfaceDescriptionBlock,
        },
    },
};
use portsteer_testkit::{
    agent::{Outcome, binary},
    packet::{ARP, IPV4, IPV6, TCP, UDP, VLAN, ethernet, ipv4, ipv6, tcp, udp, vlan},
};
use serde_json::Value;
use tempfile::TempDir;

const POLICY: &str = "version = 1\ninterfaces = [\"eth0\"]\n\
    [targets.web]\ninterface = \"veth-web\"\nmac = \"keep\"\n\
    [[rules]]\nname = \"web\"\nprotocol = \"tcp\"\ndst_port = 80\naction = { steer = \"web\" }\n\
    [[rules]]\nname = \"dns\"\nprotocol = \"udp\"\ndst_port = 53\naction = \"drop\"\n";

fn explain(directory: &Path, arguments: &[&str]) -> Outcome {
    let policy = directory.join("policy.toml");
    fs::write(&policy, POLICY).expect("a policy file");
    Outcome::of(Command::new(binary()).args(["explain", "--policy"]).arg(policy).args(arguments))
}

/// One frame for each fate: steered, dropped, passed by the default, not judged, malformed.
fn frames() -> Vec<Vec<u8>> {
    let mut short = ethernet(IPV4, ipv4(UDP, udp(7, 53, [0; 20])));
    short.truncate(40);
    vec![
        ethernet(VLAN, vlan(12, IPV4, ipv4(TCP, tcp(7, 80, [0; 20])))),
        ethernet(IPV6, ipv6(UDP, udp(7, 53, [0; 20]))),
        ethernet(IPV4, ipv4(UDP, udp(7, 80, [0; 20]))),
        ethernet(ARP, [0; 28]),
        short,
    ]
}

const FATES: [&str; 5] = [
    "steer web: rule `web` (line 6): tcp dst_port 80",
    "drop: rule `dns` (line 11): udp dst_port 53",
    "pass: no rule matches, the default decides",
    "pass: neither IPv4 nor IPv6, not judged",
    "drop: the frame ends before its headers or its IP length do, as the options say",
];

#[test]
fn a_described_packet_is_explained() {
    let directory = TempDir::new().expect("a directory");
    explain(directory.path(), &["tcp 203.0.113.9:51000 -> 192.0.2.10:80 vlan 12 on eth0"])
        .expect(0, &["tcp 203.0.113.9:51000 -> 192.0.2.10:80 vlan 12 on eth0", FATES[0]]);
    // As several words, and with what a shell does not take for its own.
    explain(directory.path(), &["udp", "to", ":http"])
        .expect(0, &[FATES[2], "rule `dns` (line 11): dst_port: 80 is not in 53"]);
    let outcome = explain(directory.path(), &["--json", "udp -> [2001:db8::1]:domain"]);
    let json: Value = serde_json::from_str(&outcome.expect(0, &[]).stdout).expect("JSON");
    assert_eq!((&json["action"], &json["rule"]["name"]), (&"drop".into(), &"dns".into()));
}

#[test]
fn bytes_are_explained() {
    let directory = TempDir::new().expect("a directory");
    for (frame, fate) in frames().iter().zip(FATES) {
        let digits: String = frame.iter().map(|byte| format!("{byte:02x} ")).collect();
        explain(directory.path(), &["--hex", &digits]).expect(0, &[fate]);
    }
}

#[test]
fn every_packet_of_a_capture_is_explained() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("capture");
    let said: Vec<&str> = FATES.into_iter().chain(["5 packets in all", "#5 a frame"]).collect();
    let explain_it = || explain(directory.path(), &["--pcap", path.to_str().expect("a path")]);

    let mut writer = PcapWriter::new(File::create(&path).expect("a file")).expect("a capture");
    for frame in frames() {
        let packet = PcapPacket::new_owned(Duration::ZERO, frame.len() as u32, frame);
        writer.write_packet(&packet).expect("a packet");
    }
    drop(writer);
    explain_it().expect(0, &said);

    let mut writer = PcapNgWriter::new(File::create(&path).expect("a file")).expect("a capture");
    writer
        .write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: Vec::new(),
        })
        .expect("an interface");
    for frame in frames() {
        writer
            .write_pcapng_block(EnhancedPacketBlock {
                interface_id: 0,
                timestamp: Duration::ZERO,
                original_len: frame.len() as u32,
                data: frame.into(),
                options: Vec::new(),
            })
            .expect("a packet");
    }
    drop(writer);
    explain_it().expect(0, &said);
}

/// Rules in all fields; what only the command line knows is where a frame came in.
const FIELDS: &str = "version = 1\ninterfaces = [\"eth0\", \"eth1\"]\n\
    [sets.office]\naddresses = [\"192.0.2.0/24\"]\n\
    [[rules]]\nname = \"tagged\"\nprotocol = \"udp\"\nvlan = 12\naction = \"drop\"\n\
    [[rules]]\nname = \"inside\"\nprotocol = \"tcp\"\ninterface = \"eth1\"\naction = \"drop\"\n\
    [[rules]]\nname = \"office\"\nprotocol = \"udp\"\nsrc = [\"@office\", \"!192.0.2.9\"]\n\
    dst = [\"198.51.100.0\", \"198.51.100.1\", \"198.51.100.2\", \"198.51.100.3\", \"198.51.100.4\",\n\
    \"198.51.100.5\", \"198.51.100.6\", \"198.51.100.7\", \"198.51.100.8\"]\naction = \"drop\"\n";

#[test]
fn all_fields_are_explained() {
    let directory = TempDir::new().expect("a directory");
    let policy = directory.path().join("policy.toml");
    fs::write(&policy, FIELDS).expect("a policy file");
    let explain = |arguments: &[&str]| {
        Outcome::of(
            Command::new(binary()).args(["explain", "--policy"]).arg(&policy).args(arguments),
        )
    };
    explain(&["udp 192.0.2.7 -> 198.51.100.8:53 vlan untagged"]).expect(
        0,
        &[
            "drop: rule `office` (line 15): udp src @office,!192.0.2.9 dst 198.51.100.0,",
            "198.51.100.7,...\n",
            "rule `tagged` (line 5): vlan: untagged is not in 12",
        ],
    );
    explain(&["--json", "udp 192.0.2.7 -> 198.51.100.8:53"]).expect(0, &["198.51.100.8\""]);
    explain(&["udp 192.0.2.9 -> 198.51.100.8:53"])
        .expect(0, &["src: 192.0.2.9 is in 192.0.2.9, which is excluded"]);
    let frame = ethernet(IPV4, ipv4(TCP, tcp(7, 80, [0; 20])));
    let digits: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    explain(&["--hex", &digits]).expect(0, &["interface: the packet's interface is not given"]);
    explain(&["--hex", &digits, "--on", "eth0"]).expect(0, &["eth0 is not in eth1", " on eth0\n"]);
    explain(&["--hex", &digits, "--on", "eth1"])
        .expect(0, &["drop: rule `inside` (line 10): tcp interface eth1"]);
    explain(&["tcp -> :80", "--on", "eth1"]).expect(2, &["cannot be used with"]);
}

/// What is not in the capture is not taken for missing on the wire.
#[test]
fn a_packet_that_was_captured_in_part_is_judged_by_what_there_is() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("capture");
    let whole = ethernet(IPV4, ipv4(UDP, udp(7, 53, [0; 1000])));
    let mut writer = PcapWriter::new(File::create(&path).expect("a file")).expect("a capture");
    for len in [96, 36] {
        let packet =
            PcapPacket::new_owned(Duration::ZERO, whole.len() as u32, whole[..len].to_vec());
        writer.write_packet(&packet).expect("a packet");
    }
    drop(writer);
    explain(directory.path(), &["--pcap", path.to_str().expect("a path")]).expect(
        0,
        &[FATES[1], "#2 a frame of 1042 bytes, 36 of them captured", "unknown: its headers"],
    );
}

#[test]
fn what_is_no_packet_is_bad_input() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("capture");
    let name = path.to_str().expect("a path");
    for (content, said) in [
        (&b""[..], "too short for a capture"),
        (b"what is this", "neither a pcap nor a pcapng file"),
        (&[0x0a, 0x0d, 0x0d, 0x0a, 1, 2, 3], "neither a pcap nor a pcapng file"),
    ] {
        fs::write(&path, content).expect("a file");
        explain(directory.path(), &["--pcap", name]).expect(2, &[name, said]);
    }
    let header = PcapHeader { datalink: DataLink::IEEE802_11, ..PcapHeader::default() };
    drop(PcapWriter::with_header(File::create(&path).expect("a file"), header));
    explain(directory.path(), &["--pcap", name]).expect(2, &["not Ethernet frames"]);
    let mut writer = PcapWriter::new(File::create(&path).expect("a file")).expect("a capture");
    writer.write_packet(&PcapPacket::new(Duration::ZERO, 60, &[0; 60])).expect("a packet");
    drop(writer);
    let whole = fs::read(&path).expect("a capture");
    fs::write(&path, &whole[..whole.len() - 7]).expect("a file");
    explain(directory.path(), &["--pcap", name]).expect(2, &["what follows is damaged"]);

    explain(directory.path(), &["--pcap", "/nowhere"]).expect(2, &["/nowhere", "No such file"]);
    explain(directory.path(), &["--hex", "0200"]).expect(2, &["2 bytes are no Ethernet frame"]);
    explain(directory.path(), &["tpc", "to", ":80"]).expect(2, &["did you mean `tcp`?"]);
    explain(directory.path(), &["tcp", ":7", "-"]).expect(2, &["put the packet in quotes"]);
    explain(directory.path(), &[]).expect(2, &["Usage"]);
    let nowhere = ["explain", "--policy", "/nowhere", "tcp -> :80"];
    Outcome::of(Command::new(binary()).args(nowhere)).expect(2, &["/nowhere", "No such file"]);
}
