//! Builds what all commands need: Debian packages, the guest's static programs, the guest image,
//! and the host's release binaries.

use crate::{
    run::{self, RunError, cargo, run},
    steps::Steps,
};
use patina_images::{Recipe, RecipeError, Stderr as Progress, cache::CacheError};
use patina_tests::setup::{KERNEL, ROOTFS, Setup};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

/// The recipe of the image that `vmmd` starts by default.
pub const DEFAULT_RECIPE: &str = "default";

/// Programs for the guest are built for this target, so that their flags do not reach build
/// scripts.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// What runs in guests: the agent, what measures, what tests.
const GUEST_PACKAGES: [&str; 3] = ["guest-agent", "guest-bench", "patina-guest-tests"];
/// What runs on hosts.
const HOST_PACKAGES: [&str; 5] = ["vmm", "patina-pager", "vmmd", "vmctl", "scheduler"];
/// Debian packages that building the host's programs needs besides Rust and a C compiler.
const PACKAGES: [(&str, &str); 1] =
    [("libclang-dev", "building the pager (its crate for userfaultfd generates bindings)")];
/// Static and not relocated, so that nothing is looked up at their start: guest-agent/README.md.
const GUEST_FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static -C target-cpu=x86-64";

/// Why something could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// cargo failed.
    #[error("build with cargo")]
    Cargo(#[from] RunError),
    /// A package that building needs cannot be had.
    #[error("install the packages that building needs")]
    Packages(#[source] patina_images::Error),
    /// The image could not be built.
    #[error("build the guest image")]
    Image(#[from] patina_images::Error),
    /// There is no such recipe.
    #[error("read the image's recipe")]
    Recipe(#[from] RecipeError),
    /// There is nowhere to keep images.
    #[error("find the folder for built images")]
    Cache(#[from] CacheError),
    /// Standard output does not take the paths.
    #[error("write to standard output")]
    Print(#[source] io::Error),
}

/// The image's files.
#[derive(Debug)]
pub struct Image {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
}

/// `cargo xtask image`.
pub fn image_command(recipe: &str, assignments: bool) -> Result<(), BuildError> {
    let image = image(&Steps::new(), recipe)?;
    let (kernel, rootfs) = if assignments { (KERNEL, ROOTFS) } else { ("kernel", "rootfs") };
    let sign = if assignments { "=" } else { ": " };
    let (kernel_file, rootfs_file) = (image.kernel.display(), image.rootfs.display());
    writeln!(io::stdout(), "{kernel}{sign}{kernel_file}\n{rootfs}{sign}{rootfs_file}")
        .map_err(BuildError::Print)
}

/// The guest image of a recipe; what is in the cache is not built again.
pub fn image(steps: &Steps, name: &str) -> Result<Image, BuildError> {
    let recipe = Recipe::load(name)?;
    let cache = patina_images::default_cache_dir()?;
    steps.step("build the guest's programs", guest_programs)?;
    let kernel = steps.step("build the guest kernel", || -> Result<_, BuildError> {
        Ok(patina_images::kernel(&cache, &mut Progress::new())?)
    })?;
    let rootfs = steps.step("build the root file system", || -> Result<_, BuildError> {
        Ok(patina_images::rootfs(&cache, &recipe, &guest_bin_dir(), &mut Progress::new())?)
    })?;
    if name == DEFAULT_RECIPE {
        patina_images::make_default(&cache, &kernel, &rootfs).map_err(patina_images::Error::from)?;
    }
    Ok(Image { kernel, rootfs })
}

/// Builds the programs that run in guests, static and small, away from the host's.
fn guest_programs() -> Result<(), RunError> {
    let packages = GUEST_PACKAGES.iter().flat_map(|package| ["-p", package]);
    let mut command = cargo(&["build", "--profile", "guest", "--target", GUEST_TARGET]);
    command.args(packages).arg("--target-dir").arg(guest_target_dir()).env("RUSTFLAGS", GUEST_FLAGS);
    run(&mut command)
}

fn guest_target_dir() -> PathBuf {
    run::target_dir().join("guest")
}

/// Where the programs for the guest are.
fn guest_bin_dir() -> PathBuf {
    guest_target_dir().join(GUEST_TARGET).join("guest")
}

/// Installs what building needs, as far as it is missing.
pub fn packages() -> Result<(), BuildError> {
    let installed = patina_images::ensure_packages(&PACKAGES, &mut Progress::new());
    installed.map_err(|error| BuildError::Packages(error.into()))
}

/// Builds all that tests, benchmarks and the demo run with.
pub fn everything(steps: &Steps, recipe: &str) -> Result<Setup, BuildError> {
    packages()?;
    let image = image(steps, recipe)?;
    let packages = HOST_PACKAGES.iter().flat_map(|package| ["-p", package]);
    steps.step("build vmm, pager, vmmd, vmctl and scheduler", || {
        run(cargo(&["build", "--release"]).args(packages))
    })?;
    Ok(Setup {
        bin_dir: run::target_dir().join("release"),
        kernel: image.kernel,
        rootfs: image.rootfs,
        guest_bin_dir: guest_bin_dir(),
        image_cache: None,
    })
}
