//! Why a packet got its verdict. A reason is a counter's index in the kernel and a label in
//! listings and metrics; this table is the only place where reasons are defined.

/// The number of reasons that the counters have room for. A power of two.
pub const REASON_SLOTS: usize = 64;

/// Which of the policy's options decides about packets with a reason, if one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The packet violates the standard, truncated headers included: `options.malformed`.
    Malformed,
    /// The packet is legal, but beyond what the program parses: `options.unsupported`.
    Unsupported,
}

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $index:literal, $name:literal, $fault:expr, $help:literal;)+) => {
        /// Why a packet got its verdict.
        #[repr(u8)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $variant = $index,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers, which have no gaps.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The label in listings and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line for people.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }

            /// The option that decides about such a packet; `None` where the rules do, or where
            /// the outcome is fixed.
            #[must_use]
            pub const fn fault(self) -> Option<Fault> {
                match self { $(Self::$variant => $fault,)+ }
            }
        }
    };
}

reasons! {
    /// A rule matched.
    Rule = 0, "rule", None, "a rule matched";
    /// No rule matched an IP packet: the policy's `default`.
    NoRule = 1, "no-rule", None, "no rule matched, the policy's default decided";
    /// The frame carries neither IPv4 nor IPv6 (ARP, LLDP, 802.3 length fields, unknown
    /// EtherTypes): passed, it is not ours.
    NotIp = 2, "not-ip", None, "neither IPv4 nor IPv6, not judged";
    /// A non-first fragment carries no ports, and a rule with ports would have to decide:
    /// `options.fragments`.
    FragmentWithoutPorts = 3, "fragment-without-ports", None,
        "a later fragment has no ports, options.fragments decided";
    /// Under `default = "drop"`: IPv6 neighbour and router discovery (RFC 4861, ICMPv6 types 133
    /// to 136), without which the host loses its neighbours. Passed.
    NeighborDiscovery = 4, "neighbor-discovery", None,
        "IPv6 neighbour discovery, which default = \"drop\" spares";
    /// Under `default = "drop"`: ICMP fragmentation needed (RFC 1191) and ICMPv6 packet too big
    /// (RFC 8201), without which connections stall. Passed.
    PathMtu = 5, "path-mtu", None,
        "ICMP packet too big, which default = \"drop\" spares";

    /// The frame ends before a header does, or before the length its IP header claims.
    Truncated = 6, "truncated", Some(Fault::Malformed),
        "the frame ends before its headers or its IP length do";
    /// The IP version field contradicts the EtherType.
    IpVersion = 7, "ip-version", Some(Fault::Malformed),
        "the IP version contradicts the EtherType";
    /// IPv4 header length below 20 bytes, or beyond the packet's total length (RFC 791).
    IpHeaderLength = 8, "ip-header-length", Some(Fault::Malformed),
        "the IPv4 header length is below 20 or beyond the total length";
    /// An IPv6 extension header reaches beyond the packet's payload, or is shorter than its kind
    /// must be (RFC 8200, RFC 4302).
    ExtensionLength = 9, "extension-length", Some(Fault::Malformed),
        "an IPv6 extension header reaches beyond the packet";
    /// An IPv6 extension header where none of its kind may stand: hop-by-hop options that are not
    /// first, a second fragment header (RFC 8200 section 4.1).
    ExtensionOrder = 10, "extension-order", Some(Fault::Malformed),
        "an IPv6 extension header stands where it may not";
    /// A first fragment too short for the headers that it must hold (RFC 1858, RFC 7112).
    FragmentTiny = 11, "fragment-tiny", Some(Fault::Malformed),
        "a first fragment too short for its headers";
    /// A later fragment that starts inside the transport header (RFC 1858, RFC 3128).
    FragmentOverlap = 12, "fragment-overlap", Some(Fault::Malformed),
        "a later fragment that starts inside the transport header";
    /// A fragment that is empty, ends beyond byte 65,535, or is not the last and has a length
    /// that is no multiple of 8 (RFC 791, RFC 8200 section 4.5).
    FragmentLength = 13, "fragment-length", Some(Fault::Malformed),
        "a fragment with an impossible length";
    /// The IP payload is too short for its transport header.
    TransportTruncated = 14, "transport-truncated", Some(Fault::Malformed),
        "the IP payload is too short for the transport header";
    /// A length field of the transport header contradicts the standard or the IP payload: TCP and
    /// DCCP data offset, UDP length, UDP-Lite checksum coverage.
    TransportLength = 15, "transport-length", Some(Fault::Malformed),
        "a transport header's length field is impossible";

    /// A third VLAN tag.
    VlanDepth = 16, "vlan-depth", Some(Fault::Unsupported),
        "more than two VLAN tags";
    /// A seventh IPv6 extension header.
    ExtensionDepth = 17, "extension-depth", Some(Fault::Unsupported),
        "more than six IPv6 extension headers";
    /// A non-first IPv6 fragment whose fragmentable part starts with an extension header: its
    /// transport protocol is not in the packet.
    FragmentChain = 18, "fragment-chain", Some(Fault::Unsupported),
        "a later IPv6 fragment that does not name its transport protocol";
    /// An IPv6 jumbogram (RFC 2675).
    Jumbogram = 19, "jumbogram", Some(Fault::Unsupported),
        "an IPv6 jumbogram";
    /// A header lies beyond the first buffer of a multi-buffer frame.
    BeyondFirstBuffer = 20, "beyond-first-buffer", Some(Fault::Unsupported),
        "a header lies beyond the frame's first buffer";

    /// A map lookup failed that cannot fail: a defect in portsteer. Aborted.
    Internal = 21, "internal", None, "a defect in portsteer";

    /// A rule steers, but the target's interface does not exist, or none of its CPUs is online.
    /// Dropped.
    TargetGone = 22, "target-gone", None, "the target's interface or CPUs do not exist";
    /// A rule steers, but the target's interface is down. Dropped.
    TargetDown = 23, "target-down", None, "the target's interface is down";
    /// A rule steers, but the frame is too long for the target's interface. Dropped.
    TargetMtu = 24, "target-mtu", None, "the frame is too long for the target's interface";
    /// A rule steers, but nobody has answered yet for the target's next hop. Dropped.
    TargetUnresolved = 25, "target-unresolved", None, "the target's next hop is not resolved";
}

const _: () = assert!(Reason::ALL.len() <= REASON_SLOTS);
const _: () = {
    let mut index = 0;
    while index < Reason::ALL.len() {
        assert!(Reason::ALL[index] as usize == index, "reason numbers have no gaps");
        index += 1;
    }
};
