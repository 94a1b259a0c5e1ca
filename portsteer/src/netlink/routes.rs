//! Which way packets to an address leave.

use std::{io, net::IpAddr};

use super::{
    explain, family_and_bytes,
    request::{Request, attributes, field},
};

/// The index of the interface that packets to this address leave by, as the kernel would send them now; `None`
/// if it would not.
///
/// # Errors
///
/// If the kernel refuses the request, or its answer cannot be read.
pub fn route_to(address: IpAddr) -> io::Result<Option<u32>> {
    let (family, bytes) = family_and_bytes(address);
    // `struct rtmsg`: family, length of the destination in bits, and zeroes.
    let mut header = [0; 12];
    (header[0], header[1]) = (family, (8 * bytes.len()) as u8);
    let mut interface = None;
    let answer = Request::new(libc::RTM_GETROUTE, 0)
        .header(&header)
        .bytes(libc::RTA_DST, &bytes)
        .send(|kind, payload| {
            if kind == libc::RTM_NEWROUTE {
                interface = payload
                    .get(header.len()..)
                    .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == libc::RTA_OIF))
                    .and_then(|(_, value)| field(value, 0))
                    .map(u32::from_ne_bytes);
            }
        });
    match answer {
        Ok(_) => Ok(interface),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(explain(&error, &format!("cannot look up the route to {address}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_the_loopback_interface() {
        assert_eq!(route_to([127, 0, 0, 1].into()).expect("an answer"), Some(1));
    }
}
