//! Whatever is changed in a snapshot: it is refused, or what is read is what was saved.

use super::*;
use std::{
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

const MUTATIONS: u64 = 10_000;

/// Random numbers, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[usize::try_from(self.below(list.len() as u64)).unwrap()]
    }
}

/// A snapshot, and what was saved.
struct Subject {
    home: tempfile::TempDir,
    /// For each layer: its file, its runs that are present, and its content.
    layers: Vec<(PathBuf, Vec<u64>, Vec<u8>)>,
    /// A manifest of the same layers with another state.
    other_manifest: Vec<u8>,
}

impl Subject {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let files =
            [layer(&[(0, 1), (1, 2), (17, 3), (16_383, 4)]), layer(&[(0, 5), (33, 6)]), layer(&[(500, 7)])];
        let place = home.path().join("one");
        let layers: Vec<&File> = files.iter().collect();
        create_plain(&place, &layers).unwrap();
        let other = home.path().join("other");
        let state = memfd(0);
        state.write_all_at(&[9; STATE.len()], 0).unwrap();
        create(&other, &description(), &state, &layers, &mut |_| None, &unwatched).unwrap();
        let other_manifest = fs::read(other.join("manifest")).unwrap();
        let snapshot = Snapshot::open(&place).unwrap();
        let layers = snapshot.layers().iter().map(|layer| {
            let runs = layer.layer().runs().iter().map(|(run, _)| run).collect();
            (place.join(format!("layer-{}", layer.id())), runs, content(layer))
        });
        let layers = layers.collect();
        drop(snapshot);
        for name in names(&place) {
            fs::set_permissions(place.join(name), Permissions::from_mode(0o600)).unwrap();
        }
        Self { home, layers, other_manifest }
    }

    fn place(&self) -> PathBuf {
        self.home.path().join("one")
    }

    /// Whether nothing is found to be wrong. Whatever is read is compared with what was saved.
    fn is_accepted(&self) -> bool {
        let Ok(snapshot) = Snapshot::open(&self.place()) else { return false };
        let state = snapshot.state();
        if let Ok(state) = &state {
            assert_eq!(state, STATE);
        }
        let mut buffer = vec![0; usize::try_from(RUN_BYTES).unwrap()];
        for (layer, (_, runs, content)) in snapshot.layers().iter().zip(&self.layers) {
            for run in runs.iter().copied().chain([2, 900]) {
                let start = usize::try_from(run * RUN_BYTES).unwrap();
                let saved = &content[start..start + buffer.len()];
                match layer.read_run(run, &mut buffer) {
                    Ok(Run::Data) => assert!(buffer == saved, "run {run} is wrong and was given out"),
                    Ok(Run::Zero) => assert!(saved.iter().all(|byte| *byte == 0), "run {run} is lost"),
                    Err(_) => {}
                }
            }
        }
        state.is_ok() && snapshot.verify(&unwatched).is_ok()
    }

    /// Changes a file, looks, and puts the file back.
    fn with_file(&self, name: &Path, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let path = self.place().join(name);
        let before = fs::read(&path).unwrap();
        let mut bytes = before.clone();
        change(&mut bytes);
        assert_ne!(bytes, before, "{name:?} has not changed");
        fs::write(&path, bytes).unwrap();
        let accepted = self.is_accepted();
        fs::write(&path, before).unwrap();
        accepted
    }

    /// Changes a byte of a layer, looks, and puts it back.
    fn with_byte(&self, layer: usize, at: u64, change: u8) -> bool {
        let (path, _, content) = &self.layers[layer];
        let byte = content[usize::try_from(at).unwrap()];
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[byte ^ change], at).unwrap();
        let accepted = self.is_accepted();
        file.write_all_at(&[byte], at).unwrap();
        accepted
    }

    /// Gives a layer's file another length, looks, and puts it back.
    fn with_length(&self, layer: usize, bytes: u64) -> bool {
        let (path, runs, content) = &self.layers[layer];
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(bytes).unwrap();
        let accepted = self.is_accepted();
        file.set_len(MEMORY_BYTES).unwrap();
        for run in runs {
            let (start, bytes) = (run * RUN_BYTES, usize::try_from(RUN_BYTES).unwrap());
            let at = usize::try_from(start).unwrap();
            file.write_all_at(&content[at..at + bytes], start).unwrap();
        }
        accepted
    }

    /// Exchanges the names of two files, looks, and exchanges them back.
    fn with_swapped(&self, one: &Path, two: &Path) -> bool {
        let swap = || {
            let aside = self.home.path().join("aside");
            fs::rename(one, &aside).unwrap();
            fs::rename(two, one).unwrap();
            fs::rename(&aside, two).unwrap();
        };
        swap();
        let accepted = self.is_accepted();
        swap();
        accepted
    }

    /// Puts something else in the place of a file or directory, looks, and puts it back.
    fn with_other(&self, path: &Path, make: impl FnOnce(&Path, &Path)) -> bool {
        let aside = self.home.path().join("aside");
        fs::rename(path, &aside).unwrap();
        make(&aside, path);
        let accepted = self.is_accepted();
        match fs::symlink_metadata(path) {
            Ok(stat) if stat.is_dir() => fs::remove_dir_all(path).unwrap(),
            Ok(_) => fs::remove_file(path).unwrap(),
            Err(_) => {}
        }
        fs::rename(&aside, path).unwrap();
        accepted
    }

    fn mutate(&self, random: &mut Random) -> (String, bool) {
        let manifest = Path::new("manifest");
        let manifest_bytes = self.other_manifest.len() as u64;
        let number = usize::try_from(random.below(3)).unwrap();
        let (path, runs, _) = &self.layers[number];
        let at = |random: &mut Random, bytes: u64| usize::try_from(random.below(bytes)).unwrap();
        let bit = 1 << random.below(8);
        match random.below(14) {
            0 | 1 => {
                let at = at(random, manifest_bytes);
                (
                    format!("bit {bit:#x} of the manifest's byte {at}"),
                    self.with_file(manifest, |bytes| bytes[at] ^= bit),
                )
            }
            2 => {
                let at = at(random, manifest_bytes);
                (format!("manifest cut to {at}"), self.with_file(manifest, |bytes| bytes.truncate(at)))
            }
            3 => {
                let more = at(random, 100) + 1;
                let add = |bytes: &mut Vec<u8>| bytes.resize(bytes.len() + more, bit);
                (format!("{more} bytes behind the manifest"), self.with_file(manifest, add))
            }
            4 => {
                // With the digest that such a manifest would have.
                let (up, version) = (random.below(2), &mut [0; 4]);
                let change = |bytes: &mut Vec<u8>| {
                    version.copy_from_slice(&bytes[8..12]);
                    let number = u32::from_le_bytes(*version);
                    let other = if up == 0 { number - 1 } else { number + 1 };
                    bytes[8..12].copy_from_slice(&other.to_le_bytes());
                    let content = bytes.len() - 32;
                    let digest = blake3::hash(&bytes[..content]);
                    bytes[content..].copy_from_slice(digest.as_bytes());
                };
                (format!("another version ({up})"), self.with_file(manifest, change))
            }
            5 => {
                let other = self.other_manifest.clone();
                ("another snapshot's manifest".to_owned(), self.with_file(manifest, |bytes| *bytes = other))
            }
            6 => {
                let at = at(random, STATE.len() as u64);
                (
                    format!("bit {bit:#x} of the state's byte {at}"),
                    self.with_file(Path::new("state"), |bytes| bytes[at] ^= bit),
                )
            }
            7 => {
                let length = at(random, 40) % 40;
                let length = if length == STATE.len() { length + 1 } else { length };
                (
                    format!("a state of {length}"),
                    self.with_file(Path::new("state"), |bytes| bytes.resize(length, 0)),
                )
            }
            8 | 9 => {
                let at = random.of(runs) * RUN_BYTES + random.below(RUN_BYTES);
                (format!("bit {bit:#x} of byte {at} in layer {number}"), self.with_byte(number, at, bit))
            }
            10 => {
                // Somewhere; most of it is a hole.
                let at = random.below(MEMORY_BYTES);
                (format!("bit {bit:#x} of byte {at} in layer {number}"), self.with_byte(number, at, bit))
            }
            11 => {
                let bytes = match random.below(3) {
                    0 => random.below(MEMORY_BYTES),
                    1 => MEMORY_BYTES + 1 + random.below(RUN_BYTES),
                    _ => MEMORY_BYTES - 4096,
                };
                (format!("layer {number} of {bytes} bytes"), self.with_length(number, bytes))
            }
            12 => {
                let other = &self.layers[(number + 1) % 3].0;
                (format!("layer {number} and the next swapped"), self.with_swapped(path, other))
            }
            _ => {
                let all =
                    [self.place(), self.place().join(manifest), self.place().join("state"), path.clone()];
                let target = random.of(&all);
                let kind = random.below(4);
                let make = |aside: &Path, path: &Path| match kind {
                    0 => symlink(aside, path).unwrap(),
                    1 => fs::create_dir(path).unwrap(),
                    2 => drop(File::create(path).unwrap()),
                    _ => {}
                };
                (format!("{target:?} replaced ({kind})"), self.with_other(target, make))
            }
        }
    }
}

#[test]
fn none_of_ten_thousand_mutations_is_accepted() {
    let subject = Subject::new();
    assert!(subject.is_accepted());
    let mut random = Random(11);
    for number in 0..MUTATIONS {
        let (what, is_accepted) = subject.mutate(&mut random);
        assert!(!is_accepted, "mutation {number} was accepted: {what}");
    }
    assert!(subject.is_accepted(), "a mutation was not undone");
}

#[test]
fn two_runs_that_are_exchanged_are_refused() {
    let subject = Subject::new();
    let (path, runs, content) = &subject.layers[0];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let run = |number: u64| {
        let start = usize::try_from(number * RUN_BYTES).unwrap();
        &content[start..start + usize::try_from(RUN_BYTES).unwrap()]
    };
    file.write_all_at(run(runs[0]), runs[1] * RUN_BYTES).unwrap();
    file.write_all_at(run(runs[1]), runs[0] * RUN_BYTES).unwrap();
    assert!(!subject.is_accepted());
}

#[test]
fn content_that_became_a_hole_is_refused() {
    let subject = Subject::new();
    let (path, runs, _) = &subject.layers[0];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, runs[1] * RUN_BYTES, RUN_BYTES).unwrap();
    assert!(!subject.is_accepted());
    let snapshot = Snapshot::open(&subject.place()).unwrap();
    let error = snapshot.verify(&unwatched).unwrap_err();
    assert!(matches!(error, VerifyError::Run(RunError::Digest { run, .. }) if run == runs[1]), "{error}");
}

#[test]
fn content_where_the_manifest_has_none_is_found_by_a_full_check() {
    let subject = Subject::new();
    let file = OpenOptions::new().write(true).open(&subject.layers[2].0).unwrap();
    file.write_all_at(&[1], 100 * RUN_BYTES + 5).unwrap();
    let snapshot = Snapshot::open(&subject.place()).unwrap();
    let error = snapshot.verify(&unwatched).unwrap_err();
    assert!(matches!(error, VerifyError::Stray { run: 100, .. }), "{error}");
    // Zeros there are what the manifest says.
    file.write_all_at(&[0], 100 * RUN_BYTES + 5).unwrap();
    snapshot.verify(&unwatched).unwrap();
}
