//! Real distributions' kernels: what `vmctl run --kernel` does with one before the guest runs.
//!
//! Of Debian's, the cloud kernels are packed with lz4 (6.1) and zstd (6.12), the general one of 6.1
//! with xz. They are what `cargo xtask test --l1` has downloaded for its emulated hosts. Where
//! there is none this shows as ignored, with the reason.

use libtest_mimic::{Arguments, Failed, Trial};
use patina_control::kernel::Format;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vm_memory::{Bytes, GuestAddress};
use vmm::boot::kernel::{Entry, load};
use vmm::memory::allocate;

const RAM_BYTES: u64 = 512 << 20;
/// Where Linux for x86-64 is loaded.
const KERNEL: u64 = 16 << 20;
/// More than its part with the banner takes.
const KERNEL_MAX_BYTES: usize = 64 << 20;

fn main() -> ExitCode {
    let kernels = kernels();
    let mut trials: Vec<Trial> = Vec::new();
    for (version, file) in kernels {
        let name = format!("debians_kernel_{version}_is_unpacked_and_loaded");
        trials.push(Trial::test(name, move || unpacked_and_loaded(&version, &file)));
    }
    if trials.is_empty() {
        let name = "debians_kernels_are_unpacked_and_loaded [none is in the cache: `cargo xtask test --l1` downloads some]";
        trials.push(Trial::test(name, || Ok(())).with_ignored_flag(true));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Those in the cache, by version.
fn kernels() -> Vec<(String, PathBuf)> {
    let own = std::env::var_os("PATINA_CACHE").map(PathBuf::from);
    let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/patina"));
    let Some(cache) = own.or_else(usual) else { return Vec::new() };
    let folders = fs::read_dir(cache.join("debian-kernel")).into_iter().flatten().flatten();
    let kernel = |folder: fs::DirEntry| {
        // A digest, and the version of the package.
        let version = folder.file_name().to_str()?.split_once('-')?.1.to_owned();
        let file = folder.path().join("vmlinuz");
        file.exists().then_some((version, file))
    };
    let mut kernels: Vec<_> = folders.filter_map(kernel).collect();
    kernels.sort();
    kernels
}

fn unpacked_and_loaded(version: &str, path: &Path) -> Result<(), Failed> {
    let file = File::open(path)?;
    let format = Format::of_file(&file)?;
    if format != Format::BzImage {
        return Err(format!("taken for {format:?}").into());
    }
    let release = version.split(['.', '_']).take(2).collect::<Vec<_>>().join(".");
    let banner = format!("Linux version {release}.");
    let memory = allocate(RAM_BYTES)?.1;
    let entry = load(file, &memory)?;
    // Debian's kernels have the note of the short way in.
    if !matches!(entry, Entry::Pvh(address) if (KERNEL..RAM_BYTES).contains(&address.into())) {
        return Err(format!("entered at {entry:?}").into());
    }
    let mut loaded = vec![0; KERNEL_MAX_BYTES];
    memory.read_slice(&mut loaded, GuestAddress(KERNEL))?;
    if contains(&loaded, banner.as_bytes()) {
        Ok(())
    } else {
        Err(format!("{banner:?} is not in RAM").into())
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
