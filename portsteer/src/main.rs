//! The binary: everything is in [`portsteer::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    portsteer::cli::main()
}
