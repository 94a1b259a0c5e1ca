//! What the rules of a policy ask for, written out: two policies with the same bytes differ in their sets
//! at most. It is all of the rules that a compiler keeps, some dozens of bytes for each.

use ipnet::IpNet;

use super::fields::Match;
use crate::policy::{AddressItem, Addresses, NumberRange, Rule};

/// Writes rules out, and what they do.
pub(super) fn asked(rules: &[Match<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for found in rules {
        // Whoever adds a field that matters to the tables adds it here.
        let Rule {
            name: _,
            protocols,
            src,
            dst,
            src_ports,
            dst_ports,
            icmp_types,
            vlans,
            interfaces: _,
            // Only decisions know of it.
            action: _,
            span: _,
            line: _,
        } = found.rule;
        count(protocols.len(), &mut bytes);
        bytes.extend(protocols);
        for addresses in [src, dst] {
            write_addresses(addresses, &mut bytes);
        }
        for numbers in [src_ports, dst_ports, icmp_types, vlans] {
            write_ranges(numbers, &mut bytes);
        }
        match &found.slots {
            None => bytes.push(0),
            Some(slots) => {
                bytes.push(1);
                write_ranges(slots, &mut bytes);
            }
        }
    }
    bytes.shrink_to_fit();
    bytes
}

fn write_addresses(addresses: &Addresses, bytes: &mut Vec<u8>) {
    for items in [&addresses.positive, &addresses.negative] {
        count(items.len(), bytes);
        for item in items {
            match item {
                AddressItem::Set(id) => {
                    bytes.push(0);
                    bytes.extend(id.0.to_le_bytes());
                }
                AddressItem::Prefix(IpNet::V4(net)) => {
                    bytes.extend([1, net.prefix_len()]);
                    bytes.extend(net.addr().octets());
                }
                AddressItem::Prefix(IpNet::V6(net)) => {
                    bytes.extend([2, net.prefix_len()]);
                    bytes.extend(net.addr().octets());
                }
            }
        }
    }
}

fn write_ranges(ranges: &[NumberRange], bytes: &mut Vec<u8>) {
    count(ranges.len(), bytes);
    for range in ranges {
        bytes.extend(range.first.to_le_bytes());
        bytes.extend(range.last.to_le_bytes());
    }
}

/// Most lists are short.
fn count(count: usize, bytes: &mut Vec<u8>) {
    match u8::try_from(count) {
        Ok(short) if short < u8::MAX => bytes.push(short),
        _ => {
            bytes.push(u8::MAX);
            bytes.extend((count as u64).to_le_bytes());
        }
    }
}
