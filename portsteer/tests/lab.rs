//! The lab: namespaces, devices and mounts that leave nothing behind; and in it, what the kernel
//! tells over netlink. Needs root.

#[path = "lab/events.rs"]
mod events;
#[path = "lab/interfaces.rs"]
mod interfaces;
#[path = "lab/neighbours.rs"]
mod neighbours;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use portsteer::{
    lab::{
        self, Device, End, Namespace, Tap, TapKind, Veth, VirtualKind, ethtool, ethtool::Offload,
    },
    netlink,
};

const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
];

fn pair() -> (Namespace, Namespace, Veth) {
    let (left, right) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let veth = Veth::between(
        End::new(&left, "left").address(V4[0], 24).address(V6[0], 64).mac([2, 0, 0, 0, 0, 1]),
        End::new(&right, "right").address(V4[1], 24).address(V6[1], 64).mac([2, 0, 0, 0, 0, 2]),
    )
    .create()
    .unwrap();
    (left, right, veth)
}

/// Sends a datagram from the first to the second namespace and back.
fn ping(left: &Namespace, right: &Namespace, from: IpAddr, to: IpAddr) {
    let there = right.run(|| UdpSocket::bind((to, 0)).unwrap());
    let here = left.run(|| UdpSocket::bind((from, 0)).unwrap());
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    let mut buffer = [0; 16];
    here.send_to(b"ping", there.local_addr().unwrap()).unwrap();
    let (len, sender) = there.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], sender.ip()), (&b"ping"[..], from));
    there.send_to(b"pong", sender).unwrap();
    let (len, sender) = here.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], sender.ip()), (&b"pong"[..], to));
}

#[test]
fn a_veth_pair_carries_both_families_at_once() {
    let (left, right, veth) = pair();
    // Address, index, prefix length, scope, flags, name. 0x40 is tentative: duplicate address
    // detection would still be going on.
    let addresses = left.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
    let ours = addresses.lines().find(|line| line.starts_with("20010db8")).unwrap();
    let flags = u8::from_str_radix(ours.split_whitespace().nth(4).unwrap(), 16).unwrap();
    assert_eq!(flags & 0x40, 0, "{addresses}");
    ping(&left, &right, V4[0].into(), V4[1].into());
    ping(&left, &right, V6[0].into(), V6[1].into());

    let link = veth.left.link().unwrap();
    assert_eq!((link.name.as_str(), link.kind.as_deref()), ("left", Some("veth")));
    assert_eq!((link.mac, link.hardware_type), (Some([2, 0, 0, 0, 0, 1]), libc::ARPHRD_ETHER));
    assert_eq!((link.mtu, link.up, link.carrier, link.xdp), (1500, true, true, None));
    assert!(link.counters.rx_packets >= 2 && link.counters.tx_packets >= 2, "{link:?}");
}

#[test]
fn a_veth_pair_has_the_queues_mtu_and_neighbors_it_was_given() {
    let (left, right) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let veth = Veth::between(
        End::new(&left, "left").address(V4[0], 24).address(V6[0], 64),
        End::new(&right, "right").address(V4[1], 24).address(V6[1], 64),
    )
    .mtu(9000)
    .queues(3)
    .static_neighbors()
    .create()
    .unwrap();
    for device in [&veth.left, &veth.right] {
        let link = device.link().unwrap();
        assert_eq!((link.mtu, link.rx_queues, link.tx_queues), (9000, 3, 3));
    }
    let neighbors = left.run(|| fs::read_to_string("/proc/thread-self/net/arp").unwrap());
    assert!(neighbors.contains("192.0.2.2 ") && neighbors.contains("0x6"), "{neighbors}");
    ping(&left, &right, V6[0].into(), V6[1].into());
}

#[test]
fn sockets_tell_on_which_cpu_a_datagram_came_in() {
    Namespace::new().unwrap().run(|| {
        lab::stay_on_this_cpu().unwrap();
        // The 39th field; the second is a name in parentheses (proc_pid_stat(5)). What is sent over
        // lo comes in on the sender's CPU.
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let here: u32 = fields.split_whitespace().nth(39 - 3).unwrap().parse().unwrap();
        let elsewhere = here + 1;
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in loopback {
            for (cpus, number) in
                [(vec![here], 0), (vec![elsewhere, here], 1), (vec![elsewhere], 1)]
            {
                let sockets = lab::udp_sockets_by_cpu((address, 4000).into(), &cpus).unwrap();
                assert_eq!(sockets.len(), cpus.len() + 1);
                let client = UdpSocket::bind((address, 0)).unwrap();
                client.send_to(b"where am I?", (address, 4000)).unwrap();
                sockets[number].set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let received = sockets[number].recv(&mut [0; 16]);
                assert!(received.is_ok(), "{address}, CPU {here} of {cpus:?}: {received:?}");
            }
        }
    });
}

#[test]
fn a_device_can_be_changed_and_deleted() {
    let (left, right, veth) = pair();
    veth.right.set_mtu(1280).unwrap();
    assert_eq!(veth.right.link().unwrap().mtu, 1280);
    veth.right.set_down().unwrap();
    assert!(!veth.right.link().unwrap().up);
    assert!(!veth.left.link().unwrap().carrier);
    veth.right.set_up().unwrap();
    ping(&left, &right, V4[0].into(), V4[1].into());

    veth.right.add_address(Ipv4Addr::new(198, 51, 100, 7), 32).unwrap();
    veth.left.add_route(Ipv4Addr::UNSPECIFIED, 0, V4[1]).unwrap();
    ping(&left, &right, V4[0].into(), Ipv4Addr::new(198, 51, 100, 7).into());
    let twice = veth.right.add_address(V4[1], 24).unwrap_err();
    assert!(twice.to_string().contains("192.0.2.2/24"), "{twice}");
    assert_eq!(twice.kind(), ErrorKind::AlreadyExists);

    veth.right.delete().unwrap();
    assert!(veth.left.link().is_err(), "the other end goes as well");
    assert_eq!(left.run(netlink::links).unwrap().len(), 1, "only lo is left");
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    let (_left, _right, veth) = pair();
    let error = veth.left.set_mtu(10).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot set the MTU of left to 10: mtu less than device minimum: Invalid argument (os error 22)"
    );
    let error = lab::End::new(veth.left.namespace(), "left");
    let error = Veth::between(error, End::new(veth.left.namespace(), "other")).create();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn offloads_can_be_switched() {
    let (left, right, veth) = pair();
    for offload in [
        Offload::Tso,
        Offload::Gso,
        Offload::Gro,
        Offload::TxVlan,
        Offload::RxVlan,
        // Last, because without it there is no TSO either.
        Offload::TxChecksum,
    ] {
        for on in [false, true, false] {
            veth.left.set_offload(offload, on).unwrap();
            assert_eq!(left.run(|| ethtool::get("left", offload)).unwrap(), on, "{offload:?}");
        }
    }
    ping(&left, &right, V4[0].into(), V4[1].into());
    let error = left.run(|| ethtool::set("nowhere", Offload::Gro, true)).unwrap_err();
    assert!(error.to_string().contains("gro of nowhere"), "{error}");
}

#[test]
fn sockets_of_a_namespace_work_from_any_thread() {
    let (left, right, _veth) = pair();
    let listener = right.run(|| TcpListener::bind((V6[1], 80)).unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
    });
    let mut text = String::new();
    left.run(|| TcpStream::connect((V6[1], 80)).unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    server.join().unwrap();
}

#[test]
fn a_panic_inside_a_namespace_comes_out() {
    let namespace = Namespace::new().unwrap();
    let panic = std::panic::catch_unwind(|| namespace.run(|| panic!("from inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"from inside"));
    assert_eq!(namespace.run(|| 7), 7, "the namespace is still good");
}

#[test]
fn twenty_namespaces_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let (left, right, _veth) = pair();
                ping(&left, &right, V4[0].into(), V4[1].into());
                ping(&left, &right, V6[0].into(), V6[1].into());
            });
        }
    });
}

#[test]
fn five_hundred_links_are_listed() {
    let (left, right) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    for index in 0..250 {
        let name = |side| format!("{side}{index}");
        Veth::between(End::new(&left, &name("a")), End::new(&left, &name("b"))).create().unwrap();
    }
    let links = left.run(netlink::links).unwrap();
    assert_eq!(links.len(), 501);
    let mut names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 501);
    assert_eq!(right.run(netlink::links).unwrap().len(), 1, "another namespace sees none of them");
}

#[test]
fn taps_carry_frames_and_tuns_packets() {
    let namespace = Namespace::new().unwrap();
    for (kind, header_len) in [(TapKind::Tap, 14), (TapKind::Tun, 0)] {
        let mut tap = Tap::create(&namespace, "tap0", kind).unwrap();
        let link = tap.device.link().unwrap();
        assert_eq!(link.mac.is_some(), kind == TapKind::Tap, "{link:?}");
        tap.device.add_address(V4[0], 24).unwrap();
        if kind == TapKind::Tap {
            tap.device.add_neighbor(V4[1], [2, 0, 0, 0, 0, 2]).unwrap();
        }
        let socket = namespace.run(|| UdpSocket::bind((V4[0], 0)).unwrap());
        socket.send_to(b"hello", (V4[1], 9)).unwrap();
        // IPv6 has things of its own to say on a new device.
        let mut frame = [0; 2048];
        let frame = loop {
            let len = tap.file.read(&mut frame).unwrap();
            if frame[header_len] == 0x45 {
                break &frame[..len];
            }
        };
        assert_eq!(frame.len(), header_len + 20 + 8 + 5);
        assert_eq!(frame[header_len + 16..][..4], V4[1].octets());
        drop(tap);
        let gone = || namespace.run(|| netlink::link_by_name("tap0")).unwrap().is_none();
        assert!(gone(), "the device goes with its file");
    }
}

#[test]
fn a_tap_can_stay_without_its_file() {
    let namespace = Namespace::new().unwrap();
    let device =
        Tap::create(&namespace, "tap0", TapKind::Tap).and_then(Tap::abandon).expect("a tap");
    let link = device.link().unwrap();
    assert!(link.up && !link.carrier, "{link:?}");
    device.delete().unwrap();
}

#[test]
fn a_bridge_joins_its_ports_and_a_macvlan_shares_its_device() {
    let (left, right, switch) =
        (Namespace::new().unwrap(), Namespace::new().unwrap(), Namespace::new().unwrap());
    let bridge = Device::create(&switch, "br0", VirtualKind::Bridge).unwrap();
    let cables = [(&left, "port0"), (&right, "port1")].map(|(namespace, port)| {
        Veth::between(End::new(namespace, "eth0"), End::new(&switch, port)).create().unwrap()
    });
    for cable in &cables {
        cable.right.join(&bridge).unwrap();
        assert_eq!(cable.right.link().unwrap().master, Some(bridge.index()));
    }
    bridge.wait_until_ready().unwrap();
    let lower = &cables[0].left;
    let twin = Device::create(&left, "twin", VirtualKind::Macvlan { lower }).unwrap();
    twin.wait_until_ready().unwrap();
    assert_ne!(twin.mac(), lower.mac());
    twin.add_address(V4[0], 24).unwrap();
    cables[1].left.add_address(V4[1], 24).unwrap();
    ping(&left, &right, V4[0].into(), V4[1].into());
    for (device, kind) in [(&bridge, "bridge"), (&twin, "macvlan")] {
        assert_eq!(device.link().unwrap().kind.as_deref(), Some(kind));
    }
}

#[test]
fn a_child_runs_in_the_namespace() {
    let (left, _right, _veth) = pair();
    let output = left.command("cat").arg("/proc/self/net/dev").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("left:") && !text.contains("eth0:"), "{text}");
}

#[test]
fn a_child_dies_with_the_thread_that_spawned_it() {
    let namespace = Namespace::new().unwrap();
    let mut child = std::thread::scope(|scope| {
        scope.spawn(|| namespace.command("sleep").arg("60").spawn().unwrap()).join().unwrap()
    });
    let started = Instant::now();
    child.wait().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn pins_and_files_in_private_mounts_stay_there() {
    let inside = || {
        lab::private_mounts().unwrap();
        lab::private_tmpfs(Path::new("/run")).unwrap();
        fs::create_dir("/sys/fs/bpf/lab-test").unwrap();
        fs::write("/run/lab-test", "").unwrap();
        // Threads and children see what this thread sees.
        let namespace = Namespace::new().unwrap();
        assert!(namespace.run(|| Path::new("/run/lab-test").exists()));
        let ls = namespace.command("ls").arg("/sys/fs/bpf").output().unwrap();
        // The kernel has two entries of its own in every bpffs.
        assert!(String::from_utf8(ls.stdout).unwrap().lines().any(|name| name == "lab-test"));
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    assert!(!Path::new("/sys/fs/bpf/lab-test").exists());
    assert!(!Path::new("/run/lab-test").exists());
}

/// The inode numbers of the network namespaces that any process or thread here is in.
fn namespaces_in_use() -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(threads) = fs::read_dir(process.path().join("task")) else { continue };
        for thread in threads.flatten() {
            if let Ok(link) = fs::read_link(thread.path().join("ns/net")) {
                found.push(link.to_string_lossy().into_owned());
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_after_kill_9() {
    // The victim is this same test in another process.
    if std::env::var_os(VICTIM).is_some() {
        return be_killed();
    }
    let mut victim = Command::new("/proc/self/exe")
        .args(["--exact", "nothing_is_left_after_kill_9", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(victim.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ready ") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut output, &mut line).unwrap(), 0, "no victim");
    }
    let (inode, child) = line.trim().trim_start_matches("ready ").split_once(' ').unwrap();
    assert!(namespaces_in_use().iter().any(|used| used == inode), "{inode}");
    assert!(!Path::new("/sys/fs/bpf/victim").exists());

    victim.kill().unwrap();
    victim.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let alive = || {
        fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
            || namespaces_in_use().iter().any(|used| used == inode)
    };
    while alive() {
        assert!(Instant::now() < deadline, "{inode} or process {child} outlived its maker");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!Path::new("/sys/fs/bpf/victim").exists());
}

/// Set for the process that is to be killed.
const VICTIM: &str = "PORTSTEER_LAB_VICTIM";

fn be_killed() {
    lab::private_mounts().unwrap();
    fs::create_dir("/sys/fs/bpf/victim").unwrap();
    let (left, _right, veth) = pair();
    let inode = left.run(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
    let mut child = left.command("sleep").arg("60").spawn().unwrap();
    assert_eq!(left.as_fd().try_clone_to_owned().is_ok(), Device::link(&veth.left).is_ok());
    println!("ready {} {}", inode.display(), child.id());
    child.wait().unwrap();
}
