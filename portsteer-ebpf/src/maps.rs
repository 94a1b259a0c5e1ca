//! The maps, behind typed functions. All `unsafe` access to map memory ends here.
//!
//! The verifier checks every access again, at load time: an index that it cannot bound is refused.

use aya_ebpf::{
    Global,
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use portsteer_common::{
    Counter, INTERFACE_SLOTS, Image, InterfaceCounters, Rule, RuleCounterPage,
    counters::{MAX_RULE_COUNTER_PAGES, RULE_COUNTERS_PER_PAGE},
    image::{BANKS, PortKey, RULES, Special},
};
use portsteer_ebpf::bound;

/// The slot of the interface that this copy of the program is attached to, set at load time.
#[unsafe(no_mangle)]
static INTERFACE_SLOT: Global<u32> = Global::new(0);

/// The bank of `images` that is in force.
#[btf_map(name = "active")]
static ACTIVE: Array<u32, 1> = Array::new();

/// The policy in force, and the place where its successor is made ready.
#[btf_map(name = "images")]
static IMAGES: Array<Image, { BANKS as usize }> = Array::new();

/// Packets and bytes per rule. User space loads it with as many pages as it needs.
#[btf_map(name = "rule_counters")]
static RULE_COUNTERS: PerCpuArray<RuleCounterPage, MAX_RULE_COUNTER_PAGES> = PerCpuArray::new();

/// Packets and bytes per interface slot, verdict and reason.
#[btf_map(name = "if_counters")]
static IF_COUNTERS: PerCpuArray<InterfaceCounters, { INTERFACE_SLOTS as usize }> =
    PerCpuArray::new();

/// The policy in force. Read once per packet, so that no packet sees two policies.
#[derive(Clone, Copy)]
pub struct Policy(*const Image);

impl Policy {
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let bank = ACTIVE.get_ptr(0)?;
        // SAFETY: the map's one entry. User space changes it with a copy of 4 bytes of which only
        // one differs, so a volatile read sees the old word or the new one.
        let bank = unsafe { bank.read_volatile() };
        Some(Self(IMAGES.get_ptr(bank)?))
    }

    /// What decides about packets with this protocol and destination port: the number of a rule.
    #[inline(always)]
    pub fn by_port(self, key: PortKey) -> u32 {
        let index = bound::port_index(key.index());
        // SAFETY: `self.0` is a value of `images`, and the index is below 8 rows of 65,536.
        unsafe { (&raw const (*self.0).by_port).cast::<u32>().add(index).read() }
    }

    /// What decides about packets of `protocol` that have no ports: the number of a rule.
    #[inline(always)]
    pub fn by_protocol(self, protocol: u8) -> u32 {
        let index = usize::from(protocol);
        // SAFETY: `self.0` is a value of `images`, and the index is below 256.
        unsafe { (&raw const (*self.0).by_protocol).cast::<u32>().add(index).read() }
    }

    /// The rule with this number.
    #[inline(always)]
    pub fn rule(self, number: u32) -> Rule {
        let index = number as usize & (RULES - 1);
        // SAFETY: `self.0` is a value of `images`, and the index is below `RULES`.
        unsafe { (&raw const (*self.0).rules).cast::<Rule>().add(index).read() }
    }

    /// The entry for the policy's default or one of its options.
    #[inline(always)]
    pub fn special(self, special: Special) -> Rule {
        self.rule(special as u32)
    }
}

/// Counts a packet in a rule's counter.
#[inline(always)]
pub fn count_rule(id: u32, len: u32) {
    let page = id / RULE_COUNTERS_PER_PAGE as u32;
    let index = id as usize % RULE_COUNTERS_PER_PAGE;
    if let Some(page) = RULE_COUNTERS.get_ptr_mut(page) {
        // SAFETY: a value of `rule_counters`, which no other program touches on this CPU while
        // this one runs; the index is below the page's length.
        unsafe { add(page.cast::<Counter>().add(index), len) }
    }
}

/// Counts a packet in the interface's counter at `index`, see [`InterfaceCounters::index`].
#[inline(always)]
pub fn count_interface(index: usize, len: u32) {
    const COUNTERS: usize = size_of::<InterfaceCounters>() / size_of::<Counter>();
    if let Some(counters) = IF_COUNTERS.get_ptr_mut(INTERFACE_SLOT.load()) {
        // SAFETY: a value of `if_counters`, which no other program touches on this CPU while this
        // one runs; the index is below its length, a power of two.
        unsafe { add(counters.cast::<Counter>().add(index & (COUNTERS - 1)), len) }
    }
}

/// Adds one packet of `len` bytes.
///
/// # Safety
///
/// `counter` points to a counter that only this CPU writes to.
#[inline(always)]
unsafe fn add(counter: *mut Counter, len: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(len);
    }
}
