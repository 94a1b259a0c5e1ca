//! The parts of the XDP program that do not touch the kernel: [`frame`] reads packet bytes and
//! [`parse`] turns them into headers or a reason, and [`flow`] knows which belong together. They are built into the program and, from the
//! same source, for the host, where they are tested.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod bound;
pub mod flow;
pub mod frame;
pub mod parse;
