//! The bpf(2) calls that aya does not make: map values behind a pointer (an image is three
//! megabytes), forced detach, the interface behind a link, map shapes, test runs with a repeat
//! count of their own, and programs of a few raw instructions for tests and benchmarks.
//!
//! With the laboratory's ioctls this is the only user-space module with `unsafe`.

use std::{
    ffi::{CStr, CString},
    io, mem,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use bytemuck::AnyBitPattern;

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_map_info, bpf_map_type,
    bpf_prog_info, bpf_prog_type,
};

/// A zeroed argument for bpf(2).
fn attributes() -> bpf_attr {
    // SAFETY: a union of structures of integers, for which zeroes are a value; the kernel demands
    // that whatever a command does not use is zero.
    unsafe { mem::zeroed() }
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the argument lives through the call and its size is right; the pointers that the
    // callers put into it point to buffers that live as long and have the sizes given with them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same, for commands that return a file descriptor.
fn bpf_fd(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// What a map looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    /// [`MMAPABLE`] and [`READ_ONLY`], or nothing.
    pub flags: u32,
}

/// The flag `BPF_F_RDONLY_PROG`: programs may not write. Maps of devices have it, asked for or not.
pub const READ_ONLY: u32 = aya_obj::generated::BPF_F_RDONLY_PROG;

/// The flag `BPF_F_MMAPABLE`: the map's memory can be mapped by user space.
pub const MMAPABLE: u32 = aya_obj::generated::BPF_F_MMAPABLE;

/// The flag `BPF_F_NO_PREALLOC`: memory is taken entry by entry. Tries must have it.
pub const NO_PREALLOC: u32 = aya_obj::generated::BPF_F_NO_PREALLOC;

/// The map types that portsteer uses, and its benchmark.
pub mod map_type {
    use super::bpf_map_type;

    pub const ARRAY: u32 = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    pub const PERCPU_ARRAY: u32 = bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32;
    pub const HASH: u32 = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
    pub const LRU_HASH: u32 = bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32;
    pub const DEVMAP: u32 = bpf_map_type::BPF_MAP_TYPE_DEVMAP as u32;
    pub const CPUMAP: u32 = bpf_map_type::BPF_MAP_TYPE_CPUMAP as u32;
    pub const PROG_ARRAY: u32 = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
    pub const LPM_TRIE: u32 = bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32;
    pub const ARRAY_OF_MAPS: u32 = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
}

/// Creates a map. `inner` is the template of a map of maps.
pub fn map_create(
    name: &str,
    shape: MapShape,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    map_create_typed(name, shape, inner, None)
}

/// What a map's keys and values are, by the numbers that types have in BTF that is loaded.
#[derive(Debug, Clone, Copy)]
pub struct MapTypes<'a> {
    pub btf: BorrowedFd<'a>,
    pub key: u32,
    pub value: u32,
}

/// The same, with types: the kernel finds timers in values by them.
pub fn map_create_typed(
    name: &str,
    shape: MapShape,
    inner: Option<BorrowedFd<'_>>,
    types: Option<MapTypes<'_>>,
) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_MAP_CREATE reads.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    if let Some(types) = types {
        create.btf_fd = raw(types.btf);
        create.btf_key_type_id = types.key;
        create.btf_value_type_id = types.value;
    }
    create.map_type = shape.map_type;
    create.key_size = shape.key_size;
    create.value_size = shape.value_size;
    create.max_entries = shape.max_entries;
    create.map_flags = shape.flags;
    create.inner_map_fd = inner.map_or(0, raw);
    copy_name(&mut create.map_name, name);
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attributes)
}

/// At most 15 bytes, the rest stays zero.
fn copy_name(field: &mut [libc::c_char; 16], name: &str) {
    for (to, from) in field.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
}

/// Writes the value of `key`.
///
/// `value` has the map's value size; for a per-CPU map that times the number of possible CPUs.
pub fn map_update(fd: BorrowedFd<'_>, key: u32, value: &[u8]) -> io::Result<()> {
    map_insert(fd, &key.to_ne_bytes(), value)
}

/// The same for a key that is no number: as long as the map's key size says.
pub fn map_insert(fd: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_MAP_UPDATE_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = raw(fd);
    element.key = key.as_ptr() as u64;
    element.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Reads the value of `key`; `value` is as long as [`map_update`] says.
pub fn map_lookup(fd: BorrowedFd<'_>, key: u32, value: &mut [u8]) -> io::Result<()> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_MAP_LOOKUP_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = raw(fd);
    element.key = &raw const key as u64;
    element.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes).map(drop)
}

/// Removes a key, which may be missing.
pub fn map_delete(fd: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_MAP_DELETE_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = raw(fd);
    element.key = &raw const key as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attributes) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// The key that comes after this one in a hash map, in its own order: the first without one. `None` at the end.
pub fn map_next_key(fd: BorrowedFd<'_>, key: Option<u32>) -> io::Result<Option<u32>> {
    let mut next = 0_u32;
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_MAP_GET_NEXT_KEY reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = raw(fd);
    element.key = key.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64);
    element.__bindgen_anon_1.next_key = &raw mut next as u64;
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attributes) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps user space from ever changing a map again: the verifier takes its values as constants then, if programs may
/// not change it either ([`READ_ONLY`]).
pub fn map_freeze(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_MAP_FREEZE reads.
    unsafe { &mut attributes.__bindgen_anon_2 }.map_fd = raw(fd);
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attributes).map(drop)
}

/// Loads types (kernel Documentation/bpf/btf.rst).
pub fn btf_load(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_BTF_LOAD reads.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = btf.as_ptr() as u64;
    load.btf_size = btf.len() as u32;
    bpf_fd(bpf_cmd::BPF_BTF_LOAD, &mut attributes)
}

/// Values of an array map that was made with `BPF_F_MMAPABLE`, mapped into memory.
pub struct Mapping<T: AnyBitPattern> {
    /// Dangling where there are none.
    value: NonNull<T>,
    /// In bytes.
    len: usize,
}

impl<T: AnyBitPattern> Mapping<T> {
    /// Maps the values of `map`, each of which is a `T`.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let shape = map_shape(map)?;
        Self::of(map, 0..shape.max_entries as usize)
    }

    /// Maps some of the values. Where that is not all of them, values have to be whole pages.
    pub fn of(map: BorrowedFd<'_>, which: Range<usize>) -> io::Result<Self> {
        let shape = map_shape(map)?;
        // The kernel keeps values at multiples of eight bytes.
        let fits = size_of::<T>().is_multiple_of(8) || shape.max_entries == 1;
        if shape.value_size as usize != size_of::<T>() || !fits {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the value has another size"));
        }
        if which.start > which.end || which.end > shape.max_entries as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are fewer values"));
        }
        if which.is_empty() {
            return Ok(Self { value: NonNull::dangling(), len: 0 });
        }
        // The kernel rounds the values up to whole pages, and so does mmap(2); it refuses to begin elsewhere.
        let len = size_of::<T>() * which.len();
        let offset = libc::off_t::try_from(size_of::<T>() * which.start)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
            )
        };
        match NonNull::new(address.cast::<T>()) {
            Some(value) if address != libc::MAP_FAILED => Ok(Self { value, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The values, to be written to.
    ///
    /// # Safety
    ///
    /// Nobody else writes to them while the reference lives, and no program reads them.
    #[must_use]
    pub unsafe fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: the whole mapping, which is aligned; any bits are a value, and the caller vouches for there
        // being no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.value.as_ptr(), self.len / size_of::<T>()) }
    }

    /// A word of the first value, for access that others may make as well.
    #[must_use]
    pub fn word(&self, of: impl FnOnce(*mut T) -> *mut u32) -> &AtomicU32 {
        let word = of(self.value.as_ptr());
        let offset = word as usize - self.value.as_ptr() as usize;
        assert!(offset + size_of::<u32>() <= self.len && offset.is_multiple_of(4));
        // SAFETY: an aligned word within the mapping, which lives as long as `self`.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// The same for a double word.
    #[must_use]
    pub fn double_word(&self, of: impl FnOnce(*mut T) -> *mut u64) -> &AtomicU64 {
        let word = of(self.value.as_ptr());
        let offset = word as usize - self.value.as_ptr() as usize;
        assert!(offset + size_of::<u64>() <= self.len && offset.is_multiple_of(8));
        // SAFETY: an aligned double word within the mapping, which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// A part of the first value, to be written to.
    ///
    /// # Safety
    ///
    /// Nobody else writes to that part while the reference lives, and no program reads it.
    #[must_use]
    pub unsafe fn part_mut<U: AnyBitPattern>(
        &mut self,
        of: impl FnOnce(*mut T) -> *mut U,
    ) -> &mut U {
        let part = of(self.value.as_ptr());
        let offset = part as usize - self.value.as_ptr() as usize;
        assert!(offset + size_of::<U>() <= self.len && part.is_aligned());
        // SAFETY: within the mapping and aligned, any bits are a value, and the caller vouches for
        // there being no other reference.
        unsafe { &mut *part }
    }
}

impl<T: AnyBitPattern> std::fmt::Debug for Mapping<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({:p}, {} bytes)", self.value, self.len)
    }
}

impl<T: AnyBitPattern> Drop for Mapping<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping that `of` has made, to which no reference is left.
            unsafe { libc::munmap(self.value.as_ptr().cast(), self.len) };
        }
    }
}

/// Pins an object under a path on a bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_OBJ_PIN reads.
    let object = unsafe { &mut attributes.__bindgen_anon_4 };
    object.pathname = path.as_ptr() as u64;
    object.bpf_fd = raw(fd);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_OBJ_GET reads.
    unsafe { &mut attributes.__bindgen_anon_4 }.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attributes)
}

/// A structure of integers that the kernel fills in for a descriptor.
fn info<T: Copy>(fd: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: the callers ask for structures of integers and arrays of them.
    let mut info: T = unsafe { mem::zeroed() };
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_OBJ_GET_INFO_BY_FD reads.
    let request = unsafe { &mut attributes.info };
    request.bpf_fd = raw(fd);
    request.info_len = size_of::<T>() as u32;
    request.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// What the map looks like.
pub fn map_shape(fd: BorrowedFd<'_>) -> io::Result<MapShape> {
    let info: bpf_map_info = info(fd)?;
    Ok(MapShape {
        map_type: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}

/// A map's name.
pub fn map_name(fd: BorrowedFd<'_>) -> io::Result<String> {
    let info: bpf_map_info = info(fd)?;
    let bytes = info.name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
    Ok(String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned())
}

/// An XDP link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpLinkInfo {
    /// The link's own number, which no other link has had since the machine started.
    pub id: u32,
    /// The program that it holds.
    pub program_id: u32,
    /// The interface, as its own network namespace numbers it; 0 once the interface or the
    /// attachment is gone.
    pub ifindex: u32,
}

/// Where an XDP link is attached.
pub fn xdp_link_info(fd: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
    let info: bpf_link_info = info(fd)?;
    // SAFETY: for an XDP link the kernel fills this member in; for any other it is integers too.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(XdpLinkInfo { id: info.id, program_id: info.prog_id, ifindex })
}

/// The tag of the program that a link holds: the kernel's hash over its instructions, as hexadecimal digits. From
/// `/proc/self/fdinfo`, since asking for a program by its id takes CAP_SYS_ADMIN.
pub fn link_program_tag(fd: BorrowedFd<'_>) -> io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let tag = text.lines().find_map(|line| line.strip_prefix("prog_tag:"));
    let missing = || io::Error::new(io::ErrorKind::NotFound, "the kernel does not tell the tag");
    tag.map(|tag| tag.trim().to_owned()).ok_or_else(missing)
}

/// Takes a link off its interface, whoever else holds it.
pub fn link_detach(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_detach.link_fd = raw(fd);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes).map(drop)
}

/// Puts another program in the place of the one that a link holds. No packet sees neither.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_update.link_fd = raw(link);
    attributes.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Attaches a program to a raw tracepoint, until the descriptor is closed and no pin is left.
pub fn link_raw_tracepoint(program: BorrowedFd<'_>, tracepoint: &CStr) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_RAW_TRACEPOINT_OPEN reads.
    let open = unsafe { &mut attributes.raw_tracepoint };
    open.name = tracepoint.as_ptr() as u64;
    open.prog_fd = raw(program);
    bpf_fd(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes)
}

/// A map's id.
pub fn map_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let info: bpf_map_info = info(fd)?;
    Ok(info.id)
}

/// How long the machine has been up, its sleep included, in nanoseconds (`CLOCK_BOOTTIME`): what the kernel's
/// timers go by. Nobody sets that clock.
pub fn boot_time() -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a structure of the right type that lives through the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// How many instructions the verifier followed when it looked at a program (`verified_insns`).
pub fn verified_instructions(program: BorrowedFd<'_>) -> io::Result<u32> {
    let info: bpf_prog_info = info(program)?;
    Ok(info.verified_insns)
}

/// Opens a loaded program by its id.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_PROG_GET_FD_BY_ID reads.
    unsafe { &mut attributes.__bindgen_anon_6 }.__bindgen_anon_1.prog_id = id;
    bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes)
}

/// One eBPF instruction (RFC 9669 section 3).
#[derive(Debug, Clone, Copy)]
pub struct Instruction {
    pub code: u8,
    /// Destination register in the low four bits, source in the high.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

impl Instruction {
    /// Puts a map into a register, which takes two (`BPF_PSEUDO_MAP_FD`).
    #[must_use]
    pub fn load_map(register: u8, map: BorrowedFd<'_>) -> [Self; 2] {
        let first = Self {
            code: 0x18,
            registers: register | 1 << 4,
            offset: 0,
            immediate: map.as_raw_fd(),
        };
        [first, Self { code: 0, registers: 0, offset: 0, immediate: 0 }]
    }
}

/// `BPF_F_XDP_HAS_FRAGS`: the program takes frames in several buffers.
pub const HAS_FRAGS: u32 = 1 << 5;

/// Loads an XDP program of raw instructions that takes frames in several buffers, as portsteer's own
/// does: for probes, and stubs in tests and benchmarks.
pub fn load_xdp(name: &str, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    load_xdp_with_flags(name, instructions, HAS_FRAGS)
}

/// The same with these `prog_flags`.
pub fn load_xdp_with_flags(
    name: &str,
    instructions: &[Instruction],
    flags: u32,
) -> io::Result<OwnedFd> {
    load(
        name,
        bpf_prog_type::BPF_PROG_TYPE_XDP,
        bpf_attach_type::BPF_XDP as u32,
        flags,
        instructions,
    )
}

/// Loads a program of raw instructions for [`link_raw_tracepoint`]: for tests.
pub fn load_raw_tracepoint(name: &str, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    load(name, bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0, instructions)
}

fn load(
    name: &str,
    kind: bpf_prog_type,
    attach_type: u32,
    flags: u32,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    let encoded: Vec<[u8; 8]> = instructions
        .iter()
        .map(|insn| {
            let mut bytes = [insn.code, insn.registers, 0, 0, 0, 0, 0, 0];
            bytes[2..4].copy_from_slice(&insn.offset.to_ne_bytes());
            bytes[4..8].copy_from_slice(&insn.immediate.to_ne_bytes());
            bytes
        })
        .collect();
    let program = Program {
        name,
        kind: kind as u32,
        attach_type,
        flags,
        instructions: encoded.as_flattened(),
        info: None,
    };
    prog_load(&program, &mut [])
}

/// A program as the kernel takes it.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    pub name: &'a str,
    /// `BPF_PROG_TYPE_*`.
    pub kind: u32,
    /// `expected_attach_type`.
    pub attach_type: u32,
    /// `prog_flags`.
    pub flags: u32,
    /// Eight bytes each (RFC 9669 section 3).
    pub instructions: &'a [u8],
    pub info: Option<ProgramInfo<'a>>,
}

/// What types tell about a program.
#[derive(Debug, Clone, Copy)]
pub struct ProgramInfo<'a> {
    /// BTF that is loaded.
    pub btf: BorrowedFd<'a>,
    /// Records of `struct bpf_func_info`, and the size of one in bytes.
    pub functions: (&'a [u8], usize),
    /// Records of `struct bpf_line_info`, and the size of one in bytes.
    pub lines: (&'a [u8], usize),
}

/// `struct bpf_insn` of aya-obj, as bytes.
pub fn instruction_bytes(instructions: &[bpf_insn]) -> &[u8] {
    const _: () = assert!(size_of::<bpf_insn>() == INSTRUCTION_LEN);
    // SAFETY: structures of eight bytes without padding.
    unsafe { std::slice::from_raw_parts(instructions.as_ptr().cast(), size_of_val(instructions)) }
}

const INSTRUCTION_LEN: usize = 8;

/// Loads a program. With room for it, the verifier writes down what it did.
pub fn prog_load(program: &Program<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    // A signal interrupts the verifier; libbpf tries as often.
    const ATTEMPTS: usize = 5;
    let mut attributes = attributes();
    // SAFETY: the structure that BPF_PROG_LOAD reads.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = program.kind;
    load.insns = program.instructions.as_ptr() as u64;
    load.insn_cnt = (program.instructions.len() / INSTRUCTION_LEN) as u32;
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    load.expected_attach_type = program.attach_type;
    load.prog_flags = program.flags;
    if let Some(info) = &program.info {
        load.prog_btf_fd = raw(info.btf);
        let count = |(records, size): (&[u8], usize)| records.len().checked_div(size).unwrap_or(0);
        load.func_info = info.functions.0.as_ptr() as u64;
        load.func_info_rec_size = info.functions.1 as u32;
        load.func_info_cnt = count(info.functions) as u32;
        load.line_info = info.lines.0.as_ptr() as u64;
        load.line_info_rec_size = info.lines.1 as u32;
        load.line_info_cnt = count(info.lines) as u32;
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = log.len() as u32;
    }
    copy_name(&mut load.prog_name, program.name);
    let mut attempt = 1;
    loop {
        match bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attributes) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => {
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Attaches an XDP program to an interface until the descriptor is closed.
pub fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attributes.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attributes.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attributes.link_create.flags = flags;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

/// How to run a program outside its hook (kernel Documentation/bpf/bpf_prog_run.rst).
#[derive(Debug, Clone, Copy)]
pub struct TestRun<'a> {
    /// The frame, at least 14 bytes.
    pub frame: &'a [u8],
    /// How often; 1 or more. The program sees what it left behind the time before.
    pub repeat: u32,
    /// `BPF_F_TEST_XDP_LIVE_FRAMES`: what the program returns is done.
    pub live: bool,
    /// The length of the first buffer in bytes, if the frame is to have several. The kernel
    /// allows at most a page less its own overhead.
    pub first_buffer: Option<u32>,
}

/// What a test run gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestRunResult {
    /// The program's return value, an XDP action.
    pub action: u32,
    /// Whole nanoseconds per run, as the kernel has measured.
    pub nanoseconds: u32,
}

/// `struct xdp_md` as a test run takes it.
#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Runs a program on a frame.
pub fn test_run(program: BorrowedFd<'_>, run: TestRun<'_>) -> io::Result<TestRunResult> {
    run_test(program, run, &mut [])
}

/// Runs a program once on a frame, and returns also what it made of the frame, whose length it must
/// not change.
pub fn test_run_frame(
    program: BorrowedFd<'_>,
    frame: &[u8],
) -> io::Result<(TestRunResult, Vec<u8>)> {
    let mut out = frame.to_vec();
    let run = TestRun { frame, repeat: 1, live: false, first_buffer: None };
    let result = run_test(program, run, &mut out)?;
    Ok((result, out))
}

/// `out` is filled with the beginning of the frame as the program left it.
fn run_test(
    program: BorrowedFd<'_>,
    run: TestRun<'_>,
    out: &mut [u8],
) -> io::Result<TestRunResult> {
    const LIVE_FRAMES: u32 = 1 << 1;
    let context = run.first_buffer.map(|data_end| XdpContext { data_end, ..XdpContext::default() });
    let mut attributes = attributes();
    attributes.test.prog_fd = raw(program);
    // SAFETY: the structure that BPF_PROG_TEST_RUN reads.
    let test = unsafe { &mut attributes.test };
    test.data_in = run.frame.as_ptr() as u64;
    test.data_size_in = run.frame.len() as u32;
    if !out.is_empty() {
        test.data_out = out.as_mut_ptr() as u64;
        test.data_size_out = out.len() as u32;
    }
    test.repeat = run.repeat;
    if let Some(context) = &context {
        test.ctx_in = std::ptr::from_ref(context) as u64;
        test.ctx_size_in = size_of::<XdpContext>() as u32;
    }
    if run.live {
        test.flags = LIVE_FRAMES;
        test.batch_size = 64;
    }
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes)?;
    // SAFETY: the kernel has filled the structure in.
    let test = unsafe { &attributes.test };
    Ok(TestRunResult { action: test.retval, nanoseconds: test.duration })
}

/// Waits until every program that was running when this was called has ended.
///
/// The kernel waits for a grace period when a slot of a map of maps is replaced
/// (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c), so a map of maps made for this purpose is
/// a barrier. It takes some milliseconds. `membarrier(2)` would do as well, but is refused where
/// `nohz_full` is set.
pub fn wait_for_programs() -> io::Result<()> {
    let word = MapShape {
        map_type: map_type::ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
    };
    let inner = map_create("barrier_inner", word, None)?;
    let outer_shape = MapShape { map_type: map_type::ARRAY_OF_MAPS, ..word };
    let outer = map_create("barrier", outer_shape, Some(inner.as_fd()))?;
    map_update(outer.as_fd(), 0, &inner.as_raw_fd().to_ne_bytes())
}

/// Takes the exclusive lock of an open directory; `false` if somebody else has it. The lock ends
/// with the descriptor, so also with the process.
pub fn try_lock(directory: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: a descriptor that lives through the call, and no pointers.
    let result = unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EWOULDBLOCK) { Ok(false) } else { Err(error) }
}
