//! A VM's userfaultfd. The crate `userfaultfd` makes the calls; those that it lacks, or whose count
//! of bytes it drops, are made here.

use patina_control::PAGE_BYTES;
use patina_jail::userfaultfd::{UFFDIO_POISON, UFFDIO_ZEROPAGE, UffdioFill};
use rustix::io::Errno;
use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use userfaultfd::{Error, Event, EventBuffer, Uffd};

/// Most faults that are read at a time.
const BATCH: usize = 64;
static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// How missing pages are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Map the pages that the file has.
    Continue,
    /// Map the kernel's page of zeros. An entry that is marked as write-protected refuses it.
    Zero,
    /// Give one page a copy of a page of zeros.
    ZeroCopy,
    /// Let each access fail.
    Poison,
}

/// A userfaultfd that another process made, for its own memory.
pub struct Faults(Uffd);

impl fmt::Debug for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where faults are read into.
pub struct Batch(EventBuffer);

impl Default for Batch {
    fn default() -> Self {
        Self(EventBuffer::new(BATCH))
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Batch")
    }
}

impl From<OwnedFd> for Faults {
    fn from(fd: OwnedFd) -> Self {
        // SAFETY: it is open, and from here on nobody else's. What it is does not matter for memory
        // safety: the calls on it pass memory of this process that stays valid for their whole
        // time.
        Self(unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) })
    }
}

impl Faults {
    /// Adds the addresses of faults that wait, page by page, to `addresses`. Whether there may be
    /// more. Other events are dropped; a descriptor that comes with one is closed.
    ///
    /// # Errors
    /// The kernel's. EINTR: there was nothing to read, and the read had blocked.
    pub fn read(&self, batch: &mut Batch, addresses: &mut Vec<u64>) -> Result<bool, Errno> {
        let mut count = 0;
        for event in self.0.read_events(&mut batch.0).map_err(errno)? {
            count += 1;
            if let Ok(Event::Pagefault { addr, .. }) = event {
                addresses.push(addr as u64 & !(PAGE_BYTES - 1));
            }
        }
        Ok(count == BATCH)
    }

    /// Answers a part of `bytes` from `start` on, and wakes those who wait there. The number of
    /// bytes that were answered, at least a page.
    ///
    /// # Errors
    /// The kernel's, for the first page. EEXIST: it is there already; nobody is woken. EAGAIN: the
    /// process is changing its mappings. ESRCH: it has ended. ENOENT: the range is not within one
    /// registered mapping.
    pub fn answer(&self, answer: Answer, start: u64, bytes: u64) -> Result<u64, Errno> {
        let done = match answer {
            Answer::Continue => self.0.r#continue(pointer(start), bytes as usize, true).map_err(errno)?,
            Answer::Zero => self.fill(UFFDIO_ZEROPAGE, start, bytes)?,
            Answer::Poison => self.fill(UFFDIO_POISON, start, bytes)?,
            Answer::ZeroCopy => {
                let (from, to) = (ZEROS.as_ptr().cast::<c_void>(), pointer(start));
                // SAFETY: the kernel reads a page of a static, and writes to memory of the process
                // that made the descriptor, which has registered it for this.
                unsafe { self.0.copy(from, to, ZEROS.len(), true) }.map_err(errno)? as u64
            }
        };
        if done == 0 { Err(Errno::AGAIN) } else { Ok(done) }
    }

    /// Wakes those who wait in a range. Their accesses are tried again.
    ///
    /// # Errors
    /// The kernel's. ENOTTY: it is no userfaultfd.
    pub fn wake(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        self.0.wake(pointer(start), bytes as usize).map_err(errno)
    }

    /// Ends the registration of a range: its faults are the kernel's from now on. Wakes those who
    /// wait there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unregister(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        self.0.unregister(pointer(start), bytes as usize).map_err(errno)
    }

    fn fill(&self, number: u64, start: u64, bytes: u64) -> Result<u64, Errno> {
        let mut fill: UffdioFill = [start, bytes, 0, 0];
        // SAFETY: both calls take a struct of four u64, which is live, and write to its last one.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number, fill.as_mut_ptr()) };
        // After a part the call fails with EAGAIN and says how much was done.
        let done = i64::try_from(fill[3]).unwrap_or(0);
        match (result, Errno::from_io_error(&std::io::Error::last_os_error())) {
            (0, _) => Ok(fill[3]),
            (_, Some(Errno::AGAIN)) if done > 0 => Ok(fill[3]),
            (_, error) => Err(error.unwrap_or(Errno::IO)),
        }
    }
}

fn pointer(address: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(address as usize)
}

fn errno(error: Error) -> Errno {
    match error {
        Error::CopyFailed(errno) | Error::ZeropageFailed(errno) | Error::SystemError(errno) => {
            Errno::from_raw_os_error(errno as i32)
        }
        Error::PartiallyCopied(_) => Errno::AGAIN,
        _ => Errno::IO,
    }
}
