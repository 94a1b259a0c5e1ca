//! Which interface has which slot. A slot is the number in the names of the interface's pins.

use std::os::fd::BorrowedFd;

use bytemuck::{Pod, Zeroable};
use portsteer_common::{INTERFACE_SLOTS, image::feature};

use super::{
    Error,
    sys::{self, MapShape, map_type},
};

/// How an interface was attached.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum AttachedMode {
    Native,
    Generic,
}

impl AttachedMode {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// What the map `interfaces` says about a slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Slot {
    /// The number of the policy that was the last to want the interface.
    pub(super) generation: u64,
    /// The interface's index, 0 in a slot that was never used.
    pub(super) ifindex: u32,
    /// 1 native, 2 generic.
    mode: u32,
    /// The interface's name, padded with zeroes.
    name: [u8; 16],
    /// What the attached program was loaded with: bits of [`portsteer_common::image::feature`].
    pub(super) features: u32,
    /// The id of the map `tables` that it uses.
    pub(super) tables: u32,
    /// How many pages the counters have that it counts in.
    pub(super) pages: u32,
    reserved: u32,
    /// SHA-256 of the object that it came from.
    pub(super) object: [u8; 32],
}

/// The features of a program whose interface belongs to one bank alone.
pub(super) const ALONE: u32 = feature::FIRST_BANK_ALONE | feature::SECOND_BANK_ALONE;

/// That of a program whose interface belongs to this bank alone.
pub(super) const fn alone(bank: usize) -> u32 {
    if bank == 0 { feature::FIRST_BANK_ALONE } else { feature::SECOND_BANK_ALONE }
}

pub(super) const SHAPE: MapShape = MapShape {
    map_type: map_type::ARRAY,
    key_size: 4,
    value_size: size_of::<Slot>() as u32,
    max_entries: INTERFACE_SLOTS,
    flags: 0,
};

impl Slot {
    /// What is said about an interface; of the program, nothing yet.
    pub(super) fn new(ifindex: u32, name: &str, mode: AttachedMode) -> Self {
        let mode = match mode {
            AttachedMode::Native => 1,
            AttachedMode::Generic => 2,
        };
        Self {
            generation: 0,
            ifindex,
            mode,
            name: padded(name),
            features: 0,
            tables: 0,
            pages: 0,
            reserved: 0,
            object: [0; 32],
        }
    }

    pub(super) fn mode(&self) -> AttachedMode {
        if self.mode == 2 { AttachedMode::Generic } else { AttachedMode::Native }
    }

    pub(super) fn name(&self) -> String {
        unpadded(&self.name)
    }

    pub(super) fn set_name(&mut self, name: &str) {
        self.name = padded(name);
    }

    pub(super) fn read(map: BorrowedFd<'_>, slot: u32) -> Result<Self, Error> {
        let mut record = Self::zeroed();
        sys::map_lookup(map, slot, bytemuck::bytes_of_mut(&mut record))
            .map_err(Error::io("reading the interfaces' slots"))?;
        Ok(record)
    }

    pub(super) fn write(&self, map: BorrowedFd<'_>, slot: u32) -> Result<(), Error> {
        sys::map_update(map, slot, bytemuck::bytes_of(self))
            .map_err(Error::io("writing the interfaces' slots"))
    }
}

/// An interface's name as maps have it: padded with zeroes.
pub(super) fn padded(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// The name without its padding.
pub(super) fn unpadded(padded: &[u8; 16]) -> String {
    String::from_utf8_lossy(padded).trim_end_matches('\0').to_owned()
}
