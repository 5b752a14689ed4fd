//! Finds the private pages of a mapping, and those of them that were written since the last search.
//!
//! Private pages are found in the page tables: with PAGEMAP_SCAN of /proc/self/pagemap, or before
//! Linux 6.7 by reading that file. Written pages need [`super::userfault`]. A search write-protects
//! the pages that it finds in the same step, so that no write is missed.

use crate::ranges::{join, near, without};
use patina_control::PAGE_BYTES;
use patina_daemon::kernel;
use patina_jail::ioctl::{READ, WRITE, last_error, request};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub const PAGEMAP_SCAN: libc::c_ulong = request(READ | WRITE, b'f', 16, size_of::<ScanArgument>());
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Ranges taken from the kernel at a time.
const BATCH: usize = 512;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
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

const _: () = {
    assert!(size_of::<ScanArgument>() == 96 && PAGEMAP_SCAN == 0xc060_6610);
    assert!(size_of::<PageRegion>() == 24);
};

/// The private pages to search for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// All private pages. Entries without a page that [`Pages::WrittenAtRest`] has protected count
    /// as well, so it is not for a mapping that was tracked.
    All,
    /// Those that were written since the last search. The mapping must be
    /// [`Userfault::track`](super::userfault::Userfault::track)ed.
    Written,
    /// As [`Pages::Written`], but faster. Only while nothing writes: vCPUs and devices are stopped.
    WrittenAtRest,
}

/// The arguments of PAGEMAP_SCAN: which pages to find, and whether to protect them in the same
/// step.
#[derive(Clone, Copy)]
struct Question {
    flags: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Private pages, in memory or swapped out: copies of a file's pages, not the file's pages
/// themselves. The kernel looks up the page behind every entry for this. The kernel's page of zeros
/// is not private either: a pager maps it for a page of zeros, and a write replaces it by a copy.
const PRIVATE: Question = Question {
    flags: 0,
    category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
    category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
    category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    return_mask: PAGE_IS_PRESENT,
};
/// Private pages that are not protected. Protects them.
const PRIVATE_WRITTEN: Question = Question {
    flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
    category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_WRITTEN,
    ..PRIVATE
};
/// Mapped pages, private or not, that are not protected. Protects them.
const MAPPED_WRITTEN: Question =
    Question { category_inverted: 0, category_mask: PAGE_IS_WRITTEN, ..PRIVATE_WRITTEN };
/// All entries that are not protected. For exactly these arguments the kernel has a fast path, many
/// times faster, which reads only the entries of the page tables. It also finds entries without a
/// page, if their page table exists.
const UNPROTECTED: Question = Question {
    flags: PM_SCAN_CHECK_WPASYNC,
    category_inverted: 0,
    category_mask: PAGE_IS_WRITTEN,
    category_anyof_mask: 0,
    return_mask: PAGE_IS_WRITTEN,
};
/// As [`UNPROTECTED`], and protects what it finds.
const PROTECT: Question = Question { flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, ..UNPROTECTED };

/// Most calls that protect pages. Each makes KVM drop its mappings of the whole range, so ranges
/// should be small, but not too many.
const PROTECT_CALLS_MAX: usize = 64;
/// Pages at most so far apart are searched in one call.
const NEAR_BYTES: u64 = 16 * PAGE_BYTES;
/// Before this version of Linux the fast path takes some pages that are swapped out or being moved
/// for protected ones, so writes to them would be missed.
const FAST_SINCE: (u32, u32) = (6, 10);

/// The page tables of this process, open for reading.
#[derive(Debug)]
pub struct Pagemap {
    table: File,
    /// Whether the fast path may be used.
    is_fast: bool,
    /// Whether the kernel is asked with PAGEMAP_SCAN at all.
    scans: bool,
}

impl Pagemap {
    /// Opens the page tables. This needs /proc, so it must be called before the jail.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn open() -> rustix::io::Result<Self> {
        let table = File::open("/proc/self/pagemap");
        let table = table.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // If the release is not known, the slow path is used, which is always correct.
        let release = kernel::release().unwrap_or_default();
        let is_fast = kernel::version(&release) >= Some(FAST_SINCE);
        Ok(Self { table, is_fast, scans: true })
    }

    /// The same, but without PAGEMAP_SCAN, for a kernel whose answers to it are wrong. Only
    /// [`Pages::All`] can be searched for then.
    #[must_use]
    pub fn without_scans(self) -> Self {
        Self { scans: false, ..self }
    }

    /// The pages of a private mapping that are no longer the file's own, as ascending byte ranges
    /// in the region.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn private(&self, region: &GuestRegionMmap, pages: Pages) -> rustix::io::Result<Vec<Range<u64>>> {
        let (start, bytes) = (region.as_ptr() as u64, region.len());
        match pages {
            Pages::All if !self.scans => self.read_table(start, bytes),
            Pages::All => match self.scan(start, 0..bytes, PRIVATE) {
                Err(Errno::NOTTY) => self.read_table(start, bytes),
                other => other,
            },
            Pages::Written if self.is_fast => self.written_beside(start, bytes),
            Pages::WrittenAtRest if self.is_fast => self.written_at_rest(start, bytes),
            Pages::Written | Pages::WrittenAtRest => self.scan(start, 0..bytes, PRIVATE_WRITTEN),
        }
    }

    /// The pages of a shared mapping that were written since the last search. The mapping must be
    /// [`Userfault::track`](super::userfault::Userfault::track)ed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn written(&self, region: &GuestRegionMmap) -> rustix::io::Result<Vec<Range<u64>>> {
        self.scan(region.as_ptr() as u64, 0..region.len(), MAPPED_WRITTEN)
    }

    /// Finds written pages while the guest runs. Searches only near entries that are not protected.
    /// A page is found and protected in one step, so that a later write is found by the next
    /// search.
    fn written_beside(&self, start: u64, bytes: u64) -> rustix::io::Result<Vec<Range<u64>>> {
        let unprotected = self.scan(start, 0..bytes, UNPROTECTED)?;
        let mut found = Vec::new();
        for range in join(near(&unprotected, NEAR_BYTES), PROTECT_CALLS_MAX) {
            found.extend(self.scan(start, range, PRIVATE_WRITTEN)?);
        }
        Ok(found)
    }

    /// Finds written pages while nothing writes. It also protects unprotected entries that are not
    /// written pages (pages of the file, and entries without a page), so that the next search skips
    /// them. This is not possible while something writes: a page that was written just before would
    /// be protected unseen, and a protected entry without a page looks like a page that is swapped
    /// out.
    fn written_at_rest(&self, start: u64, bytes: u64) -> rustix::io::Result<Vec<Range<u64>>> {
        let unprotected = self.scan(start, 0..bytes, UNPROTECTED)?;
        let (ranges, question) = scans_at_rest(&unprotected);
        let mut found = Vec::new();
        for range in ranges {
            for run in self.scan(start, range, question)? {
                push(&mut found, run);
            }
        }
        let protects = question.flags & PM_SCAN_WP_MATCHING != 0;
        let left = if protects { without(&unprotected, &found) } else { unprotected };
        for range in join(left, PROTECT_CALLS_MAX) {
            self.scan(start, range, PROTECT)?;
        }
        Ok(found)
    }

    /// Searches a range of the mapping that begins at `start`. Returns ranges of the mapping.
    fn scan(&self, start: u64, range: Range<u64>, question: Question) -> rustix::io::Result<Vec<Range<u64>>> {
        let Question { flags, category_inverted, category_mask, category_anyof_mask, return_mask } = question;
        let mut found = Vec::new();
        let mut batch = [PageRegion::default(); BATCH];
        let (mut at, end) = (start + range.start, start + range.end);
        while at < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags,
                start: at,
                end,
                walk_end: 0,
                vec: batch.as_mut_ptr() as u64,
                vec_len: BATCH as u64,
                max_pages: 0,
                category_inverted,
                category_mask,
                category_anyof_mask,
                return_mask,
            };
            // SAFETY: the argument and the batch that it points to are live, and the kernel writes
            // `vec_len` entries at most.
            let count = unsafe { libc::ioctl(self.table.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let count = usize::try_from(count).map_err(|_| last_error())?;
            for region in batch.iter().take(count) {
                push(&mut found, region.start - start..region.end - start);
            }
            at = argument.walk_end;
        }
        Ok(found)
    }

    /// One entry of 64 bits for each page. Bit 63: present. Bit 62: swapped out. Bit 61: of a file,
    /// or shared.
    fn read_table(&self, start: u64, bytes: u64) -> rustix::io::Result<Vec<Range<u64>>> {
        const ENTRIES: usize = 8192;
        let mut found = Vec::new();
        let mut table = vec![0; 8 * ENTRIES];
        let (mut page, pages) = (0, bytes / PAGE_BYTES);
        while page < pages {
            let entries = (pages - page).min(ENTRIES as u64);
            let part = &mut table[..8 * entries as usize];
            let read = self.table.read_exact_at(part, 8 * (start / PAGE_BYTES + page));
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

/// Which ranges are searched for written pages while nobody writes, and with which question. If the
/// ranges are few, one call for each finds and protects. If they are many, only the question is
/// asked of each, and what is protected is joined: to join what is searched would have the kernel
/// look up resident pages in between, and the pause would grow with the resident memory.
fn scans_at_rest(unprotected: &[Range<u64>]) -> (Vec<Range<u64>>, Question) {
    let ranges = near(unprotected, NEAR_BYTES);
    let flags = if ranges.len() <= PROTECT_CALLS_MAX { PRIVATE_WRITTEN.flags } else { 0 };
    (ranges, Question { flags, ..PRIVATE_WRITTEN })
}

/// Adds a range. Extends the last range if the new one begins at its end.
fn push(found: &mut Vec<Range<u64>>, range: Range<u64>) {
    match found.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => found.push(range),
    }
}

#[cfg(test)]
#[path = "pagemap_test.rs"]
mod tests;
