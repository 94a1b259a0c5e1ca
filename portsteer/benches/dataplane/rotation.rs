//! Many packets instead of one. A test run repeats one frame, whose addresses the caches and the
//! predictors of branches know by heart after a moment. So another program comes first: it writes
//! addresses and ports from a table into the frame, those of the next packet each time, and calls the
//! program under test. What it costs by itself is known from an empty program in that place.
//!
//! It is one program for all of them, so that it stands at the same place in memory for everybody, and
//! it is attached, as all that is measured is. The checksum of an IPv4 header stands in the table, too: who is
//! behind the stack's door verifies it.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use portsteer::dataplane::sys::{self, MapShape, TestRun, map_type};

use crate::{
    Result,
    arena::{Attached, Engine as _, Lane, attach},
    family::Family,
    instructions::{
        add, add_register, call, copy, exit, load_double, load_word, mask, multiply, set,
        set_to_map, set_to_value, skip_if_greater, store_double_of, store_word_of,
    },
    policies::Mixed,
    probes::{PROBES, Probes, REWRITTEN_AT},
    programs::{DATA, DATA_END},
};

const BPF_TAIL_CALL: i32 = 12;
/// What the program returns if there is nobody to call.
const XDP_ABORTED: u32 = 0;

pub struct Rotation {
    family: Family,
    program: Attached,
    /// The number of the next packet, less multiples of the table's length.
    position: OwnedFd,
    table: OwnedFd,
    /// Who is called.
    next: OwnedFd,
    _lane: Lane,
}

impl Rotation {
    /// For frames of this IP version.
    pub fn new(family: Family, lane: Lane) -> Result<Self> {
        let value = |name: &str, len: usize| {
            sys::map_create(name, MapShape { value_size: len as u32, ..word() }, None)
        };
        let position = value("position", 4)?;
        let table = value("probes", PROBES * family.entry_len())?;
        let shape = MapShape { map_type: map_type::PROG_ARRAY, ..word() };
        let next = sys::map_create("next", shape, None)?;
        let program = load(family, &position, &table, &next)?;
        let program = attach(program, &lane)?;
        Ok(Self { family, program, position, table, next, _lane: lane })
    }

    /// Takes these packets from now on.
    pub fn fill(&self, probes: &Probes) -> Result<()> {
        Ok(sys::map_update(self.table.as_fd(), 0, probes.table())?)
    }

    /// A frame to be rewritten.
    pub fn frame(&self) -> Vec<u8> {
        Mixed::packet(self.family).frame()
    }

    /// Calls this program from now on.
    pub fn lead_to(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        sys::map_update(self.next.as_fd(), 0, &program.as_raw_fd().to_ne_bytes())
    }

    /// The program that comes first; from the first packet of the table on.
    pub fn rewound(&self) -> Result<BorrowedFd<'_>> {
        sys::map_update(self.position.as_fd(), 0, &0u32.to_ne_bytes())?;
        Ok(self.program.program().ok_or("it is attached")?)
    }

    /// What the program that it leads to returns for the first packets of the table.
    pub fn verdicts(&self, frame: &[u8], count: usize) -> Result<Vec<u32>> {
        let program = self.rewound()?;
        let run = TestRun { frame, repeat: 1, live: false, first_buffer: None };
        let verdicts = (0..count).map(|_| Ok(sys::test_run(program, run)?.action));
        verdicts.collect()
    }
}

/// The shape of an array of one word.
fn word() -> MapShape {
    MapShape { map_type: map_type::ARRAY, key_size: 4, value_size: 4, max_entries: 1, flags: 0 }
}

fn load(family: Family, position: &OwnedFd, table: &OwnedFd, next: &OwnedFd) -> Result<OwnedFd> {
    let (at, len) = (REWRITTEN_AT as i16, family.rewritten_len() as i16);
    let mut rewrite = Vec::new();
    // Which packet it is, and that the next one has the next number.
    rewrite.extend(set_to_value(4, position));
    rewrite.extend([load_word(5, 4, 0), copy(0, 5), add(0, 1), store_word_of(4, 0, 0)]);
    // Where its fields are.
    rewrite.extend([mask(5, PROBES as i32 - 1), multiply(5, family.entry_len() as i32)]);
    rewrite.extend(set_to_value(4, table));
    rewrite.push(add_register(4, 5));
    // By eights, and four bytes that may be left.
    for field in (0..len - 7).step_by(8) {
        rewrite.extend([load_double(0, 4, field), store_double_of(2, at + field, 0)]);
    }
    if len % 8 != 0 {
        rewrite.extend([load_word(0, 4, len - 4), store_word_of(2, at + len - 4, 0)]);
    }
    rewrite.extend(set_to_map(2, next));
    rewrite.extend([set(3, 0), call(BPF_TAIL_CALL)]);
    let mut program = vec![
        load_word(2, 1, DATA),
        load_word(3, 1, DATA_END),
        copy(4, 2),
        add(4, i32::from(at + len)),
        skip_if_greater(4, 3, rewrite.len()),
    ];
    program.extend(rewrite);
    program.extend([set(0, XDP_ABORTED as i32), exit()]);
    Ok(sys::load_xdp("rotation", &program)?)
}
