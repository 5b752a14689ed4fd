use super::*;

const ROOT: u64 = 0x1000;
const VIRTUAL: u64 = 0xffff_8000_0040_2abc;

/// Page tables at 0x1000, 0x2000 … that map [`VIRTUAL`]'s page to 0x9000 with `flags` in the last
/// entry.
fn memory_with(flags: u64) -> Memory {
    let memory = crate::memory::allocate(1 << 20).expect("RAM").1;
    for (level, table) in [(4, ROOT), (3, 0x2000), (2, 0x3000), (1, 0x4000)] {
        let index = VIRTUAL >> (12 + 9 * (level - 1)) & 0x1ff;
        let entry = if level == 1 { 0x9000 | flags } else { (table + 0x1000) | PRESENT | WRITABLE | USER };
        memory.write_obj(entry, GuestAddress(table + index * 8)).expect("a table");
    }
    memory
}

fn mode(user: bool) -> Mode {
    Mode { cr3: ROOT, levels: Some(4), write_protect: true, user, smap: false }
}

#[test]
fn a_page_is_found_and_marked() {
    let memory = memory_with(PRESENT | WRITABLE);
    assert_eq!(translate(&memory, &mode(false), VIRTUAL, Access::Write), Ok(0x9abc));
    let index = VIRTUAL >> 12 & 0x1ff;
    let entry: u64 = memory.read_obj(GuestAddress(0x4000 + index * 8)).expect("the entry");
    assert_eq!(entry, 0x9000 | PRESENT | WRITABLE | ACCESSED | DIRTY);
}

#[test]
fn faults_carry_the_error_code_and_address() {
    let fault = |code| Err(Exception { vector: 14, error_code: Some(code), cr2: Some(VIRTUAL) });
    assert_eq!(translate(&memory_with(0), &mode(false), VIRTUAL, Access::Read), fault(0));
    assert_eq!(translate(&memory_with(PRESENT), &mode(false), VIRTUAL, Access::Write), fault(3));
    assert_eq!(translate(&memory_with(PRESENT | WRITABLE), &mode(true), VIRTUAL, Access::Read), fault(5));
    let smap = Mode { smap: true, ..mode(false) };
    assert_eq!(translate(&memory_with(PRESENT | USER), &smap, VIRTUAL, Access::Read), fault(1));
}

#[test]
fn tables_outside_of_ram_are_a_fault_not_a_panic() {
    let memory = memory_with(PRESENT);
    let lost = Mode { cr3: 0xffff_ffff_f000, ..mode(false) };
    assert_eq!(translate(&memory, &lost, VIRTUAL, Access::Read), Err(Exception::GP));
}
