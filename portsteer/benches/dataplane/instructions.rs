//! The instructions that the benchmark's programs are made of, by RFC 9669. Registers are numbers.

use std::os::fd::{AsRawFd as _, OwnedFd};

use portsteer::dataplane::sys::Instruction;

/// Holds the address of the stack's end.
pub const STACK: u8 = 10;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

pub fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

pub fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

pub fn add(to: u8, value: i32) -> Instruction {
    instruction(0x07, to, 0, 0, value)
}

pub fn add_register(to: u8, from: u8) -> Instruction {
    instruction(0x0f, to, from, 0, 0)
}

pub fn multiply(to: u8, value: i32) -> Instruction {
    instruction(0x27, to, 0, 0, value)
}

pub fn mask(to: u8, value: i32) -> Instruction {
    instruction(0x57, to, 0, 0, value)
}

/// Four bytes.
pub fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

/// Eight bytes.
pub fn load_double(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x79, to, from, offset, 0)
}

/// A number of four bytes.
pub fn store_word(to: u8, offset: i16, value: i32) -> Instruction {
    instruction(0x62, to, 0, offset, value)
}

/// The lower four bytes of a register.
pub fn store_word_of(to: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x63, to, from, offset, 0)
}

/// The eight bytes of a register.
pub fn store_double_of(to: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x7b, to, from, offset, 0)
}

pub fn skip_if_greater(left: u8, right: u8, instructions: usize) -> Instruction {
    instruction(0x2d, left, right, instructions as i16, 0)
}

pub fn skip_if_zero(register: u8, instructions: usize) -> Instruction {
    instruction(0x15, register, 0, instructions as i16, 0)
}

/// The map itself, for helpers.
pub fn set_to_map(to: u8, map: &OwnedFd) -> [Instruction; 2] {
    const IS_MAP_FD: u8 = 1;
    [instruction(0x18, to, IS_MAP_FD, 0, map.as_raw_fd()), instruction(0, 0, 0, 0, 0)]
}

/// The address of the one value of an array map.
pub fn set_to_value(to: u8, map: &OwnedFd) -> [Instruction; 2] {
    const IS_MAP_VALUE: u8 = 2;
    [instruction(0x18, to, IS_MAP_VALUE, 0, map.as_raw_fd()), instruction(0, 0, 0, 0, 0)]
}

pub fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

pub fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}
