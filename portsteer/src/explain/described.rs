//! A packet as people write it: `tcp 203.0.113.9:51000 -> 192.0.2.10:443 vlan 12 on eth0`.

use std::{fmt, net::IpAddr, ops::Range};

use portsteer_common::{PortProtocol, wire::protocol};

use crate::{
    oracle::Packet,
    policy::{
        PROTOCOL_NAMES,
        diagnostic::{Diagnostic, suggest},
        file::{icmp_type_names, icmp_type_of},
        protocol_name,
        services::Services,
    },
};

/// The longest description that is read, in bytes.
const MAX_LEN: usize = 1024;
/// Echo request: what an ICMP packet is whose type nobody says (RFC 792, RFC 4443).
const PING: u8 = 8;
const PING_V6: u8 = 128;

/// A packet with the fields that somebody named, and those that its bytes have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// IP protocol number.
    pub protocol: u8,
    pub src: Option<IpAddr>,
    pub src_port: Option<u16>,
    pub dst: Option<IpAddr>,
    pub dst_port: Option<u16>,
    /// Type and code, of ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// The outermost VLAN tag's id.
    pub vlan: Option<u16>,
    /// The interface that it comes in by.
    pub interface: Option<String>,
    /// Whether it is a non-first fragment, which has no ports.
    pub later_fragment: bool,
}

impl Described {
    /// The packet as the rules see it.
    #[must_use]
    pub fn headers(&self) -> Packet<'_> {
        let is_v6 = self.dst.or(self.src).map(|address| address.is_ipv6());
        let icmp = self.icmp.filter(|_| !self.later_fragment);
        Packet {
            src: self.src,
            dst: self.dst,
            src_port: self.src_port.filter(|_| !self.later_fragment),
            dst_port: self.dst_port.filter(|_| !self.later_fragment),
            icmp: icmp.filter(|_| self.protocol == protocol::ICMP && is_v6 != Some(true)),
            icmpv6: icmp.filter(|_| self.protocol == protocol::ICMPV6 && is_v6 != Some(false)),
            later_fragment: self.later_fragment,
            vlan: self.vlan.unwrap_or(0),
            interface: self.interface.as_deref(),
            ..Packet::new(self.protocol)
        }
    }
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = |address: Option<IpAddr>, port: Option<u16>| match (address, port) {
            (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
            (Some(address), Some(port)) => format!("{address}:{port}"),
            (Some(address), None) => address.to_string(),
            (None, Some(port)) => format!(":{port}"),
            (None, None) => "anywhere".to_owned(),
        };
        let (src, dst) = (endpoint(self.src, self.src_port), endpoint(self.dst, self.dst_port));
        write!(f, "{}", protocol_name(self.protocol))?;
        if self.src.is_some() || self.src_port.is_some() {
            write!(f, " {src}")?;
        }
        write!(f, " -> {dst}")?;
        if let Some((kind, code)) = self.icmp {
            write!(f, " type {kind} code {code}")?;
        }
        if self.later_fragment {
            write!(f, " later-fragment")?;
        }
        if let Some(vlan) = self.vlan {
            write!(f, " vlan {vlan}")?;
        }
        self.interface.as_ref().map_or(Ok(()), |interface| write!(f, " on {interface}"))
    }
}

/// Reads a description: the protocol; where from, if that matters; `->` (or `to`) and where to; then,
/// in any order, `type N` or `type NAME`, `code N`, `vlan ID` or `vlan untagged`, `on INTERFACE` and `later-fragment`. An endpoint is
/// an address, a port after a colon, or both, IPv6 addresses with ports in brackets.
///
/// # Errors
///
/// What is not understood, or missing, and where.
pub fn parse(text: &str, services: &Services) -> Result<Described, Box<Diagnostic>> {
    if text.len() > MAX_LEN {
        return Err(Diagnostic::error(format!("a description has at most {MAX_LEN} bytes")).into());
    }
    let mut reader = Reader { text, words: words(text), next: 0, services };
    let packet = reader.packet()?;
    reader.complete(packet)
}

/// The words of a text, in bytes; an arrow is one, wherever it stands.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    let mut rest = text.char_indices().peekable();
    while let Some((at, character)) = rest.next() {
        let is_arrow = text[at..].starts_with("->");
        if (is_arrow || character.is_whitespace())
            && let Some(start) = start.take()
        {
            words.push(start..at);
        }
        if is_arrow {
            words.push(at..at + 2);
            rest.next();
        } else if !character.is_whitespace() {
            start = start.or(Some(at));
        }
    }
    words.extend(start.map(|start| start..text.len()));
    words
}

struct Reader<'a> {
    text: &'a str,
    words: Vec<Range<usize>>,
    next: usize,
    services: &'a Services,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|span| &self.text[span.clone()])
    }

    /// The next word, with its place.
    fn take(&mut self, what: &str) -> Result<(&'a str, Range<usize>), Box<Diagnostic>> {
        let span = self.words.get(self.next).cloned();
        self.next += 1;
        match span {
            Some(span) => Ok((&self.text[span.clone()], span)),
            None => Err(self.missing(what).into()),
        }
    }

    fn missing(&self, what: &str) -> Diagnostic {
        Diagnostic::error(format!("here {what} is missing"))
            .at(self.text.len()..self.text.len())
            .help("such as: tcp 203.0.113.9:51000 -> 192.0.2.10:443 vlan 12 on eth0")
    }

    fn packet(&mut self) -> Result<Described, Box<Diagnostic>> {
        let mut packet = Described { protocol: self.protocol()?, ..Described::default() };
        if !matches!(self.peek(), Some("->" | "to")) {
            (packet.src, packet.src_port) = self.endpoint()?;
        }
        match self.take("`->` and where the packet goes")? {
            ("->" | "to", _) => {}
            ("-", span) => {
                return Err(Diagnostic::error("the shell has taken `->` for a redirection")
                    .at(span)
                    .help("put the packet in quotes, or write `to`")
                    .into());
            }
            (_, span) => {
                return Err(Diagnostic::error("here `->` is missing")
                    .at(span)
                    .help("where the packet comes from, `->` or `to`, where it goes")
                    .into());
            }
        }
        (packet.dst, packet.dst_port) = self.endpoint()?;
        let (mut kind, mut code) = (None, None);
        while self.peek().is_some() {
            match self.take("more")? {
                ("type", _) => {
                    let (number, its_code) = self.icmp_type(packet.protocol)?;
                    (kind, code) = (Some(number), code.or(its_code));
                }
                ("code", _) => code = Some(self.number("a code", u8::MAX.into())? as u8),
                ("vlan", _) => packet.vlan = Some(self.vlan()?),
                ("on", _) => packet.interface = Some(self.take("an interface")?.0.to_owned()),
                ("later-fragment", _) => packet.later_fragment = true,
                (word, span) => {
                    let known = ["type", "code", "vlan", "on", "later-fragment"];
                    let mut error =
                        Diagnostic::error(format!("`{word}` is not understood here")).at(span);
                    error = match suggest(word, known) {
                        Some(near) => error.help(format!("did you mean `{near}`?")),
                        None => error.help(format!("it may be {}", known.join(", "))),
                    };
                    return Err(error.into());
                }
            }
        }
        packet.icmp = match packet.protocol {
            protocol::ICMP => Some((kind.unwrap_or(PING), code.unwrap_or(0))),
            protocol::ICMPV6 => Some((kind.unwrap_or(PING_V6), code.unwrap_or(0))),
            _ if kind.or(code).is_some() => {
                let name = protocol_name(packet.protocol);
                return Err(Diagnostic::error(format!("{name} has no type and code"))
                    .help("icmp and icmpv6 have")
                    .into());
            }
            _ => None,
        };
        Ok(packet)
    }

    fn protocol(&mut self) -> Result<u8, Box<Diagnostic>> {
        let (word, span) = self.take("a protocol")?;
        let lower = word.to_lowercase();
        let named = PROTOCOL_NAMES.iter().find(|(name, _)| *name == lower);
        if let Some(number) = named.map(|(_, number)| *number).or_else(|| word.parse().ok()) {
            return Ok(number);
        }
        let names = PROTOCOL_NAMES.map(|(name, _)| name);
        let error = Diagnostic::error(format!("there is no protocol `{word}`")).at(span);
        Err(match suggest(&lower, names) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => {
                error.help(format!("it is one of {}, or a number from 0 to 255", names.join(", ")))
            }
        }
        .into())
    }

    fn number(&mut self, what: &str, most: u32) -> Result<u32, Box<Diagnostic>> {
        let (word, span) = self.take(what)?;
        word.parse().ok().filter(|number| *number <= most).ok_or_else(|| {
            Diagnostic::error(format!("{what} is a number from 0 to {most}")).at(span).into()
        })
    }

    /// `8`, `echo-request`, or, with its code, `port-unreachable`.
    fn icmp_type(&mut self, protocol: u8) -> Result<(u8, Option<u8>), Box<Diagnostic>> {
        let (word, span) = self.take("a type")?;
        if let Some(named) = icmp_type_of(protocol, word) {
            return Ok(named);
        }
        word.parse().map(|number| (number, None)).map_err(|_| {
            let error = Diagnostic::error("a type is a number from 0 to 255, or a name").at(span);
            match suggest(word, icmp_type_names(protocol)) {
                Some(near) => error.help(format!("did you mean `{near}`?")).into(),
                None => error.into(),
            }
        })
    }

    /// `12`, `untagged`; 0 is a priority tag, which rules take for none.
    fn vlan(&mut self) -> Result<u16, Box<Diagnostic>> {
        if self.peek() == Some("untagged") {
            self.next += 1;
            return Ok(0);
        }
        Ok(self.number("a VLAN id", 4095)? as u16)
    }

    /// `192.0.2.1`, `192.0.2.1:80`, `:80`, `2001:db8::1`, `[2001:db8::1]:80`, `any`; ports by name too.
    fn endpoint(&mut self) -> Result<(Option<IpAddr>, Option<u16>), Box<Diagnostic>> {
        let (word, span) = self.take("an address or a port")?;
        if word == "any" || word == "anywhere" {
            return Ok((None, None));
        }
        if let Ok(address) = word.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok((Some(address), None));
        }
        let wrong = |message: String| Diagnostic::error(message).at(span.clone());
        let Some((address, port)) = word.rsplit_once(':') else {
            return Err(wrong(format!("`{word}` is no address"))
                .help("a port alone has a colon before it, such as :443")
                .into());
        };
        let number = port.parse().ok().or_else(|| self.services.port(port));
        let Some(number) = number else {
            let error = wrong(format!("there is no port `{port}`"));
            return Err(match suggest(port, self.services.names()) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help("ports are numbers from 0 to 65535, or names of services"),
            }
            .into());
        };
        if address.is_empty() {
            return Ok((None, Some(number)));
        }
        match address.trim_matches(['[', ']']).parse() {
            Ok(address) => Ok((Some(address), Some(number))),
            Err(_) => Err(wrong(format!("`{address}` is no address")).into()),
        }
    }

    /// Checks what no single word can be wrong about.
    fn complete(&self, packet: Described) -> Result<Described, Box<Diagnostic>> {
        let name = protocol_name(packet.protocol);
        if let (Some(src), Some(dst)) = (packet.src, packet.dst)
            && src.is_ipv4() != dst.is_ipv4()
        {
            return Err(
                Diagnostic::error(format!("{src} and {dst} are of different families")).into()
            );
        }
        let has_ports = PortProtocol::from_number(packet.protocol).is_some();
        let named = packet.src_port.or(packet.dst_port).is_some();
        if named && !has_ports {
            return Err(Diagnostic::error(format!("{name} has no ports")).into());
        }
        if named && packet.later_fragment {
            return Err(Diagnostic::error("a later fragment has no ports")
                .help("only the first fragment of a datagram carries them")
                .into());
        }
        if has_ports && packet.dst_port.is_none() && !packet.later_fragment {
            return Err(Diagnostic::error("the destination port is missing")
                .at(self.text.len()..self.text.len())
                .help("such as -> 192.0.2.10:443, or add `later-fragment`, which has none")
                .into());
        }
        Ok(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Described, String> {
        parse(text, &Services::embedded()).map_err(|error| error.message)
    }

    #[test]
    fn packets_are_read_as_they_are_written() {
        for (text, shown) in [
            (
                "tcp 203.0.113.9:51000 -> 192.0.2.10:443 vlan 12 on eth0",
                "tcp 203.0.113.9:51000 -> 192.0.2.10:443 vlan 12 on eth0",
            ),
            ("UDP :53 to [2001:db8::1]:domain", "udp :53 -> [2001:db8::1]:53"),
            ("tcp->:https", "tcp -> :443"),
            ("udp any -> 192.0.2.1 later-fragment", "udp -> 192.0.2.1 later-fragment"),
            ("icmpv6 fe80::1->ff02::1 type 135", "icmpv6 fe80::1 -> ff02::1 type 135 code 0"),
            ("icmp -> any code 4 type 3", "icmp -> anywhere type 3 code 4"),
            ("icmp -> any type fragmentation-needed", "icmp -> anywhere type 3 code 4"),
            ("icmp -> any type destination-unreachable code 1", "icmp -> anywhere type 3 code 1"),
            ("icmpv6 -> any type echo-reply", "icmpv6 -> anywhere type 129 code 0"),
            ("47 10.0.0.1 -> 10.0.0.2", "47 10.0.0.1 -> 10.0.0.2"),
            ("tcp -> :80 on veth-1 vlan untagged", "tcp -> :80 vlan 0 on veth-1"),
        ] {
            let packet = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(packet.to_string(), shown);
            assert_eq!(read(shown), Ok(packet), "what is shown can be read again");
        }
    }

    #[test]
    fn rules_see_what_is_described() {
        let full = |text: &str| read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let packet = full("icmp 192.0.2.1 -> 192.0.2.2 type 3 code 4 vlan 12 on eth0");
        let headers = packet.headers();
        assert_eq!((headers.icmp, headers.icmpv6), (Some((3, 4)), None));
        assert_eq!((headers.vlan, headers.interface), (12, Some("eth0")));
        assert_eq!(headers.src, "192.0.2.1".parse().ok());
        let packet = full("icmpv6 fe80::1 -> ff02::1 type 135 vlan untagged");
        let headers = packet.headers();
        assert_eq!((headers.icmp, headers.icmpv6), (None, Some((135, 0))));
        assert_eq!((headers.vlan, headers.interface), (0, None));
        let packet = full("tcp :51000 -> [2001:db8::1]:443");
        let headers = packet.headers();
        assert_eq!((headers.src_port, headers.dst_port), (Some(51_000), Some(443)));
        assert_eq!((headers.src, headers.dst), (None, "2001:db8::1".parse().ok()));
        // Of the other IP version: no type.
        assert_eq!(full("icmp fe80::1 -> ff02::1 type 3").headers().icmp, None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, error) in [
            ("", "here a protocol is missing"),
            ("tpc -> :80", "there is no protocol `tpc`"),
            ("tcp 192.0.2.1", "here `->` and where the packet goes is missing"),
            ("tcp 192.0.2.1 -", "the shell has taken `->` for a redirection"),
            ("tcp 192.0.2.1 192.0.2.2:80", "here `->` is missing"),
            ("tcp -> 192.0.2.1", "the destination port is missing"),
            ("tcp -> 192.0.2.1:htpps", "there is no port `htpps`"),
            ("tcp -> 192.0.2.1:70000", "there is no port `70000`"),
            ("tcp -> 192.0.2.300:80", "`192.0.2.300` is no address"),
            ("tcp -> web", "`web` is no address"),
            ("tcp 192.0.2.1 -> [::1]:80", "192.0.2.1 and ::1 are of different families"),
            ("icmp -> 192.0.2.1:80", "icmp has no ports"),
            ("tcp -> :80 later-fragment", "a later fragment has no ports"),
            ("tcp -> :80 type 8", "tcp has no type and code"),
            ("tcp -> :80 vlan 5000", "a VLAN id is a number from 0 to 4095"),
            ("tcp -> :80 valn 5", "`valn` is not understood here"),
            ("tcp -> :80 on", "here an interface is missing"),
        ] {
            assert_eq!(read(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn nothing_that_is_typed_brings_it_down() {
        for text in
            ["->", "-> -> ->", "tcp ->:", "ü -> ü:ü", "tcp [ -> ]:80", "tcp\u{a0}->\u{3000}:80"]
        {
            let _ = read(text);
        }
        assert!(read(&"x".repeat(5000)).is_err());
    }
}
