//! What a peer's rules match and so drop, to know what it has to do with a packet.

use std::{collections::HashSet, net::IpAddr};

use crate::{
    policies::Blocklist,
    probes::Probe,
    programs::{XDP_DROP, XDP_PASS},
};

#[derive(Default)]
pub struct Matched {
    ports: HashSet<u16>,
    /// Ascending, without overlaps: the first and the last address.
    sources: Vec<(u128, u128)>,
}

impl Matched {
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Destination ports.
    pub fn ports(ports: &[u16]) -> Self {
        Self { ports: ports.iter().copied().collect(), ..Self::default() }
    }

    /// Source addresses.
    pub fn sources(blocklist: &Blocklist) -> Self {
        let ends = |prefix: &ipnet::IpNet| (bits(prefix.network()), bits(prefix.broadcast()));
        let mut sources: Vec<(u128, u128)> = blocklist.prefixes.iter().map(ends).collect();
        sources.sort_unstable();
        // Prefixes lie in each other or apart.
        sources.dedup_by(|later, kept| later.1 <= kept.1);
        Self { sources, ..Self::default() }
    }

    pub fn verdict(&self, probe: &Probe) -> u32 {
        let is_matched = self.ports.contains(&probe.dst_port) || self.has_source(probe.src);
        if is_matched { XDP_DROP } else { XDP_PASS }
    }

    fn has_source(&self, address: IpAddr) -> bool {
        let address = bits(address);
        let after = self.sources.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).is_some_and(|before| address <= self.sources[before].1)
    }
}

/// Of an address of one family; sets have no other.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
