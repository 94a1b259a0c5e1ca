//! Frames in several buffers.

use portsteer::policy::Action;
use portsteer_common::Reason;
use portsteer_testkit::{packet::*, sandbox::skip};

use crate::{
    bench::{Cause, on_bench},
    table::{CANARY, POLICY},
};

/// The kernel's test run puts what does not fit into a page into further buffers.
#[test]
fn large_frames_are_judged_and_counted_whole() {
    on_bench(POLICY, |bench| {
        for len in [3_000, 4_096, 9_000, 30_000, 60_000] {
            let payload = vec![CANARY; len];
            let nine = ethernet(IPV4, ipv4(UDP, udp(7, 9, &payload)));
            // `agree` checks that all bytes were counted.
            assert_eq!(bench.agree(&nine).cause, Cause::Rule("nine".to_owned()), "{len}");
            let eight = ethernet(IPV6, ipv6(UDP, udp(7, 8, &payload)));
            assert_eq!(bench.agree(&eight).cause, Cause::Reason(Reason::NoRule), "{len}");
            let arp = ethernet(ARP, &payload);
            assert_eq!(bench.agree(&arp).cause, Cause::Reason(Reason::NotIp), "{len}");
            let cut = &nine[..nine.len() - 1];
            assert_eq!(bench.agree(cut).cause, Cause::Reason(Reason::Truncated), "{len}");
        }
    });
}

/// Headers must lie in the first buffer; where they do not, the packet is unsupported, never
/// misread.
#[test]
fn headers_beyond_the_first_buffer_are_unsupported() {
    if !kernel_splits_at_will() {
        return skip("before 6.18 a test run cannot be told where the first buffer ends");
    }
    on_bench(POLICY, |bench| {
        let frames = [
            (ethernet(IPV4, ipv4(UDP, udp(7, 9, [CANARY; 200]))), 14 + 20 + 8),
            (ethernet(IPV4, ipv4(TCP, tcp(7, 9, [CANARY; 200]))), 14 + 20 + 13),
            (ethernet(IPV4, ipv4(SCTP, sctp(7, 9, [CANARY; 200]))), 14 + 20 + 8),
            (ethernet(IPV6, ipv6(UDP, udp(7, 9, [CANARY; 200]))), 14 + 40 + 8),
            (
                ethernet(IPV6, ipv6(HOP_BY_HOP, options(UDP, 2, udp(7, 9, [CANARY; 200])))),
                14 + 40 + 16 + 8,
            ),
            (ethernet(VLAN, vlan(5, IPV4, ipv4(UDP, udp(7, 9, [CANARY; 200])))), 18 + 20 + 8),
        ];
        for (frame, headers_len) in frames {
            for first in 14..frame.len() as u32 {
                let outcome = bench.judge_split(&frame, Some(first)).unwrap();
                let expected = if first < headers_len {
                    Cause::Reason(Reason::BeyondFirstBuffer)
                } else {
                    Cause::Rule("nine".to_owned())
                };
                assert_eq!(outcome.cause, expected, "first buffer {first}, {frame:02x?}");
                assert_eq!(outcome.action, Action::Drop);
            }
        }
    });
}

/// `ctx_in`'s `data_end` came to mean the first buffer's length with Linux 6.18.
fn kernel_splits_at_will() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
    version >= (6, 18)
}
