//! The maps, behind typed functions. All `unsafe` access to map memory ends here.
//!
//! The verifier checks every access again, at load time: an index that it cannot bound is refused.

use core::{cell::UnsafeCell, mem::MaybeUninit};

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use portsteer_common::{
    Counter, CounterPage, Decision, Image, PolicyBanks, PortKey, PortProtocol, Verdict,
    counters::MAX_PAGES, image::ROWS,
};
use portsteer_ebpf::bound;

/// The policy in force, and the place where its successor is made ready. All programs of an
/// instance share it. User space writes to it through a mapping.
///
/// A static, not a map with a name: the loader makes a map of the section `.bss` all the same, but
/// the program has its value's address, where a look-up costs a dozen instructions.
#[unsafe(no_mangle)]
static POLICY: Shared<PolicyBanks> = Shared(UnsafeCell::new(MaybeUninit::zeroed()));

/// Memory that user space writes to while programs read it.
#[repr(transparent)]
struct Shared<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: whoever reads it takes care to read words that do not change meanwhile, or volatile ones.
unsafe impl<T> Sync for Shared<T> {}

/// Packets and bytes, for this program's interface alone. User space loads it with as many pages
/// as it needs.
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<CounterPage, MAX_PAGES> = PerCpuArray::new();

/// The policy in force. Read once per packet, so that no packet sees two policies.
#[derive(Clone, Copy)]
pub struct Policy(*const Image);

impl Policy {
    #[inline(always)]
    pub fn current() -> Self {
        let policy = POLICY.0.get().cast_const().cast::<PolicyBanks>();
        // SAFETY: an aligned word of the value. User space changes it with one atomic store.
        let active = unsafe { (&raw const (*policy).active).read_volatile() };
        // Nothing or all: the offset of the first bank or of the second.
        let offset = active as usize & size_of::<Image>();
        // SAFETY: one of the two banks of the value.
        Self(unsafe { (&raw const (*policy).banks).byte_add(offset).cast::<Image>() })
    }

    /// What is decided about packets with this protocol and destination port. `None` never happens,
    /// but the verifier cannot know.
    #[inline(always)]
    pub fn by_port(self, key: PortKey) -> Option<Decision> {
        const CELLS: usize = ROWS << 16;
        let index = bound::port_index(key.index());
        if index >= CELLS {
            return None;
        }
        // SAFETY: `self.0` is an image, and the index is within its table.
        Some(unsafe { (&raw const (*self.0).by_port).cast::<Decision>().add(index).read() })
    }

    /// The same for TCP and UDP, where a mask will do.
    #[inline(always)]
    pub fn by_plain_port(self, key: PortKey) -> Decision {
        const _: () = assert!(PortProtocol::Tcp as u8 == 0 && PortProtocol::Udp as u8 == 1);
        let index = key.index();
        // SAFETY: `self.0` is an image, and TCP and UDP have the first two rows of its table.
        unsafe { (&raw const (*self.0).by_port).cast::<Decision>().add(index).read() }
    }

    /// What is decided about packets of `protocol` that have no ports.
    #[inline(always)]
    pub fn by_protocol(self, protocol: u8) -> Decision {
        let index = bound::protocol(usize::from(protocol));
        // SAFETY: `self.0` is an image, and the index is below 256.
        unsafe { (&raw const (*self.0).by_protocol).cast::<Decision>().add(index).read() }
    }

    /// What happens to malformed packets.
    #[inline(always)]
    pub fn malformed(self) -> Verdict {
        // SAFETY: `self.0` is an image.
        Verdict::from_number(unsafe { (&raw const (*self.0).malformed).read() })
    }

    /// What happens to unsupported packets.
    #[inline(always)]
    pub fn unsupported(self) -> Verdict {
        // SAFETY: `self.0` is an image.
        Verdict::from_number(unsafe { (&raw const (*self.0).unsupported).read() })
    }
}

/// Counts a packet of `len` bytes where the decision says.
#[inline(always)]
pub fn count(decision: Decision, len: u64) {
    if let Some(page) = COUNTERS.get_ptr_mut(decision.page()) {
        // SAFETY: a value of `counters`, which no other program touches on this CPU while this
        // one runs; the offset is that of one of its counters.
        unsafe {
            let counter = page.byte_add(decision.page_offset()).cast::<Counter>();
            (*counter).packets += 1;
            (*counter).bytes += len;
        }
    }
}
