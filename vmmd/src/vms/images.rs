//! Opens and checks a VM's kernel and root file system before anything is created. [`disk`]:
//! recognises the format of a root file system.

pub mod disk;

use crate::store::record::FileId;
use disk::{Disk, Remedy, SECTOR_BYTES};
use patina_control::kernel::{Format, FormatError};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Why a file is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("open {field} {path}")]
    Open {
        /// `kernel` or `rootfs`.
        field: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The path is of a folder, a device or a pipe.
    #[error("open {field} {path}: not a regular file")]
    NotAFile {
        /// `kernel` or `rootfs`.
        field: &'static str,
        /// The file's path.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("open {field} {path}: the file is empty")]
    Empty {
        /// `kernel` or `rootfs`.
        field: &'static str,
        /// The file's path.
        path: PathBuf,
    },
    /// The file is not the one that a running guest has.
    #[error(
        "open rootfs {path}: it was replaced or written to since the VM was started; put the old file back"
    )]
    Changed {
        /// The file's path.
        path: PathBuf,
    },
    /// The file can never be a guest's root disk.
    #[error("check rootfs {path}: it is {what}, not a disk image with a file system in it; {}", .remedy.words(.path))]
    NoDisk {
        /// The file's path.
        path: PathBuf,
        /// What the file is instead.
        what: &'static str,
        /// What makes a disk of it.
        remedy: Remedy,
    },
    /// The kernel that it was asked for with cannot mount it.
    #[error(
        "check rootfs {path}: it is {what}, which Patina's kernel cannot mount: it takes erofs and ext4, on the whole disk; put the files \
         into such a file system, or name a kernel that can with --kernel"
    )]
    NotMountable {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A guest's disk has whole sectors.
    #[error(
        "check rootfs {path}: its {bytes} bytes are no multiple of {SECTOR_BYTES}, which a disk image has: is it cut short? `truncate -s \
         %{SECTOR_BYTES} {path}` fills it up"
    )]
    Size {
        /// The file's path.
        path: PathBuf,
        /// The file's length, bytes.
        bytes: u64,
    },
    /// The file is not a kernel.
    #[error("check kernel {path}")]
    Kernel {
        /// The file's path.
        path: PathBuf,
        /// What is wrong with the file's format.
        #[source]
        source: FormatError,
    },
}

impl ImageError {
    /// The request's field.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Open { field, .. } | Self::NotAFile { field, .. } | Self::Empty { field, .. } => field,
            Self::Changed { .. } | Self::NoDisk { .. } | Self::NotMountable { .. } | Self::Size { .. } => {
                "rootfs"
            }
            Self::Kernel { .. } => "kernel",
        }
    }
}

/// Opens a kernel.
///
/// # Errors
/// It cannot be read or is not an image.
pub fn open_kernel(path: &Path) -> Result<(File, FileId), ImageError> {
    let (file, id) = open("kernel", path)?;
    // Its first bytes; the vmm checks the rest as it loads.
    match Format::of_file(&file) {
        Ok(_) => Ok((file, id)),
        Err(source) => Err(ImageError::Kernel { path: path.to_owned(), source }),
    }
}

/// Opens a root file system for a VM that boots `kernel`.
///
/// # Errors
/// It cannot be read, is no disk, or cannot be mounted by Patina's kernel, if that is the kernel.
pub fn open_rootfs_for(path: &Path, kernel: &File) -> Result<(File, FileId), ImageError> {
    let (file, id) = open_rootfs(path)?;
    let bad = |source| ImageError::Open { field: "rootfs", path: path.to_owned(), source };
    let path = || path.to_owned();
    let what = match disk::identify(&file).map_err(bad)? {
        Disk::Never(what, remedy) => return Err(ImageError::NoDisk { path: path(), what, remedy }),
        Disk::Mountable => None,
        Disk::Foreign(what) => Some(what),
        Disk::Unknown => Some("nothing that looks like a file system"),
    };
    if let Some(what) = what
        && disk::is_patinas_kernel(kernel).map_err(bad)?
    {
        return Err(ImageError::NotMountable { path: path(), what });
    }
    match file.metadata().map_err(bad)?.len() {
        bytes if bytes % SECTOR_BYTES != 0 => Err(ImageError::Size { path: path(), bytes }),
        _ => Ok((file, id)),
    }
}

/// Opens a root file system.
///
/// # Errors
/// It cannot be read or is empty.
pub fn open_rootfs(path: &Path) -> Result<(File, FileId), ImageError> {
    open("rootfs", path)
}

/// Where a path leads, links followed.
///
/// # Errors
/// Nowhere.
pub fn real_path(field: &'static str, path: &Path) -> Result<PathBuf, ImageError> {
    fs::canonicalize(path).map_err(|source| ImageError::Open { field, path: path.to_owned(), source })
}

/// Opens the root file system that a guest runs on already: what it remembers of the disk must stay
/// true.
///
/// # Errors
/// It cannot be read, or is not that file as it was.
pub fn open_rootfs_again(path: &Path, was: Option<FileId>) -> Result<File, ImageError> {
    match open_rootfs(path)? {
        (file, is) if was.is_none_or(|was| was == is) => Ok(file),
        _ => Err(ImageError::Changed { path: path.to_owned() }),
    }
}

/// Whether the root file system that a guest runs on is still there as it was.
///
/// # Errors
/// It is not there, or not that file as it was.
pub fn check_rootfs_again(path: &Path, was: Option<FileId>) -> Result<(), ImageError> {
    let bad = |source| ImageError::Open { field: "rootfs", path: path.to_owned(), source };
    let is = FileId::of(&fs::metadata(path).map_err(bad)?);
    if was.is_none_or(|was| was == is) { Ok(()) } else { Err(ImageError::Changed { path: path.to_owned() }) }
}

fn open(field: &'static str, path: &Path) -> Result<(File, FileId), ImageError> {
    let bad = |source| ImageError::Open { field, path: path.to_owned(), source };
    // Without O_NONBLOCK, opening a named pipe would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(bad)?;
    let metadata = file.metadata().map_err(bad)?;
    if !metadata.is_file() {
        return Err(ImageError::NotAFile { field, path: path.to_owned() });
    }
    if metadata.len() == 0 {
        return Err(ImageError::Empty { field, path: path.to_owned() });
    }
    Ok((file, FileId::of(&metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_known_by_their_magic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        fs::write(&path, &elf).unwrap();
        assert!(open_kernel(&path).is_ok());
        // Another machine's.
        elf[18] = 183;
        for text in [elf.as_slice(), b"#!"] {
            fs::write(&path, text).unwrap();
            let error = open_kernel(&path).unwrap_err();
            assert!(matches!(error, ImageError::Kernel { .. }));
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn what_is_no_root_disk_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let [ours, other] = ["Linux version 6.1.192-patina (x)", "Linux version 6.12.1 (x)"].map(|banner| {
            let kernel = folder.path().join(banner.len().to_string());
            fs::write(&kernel, banner).unwrap();
            File::open(kernel).unwrap()
        });
        let said = |start: &[u8], kernel: &File| {
            let mut bytes = start.to_vec();
            bytes.resize(8192, 0);
            fs::write(&path, bytes).unwrap();
            open_rootfs_for(&path, kernel).map(drop).map_err(|error| {
                assert_eq!(error.field(), "rootfs");
                error.to_string()
            })
        };
        for kernel in [&ours, &other] {
            let error = said(b"QFI\xfb\0\0\0\x03", kernel).unwrap_err();
            assert!(error.contains("a qcow2 image") && error.contains("qemu-img convert -O raw"), "{error}");
            let error = said(b"\x1f\x8b\x08", kernel).unwrap_err();
            assert!(error.contains("compressed with gzip") && error.contains("gunzip -k"), "{error}");
        }
        // Another kernel may mount more.
        let error = said(b"XFSB", &ours).unwrap_err();
        assert!(error.contains("an XFS file system") && error.contains("erofs and ext4"), "{error}");
        assert!(said(b"XFSB", &other).is_ok() && said(b"", &other).is_ok());
        assert!(said(b"", &ours).unwrap_err().contains("nothing that looks like a file system"));
        // Half a sector is missing.
        fs::write(&path, vec![1; 1000]).unwrap();
        let error = open_rootfs_for(&path, &other).unwrap_err();
        assert!(matches!(error, ImageError::Size { bytes: 1000, .. }), "{error}");
        assert!(error.to_string().contains("truncate -s %512"), "{error}");
    }

    #[test]
    fn a_link_is_followed_once() {
        let folder = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| folder.path().join(name));
        assert!(matches!(real_path("rootfs", &link), Err(ImageError::Open { field: "rootfs", .. })));
        fs::write(&file, b"root").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(real_path("rootfs", &link).unwrap(), fs::canonicalize(&file).unwrap());
    }

    #[test]
    fn a_root_file_system_that_was_replaced_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        fs::write(&path, b"root").unwrap();
        let (_, was) = open_rootfs(&path).unwrap();
        assert!(check_rootfs_again(&path, Some(was)).is_ok());
        fs::write(folder.path().join("new"), b"root").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(matches!(check_rootfs_again(&path, Some(was)), Err(ImageError::Changed { .. })));
        assert!(check_rootfs_again(&path, None).is_ok(), "of an older record nobody knows");
        fs::remove_file(&path).unwrap();
        assert!(matches!(check_rootfs_again(&path, None), Err(ImageError::Open { .. })));
    }

    #[test]
    fn what_is_no_readable_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        assert!(matches!(open_rootfs(&path), Err(ImageError::Open { field: "rootfs", .. })));
        assert!(matches!(open_rootfs(folder.path()), Err(ImageError::NotAFile { .. })));
        fs::write(&path, b"").unwrap();
        assert!(matches!(open_rootfs(&path), Err(ImageError::Empty { .. })));
        let pipe = folder.path().join("p");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert!(matches!(open_rootfs(&pipe), Err(ImageError::NotAFile { .. })), "and does not wait");
    }
}
