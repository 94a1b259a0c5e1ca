//! Bounds that the verifier can see.
//!
//! The compiler removes a mask that it knows to be redundant. The verifier of older kernels knows
//! less: it takes the result of a byte swap as unknown, and then refuses the access that the mask
//! was there for. So these masks hide from the compiler behind inline assembly. On the host they
//! are ordinary masks.

/// The same number, of which the verifier no longer knows how it came about: what has been verified
/// for any number need not be verified again for each way that leads to it.
///
/// A global function: the verifier looks at it by itself, and takes what it returns as unknown.
#[inline(never)]
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[must_use]
pub extern "C" fn forget(value: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: a register moved to itself. It keeps the compiler from knowing what is returned.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value
    }
}

macro_rules! bound {
    ($($(#[$doc:meta])+ $name:ident, $mask:literal;)+) => {
        $(
            $(#[$doc])+
            #[inline(always)]
            #[must_use]
            pub fn $name(value: usize) -> usize {
                #[cfg(target_arch = "bpf")]
                {
                    let mut value = value;
                    // SAFETY: one `and` on a register of the compiler's choice; no memory, no
                    // control flow.
                    unsafe {
                        core::arch::asm!(
                            concat!("{0} &= ", $mask),
                            inout(reg) value,
                            options(pure, nomem, nostack),
                        );
                    }
                    value
                }
                #[cfg(not(target_arch = "bpf"))]
                {
                    value & $mask
                }
            }
        )+
    };
}

bound! {
    /// An offset into a frame, below 16,384. Two VLAN tags, an IP header and six extension
    /// headers of 2,048 bytes stay below that.
    frame_offset, 0x3fff;
    /// A number below 524,288, of which the compiler knows nothing else, so that it keeps the
    /// comparison with the port table's length that the verifier needs.
    port_index, 0x7ffff;
    /// A target's slot, below 2,048.
    target_slot, 0x7ff;
    /// A place in a target's spread, below 128.
    spread_place, 0x7f;
    /// A protocol number or one of a later fragment: 9 bits, which the verifier forgets when they
    /// spend a while on the stack.
    other_column, 0x1ff;
    /// Where a half-word stands in a segment of the tables, in bytes.
    half_word, 0xfffe;
    /// Where a double word stands in a segment of the tables, in bytes.
    double_word, 0xfff8;
    /// Where a word stands in a segment of the tables, in bytes.
    word, 0xfffc;
}

/// All ones if `key` is below `start`, both of 16 bits, else zero: arithmetic, where the compiler would
/// make a branch that the verifier has to follow both ways at every step of a search.
#[inline(always)]
#[must_use]
pub fn is_below(key: u32, start: u32) -> u64 {
    let difference = i64::from(key) - i64::from(start);
    #[cfg(target_arch = "bpf")]
    {
        let mut sign = difference;
        // SAFETY: a shift of a register of the compiler's choice.
        unsafe {
            core::arch::asm!("{0} s>>= 63", inout(reg) sign, options(pure, nomem, nostack));
        }
        sign as u64
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (difference >> 63) as u64
    }
}
