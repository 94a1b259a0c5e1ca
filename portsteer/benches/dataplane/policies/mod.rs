//! The policies that portsteer is measured with.

mod blocklist;
mod mixed;
mod ports;

use std::{fs, path::PathBuf};

use portsteer::{
    agent,
    policy::{Policy, diagnostic::Diagnostic},
};
use tempfile::TempDir;

pub use blocklist::Blocklist;
pub use mixed::Mixed;
pub use ports::{DROP, PASSED_PORT, STEER, dropped_ports, ports, ports_of};

use crate::Result;

/// A policy in a file, beside which are those of its sets. All of it vanishes with this.
pub struct PolicyFile {
    directory: TempDir,
    /// The names of all files.
    names: Vec<String>,
}

impl PolicyFile {
    /// What the policy itself is called.
    pub const NAME: &str = "policy.toml";

    pub fn new(policy: &str) -> Result<Self> {
        let mut new = Self { directory: tempfile::tempdir()?, names: Vec::new() };
        new.add(Self::NAME, policy)?;
        Ok(new)
    }

    /// Adds a file that the policy names.
    pub fn add(&mut self, name: &str, text: &str) -> Result<()> {
        fs::write(self.path(name), text)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Reads the policy as the agent does.
    pub fn load(&self) -> Result<Policy> {
        match agent::load_policy(&self.path(Self::NAME)) {
            Ok(loaded) => Ok(loaded.policy),
            Err(agent::Error::Policy { diagnostics, .. }) => Err(errors(&diagnostics)),
            Err(error) => Err(format!("the policy cannot be read: {error:?}").into()),
        }
    }

    /// Reads all files, and says how many bytes they have.
    pub fn read(&self) -> Result<usize> {
        let lengths = self.names.iter().map(|name| Ok(fs::read(self.path(name))?.len()));
        lengths.sum()
    }

    /// The policy itself.
    pub fn policy(&self) -> PathBuf {
        self.path(Self::NAME)
    }

    /// One of the files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// All errors of a policy in one, of which there may be as many as rules.
fn errors(diagnostics: &[Diagnostic]) -> Box<dyn std::error::Error + Send + Sync> {
    let first = diagnostics.first().map_or("", |diagnostic| &diagnostic.message);
    format!("{} errors in the policy, the first: {first}", diagnostics.len()).into()
}
