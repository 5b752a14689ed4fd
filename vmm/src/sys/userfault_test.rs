use super::*;
use crate::memory::Memory;
use crate::memory::layers::{Layers, copy_runs, new_layer};
use crate::memory::{extents::Extents, reserve};
use crate::sys::pagemap::{Pagemap, Pages};
use patina_control::PAGE_BYTES;
use patina_jail::userfaultfd::{UFFDIO_CONTINUE, UFFDIO_ZEROPAGE};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const RAM: u64 = 4 << 20;
const PAGES: u64 = RAM / PAGE_BYTES;
/// `UFFD_PAGEFAULT_FLAG_MINOR`.
const MINOR: u64 = 4;

/// What a page of the layer holds: every third one has zeros only.
fn content(page: u64) -> u8 {
    if page.is_multiple_of(3) { 0 } else { page as u8 | 1 }
}

/// A VM's view of a layer that is empty at first.
struct View {
    fd: Userfault,
    memory: Memory,
    layers: Layers,
}

impl View {
    fn new(layer: &File) -> Self {
        let fd = Userfault::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
        let memory = reserve(RAM).expect("address space");
        let file = layer.try_clone().expect("a descriptor");
        let layers = Layers::check(vec![file], &[0], Extents::whole(RAM), RAM).expect("a filling layer");
        layers.map_over(&memory).expect("a view");
        let region = memory.iter().next().expect("a region");
        fd.register(region, 0, RAM, Modes { tracks: false, waits: true }).expect("to wait for pages");
        Self { fd, memory, layers }
    }

    /// Serves faults, one page each, until `done`. Returns how many.
    fn serve(&self, layer: &File, done: &File) -> usize {
        let start = self.memory.iter().next().expect("a region").as_ptr() as u64;
        let mut served = 0;
        loop {
            let mut fds =
                [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN), PollFd::new(done, PollFlags::IN)];
            poll(&mut fds, None).expect("a wait");
            if !fds[1].revents().is_empty() {
                return served;
            }
            // `struct uffd_msg`.
            let mut message = [0u64; 4];
            // SAFETY: the kernel writes one message of 32 bytes.
            let read = unsafe { libc::read(self.fd.as_fd().as_raw_fd(), message.as_mut_ptr().cast(), 32) };
            if read != 32 {
                continue;
            }
            served += 1;
            let (flags, at) = (message[1], message[2] & !(PAGE_BYTES - 1));
            let page = (at - start) / PAGE_BYTES;
            let is_zero = content(page) == 0;
            if flags & MINOR == 0 && !is_zero {
                layer.write_all_at(&[content(page); PAGE_BYTES as usize], page * PAGE_BYTES).expect("a page");
            }
            let number = if is_zero { UFFDIO_ZEROPAGE } else { UFFDIO_CONTINUE };
            let mut range = [at, PAGE_BYTES, 0, 0];
            // SAFETY: both structs are a range, a mode and a result: four u64. The page is mapped
            // in a registered range of this process, whose only users wait for it.
            let done = unsafe { libc::ioctl(self.fd.as_fd().as_raw_fd(), number, range.as_mut_ptr()) };
            assert!(done == 0 || last_error() == Errno::EXIST, "{:?}", last_error());
        }
    }

    fn read(&self, page: u64) -> u8 {
        self.memory.read_obj(GuestAddress(page * PAGE_BYTES + 9)).expect("a byte")
    }

    fn write(&self, page: u64, value: u8) {
        self.memory.write_obj(value, GuestAddress(page * PAGE_BYTES + 9)).expect("a byte");
    }

    /// The pages that were written since the last look.
    fn written(&self, pages: Pages) -> Vec<u64> {
        let region = self.memory.iter().next().expect("a region");
        let map = Pagemap::open().expect("the page tables");
        let runs = map.private(region, pages).expect("a search");
        runs.into_iter()
            .flat_map(|run| (run.start..run.end).step_by(PAGE_BYTES as usize))
            .map(|at| at / PAGE_BYTES)
            .collect()
    }
}

/// Runs `work` while a thread serves the faults of `view`. Returns how many there were.
fn served(view: &View, layer: &File, work: impl FnOnce()) -> usize {
    let (done, tell): (std::os::fd::OwnedFd, std::os::fd::OwnedFd) = rustix::pipe::pipe().expect("a pipe");
    let done = File::from(done);
    let count = AtomicUsize::new(0);
    scope(|scope| {
        scope.spawn(|| count.store(view.serve(layer, &done), Ordering::Relaxed));
        work();
        drop(tell);
    });
    count.into_inner()
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_view_of_a_layer_that_is_being_filled_reads_its_pages_and_never_zeros() {
    let layer = new_layer(RAM).expect("a layer");
    let view = View::new(&layer);
    let faults = served(&view, &layer, || {
        (0..PAGES / 2).for_each(|page| assert_eq!(view.read(page), content(page), "page {page}"));
        (0..PAGES).step_by(10).for_each(|page| view.write(page, 77));
        let expected = |page: u64| if page.is_multiple_of(10) { 77 } else { content(page) };
        (0..PAGES).for_each(|page| assert_eq!(view.read(page), expected(page), "page {page}"));
    });
    assert!(faults as u64 >= PAGES, "{faults} faults");
    let written: Vec<u64> = (0..PAGES).step_by(10).collect();
    assert_eq!(view.written(Pages::All), written, "pages of zeros that were only read are not private");
    let held_pages = layer.metadata().expect("a memfd").blocks() * 512 / PAGE_BYTES;
    assert_eq!(held_pages, (0..PAGES).filter(|page| content(*page) != 0).count() as u64);
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn writes_are_tracked_while_a_layer_is_being_filled_and_a_freeze_has_every_page() {
    let layer = new_layer(RAM).expect("a layer");
    let view = View::new(&layer);
    let region = view.memory.iter().next().expect("a region");
    let mut generation = view.layers.clone();
    served(&view, &layer, || {
        (0..40).for_each(|page| assert_eq!(view.read(page), content(page)));
        [1, 3, 100].into_iter().for_each(|page| view.write(page, 50));
        view.fd
            .register(region, 0, RAM, Modes { tracks: true, waits: true })
            .expect("to track writes as well");
        assert_eq!(view.written(Pages::Written), [1, 3, 100]);
        // Pages that are there, a page of zeros that was read, and pages that are not there yet.
        [2, 6, 700, 702].into_iter().for_each(|page| view.write(page, 60));
        assert_eq!(view.read(41), content(41), "faults are served as before");
        let written = view.written(Pages::WrittenAtRest);
        assert_eq!(written, [2, 6, 700, 702]);
        assert_eq!(view.written(Pages::WrittenAtRest), [0; 0]);
        let top = new_layer(RAM).expect("a layer");
        let all = [1, 2, 3, 6, 100, 700, 702];
        let runs: Vec<_> = all.map(|page| page * PAGE_BYTES..(page + 1) * PAGE_BYTES).to_vec();
        copy_runs(&view.memory, &runs, &top).expect("a copy");
        generation = generation.with(crate::ranges::union(runs), top).expect("a generation");
    });
    // A clone of it, whose pages of the lower layer are served as well.
    let clone = View {
        fd: Userfault::open().expect("a userfaultfd"),
        memory: reserve(RAM).expect("space"),
        layers: generation,
    };
    clone.layers.map_over(&clone.memory).expect("a view");
    let region = clone.memory.iter().next().expect("a region");
    // Layer 0 is being filled, and the one above it is complete.
    for extent in clone.layers.extents().as_slice().iter().filter(|extent| extent.layer == 0) {
        let waits = Modes { tracks: false, waits: true };
        clone.fd.register(region, extent.start, extent.bytes, waits).expect("to wait for pages");
    }
    served(&clone, &layer, || {
        for page in 0..PAGES {
            let expected = match page {
                1 | 3 | 100 => 50,
                2 | 6 | 700 | 702 => 60,
                page => content(page),
            };
            assert_eq!(clone.read(page), expected, "page {page}");
        }
    });
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn tracking_that_starts_anew_takes_no_entry_without_a_page_for_a_page() {
    let layer = new_layer(RAM).expect("a layer");
    let view = View::new(&layer);
    let region = view.memory.iter().next().expect("a region");
    served(&view, &layer, || {
        (0..40).for_each(|page| assert_eq!(view.read(page), content(page)));
        [1, 3, 100].into_iter().for_each(|page| view.write(page, 50));
        let both = Modes { tracks: true, waits: true };
        view.fd.register(region, 0, RAM, both).expect("to track writes as well");
        assert_eq!(view.written(Pages::Written), [1, 3, 100]);
        // This also protects pages that were only read, and entries without a page.
        assert_eq!(view.written(Pages::WrittenAtRest), [0; 0]);
        assert!(view.written(Pages::All).len() > 100, "which look like pages that are swapped out");
        view.write(7, 50);
        // As after a freeze that has failed.
        view.fd.register(region, 0, RAM, both).expect("nothing new");
        view.fd.unprotect(region).expect("nothing is protected");
        assert_eq!(view.written(Pages::Written), [1, 3, 7, 100]);
        assert_eq!(view.written(Pages::Written), [0; 0]);
        assert_eq!(view.read(50), content(50), "faults are served as before");
        view.write(51, 50);
        assert_eq!(view.written(Pages::WrittenAtRest), [51]);
    });
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_range_outside_of_its_region_is_refused() {
    let fd = Userfault::open().expect("a userfaultfd");
    let memory = reserve(RAM).expect("address space");
    let region = memory.iter().next().expect("a region");
    let modes = Modes { tracks: true, waits: false };
    for (at, bytes) in [(RAM, PAGE_BYTES), (0, RAM + PAGE_BYTES), (u64::MAX - 4095, PAGE_BYTES)] {
        assert_eq!(fd.register(region, at, bytes, modes), Err(Errno::FAULT));
        assert_eq!(fd.forget(region, at, bytes), Err(Errno::FAULT));
    }
}
