//! portsteer's XDP program: frame → headers → rule → verdict, and one exit that counts.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The bpf target has no `AtomicU64::compare_exchange`.
#![cfg_attr(target_arch = "bpf", allow(internal_features), feature(core_intrinsics))]

#[cfg(target_arch = "bpf")]
mod classify;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod program;
#[cfg(target_arch = "bpf")]
mod steer;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(target_arch = "bpf")]
mod trial;
#[cfg(target_arch = "bpf")]
mod watch;

/// For the host there is no program, only the library: see `cargo xtask ebpf`.
#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a program for the kernel: build it with `cargo xtask ebpf`");
    std::process::exit(1);
}
