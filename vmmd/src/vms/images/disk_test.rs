use super::*;
use std::process::Command;

/// A file of a mebibyte with these bytes in it.
fn file(parts: &[(usize, &[u8])]) -> File {
    let mut bytes = vec![0; 1 << 20];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

#[test]
fn every_mark_is_recognised_where_it_stands() {
    for (at, mark, disk) in MARKS {
        assert_eq!(identify(&file(&[(*at, mark)])).unwrap(), *disk, "{mark:?}");
    }
    for (at, mark, disk) in FAR_MARKS {
        assert_eq!(identify(&file(&[(*at as usize, mark)])).unwrap(), *disk, "{mark:?}");
    }
    assert_eq!(identify(&file(&[])).unwrap(), Disk::Unknown);
    assert_eq!(identify(&tempfile::tempfile().unwrap()).unwrap(), Disk::Unknown);
}

#[test]
fn a_table_of_partitions_is_told_from_a_boot_sector() {
    let signature: (usize, &[u8]) = (510, b"\x55\xaa");
    let linux: (usize, &[u8]) = (446, &[0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
    assert_eq!(identify(&file(&[signature, linux])).unwrap(), Disk::Foreign(PARTITIONS));
    assert_eq!(identify(&file(&[linux])).unwrap(), Disk::Unknown, "without its signature");
    assert_eq!(identify(&file(&[signature])).unwrap(), Disk::Unknown, "without an entry");
    // A file system with a boot loader in its first KiB, as a disk without partitions has it.
    let ext4: (usize, &[u8]) = (1080, b"\x53\xef");
    assert_eq!(identify(&file(&[signature, linux, ext4])).unwrap(), Disk::Mountable);
}

#[test]
fn what_real_programs_write_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let script = "head -c 1048576 /dev/zero > raw; echo text > file; tar cf a.tar file; gzip -k a.tar; \
        mke2fs -q -t ext4 -F ext4.img 4M; mkswap -q swap.img 2>/dev/null || { cp raw swap.img && mkswap swap.img >&2; }";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let of = |name: &str| identify(&File::open(folder.path().join(name)).unwrap()).unwrap();
    assert_eq!(of("a.tar"), Disk::Never("a tar archive", Remedy::Extract));
    assert!(matches!(of("a.tar.gz"), Disk::Never("compressed with gzip", _)));
    assert_eq!(of("ext4.img"), Disk::Mountable);
    assert!(matches!(of("swap.img"), Disk::Never("swap space", _)));
}

#[test]
fn only_patinas_kernel_says_its_name() {
    let is_ours = |parts: &[(usize, &[u8])]| is_patinas_kernel(&file(parts)).unwrap();
    assert!(is_ours(&[(99_999, b"Linux version 6.1.192-patina (root@host) (gcc) #1")]));
    assert!(!is_ours(&[(99_999, b"Linux version 6.1.0-49-cloud-amd64 (debian) -patina ")]));
    // The first of two that look like it, and one across two pieces.
    assert!(is_ours(&[(10, b"Linux version %s"), (500, b"Linux version 6.1.192-patina (root@host)")]));
    let mut bytes = vec![0; 3 << 20];
    bytes[(1 << 20) - 20..(1 << 20) + 15].copy_from_slice(b"Linux version 6.1.192-patina (root)");
    let split = tempfile::tempfile().unwrap();
    split.write_all_at(&bytes, 0).unwrap();
    assert!(is_patinas_kernel(&split).unwrap());
}
