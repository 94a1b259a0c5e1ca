//! Writes the man pages and the completions for bash, zsh and fish into a directory, from the
//! arguments that the binary takes. `cargo xtask dist` runs it; the binary itself needs none of it.

use std::{env, error::Error, fs, path::PathBuf};

use clap_complete::Shell;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::args_os().nth(1).ok_or("usage: manual DIRECTORY")?;
    let directory = PathBuf::from(directory);
    fs::create_dir_all(&directory)?;
    clap_mangen::generate_to(portsteer::cli::command(), &directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = portsteer::cli::command();
        clap_complete::generate_to(shell, &mut command, "portsteer", &directory)?;
    }
    Ok(())
}
