//! The lists of free pages of a kernel.

use super::image::{Image, ReadError};
use super::vmcoreinfo::{Kernel, Nodes};
use patina_control::PAGE_BYTES;
use std::collections::HashMap;
use std::ops::Range;

/// The most zones of a node, and the most lists of an order: Linux has up to 6, and 7.
const FEW_MAX: u64 = 32;
/// The most orders: Linux has 11.
const ORDERS_MAX: u64 = 24;
/// The most lists that are looked at, which bounds the time where all are empty: Linux has some
/// hundreds of a node.
const LISTS_MAX: u64 = 1 << 16;
/// The most blocks that are looked at, which bounds the time: a list of a guest that lies may go on
/// for ever.
const BLOCKS_MAX: u64 = 4 << 20;
/// The largest page structure that is looked at.
const PAGE_STRUCT_MAX_BYTES: u64 = 512;
/// How many pages of memory are kept, and how many translations.
const KEPT_MAX: usize = 4096;
/// What a section's entry has in the lowest bits of an address: flags.
const SECTION_FLAGS: u64 = PAGE_BYTES - 1;

/// Where the guest leads nowhere: this list, zone or node is left out. Or nothing can be read.
type Found<T> = Result<Option<T>, ReadError>;

/// `Some`, or what is left out.
macro_rules! found {
    ($found:expr) => {
        match $found {
            Some(found) => found,
            None => return Ok(None),
        }
    };
}

/// A search.
pub struct Lists<'a> {
    image: &'a Image<'a>,
    kernel: &'a Kernel,
    /// Pages of memory, by their physical addresses.
    pages: HashMap<u64, Box<[u8; PAGE_BYTES as usize]>>,
    /// Pages of memory, by their virtual addresses.
    translated: HashMap<u64, u64>,
    /// Whether a section has its page structures where all have them.
    sections: HashMap<u64, bool>,
    /// Where the structure of page 0 is, or would be.
    page_structs: u64,
    lists_left: u64,
    blocks_left: u64,
    found: Vec<Range<u64>>,
}

impl<'a> Lists<'a> {
    /// In this image, for this kernel.
    #[must_use]
    pub fn new(image: &'a Image<'a>, kernel: &'a Kernel) -> Self {
        Self {
            image,
            kernel,
            pages: HashMap::new(),
            translated: HashMap::new(),
            sections: HashMap::new(),
            page_structs: 0,
            lists_left: LISTS_MAX,
            blocks_left: (image.bytes() / PAGE_BYTES).min(BLOCKS_MAX),
            found: Vec::new(),
        }
    }

    /// All free blocks, in the order in which they are found.
    ///
    /// # Errors
    /// Memory has not arrived, or cannot be read.
    pub fn blocks(mut self) -> Result<Vec<Range<u64>>, ReadError> {
        let is_known = (1..=PAGE_STRUCT_MAX_BYTES).contains(&self.kernel.page_bytes);
        let Some(page_structs) = self.section_map(0)?.filter(|_| is_known) else { return Ok(Vec::new()) };
        self.page_structs = page_structs;
        match self.kernel.nodes {
            Nodes::One(node) => drop(self.node(node)?),
            Nodes::Many { table, count } => {
                for number in 0..count {
                    match self.word_at(table, 8 * number)? {
                        None => break,
                        Some(0) => {}
                        Some(node) => drop(self.node(node)?),
                    }
                }
            }
        }
        Ok(self.found)
    }

    fn node(&mut self, node: u64) -> Found<()> {
        let kernel = self.kernel;
        let count = found!(self.half_word(node.wrapping_add(kernel.node_zone_count))?);
        for zone in 0..u64::from(count).min(FEW_MAX) {
            let areas = node
                .wrapping_add(kernel.node_zones)
                .wrapping_add(zone * kernel.zone_bytes)
                .wrapping_add(kernel.zone_areas);
            for order in 0..kernel.orders.min(ORDERS_MAX) {
                let lists = areas.wrapping_add(order * kernel.area_bytes).wrapping_add(kernel.area_lists);
                for kind in 0..kernel.kinds.min(FEW_MAX) {
                    self.lists_left = found!(self.lists_left.checked_sub(1));
                    self.list(lists.wrapping_add(kind * kernel.list_bytes), order)?;
                }
            }
        }
        Ok(Some(()))
    }

    /// Takes the blocks of a list: up to its end, or to the first one that cannot be one.
    fn list(&mut self, head: u64, order: u64) -> Found<()> {
        let mut element = found!(self.word_at(head, self.kernel.list_next)?);
        while element != head {
            self.blocks_left = found!(self.blocks_left.checked_sub(1));
            let page = element.wrapping_sub(self.kernel.page_lru);
            let number = found!(self.page_number(page)?);
            if let Some(block) = self.block(page, number, order)? {
                self.found.push(block);
            }
            element = found!(self.word_at(element, self.kernel.list_next)?);
        }
        Ok(Some(()))
    }

    /// The page whose structure is at `page`. None: nothing there is a page structure.
    fn page_number(&mut self, page: u64) -> Found<u64> {
        let offset = found!(page.checked_sub(self.page_structs));
        let number = offset / self.kernel.page_bytes;
        let address = found!(number.checked_mul(PAGE_BYTES));
        if !offset.is_multiple_of(self.kernel.page_bytes) || self.image.in_ram(address, PAGE_BYTES).is_none()
        {
            return Ok(None);
        }
        let section = found!(address.checked_shr(self.section_bits()));
        let is_same = match self.sections.get(&section) {
            Some(is_same) => *is_same,
            None => {
                let is_same = self.section_map(section)? == Some(self.page_structs);
                self.sections.insert(section, is_same);
                is_same
            }
        };
        Ok(is_same.then_some(number))
    }

    /// A block with all marks of a free one.
    fn block(&mut self, page: u64, number: u64, order: u64) -> Found<Range<u64>> {
        let kind = found!(self.half_word(page.wrapping_add(self.kernel.page_type))?);
        let marked = found!(self.word_at(page, self.kernel.page_order)?);
        if kind != self.kernel.buddy || marked != order || !number.is_multiple_of(1 << order) {
            return Ok(None);
        }
        Ok(self.image.in_ram(number * PAGE_BYTES, PAGE_BYTES << order))
    }

    fn section_bits(&self) -> u32 {
        u32::try_from(self.kernel.section_bits).unwrap_or(u32::MAX)
    }

    /// Where the structure of page 0 would be, if all page structures followed those of this
    /// section without a gap. With a virtual memory map this is the same for all sections.
    fn section_map(&mut self, section: u64) -> Found<u64> {
        let kernel = self.kernel;
        let in_root = found!(PAGE_BYTES.checked_div(kernel.section_bytes).filter(|count| *count > 0));
        let root = section / in_root;
        if root >= kernel.section_root_count {
            return Ok(None);
        }
        let sections = found!(self.word_at(kernel.section_roots, 8 * root)?.filter(|root| *root != 0));
        let entry = sections.wrapping_add(section % in_root * kernel.section_bytes);
        let map = found!(self.word_at(entry, kernel.section_map)?);
        Ok(Some(map & !SECTION_FLAGS).filter(|map| *map != 0))
    }

    /// 8 bytes at a virtual address.
    fn word_at(&mut self, address: u64, offset: u64) -> Found<u64> {
        let bytes = self.virtual_bytes(address.wrapping_add(offset))?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    /// 4 bytes at a virtual address.
    fn half_word(&mut self, address: u64) -> Found<u32> {
        Ok(self.virtual_bytes(address)?.map(u32::from_le_bytes))
    }

    /// None also if they lie in two pages: what a kernel has is aligned.
    fn virtual_bytes<const N: usize>(&mut self, address: u64) -> Found<[u8; N]> {
        let within = address % PAGE_BYTES;
        let page = found!(self.translate(address - within)?);
        self.physical_bytes(page | within)
    }

    fn physical_bytes<const N: usize>(&mut self, address: u64) -> Found<[u8; N]> {
        let within = address % PAGE_BYTES;
        let page = address - within;
        if !self.pages.contains_key(&page) {
            if self.pages.len() >= KEPT_MAX {
                self.pages.clear();
            }
            let mut bytes = Box::new([0; PAGE_BYTES as usize]);
            match self.image.read(page, bytes.as_mut_slice()) {
                Ok(()) => {}
                Err(error) if error.is_guests() => return Ok(None),
                Err(error) => return Err(error),
            }
            self.pages.insert(page, bytes);
        }
        let bytes = self.pages.get(&page).and_then(|bytes| bytes.get(within as usize..)?.first_chunk());
        Ok(bytes.copied())
    }

    /// The physical address of the page at a virtual one, by the kernel's own page table (Intel SDM
    /// volume 3, 4.5).
    fn translate(&mut self, page: u64) -> Found<u64> {
        const PRESENT: u64 = 1;
        const USER: u64 = 1 << 2;
        const LARGE: u64 = 1 << 7;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        if let Some(physical) = self.translated.get(&page) {
            return Ok(Some(*physical));
        }
        let mut table = self.kernel.page_table & ADDRESS;
        for level in (1..=self.kernel.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = found!(self.physical_bytes(table + ((page >> shift) & 0x1ff) * 8)?);
            let entry = u64::from_le_bytes(entry);
            let is_leaf = level == 1 || (level <= 3 && entry & LARGE != 0);
            // What programs can write is never the kernel's.
            if entry & PRESENT == 0 || (is_leaf && entry & USER != 0) {
                return Ok(None);
            }
            if is_leaf {
                let within = (1u64 << shift) - 1;
                let physical = entry & ADDRESS & !within | page & within;
                if self.translated.len() >= KEPT_MAX {
                    self.translated.clear();
                }
                self.translated.insert(page, physical);
                return Ok(Some(physical));
            }
            table = entry & ADDRESS;
        }
        Ok(None)
    }
}
