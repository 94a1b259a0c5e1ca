//! Random addresses and prefixes of either version of IP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use portsteer_testkit::random::Random;

use crate::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// An address out of all that a host can have: 1.0.0.0 to 223.255.255.255, or 2000::/3. What lies
    /// beyond would be found missing at once, which would flatter.
    pub fn address(self, random: &mut Random) -> IpAddr {
        match self {
            Self::V4 => {
                let first = 1 << 24;
                Ipv4Addr::from_bits((first + random.below((224 << 24) - first)) as u32).into()
            }
            Self::V6 => {
                let bits = u128::from(random.number()) << 64 | u128::from(random.number());
                Ipv6Addr::from_bits(1 << 125 | bits >> 3).into()
            }
        }
    }
}

/// A prefix with a random address in it, less its host bits.
pub fn prefix(family: Family, len: u16, random: &mut Random) -> Result<IpNet> {
    Ok(IpNet::new(family.address(random), len as u8)?.trunc())
}

/// A random address of a prefix.
pub fn address_in(prefix: IpNet, random: &mut Random) -> IpAddr {
    match prefix {
        IpNet::V4(prefix) => {
            let host = prefix.hostmask().to_bits() & random.number() as u32;
            Ipv4Addr::from_bits(prefix.network().to_bits() | host).into()
        }
        IpNet::V6(prefix) => {
            let bits = u128::from(random.number()) << 64 | u128::from(random.number());
            let host = prefix.hostmask().to_bits() & bits;
            Ipv6Addr::from_bits(prefix.network().to_bits() | host).into()
        }
    }
}
