//! The policy's default and options, each of them either way.

use portsteer::policy::Action;
use portsteer_common::Reason;
use portsteer_testkit::packet::*;

use crate::bench::{Cause, on_bench};

fn policy(default: &str, fragments: &str, malformed: &str, unsupported: &str) -> String {
    format!(
        "version = 1\ninterfaces = [\"dut\"]\ndefault = \"{default}\"\n\
         [options]\nfragments = \"{fragments}\"\nmalformed = \"{malformed}\"\n\
         unsupported = \"{unsupported}\"\n\
         [[rules]]\nname = \"udp-nine\"\nprotocol = \"udp\"\ndst_port = 9\naction = \"pass\"\n"
    )
}

#[test]
fn each_option_decides_about_its_packets_alone() {
    let later = Ipv4 { fragment_offset: 64, ..Ipv4::default() };
    let frames = [
        ("unmatched", ethernet(IPV4, ipv4(UDP, udp(7, 8, []))), Reason::NoRule),
        ("fragment", ethernet(IPV4, later.packet(UDP, [0; 8])), Reason::FragmentWithoutPorts),
        ("malformed", ethernet(IPV4, [0x45; 12]), Reason::Truncated),
        ("unsupported", ethernet(VLAN, vlan(1, VLAN, vlan(1, VLAN, [0; 40]))), Reason::VlanDepth),
    ];
    on_bench(&policy("pass", "pass", "drop", "drop"), |bench| {
        for choice in 0..16u8 {
            let actions = [0, 1, 2, 3]
                .map(|bit| if choice >> bit & 1 == 1 { Action::Pass } else { Action::Drop });
            let [default, fragments, malformed, unsupported] = actions.map(Action::name);
            bench.swap(&policy(default, fragments, malformed, unsupported));
            for ((what, frame, reason), action) in frames.iter().zip(actions) {
                let outcome = bench.agree(frame);
                assert_eq!(outcome.cause, Cause::Reason(*reason), "{what}");
                assert_eq!(outcome.action, action, "{what} with choice {choice:04b}");
            }
            // Neither the default nor an option touches what a rule decides or what is not IP.
            let nine = bench.agree(&ethernet(IPV4, ipv4(UDP, udp(7, 9, []))));
            assert_eq!(nine.cause, Cause::Rule("udp-nine".to_owned()));
            let arp = bench.agree(&ethernet(ARP, [0; 28]));
            assert_eq!((arp.action, arp.cause), (Action::Pass, Cause::Reason(Reason::NotIp)));
        }
    });
}

#[test]
fn default_drop_spares_discovery_and_packet_too_big() {
    on_bench(&policy("drop", "pass", "drop", "drop"), |bench| {
        for kind in 0..=255 {
            let reason = match kind {
                2 => Reason::PathMtu,
                133..=136 => Reason::NeighborDiscovery,
                _ => Reason::NoRule,
            };
            let outcome = bench.agree(&ethernet(IPV6, ipv6(ICMPV6, icmp(kind, 0, [0; 16]))));
            assert_eq!(outcome.cause, Cause::Reason(reason), "ICMPv6 type {kind}");
            let spared = reason != Reason::NoRule;
            assert_eq!(outcome.action == Action::Pass, spared, "ICMPv6 type {kind}");
        }
        for (kind, code) in [(3, 4), (3, 3), (4, 4), (8, 0)] {
            let outcome = bench.agree(&ethernet(IPV4, ipv4(ICMP, icmp(kind, code, [0; 28]))));
            assert_eq!(
                outcome.action == Action::Pass,
                (kind, code) == (3, 4),
                "ICMP {kind}/{code}"
            );
        }
        // What only looks like it is not spared.
        let as_v4 = bench.agree(&ethernet(IPV4, ipv4(ICMPV6, icmp(135, 0, [0; 16]))));
        assert_eq!(as_v4.cause, Cause::Reason(Reason::NoRule));
        let later = ethernet(IPV6, ipv6(FRAGMENT, fragment(ICMPV6, 64, false, [135; 16])));
        assert_eq!(bench.agree(&later).cause, Cause::Reason(Reason::NoRule));
    });
}

#[test]
fn a_rule_that_drops_icmpv6_spares_nothing() {
    let text = "version = 1\ninterfaces = [\"dut\"]\ndefault = \"drop\"\n\
                [[rules]]\nname = \"six\"\nprotocol = \"icmpv6\"\naction = \"drop\"\n";
    on_bench(text, |bench| {
        let outcome = bench.agree(&ethernet(IPV6, ipv6(ICMPV6, icmp(135, 0, [0; 16]))));
        assert_eq!(outcome.cause, Cause::Rule("six".to_owned()));
        assert_eq!(outcome.action, Action::Drop);
    });
}
