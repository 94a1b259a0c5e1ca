//! Prefixes as JSON: texts as a policy has them, where an address is a prefix of full length.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

use super::parse_prefix;
use crate::policy::prefixes;

pub(super) fn serialize<S: Serializer>(list: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|&prefix| prefixes::bare(prefix)))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_prefix(text).map_err(D::Error::custom)).collect()
}
