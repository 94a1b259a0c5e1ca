//! What an operator has to do so that an agent that is not root can read a file.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};

/// Where a service with `ProtectHome=` sees nothing, whatever the permissions (systemd.exec(5)).
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// The commands that let this agent read a file that it may not read: `None` for root, for what is no agent, and
/// for other errors.
pub fn advice(path: &Path, error: &io::Error) -> Option<String> {
    if error.kind() != io::ErrorKind::PermissionDenied
        || !caps::has_cap(None, CapSet::Permitted, Capability::CAP_BPF).is_ok_and(|has| has)
    {
        return None;
    }
    let own = fs::metadata("/proc/self").ok()?;
    if own.uid() == 0 {
        return None;
    }
    let path = std::path::absolute(path).ok()?;
    let closed =
        path.ancestors().skip(1).filter(|directory| directory.join(".").metadata().is_err());
    Some(let_in(&path, closed.last(), &group_name(own.gid())))
}

/// The same in words: `closed` is the directory that cannot be entered, if it is one of the file's.
fn let_in(path: &Path, closed: Option<&Path>, group: &str) -> String {
    if HOMES.iter().any(|home| path.starts_with(home)) {
        return "the service sees nothing of it: keep the file in /etc/portsteer, or another place outside of \
                /home, /root and /run/user"
            .to_owned();
    }
    let (place, right): (PathBuf, _) = match closed {
        Some(directory) => (directory.to_owned(), "g+x"),
        None => (path.to_owned(), "g+r"),
    };
    let place = quoted(&place);
    format!("let the agent's group in: chgrp {group} {place} && chmod {right} {place}")
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A group's name, or its number where it has none (group(5)).
fn group_name(id: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_for_what_keeps_the_agent_out() {
        let file = Path::new("/srv/lists/a.txt");
        assert_eq!(
            let_in(file, None, "portsteer"),
            "let the agent's group in: chgrp portsteer /srv/lists/a.txt && chmod g+r /srv/lists/a.txt"
        );
        assert_eq!(
            let_in(file, Some(Path::new("/srv/lists")), "portsteer"),
            "let the agent's group in: chgrp portsteer /srv/lists && chmod g+x /srv/lists"
        );
        assert!(let_in(Path::new("/home/a/p.toml"), None, "portsteer").contains("/etc/portsteer"));
        assert!(let_in(Path::new("/homes/p.toml"), None, "portsteer").starts_with("let"));
    }

    #[test]
    fn a_path_cannot_become_another_command() {
        let path = Path::new("/srv/it's; rm -r $HOME");
        assert!(
            let_in(path, None, "g").ends_with(r"chmod g+r '/srv/it'\''s; rm -r $HOME'"),
            "{}",
            let_in(path, None, "g")
        );
    }

    #[test]
    fn root_and_other_errors_get_no_advice() {
        let error = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(advice(Path::new("/etc/portsteer/policy.toml"), &error), None);
        assert_eq!(group_name(0), "root");
        assert_eq!(group_name(3_999_999_999), "3999999999");
    }
}
