//! A snapshot's files.

use rustix::{
    fs::{Advice, SeekFrom, fadvise, fsync, seek},
    io::Errno,
};
use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const READ_BYTES: usize = 1 << 20;

/// The files of a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}")]
pub struct PlaceError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError { what, path: path.to_owned(), source }
}

/// A folder for snapshots, which goes with all that is in it.
pub fn folder() -> Result<TempDir, PlaceError> {
    let folder = tempfile::Builder::new().prefix("patina-bench-").tempdir();
    folder.map_err(failed("make a temporary directory in", &std::env::temp_dir()))
}

/// Where a snapshot is.
#[derive(Debug)]
pub struct Place(PathBuf);

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(formatter)
    }
}

impl Place {
    /// One of this name; nothing is there yet.
    pub fn in_folder(folder: &TempDir, name: &str) -> Self {
        Self(folder.path().join(name))
    }

    fn files(&self) -> Result<Vec<PathBuf>, PlaceError> {
        let entries = fs::read_dir(&self.0).map_err(failed("list", &self.0))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
    }

    /// The largest of its files: that of its oldest layer.
    pub fn largest_file(&self) -> Result<PathBuf, PlaceError> {
        let length = |path: &PathBuf| path.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let none = || failed("find a layer in", &self.0)(io::ErrorKind::NotFound.into());
        self.files()?.into_iter().max_by_key(length).ok_or_else(none)
    }

    /// Drops its files from the host's page cache.
    pub fn drop_from_cache(&self) -> Result<(), PlaceError> {
        for path in self.files()? {
            let file = File::open(&path).map_err(failed("open", &path))?;
            // Pages that are not written yet would stay.
            let dropped = fsync(&file).and_then(|()| fadvise(&file, 0, None, Advice::DontNeed));
            dropped.map_err(|errno| failed("drop from the page cache", &path)(errno.into()))?;
        }
        Ok(())
    }

    /// Reads its files, so that the host's page cache has them.
    pub fn bring_into_cache(&self) -> Result<(), PlaceError> {
        for path in self.files()? {
            let file = File::open(&path).map_err(failed("open", &path))?;
            read_data(&file).map_err(failed("read", &path))?;
        }
        Ok(())
    }
}

/// Reads a file without its holes: read, they would take as much of the page cache as data.
fn read_data(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut end = 0;
    loop {
        let mut at = match seek(file, SeekFrom::Data(end)) {
            Ok(at) => at,
            // There is no more.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        end = seek(file, SeekFrom::Hole(at))?;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
            match file.read_at(&mut buffer[..wanted], at)? {
                0 => break,
                count => at += count as u64,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_file_is_found() {
        let folder = folder().unwrap();
        let place = Place::in_folder(&folder, "snapshot");
        assert!(place.largest_file().is_err());
        fs::create_dir(&place.0).unwrap();
        fs::write(place.0.join("manifest"), "words").unwrap();
        let layer = place.0.join("layer");
        File::create(&layer).unwrap().write_all_at(&[1], 1 << 20).unwrap();
        assert_eq!(place.largest_file().unwrap(), layer);
        place.drop_from_cache().unwrap();
        place.bring_into_cache().unwrap();
    }
}
