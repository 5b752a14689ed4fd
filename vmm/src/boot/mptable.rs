//! Builds the MP table (Intel MultiProcessor Specification 1.4). It describes the CPUs, the IOAPIC
//! and the interrupt routing to a kernel without ACPI. ISA interrupt n is wired to IOAPIC input n,
//! edge-triggered.

use super::layout;

/// Inputs of KVM's IOAPIC.
const IOAPIC_INPUTS: u8 = 24;
const APIC_VERSION: u8 = 0x14;
const ISA_BUS: u8 = 0;

/// The bytes of the MP table for `vcpus` CPUs, to be written at [`layout::MPTABLE`].
#[must_use]
pub fn build(vcpus: u8) -> Vec<u8> {
    let (entries, count) = entries(vcpus);
    let mut table = floating_pointer();
    table.extend(configuration(&entries, count));
    debug_assert!(table.len() <= layout::MPTABLE_MAX_BYTES);
    table
}

/// Sets the byte at `index` so that all bytes add up to zero.
fn seal(bytes: &mut [u8], index: usize) {
    bytes[index] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[index] = sum.wrapping_neg();
}

fn floating_pointer() -> Vec<u8> {
    const LENGTH_PARAGRAPHS: u8 = 1;
    const CHECKSUM: usize = 10;
    let configuration = layout::MPTABLE as u32 + 16;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(configuration.to_le_bytes());
    pointer.extend([LENGTH_PARAGRAPHS, 4, 0, 0, 0, 0, 0, 0]);
    seal(&mut pointer, CHECKSUM);
    pointer
}

fn configuration(entries: &[u8], count: u16) -> Vec<u8> {
    const HEADER_BYTES: u16 = 44;
    const CHECKSUM: usize = 7;
    let mut table = b"PCMP".to_vec();
    table.extend((HEADER_BYTES + entries.len() as u16).to_le_bytes());
    table.extend([4, 0]); // revision, checksum
    table.extend(b"PATINA  PATINA VM   ");
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]); // no extended table
    table.extend(entries);
    seal(&mut table, CHECKSUM);
    table
}

fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    const PROCESSOR: u8 = 0;
    const BUS: u8 = 1;
    const IOAPIC: u8 = 2;
    const IO_INTERRUPT: u8 = 3;
    const LOCAL_INTERRUPT: u8 = 4;
    const ENABLED: u8 = 1;
    const BOOT_CPU: u8 = 2;
    const FAMILY_6: u32 = 0x600;
    const FPU_AND_APIC: u32 = 0x201;
    const EXT_INT: u8 = 3;
    const NMI: u8 = 1;
    const ALL_CPUS: u8 = 0xff;

    let ioapic_id = vcpus;
    let mut bytes = Vec::new();
    let mut count = 0;
    let mut add = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    for cpu in 0..vcpus {
        let flags = ENABLED | if cpu == 0 { BOOT_CPU } else { 0 };
        let mut entry = vec![PROCESSOR, cpu, APIC_VERSION, flags];
        entry.extend(FAMILY_6.to_le_bytes());
        entry.extend(FPU_AND_APIC.to_le_bytes());
        entry.extend([0; 8]);
        add(&entry);
    }
    add(&[[BUS, ISA_BUS].as_slice(), b"ISA   "].concat());
    add(&[[IOAPIC, ioapic_id, 0x11, ENABLED].as_slice(), &layout::IOAPIC.to_le_bytes()].concat());
    for input in 0..IOAPIC_INPUTS {
        add(&[IO_INTERRUPT, 0, 0, 0, ISA_BUS, input, ioapic_id, input]);
    }
    add(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_CPUS, 1]);
    (bytes, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_cpus_fit_and_both_sums_are_zero() {
        let table = build(16);
        assert!(table.len() <= layout::MPTABLE_MAX_BYTES, "{}", table.len());
        let (pointer, configuration) = table.split_at(16);
        assert_eq!(pointer.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(configuration.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(u16::from_le_bytes([configuration[4], configuration[5]]) as usize, configuration.len());
        assert_eq!(u16::from_le_bytes([configuration[34], configuration[35]]), 16 + 2 + 24 + 2);
    }
}
