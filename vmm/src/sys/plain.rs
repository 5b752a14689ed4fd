//! Views linux-loader's structs, plain old data of the boot protocols, as bytes.

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::ByteValued;

/// A struct without padding, of which every bit pattern is valid.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Plain<T: Copy>(pub T);

const _: () = {
    assert!(size_of::<hvm_start_info>() == 56);
    assert!(size_of::<hvm_memmap_table_entry>() == 24);
    assert!(size_of::<boot_params>() == 4096);
};

// SAFETY: repr(C) integers without padding.
unsafe impl ByteValued for Plain<hvm_start_info> {}
// SAFETY: repr(C) integers without padding.
unsafe impl ByteValued for Plain<hvm_memmap_table_entry> {}
// SAFETY: repr(C, packed) integers.
unsafe impl ByteValued for Plain<boot_params> {}
