use super::*;

const MIB: u64 = 1 << 20;

fn none(_path: &Path) -> bool {
    false
}

fn content(number: u8) -> Vec<u8> {
    vec![number; usize::try_from(MIB).unwrap()]
}

fn put(shelf: &Shelf, number: u8, is_used: IsUsed<'_>) -> Result<Hash, ShelfError> {
    let content = content(number);
    let digest = blake3::hash(&content);
    let mut coming = shelf.begin(digest, MIB, is_used)?;
    content.chunks(300_000).try_for_each(|part| coming.write(part))?;
    coming.finish()?;
    Ok(digest)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_that_came_whole_is_there_after_a_restart_and_what_did_not_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("fetched");
    let shelf = Shelf::open(&place, 8 * MIB).unwrap();
    let digest = put(&shelf, 1, &none).unwrap();
    assert_eq!(fs::read(shelf.hold(digest).unwrap().path()).unwrap(), content(1));
    // One that vmmd was killed over, and files of somebody else.
    let half = shelf.begin(blake3::hash(b"half"), MIB, &none).unwrap();
    assert!(shelf.hold(blake3::hash(b"half")).is_none(), "it is not whole yet");
    std::mem::forget(half);
    fs::write(place.join("README"), b"mine").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.join(blake3::hash(b"link").to_hex().as_str())).unwrap();
    assert_eq!(names(&place).len(), 4);
    let shelf = Shelf::open(&place, 8 * MIB).unwrap();
    assert_eq!(shelf.digests(), [digest]);
    assert_eq!(names(&place).len(), 3, "{:?}", names(&place));
    assert_eq!(fs::read(shelf.hold(digest).unwrap().path()).unwrap(), content(1));
}

#[test]
fn what_is_not_the_wanted_file_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path(), 8 * MIB).unwrap();
    let wanted = blake3::hash(&content(1));
    let begin = || shelf.begin(wanted, MIB, &none).unwrap();
    let mut short = begin();
    short.write(&content(1)[1..]).unwrap();
    assert!(matches!(short.finish(), Err(ShelfError::Short { total: MIB, .. })));
    let mut long = begin();
    long.write(&content(1)).unwrap();
    assert!(matches!(long.write(b"x"), Err(ShelfError::Long(MIB))));
    drop(long);
    let mut other = begin();
    other.write(&content(2)).unwrap();
    let error = other.finish().unwrap_err();
    assert!(matches!(error, ShelfError::OtherContent(is) if is == blake3::hash(&content(2))), "{error}");
    assert!(matches!(shelf.begin(wanted, 0, &none), Err(ShelfError::Form)));
    assert_eq!(names(folder.path()), [""; 0]);
    assert!(shelf.hold(wanted).is_none());
    assert_eq!(put(&shelf, 1, &none).unwrap(), wanted, "and its room is free");
}

#[test]
fn what_was_used_least_recently_goes_first_and_nothing_that_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path(), 3 * MIB).unwrap();
    let [first, second, third] = [1, 2, 3].map(|number| put(&shelf, number, &none).unwrap());
    drop(shelf.hold(first));
    let fourth = put(&shelf, 4, &none).unwrap();
    assert!(shelf.hold(second).is_none() && !folder.path().join(second.to_hex().as_str()).exists());
    // The third one is a VM's, the first is about to be one's.
    let of_vm = folder.path().join(third.to_hex().as_str());
    let is_used = |path: &Path| path == of_vm;
    let held = shelf.hold(first).unwrap();
    put(&shelf, 5, &is_used).unwrap();
    assert!(shelf.hold(fourth).is_none());
    let fifth = blake3::hash(&content(5));
    let also_held = shelf.hold(fifth).unwrap();
    assert!(matches!(put(&shelf, 6, &is_used), Err(ShelfError::Full { max, .. }) if max == 3 * MIB));
    drop(also_held);
    put(&shelf, 6, &is_used).unwrap();
    assert!(shelf.hold(third).is_some() && held.path().exists());
    let too_large = shelf.begin(fifth, 3 * MIB + 1, &none).unwrap_err();
    assert!(matches!(too_large, ShelfError::TooLarge { .. }) && too_large.is_full(), "{too_large}");
    drop(held);
    assert_eq!(shelf.prune(&is_used), 2 * MIB);
    assert_eq!(shelf.digests(), [third]);
    assert_eq!(shelf.prune(&is_used), 0);
}

#[test]
fn so_many_files_are_kept_and_what_comes_counts() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path(), 1000 * MIB).unwrap();
    let coming: Vec<_> = (1..FILES_MAX)
        .map(|number| shelf.begin(blake3::hash(&number.to_le_bytes()), 1, &none).unwrap())
        .collect();
    let first = put(&shelf, 1, &none).unwrap();
    let second = put(&shelf, 2, &none).unwrap();
    assert_eq!(shelf.digests(), [second], "{first} went");
    drop(coming);
    put(&shelf, 1, &none).unwrap();
    assert_eq!(shelf.digests().len(), 2);
}

#[test]
fn a_full_disk_is_found_out_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path(), u64::MAX).unwrap();
    // More than any file can have, or any disk.
    let error = shelf.begin(blake3::hash(b"x"), 1 << 60, &none).unwrap_err();
    assert!(matches!(error, ShelfError::File { operation: "make room in", .. }), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_file_that_was_changed_is_discarded() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path(), 8 * MIB).unwrap();
    let digest = put(&shelf, 1, &none).unwrap();
    shelf.discard(digest);
    assert!(shelf.hold(digest).is_none() && names(folder.path()).is_empty());
    shelf.discard(digest);
}
