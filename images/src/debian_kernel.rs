//! Debian's own kernels for hosts: used by tests on hosts with other kernels.
//!
//! ```text
//!  apt's lists ─▶ newest package of a series ─▶ unpacked, depmod
//!      ─▶ CACHE/debian-kernel/KEY-VERSION/{vmlinuz, modules/NN-NAME.ko}
//! ```
//!
//! Package names contain the version, and versions disappear from the archive. So the name is
//! looked up each time. If there are no lists, the kernel in the cache is used.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::apt::{self, Package};
use crate::cache::{Cache, KeyBuilder};
use crate::files::{self, FileError};
use crate::progress::Progress;
use crate::run::{self, RunError};

/// Part of the key: raise it when this module makes something else of the same package.
const BUILDER_VERSION: &str = "1";
/// The kind of product in the cache.
const KIND: &str = "debian-kernel";
/// Debian's kernels for virtual machines: small, with KVM, bridges and taps as modules.
const FLAVOUR: &str = "-cloud-amd64";
/// Not on every user's `PATH`.
const DEPMOD: &str = "/sbin/depmod";

const PACKAGES: [apt::Needed<'_>; 3] = [
    ("dpkg", "unpacking kernel packages"),
    ("kmod", "the order in which kernel modules are loaded"),
    ("xz-utils", "unpacking kernel modules"),
];

/// A kernel that is booted with QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianKernel {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its modules, not compressed, in the order in which they are to be loaded.
    pub modules: Vec<PathBuf>,
    /// The version of the package, such as `6.1.192-2`.
    pub version: String,
}

/// A Debian kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DebianKernelError {
    /// No package of the series is in apt's lists, and none is in the cache.
    #[error(
        "find a Debian kernel: no package linux-image-{series}.*{FLAVOUR} in this system's apt sources (Debian 12 has 6.1 and 6.12)"
    )]
    None {
        /// The first two numbers of the version.
        series: String,
    },
    /// A program failed.
    #[error("unpack a Debian kernel: {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the program said.
        #[source]
        source: RunError,
    },
    /// The package does not hold what every kernel package holds.
    #[error("unpack a Debian kernel: the package has no {what}")]
    Lacks {
        /// What is missing.
        what: String,
    },
    /// A file cannot be read or written.
    #[error("unpack a Debian kernel")]
    File(#[from] FileError),
}

fn step_failed(step: &'static str) -> impl FnOnce(RunError) -> DebianKernelError {
    move |source| DebianKernelError::Step { step, source }
}

fn lacks(what: impl Into<String>) -> DebianKernelError {
    DebianKernelError::Lacks { what: what.into() }
}

/// Finds or fetches the newest kernel of `series` with `modules` and all that these depend on.
pub fn fetch(
    cache: &Cache,
    series: &str,
    modules: &[&str],
    progress: &mut dyn Progress,
) -> Result<DebianKernel, Error> {
    let key = KeyBuilder::default()
        .input("builder", BUILDER_VERSION.as_bytes())
        .input("series", series.as_bytes())
        .input("modules", modules.join(" ").as_bytes())
        .key();
    let found = match newest(series) {
        Some(found) => Some(found),
        // Without lists a kernel that is in the cache serves: nothing need be fetched.
        None => match cache.find_any_suffix(KIND, &key) {
            Some(product) => return read_product(&product),
            None => {
                apt::update_lists(&cache.fresh_log("packages")?, progress)?;
                newest(series)
            }
        },
    };
    let mut found = found.ok_or_else(|| DebianKernelError::None { series: series.to_owned() })?;
    if let Some(product) = cache.find(KIND, &key.with_suffix(&found.version)) {
        return read_product(&product);
    }
    let log = cache.fresh_log(KIND)?;
    apt::ensure_packages_logged(&PACKAGES, &log, progress)?;
    let make = |found: &Package, progress: &mut dyn Progress| {
        cache.find_or_build(KIND, &key.with_suffix(&found.version), progress, |directory, progress| {
            let deb = apt::download(&found.name, &found.version, directory, &log, progress)?;
            unpack(directory, &deb, modules, &log, progress).map_err(Error::from)
        })
    };
    let product = match make(&found, progress) {
        // The lists may be older than the archive, which has a newer version then.
        Err(Error::Apt(error)) => {
            apt::update_lists(&log, progress)?;
            found = newest(series).filter(|newer| newer.version != found.version).ok_or(error)?;
            make(&found, progress)?
        }
        made => made?,
    };
    read_product(&product)
}

/// The newest package of `series` that apt's lists have.
fn newest(series: &str) -> Option<Package> {
    let mut names = Command::new("apt-cache");
    names.args(["pkgnames", &format!("linux-image-{series}.")]);
    let names = run::output(names).ok()?;
    choose(apt::offered(names.lines().filter(|name| name.ends_with(FLAVOUR))), series)
}

/// The newest kernel of a series among packages.
fn choose(packages: Vec<Package>, series: &str) -> Option<Package> {
    let prefix = format!("linux-image-{series}.");
    let wanted = packages
        .into_iter()
        .filter(|package| package.name.starts_with(&prefix) && package.name.ends_with(FLAVOUR));
    wanted.max_by_key(|package| numbers(&package.version))
}

/// The numbers in a version, in order: enough to tell two versions of one series of kernels apart.
fn numbers(version: &str) -> Vec<u64> {
    let runs = version.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    runs.map(|run| run.parse().unwrap_or(u64::MAX)).collect()
}

fn unpack(
    directory: &Path,
    deb: &Path,
    modules: &[&str],
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DebianKernelError> {
    progress.step("unpack the kernel package");
    let tree = directory.join("tree");
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(deb).arg(&tree);
    run::logged(command, log, &mut |_| ()).map_err(step_failed("unpack the package"))?;
    let library = match tree.join("lib/modules") {
        library if library.is_dir() => library,
        _ => tree.join("usr/lib/modules"),
    };
    let folder = files::entries(&library)?.into_iter().next().ok_or_else(|| lacks("modules"))?;
    let release = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let vmlinuz = tree.join(format!("boot/vmlinuz-{release}"));
    let target = directory.join("vmlinuz");
    fs::rename(&vmlinuz, &target).map_err(files::failed("move", &vmlinuz))?;
    take_modules(&folder, &release, &directory.join("modules"), modules, log)?;
    files::remove(&tree)?;
    files::remove(deb)?;
    progress.finish();
    Ok(())
}

/// Puts `modules` and what they need into `target`, in the order of loading.
fn take_modules(
    folder: &Path,
    release: &str,
    target: &Path,
    modules: &[&str],
    log: &Path,
) -> Result<(), DebianKernelError> {
    // The package leaves this to its installation.
    let base = folder.ancestors().nth(3).unwrap_or(folder);
    let mut command = Command::new(DEPMOD);
    command.arg("-b").arg(base).arg(release);
    run::logged(command, log, &mut |_| ()).map_err(step_failed("list what modules need (depmod)"))?;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(files::failed("read", &path))
    };
    files::create_dir(target, 0o755)?;
    let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, modules)?;
    for (index, module) in order.iter().enumerate() {
        let to = target.join(format!("{index:02}-{}.ko", module_name(module)));
        let from = folder.join(module);
        if module.ends_with(".xz") {
            let mut command = Command::new("xz");
            command.arg("-dc").arg(&from);
            run::output_to(command, &to).map_err(step_failed("unpack a module"))?;
        } else {
            fs::copy(&from, &to).map_err(files::failed("copy", &from))?;
        }
    }
    Ok(())
}

/// `kvm_amd` of `kernel/arch/x86/kvm/kvm-amd.ko.xz`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// The paths of `modules` and of all that they need, each behind what it needs, from the lines of
/// `modules.dep`: `PATH: PATH…`, where what is needed first stands last. A module that is built
/// into the kernel needs no loading.
fn load_order(dep: &str, builtin: &str, modules: &[&str]) -> Result<Vec<String>, DebianKernelError> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for &module in modules {
        let line = dep.lines().filter_map(|line| line.split_once(':'));
        let Some((path, needs)) = line.into_iter().find(|(path, _)| module_name(path) == module) else {
            if builtin.lines().any(|path| module_name(path) == module) {
                continue;
            }
            return Err(lacks(format!("module {module}")));
        };
        for path in needs.split_whitespace().rev().chain([path]) {
            if seen.insert(path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// The kernel that lies in a folder of the cache, whose name ends in the version.
fn read_product(product: &Path) -> Result<DebianKernel, Error> {
    let name = product.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = name.split_once('-').map(|(_, version)| version.to_owned()).unwrap_or_default();
    let modules = files::entries(&product.join("modules")).map_err(DebianKernelError::from)?;
    Ok(DebianKernel { vmlinuz: product.join("vmlinuz"), modules, version })
}

#[cfg(test)]
#[path = "debian_kernel_test.rs"]
mod tests;
