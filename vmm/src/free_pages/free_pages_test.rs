use super::*;
use crate::free_pages::vmcoreinfo::NOTE_MAX_BYTES;
use crate::memory::layers::{Layers, new_layer};
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// A kernel that is made up: one node, one zone, two kinds of lists, four orders, 16 MiB of RAM.
const RAM: u64 = 16 << 20;
const PAGE: u64 = 4096;
const NOTE: u64 = 0x5000;
const NOTE_BYTES: u32 = 4096;
/// Physical addresses of page tables; the lowest maps the kernel's image, then page structures.
const TABLES: [u64; 6] = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000, 0x10_4000, 0x10_5000];
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const PAGE_STRUCTS: u64 = 0xffff_ea00_0000_0000;
/// Physical addresses. The kernel's image is mapped from 2 MiB on, in one large page.
const IMAGE: u64 = 0x20_0000;
const NODE: u64 = IMAGE + 0x1000;
const SECTION_ROOTS: u64 = IMAGE + 0x3000;
const SECTIONS: u64 = IMAGE + 0x4000;
/// Page structures: 4096 of 64 bytes, mapped in one large page.
const STRUCTS: u64 = 0x40_0000;
const BUDDY: i32 = -129;
const ORDERS: u64 = 4;
const LISTS: u64 = NODE + 64;

fn kernel_address(physical: u64) -> u64 {
    KERNEL_MAP + physical
}

/// The guest's memory.
struct Guest(File);

impl Guest {
    fn new() -> Self {
        let guest = Self(new_layer(RAM).unwrap());
        let [top, upper, directory, other_upper, other_directory, _] = TABLES;
        let index = |address: u64, level: u32| (address >> (12 + 9 * (level - 1))) & 0x1ff;
        for (address, [upper, directory], large) in [
            (kernel_address(IMAGE), [upper, directory], IMAGE),
            (PAGE_STRUCTS, [other_upper, other_directory], STRUCTS),
        ] {
            guest.write(top + 8 * index(address, 4), upper | 3);
            guest.write(upper + 8 * index(address, 3), directory | 3);
            guest.write(directory + 8 * index(address, 2), large | 0x83);
        }
        guest.write(SECTION_ROOTS, kernel_address(SECTIONS));
        guest.write(SECTIONS, PAGE_STRUCTS | 0b1111);
        guest.write(NODE + 8, 1);
        for list in 0..ORDERS * 2 {
            guest.write(LISTS + 16 * list, kernel_address(LISTS + 16 * list));
        }
        guest.write_note(&text());
        guest
    }

    fn write(&self, physical: u64, word: u64) {
        self.0.write_all_at(&word.to_le_bytes(), physical).unwrap();
    }

    fn write_note(&self, text: &str) {
        let mut note = Vec::new();
        for word in [11, u32::try_from(text.len()).unwrap(), 0] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"VMCOREINFO\0\0");
        note.extend(text.as_bytes());
        self.0.write_all_at(&note, NOTE).unwrap();
    }

    /// Puts free blocks on a list, each by its page's number.
    fn free(&self, order: u64, kind: u64, pages: &[u64]) {
        let head = LISTS + 16 * (2 * order + kind);
        let elements = pages.iter().map(|page| (STRUCTS + 64 * page + 8, PAGE_STRUCTS + 64 * page + 8));
        let mut last = head;
        for ((physical, element), page) in elements.zip(pages) {
            self.write(last, element);
            self.write(physical, kernel_address(head));
            self.write(STRUCTS + 64 * page + 40, order);
            self.0.write_all_at(&BUDDY.to_le_bytes(), STRUCTS + 64 * page + 48).unwrap();
            last = physical;
        }
    }

    fn find(self) -> Result<Vec<Range<u64>>, FreePagesError> {
        self.find_most(100)
    }

    fn find_most(self, most: usize) -> Result<Vec<Range<u64>>, FreePagesError> {
        let layers = Layers::whole(self.0, RAM);
        find(&Image::new(&layers), Vmcoreinfo { address: NOTE, bytes: NOTE_BYTES }, most)
    }
}

fn text() -> String {
    let symbols = [
        ("init_top_pgt", KERNEL_MAP + TABLES[0]),
        ("contig_page_data", kernel_address(NODE)),
        ("mem_section", kernel_address(SECTION_ROOTS)),
    ];
    let symbols = symbols.map(|(name, address)| format!("SYMBOL({name})={address:x}\n")).concat();
    format!(
        "OSRELEASE=6.1\n{symbols}NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n\
         OFFSET(pglist_data.node_zones)=0\nOFFSET(pglist_data.nr_zones)=8\nSIZE(zone)=1024\n\
         OFFSET(zone.free_area)=64\nLENGTH(zone.free_area)={ORDERS}\nSIZE(free_area)=32\n\
         OFFSET(free_area.free_list)=0\nLENGTH(free_area.free_list)=2\nSIZE(list_head)=16\n\
         OFFSET(list_head.next)=0\nSIZE(page)=64\nOFFSET(page.lru)=8\nOFFSET(page._mapcount)=48\n\
         OFFSET(page.private)=40\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)={BUDDY}\nLENGTH(mem_section)=1\n\
         SIZE(mem_section)=16\nOFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=27\n"
    )
}

fn pages(first: u64, count: u64) -> Range<u64> {
    first * PAGE..(first + count) * PAGE
}

#[test]
fn all_blocks_on_all_lists_are_found() {
    let guest = Guest::new();
    assert_eq!(guest.find().unwrap(), []);
    let guest = Guest::new();
    guest.free(0, 0, &[2000, 1001, 3]);
    guest.free(0, 1, &[4]);
    guest.free(3, 1, &[2048, 2056]);
    assert_eq!(guest.find().unwrap(), [pages(3, 2), pages(1001, 1), pages(2000, 1), pages(2048, 16)]);
}

#[test]
fn nodes_in_a_table_are_looked_at_one_after_another() {
    let guest = Guest::new();
    guest.free(1, 0, &[10]);
    let table = IMAGE + 0x6000;
    guest.write(table + 8, kernel_address(NODE));
    let node = format!("SYMBOL(node_data)={:x}\nLENGTH(node_data)=2\n", kernel_address(table));
    guest.write_note(&(text() + &node));
    assert_eq!(guest.find().unwrap(), [pages(10, 2)]);
}

#[test]
fn only_the_largest_ranges_are_told_where_they_are_too_many() {
    let guest = Guest::new();
    guest.free(0, 0, &[1, 5, 9]);
    guest.free(2, 0, &[200, 100]);
    assert_eq!(guest.find_most(2).unwrap(), [pages(100, 4), pages(200, 4)]);
    let guest = Guest::new();
    guest.free(0, 0, &[1]);
    guest.free(1, 0, &[300]);
    guest.free(2, 0, &[400]);
    assert_eq!(guest.find_most(2).unwrap(), [pages(300, 2), pages(400, 4)], "in ascending order");
}

#[test]
fn a_kernel_with_five_levels_and_one_that_was_moved_are_read() {
    let free = |changes: &[(&str, String)]| {
        let guest = Guest::new();
        guest.free(1, 0, &[10]);
        let change = |text: String, (said, new): &(&str, String)| {
            assert!(text.contains(said), "{said}");
            text.replace(said, new)
        };
        guest.write_note(&changes.iter().fold(text(), change));
        // All of the kernel's addresses have one entry in the highest of five tables.
        guest.write(TABLES[5] + 8 * 0x1ff, TABLES[0] | 3);
        guest.find().unwrap()
    };
    let top = format!("{:x}", KERNEL_MAP + TABLES[0]);
    let five = ("l5_enabled)=0", "l5_enabled)=1".to_owned());
    let higher = format!("{:x}", KERNEL_MAP + TABLES[5]);
    assert_eq!(free(&[five, (&top, higher)]), [pages(10, 2)]);
    let moved = format!("{:x}", KERNEL_MAP + TABLES[0] - 0x1000);
    assert_eq!(free(&[("phys_base)=0", "phys_base)=4096".to_owned()), (&top, moved)]), [pages(10, 2)]);
}

#[test]
fn a_block_without_one_of_its_marks_is_left_out() {
    let without = |change: &dyn Fn(&Guest)| {
        let guest = Guest::new();
        guest.free(2, 0, &[100, 104, 108]);
        change(&guest);
        guest.find().unwrap()
    };
    let both = [pages(100, 4), pages(108, 4)];
    let page = STRUCTS + 64 * 104;
    assert_eq!(without(&|_| ()), [pages(100, 12)]);
    assert_eq!(without(&|guest| guest.write(page + 48, 0)), both, "it is in use");
    assert_eq!(without(&|guest| guest.write(page + 40, 1)), both, "it is of another order");
    let guest = Guest::new();
    guest.free(2, 0, &[101]);
    assert_eq!(guest.find().unwrap(), [], "no block of this order begins there");
    // The last page of RAM cannot be the first of four.
    let guest = Guest::new();
    guest.free(3, 0, &[4096 - 8]);
    guest.free(2, 0, &[4096]);
    assert_eq!(guest.find().unwrap(), [pages(4096 - 8, 8)]);
    // A block that is longer than RAM.
    let guest = Guest::new();
    guest.free(13, 0, &[0]);
    guest.write_note(&text().replace("LENGTH(zone.free_area)=4", "LENGTH(zone.free_area)=24"));
    assert_eq!(guest.find().unwrap(), []);
    // What lies between two page structures, with the marks of one.
    let guest = Guest::new();
    let between = 64 * 50 + 16;
    guest.write(LISTS, PAGE_STRUCTS + between + 8);
    guest.write(STRUCTS + between + 8, kernel_address(LISTS));
    guest.write(STRUCTS + between + 40, 0);
    guest.0.write_all_at(&BUDDY.to_le_bytes(), STRUCTS + between + 48).unwrap();
    assert_eq!(guest.find().unwrap(), []);
}

#[test]
fn lists_that_lead_nowhere_end_and_the_others_are_read() {
    // Into itself, to no page structure, to no RAM, past the end of all addresses.
    let loops = PAGE_STRUCTS + 64 * 50 + 8;
    for next in [loops, loops + 1, 0, u64::MAX, PAGE_STRUCTS + (64 << 20), kernel_address(NODE)] {
        let guest = Guest::new();
        guest.free(0, 0, &[50]);
        guest.free(1, 0, &[60]);
        guest.write(STRUCTS + 64 * 50 + 8, next);
        let expected = if next == loops { vec![pages(50, 1)] } else { vec![pages(50, 1), pages(60, 2)] };
        assert_eq!(guest.find().unwrap(), expected, "{next:#x}");
    }
}

#[test]
fn lists_without_end_are_looked_at_up_to_a_limit() {
    // So many nodes with 32 zones of 24 orders of 32 lists, all of them one empty list, before the
    // node that has some.
    let find_behind = |empty: u64| {
        let guest = Guest::new();
        guest.free(0, 0, &[50]);
        let (table, node) = (IMAGE + 0xa000, IMAGE + 0x10_0000);
        guest.write(node + 8, 32);
        guest.write(node + 64, kernel_address(node + 64));
        (0..empty).for_each(|number| guest.write(table + 8 * number, kernel_address(node)));
        guest.write(table + 8 * empty, kernel_address(NODE));
        let table =
            format!("SYMBOL(node_data)={:x}\nLENGTH(node_data)={}\n", kernel_address(table), empty + 1);
        let mut text = text() + &table;
        for (said, lie) in [
            ("SIZE(zone)=1024", "SIZE(zone)=0"),
            ("LENGTH(zone.free_area)=4", "LENGTH(zone.free_area)=24"),
            ("SIZE(free_area)=32", "SIZE(free_area)=0"),
            ("LENGTH(free_area.free_list)=2", "LENGTH(free_area.free_list)=32"),
            ("SIZE(list_head)=16", "SIZE(list_head)=0"),
        ] {
            text = text.replace(said, lie);
        }
        guest.write_note(&text);
        guest.find().unwrap()
    };
    assert_eq!(find_behind(1), [pages(50, 1)]);
    assert_eq!(find_behind(3), [], "too many lists came before");
}

#[test]
fn page_structures_that_lie_elsewhere_are_not_taken_for_pages() {
    let guest = Guest::new();
    guest.free(0, 0, &[50]);
    // A section has its page structures in a place of its own: without a virtual memory map.
    guest.write_note(&text().replace("NUMBER(SECTION_SIZE_BITS)=27", "NUMBER(SECTION_SIZE_BITS)=12"));
    assert_eq!(guest.find().unwrap(), []);
    // Programs can write there; nothing is there.
    for flags in [0x87, 0x82] {
        let guest = Guest::new();
        guest.free(0, 0, &[50]);
        guest.write(TABLES[4], STRUCTS | flags);
        assert_eq!(guest.find().unwrap(), [], "{flags:#x}");
    }
    // No kernel has such page structures, or no section.
    for (said, lie) in
        [("SIZE(page)=64", "SIZE(page)=1024"), ("LENGTH(mem_section)=1", "LENGTH(mem_section)=0")]
    {
        let guest = Guest::new();
        guest.free(0, 0, &[0]);
        guest.write_note(&text().replace(said, lie));
        assert_eq!(guest.find().unwrap(), [], "{lie}");
    }
}

#[test]
fn memory_that_may_not_have_arrived_is_not_looked_at() {
    let guest = Guest::new();
    let layers =
        Layers::check(vec![guest.0], &[0], crate::memory::extents::Extents::whole(RAM), RAM).unwrap();
    let note = Vmcoreinfo { address: NOTE, bytes: NOTE_BYTES };
    let error = find(&Image::new(&layers), note, 9).unwrap_err();
    assert!(matches!(error, FreePagesError::Read(image::ReadError::Filling(NOTE))), "{error}");
}

#[test]
fn what_is_no_note_is_refused() {
    let layers = Layers::whole(Guest::new().0, RAM);
    let image = Image::new(&layers);
    for (address, bytes) in [
        (NOTE, 0),
        (NOTE, NOTE_MAX_BYTES + 1),
        (NOTE, u32::MAX),
        (NOTE + 1, NOTE_BYTES),
        (u64::MAX, NOTE_BYTES),
        (RAM - 8, NOTE_BYTES),
        (NOTE, 64),
    ] {
        assert!(find(&image, Vmcoreinfo { address, bytes }, 9).is_err(), "{address:#x} {bytes}");
    }
    let guest = Guest::new();
    guest.0.write_all_at(b"VMCOREINFX", NOTE + 12).unwrap();
    assert!(matches!(guest.find(), Err(FreePagesError::Note(_))), "it has another name");
    // Every line is needed, but for the release and for the count of levels.
    for line in text().lines().filter(|line| !line.contains("OSRELEASE") && !line.contains("l5_enabled")) {
        let guest = Guest::new();
        guest.write_note(&text().replace(line, ""));
        assert!(matches!(guest.find(), Err(FreePagesError::Note(NoteError::Missing(_)))), "{line}");
    }
}

proptest! {
    /// Whatever a note says and whatever is on the lists, the search ends and finds RAM only.
    #[test]
    fn a_kernel_that_lies_names_only_ram(
        numbers in prop::collection::vec(prop_oneof![0..4096u64, any::<u64>(), Just(u64::MAX)], 24),
        words in prop::collection::vec((0..RAM / 8, any::<u64>()), 0..40),
    ) {
        let guest = Guest::new();
        guest.free(0, 0, &[2000, 1001, 3]);
        guest.free(3, 1, &[2048, 2056]);
        let lied = |(number, line): (usize, &str)| match (line.split_once('='), numbers.get(number)) {
            (Some((key, _)), Some(lie)) if lie % 3 == 0 => format!("{key}={lie}\n"),
            _ => format!("{line}\n"),
        };
        guest.write_note(&text().lines().enumerate().map(lied).collect::<String>());
        words.iter().for_each(|(at, word)| guest.write(8 * at, *word));
        let found = guest.find().unwrap_or_default();
        prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert!(found.iter().all(|range| range.start < range.end && range.end <= RAM && range.start % PAGE == 0));
    }
}
