//! The names of ports.
//!
//! The embedded table goes by IANA's "Service Name and Transport Protocol Port Number Registry",
//! with the aliases that hosts have for it and a few names that everybody uses and nobody
//! registered. A name means one number whatever the transport protocol. Names that are commonly
//! used for a port other than the registered one (`iscsi`, `sftp`) are left out: a policy that
//! means one port and gets another is worse than an error.

use std::collections::BTreeMap;

/// The names of ports that a policy may use.
#[derive(Debug, Clone)]
pub struct Services {
    ports: BTreeMap<String, u16>,
}

impl Services {
    /// The embedded names alone.
    #[must_use]
    pub fn embedded() -> Self {
        let names = TABLE
            .iter()
            .flat_map(|&(port, names)| names.iter().map(move |&name| (name.to_owned(), port)));
        Self { ports: names.collect() }
    }

    /// Adds the names and aliases in `text`, which is a file like `/etc/services`: a line has a
    /// name, a port with its protocol (`80/tcp`), and aliases; `#` starts a comment.
    ///
    /// The embedded names keep their meaning, as does the first of several lines with one name.
    /// Lines that are not of this form are ignored, protocols that have no ports here too, and so
    /// are names that would be numbers or ranges in a policy, or the names of ranges.
    #[must_use]
    pub fn with_etc_services(mut self, text: &str) -> Self {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or(line);
            let mut words = line.split_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next().and_then(parse_port)) else {
                continue;
            };
            for name in std::iter::once(name).chain(words) {
                if is_name(name) && !self.ports.contains_key(name) {
                    self.ports.insert(name.to_owned(), port);
                }
            }
        }
        self
    }

    /// The port of this name, upper and lower case being different.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<u16> {
        self.ports.get(name).copied()
    }

    /// Every name, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ports.keys().map(String::as_str)
    }

    /// What listings call this port: the embedded table's first name for it.
    #[must_use]
    pub fn name_of(port: u16) -> Option<&'static str> {
        let index = TABLE.binary_search_by_key(&port, |&(port, _)| port).ok()?;
        TABLE[index].1.first().copied()
    }
}

/// Reads `80/tcp`.
fn parse_port(word: &str) -> Option<u16> {
    let (number, protocol) = word.split_once('/')?;
    let has_ports = ["tcp", "udp", "udplite", "sctp", "dccp"].contains(&protocol);
    let digits = number.bytes().all(|byte| byte.is_ascii_digit()); // `parse` takes a sign too
    if has_ports && digits { number.parse().ok() } else { None }
}

/// Whether this can be a service's name in a policy. It has a letter (RFC 6335 section 5.1), so
/// it is neither a number nor a range.
fn is_name(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_alphabetic())
        && word.bytes().all(|byte| byte.is_ascii_graphic())
        && !super::RANGE_NAMES.iter().any(|&(name, _)| name == word)
}

/// Ports in ascending order with their names, the preferred one first.
const TABLE: &[(u16, &[&str])] = &[
    (1, &["tcpmux"]),
    (7, &["echo"]),
    (9, &["discard"]),
    (11, &["systat"]),
    (13, &["daytime"]),
    (15, &["netstat"]),
    (17, &["qotd", "quote"]),
    (19, &["chargen"]),
    (20, &["ftp-data"]),
    (21, &["ftp"]),
    (22, &["ssh"]),
    (23, &["telnet"]),
    (25, &["smtp", "mail"]),
    (37, &["time"]),
    (43, &["whois", "nicname"]),
    (49, &["tacacs"]),
    (53, &["domain", "dns"]),
    (67, &["bootps", "dhcp", "dhcps"]),
    (68, &["bootpc", "dhcpc"]),
    (69, &["tftp"]),
    (70, &["gopher"]),
    (79, &["finger"]),
    (80, &["http", "www", "www-http"]),
    (88, &["kerberos", "kerberos-sec", "krb5"]),
    (102, &["iso-tsap", "tsap"]),
    (110, &["pop3", "pop-3"]),
    (111, &["sunrpc", "portmapper", "rpcbind"]),
    (113, &["auth", "ident"]),
    (119, &["nntp"]),
    (123, &["ntp"]),
    (135, &["epmap", "msrpc", "loc-srv"]),
    (137, &["netbios-ns"]),
    (138, &["netbios-dgm"]),
    (139, &["netbios-ssn"]),
    (143, &["imap", "imap2"]),
    (161, &["snmp"]),
    (162, &["snmptrap", "snmp-trap"]),
    (177, &["xdmcp"]),
    (179, &["bgp"]),
    (194, &["irc"]),
    (199, &["smux"]),
    (319, &["ptp-event"]),
    (320, &["ptp-general"]),
    (323, &["rpki-rtr"]),
    (324, &["rpki-rtr-tls"]),
    (389, &["ldap"]),
    (427, &["svrloc", "slp"]),
    (443, &["https"]),
    (445, &["microsoft-ds", "smb", "cifs"]),
    (464, &["kpasswd"]),
    (465, &["submissions", "smtps", "urd"]),
    (500, &["isakmp", "ike"]),
    (502, &["mbap", "modbus"]),
    (512, &["exec"]),
    (513, &["login"]),
    (514, &["syslog", "shell"]),
    (515, &["printer", "lpd"]),
    (517, &["talk"]),
    (518, &["ntalk"]),
    (520, &["router", "rip"]),
    (521, &["ripng"]),
    (540, &["uucp"]),
    (543, &["klogin"]),
    (544, &["kshell"]),
    (546, &["dhcpv6-client"]),
    (547, &["dhcpv6-server"]),
    (548, &["afpovertcp", "afp"]),
    (554, &["rtsp"]),
    (563, &["nntps"]),
    (587, &["submission"]),
    (593, &["http-rpc-epmap"]),
    (601, &["syslog-conn"]),
    (623, &["asf-rmcp", "ipmi"]),
    (631, &["ipp", "cups"]),
    (636, &["ldaps"]),
    (639, &["msdp"]),
    (646, &["ldp"]),
    (647, &["dhcp-failover"]),
    (655, &["tinc"]),
    (674, &["acap"]),
    (700, &["epp"]),
    (706, &["silc"]),
    (749, &["kerberos-adm"]),
    (750, &["kerberos-iv"]),
    (783, &["spamd"]),
    (802, &["mbap-s"]),
    (830, &["netconf-ssh"]),
    (831, &["netconf-beep"]),
    (853, &["domain-s", "dns-over-tls"]),
    (862, &["twamp-control"]),
    (873, &["rsync"]),
    (989, &["ftps-data"]),
    (990, &["ftps"]),
    (992, &["telnets"]),
    (993, &["imaps"]),
    (994, &["ircs"]),
    (995, &["pop3s"]),
    (1080, &["socks"]),
    (1099, &["rmiregistry"]),
    (1194, &["openvpn"]),
    (1352, &["lotusnote"]),
    (1433, &["ms-sql-s", "mssql"]),
    (1434, &["ms-sql-m"]),
    (1521, &["oracle", "ncube-lm"]),
    (1701, &["l2tp", "l2f"]),
    (1719, &["h323gatestat"]),
    (1720, &["h323hostcall"]),
    (1723, &["pptp"]),
    (1812, &["radius"]),
    (1813, &["radius-acct", "radacct"]),
    (1883, &["mqtt"]),
    (1900, &["ssdp"]),
    (2000, &["cisco-sccp", "sccp"]),
    (2049, &["nfs"]),
    (2083, &["radsec"]),
    (2086, &["gnunet"]),
    (2123, &["gtp-control"]),
    (2152, &["gtp-user"]),
    (2181, &["zookeeper"]),
    (2375, &["docker"]),
    (2376, &["docker-s"]),
    (2377, &["swarm"]),
    (2379, &["etcd-client", "etcd"]),
    (2380, &["etcd-server"]),
    (2401, &["cvspserver"]),
    (2427, &["mgcp-gateway"]),
    (2601, &["zebra"]),
    (2602, &["ripd"]),
    (2603, &["ripngd"]),
    (2604, &["ospfd"]),
    (2605, &["bgpd"]),
    (2606, &["ospf6d"]),
    (2608, &["isisd"]),
    (2628, &["dict"]),
    (2727, &["mgcp-callagent"]),
    (2775, &["smpp"]),
    (2905, &["m3ua"]),
    (2947, &["gpsd"]),
    (3050, &["gds-db", "firebird"]),
    (3128, &["squid"]),
    (3130, &["icpv2"]),
    (3205, &["isns"]),
    (3225, &["fcip"]),
    (3260, &["iscsi-target"]),
    (3268, &["msft-gc"]),
    (3269, &["msft-gc-ssl"]),
    (3306, &["mysql"]),
    (3389, &["ms-wbt-server", "rdp"]),
    (3478, &["stun", "turn"]),
    (3493, &["nut"]),
    (3544, &["teredo"]),
    (3632, &["distcc"]),
    (3689, &["daap"]),
    (3690, &["svn", "subversion"]),
    (3702, &["ws-discovery", "wsd"]),
    (3784, &["bfd-control"]),
    (3785, &["bfd-echo"]),
    (3799, &["radius-dynauth"]),
    (3868, &["diameter"]),
    (4189, &["pcep"]),
    (4190, &["sieve"]),
    (4222, &["nats"]),
    (4369, &["epmd"]),
    (4460, &["ntske", "nts-ke"]),
    (4500, &["ipsec-nat-t"]),
    (4505, &["salt-publish"]),
    (4506, &["salt-request"]),
    (4569, &["iax"]),
    (4739, &["ipfix"]),
    (4740, &["ipfixs"]),
    (4789, &["vxlan"]),
    (4840, &["opcua-tcp"]),
    (4949, &["munin"]),
    (5004, &["rtp", "avt-profile-1"]),
    (5005, &["rtcp", "avt-profile-2"]),
    (5060, &["sip"]),
    (5061, &["sips", "sip-tls"]),
    (5222, &["xmpp-client"]),
    (5246, &["capwap-control"]),
    (5247, &["capwap-data"]),
    (5269, &["xmpp-server"]),
    (5308, &["cfengine"]),
    (5349, &["stuns", "turns"]),
    (5351, &["nat-pmp", "pcp"]),
    (5353, &["mdns"]),
    (5355, &["llmnr"]),
    (5432, &["postgresql", "postgres"]),
    (5666, &["nrpe"]),
    (5667, &["nsca"]),
    (5671, &["amqps"]),
    (5672, &["amqp"]),
    (5683, &["coap"]),
    (5684, &["coaps"]),
    (5800, &["vnc-http"]),
    (5900, &["rfb", "vnc"]),
    (5984, &["couchdb"]),
    (5985, &["wsman", "winrm"]),
    (5986, &["wsmans", "winrms"]),
    (6000, &["x11"]),
    (6081, &["geneve"]),
    (6343, &["sflow"]),
    (6346, &["gnutella-svc"]),
    (6347, &["gnutella-rtr"]),
    (6379, &["redis"]),
    (6443, &["kube-apiserver"]),
    (6514, &["syslog-tls"]),
    (6566, &["sane-port"]),
    (6653, &["openflow"]),
    (6667, &["ircd", "ircu"]),
    (6696, &["babel"]),
    (6697, &["ircs-u"]),
    (6881, &["bittorrent"]),
    (7000, &["afs3-fileserver"]),
    (7001, &["afs3-callback"]),
    (7002, &["afs3-prserver"]),
    (7003, &["afs3-vlserver"]),
    (7005, &["afs3-volser"]),
    (7007, &["afs3-bos"]),
    (7547, &["cwmp"]),
    (8080, &["http-alt", "http-proxy", "webcache"]),
    (8140, &["puppet"]),
    (8333, &["bitcoin"]),
    (8443, &["https-alt", "pcsync-https"]),
    (8448, &["matrix-fed"]),
    (8472, &["otv"]),
    (8883, &["secure-mqtt", "mqtts"]),
    (9042, &["cassandra"]),
    (9092, &["kafka"]),
    (9100, &["jetdirect", "pdl-datastream"]),
    (9101, &["bacula-dir"]),
    (9102, &["bacula-fd"]),
    (9103, &["bacula-sd"]),
    (9200, &["elasticsearch"]),
    (9418, &["git"]),
    (10000, &["ndmp", "webmin"]),
    (10050, &["zabbix-agent"]),
    (10051, &["zabbix-trapper"]),
    (10080, &["amanda"]),
    (10250, &["kubelet"]),
    (10809, &["nbd"]),
    (11211, &["memcached", "memcache"]),
    (11371, &["hkp"]),
    (17500, &["db-lsp"]),
    (24554, &["binkp"]),
    (25565, &["minecraft"]),
    (27017, &["mongodb", "mongo"]),
    (30865, &["csync2"]),
    (33434, &["traceroute"]),
    (44818, &["ethernet-ip"]),
    (47808, &["bacnet"]),
    (51820, &["wireguard"]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_is_in_order_and_has_no_name_twice() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
        let mut seen = HashSet::new();
        for &(port, names) in TABLE {
            assert!(!names.is_empty(), "{port}");
            for name in names {
                assert!(seen.insert(name), "{name} is there twice");
                assert!(is_name(name), "{name} would not be a name");
                assert_eq!(*name, name.to_lowercase());
                assert!(
                    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
                    "{name} is not as RFC 6335 has it"
                );
            }
        }
    }

    #[test]
    fn well_known_facts() {
        let services = Services::embedded();
        for (name, port) in [
            ("ftp-data", 20),
            ("ssh", 22),
            ("smtp", 25),
            ("domain", 53),
            ("dns", 53),
            ("http", 80),
            ("ntp", 123),
            ("bgp", 179),
            ("https", 443),
            ("submissions", 465),
            ("submission", 587),
            ("imaps", 993),
            ("mysql", 3306),
            ("postgresql", 5432),
            ("redis", 6379),
            ("http-alt", 8080),
            ("wireguard", 51820),
        ] {
            assert_eq!(services.port(name), Some(port), "{name}");
        }
        assert_eq!(services.port("SSH"), None);
        assert_eq!(services.port(""), None);
        assert_eq!(Services::name_of(53), Some("domain"));
        assert_eq!(Services::name_of(8443), Some("https-alt"));
        assert_eq!(Services::name_of(54321), None);
        assert_eq!(services.names().count(), services.names().collect::<HashSet<_>>().len());
    }

    #[test]
    fn the_host_only_adds() {
        let services = Services::embedded().with_etc_services(
            "# a comment\n\
             ssh 2222/tcp\n\
             mine 7777/tcp yours  ours # theirs\n\
             mine 8888/udp\r\n\
             other\t65535/sctp\n",
        );
        assert_eq!(services.port("ssh"), Some(22));
        for name in ["mine", "yours", "ours"] {
            assert_eq!(services.port(name), Some(7777), "{name}");
        }
        assert_eq!(services.port("theirs"), None);
        assert_eq!(services.port("other"), Some(65535));
    }

    #[test]
    fn other_lines_are_ignored() {
        let plain = Services::embedded().ports;
        for line in [
            "",
            "name",
            "name tcp",
            "name 80",
            "name /tcp",
            "name 65536/tcp",
            "name -1/tcp",
            "name +1/tcp",
            "name 1/ddp",
            "9000 80/tcp",
            "9000-9099 80/tcp",
            "-1 80/tcp",
            "well-known 80/tcp",
            "n\u{e4}me 80/tcp",
            "\u{1b}[31mname 80/tcp",
        ] {
            assert_eq!(Services::embedded().with_etc_services(line).ports, plain, "{line:?}");
        }
    }
}
