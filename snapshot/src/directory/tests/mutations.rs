//! Whatever is changed in a snapshot: it is refused, or what is read is what was saved.

use super::*;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

/// So many that differ from each other.
const MUTATIONS: usize = 10_000;

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
        // In memory: 10,000 changes of files on a disk take minutes.
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        let files =
            [layer(&[(0, 1), (1, 2), (17, 3), (16_383, 4)]), layer(&[(0, 5), (33, 6)]), layer(&[(500, 7)])];
        let place = home.path().join("one");
        let layers: Vec<&File> = files.iter().collect();
        create_plain(&place, &layers).unwrap();
        let other = home.path().join("other");
        let state = memfd(0);
        state.write_all_at(&[9; STATE.len()], 0).unwrap();
        create(&other, &description(), &state, (&layers, &[]), &mut |_| None, &unwatched).unwrap();
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
        let zeros = buffer.clone();
        for (layer, (_, runs, content)) in snapshot.layers().iter().zip(&self.layers) {
            for run in runs.iter().copied().chain([2, 900]) {
                let start = usize::try_from(run * RUN_BYTES).unwrap();
                let saved = &content[start..start + buffer.len()];
                match layer.read_run(run, &mut buffer) {
                    Ok(Run::Data) => assert!(buffer == saved, "run {run} is wrong and was given out"),
                    Ok(Run::Zero) => assert!(saved == zeros, "run {run} is lost"),
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

    /// Locks the directory as whoever writes it does, looks, and unlocks it.
    fn with_writer(&self) -> bool {
        let place = File::open(self.place()).unwrap();
        flock(&place, FlockOperation::LockExclusive).unwrap();
        self.is_accepted()
    }

    /// What was changed, with the region first, and whether it was accepted. Each change has words
    /// of its own.
    fn mutate(&self, random: &mut Random) -> (String, bool) {
        match random.below(14) {
            0..=5 => self.mutate_manifest(random),
            6 | 7 => self.mutate_state(random),
            8..=11 => self.mutate_layer(random),
            _ => self.mutate_names(random),
        }
    }

    fn mutate_manifest(&self, random: &mut Random) -> (String, bool) {
        let (bit, kind) = (1 << random.below(8), random.below(6));
        let at = usize::try_from(random.below(self.other_manifest.len() as u64)).unwrap();
        let change = |bytes: &mut Vec<u8>| match kind {
            0 | 1 => bytes[at] ^= bit,
            2 => bytes.truncate(at),
            3 => bytes.resize(bytes.len() + 1 + at % 100, bit),
            // With the digest that such a manifest would have.
            4 => {
                let version = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
                let other = if at % 2 == 0 { version - 1 } else { version + 1 };
                bytes[8..12].copy_from_slice(&other.to_le_bytes());
                let content = bytes.len() - 32;
                let digest = blake3::hash(&bytes[..content]);
                bytes[content..].copy_from_slice(digest.as_bytes());
            }
            _ => bytes.clone_from(&self.other_manifest),
        };
        let what = match kind {
            0 | 1 => format!("byte {at}, bit {bit:#x}"),
            2 => format!("cut to {at} bytes"),
            3 => format!("{} more bytes {bit:#x}", 1 + at % 100),
            4 => format!("version up: {}", at % 2),
            _ => "that of another state".into(),
        };
        (format!("manifest: {what}"), self.with_file(Path::new("manifest"), change))
    }

    fn mutate_state(&self, random: &mut Random) -> (String, bool) {
        let (bit, is_cut) = (1 << random.below(8), random.below(2) == 0);
        let at = usize::try_from(random.below(STATE.len() as u64)).unwrap();
        let change = |bytes: &mut Vec<u8>| match (is_cut, bit) {
            (false, _) => bytes[at] ^= bit,
            (true, 1) => bytes.resize(bytes.len() + 1 + at, 0),
            (true, _) => bytes.truncate(at),
        };
        let what = match (is_cut, bit) {
            (false, _) => format!("byte {at}, bit {bit:#x}"),
            (true, 1) => format!("{} more bytes", 1 + at),
            (true, _) => format!("cut to {at} bytes"),
        };
        (format!("state: {what}"), self.with_file(Path::new("state"), change))
    }

    fn mutate_layer(&self, random: &mut Random) -> (String, bool) {
        let number = usize::try_from(random.below(3)).unwrap();
        let bit = 1 << random.below(8);
        let (what, accepted) = match random.below(4) {
            0 | 1 => {
                let at = random.of(&self.layers[number].1) * RUN_BYTES + random.below(RUN_BYTES);
                (format!("byte {at}, bit {bit:#x}"), self.with_byte(number, at, bit))
            }
            // Somewhere; most of it is a hole.
            2 => {
                let at = random.below(MEMORY_BYTES);
                (format!("byte {at}, bit {bit:#x}"), self.with_byte(number, at, bit))
            }
            _ => {
                let lengths = [
                    random.below(MEMORY_BYTES),
                    MEMORY_BYTES + 1 + random.below(RUN_BYTES),
                    MEMORY_BYTES - 4096,
                ];
                let bytes = *random.of(&lengths);
                (format!("{bytes} bytes long"), self.with_length(number, bytes))
            }
        };
        (format!("layer {number}: {what}"), accepted)
    }

    fn mutate_names(&self, random: &mut Random) -> (String, bool) {
        let number = usize::try_from(random.below(3)).unwrap();
        let path = &self.layers[number].0;
        match random.below(8) {
            0..=3 => {
                let other = &self.layers[(number + 1) % 3].0;
                return (
                    format!("names: layer {number} and the next swapped"),
                    self.with_swapped(path, other),
                );
            }
            4 => return ("names: being written".into(), self.with_writer()),
            _ => {}
        }
        let place = self.place();
        let all = [place.join("manifest"), place.join("state"), path.clone(), place];
        let (target, kind) = (random.of(&all), random.below(4));
        let make = |aside: &Path, path: &Path| match kind {
            0 => symlink(aside, path).unwrap(),
            1 => fs::create_dir(path).unwrap(),
            2 => drop(File::create(path).unwrap()),
            _ => {}
        };
        (format!("names: {target:?} replaced ({kind})"), self.with_other(target, make))
    }
}

#[test]
fn none_of_ten_thousand_mutations_is_accepted() {
    let subject = Subject::new();
    assert!(subject.is_accepted());
    let mut random = Random(11);
    let mut seen = BTreeSet::new();
    while seen.len() < MUTATIONS {
        let (what, is_accepted) = subject.mutate(&mut random);
        assert!(!is_accepted, "mutation {} was accepted: {what}", seen.len());
        seen.insert(what);
    }
    assert!(subject.is_accepted(), "a mutation was not undone");
    let mut regions = BTreeMap::new();
    for what in &seen {
        *regions.entry(what.split(':').next().unwrap()).or_insert(0) += 1;
    }
    let regions: Vec<_> = regions.into_iter().collect();
    println!("different mutations: {regions:?}");
    let names: Vec<_> = regions.iter().map(|(region, _)| *region).collect();
    assert_eq!(names, ["layer 0", "layer 1", "layer 2", "manifest", "names", "state"]);
    // All of the few that there are: three swaps, a writer, and four things in place of six.
    assert_eq!(regions[4].1, 28, "{regions:?}");
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
