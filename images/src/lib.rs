//! Builds what a guest boots from: a kernel ([`kernel`]) and a root file system ([`rootfs`]).
//!
//! ```text
//!  kernel/config, kernel/patches, Debian's linux-source ──▶ kernel.rs ──▶ CACHE/kernel/KEY/vmlinux
//!  recipes/*.toml ─▶ recipe.rs ─▶ base.rs (packages, unpacked, trimmed) ─▶ CACHE/base/KEY/tree
//!                       └─ rootfs.rs (+ guest binaries) ─▶ CACHE/rootfs/KEY/rootfs.erofs
//!  Debian's kernel packages ─▶ debian_kernel.rs (tests on other hosts)
//!      ─▶ CACHE/debian-kernel/KEY-VERSION/vmlinuz
//! ```
//!
//! Every product is in the cache under a hash of all its inputs ([`cache`]). It appears there by
//! one rename, and one process builds at a time. The latest build can become the default
//! ([`make_default`]), for programs that name no image. Debian's tools do the work ([`apt`]).
//! Nothing is mounted, and once the packages are installed, nothing needs root. Each step is
//! reported to a [`Progress`].

pub mod apt;
mod base;
pub mod cache;
mod debian_kernel;
mod default;
mod files;
mod kernel;
mod ld_cache;
mod progress;
mod recipe;
mod rootfs;
mod run;

use std::path::{Path, PathBuf};

pub use apt::ensure_packages;
pub use cache::default_cache_dir;
pub use debian_kernel::{DebianKernel, DebianKernelError};
pub use default::{KERNEL_FILE, ROOTFS_FILE, default_product, make_default};
pub use progress::{Progress, Silent, Stderr};
pub use recipe::{Binary, ExtraFile, Recipe, RecipeError, Symlink};

/// Why an image could not be built: the module that failed, whose error says the rest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Debian package is missing or cannot be had.
    #[error(transparent)]
    Apt(#[from] apt::AptError),
    /// The cache directory cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// The kernel did not build.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// A Debian kernel cannot be had.
    #[error(transparent)]
    DebianKernel(#[from] debian_kernel::DebianKernelError),
    /// A recipe is not usable.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The packages could not be made into a tree.
    #[error(transparent)]
    Base(#[from] base::BaseError),
    /// The products could not be made the default ones.
    #[error(transparent)]
    Default(#[from] default::DefaultError),
    /// The tree could not be made into a root file system.
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
}

/// Finds or builds the guest kernel and returns the path of its `vmlinux`, a stripped ELF with a
/// PVH entry.
///
/// # Errors
/// See [`Error`]; after a failed build the log's path and its last lines are in the message.
pub fn kernel(cache: &Path, progress: &mut dyn Progress) -> Result<PathBuf, Error> {
    kernel::build(&cache::Cache::open(cache)?, progress)
}

/// Finds or fetches Debian's newest kernel of a series, such as `6.1`, with `modules` and what
/// these need: for tests on a host with that kernel.
///
/// # Errors
/// See [`Error`]; [`DebianKernelError::None`] where apt's sources have no kernel of the series.
pub fn debian_kernel(
    cache: &Path,
    series: &str,
    modules: &[&str],
    progress: &mut dyn Progress,
) -> Result<DebianKernel, Error> {
    debian_kernel::fetch(&cache::Cache::open(cache)?, series, modules, progress)
}

/// Finds or builds the root file system of `recipe`, an uncompressed erofs image, and returns its
/// path.
///
/// `guest_bin_dir` holds the static programs that [`Recipe::binaries`] names.
///
/// # Errors
/// See [`Error`].
pub fn rootfs(
    cache: &Path,
    recipe: &Recipe,
    guest_bin_dir: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Error> {
    rootfs::build(&cache::Cache::open(cache)?, recipe, guest_bin_dir, progress)
}
