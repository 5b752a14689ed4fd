//! The numbers of userfaultfd's ioctls (`linux/userfaultfd.h`), and the sizes of their structs, for
//! those who make the calls and for the filters that allow them.

use crate::ioctl::{NONE, READ, WRITE, request};

/// `struct uffdio_api`: the version, features, and ioctls.
pub type UffdioApi = [u64; 3];
/// `struct uffdio_register`: where the range begins, its length, the mode, and ioctls.
pub type UffdioRegister = [u64; 4];
/// `struct uffdio_range`: where the range begins, and its length.
pub type UffdioRange = [u64; 2];
/// `struct uffdio_zeropage`, `struct uffdio_continue` and `struct uffdio_poison`: where the range
/// begins, its length, the mode, and how many bytes were done.
pub type UffdioFill = [u64; 4];
/// `struct uffdio_writeprotect`: where the range begins, its length, and the mode.
pub type UffdioWriteprotect = [u64; 3];
/// `struct uffdio_copy`: the destination, the source, the length, the mode, and how many bytes were
/// done.
pub type UffdioCopy = [u64; 5];

const TYPE: u8 = 0xaa;

/// `USERFAULTFD_IOC_NEW`, of `/dev/userfaultfd`: makes a userfaultfd (Linux 6.1).
pub const USERFAULTFD_IOC_NEW: u64 = request(NONE, TYPE, 0x00, 0);
/// Chooses the version and the features.
pub const UFFDIO_API: u64 = request(READ | WRITE, TYPE, 0x3f, size_of::<UffdioApi>());
/// Registers a range.
pub const UFFDIO_REGISTER: u64 = request(READ | WRITE, TYPE, 0x00, size_of::<UffdioRegister>());
/// Unregisters a range. Wakes those who wait there.
pub const UFFDIO_UNREGISTER: u64 = request(READ, TYPE, 0x01, size_of::<UffdioRange>());
/// Wakes those who wait in a range.
pub const UFFDIO_WAKE: u64 = request(READ, TYPE, 0x02, size_of::<UffdioRange>());
/// Fills a range with copies of pages.
pub const UFFDIO_COPY: u64 = request(READ | WRITE, TYPE, 0x03, size_of::<UffdioCopy>());
/// Fills a range with the page of zeros.
pub const UFFDIO_ZEROPAGE: u64 = request(READ | WRITE, TYPE, 0x04, size_of::<UffdioFill>());
/// Write-protects the pages of a range, or with mode 0 ends that.
pub const UFFDIO_WRITEPROTECT: u64 = request(READ | WRITE, TYPE, 0x06, size_of::<UffdioWriteprotect>());
/// Maps the pages that the file of the mapping has (shared memory: Linux 5.14).
pub const UFFDIO_CONTINUE: u64 = request(READ | WRITE, TYPE, 0x07, size_of::<UffdioFill>());
/// Makes each access to a range fail with SIGBUS (Linux 6.6).
pub const UFFDIO_POISON: u64 = request(READ | WRITE, TYPE, 0x08, size_of::<UffdioFill>());

const _: () = {
    assert!(USERFAULTFD_IOC_NEW == 0xaa00 && UFFDIO_API == 0xc018_aa3f);
    assert!(UFFDIO_REGISTER == 0xc020_aa00 && UFFDIO_UNREGISTER == 0x8010_aa01);
    assert!(UFFDIO_WAKE == 0x8010_aa02 && UFFDIO_COPY == 0xc028_aa03);
    assert!(UFFDIO_ZEROPAGE == 0xc020_aa04 && UFFDIO_CONTINUE == 0xc020_aa07);
    assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06 && UFFDIO_POISON == 0xc020_aa08);
};

/// The version that [`UFFDIO_API`] asks for.
pub const UFFD_API: u64 = 0xaa;
/// The kernel resolves write-protect faults itself (Linux 6.7).
pub const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
/// A range's missing pages are reported, of shared memory too.
pub const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
/// Pages that the file has and the mapping has not are reported, of shared memory.
pub const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
/// Reports pages that the file of the mapping does not have.
pub const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// Write-protects pages.
pub const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// Reports pages that the file of the mapping has and that are not mapped.
pub const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;
