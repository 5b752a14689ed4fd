//! Which pages of a mapping are the process's own, and which of these have been written since one looked last.
//!
//! The first is in the page tables: PAGEMAP_SCAN of /proc/self/pagemap, and before Linux 6.7 the table itself. The second needs
//! a userfaultfd that resolves write-protect faults by itself (UFFD_FEATURE_WP_ASYNC, Linux 6.7): looking protects the pages
//! again, in the same step, so that no write is missed.

use crate::memory::extents::PAGE_BYTES;
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// Ranges taken from the kernel at a time.
const BATCH: usize = 512;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Which private pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// All.
    All,
    /// Those that were written since the last time this was asked. The mapping is [`WriteTracker::track`]ed.
    Written,
}

/// What is asked of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It is the process's own, in memory or swapped out: a copy of a file's page, not the file's page.
    Private(Pages),
    /// It is mapped, whoever's it is, and was written since the last time this was asked.
    Written,
}

impl Wanted {
    fn is_private(self) -> bool {
        matches!(self, Self::Private(_))
    }
}

/// The page tables of this process, to be read.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens them; this needs /proc, so it comes before the jail.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn open() -> rustix::io::Result<Self> {
        let file = File::open("/proc/self/pagemap");
        file.map(Self).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// The pages of a private mapping that are no longer its file's: byte ranges in the region, ascending.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn private(&self, region: &GuestRegionMmap, pages: Pages) -> rustix::io::Result<Vec<Range<u64>>> {
        self.pages(region.as_ptr() as u64, region.len(), Wanted::Private(pages))
    }

    /// The pages of a shared mapping that were written since the last time this was asked; the mapping is
    /// [`WriteTracker::track`]ed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn written(&self, region: &GuestRegionMmap) -> rustix::io::Result<Vec<Range<u64>>> {
        self.pages(region.as_ptr() as u64, region.len(), Wanted::Written)
    }

    fn pages(&self, start: u64, bytes: u64, wanted: Wanted) -> rustix::io::Result<Vec<Range<u64>>> {
        match self.scan(start, bytes, wanted) {
            Err(Errno::NOTTY) if wanted == Wanted::Private(Pages::All) => self.read_table(start, bytes),
            other => other,
        }
    }

    fn scan(&self, start: u64, bytes: u64, wanted: Wanted) -> rustix::io::Result<Vec<Range<u64>>> {
        let end = start + bytes;
        let mut found = Vec::new();
        let mut batch = [PageRegion::default(); BATCH];
        let mut at = start;
        while at < end {
            let file = if wanted.is_private() { PAGE_IS_FILE } else { 0 };
            let is_tracked = wanted != Wanted::Private(Pages::All);
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: if is_tracked { PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC } else { 0 },
                start: at,
                end,
                vec: batch.as_mut_ptr() as u64,
                vec_len: BATCH as u64,
                // Not of a file, and there is something.
                category_inverted: file,
                category_mask: file | if is_tracked { PAGE_IS_WRITTEN } else { 0 },
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT,
                ..ScanArgument::default()
            };
            // SAFETY: the argument and the batch that it points to are live, and the kernel writes `vec_len` entries
            // at most.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let count = usize::try_from(count).map_err(|_| last_error())?;
            for region in batch.iter().take(count) {
                push(&mut found, region.start - start..region.end - start);
            }
            at = argument.walk_end;
        }
        Ok(found)
    }

    /// Entries of 64 bits a page: 63 present, 62 swapped, 61 a file's or shared.
    fn read_table(&self, start: u64, bytes: u64) -> rustix::io::Result<Vec<Range<u64>>> {
        const ENTRIES: usize = 8192;
        let mut found = Vec::new();
        let mut table = vec![0; 8 * ENTRIES];
        let (mut page, pages) = (0, bytes / PAGE_BYTES);
        while page < pages {
            let entries = (pages - page).min(ENTRIES as u64);
            let part = &mut table[..8 * entries as usize];
            let read = self.0.read_exact_at(part, 8 * (start / PAGE_BYTES + page));
            read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            for entry in part.chunks_exact(8) {
                let entry = entry.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
                let (is_there, is_file) = (entry >> 62 != 0, entry >> 61 & 1 != 0);
                if is_there && !is_file {
                    push(&mut found, page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
                }
                page += 1;
            }
        }
        Ok(found)
    }
}

/// Has the kernel note which pages of a mapping are written.
#[derive(Debug)]
pub struct WriteTracker(OwnedFd);

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
pub const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
pub const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;

impl WriteTracker {
    /// Makes one; this needs rights, so it comes before the jail. None: the kernel cannot do it.
    #[must_use]
    pub fn open() -> Option<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = [UFFD_API, UFFD_FEATURE_WP_ASYNC, 0];
        // SAFETY: `struct uffdio_api` is three u64.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
        (done == 0).then_some(Self(fd))
    }

    /// From now on [`Pages::Written`] can be asked of this region. Asked for the first time it is all private pages.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn track(&self, region: &GuestRegionMmap) -> rustix::io::Result<()> {
        let mut range = [region.as_ptr() as u64, region.len(), UFFDIO_REGISTER_MODE_WP, 0];
        // SAFETY: `struct uffdio_register` is four u64. Faults are resolved by the kernel, so nobody need read this fd.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }

    /// No longer.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget(&self, region: &GuestRegionMmap) -> rustix::io::Result<()> {
        let mut range = [region.as_ptr() as u64, region.len()];
        // SAFETY: `struct uffdio_range` is two u64.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Adds a range, as part of the last one where it goes on there.
fn push(found: &mut Vec<Range<u64>>, range: Range<u64>) {
    match found.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => found.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layers::{Layers, new_layer};
    use crate::memory::reserve;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn both_ways_find_the_private_pages() {
        const RAM: u64 = 64 << 20;
        let memory = reserve(RAM).expect("address space");
        let file = new_layer(RAM).expect("a memfd");
        file.write_all_at(&[1; 4 * 4096], 0).expect("pages of the file");
        Layers::whole(file, RAM).map_over(&memory).expect("a view");
        let region = memory.iter().next().expect("a region");
        let map = Pagemap::open().expect("the page tables");
        assert_eq!(map.private(region, Pages::All).expect("a scan"), []);
        // Every third page of a part, so that there are more ranges than fit in a batch; and the last page.
        let written: Vec<u64> = (0..3000).step_by(3).chain([RAM / 4096 - 1]).collect();
        for page in &written {
            memory.write_obj(7u8, GuestAddress(page * 4096)).expect("a write");
        }
        let read: u8 = memory.read_obj(GuestAddress(4096)).expect("a read");
        assert_eq!(read, 1);
        let expected: Vec<_> = written.iter().map(|page| page * 4096..(page + 1) * 4096).collect();
        assert_eq!(map.private(region, Pages::All).expect("the private pages"), expected);
        let table = map.read_table(region.as_ptr() as u64, RAM).expect("the table");
        assert_eq!(table, expected);
    }

    #[test]
    #[ignore = "needs root and Linux 6.7"]
    fn what_was_written_since_is_found_and_nothing_else() {
        const RAM: u64 = 4 << 20;
        let Some(tracker) = WriteTracker::open() else {
            panic!("Linux 6.7 or later and the right to make a userfaultfd are needed for this test");
        };
        let memory = reserve(RAM).expect("address space");
        let file = new_layer(RAM).expect("a memfd");
        file.write_all_at(&[1; 8 * 4096], 0).expect("pages of the file");
        Layers::whole(file, RAM).map_over(&memory).expect("a view");
        let region = memory.iter().next().expect("a region");
        let map = Pagemap::open().expect("the page tables");
        let write = |page: u64| memory.write_obj(page as u8, GuestAddress(page * 4096)).expect("a write");
        let written = || map.private(region, Pages::Written).expect("the written pages");
        let pages = |pages: &[u64]| pages.iter().map(|p| p * 4096..(p + 1) * 4096).collect::<Vec<_>>();
        write(1);
        tracker.track(region).expect("tracking");
        write(5);
        assert_eq!(written(), pages(&[1, 5]));
        assert_eq!(written(), []);
        write(5);
        write(7);
        write(900);
        assert_eq!(written(), pages(&[5, 7, 900]));
        assert_eq!(written(), []);
        assert_eq!(map.private(region, Pages::All).expect("all").len(), 4);
        let value: u8 = memory.read_obj(GuestAddress(7 * 4096)).expect("a read");
        assert_eq!(value, 7);
    }

    #[test]
    #[ignore = "needs root and Linux 6.7"]
    fn a_shared_mapping_is_tracked_until_it_is_forgotten() {
        let tracker = WriteTracker::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
        let (_memfd, memory) = crate::memory::allocate(4 << 20).expect("RAM");
        let region = memory.iter().next().expect("a region");
        let map = Pagemap::open().expect("the page tables");
        let write = |page: u64| memory.write_obj(page as u8, GuestAddress(page * 4096)).expect("a write");
        write(1);
        write(2);
        tracker.track(region).expect("tracking");
        let first = 4096..3 * 4096;
        assert_eq!(map.written(region).expect("the first look"), std::slice::from_ref(&first));
        write(2);
        write(9);
        assert_eq!(map.written(region).expect("the second look"), [2 * 4096..3 * 4096, 9 * 4096..10 * 4096]);
        tracker.forget(region).expect("forgetting");
        assert!(map.written(region).is_err());
    }
}
