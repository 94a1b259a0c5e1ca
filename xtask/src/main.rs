//! What the README and CI call. `cargo xtask help` lists the commands.
//!
//! A file is one idea: [`toolchain`] holds the pins and fetches what they name, [`ebpf`] builds the
//! object, [`digest`] says what it was built from, [`run`] runs the demo and the tests on this
//! machine, [`vm`] on other kernels, [`fuzz`] the fuzzers, [`dist`] packs it all.

mod before;
mod debian;
mod digest;
mod dist;
mod ebpf;
mod fuzz;
mod musl;
mod process;
mod remapped;
mod run;
mod strip;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "portsteer's set-up, builds and tests")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetches the pinned nightly and builds bpf-linker, and compares both with their checksums; only `ebpf` needs either
    Setup,
    /// Rebuilds the checked-in eBPF object and its digest
    Ebpf {
        /// Change nothing: fail if the sources and the checked-in object differ
        #[arg(long)]
        check: bool,
    },
    /// Runs all tests on this machine's kernel; arguments go to `cargo test`
    Test {
        /// Run the tests that have no end for about this long in all: a third of it random policies and packets, on
        /// which the compiled tables, the kernel and the oracle have to agree; a third of it everything at once (traffic,
        /// mutated packets, policies and trials, edits, agents that are killed, interfaces that flap), ending with an
        /// account of every packet; a third of it whatever can happen at the deadline of a trial. After that, kill two hundred agents at moments of their applies,
        /// which takes a minute or two
        #[arg(
            long,
            value_name = "MINUTES",
            value_parser = clap::value_parser!(u32).range(1..),
            conflicts_with = "arguments"
        )]
        soak: Option<u32>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Runs `portsteer demo`: the main job on a network of its own
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Measures what a packet costs, beside an empty program and the peers that are installed
    Bench(run::Bench),
    /// Fuzzes the policy's parser and compiler, the packet's parser and classification, or the control socket
    Fuzz(fuzz::Options),
    /// Boots the supported kernels under emulation and runs the demo and the tests there
    Vm(vm::Options),
    /// Makes the Debian package, the archive, the list of what is in them and their sums, from a binary that is linked
    /// statically
    Dist(dist::Options),
    /// A part of `dist --test`
    #[command(hide = true)]
    DistInside(dist::Inside),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup => toolchain::setup().map(|_| ExitCode::SUCCESS),
        Command::Ebpf { check: false } => ebpf::build().map(|()| ExitCode::SUCCESS),
        Command::Ebpf { check: true } => ebpf::check().map(|()| ExitCode::SUCCESS),
        Command::Test { soak: Some(minutes), .. } => run::soak(minutes).map(|()| ExitCode::SUCCESS),
        Command::Test { soak: None, arguments } => {
            run::test(&arguments).map(|()| ExitCode::SUCCESS)
        }
        Command::Demo { arguments } => run::demo(&arguments),
        Command::Bench(options) => run::bench(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options).map(|()| ExitCode::SUCCESS),
        Command::Vm(options) => vm::vm(&options).map(|()| ExitCode::SUCCESS),
        Command::Dist(options) => dist::dist(&options).map(|()| ExitCode::SUCCESS),
        Command::DistInside(options) => dist::inside(&options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        // Never a backtrace: what is wrong is outside of this program.
        eprintln!("error: {error}");
        error.chain().skip(1).for_each(|cause| eprintln!("  because {cause}"));
        ExitCode::FAILURE
    })
}
