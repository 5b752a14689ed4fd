//! The binaries and images in use, and what this machine lacks to run guests.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Directory of the host's release binaries: `vmm`, `vmmd`, `vmctl`, `scheduler`.
pub const BIN_DIR: &str = "PATINA_BIN_DIR";
/// The guest kernel.
pub const KERNEL: &str = "PATINA_KERNEL";
/// The guest's root file system.
pub const ROOTFS: &str = "PATINA_ROOTFS";
/// Directory of the static programs that tests run in guests (`avx-check`, `vsock-flood` …).
pub const GUEST_BIN_DIR: &str = "PATINA_GUEST_BIN_DIR";

/// The folder of images of booted VMs that hosts share, or `none`: every VM boots.
pub const IMAGE_CACHE: &str = "PATINA_IMAGE_CACHE";

/// What tests run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// See [`BIN_DIR`].
    pub bin_dir: PathBuf,
    /// See [`KERNEL`].
    pub kernel: PathBuf,
    /// See [`ROOTFS`].
    pub rootfs: PathBuf,
    /// See [`GUEST_BIN_DIR`].
    pub guest_bin_dir: PathBuf,
    /// See [`IMAGE_CACHE`]. None: every VM boots.
    pub image_cache: Option<PathBuf>,
}

/// What is missing to run guests here.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Taps and bridges need root.
    #[error("not root: guests need taps and bridges; run as root")]
    Root,
    /// KVM is not to be had.
    #[error("open /dev/kvm: {0}")]
    Kvm(#[source] std::io::Error),
    /// A variable that names a file is not set.
    #[error("{0} is not set: run the tests with `cargo xtask test`")]
    Variable(&'static str),
    /// A file is not there.
    #[error("{0} does not exist: run the tests with `cargo xtask test`")]
    File(PathBuf),
}

impl Setup {
    /// What the environment says, checked.
    ///
    /// # Errors
    /// [`Missing`] says what this machine or environment lacks: the reason to ignore tests with
    /// guests.
    pub fn from_env() -> Result<Self, Missing> {
        let setup = Self {
            bin_dir: variable(BIN_DIR)?,
            kernel: variable(KERNEL)?,
            rootfs: variable(ROOTFS)?,
            guest_bin_dir: variable(GUEST_BIN_DIR)?,
            image_cache: None,
        };
        setup.check()?;
        Ok(setup)
    }

    /// Has VMs start from images in a folder: the one that [`IMAGE_CACHE`] names, or else `own`.
    #[must_use]
    pub fn with_images(self, own: Option<PathBuf>) -> Self {
        let folder = env::var_os(IMAGE_CACHE).map(PathBuf::from).or(own);
        Self { image_cache: folder.filter(|folder| folder.as_os_str() != "none"), ..self }
    }

    /// Whether guests can run with this setup on this machine.
    ///
    /// # Errors
    /// [`Missing`] says what is lacking.
    pub fn check(&self) -> Result<(), Missing> {
        if !rustix::process::geteuid().is_root() {
            return Err(Missing::Root);
        }
        std::fs::File::options().read(true).write(true).open("/dev/kvm").map_err(Missing::Kvm)?;
        for binary in ["vmm", "vmmd", "vmctl", "scheduler"] {
            present(&self.bin_dir.join(binary))?;
        }
        present(&self.kernel)?;
        present(&self.rootfs)
    }

    /// A host binary.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

fn variable(name: &'static str) -> Result<PathBuf, Missing> {
    env::var_os(name).map(PathBuf::from).ok_or(Missing::Variable(name))
}

fn present(path: &Path) -> Result<(), Missing> {
    if path.is_file() { Ok(()) } else { Err(Missing::File(path.to_owned())) }
}
