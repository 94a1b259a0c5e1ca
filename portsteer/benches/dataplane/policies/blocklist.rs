//! A policy with one rule: sources in a large set are dropped, and all others pass.

use std::{collections::HashSet, fmt::Write as _};

use ipnet::IpNet;

use super::{Mixed, PolicyFile};
use portsteer_testkit::random::Random;

use crate::{
    PORT, Result,
    family::{Family, address_in, prefix},
    probes::{PROBES, Probe},
};

/// A set of distinct random prefixes. A smaller set is the beginning of a larger one.
pub struct Blocklist {
    pub family: Family,
    pub prefixes: Vec<IpNet>,
}

impl Blocklist {
    pub fn new(count: usize, family: Family) -> Result<Self> {
        Self::with(count, family, prefix_len)
    }

    /// The same of single addresses.
    pub fn of_addresses(count: usize, family: Family) -> Result<Self> {
        Self::with(count, family, |family, _| match family {
            Family::V4 => 32,
            Family::V6 => 128,
        })
    }

    fn with(
        count: usize,
        family: Family,
        prefix_len: fn(Family, &mut Random) -> u16,
    ) -> Result<Self> {
        let mut random = Random::new(4);
        let outside = Mixed::packet(family).src;
        let mut known = HashSet::with_capacity(count);
        let mut prefixes = Vec::with_capacity(count);
        while prefixes.len() < count {
            let len = prefix_len(family, &mut random);
            let prefix = prefix(family, len, &mut random)?;
            if !prefix.contains(&outside) && known.insert(prefix) {
                prefixes.push(prefix);
            }
        }
        Ok(Self { family, prefixes })
    }

    /// Whether there is more in it than single addresses.
    pub fn has_networks(&self) -> bool {
        self.prefixes.iter().any(|prefix| prefix.prefix_len() < prefix.max_prefix_len())
    }

    /// Packets from sources all over the set.
    pub fn matched_probes(&self) -> Vec<Probe> {
        let mut random = Random::new(7);
        let probe = |_| Probe {
            src: address_in(self.prefixes[random.below(self.prefixes.len())], &mut random),
            dst_port: PORT,
            ..Probe::random(self.family, &mut random)
        };
        (0..PROBES).map(probe).collect()
    }

    /// Packets from random sources that are not in the set; IPv6 ones share the first half with one that is.
    pub fn other_probes(&self, is_matched: impl Fn(&Probe) -> bool) -> Result<Vec<Probe>> {
        let mut random = Random::new(8);
        let mut probes = Vec::with_capacity(PROBES);
        while probes.len() < PROBES {
            let mut probe = Probe { dst_port: PORT, ..Probe::random(self.family, &mut random) };
            if probe.src.is_ipv6() {
                let near = self.prefixes[random.below(self.prefixes.len())];
                let half = IpNet::new(near.addr(), 64)?.trunc();
                probe.src = address_in(half, &mut random);
            }
            if !is_matched(&probe) {
                probes.push(probe);
            }
        }
        Ok(probes)
    }

    /// The policy for this interface, with the set in a file of its own.
    pub fn file(&self, interface: &str) -> Result<PolicyFile> {
        let mut policy = PolicyFile::new(&format!(
            "version = 1\ninterfaces = [\"{interface}\"]\nmode = \"native\"\ndefault = \"pass\"\n\
             [sets.blocklist]\nfile = \"blocklist.txt\"\n\
             [[rules]]\nname = \"blocked\"\nsrc = [\"@blocklist\"]\naction = \"drop\"\n"
        ))?;
        let mut set = String::new();
        for prefix in &self.prefixes {
            let _ = writeln!(set, "{prefix}");
        }
        policy.add("blocklist.txt", &set)?;
        Ok(policy)
    }

    /// A packet from a source that every set has, however small, and one from a source that none has.
    pub fn packets(family: Family) -> Result<[Probe; 2]> {
        let miss = Mixed::packet(family);
        let first = Self::new(1, family)?.prefixes[0];
        Ok([Probe { src: address_in(first, &mut Random::new(5)), ..miss }, miss])
    }

    /// Packets from random sources. IPv6 has so many that none of them would be near a prefix of the
    /// set, so half of them are from random ones of the set's first prefixes.
    pub fn probes(&self) -> Vec<Probe> {
        let near = &self.prefixes[..10_000.min(self.prefixes.len())];
        let mut random = Random::new(6);
        let probe = |_| {
            let mut probe = Probe::random(self.family, &mut random);
            if self.family == Family::V6 && random.below(2) == 0 {
                probe.src = address_in(near[random.below(near.len())], &mut random);
            }
            probe
        };
        (0..PROBES).map(probe).collect()
    }
}

/// Single hosts above all, and networks up to the largest that such lists have.
fn prefix_len(family: Family, random: &mut Random) -> u16 {
    match (family, random.below(16)) {
        (Family::V4, 0..=3) => random.within(20..=23),
        (Family::V4, 4..=7) => 24,
        (Family::V4, 8..=10) => random.within(25..=31),
        (Family::V4, _) => 32,
        (Family::V6, 0..=3) => random.within(29..=47),
        (Family::V6, 4..=7) => 48,
        (Family::V6, 8..=10) => random.within(49..=63),
        (Family::V6, 11..=13) => 64,
        (Family::V6, _) => 128,
    }
}
