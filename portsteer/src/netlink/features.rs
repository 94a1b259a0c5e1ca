//! What an interface can do with XDP, as its driver says through the generic netlink family
//! `netdev` (Documentation/netlink/specs/netdev.yaml, include/uapi/linux/netdev.h).

use std::{collections::HashMap, io};

use super::{
    explain,
    request::{Request, attributes, field},
};

/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX` and `NETDEV_A_DEV_XDP_FEATURES`.
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
/// `struct genlmsghdr`.
const GENERIC_HEADER_LEN: usize = 4;

/// What an interface's driver can do with XDP (`NETDEV_XDP_ACT_*`). It may change while the
/// interface exists: with offloads, with whether it is up, or with a program at a veth's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Other interfaces' programs can redirect frames to this one (`ndo-xmit`).
    #[must_use]
    pub const fn redirect_target(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// Also frames that are in several pieces (`ndo-xmit-sg`).
    #[must_use]
    pub const fn redirect_target_sg(self) -> bool {
        self.0 & 1 << 6 != 0
    }
}

/// What the interfaces of the calling thread's network namespace can do with XDP, by index; `None`
/// where the kernel does not tell, which it does since 6.3.
///
/// # Errors
///
/// If the kernel refuses the request, or its answer cannot be read.
pub fn xdp_features() -> io::Result<Option<HashMap<u32, XdpFeatures>>> {
    let cannot = |error: &io::Error| explain(error, "cannot read the interfaces' XDP features");
    let Some(family) = family_id("netdev").map_err(|error| cannot(&error))? else {
        return Ok(None);
    };
    let mut features = HashMap::new();
    let answer = Request::generic(family, DEV_GET, libc::NLM_F_DUMP).send(|kind, payload| {
        if kind == family {
            features.extend(parse_features(payload));
        }
    });
    match answer {
        Ok(_) => Ok(Some(features)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(cannot(&error)),
    }
}

/// The number of a generic netlink family; none if the kernel does not have it.
fn family_id(name: &str) -> io::Result<Option<u16>> {
    let controller = libc::GENL_ID_CTRL as u16;
    let mut id = None;
    let answer = Request::generic(controller, libc::CTRL_CMD_GETFAMILY as u8, 0)
        .text(libc::CTRL_ATTR_FAMILY_NAME as u16, name)
        .send(|kind, payload| {
            if kind == controller {
                id = attribute(payload, libc::CTRL_ATTR_FAMILY_ID as u16).map(u16::from_ne_bytes);
            }
        });
    match answer {
        Ok(_) => Ok(id),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An interface's index and features.
fn parse_features(message: &[u8]) -> Option<(u32, XdpFeatures)> {
    let index = attribute(message, DEV_IFINDEX).map(u32::from_ne_bytes)?;
    let features = attribute(message, DEV_XDP_FEATURES).map(u64::from_ne_bytes)?;
    Some((index, XdpFeatures(features)))
}

/// The beginning of an attribute of a generic netlink message.
fn attribute<const N: usize>(message: &[u8], wanted: u16) -> Option<[u8; N]> {
    attributes(message.get(GENERIC_HEADER_LEN..)?)
        .find(|(kind, _)| *kind == wanted)
        .and_then(|(_, value)| field(value, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Request {
        Request::generic(30, DEV_GET, 0).number(DEV_IFINDEX, 7)
    }

    #[test]
    fn features_are_bits() {
        let read = |bits: u64| {
            let message = message().bytes(DEV_XDP_FEATURES, &bits.to_ne_bytes()).into_payload();
            let (index, features) = parse_features(&message).expect("features");
            assert_eq!(index, 7);
            (features.redirect_target(), features.redirect_target_sg())
        };
        assert_eq!(read(0x01), (false, false));
        assert_eq!(read(0x04), (true, false));
        assert_eq!(read(0x40), (false, true));
        assert_eq!(read(!0x44), (false, false));
    }

    #[test]
    fn an_answer_without_features_has_none() {
        assert_eq!(parse_features(&message().into_payload()), None);
        assert_eq!(parse_features(&[1, 0]), None);
    }

    #[test]
    fn a_family_that_the_kernel_does_not_have_is_none() {
        assert_eq!(family_id("nlctrl").expect("an answer"), Some(libc::GENL_ID_CTRL as u16));
        assert_eq!(family_id("no-such-family").expect("an answer"), None);
    }
}
