//! Leaving out of the object what no one reads: the compiler's debug information. The kernel gets
//! types and source lines from BTF, which was made from it and stays.

use anyhow::{Context as _, Result};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// The object without its DWARF sections: a sixth of the size.
pub(crate) fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("bpf-linker made no ELF object")?;
    for section in &mut builder.sections {
        let is_dwarf = |name: &[u8]| name.starts_with(b".debug_");
        let name = section.name.as_slice();
        section.delete = is_dwarf(name.strip_prefix(b".rel").unwrap_or(name));
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one section, the builder in two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    builder.set_section_sizes();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the object without DWARF")?;
    Ok(stripped)
}
