//! Recognises the format of a root file system from a few KiB of its file.
//!
//! Files that can never be a root disk are refused for every kernel: archives, compressed files,
//! disk formats of other VMMs. File systems that the kernel of Patina's images cannot mount are
//! refused for that kernel only. Another kernel may have the driver, or an initramfs.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// How much is read from the start.
const HEAD_BYTES: usize = 4096;
/// A sector of the guest's disk.
pub const SECTOR_BYTES: u64 = 512;
/// What Patina's kernel calls itself.
const OURS: &[u8] = b"-patina ";
const BANNER: &[u8] = b"Linux version ";
const PIECE_BYTES: usize = 1 << 20;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Patina's kernel mounts it.
    Mountable,
    /// No disk: what it is, and what makes one of it.
    Never(&'static str, Remedy),
    /// A disk that takes another kernel: what it is.
    Foreign(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// What makes a root disk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// It is another VMM's image.
    Convert,
    /// It is compressed: with this command.
    Unpack(&'static str),
    /// It is an archive of files.
    Extract,
    /// It is a program or a kernel.
    OtherFile,
}

impl Remedy {
    /// In words, for the file at `path`.
    #[must_use]
    pub fn words(self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Convert => format!("convert it: `qemu-img convert -O raw {path} {path}.raw`"),
            Self::Unpack(command) => format!("unpack it first: `{command} {path}`"),
            Self::Extract => {
                "extract it into a folder and make a file system of that: `mkfs.erofs root.erofs FOLDER`"
                    .to_owned()
            }
            Self::OtherFile => "name a file with a file system in it".to_owned(),
        }
    }
}

use Disk::{Foreign, Mountable, Never};
use Remedy::{Convert, Extract, OtherFile, Unpack};

/// A mark at a place, and what a file that has it is. The first that fits counts, so file systems
/// come before what may stand in front of them, such as a boot sector.
const MARKS: &[(usize, &[u8], Disk)] = &[
    (1024 + 56, b"\x53\xef", Mountable),
    (1024, b"\xe2\xe1\xf5\xe0", Mountable),
    (0, b"QFI\xfb", Never("a qcow2 image", Convert)),
    (0, b"QED\0", Never("a QED image", Convert)),
    (0, b"KDMV", Never("a VMDK image", Convert)),
    (0, b"COWD", Never("a VMDK image", Convert)),
    (0, b"# Disk DescriptorFile", Never("the description of a VMDK image", Convert)),
    (0x40, b"\x7f\x10\xda\xbe", Never("a VDI image", Convert)),
    (0, b"vhdxfile", Never("a VHDX image", Convert)),
    (0, b"conectix", Never("a VHD image", Convert)),
    (0, b"WithoutFreeSpace", Never("a Parallels image", Convert)),
    (0, b"WithouFreSpacExt", Never("a Parallels image", Convert)),
    (0, b"\x3a\xff\x26\xed", Never("an Android sparse image", Unpack("simg2img"))),
    (0, b"\x1f\x8b", Never("compressed with gzip", Unpack("gunzip -k"))),
    (0, b"\xfd7zXZ\0", Never("compressed with xz", Unpack("unxz -k"))),
    (0, b"\x28\xb5\x2f\xfd", Never("compressed with zstd", Unpack("unzstd"))),
    (0, b"BZh", Never("compressed with bzip2", Unpack("bunzip2 -k"))),
    (0, b"\x04\x22\x4d\x18", Never("compressed with lz4", Unpack("unlz4"))),
    (0, b"LZIP", Never("compressed with lzip", Unpack("lzip -dk"))),
    (0, b"PK\x03\x04", Never("a ZIP archive", Unpack("unzip"))),
    (0, b"7z\xbc\xaf\x27\x1c", Never("a 7z archive", Unpack("7z x"))),
    (257, b"ustar", Never("a tar archive", Extract)),
    (0, b"070701", Never("a cpio archive (an initramfs)", Extract)),
    (0, b"070702", Never("a cpio archive (an initramfs)", Extract)),
    (0, b"!<arch>\n", Never("an ar archive (a Debian package)", Extract)),
    (0, b"\x7fELF", Never("a program or a kernel", OtherFile)),
    (0x202, b"HdrS", Never("a Linux kernel", OtherFile)),
    (4086, b"SWAPSPACE2", Never("swap space", OtherFile)),
    (0, b"LUKS\xba\xbe", Foreign("encrypted (LUKS)")),
    (0, b"hsqs", Foreign("a squashfs file system")),
    (0, b"XFSB", Foreign("an XFS file system")),
    (0, b"\x45\x3d\xcd\x28", Foreign("a cramfs file system")),
    (0, b"-rom1fs-", Foreign("a romfs file system")),
    (1024, b"\x10\x20\xf5\xf2", Foreign("an F2FS file system")),
    (1024, b"H+\0", Foreign("an HFS+ file system")),
    (3, b"NTFS    ", Foreign("an NTFS file system")),
    (3, b"EXFAT   ", Foreign("an exFAT file system")),
    (54, b"FAT1", Foreign("a FAT file system")),
    (82, b"FAT32", Foreign("a FAT file system")),
    (512, b"LABELONE", Foreign("an LVM volume")),
    (512, b"EFI PART", Foreign(PARTITIONS)),
];
/// Marks behind what is read from the start.
const FAR_MARKS: &[(u64, &[u8], Disk)] = &[
    (0x1_0040, b"_BHRfS_M", Foreign("a btrfs file system")),
    (0x8001, b"CD001", Foreign("an ISO 9660 image (a CD)")),
    (4096, b"EFI PART", Foreign(PARTITIONS)),
];
/// What a disk with partitions is.
pub const PARTITIONS: &str = "a disk with partitions";

/// Looks at a file.
///
/// # Errors
/// It cannot be read.
pub fn identify(file: &File) -> io::Result<Disk> {
    let mut head = Vec::new();
    read(file, 0, HEAD_BYTES, &mut head)?;
    let fits = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|bytes| bytes.starts_with(mark));
    if let Some((.., disk)) = MARKS.iter().find(|(at, mark, _)| fits(*at, mark)) {
        return Ok(*disk);
    }
    for (at, mark, disk) in FAR_MARKS {
        let mut bytes = Vec::new();
        read(file, *at, mark.len(), &mut bytes)?;
        if bytes == *mark {
            return Ok(*disk);
        }
    }
    Ok(if has_partitions(&head) { Foreign(PARTITIONS) } else { Disk::Unknown })
}

/// A boot sector's table with at least one entry that may be one.
fn has_partitions(head: &[u8]) -> bool {
    let Some(sector) = head.first_chunk::<512>() else { return false };
    let entry = |number: usize| sector.get(446 + 16 * number..462 + 16 * number).unwrap_or_default();
    let is_partition = |entry: &[u8]| match entry {
        [0 | 0x80, _, _, _, kind, _, _, _, start @ .., _, _, _, _] => {
            *kind != 0 && start.iter().any(|byte| *byte != 0)
        }
        _ => false,
    };
    sector.ends_with(b"\x55\xaa") && (0..4).any(|number| is_partition(entry(number)))
}

/// Whether a kernel is Patina's own, which says so in its banner. Only an uncompressed one can be.
///
/// # Errors
/// It cannot be read.
pub fn is_patinas_kernel(kernel: &File) -> io::Result<bool> {
    let mut piece = Vec::new();
    let mut at = 0;
    loop {
        piece.clear();
        // The pieces overlap by more than a banner's start.
        read(kernel, at, PIECE_BYTES + 256, &mut piece)?;
        let mut rest = piece.as_slice();
        while let Some(found) = rest.windows(BANNER.len()).position(|window| window == BANNER) {
            rest = rest.get(found + BANNER.len()..).unwrap_or_default();
            // Behind the version and a space stands who has built it.
            let version = rest.iter().take(64).position(|byte| *byte == b' ');
            if version.is_some_and(|end| rest.get(..=end).is_some_and(|version| version.ends_with(OURS))) {
                return Ok(true);
            }
        }
        if piece.len() <= PIECE_BYTES {
            return Ok(false);
        }
        at += PIECE_BYTES as u64;
    }
}

/// Reads up to `count` bytes at an offset; fewer where the file ends.
fn read(file: &File, at: u64, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize(count, 0);
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    into.truncate(done);
    Ok(())
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
