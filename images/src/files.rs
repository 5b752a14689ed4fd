//! Small operations on the tree that becomes the root file system.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink as make_symlink};
use std::path::{Path, PathBuf};

/// A file of the tree cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

pub fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { operation, path, source }
}

/// Where the guest's absolute `path` lies in `tree`. `path` has been checked to hold no `..`.
pub fn in_tree(tree: &Path, path: &str) -> PathBuf {
    tree.join(path.trim_start_matches('/'))
}

/// Removes a file, a link or a directory with all it holds; nothing there is fine.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("look at", path)(source)),
    };
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(failed("remove", path))
}

/// Makes the directory that `path` is to lie in, and makes sure that nothing is at `path`.
///
/// Files of the tree may be hard links to a cached tree: they are replaced, never written to.
fn make_way(path: &Path) -> Result<(), FileError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
    }
    remove(path)
}

pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    make_way(path)?;
    fs::write(path, content).map_err(failed("write", path))?;
    set_mode(path, mode)
}

pub fn symlink(path: &Path, target: &str) -> Result<(), FileError> {
    make_way(path)?;
    make_symlink(target, path).map_err(failed("link", path))
}

pub fn create_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(failed("create", path))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))
}

/// The entries of a directory, sorted by name so that nothing depends on the host's file system.
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        paths.push(entry.map_err(failed("list", directory))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Makes `to` the same tree as `from`, its files hard links.
pub fn link_tree(from: &Path, to: &Path) -> Result<(), FileError> {
    let mode = fs::metadata(from).map_err(failed("look at", from))?.permissions().mode();
    fs::create_dir_all(to).map_err(failed("create", to))?;
    for path in entries(from)? {
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        let kind = fs::symlink_metadata(&path).map_err(failed("look at", &path))?.file_type();
        if kind.is_dir() {
            link_tree(&path, &target)?;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(&path).map_err(failed("read the link", &path))?;
            make_symlink(points_to, &target).map_err(failed("link", &target))?;
        } else {
            fs::hard_link(&path, &target).map_err(failed("link", &target))?;
        }
    }
    // Last, as the mode may forbid writing.
    set_mode(to, mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_tree_can_change_without_changing_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        write(&from.join("etc/passwd"), b"root", 0o644).unwrap();
        symlink(&from.join("bin"), "usr/bin").unwrap();
        link_tree(&from, &to).unwrap();
        write(&to.join("etc/passwd"), b"other", 0o600).unwrap();
        assert_eq!(fs::read(from.join("etc/passwd")).unwrap(), b"root");
        assert_eq!(fs::read(to.join("etc/passwd")).unwrap(), b"other");
        assert_eq!(fs::read_link(to.join("bin")).unwrap(), Path::new("usr/bin"));
    }

    #[test]
    fn removing_takes_directories_links_and_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path();
        write(&in_tree(tree, "/a/b/c"), b"", 0o644).unwrap();
        symlink(&in_tree(tree, "/link"), "a").unwrap();
        remove(&in_tree(tree, "/link")).unwrap();
        assert!(in_tree(tree, "/a/b/c").exists());
        remove(&in_tree(tree, "/a")).unwrap();
        remove(&in_tree(tree, "/a")).unwrap();
        assert!(entries(tree).unwrap().is_empty());
    }
}
