//! The agent's own settings, from `agent.toml`: where it listens, who may talk to it, and what no policy may
//! cut.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use serde::{Deserialize, Deserializer, de};

use super::{access, loading::services, reading::read_still};
use crate::{
    compile::Interrupt,
    explain::described::{self, Described},
};

/// What stands in `agent.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the control socket is.
    pub socket: Option<PathBuf>,
    /// The group that may use it.
    pub socket_group: Option<String>,
    /// The socket's permissions.
    pub socket_mode: Option<SocketMode>,
    /// A second socket, at which nothing can be changed.
    pub monitor_socket: Option<PathBuf>,
    pub monitor_socket_group: Option<String>,
    pub monitor_socket_mode: Option<SocketMode>,
    /// Packets that no policy may keep from the host.
    pub protect: Vec<Protected>,
    /// What is in force where no policy can be put in force at the start.
    pub on_failure: OnFailure,
}

/// What is in force where the agent starts on a machine without a dataplane, and can put no policy in force:
/// neither the one that was accepted last, nor the one before, nor the policy file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Nothing.
    #[default]
    Pass,
    /// A built-in policy, which drops all but what `protect` names, SSH, and what gives the host its address.
    ClosedButProtected,
}

/// Permissions of a socket, as text in octal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(de::Error::custom(format!(
                "`{text}` are no permissions: write them as octal digits, such as \"0660\""
            ))),
        }
    }
}

/// A packet that no policy may keep from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protected {
    /// To this TCP port, from wherever the operator is.
    Port { text: String, port: u16 },
    /// As `portsteer explain` reads it.
    Packet(Box<Described>),
}

impl fmt::Display for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { text, .. } => write!(f, "{text}"),
            Self::Packet(packet) => write!(f, "{packet}"),
        }
    }
}

impl std::str::FromStr for Protected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let services = services();
        let number = text.parse().ok();
        let port = number.or_else(|| services.port(text)).filter(|&port| port != 0);
        if let Some(port) = port {
            return Ok(Self::Port { text: text.to_owned(), port });
        }
        match described::parse(text, &services) {
            Ok(packet) => Ok(Self::Packet(Box::new(packet))),
            Err(diagnostic) => {
                let label =
                    diagnostic.label.map_or_else(String::new, |label| format!(" ({label})"));
                Err(format!("`{text}`: {}{label}", diagnostic.message))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Protected {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum PortOrText {
            Port(u16),
            Text(String),
        }
        let text = match PortOrText::deserialize(deserializer)? {
            PortOrText::Port(port) => port.to_string(),
            PortOrText::Text(text) => text,
        };
        Self::from_str(&text).map_err(|why| {
            de::Error::custom(format!(
                "{why}; write a TCP port, or a packet such as \"tcp 198.51.100.7 -> :8443\""
            ))
        })
    }
}

impl Config {
    /// Reads the settings.
    ///
    /// # Errors
    ///
    /// In words, what is wrong and where.
    pub fn read(path: &Path) -> Result<Self, String> {
        const MOST: u64 = 1 << 20;
        let bytes = read_still(path, MOST, &Interrupt::default()).map_err(|error| {
            let error = io::Error::from(error);
            match access::advice(path, &error) {
                Some(advice) => format!("{}: {error}; {advice}", path.display()),
                None => format!("{}: {error}", path.display()),
            }
        })?;
        let text =
            String::from_utf8(bytes).map_err(|_| format!("{}: it is not UTF-8", path.display()))?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            // In one line: it stands in logs.
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.bytes().take(start).filter(|&byte| byte == b'\n').count();
            let written: String =
                text.lines().nth(line - 1).unwrap_or_default().trim().chars().take(80).collect();
            let why = error.message().replace('\n', "; ");
            format!("{}: at line {line}, `{written}`: {why}", path.display())
        })?;
        config.check().map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(config)
    }

    /// Whether what is said fits together. In words, what does not.
    fn check(&self) -> Result<(), String> {
        for (key, socket) in [("socket", &self.socket), ("monitor_socket", &self.monitor_socket)] {
            if let Some(path) = socket
                && !path.is_absolute()
            {
                let path = path.display();
                return Err(format!("`{key}` has to be an absolute path, and is `{path}`"));
            }
        }
        if self.monitor_socket.is_some() && self.monitor_socket == self.socket {
            return Err("`socket` and `monitor_socket` are the same: they are two".to_owned());
        }
        let lone = match (&self.monitor_socket_group, &self.monitor_socket_mode) {
            _ if self.monitor_socket.is_some() => None,
            (Some(_), _) => Some("monitor_socket_group"),
            (_, Some(_)) => Some("monitor_socket_mode"),
            _ => None,
        };
        match lone {
            Some(key) => Err(format!("`{key}` says nothing without `monitor_socket`")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn settings_are_read() {
        let config: Config = toml::from_str(
            "socket = '/run/x.sock'\nsocket_group = 'adm'\nsocket_mode = '0660'\n\
             protect = ['ssh', 8443, 'tcp 198.51.100.7 -> :9000']\n",
        )
        .unwrap();
        assert_eq!(config.socket_mode, Some(SocketMode(0o660)));
        assert_eq!(config.protect[0], Protected::Port { text: "ssh".to_owned(), port: 22 });
        assert_eq!(config.protect[1], Protected::Port { text: "8443".to_owned(), port: 8443 });
        let Protected::Packet(packet) = &config.protect[2] else { panic!("a packet") };
        assert_eq!(packet.dst_port, Some(9000));
        assert!(toml::from_str::<Config>("").unwrap().protect.is_empty());
    }

    #[test]
    fn what_happens_on_failure_is_read() {
        let read = |text| toml::from_str::<Config>(text).map(|config| config.on_failure);
        assert_eq!(read("").unwrap(), OnFailure::Pass);
        assert_eq!(read("on_failure = 'pass'").unwrap(), OnFailure::Pass);
        let closed = read("on_failure = 'closed-but-protected'").unwrap();
        assert_eq!(closed, OnFailure::ClosedButProtected);
        assert!(read("on_failure = 'closed'").is_err());
    }

    /// A pipe would keep the agent waiting, and a directory says nothing.
    #[test]
    fn settings_stand_in_a_regular_file() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for (path, said) in [(&*pipe, "a pipe"), (directory.path(), "a directory")] {
            let error = Config::read(path).unwrap_err();
            assert!(error.ends_with(&format!("it is {said}, no regular file")), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, said) in [
            ("socket = '/run/a'\nmonitor_socket = '/run/a'", "are the same"),
            ("monitor_socket = ''", "an absolute path"),
            ("socket = 'a.sock'", "an absolute path"),
            ("monitor_socket_group = 'adm'", "nothing without `monitor_socket`"),
            ("monitor_socket_mode = '0666'", "nothing without `monitor_socket`"),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = Config::read(file.path()).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        fs::write(file.path(), "monitor_socket = '/run/b'\nmonitor_socket_mode = '0666'").unwrap();
        assert!(Config::read(file.path()).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "sockets = 1",
            "socket_mode = '0999'",
            "socket_mode = 432",
            "socket_mode = '7777'",
            "protect = ['sshd-of-mine']",
            "protect = [70000]",
            "protect = [0]",
            "protect = ['tcp 300.1.1.1 -> :22']",
        ] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }
}
