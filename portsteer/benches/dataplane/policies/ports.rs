//! Policies whose rules have a port each, and nothing else.

use std::fmt::Write as _;

use super::PolicyFile;
use crate::{PORT, Result};

/// Actions, as the policy file has them.
pub const DROP: &str = "\"drop\"";
pub const STEER: &str = "{ steer = \"target-0\" }";
const PASS: &str = "\"pass\"";

/// A port that [`ports`] lets pass, with or without targets, if it has two rules or more.
pub const PASSED_PORT: u16 = u16::MAX;

/// A policy of `rules` rules with one port each, of which the last but in no other way special one
/// does `action` with [`PORT`]. Where there are `targets`, which are lines of the policy file, every
/// third of the others steers to the first of them. The rest pass and drop, by odd and even.
pub fn ports(
    interface: &str,
    rules: usize,
    action: &str,
    targets: &[String],
) -> Result<PolicyFile> {
    let mut text = format!("version = 1\ninterfaces = [\"{interface}\"]\nmode = \"native\"\n");
    for (number, target) in targets.iter().enumerate() {
        let _ = write!(text, "[targets.target-{number}]\n{target}\n");
    }
    for port in ports_of(rules) {
        let action = match port {
            PORT => action,
            _ if !targets.is_empty() && port % 3 == 1 => STEER,
            _ if port % 2 == 0 => DROP,
            _ => PASS,
        };
        let _ = write!(
            text,
            "[[rules]]\nname = \"port-{port}\"\nprotocol = [\"tcp\", \"udp\"]\ndst_port = {port}\n\
             action = {action}\n"
        );
    }
    PolicyFile::new(&text)
}

/// So many ports, the last of which is [`PORT`]. Port 0 is never one of them.
pub fn ports_of(count: usize) -> Vec<u16> {
    let others = (1..=u16::MAX).rev().filter(|&port| port != PORT);
    others.take(count - 1).chain([PORT]).collect()
}

/// A policy of rules that drop one port each.
pub fn dropped_ports(interface: &str, ports: &[u16]) -> Result<PolicyFile> {
    let mut text = format!("version = 1\ninterfaces = [\"{interface}\"]\nmode = \"native\"\n");
    for port in ports {
        let _ = write!(
            text,
            "[[rules]]\nname = \"port-{port}\"\nprotocol = [\"tcp\", \"udp\"]\ndst_port = {port}\n\
             action = \"drop\"\n"
        );
    }
    PolicyFile::new(&text)
}
