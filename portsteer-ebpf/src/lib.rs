//! The parts of the program that do not touch the kernel.
