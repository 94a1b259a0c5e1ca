//! By which connection the operator is here.

use std::{env, fs};

/// As OpenSSH tells it: from the environment, or, where `sudo` has cleared that, from that of the processes
/// which this one descends from.
pub(super) fn ssh_connection() -> Option<String> {
    const NAME: &str = "SSH_CONNECTION";
    // Whoever sets it says where from, or, if it is empty, from nowhere.
    if let Ok(connection) = env::var(NAME) {
        return Some(connection).filter(|connection| is_one(connection));
    }
    let mut process = parent_of("self")?;
    // Long enough for any shell in a shell, and no loop.
    for _ in 0..32 {
        if process <= 1 {
            return None;
        }
        if let Ok(environment) = fs::read(format!("/proc/{process}/environ"))
            && let Some(connection) = find(&environment, NAME)
        {
            return Some(connection).filter(|connection| is_one(connection));
        }
        process = parent_of(&process.to_string())?;
    }
    None
}

/// A variable of an environment as the kernel shows it: `NAME=value`, each ended by a NUL.
fn find(environment: &[u8], name: &str) -> Option<String> {
    let value = |entry: &[u8]| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    };
    environment.split(|&byte| byte == 0).find_map(value)
}

/// Whether it has addresses: over something else than TCP, OpenSSH says `UNKNOWN`.
fn is_one(connection: &str) -> bool {
    !connection.is_empty() && !connection.contains("UNKNOWN")
}

fn parent_of(process: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_found_whole() {
        let environment = b"A=1\0XSSH_CONNECTION=no\0SSH_CONNECTION=a 1 b 22\0Z=\0";
        assert_eq!(find(environment, "SSH_CONNECTION").as_deref(), Some("a 1 b 22"));
        assert_eq!(find(environment, "SSH"), None);
        assert_eq!(find(environment, "Z").as_deref(), Some(""));
    }

    #[test]
    fn a_connection_has_addresses() {
        assert!(is_one("198.51.100.7 51000 192.0.2.1 22"));
        assert!(!is_one("") && !is_one("UNKNOWN 65535 UNKNOWN 65535"));
    }

    #[test]
    fn everybody_has_a_parent() {
        assert_eq!(parent_of("self"), Some(std::os::unix::process::parent_id()));
    }
}
