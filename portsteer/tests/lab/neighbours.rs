//! Which Ethernet address an IP address has, and making the kernel find out.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use portsteer::{
    lab::{Device, Tap, TapKind},
    netlink::{self, Neighbour, NeighbourState},
};

use super::{V4, V6, pair};

const RIGHT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Addresses that nobody has at first.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
];

fn neighbour(device: &Device, address: IpAddr) -> Option<Neighbour> {
    device.namespace().run(|| netlink::neighbour(device.index(), address)).unwrap()
}

fn resolve(device: &Device, address: IpAddr) {
    device.namespace().run(|| netlink::resolve_neighbour(device.index(), address)).unwrap();
}

/// Waits until the neighbour is in this state.
fn wait_for(device: &Device, address: IpAddr, state: NeighbourState) -> Neighbour {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        let now = neighbour(device, address);
        match now {
            Some(neighbour) if neighbour.state == state => return neighbour,
            _ => assert!(Instant::now() < deadline, "{address} is {now:?}, not {state:?}"),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sets one of the kernel's settings for the device's neighbours of both families.
fn tune(device: &Device, setting: &str, value: u32) {
    for version in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{version}/neigh/{}/{setting}", device.name());
        device.namespace().run(|| fs::write(&path, value.to_string())).unwrap();
    }
}

#[test]
fn a_missing_neighbour_is_found_out() {
    let (_left, _right, veth) = pair();
    for address in [IpAddr::from(V4[1]), V6[1].into()] {
        assert_eq!(neighbour(&veth.left, address), None);
        resolve(&veth.left, address);
        let found = wait_for(&veth.left, address, NeighbourState::Reachable);
        assert_eq!(found.mac, Some(RIGHT_MAC));
        assert!(found.is_usable() && !found.wants_confirmation());
    }
}

#[test]
fn nobody_answers_until_somebody_does() {
    let (_left, _right, veth) = pair();
    // Three tries, else a second apart.
    tune(&veth.left, "retrans_time_ms", 100);
    for address in NOBODY {
        resolve(&veth.left, address);
        let asked = neighbour(&veth.left, address).unwrap();
        assert_eq!((asked.state, asked.mac), (NeighbourState::Incomplete, None));
        assert!(!asked.is_usable());
    }
    for address in NOBODY {
        let failed = wait_for(&veth.left, address, NeighbourState::Failed);
        assert!(!failed.is_usable() && !failed.wants_confirmation());
    }
    for (address, prefix_len) in NOBODY.into_iter().zip([32, 128]) {
        veth.right.add_address(address, prefix_len).unwrap();
        resolve(&veth.left, address);
        let found = wait_for(&veth.left, address, NeighbourState::Reachable);
        assert_eq!(found.mac, Some(RIGHT_MAC));
    }
}

#[test]
fn a_stale_neighbour_is_confirmed() {
    let (_left, _right, veth) = pair();
    // Stale after 50 to 150 ms, else 15 to 45 s; and asked again at once, else after 5 s.
    tune(&veth.left, "base_reachable_time_ms", 100);
    tune(&veth.left, "delay_first_probe_time", 0);
    for address in [IpAddr::from(V4[1]), V6[1].into()] {
        resolve(&veth.left, address);
        let stale = wait_for(&veth.left, address, NeighbourState::Stale);
        assert_eq!(stale.mac, Some(RIGHT_MAC));
        assert!(stale.is_usable() && stale.wants_confirmation());
        // Else it would be stale again before it is seen.
        tune(&veth.left, "base_reachable_time_ms", 30_000);
        resolve(&veth.left, address);
        wait_for(&veth.left, address, NeighbourState::Reachable);
        tune(&veth.left, "base_reachable_time_ms", 100);
    }
}

#[test]
fn a_neighbour_that_was_set_by_hand_stays() {
    let (_left, _right, veth) = pair();
    let mac = [2, 0, 0, 0, 0, 0x77];
    for address in NOBODY {
        veth.left.add_neighbor(address, mac).unwrap();
        let set = Neighbour { state: NeighbourState::Permanent, mac: Some(mac) };
        assert_eq!(neighbour(&veth.left, address), Some(set));
        resolve(&veth.left, address);
        assert_eq!(neighbour(&veth.left, address), Some(set));
        assert!(set.is_usable());
    }
    // An address that cannot be anybody's.
    veth.left.add_neighbor(V4[1], [0; 6]).unwrap();
    assert!(!neighbour(&veth.left, V4[1].into()).unwrap().is_usable());
}

#[test]
fn a_link_without_addresses_has_no_neighbour_to_use() {
    let (left, _right, _veth) = pair();
    let tun = Tap::create(&left, "tun0", TapKind::Tun).unwrap();
    tun.device.add_address(V4[0], 24).unwrap();
    for address in NOBODY {
        resolve(&tun.device, address);
        // The kernel has one entry for all IPv4 addresses there, which is none of them.
        let found = neighbour(&tun.device, address);
        assert!(!found.is_some_and(|neighbour| neighbour.is_usable()), "{found:?}");
    }
}

#[test]
fn an_interface_that_is_not_there_has_no_neighbours() {
    let (left, _right, _veth) = pair();
    let address = V4[1].into();
    for error in [
        left.run(|| netlink::neighbour(77, address)).unwrap_err(),
        left.run(|| netlink::resolve_neighbour(77, address)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("interface 77"), "{error}");
    }
}
