//! What `network-types` lacks: numbers and layouts of the headers that portsteer parses.
//!
//! Field offsets are bytes from the header's start; values on the wire are in network order.

/// EtherTypes (IEEE 802 Numbers, IANA).
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A customer VLAN tag, IEEE 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// A service VLAN tag, IEEE 802.1ad (QinQ).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// IP protocol numbers that are no ports' business (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv6 routing header (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options (RFC 8200 section 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// ICMP and ICMPv6 types that `default = "drop"` spares.
pub mod icmp {
    /// ICMP destination unreachable (RFC 792).
    pub const UNREACHABLE: u8 = 3;
    /// Its code "fragmentation needed and DF set" (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// ICMPv6 packet too big (RFC 4443 section 3.2).
    pub const V6_PACKET_TOO_BIG: u8 = 2;
    /// ICMPv6 router solicitation, the first of the four neighbour discovery messages that are
    /// spared (RFC 4861): 133 router solicitation, 134 router advertisement, 135 neighbour
    /// solicitation, 136 neighbour advertisement.
    pub const V6_DISCOVERY_FIRST: u8 = 133;
    /// ICMPv6 neighbour advertisement, the last of them.
    pub const V6_DISCOVERY_LAST: u8 = 136;
}

/// The most VLAN tags that are parsed.
pub const MAX_VLAN_TAGS: usize = 2;

/// The most IPv6 extension headers that are parsed.
pub const MAX_EXTENSIONS: usize = 6;

/// An Ethernet header (IEEE 802.3). That of `network-types` has an alignment of 2, which a frame's
/// bytes need not have.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EthernetHeader {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// What follows; below 0x0600 the length of an 802.3 frame.
    pub ether_type_be: [u8; 2],
}

impl EthernetHeader {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// What follows.
    #[inline(always)]
    #[must_use]
    pub const fn ether_type(&self) -> u16 {
        u16::from_be_bytes(self.ether_type_be)
    }
}

/// A VLAN tag as it follows the MAC addresses' EtherType (IEEE 802.1Q section 9).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct VlanTag {
    /// Priority (3 bits), drop eligible (1), VLAN identifier (12).
    pub tci_be: [u8; 2],
    /// The EtherType of what follows.
    pub ether_type_be: [u8; 2],
}

impl VlanTag {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// The EtherType of what follows.
    #[inline(always)]
    #[must_use]
    pub const fn ether_type(&self) -> u16 {
        u16::from_be_bytes(self.ether_type_be)
    }

    /// The VLAN identifier; 0 in a tag that has a priority alone.
    #[inline(always)]
    #[must_use]
    pub const fn vlan(&self) -> u16 {
        u16::from_be_bytes(self.tci_be) & 0xfff
    }
}

/// The first 8 bytes that every IPv6 extension header has (RFC 8200 section 4). In a fragment
/// header the bytes after the first two mean what [`ExtensionHeader::fragment`] says.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ExtensionHeader {
    /// The kind of the header that follows.
    pub next_header: u8,
    /// Length in units that depend on the kind, see [`ExtensionHeader::len_as`].
    pub length: u8,
    /// For a fragment header: offset in units of 8 bytes (13 bits), reserved (2), more fragments
    /// (1). Else the kind's own.
    pub offset_be: [u8; 2],
    /// For a fragment header the identification. Else the kind's own.
    pub rest: [u8; 4],
}

impl ExtensionHeader {
    /// The least length of an extension header in bytes.
    pub const MIN_LEN: u32 = 8;

    /// Its length in bytes, 8 to 2,048: units of 4 bytes less 2 for the authentication header
    /// (RFC 4302 section 2.2), 8 for a fragment header, else units of 8 bytes less 1.
    #[inline(always)]
    #[must_use]
    pub const fn len_as(&self, kind: u8) -> u32 {
        match kind {
            protocol::AUTHENTICATION => (self.length as u32 + 2) * 4,
            protocol::FRAGMENT => 8,
            _ => (self.length as u32 + 1) * 8,
        }
    }

    /// For a fragment header: where the fragment starts in bytes, and whether more follow.
    #[inline(always)]
    #[must_use]
    pub const fn fragment(&self) -> (u32, bool) {
        let field = u16::from_be_bytes(self.offset_be);
        ((field & 0xfff8) as u32, field & 1 != 0)
    }

    /// Whether this protocol number is one of the extension headers that are walked.
    #[inline(always)]
    #[must_use]
    pub const fn is_extension(kind: u8) -> bool {
        matches!(
            kind,
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::AUTHENTICATION
                | protocol::DESTINATION_OPTIONS
        )
    }
}
