//! Where a member stands in one of the kernel's structures, from the kernel's own type information
//! (Documentation/bpf/btf.rst). Pure.

/// The kernel's type information.
pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// A type: its kind, whether its members' offsets are packed, the number of its entries, and what
/// follows the fixed part.
struct Type<'a> {
    name: u32,
    kind: u32,
    packed: bool,
    entries: &'a [u8],
}

struct Btf<'a> {
    /// The first has the id 1.
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// How long the part of a type is that follows the fixed one; `None` for kinds that are not known.
fn entries_len(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => count * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => count * 8,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.first_chunk().copied()?);
        if magic != MAGIC {
            return None;
        }
        let part = |offset_at, len_at| {
            let start = number(bytes, 4)? as usize + number(bytes, offset_at)? as usize;
            bytes.get(start..start.checked_add(number(bytes, len_at)? as usize)?)
        };
        let (mut rest, strings) = (part(8, 12)?, part(16, 20)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let info = number(rest, 4)?;
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            let end = 12 + entries_len(kind, count)?;
            types.push(Type {
                name: number(rest, 0)?,
                kind,
                packed: info >> 31 != 0,
                entries: rest.get(12..end)?,
            });
            rest = &rest[end..];
        }
        Some(Self { types, strings })
    }

    fn is_called(&self, offset: u32, name: &str) -> bool {
        self.strings
            .get(offset as usize..)
            .and_then(|text| text.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The offset of a member in bits, also in the nameless structures within.
    fn member(&self, within: &Type<'_>, name: &str) -> Option<u32> {
        within.entries.chunks_exact(12).find_map(|entry| {
            let (called, kind, offset) = (number(entry, 0)?, number(entry, 4)?, number(entry, 8)?);
            let offset = if within.packed { offset & 0xff_ffff } else { offset };
            if self.is_called(called, name) {
                return Some(offset);
            }
            let inner = self.types.get((kind as usize).checked_sub(1)?)?;
            let nameless = self.is_called(called, "") && matches!(inner.kind, STRUCT | UNION);
            Some(offset + if nameless { self.member(inner, name)? } else { return None })
        })
    }
}

/// The offset of a structure's member, in bytes.
pub(super) fn member_offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let btf = Btf::parse(btf)?;
    let found = btf.types.iter().find(|found| {
        found.kind == STRUCT && !found.entries.is_empty() && btf.is_called(found.name, structure)
    })?;
    let bits = btf.member(found, member)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct first { int a; struct { int pad; int b; }; }`, with a pointer before it.
    fn sample() -> Vec<u8> {
        let strings = b"\0first\0a\0pad\0b\0int\0";
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let types: Vec<u8> = [
            words(&[15, 1 << 24, 4, 32]),
            words(&[0, 2 << 24, 1]),
            words(&[0, 4 << 24 | 2, 8, 9, 1, 0, 13, 1, 32]),
            words(&[1, 4 << 24 | 2, 12, 7, 1, 0, 0, 3, 32]),
        ]
        .concat::<u8>();
        let mut bytes: Vec<u8> = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let header: Vec<u8> =
            words(&[24, 0, types.len() as u32, types.len() as u32, strings.len() as u32]);
        bytes.extend(header);
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_also_in_nameless_structures() {
        let btf = sample();
        assert_eq!(member_offset(&btf, "first", "a"), Some(0));
        assert_eq!(member_offset(&btf, "first", "pad"), Some(4));
        assert_eq!(member_offset(&btf, "first", "b"), Some(8));
        assert_eq!(member_offset(&btf, "first", "c"), None);
        assert_eq!(member_offset(&btf, "fir", "a"), None);
    }

    #[test]
    fn what_is_cut_off_is_no_type_information() {
        let btf = sample();
        for len in 0..btf.len() {
            assert_eq!(member_offset(&btf[..len], "first", "a"), None, "{len}");
        }
    }
}
