//! Products, stored under a hash of their inputs.
//!
//! `CACHE/KIND/KEY/` holds one finished product. It is built in `CACHE/KIND/.building-PID/` under
//! the lock `CACHE/KIND/.lock` and then renamed, so that no incomplete product is ever visible. The
//! next build removes the files of an interrupted one. Of each kind, the [`KEPT_PRODUCTS`] that
//! were used last are kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::progress::Progress;

/// Products of one kind that stay in the cache.
pub const KEPT_PRODUCTS: usize = 4;

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No place for the cache is known.
    #[error("find the cache directory: none of PATINA_CACHE, XDG_CACHE_HOME, HOME is set; set PATINA_CACHE")]
    NoPlace,
    /// A file system operation failed.
    #[error("{operation} {} in the cache", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::File { operation, path, source }
}

/// `$PATINA_CACHE`, else `$XDG_CACHE_HOME/patina`, else `~/.cache/patina`.
///
/// # Errors
/// [`CacheError::NoPlace`] when none of the variables is set.
pub fn default_cache_dir() -> Result<PathBuf, CacheError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    choose_cache_dir(variable("PATINA_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME"))
}

fn choose_cache_dir(
    patina: Option<PathBuf>,
    xdg: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Result<PathBuf, CacheError> {
    patina
        .or_else(|| xdg.map(|cache| cache.join("patina")))
        .or_else(|| home.map(|home| home.join(".cache/patina")))
        .ok_or(CacheError::NoPlace)
}

/// A product's name in the cache, made from all its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The directory's name: hexadecimal digits, and an optional suffix after a `-`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same key with a readable part behind the digits; only `[A-Za-z0-9.+~]` of `suffix` are
    /// kept.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let clean: String = suffix
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || ".+~".contains(c) { c } else { '_' })
            .collect();
        Self(format!("{}-{clean}", self.0))
    }
}

/// Hashes named inputs, each with its length, so that no two lists of inputs read the same.
#[derive(Default)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// Adds one input.
    pub fn input(mut self, name: &str, content: &[u8]) -> Self {
        for part in [name.as_bytes(), content] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key of all inputs so far: 32 hexadecimal digits.
    pub fn key(self) -> Key {
        let digest = self.0.finalize();
        Key(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// An open cache directory.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache at `root`, making the directory if needed.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(root).map_err(failed("create", root))?;
        // Builds change directory and tools get paths on their command lines, so the path is made
        // absolute.
        let root = fs::canonicalize(root).map_err(failed("resolve", root))?;
        Ok(Self { root })
    }

    /// A fresh log file for one kind of build; the one of the build before is gone.
    pub fn fresh_log(&self, kind: &str) -> Result<PathBuf, CacheError> {
        let log = self.root.join(format!("{kind}-build.log"));
        File::create(&log).map_err(failed("create", &log))?;
        Ok(log)
    }

    /// The product with this key, if it is there. It counts as used now.
    pub fn find(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        let product = self.root.join(kind).join(key.as_str());
        // The time only orders products for removal; a cache that another user owns still serves.
        let opened = File::open(&product).ok()?;
        if opened.set_modified(SystemTime::now()).is_err() {
            return product.is_dir().then_some(product);
        }
        Some(product)
    }

    /// The last used product whose key begins with `key` and a suffix.
    pub fn find_any_suffix(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        let prefix = format!("{}-", key.as_str());
        let products = self.products(kind).ok()?;
        products.into_iter().find(|product| {
            product.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
    }

    /// Finds the product, or lets `make` fill a directory with it and publishes that.
    pub fn find_or_build<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Key,
        progress: &mut dyn Progress,
        make: impl FnOnce(&Path, &mut dyn Progress) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        if let Some(product) = self.find(kind, key) {
            return Ok(product);
        }
        let directory = self.root.join(kind);
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let _lock = lock(&directory, kind, progress)?;
        // Whoever held the lock before may have built just this.
        if let Some(product) = self.find(kind, key) {
            return Ok(product);
        }
        remove_stale(&directory)?;
        let building = directory.join(format!(".building-{}", std::process::id()));
        fs::create_dir(&building).map_err(failed("create", &building))?;
        let made = make(&building, progress);
        progress.finish();
        if let Err(error) = made {
            // The build's own error is the one to tell; what stays behind is removed by the next
            // build.
            drop(fs::remove_dir_all(&building));
            return Err(error);
        }
        let product = directory.join(key.as_str());
        fs::rename(&building, &product).map_err(failed("publish", &product))?;
        self.prune(kind)?;
        Ok(product)
    }

    /// Finished products of one kind, last used first.
    fn products(&self, kind: &str) -> Result<Vec<PathBuf>, CacheError> {
        let directory = self.root.join(kind);
        let mut products = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let entry = entry.map_err(failed("list", &directory))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let used = entry.metadata().and_then(|metadata| metadata.modified());
            products.push((used.map_err(failed("look at", &entry.path()))?, entry.path()));
        }
        products.sort_by(|a, b| b.cmp(a));
        Ok(products.into_iter().map(|(_, path)| path).collect())
    }

    fn prune(&self, kind: &str) -> Result<(), CacheError> {
        for old in self.products(kind)?.into_iter().skip(KEPT_PRODUCTS) {
            fs::remove_dir_all(&old).map_err(failed("remove the old", &old))?;
        }
        Ok(())
    }
}

/// Takes the lock of one kind of product; it is released when the file is closed, also by a crash.
fn lock(directory: &Path, kind: &str, progress: &mut dyn Progress) -> Result<File, CacheError> {
    let path = directory.join(".lock");
    let file = File::create(&path).map_err(failed("open the lock", &path))?;
    if file.try_lock().is_err() {
        progress.note(&format!("another process builds a {kind}; waiting for it"));
        file.lock().map_err(failed("wait for the lock", &path))?;
    }
    Ok(file)
}

fn remove_stale(directory: &Path) -> Result<(), CacheError> {
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        if entry.file_name().to_string_lossy().starts_with(".building-") {
            fs::remove_dir_all(entry.path()).map_err(failed("remove the unfinished", &entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod tests;
