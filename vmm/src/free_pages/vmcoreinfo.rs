//! The VMCOREINFO note: what a kernel says of its own memory to who reads its image. Lines
//! `KEY=VALUE` in an ELF note (`kernel/crash_core.c` of Linux, later `kernel/vmcore_info.c`).

use patina_abi::link::Vmcoreinfo;
use std::collections::HashMap;

/// The longest note that is read. Linux has at most a page of text.
pub const NOTE_MAX_BYTES: u32 = 64 * 1024;
/// The header of an ELF note: the lengths of name and text, and a type.
const HEADER_BYTES: usize = 12;
const NAME: &[u8] = b"VMCOREINFO\0";
/// Names in a note are filled up to a multiple of this.
const NAME_ALIGN: usize = 4;
/// Offsets and sizes above this are of no kernel.
const OFFSET_MAX: u64 = 1 << 24;
/// The most of anything in a kernel: nodes, zones, orders, kinds of blocks, roots of sections.
const COUNT_MAX: u64 = 1 << 16;

/// Why a note cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is too long, or too short.
    #[error("the VMCOREINFO note has {0} bytes")]
    Size(u32),
    /// Something else is there.
    #[error("there is no VMCOREINFO note")]
    None,
    /// It does not say something that is needed.
    #[error("the VMCOREINFO note has no valid {0}")]
    Missing(&'static str),
}

/// Where a kernel has its lists of free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// All memory is one node, described at this address.
    One(u64),
    /// So many addresses of nodes stand at this one.
    Many {
        /// Where the first address stands.
        table: u64,
        /// How many there are.
        count: u64,
    },
}

/// What a kernel says of itself. Addresses are virtual, unless they are called physical. Offsets
/// and sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The physical address of the kernel's own page table.
    pub page_table: u64,
    /// How many levels it has.
    pub levels: u32,
    /// The nodes of memory.
    pub nodes: Nodes,
    /// In a node: its zones, one after another.
    pub node_zones: u64,
    /// In a node: how many there are, 4 bytes.
    pub node_zone_count: u64,
    /// The size of a zone.
    pub zone_bytes: u64,
    /// In a zone: its lists, by the order of the blocks.
    pub zone_areas: u64,
    /// How many orders there are.
    pub orders: u64,
    /// The size of the lists of an order.
    pub area_bytes: u64,
    /// In those: the lists.
    pub area_lists: u64,
    /// How many lists an order has.
    pub kinds: u64,
    /// The size of a list's head.
    pub list_bytes: u64,
    /// In a list's head, and in an element: the address of the next element.
    pub list_next: u64,
    /// The size of a page structure.
    pub page_bytes: u64,
    /// In a page structure: the list's element.
    pub page_lru: u64,
    /// In a page structure: the type, 4 bytes.
    pub page_type: u64,
    /// In a page structure: the order of the block, 8 bytes.
    pub page_order: u64,
    /// The type of the first page of a free block.
    pub buddy: u32,
    /// The addresses of the tables of sections.
    pub section_roots: u64,
    /// How many tables there are.
    pub section_root_count: u64,
    /// The size of a section's entry in a table.
    pub section_bytes: u64,
    /// In such an entry: where the section's page structures are.
    pub section_map: u64,
    /// A section has 2 to the power of this bytes.
    pub section_bits: u64,
}

/// How much of a note is read.
///
/// # Errors
/// It is longer than any note, or shorter.
pub fn note_bytes(note: Vmcoreinfo) -> Result<usize, NoteError> {
    let is_possible = (HEADER_BYTES as u32..=NOTE_MAX_BYTES).contains(&note.bytes);
    if is_possible { Ok(note.bytes as usize) } else { Err(NoteError::Size(note.bytes)) }
}

impl Kernel {
    /// Reads a note.
    ///
    /// # Errors
    /// It is none, or does not have what is needed.
    pub fn of_note(note: &[u8]) -> Result<Self, NoteError> {
        Self::of_text(text_of(note)?)
    }

    fn of_text(text: &str) -> Result<Self, NoteError> {
        /// Where kernels are mapped whose physical base is `phys_base`.
        const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
        let fields = Fields::of(text);
        let table =
            fields.symbol("SYMBOL(init_top_pgt)").or_else(|_| fields.symbol("SYMBOL(swapper_pg_dir)"))?;
        let phys_base = fields.number("NUMBER(phys_base)")?;
        let page_table = table.wrapping_sub(KERNEL_MAP).wrapping_add_signed(phys_base);
        let levels = if fields.number("NUMBER(pgtable_l5_enabled)") == Ok(1) { 5 } else { 4 };
        let nodes = match fields.symbol("SYMBOL(node_data)") {
            Ok(table) => Nodes::Many { table, count: fields.count("LENGTH(node_data)")? },
            Err(_) => Nodes::One(fields.symbol("SYMBOL(contig_page_data)")?),
        };
        let buddy = fields.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")?;
        Ok(Self {
            page_table,
            levels,
            nodes,
            node_zones: fields.offset("OFFSET(pglist_data.node_zones)")?,
            node_zone_count: fields.offset("OFFSET(pglist_data.nr_zones)")?,
            zone_bytes: fields.offset("SIZE(zone)")?,
            zone_areas: fields.offset("OFFSET(zone.free_area)")?,
            orders: fields.count("LENGTH(zone.free_area)")?,
            area_bytes: fields.offset("SIZE(free_area)")?,
            area_lists: fields.offset("OFFSET(free_area.free_list)")?,
            kinds: fields.count("LENGTH(free_area.free_list)")?,
            list_bytes: fields.offset("SIZE(list_head)")?,
            list_next: fields.offset("OFFSET(list_head.next)")?,
            page_bytes: fields.offset("SIZE(page)")?,
            page_lru: fields.offset("OFFSET(page.lru)")?,
            page_type: fields.offset("OFFSET(page._mapcount)")?,
            page_order: fields.offset("OFFSET(page.private)")?,
            // It is printed as a number with a sign, and is one of 32 bits.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
            buddy: buddy as u32,
            section_roots: fields.symbol("SYMBOL(mem_section)")?,
            section_root_count: fields.count("LENGTH(mem_section)")?,
            section_bytes: fields.offset("SIZE(mem_section)")?,
            section_map: fields.offset("OFFSET(mem_section.section_mem_map)")?,
            section_bits: fields.count("NUMBER(SECTION_SIZE_BITS)")?,
        })
    }
}

/// The lines of a note.
fn text_of(note: &[u8]) -> Result<&str, NoteError> {
    let word = |at: usize| {
        let bytes = note.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let text = || {
        let (name_bytes, text_bytes) = (word(0)?, word(4)?);
        let behind = note.get(HEADER_BYTES..)?;
        if behind.get(..name_bytes)? != NAME {
            return None;
        }
        let behind = behind.get(name_bytes.next_multiple_of(NAME_ALIGN)..)?;
        let text = behind.get(..text_bytes)?;
        std::str::from_utf8(text).ok()
    };
    text().ok_or(NoteError::None)
}

/// The fields of a note, by key.
struct Fields<'a>(HashMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn of(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.split_once('=')).collect())
    }

    fn value<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, NoteError> {
        self.0.get(key).copied().and_then(parse).ok_or(NoteError::Missing(key))
    }

    /// An address, in hex.
    fn symbol(&self, key: &'static str) -> Result<u64, NoteError> {
        self.value(key, |text| u64::from_str_radix(text, 16).ok())
    }

    /// A number that may be negative.
    fn number(&self, key: &'static str) -> Result<i64, NoteError> {
        #[allow(clippy::cast_possible_wrap, reason = "a kernel prints some numbers without their sign")]
        self.value(key, |text| {
            text.parse().ok().or_else(|| text.parse().ok().map(|number: u64| number as i64))
        })
    }

    /// An offset or a size.
    fn offset(&self, key: &'static str) -> Result<u64, NoteError> {
        self.value(key, |text| text.parse().ok().filter(|offset| *offset <= OFFSET_MAX))
    }

    /// How many of something there are.
    fn count(&self, key: &'static str) -> Result<u64, NoteError> {
        self.value(key, |text| text.parse().ok().filter(|count| *count <= COUNT_MAX))
    }
}
