//! The kernel's neighbour tables, ARP's and neighbour discovery's: which Ethernet address an IP
//! address on the link has.

use std::{io, net::IpAddr};

use super::{
    explain_interface, family_and_bytes,
    request::{Request, attributes, field},
};

/// `NTF_EXT_LEARNED` and, in `NDA_FLAGS_EXT`, `NTF_EXT_MANAGED` (include/uapi/linux/neighbour.h).
const EXTERNALLY_LEARNED: u8 = 1 << 4;
const FLAGS_EXT: u16 = 15;
const MANAGED: u32 = 1 << 0;
/// `struct ndmsg`.
const NEIGHBOUR_HEADER_LEN: usize = 12;

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbour {
    pub state: NeighbourState,
    /// Its Ethernet address, which may be all zeros; none while the kernel does not know it, and
    /// none where addresses are not six bytes long.
    pub mac: Option<[u8; 6]>,
}

/// How far the kernel is with a neighbour (`NUD_*`, RFC 4861 section 7.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NeighbourState {
    /// Nothing was asked yet; or a state that only a newer kernel knows.
    Unknown,
    /// It was asked for and has not answered yet.
    Incomplete,
    /// It answered a short while ago.
    Reachable,
    /// It answered once; the kernel asks again when it next has something to send.
    Stale,
    /// The kernel has sent something to it, and waits for a sign that it arrived.
    Delay,
    /// It is being asked again.
    Probe,
    /// It did not answer.
    Failed,
    /// The link needs no resolution.
    NoArp,
    /// It was set by hand.
    Permanent,
}

impl NeighbourState {
    fn from_bits(bits: u16) -> Self {
        match bits {
            libc::NUD_INCOMPLETE => Self::Incomplete,
            libc::NUD_REACHABLE => Self::Reachable,
            libc::NUD_STALE => Self::Stale,
            libc::NUD_DELAY => Self::Delay,
            libc::NUD_PROBE => Self::Probe,
            libc::NUD_FAILED => Self::Failed,
            libc::NUD_NOARP => Self::NoArp,
            libc::NUD_PERMANENT => Self::Permanent,
            _ => Self::Unknown,
        }
    }
}

impl Neighbour {
    /// Whether frames can be sent to its Ethernet address. Neither all zeros nor the broadcast
    /// address is one.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        use NeighbourState::{Delay, NoArp, Permanent, Probe, Reachable, Stale};
        matches!(self.state, Reachable | Stale | Delay | Probe | NoArp | Permanent)
            && self.mac.is_some_and(|mac| mac != [0; 6] && mac != [0xff; 6])
    }

    /// Whether nobody is finding out if it is still there. The kernel starts to when it sends
    /// something itself; who sends past the kernel asks it to with [`resolve_neighbour`].
    #[must_use]
    pub fn wants_confirmation(&self) -> bool {
        self.state == NeighbourState::Stale
    }
}

/// What the kernel knows of an address on the link of the interface with this index in the calling
/// thread's network namespace; `None` if nothing. Does not make it find out: see
/// [`resolve_neighbour`]. It forgets neighbours that failed or were not used for a while.
///
/// # Errors
///
/// `NotFound` if there is no such interface; others if the kernel refuses the request, which it
/// does before 5.0, or its answer cannot be read.
pub fn neighbour(ifindex: u32, address: IpAddr) -> io::Result<Option<Neighbour>> {
    Ok(lookup(ifindex, address)?.map(|entry| entry.neighbour))
}

/// Asks the kernel to find out, or to confirm, the Ethernet address of a neighbour, as it would if
/// it had something to send to it (`ip neigh replace ADDRESS dev INTERFACE use`). Does not wait:
/// [`neighbour`] tells what came of it and [`Events`](super::Events) when.
///
/// A neighbour that is not known, or that failed, is asked for at once; without an answer it fails
/// after three tries a second apart (`mcast_solicit`, `retrans_time_ms`). One that is stale is
/// given five seconds to show by itself that it is there, then asked (`delay_first_probe_time`).
/// One that is reachable or set by hand is left alone.
///
/// # Errors
///
/// `NotFound` if there is no such interface; others if the kernel refuses, for example without
/// the privilege (`CAP_NET_ADMIN`).
pub fn resolve_neighbour(ifindex: u32, address: IpAddr) -> io::Result<()> {
    let known = lookup(ifindex, address)?;
    // This request would take away the permanence of a permanent neighbour (Linux since 5.16),
    // and the management of one that the kernel keeps resolved without being asked.
    if known.is_some_and(|entry| {
        entry.managed || matches!(entry.neighbour.state, NeighbourState::Permanent)
    }) {
        return Ok(());
    }
    // As well as the mark of whoever learned it elsewhere, unless it is repeated.
    let mark = known.map_or(0, |entry| entry.flags & EXTERNALLY_LEARNED);
    let (family, bytes) = family_and_bytes(address);
    Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
        .header(&neighbour_header(family, ifindex, libc::NUD_NONE, libc::NTF_USE | mark))
        .bytes(libc::NDA_DST, &bytes)
        .done()
        .map_err(|error| {
            let what = format!("cannot ask for {address} on interface {ifindex}");
            explain_interface(&error, &what)
        })
}

/// `struct ndmsg` for an entry of a neighbour table.
pub(crate) fn neighbour_header(
    family: u8,
    ifindex: u32,
    state: u16,
    flags: u8,
) -> [u8; NEIGHBOUR_HEADER_LEN] {
    // Family, padding, index, state, flags, type.
    let mut header = [0; NEIGHBOUR_HEADER_LEN];
    header[0] = family;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// An entry of a neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    neighbour: Neighbour,
    /// `NTF_*`.
    flags: u8,
    /// Whether the kernel keeps it resolved without being asked.
    managed: bool,
}

fn lookup(ifindex: u32, address: IpAddr) -> io::Result<Option<Entry>> {
    let (family, bytes) = family_and_bytes(address);
    let mut entry = None;
    let answer = Request::new(libc::RTM_GETNEIGH, 0)
        .header(&neighbour_header(family, ifindex, libc::NUD_NONE, 0))
        .bytes(libc::NDA_DST, &bytes)
        .send(|kind, payload| {
            if kind == libc::RTM_NEWNEIGH {
                entry = parse_neighbour(payload);
            }
        });
    match answer {
        Ok(_) => Ok(entry),
        // ENOENT. An interface that is not there is ENODEV, which is of another kind.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let what = format!("cannot look up the neighbour {address} of interface {ifindex}");
            Err(explain_interface(&error, &what))
        }
    }
}

fn parse_neighbour(message: &[u8]) -> Option<Entry> {
    let state = NeighbourState::from_bits(u16::from_ne_bytes(field(message, 8)?));
    let [flags] = field(message, 10)?;
    let mut entry = Entry { neighbour: Neighbour { state, mac: None }, flags, managed: false };
    for (kind, value) in attributes(message.get(NEIGHBOUR_HEADER_LEN..)?) {
        match kind {
            libc::NDA_LLADDR => entry.neighbour.mac = value.try_into().ok(),
            FLAGS_EXT => {
                entry.managed =
                    field(value, 0).is_some_and(|bits| u32::from_ne_bytes(bits) & MANAGED != 0);
            }
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn message(state: u16, flags: u8, mac: &[u8]) -> Vec<u8> {
        Request::new(libc::RTM_NEWNEIGH, 0)
            .header(&neighbour_header(libc::AF_INET as u8, 7, state, flags))
            .bytes(libc::NDA_DST, &[192, 0, 2, 1])
            .bytes(libc::NDA_LLADDR, mac)
            .into_payload()
    }

    fn parsed(state: u16, mac: &[u8]) -> Neighbour {
        parse_neighbour(&message(state, 0, mac)).expect("a neighbour").neighbour
    }

    #[test]
    fn the_states_say_what_can_be_used() {
        use NeighbourState::*;
        for (bits, state, usable) in [
            (libc::NUD_NONE, Unknown, false),
            (libc::NUD_INCOMPLETE, Incomplete, false),
            (libc::NUD_REACHABLE, Reachable, true),
            (libc::NUD_STALE, Stale, true),
            (libc::NUD_DELAY, Delay, true),
            (libc::NUD_PROBE, Probe, true),
            (libc::NUD_FAILED, Failed, false),
            (libc::NUD_NOARP, NoArp, true),
            (libc::NUD_PERMANENT, Permanent, true),
            (0x100, Unknown, false),
        ] {
            let neighbour = parsed(bits, &MAC);
            assert_eq!((neighbour.state, neighbour.mac), (state, Some(MAC)));
            assert_eq!(neighbour.is_usable(), usable, "{state:?}");
            assert_eq!(neighbour.wants_confirmation(), state == Stale, "{state:?}");
        }
    }

    #[test]
    fn an_address_that_no_host_has_cannot_be_used() {
        for mac in [&[0; 6][..], &[0xff; 6], &[], &[2, 0, 0, 0]] {
            assert!(!parsed(libc::NUD_REACHABLE, mac).is_usable(), "{mac:?}");
        }
        assert_eq!(parsed(libc::NUD_REACHABLE, &[2, 0, 0, 0]).mac, None);
    }

    #[test]
    fn flags_tell_who_keeps_an_entry() {
        let learned = parse_neighbour(&message(libc::NUD_STALE, EXTERNALLY_LEARNED, &MAC));
        let learned = learned.expect("a neighbour");
        assert_eq!((learned.flags, learned.managed), (EXTERNALLY_LEARNED, false));
        let managed = Request::new(libc::RTM_NEWNEIGH, 0)
            .header(&neighbour_header(libc::AF_INET as u8, 7, libc::NUD_STALE, 0))
            .number(FLAGS_EXT, MANAGED);
        assert!(parse_neighbour(&managed.into_payload()).expect("a neighbour").managed);
    }

    #[test]
    fn a_message_that_is_cut_off_is_none() {
        let whole = message(libc::NUD_REACHABLE, 0, &MAC);
        for len in 0..NEIGHBOUR_HEADER_LEN {
            assert_eq!(parse_neighbour(&whole[..len]), None, "{len}");
        }
        let cut = parse_neighbour(&whole[..whole.len() - 4]).expect("a neighbour");
        assert_eq!(cut.neighbour.mac, None);
    }
}
