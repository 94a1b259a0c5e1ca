//! What a compiled policy says about a packet, read by user space: plainly, and not as the XDP program
//! does it, so that each shows the other's mistakes.

use std::net::IpAddr;

use portsteer_common::{
    Decision, Image, Node, PortKey, PortProtocol, Reason, Verdict,
    image::Cell,
    node::{Kind, LINE_WORDS, SEGMENT_WORDS, Segment, row},
    wire::protocol,
};

use crate::oracle::Packet;

/// A compiled policy in memory.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "as for the image")]
pub struct Evaluator<'a> {
    pub image: &'a Image,
    /// All segments, also those that other policies use.
    pub segments: &'a [Segment],
}

impl Evaluator<'_> {
    /// What is decided about a packet that comes in by the interface in this slot.
    ///
    /// # Panics
    ///
    /// If the tables are broken: a node leads out of them.
    #[must_use]
    pub fn decide(&self, packet: &Packet<'_>, slot: u32) -> Decision {
        let (row, column) = row_and_column(packet);
        let cell = self.cell(row, column);
        if self.image.features == 0 {
            return spare(Decision::from_bits(cell.0), packet);
        }
        let tail = |node| self.by_fields(node, row, column, packet, slot);
        let mut leaves = vec![tail(Node::from_bits(cell.0))];
        let roots = &self.image.roots;
        if let Some(src) = packet.src {
            let root = if src.is_ipv4() { roots.src_v4 } else { roots.src_v6 };
            let node = self.by_address(root, src);
            if let (Kind::Fork, Some(dst)) = (node.kind(), packet.dst) {
                let words = self.words(node.line(), 2);
                let by_destination = self.by_address(Node::from_bits(words[1]), dst);
                leaves.extend([tail(Node::from_bits(words[0])), tail(by_destination)]);
            } else {
                leaves.push(tail(node));
            }
        }
        if let Some(dst) = packet.dst {
            let root = if dst.is_ipv4() { roots.dst_v4 } else { roots.dst_v6 };
            leaves.push(tail(self.by_address(root, dst)));
        }
        let first = leaves.into_iter().min().unwrap_or(Node::NOTHING);
        let decision = if first == Node::NOTHING {
            self.image.default
        } else if first.is_later() {
            self.image.fragments
        } else {
            let word = (self.image.decisions + first.rule_number()) as usize;
            Decision::from_bits(self.segments[word / SEGMENT_WORDS][word % SEGMENT_WORDS])
        };
        spare(decision, packet)
    }

    fn cell(&self, row: u32, column: u16) -> Cell {
        match row {
            row::OTHER => self.image.by_protocol[usize::from(column)],
            row::ICMP | row::ICMPV6 if self.image.features == 0 => {
                let number = if row == row::ICMP { protocol::ICMP } else { protocol::ICMPV6 };
                self.image.by_protocol[usize::from(number)]
            }
            row::ICMP => self.image.icmp.into(),
            row::ICMPV6 => self.image.icmpv6.into(),
            row => self.image.by_port.as_flattened()[PortKey::of_row(row, column).index()],
        }
    }

    /// So many words from a line on.
    fn words(&self, line: u32, count: usize) -> &[u32] {
        let word = line as usize * LINE_WORDS;
        &self.segments.as_flattened()[word..word + count]
    }

    /// Where a node leads by a key.
    fn step(&self, node: Node, key: u16) -> Node {
        if node.is_table() {
            return Node::from_bits(self.words(node.line(), 65_536)[usize::from(key)]);
        }
        let len = 1usize << node.steps();
        let words = self.words(node.line(), len / 2 + len);
        let starts: Vec<u16> =
            words[..len / 2].iter().flat_map(|&word| [word as u16, (word >> 16) as u16]).collect();
        let after = starts.partition_point(|&start| start <= key);
        Node::from_bits(words[len / 2 + after - 1])
    }

    fn by_address(&self, root: Node, address: IpAddr) -> Node {
        let (mut rest, mut node) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, root),
            IpAddr::V6(address) => (address.to_bits(), root),
        };
        loop {
            match node.kind() {
                Kind::Branch => {
                    node = self.step(node, (rest >> 112) as u16);
                    rest <<= 16;
                }
                Kind::Path => {
                    let words = self.words(node.line(), 6);
                    let double = |at: usize| u64::from(words[at + 1]) << 32 | u64::from(words[at]);
                    let is_same = (rest >> 64) as u64 & double(0) == double(2);
                    node = Node::from_bits(words[if is_same { 4 } else { 5 }]);
                    rest <<= 64;
                }
                _ => return node,
            }
        }
    }

    fn by_fields(&self, node: Node, row: u32, column: u16, packet: &Packet<'_>, slot: u32) -> Node {
        let mut node = node;
        loop {
            node = match node.kind() {
                Kind::Leaf => return node,
                Kind::Rows => Node::from_bits(self.words(node.line(), row::COUNT)[row as usize]),
                Kind::Branch => self.step(node, column),
                Kind::Vlan => self.step(node, packet.vlan),
                Kind::Interface => self.step(node, slot as u16),
                Kind::SrcPort => self.step(node, packet.src_port.unwrap_or(0)),
                Kind::Fork | Kind::Path => panic!("these stand where addresses are looked up"),
            };
        }
    }
}

/// See [`portsteer_common::node::row`].
fn row_and_column(packet: &Packet<'_>) -> (u32, u16) {
    let by_type = |(kind, code): (u8, u8)| u16::from_be_bytes([kind, code]);
    let number = u16::from(packet.protocol);
    match (PortProtocol::from_number(packet.protocol), packet.dst_port) {
        _ if packet.later_fragment => (row::OTHER, row::LATER as u16 + number),
        (Some(protocol), Some(port)) => (protocol as u32, port),
        _ => match (packet.icmp, packet.icmpv6) {
            (Some(icmp), _) => (row::ICMP, by_type(icmp)),
            (_, Some(icmpv6)) => (row::ICMPV6, by_type(icmpv6)),
            _ => (row::OTHER, number),
        },
    }
}

/// A pass for what `default = "drop"` spares.
fn spare(decision: Decision, packet: &Packet<'_>) -> Decision {
    if decision != Decision::without_rule(Verdict::Drop, Reason::NoRule) {
        return decision;
    }
    let reason = match (packet.icmp, packet.icmpv6) {
        (Some((3, 4)), _) | (_, Some((2, _))) => Reason::PathMtu,
        (_, Some((133..=136, _))) => Reason::NeighborDiscovery,
        _ => return decision,
    };
    Decision::without_rule(Verdict::Pass, reason)
}
