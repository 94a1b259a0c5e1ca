//! Waking up when something changes.

use std::{os::fd::AsFd as _, time::Duration};

use portsteer::{
    lab::{End, Namespace, Veth, poll_readable},
    netlink::{Events, News},
};

use super::{V4, pair};

fn is_readable(events: &Events, within: Duration) -> bool {
    !poll_readable(&[events.as_fd()], within).unwrap().is_empty()
}

/// Whether there is news within a second; takes it all.
fn woke_up(events: &Events) -> bool {
    let readable = is_readable(events, Duration::from_secs(1));
    assert_eq!(events.drain().unwrap(), readable);
    readable
}

/// Until nothing has come for a while: a new device has things to say of its own accord.
fn settle(events: &Events) {
    while is_readable(events, Duration::from_millis(100)) {
        events.drain().unwrap();
    }
}

#[test]
fn changes_of_links_and_neighbours_wake_up() {
    let (left, _right, veth) = pair();
    let events = left.run(|| Events::subscribe(News::Interfaces)).unwrap();
    settle(&events);
    assert!(!events.drain().unwrap(), "it does not block");

    veth.left.set_mtu(1400).unwrap();
    assert!(woke_up(&events), "a link changed");
    settle(&events);
    let neighbours = left.run(|| Events::subscribe(News::Neighbours)).unwrap();
    settle(&neighbours);
    veth.left.add_neighbor(V4[1], [2, 0, 0, 0, 0, 9]).unwrap();
    assert!(woke_up(&neighbours), "a neighbour changed");
    assert!(!events.drain().unwrap(), "which is told to those alone who want to know");
    veth.right.set_down().unwrap();
    assert!(woke_up(&events), "the carrier is gone");
}

#[test]
fn other_namespaces_do_not_wake_up() {
    let (left, other) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let events = left.run(|| Events::subscribe(News::Interfaces)).unwrap();
    settle(&events);
    Veth::between(End::new(&other, "a"), End::new(&other, "b")).create().unwrap();
    assert!(!is_readable(&events, Duration::from_millis(50)));
    assert!(!events.drain().unwrap());
}

#[test]
fn more_news_than_the_kernel_keeps_is_news() {
    let (left, _right, veth) = pair();
    let events = left.run(|| Events::subscribe(News::Interfaces)).unwrap();
    let set_mtu = |mtu| veth.left.set_mtu(mtu).unwrap();
    // Each is a message of more than a kilobyte, and the socket's buffer is some 200 KiB.
    for step in 0..400 {
        set_mtu(1400 + step % 2);
    }
    assert!(events.drain().unwrap());
    settle(&events);
    set_mtu(1300);
    assert!(woke_up(&events), "it goes on afterwards");
}
