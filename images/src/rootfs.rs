//! The root file system: the Debian tree, the guest's own programs and the recipe's files, as an
//! erofs image.
//!
//! erofs is read-only by design and needs no journal. The image is uncompressed, because
//! decompression is work for the guest's kernel, which may be emulated and slow. Times, owners and
//! the volume's UUID are fixed, so the same tree gives the same image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::apt;
use crate::base;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::files::{self, FileError};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::run::{self, RunError};

/// Part of the key: raise it when this module makes another image from the same inputs.
const BUILDER_VERSION: &str = "1";

const PACKAGES: [apt::Needed<'_>; 1] = [("erofs-utils", "making the root file system's image")];

/// 2025-01-01, for every file.
const TIMESTAMP: &str = "1735689600";

/// Largest guest program: one that is larger would be a mistake, not a program.
const BINARY_MAX_BYTES: u64 = 256 * 1024 * 1024;

/// The tree could not be made into a root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A program that the recipe wants is not there.
    #[error(
        "build the root file system: recipe {recipe:?} needs the guest program {name:?}, but {} cannot be read; \
         build the guest programs first (`cargo xtask image` does)",
        path.display()
    )]
    MissingBinary {
        /// The recipe.
        recipe: String,
        /// The program.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A program is not one that a guest can run, or far too large.
    #[error("build the root file system: {} is not a static 64-bit ELF program of at most {BINARY_MAX_BYTES} bytes", path.display())]
    NotAProgram {
        /// The file.
        path: PathBuf,
    },
    /// A file of the tree cannot be read or written.
    #[error("build the root file system")]
    File(#[from] FileError),
    /// mkfs.erofs failed.
    #[error("build the root file system: make the image")]
    Image {
        /// What it said.
        #[source]
        source: RunError,
    },
}

/// A guest program with its content.
struct Program {
    path: String,
    content: Vec<u8>,
}

/// Finds or builds the image.
pub fn build(
    cache: &Cache,
    recipe: &Recipe,
    guest_bin_dir: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Error> {
    let programs = read_programs(recipe, guest_bin_dir)?;
    let key = key(recipe, &programs);
    // The common case costs nothing: the tree that the image is made of is not even looked for.
    if let Some(product) = cache.find("rootfs", &key) {
        return Ok(product.join("rootfs.erofs"));
    }
    let tree = base::build(cache, recipe, progress)?;
    let product = cache.find_or_build("rootfs", &key, progress, |directory, progress| {
        let log = cache.fresh_log("packages")?;
        apt::ensure_packages_logged(&PACKAGES, &log, progress)?;
        let log = cache.fresh_log("rootfs")?;
        progress.step("root file system: make the image");
        make_image(directory, &tree, recipe, &programs, &key, &log).map_err(Error::from)
    })?;
    Ok(product.join("rootfs.erofs"))
}

fn read_programs(recipe: &Recipe, directory: &Path) -> Result<Vec<Program>, RootfsError> {
    let mut programs = Vec::new();
    for binary in &recipe.binaries {
        let path = directory.join(&binary.name);
        let missing = |source| RootfsError::MissingBinary {
            recipe: recipe.name.clone(),
            name: binary.name.clone(),
            path: path.clone(),
            source,
        };
        let bytes = fs::metadata(&path).map_err(missing)?.len();
        if bytes > BINARY_MAX_BYTES {
            return Err(RootfsError::NotAProgram { path });
        }
        let content = fs::read(&path).map_err(missing)?;
        if !is_static_elf64(&content) {
            return Err(RootfsError::NotAProgram { path });
        }
        programs.push(Program { path: binary.path.clone(), content });
    }
    Ok(programs)
}

/// Whether this is an x86-64 ELF program without an interpreter: a dynamic one would lack its
/// libraries or spend the guest's time on finding them.
fn is_static_elf64(content: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    const EM_X86_64: u16 = 62;
    let u16_at = |at: usize| content.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    if !content.starts_with(b"\x7fELF\x02\x01") || u16_at(18) != Some(EM_X86_64) {
        return false;
    }
    let Some(table) = content.get(32..40).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
    else {
        return false;
    };
    let (Some(size), Some(count)) = (u16_at(54), u16_at(56)) else { return false };
    (0..u64::from(count)).all(|index| {
        let at = index.checked_mul(u64::from(size)).and_then(|offset| table.checked_add(offset));
        let at = at.and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
        let kind =
            at.checked_add(4).and_then(|end| content.get(at..end)).and_then(|bytes| bytes.try_into().ok());
        kind.map(u32::from_le_bytes).is_some_and(|kind| kind != PT_INTERP)
    })
}

fn key(recipe: &Recipe, programs: &[Program]) -> Key {
    let mut key = KeyBuilder::default()
        .input("builder", BUILDER_VERSION.as_bytes())
        .input("base", base::key(recipe).as_str().as_bytes());
    for program in programs {
        key = key.input("program", program.path.as_bytes()).input("content", &program.content);
    }
    for file in &recipe.files {
        key = key
            .input("file", file.path.as_bytes())
            .input("executable", &[u8::from(file.executable)])
            .input("content", file.content.as_bytes());
    }
    for link in &recipe.symlinks {
        key = key.input("symlink", link.path.as_bytes()).input("target", link.target.as_bytes());
    }
    key.key()
}

fn make_image(
    directory: &Path,
    base_tree: &Path,
    recipe: &Recipe,
    programs: &[Program],
    key: &Key,
    log: &Path,
) -> Result<(), RootfsError> {
    let tree = directory.join("tree");
    files::link_tree(base_tree, &tree)?;
    for program in programs {
        files::write(&files::in_tree(&tree, &program.path), &program.content, 0o755)?;
    }
    for file in &recipe.files {
        let mode = if file.executable { 0o755 } else { 0o644 };
        files::write(&files::in_tree(&tree, &file.path), file.content.as_bytes(), mode)?;
    }
    for link in &recipe.symlinks {
        files::symlink(&files::in_tree(&tree, &link.path), &link.target)?;
    }
    let mut mkfs = Command::new("mkfs.erofs");
    // -x-1: no extended attributes; what dpkg unpacks has none that a guest needs.
    mkfs.args(["-x-1", "--all-root", "-T", TIMESTAMP, "-U", &uuid(key)]);
    mkfs.arg(directory.join("rootfs.erofs")).arg(&tree);
    run::logged(mkfs, log, &mut |_| {}).map_err(|source| RootfsError::Image { source })?;
    files::remove(&tree)?;
    Ok(())
}

/// A UUID (version 8, "custom") made of the key.
fn uuid(key: &Key) -> String {
    let digits = key.as_str();
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

#[cfg(test)]
#[path = "rootfs_test.rs"]
mod tests;
