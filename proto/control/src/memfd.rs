//! Sealed files in memory.

use crate::sparse;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};
use std::{fs::File, io, os::fd::AsFd};

/// How often sealing is tried. The kernel waits 150 ms and then refuses while a page has an extra
/// reference. Reclaim, compaction and DAMON hold such references for moments, too. If there is a
/// writable mapping, the kernel refuses at once.
const SEAL_TRIES: usize = 4;

/// A sealed file in memory with this content. `name` is what `/proc` shows for it.
///
/// # Errors
/// There is no memory, or no descriptor, for it; and those of [`seal`].
pub fn sealed(name: &str, content: &[u8]) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    write_sparse(&file, content)?;
    seal(&file)?;
    Ok(file)
}

/// Makes `content` the content of an empty file. Pages of zeros become holes: the list of digests
/// of a large layer has hardly anything else, and to write it would take longer than all else that
/// a start of a VM needs.
///
/// # Errors
/// The file system's.
pub fn write_sparse(file: &File, content: &[u8]) -> io::Result<()> {
    file.set_len(content.len() as u64)?;
    sparse::write_pages(file, 0, content)
}

/// Seals a file in memory so that neither its content nor its size nor its seals can change any
/// more.
///
/// # Errors
/// There is a writable shared mapping of it (EBUSY), one of its pages has an extra reference for
/// longer than half a second (EBUSY), or it cannot be sealed (EINVAL, EPERM).
pub fn seal(memfd: impl AsFd) -> rustix::io::Result<()> {
    seal_with(memfd.as_fd(), || ())
}

/// Calls `on_busy` before each further try.
fn seal_with(memfd: impl AsFd, mut on_busy: impl FnMut()) -> rustix::io::Result<()> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    for _ in 1..SEAL_TRIES {
        match fcntl_add_seals(&memfd, seals) {
            Err(Errno::BUSY) => on_busy(),
            tried => return tried,
        }
    }
    fcntl_add_seals(&memfd, seals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_BYTES;
    use proptest::prelude::*;
    use rustix::{
        fs::fcntl_get_seals,
        pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
    };
    use std::{
        io::{Read as _, Write as _},
        os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    };

    const PAGE: usize = PAGE_BYTES as usize;

    /// A memfd of a page, and a pipe that holds this page: not a copy of it, but a reference to it.
    fn held() -> (File, File) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut memfd = File::from(memfd_create("held", flags).unwrap());
        memfd.write_all(&[7; PAGE]).unwrap();
        let (reader, writer): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut start = 0;
        let moved = splice(&memfd, Some(&mut start), &writer, None, PAGE, SpliceFlags::empty());
        assert_eq!(moved, Ok(PAGE));
        (memfd, reader.into())
    }

    #[test]
    fn sealing_is_tried_again_when_a_page_was_held_for_a_moment() {
        let (memfd, mut pipe) = held();
        let mut page = Vec::new();
        let sealed = seal_with(&memfd, || {
            // The one who holds it lets go, after the kernel has refused.
            page.resize(PAGE, 0);
            pipe.read_exact(&mut page).unwrap();
        });
        assert_eq!(sealed, Ok(()));
        assert_eq!(page, [7; PAGE], "the kernel had refused once");
        let seals = fcntl_get_seals(&memfd).unwrap();
        assert!(seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL));
        assert!((&memfd).write(b"x").is_err());
    }

    #[test]
    fn a_sealed_file_has_its_content_and_keeps_it() {
        let mut file = sealed("test", b"content").unwrap();
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        let mut read = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "content");
    }

    proptest! {
        #[test]
        fn a_sparse_file_has_its_content_and_memory_for_nothing_else(
            pages in prop::collection::vec(any::<bool>(), 0..40),
            cut in 0..PAGE,
        ) {
            let page = |has_data: &bool| {
                let mut page = [0; PAGE];
                // One byte, at the end: what is cut off may be all that there is.
                page[PAGE - 1] = u8::from(*has_data);
                page
            };
            let mut content: Vec<u8> = pages.iter().flat_map(page).collect();
            content.truncate(content.len().saturating_sub(cut));
            let mut file = sealed("sparse", &content).unwrap();
            let used = file.metadata().unwrap().blocks() * 512;
            let data = content.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).count();
            prop_assert_eq!(used, (data * PAGE) as u64);
            let mut read = Vec::new();
            file.read_to_end(&mut read).unwrap();
            prop_assert_eq!(read, content);
        }
    }

    #[test]
    fn a_page_that_stays_held_ends_in_an_error() {
        let (memfd, pipe) = held();
        let mut refused = 0;
        assert_eq!(seal_with(&memfd, || refused += 1), Err(Errno::BUSY));
        assert_eq!(refused, SEAL_TRIES - 1);
        drop(pipe);
        assert_eq!(seal(&memfd), Ok(()));
    }

    #[test]
    fn what_cannot_be_sealed_is_refused_at_once() {
        let memfd = memfd_create("unsealable", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(seal_with(&memfd, || panic!("it is not tried again")), Err(Errno::PERM));
    }
}
