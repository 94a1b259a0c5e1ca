//! The demo's network: a client, a host, and namespaces behind the host. They own the host's
//! addresses too, since steering leaves the IP packet as it is.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    lab::{Device, End, Namespace, Veth, ethtool::Offload},
    netlink::explain,
};

/// The name of the interface that portsteer is attached to.
pub(super) const UPLINK: &str = "uplink";
/// What the host's servers call themselves.
pub(super) const HOST_NAME: &str = "host";
/// The one address, in each family: the host's and all its neighbours'.
pub(super) const HOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
pub(super) const CLIENT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
];
/// The namespaces behind the host, by the names of the policy's targets.
pub(super) const PLACES: [&str; 3] = ["web", "web2", "mail"];

/// Of the networks between two namespaces.
const PREFIX_LENS: [u8; 2] = [24, 64];
const HOST_PREFIX_LENS: [u8; 2] = [32, 128];
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Namespaces without names, and the cables between them.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) client: Namespace,
    pub(super) host: Namespace,
    /// The host's end of the cable to the client.
    pub(super) uplink: Device,
    /// In the order of [`PLACES`].
    pub(super) places: Vec<Place>,
}

/// A namespace behind the host.
#[derive(Debug)]
pub(super) struct Place {
    /// Also what its servers call themselves.
    pub(super) name: &'static str,
    /// Its end of the cable to the host.
    pub(super) eth0: Device,
}

impl Network {
    /// Makes it, ready for connections.
    pub(super) fn create() -> io::Result<Self> {
        let (client, host) = (Namespace::new()?, Namespace::new()?);
        // Neighbours that know each other leave the counters to the connections.
        let cable = Veth::between(end(&client, "client", CLIENT), end(&host, UPLINK, HOST))
            .static_neighbors()
            .create()?;
        // A veth's sender leaves the checksum to a network card that never comes, and what is
        // redirected is a frame, which has no mark that says so.
        cable.left.set_offload(Offload::TxChecksum, false)?;
        // The answers are forwarded, whatever way the packets took that they answer.
        for (path, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            set(&host, path, value)?;
        }
        let places = PLACES
            .into_iter()
            .zip(1..)
            .map(|(name, number)| Place::create(&host, name, number))
            .collect::<io::Result<Vec<Place>>>()?;
        Ok(Self { client, host, uplink: cable.right, places })
    }
}

impl Place {
    fn create(host: &Namespace, name: &'static str, number: u8) -> io::Result<Self> {
        let namespace = Namespace::new()?;
        let host_end = interface(name);
        let (gateway, own) = (addresses(number, 1), addresses(number, 2));
        let own_end = HOST
            .into_iter()
            .zip(HOST_PREFIX_LENS)
            .fold(end(&namespace, "eth0", own), |end, (address, len)| end.address(address, len));
        let cable = Veth::between(end(host, &host_end, gateway), own_end).create()?;
        // Its answers come from an address that the host owns as well.
        set(host, &format!("ipv4/conf/{host_end}/accept_local"), "1")?;
        let eth0 = cable.right;
        // Without it, and without an XDP program, it takes no redirected frames.
        eth0.set_offload(Offload::Gro, true)?;
        // Whoever answers a search asks back after five seconds, which the counters would show.
        set(&namespace, "ipv6/neigh/eth0/delay_first_probe_time", "60")?;
        for (destination, gateway) in ANYWHERE.into_iter().zip(gateway) {
            eth0.add_neighbor(gateway, cable.left.mac())?;
            eth0.add_route(destination, 0, gateway)?;
        }
        Ok(Self { name, eth0 })
    }
}

/// The host's interface to a place.
pub(super) fn interface(place: &str) -> String {
    format!("to-{place}")
}

/// The addresses in the network between host and place: the host's end is 1, the place's is 2.
pub(super) fn addresses(network: u8, end: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 0, network, end).into(),
        Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, end.into()).into(),
    ]
}

fn end(namespace: &Namespace, name: &str, addresses: [IpAddr; 2]) -> End {
    addresses
        .into_iter()
        .zip(PREFIX_LENS)
        .fold(End::new(namespace, name), |end, (address, prefix_len)| {
            end.address(address, prefix_len)
        })
}

/// Writes one of the namespace's settings under `/proc/sys/net`.
fn set(namespace: &Namespace, path: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{path}");
    namespace
        .run(|| fs::write(&path, value))
        .map_err(|error| explain(&error, &format!("cannot write {value} to {path}")))
}
