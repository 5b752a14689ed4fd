//! Writes the boot data that the kernel finds in RAM when it starts.

use super::{cmdline, kernel::Entry, layout, mptable};
use crate::memory::{self, Memory};
use crate::sys::plain::Plain;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

const E820_RAM: u32 = 1;

/// RAM has no room at the address of a table.
#[derive(Debug, thiserror::Error)]
#[error("write {what} at guest address {at:#x}")]
pub struct TablesError {
    what: &'static str,
    at: u64,
    source: vm_memory::GuestMemoryError,
}

/// Writes all data that `entry`'s boot protocol requires, for `vcpus` CPUs and the command line.
///
/// # Errors
/// RAM is too small for it.
pub fn write(memory: &Memory, entry: Entry, vcpus: u8, line: &str) -> Result<(), TablesError> {
    debug_assert!(line.len() < layout::CMDLINE_MAX_BYTES, "{}", cmdline::CmdlineError::Length(line.len()));
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    put(memory, "the command line", layout::CMDLINE, &bytes)?;
    put(memory, "the MP table", layout::MPTABLE, &mptable::build(vcpus))?;
    match entry {
        Entry::Pvh(_) => write_start_info(memory),
        Entry::Linux64(_) => write_zero_page(memory, line.len()),
    }
}

fn put(memory: &Memory, what: &'static str, at: u64, bytes: &[u8]) -> Result<(), TablesError> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(|source| TablesError { what, at, source })
}

/// RAM as the kernel may use it: (start, length). The MP table's page is left out.
fn usable_ram(memory: &Memory) -> Vec<(u64, u64)> {
    let bytes = match memory.last_addr().raw_value() + 1 {
        end if end > memory::HOLE_END => end - (memory::HOLE_END - memory::HOLE_START),
        end => end,
    };
    let mut ranges = vec![(0, layout::LOW_RAM_END)];
    for (start, length) in memory::layout(bytes) {
        let from = start.max(layout::HIGH_RAM_START);
        ranges.push((from, start + length - from));
    }
    ranges
}

fn write_start_info(memory: &Memory) -> Result<(), TablesError> {
    const MAGIC: u32 = 0x336e_c578;
    let map = usable_ram(memory);
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    put(memory, "the PVH start info", layout::START_INFO, Plain(info).as_slice())?;
    for (at, (addr, size)) in (layout::MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(map) {
        let entry = hvm_memmap_table_entry { addr, size, type_: E820_RAM, reserved: 0 };
        put(memory, "the PVH memory map", at, Plain(entry).as_slice())?;
    }
    Ok(())
}

fn write_zero_page(memory: &Memory, cmdline_bytes: usize) -> Result<(), TablesError> {
    const LOADER_UNDEFINED: u8 = 0xff;
    const PAGE_PRESENT_WRITE: u64 = 0x3;
    const PAGE_2M: u64 = 0x80;
    let mut params = boot_params::default();
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = 0x5372_6448; // "HdrS"
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = 0x0100_0000;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    let map = usable_ram(memory);
    params.e820_entries = map.len() as u8;
    for (entry, (addr, size)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: E820_RAM };
    }
    put(memory, "the zero page", layout::ZERO_PAGE, Plain(params).as_slice())?;

    put(memory, "the page tables", layout::PML4, &(layout::PDPT | PAGE_PRESENT_WRITE).to_le_bytes())?;
    put(memory, "the page tables", layout::PDPT, &(layout::PD | PAGE_PRESENT_WRITE).to_le_bytes())?;
    let directory: Vec<u8> =
        (0..512u64).flat_map(|page| ((page << 21) | PAGE_2M | PAGE_PRESENT_WRITE).to_le_bytes()).collect();
    put(memory, "the page tables", layout::PD, &directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_mp_table_and_the_hole() {
        let memory = memory::allocate(4 << 30).expect("RAM").1;
        assert_eq!(
            usable_ram(&memory),
            [(0, 0x9_fc00), (0x10_0000, (3 << 30) - 0x10_0000), (4 << 30, 1 << 30)]
        );
    }
}
