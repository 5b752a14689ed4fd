//! Files that nobody else can read, and folders that appear whole.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};
use tempfile::TempDir;

/// Of a private key.
pub const SECRET: u32 = 0o600;
/// Of a certificate.
pub const PUBLIC: u32 = 0o644;

/// A folder that its owner alone can look into. It may be there.
pub fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A folder beside `path`, which gets its files first and its name afterwards.
pub fn beside(path: &Path) -> io::Result<TempDir> {
    let parent = path.parent().unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Writes a file that is not there yet, and waits for the disk.
pub fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken some of it away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Gives a folder its name, under which there must be nothing, or an empty folder.
pub fn name(made: TempDir, path: &Path) -> io::Result<()> {
    fs::rename(made.path(), path)?;
    // It is no longer where it was made.
    let _moved = made.keep();
    Ok(())
}

/// Puts the files of a folder in the place of those of another one.
pub fn replace(made: &TempDir, path: &Path, names: &[&str]) -> io::Result<()> {
    names.iter().try_for_each(|name| fs::rename(made.path().join(name), path.join(name)))
}
