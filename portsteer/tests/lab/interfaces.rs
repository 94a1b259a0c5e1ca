//! What the kernel tells of an interface.

use portsteer::{
    lab::{Device, End, Namespace, Veth, ethtool::Offload},
    netlink::{self, XdpFeatures},
};

use super::pair;

fn features(device: &Device) -> Option<XdpFeatures> {
    let all = device.namespace().run(netlink::xdp_features).unwrap()?;
    Some(all[&device.index()])
}

#[test]
fn a_veth_knows_its_peer_and_whether_that_is_here() {
    let here = Namespace::new().unwrap();
    let veth = Veth::between(End::new(&here, "a"), End::new(&here, "b")).create().unwrap();
    for (device, peer) in [(&veth.left, &veth.right), (&veth.right, &veth.left)] {
        let link = device.link().unwrap();
        assert_eq!((link.peer, link.peer_index), (Some(peer.index()), Some(peer.index())));
        assert_eq!(link.master, None);
    }

    let (left, _right, veth) = pair();
    for (device, peer) in [(&veth.left, &veth.right), (&veth.right, &veth.left)] {
        let link = device.link().unwrap();
        assert_eq!((link.peer, link.peer_index), (Some(peer.index()), None), "{link:?}");
    }
    let lo = left.run(|| netlink::link_by_name("lo")).unwrap().unwrap();
    assert_eq!((lo.peer, lo.peer_index, lo.master), (None, None, None));
}

#[test]
fn a_veth_takes_redirected_frames_once_its_peer_joins_packets() {
    let (left, _right, veth) = pair();
    let Some(before) = features(&veth.left) else {
        // Before Linux 6.3.
        return;
    };
    assert!(!before.redirect_target() && !before.redirect_target_sg());

    veth.right.set_offload(Offload::Gro, true).unwrap();
    let after = features(&veth.left).unwrap();
    assert!(after.redirect_target() && after.redirect_target_sg());
    assert!(!features(&veth.right).unwrap().redirect_target(), "the other way is another matter");

    veth.right.set_offload(Offload::Gro, false).unwrap();
    assert_eq!(features(&veth.left), Some(before));

    assert!(
        !left.run(netlink::xdp_features).unwrap().unwrap()[&1].redirect_target(),
        "lo takes none"
    );
}
