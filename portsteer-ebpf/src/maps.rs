//! The maps, behind typed functions. All `unsafe` access to map memory ends here.
//!
//! The verifier checks every access again, at load time: an index that it cannot bound is refused.

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_cxchg},
    mem::MaybeUninit,
};

use aya_ebpf::{
    Global,
    bindings::xdp_action::XDP_REDIRECT,
    btf_maps::{Array, CpuMap, DevMap, HashMap, PerCpuArray},
    cty::c_void,
    helpers::generated::{
        bpf_redirect_map, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start,
    },
    macros::btf_map,
};
use portsteer_common::{
    Active, Counter, CounterPage, Decision, Image, Node, PolicyBanks, PortKey, PortProtocol,
    Verdict,
    counters::MAX_PAGES,
    image::{Cell, FIRST_BANK, ROWS, Roots, SECOND_BANK, feature},
    node::{
        self, LINE_WORDS, MAX_SEGMENTS, OTHER_COLUMNS, SEGMENT_LINES, SEGMENT_WORDS,
        SMALL_SEGMENTS, SmallTables,
    },
    steering::{self, Losses, MacAddresses, SPREAD_PLACES, Spread, TARGET_SLOTS},
    trial::Trial,
};
use portsteer_ebpf::bound;

/// The policy in force, and the place where its successor is made ready. All programs of an
/// instance share it. User space writes to it through a mapping.
///
/// A static, not a map with a name: the section `.bss` is a map to the kernel all the same, but
/// the program has its value's address, where a look-up costs a dozen instructions.
#[unsafe(no_mangle)]
static POLICY: Shared<PolicyBanks> = Shared(UnsafeCell::new(MaybeUninit::zeroed()));

/// Which of the two policies is in force, and whether it is on trial: the only word that both user space and the
/// kernel's timer change. All programs of an instance share it.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.active")]
static ACTIVE: Shared<Active> = Shared(UnsafeCell::new(MaybeUninit::zeroed()));

/// The first of the segments that [`TABLES`] has, for programs whose policies lie in these. All programs of
/// an instance share it; user space writes to it through a mapping.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.tables")]
static SMALL_TABLES: Shared<SmallTables> = Shared(UnsafeCell::new(MaybeUninit::zeroed()));

/// Memory that user space writes to while programs read it.
#[repr(transparent)]
struct Shared<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: whoever reads it takes care to read words that do not change meanwhile, or volatile ones.
unsafe impl<T> Sync for Shared<T> {}

/// Packets and bytes, for this program's interface alone. User space loads it with as many pages
/// as it needs.
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<CounterPage, MAX_PAGES> = PerCpuArray::new();

/// What policies need that constrain more than protocols and destination ports, in segments. Shared by
/// all programs of an instance. User space loads it with as many as it needs, and writes to it through
/// a mapping.
#[btf_map(name = "tables")]
static TABLES: Array<node::Segment, MAX_SEGMENTS, MMAPABLE> = Array::new();

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h).
const MMAPABLE: usize = 1 << 10;

/// Which features this program has, as bits of [`portsteer_common::image::feature`]: what user space does not ask for when it
/// loads the program, the verifier removes.
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(0);

/// The slot of this program's interface.
#[unsafe(no_mangle)]
static SLOT: Global<u32> = Global::new(0);

/// Whether this program has a feature.
#[inline(always)]
pub fn has(feature: u32) -> bool {
    FEATURES.load() & feature != 0
}

/// The slot of this program's interface.
#[inline(always)]
pub fn slot() -> u32 {
    SLOT.load()
}

/// The interface of each target that has one.
#[btf_map(name = "devices")]
static DEVICES: DevMap<TARGET_SLOTS> = DevMap::new();

/// The CPUs that packets are handed to. User space loads it with as many as there may be.
#[btf_map(name = "cpus")]
static CPUS: CpuMap<1> = CpuMap::new();

/// By an interface's index: the first target slot that sends out of it. User space takes out the indices of
/// interfaces that are gone.
#[btf_map(name = "device_slots")]
static DEVICE_SLOTS: HashMap<u32, u32, TARGET_SLOTS> = HashMap::new();

/// What was steered and did not get there, by target slot. Shared by all programs of an instance.
/// User space loads it with one more for each CPU.
#[btf_map(name = "losses")]
static LOSSES: PerCpuArray<Losses, TARGET_SLOTS> = PerCpuArray::new();

/// The policy in force. Read once per packet, so that no packet sees two policies.
#[derive(Clone, Copy)]
pub struct Policy(*const Image);

macro_rules! fields {
    ($($(#[$doc:meta])+ $name:ident: $type:ty;)+) => {
        $(
            $(#[$doc])+
            #[inline(always)]
            pub fn $name(self) -> $type {
                // SAFETY: `self.0` is an image.
                unsafe { (&raw const (*self.0).$name).read() }
            }
        )+
    };
}

impl Policy {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: an aligned word, which is changed by compare-and-swap alone.
        let active = unsafe { ACTIVE.0.get().cast_const().cast::<Active>().read_volatile() };
        Self::of_word(active.bank_word())
    }

    /// The policy in force, or, where this program's interface belongs to one bank alone, that bank's. The
    /// latter is asked for only after that bank was in force.
    #[inline(always)]
    pub fn of_this_program() -> Self {
        if has(feature::FIRST_BANK_ALONE) {
            Self::of_word(FIRST_BANK)
        } else if has(feature::SECOND_BANK_ALONE) {
            Self::of_word(SECOND_BANK)
        } else {
            Self::current()
        }
    }

    /// The word that says which bank this is, for functions that take nothing but numbers.
    #[inline(always)]
    pub fn to_word(self) -> u32 {
        let policy = POLICY.0.get().cast_const().cast::<PolicyBanks>();
        // SAFETY: an address, not read from.
        let first = unsafe { &raw const (*policy).banks };
        (self.0 as usize - first as usize) as u32
    }

    /// The policy whose bank this word names: nothing or all of the offset of the second one.
    #[inline(always)]
    pub fn of_word(bank: u32) -> Self {
        let policy = POLICY.0.get().cast_const().cast::<PolicyBanks>();
        let offset = bank as usize & size_of::<Image>();
        // SAFETY: one of the two banks of the value.
        Self(unsafe { (&raw const (*policy).banks).byte_add(offset).cast::<Image>() })
    }

    /// What is decided about packets with this protocol and destination port. `None` never happens,
    /// but the verifier cannot know.
    #[inline(always)]
    pub fn by_port(self, key: PortKey) -> Option<Cell> {
        const CELLS: usize = ROWS << 16;
        let index = bound::port_index(key.index());
        if index >= CELLS {
            return None;
        }
        // SAFETY: `self.0` is an image, and the index is within its table.
        Some(unsafe { (&raw const (*self.0).by_port).cast::<Cell>().add(index).read() })
    }

    /// The same for TCP and UDP, where a mask will do.
    #[inline(always)]
    pub fn by_plain_port(self, key: PortKey) -> Cell {
        const _: () = assert!(PortProtocol::Tcp as u8 == 0 && PortProtocol::Udp as u8 == 1);
        let index = key.index();
        // SAFETY: `self.0` is an image, and TCP and UDP have the first two rows of its table.
        unsafe { (&raw const (*self.0).by_port).cast::<Cell>().add(index).read() }
    }

    /// What is decided about packets that have no ports, by their column in
    /// [`row::OTHER`](node::row::OTHER).
    #[inline(always)]
    pub fn by_protocol(self, column: u32) -> Cell {
        let index = bound::other_column(column as usize);
        // SAFETY: `self.0` is an image, and the index is below 512.
        unsafe { (&raw const (*self.0).by_protocol).cast::<Cell>().add(index).read() }
    }

    fields! {
        /// Bits of [`portsteer_common::image::feature`].
        features: u32;
        /// Rules for ICMP that constrain no address.
        icmp: Node;
        /// Rules for ICMPv6 that constrain no address.
        icmpv6: Node;
        /// Where lookups by addresses start.
        roots: Roots;
        /// What happens to packets that no rule matches.
        default: Decision;
        /// What happens to later fragments that no rule can judge.
        fragments: Decision;
        /// Where the rules' decisions begin, in words.
        decisions: u32;
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

/// A segment of the tables.
#[derive(Clone, Copy)]
pub struct Segment(*const u8);

impl Segment {
    /// The segment that a line is in, and where, in bytes. `None` never happens, but the verifier cannot
    /// know.
    #[inline(always)]
    pub fn of_line(line: u32) -> Option<(Self, u32)> {
        let offset = line % SEGMENT_LINES as u32 * (LINE_WORDS * size_of::<u32>()) as u32;
        Some((Self::get(line / SEGMENT_LINES as u32)?, offset))
    }

    /// A word of the tables, by its number.
    #[inline(always)]
    pub fn word_of_all(number: u32) -> Option<u32> {
        let segment = Self::get(number / SEGMENT_WORDS as u32)?;
        Some(segment.word(number % SEGMENT_WORDS as u32 * size_of::<u32>() as u32))
    }

    #[inline(always)]
    fn get(number: u32) -> Option<Self> {
        if has(feature::LARGE) {
            return TABLES.get_ptr(number).map(|segment| Self(segment.cast()));
        }
        let offset = bound::small_segment(number as usize) * size_of::<node::Segment>();
        // SAFETY: one of the value's 64 segments.
        Some(Self(unsafe { SMALL_TABLES.0.get().cast::<u8>().add(offset) }))
    }

    /// The half-word at an even offset in bytes.
    #[inline(always)]
    pub fn half_word(self, offset: u32) -> u32 {
        let offset = bound::half_word(offset as usize);
        // SAFETY: within the segment.
        u32::from(unsafe { self.0.add(offset).cast::<u16>().read() })
    }

    /// The double word at an offset in bytes that is a multiple of eight.
    #[inline(always)]
    pub fn double_word(self, offset: u32) -> u64 {
        let offset = bound::double_word(offset as usize);
        // SAFETY: within the segment.
        unsafe { self.0.add(offset).cast::<u64>().read() }
    }

    /// The word at an offset in bytes that is a multiple of four.
    #[inline(always)]
    pub fn word(self, offset: u32) -> u32 {
        let offset = bound::word(offset as usize);
        // SAFETY: within the segment.
        unsafe { self.0.add(offset).cast::<u32>().read() }
    }
}

const _: () = assert!(
    size_of::<node::Segment>() == 0x1_0000 && SMALL_SEGMENTS == 64 && OTHER_COLUMNS == 512,
    "the masks in bound.rs"
);

/// Counts a packet of `len` bytes that is not steered where the decision says.
#[inline(always)]
pub fn count(decision: Decision, len: u64) {
    count_in(decision.page(), decision, len);
}

/// The same for one that is.
#[inline(always)]
pub fn count_steered(decision: Decision, len: u64) {
    count_in(decision.page_steered(), decision, len);
}

#[inline(always)]
fn count_in(page: u32, decision: Decision, len: u64) {
    if let Some(page) = COUNTERS.get_ptr_mut(page) {
        // SAFETY: a value of `counters`, which no other program touches on this CPU while this
        // one runs; the offset is that of one of its counters.
        unsafe {
            let counter = page.byte_add(decision.page_offset()).cast::<Counter>();
            (*counter).packets += 1;
            (*counter).bytes += len;
        }
    }
}

/// A target that a rule steers to.
#[derive(Clone, Copy)]
pub struct Target {
    /// Below [`TARGET_SLOTS`].
    slot: usize,
    entry: *const steering::Target,
}

/// The target of a decision to steer.
#[inline(always)]
pub fn target_of(decision: Decision) -> Target {
    let slot = bound::target_slot(decision.slot() as usize);
    let policy = POLICY.0.get().cast_const().cast::<PolicyBanks>();
    // SAFETY: an entry of the value's table, which has a power of two of them.
    let entry =
        unsafe { (&raw const (*policy).targets.targets).cast::<steering::Target>().add(slot) };
    Target { slot, entry }
}

impl Target {
    /// Which one it is.
    #[inline(always)]
    pub fn slot(self) -> u32 {
        self.slot as u32
    }

    /// One of the numbers in [`steering::state`].
    #[inline(always)]
    pub fn state(self) -> u32 {
        // SAFETY: an aligned word of an entry. User space changes it with one atomic store.
        let state = unsafe { (&raw const (*self.entry).state).read_volatile() };
        state & steering::state::NUMBER
    }

    /// The longest frame that the interface takes, in bytes.
    #[inline(always)]
    pub fn max_len(self) -> u64 {
        // SAFETY: as for the state.
        u64::from(unsafe { (&raw const (*self.entry).max_len).read_volatile() })
    }

    /// The first addresses for 0, the second for everything else: the bytes of
    /// [`MacAddresses`] by fours, since the compiler would call a function to copy twelve.
    #[inline(always)]
    pub fn macs(self, index: usize) -> [u32; 3] {
        // SAFETY: one of the entry's two, at a multiple of four bytes. User space changes only those
        // that the state does not name.
        unsafe {
            let macs = (&raw const (*self.entry).macs).cast::<MacAddresses>().add(index & 1);
            let words = macs.cast::<u32>();
            [words.read(), words.add(1).read(), words.add(2).read()]
        }
    }
}

/// Has the kernel send the packet out of the target's interface; `false` if there is none.
#[inline(always)]
pub fn redirect_to_device(target: Target) -> bool {
    redirect((&raw const DEVICES).cast(), target.slot as u64)
}

/// Has the kernel hand the packet to the CPU at one of the target's [`SPREAD_PLACES`]; `false` if
/// there is none.
#[inline(always)]
pub fn redirect_to_cpu(target: Target, place: usize) -> bool {
    let place = bound::spread_place(place);
    let policy = POLICY.0.get().cast_const().cast::<PolicyBanks>();
    // SAFETY: within the table: the slot is below TARGET_SLOTS, the place below SPREAD_PLACES.
    let cpu = unsafe {
        (&raw const (*policy).targets.spreads)
            .cast::<Spread>()
            .add(target.slot)
            .cast::<u16>()
            .add(place)
            .read_volatile()
    };
    redirect((&raw const CPUS).cast(), u64::from(cpu))
}

/// `bpf_redirect_map`, whose answer is an XDP action: without flags, that of a broken program where
/// the map has nothing at the index.
#[inline(always)]
fn redirect(map: *const c_void, index: u64) -> bool {
    // SAFETY: the address of a map's definition, as the helper wants it.
    let action = unsafe { bpf_redirect_map(map.cast_mut(), index, 0) };
    action as u32 == XDP_REDIRECT
}

/// The first target slot that sends out of this interface.
#[inline(always)]
pub fn slot_of_device(ifindex: u32) -> Option<u32> {
    // SAFETY: a copy is made at once; user space replaces values whole.
    unsafe { DEVICE_SLOTS.get(&ifindex) }.copied()
}

/// Counts packets that did not get there: to the target in this slot, or to a CPU.
#[inline(always)]
pub fn lose_at(entry: u32, count: impl FnOnce(&mut Losses)) {
    if let Some(losses) = LOSSES.get_ptr_mut(entry) {
        // SAFETY: a value of `losses`, which no other program touches on this CPU while this one
        // runs.
        count(unsafe { &mut *losses });
    }
}

const _: () = assert!(
    core::mem::offset_of!(steering::Target, macs).is_multiple_of(4)
        && size_of::<MacAddresses>() == 12
);
const _: () = assert!(TARGET_SLOTS == 2048 && SPREAD_PLACES == 128, "the masks in bound.rs");

/// What the map `trial` holds: [`portsteer_common::trial::HeldTrial`], with the timer by the name that the kernel
/// looks for.
#[repr(C)]
struct HeldTrial {
    timer: bpf_timer,
    trial: Trial,
}

/// The kernel's `struct bpf_timer`, which it knows by its name and size.
#[repr(C, align(8))]
struct bpf_timer {
    opaque: [u64; 2],
}

/// The policy on trial, if there is one.
#[btf_map(name = "trial")]
static TRIAL: Array<HeldTrial, 1> = Array::new();

/// The timer of the policy on trial.
#[derive(Clone, Copy)]
pub struct Timer(*mut HeldTrial);

impl Timer {
    /// `None` never happens, but the verifier cannot know.
    #[inline(always)]
    pub fn get() -> Option<Self> {
        TRIAL.get_ptr_mut(0).map(Self)
    }

    /// Puts the policy that the map names in force, on trial, and starts the timer. 0 if both are done; 1 if the word
    /// was another one, and nothing is changed; less where the kernel refuses, and nothing is changed.
    #[inline(always)]
    pub fn begin(self) -> i64 {
        // CLOCK_BOOTTIME (include/uapi/linux/time.h).
        const CLOCK: u64 = 7;
        // SAFETY: the map's own timer. The function's arguments are those that the kernel calls it with.
        unsafe {
            let timer = (&raw mut (*self.0).timer).cast();
            let made = bpf_timer_init(timer, (&raw const TRIAL).cast_mut().cast(), CLOCK);
            if made != 0 {
                return made;
            }
            let set = bpf_timer_set_callback(timer, when_the_time_is_up as *mut c_void);
            if set != 0 {
                return set;
            }
            // The policy first, so that a timer that runs always has a trial to end; no signal comes in between.
            let Trial { nanoseconds, before, running } = (&raw const (*self.0).trial).read();
            if !swap_active(before, running) {
                return 1;
            }
            let started = bpf_timer_start(timer, nanoseconds, 0);
            if started != 0 {
                swap_active(running, before);
            }
            started
        }
    }
}

/// Changes the word that says which policy is in force, if it is still the one that is expected.
#[inline(always)]
fn swap_active(from: Active, to: Active) -> bool {
    const SEQ_CST: AtomicOrdering = AtomicOrdering::SeqCst;
    let word = ACTIVE.0.get().cast::<u64>();
    // SAFETY: an aligned word of a map, which all others change by atomic operations as well.
    let (_, is_swapped) =
        unsafe { atomic_cxchg::<u64, SEQ_CST, SEQ_CST>(word, from.to_bits(), to.to_bits()) };
    is_swapped
}

/// Ends the trial, unless it has ended in another way.
#[inline(never)]
extern "C" fn when_the_time_is_up(_: *mut c_void, _: *mut u32, held: *mut HeldTrial) -> i32 {
    // SAFETY: the map's value, to which nothing is written while the timer runs.
    let running = unsafe { (&raw const (*held).trial.running).read_volatile() };
    if let Some(lapsed) = running.lapse() {
        swap_active(running, lapsed);
    }
    0
}
