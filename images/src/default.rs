//! The default image: `/usr/lib/patina`, where a package would install it, or otherwise `default/`
//! in the cache, with two links to the latest build.

use crate::cache::default_cache_dir;
use std::io;
use std::path::{Path, PathBuf};

/// The kernel's name among the defaults.
pub const KERNEL_FILE: &str = "vmlinux";
/// The root file system's.
pub const ROOTFS_FILE: &str = "rootfs.erofs";

const INSTALLED: &str = "/usr/lib/patina";
const FOLDER: &str = "default";

/// A product could not be made the default.
#[derive(Debug, thiserror::Error)]
#[error("make {product} the default image: link {link} to it")]
pub struct DefaultError {
    product: PathBuf,
    link: PathBuf,
    source: io::Error,
}

/// Where the default `file` is: the installed one, or the cache's. Whether it is there is for the
/// caller to see.
#[must_use]
pub fn default_product(file: &str) -> PathBuf {
    let installed = Path::new(INSTALLED).join(file);
    match default_cache_dir() {
        Ok(cache) if !installed.exists() => cache.join(FOLDER).join(file),
        _ => installed,
    }
}

/// Makes `kernel` and `rootfs`, products of `cache`, the default ones.
///
/// # Errors
/// A link cannot be made.
pub fn make_default(cache: &Path, kernel: &Path, rootfs: &Path) -> Result<(), DefaultError> {
    let folder = cache.join(FOLDER);
    for (product, file) in [(kernel, KERNEL_FILE), (rootfs, ROOTFS_FILE)] {
        let link = folder.join(file);
        replace_link(product, &folder, &link).map_err(|source| DefaultError {
            product: product.to_owned(),
            link: link.clone(),
            source,
        })?;
    }
    Ok(())
}

/// By a rename, so that whoever opens the link finds the old product or the new one.
fn replace_link(product: &Path, folder: &Path, link: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let fresh = link.with_extension(format!("new-{}", std::process::id()));
    std::os::unix::fs::symlink(product, &fresh)?;
    std::fs::rename(&fresh, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_made_default_is_found() {
        let cache = tempfile::tempdir().expect("a folder");
        let rootfs = cache.path().join("r");
        for kernel in ["one", "two"] {
            make_default(cache.path(), &cache.path().join(kernel), &rootfs).expect("links");
        }
        let link = std::fs::read_link(cache.path().join(FOLDER).join(KERNEL_FILE)).expect("a link");
        assert_eq!(link, cache.path().join("two"));
        assert_eq!(std::fs::read_dir(cache.path().join(FOLDER)).expect("the folder").count(), 2);
    }
}
