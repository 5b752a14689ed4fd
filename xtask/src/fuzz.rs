//! Runs the fuzz targets in `fuzz/` (libFuzzer), which read bytes that may be of any kind.
//!
//! They are compiled by the toolchain that compiles everything else. It counts which branches run;
//! that needs flags of LLVM, but no nightly toolchain. Seeds are committed as hexadecimal digits.
//! What a run finds beyond them stays in the target directory, and the next run begins with it.

use crate::{
    run::{RunError, cargo, run, run_apart, target_dir, workspace},
    steps::{Steps, with_causes},
};
use std::{
    fs, io,
    num::NonZero,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

/// How long each target runs in `cargo xtask test`, seconds.
const SECONDS: u32 = 60;
/// Build scripts are not compiled with the flags if the target is named.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Counters for each branch, and reports of what is compared.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// A program of `fuzz/Cargo.toml`.
struct Target {
    name: &'static str,
    /// Files of hexadecimal digits, besides those in `fuzz/seeds/NAME`.
    seeds: &'static [&'static str],
    /// The longest input that is tried, bytes.
    max_bytes: u32,
}

const TARGETS: [Target; 3] = [
    Target { name: "container", seeds: &[], max_bytes: 4096 },
    Target { name: "free_pages", seeds: &[], max_bytes: 4096 },
    Target { name: "manifest", seeds: &["snapshot/src/manifest/golden_v1.txt"], max_bytes: 8192 },
];

/// Why fuzzing did not pass.
#[derive(Debug, thiserror::Error)]
pub enum FuzzError {
    /// There is no such target.
    #[error("fuzz {name}: there is no such target; there are: {}", names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It could not be built, or it found a fault.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The target found a fault.
    #[error(
        "fuzz {target}: it found a fault: its output is above; {} has the input: `xxd -p` makes a seed of it for \
         fuzz/seeds/{target}", .found.display()
    )]
    Found {
        /// The target.
        target: &'static str,
        /// The beginning of the files with inputs that it writes.
        found: PathBuf,
        /// How it ended.
        source: RunError,
    },
    /// A seed cannot be read or written.
    #[error("prepare the seed {path}")]
    Seed {
        /// Its file.
        path: PathBuf,
        /// The system's reason, or what is wrong with its digits.
        source: io::Error,
    },
}

fn names() -> String {
    TARGETS.map(|target| target.name).join(", ")
}

/// Each target for a minute.
pub fn check(steps: &Steps) -> Result<(), FuzzError> {
    fuzz(steps, None, SECONDS)
}

/// One target, or all of them, each for so many seconds. As many run at the same time as there are
/// CPUs. What one has printed that found a fault is shown when it has ended; of another its counts.
pub fn fuzz(steps: &Steps, only: Option<&str>, seconds: u32) -> Result<(), FuzzError> {
    let chosen: Vec<_> =
        TARGETS.iter().filter(|target| only.is_none_or(|name| name == target.name)).collect();
    if chosen.is_empty() {
        return Err(FuzzError::Unknown { name: only.unwrap_or_default().to_owned() });
    }
    let folder = target_dir().join("fuzz");
    steps.step("build the fuzz targets", || {
        let mut build = cargo(&["build", "--quiet", "--release", "--target", TRIPLE]);
        build.arg("--manifest-path").arg(workspace().join("fuzz/Cargo.toml"));
        build.arg("--target-dir").arg(&folder);
        run(build.env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))
    })?;
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let mut faults = side_by_side(&chosen, cpus, |target| {
        let what = format!("fuzz {} for {seconds} s", target.name);
        steps.step(&what, || run_target(target, &folder, seconds))
    })
    .into_iter();
    let first = faults.next();
    // The caller shows the first one.
    for other in faults {
        steps.note(&with_causes(&other));
    }
    first.map_or(Ok(()), Err)
}

/// Does `work` for each item, for at most `at_once` at the same time: its errors. An error keeps
/// none of the others from their turn.
fn side_by_side<T: Sync, E: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Vec<E> {
    let waiting = Mutex::new(items.iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let in_turn = || std::iter::from_fn(next).filter_map(|item| work(item).err()).collect::<Vec<_>>();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once.min(items.len())).map(|_| scope.spawn(in_turn)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<E>>| {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    })
}

fn run_target(target: &'static Target, folder: &Path, seconds: u32) -> Result<(), FuzzError> {
    let corpus = folder.join("corpus").join(target.name);
    fs::create_dir_all(&corpus).map_err(|source| FuzzError::Seed { path: corpus.clone(), source })?;
    for (number, path) in seeds(target)?.into_iter().enumerate() {
        let write = |text: String| fs::write(corpus.join(format!("seed-{number}")), bytes_of(&text)?);
        fs::read_to_string(&path).and_then(write).map_err(|source| FuzzError::Seed { path, source })?;
    }
    let found = folder.join(format!("{}-", target.name));
    let mut command = Command::new(folder.join(TRIPLE).join("release").join(target.name));
    command.args(["-verbosity=0", "-print_final_stats=1", "-timeout=10", "-rss_limit_mb=1024"]);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={}", target.max_bytes));
    command.arg(format!("-artifact_prefix={}", found.display())).arg(corpus);
    let (outcome, printed) = run_apart(&mut command);
    let is_shown = |line: &&str| outcome.is_err() || line.starts_with("stat::");
    let shown: Vec<_> = printed.lines().filter(is_shown).collect();
    patina_daemon::say!("{}:\n{}", target.name, shown.join("\n"));
    outcome.map_err(|source| FuzzError::Found { target: target.name, found, source })
}

/// The files with a target's seeds.
fn seeds(target: &Target) -> Result<Vec<PathBuf>, FuzzError> {
    let mut seeds: Vec<_> = target.seeds.iter().map(|seed| workspace().join(seed)).collect();
    let folder = workspace().join("fuzz/seeds").join(target.name);
    match fs::read_dir(&folder) {
        Ok(entries) => {
            let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
            seeds.extend(paths.map_err(|source| FuzzError::Seed { path: folder, source })?);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(FuzzError::Seed { path: folder, source }),
    }
    seeds.sort();
    Ok(seeds)
}

/// The bytes of hexadecimal digits. Lines that begin with `#` are comments.
fn bytes_of(text: &str) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "it is not pairs of hexadecimal digits");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: String = lines.flat_map(str::split_ascii_whitespace).collect();
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
        u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).map_err(|_| wrong())
    };
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fuzz_target_is_run_and_has_seeds() {
        let manifest = fs::read_to_string(workspace().join("fuzz/Cargo.toml")).expect("the manifest");
        let programs = manifest.split("[[bin]]").skip(1).map(|program| {
            program.split("name = \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a name")
        });
        let run: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(programs.collect::<Vec<_>>(), run);
        for target in &TARGETS {
            let seeds = seeds(target).expect("seeds");
            assert!(!seeds.is_empty(), "{}", target.name);
            for seed in seeds {
                let bytes = bytes_of(&fs::read_to_string(&seed).expect("a seed")).expect("digits");
                assert!((1..=target.max_bytes as usize).contains(&bytes.len()), "{}", seed.display());
            }
        }
    }

    #[test]
    fn work_is_done_side_by_side_and_a_fault_stops_no_other() {
        // Each pair waits for its other: one after the other, nobody would come to an end.
        let pair = std::sync::Barrier::new(2);
        let running = Mutex::new((0, 0));
        let mut faults = side_by_side(&[1, 2, 3, 4, 5, 6], 2, |item| {
            let count = |by: i32| {
                let mut counts = running.lock().expect("no panic");
                counts.0 += by;
                counts.1 = counts.0.max(counts.1);
            };
            count(1);
            pair.wait();
            count(-1);
            if item % 3 == 0 { Err(*item) } else { Ok(()) }
        });
        faults.sort_unstable();
        assert_eq!(faults, [3, 6]);
        assert_eq!(running.into_inner().expect("no panic").1, 2, "never more than so many");
        assert_eq!(side_by_side(&[1, 2], 9, |item| Err::<(), _>(*item)).len(), 2);
    }

    #[test]
    fn digits_are_read_in_pairs_and_comments_are_not() {
        assert_eq!(bytes_of("# 77\n00 ff\n7\nF\n").expect("digits"), [0, 0xff, 0x7f]);
        for wrong in ["0", "0g", "+1", "é"] {
            assert!(bytes_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_named_with_those_that_are() {
        let error = fuzz(&Steps::new(), Some("other"), 1).expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "fuzz other: there is no such target; there are: container, free_pages, manifest"
        );
    }
}
