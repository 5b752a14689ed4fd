//! The process of a `vmmd`'s pager, seen from outside.

use patina_tests::interrupt;
use rustix::fs::{SealFlags, fcntl_get_seals};
use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    time::Duration,
};

/// The memory of a layer has this name. It is sealed when it is full.
const LAYER: &str = "/memfd:patina-layer";

/// How often it is looked whether all memory has arrived.
const LOOK: Duration = Duration::from_millis(5);

/// The pager's process cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ServedError {
    /// The kernel does not show it.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what was expected there.
    #[error("{0} does not list bytes that were read")]
    Form(String),
    /// vmmd has no pager while a VM's memory should arrive.
    #[error("vmmd has no pager; does this kernel serve memory lazily?")]
    None,
    /// A signal asked us to end.
    #[error("interrupted")]
    Interrupted,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served(u32);

/// What a process has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadBytes {
    /// With its system calls, from wherever.
    pub called: u64,
    /// From disks.
    pub disk: u64,
}

impl Served {
    /// The pager that this `vmmd` has started.
    pub fn by(vmmd: Option<u32>) -> Result<Self, ServedError> {
        let vmmd = vmmd.ok_or(ServedError::None)?.to_string();
        let entries =
            fs::read_dir("/proc").map_err(|source| ServedError::Read { path: "/proc".to_owned(), source })?;
        let mut pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let found = pids.find(|pid: &u32| {
            // PID (NAME) STATE PPID
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(pager)") && stat.split_whitespace().nth(3) == Some(&vmmd)
        });
        found.map(Self).ok_or(ServedError::None)
    }

    /// Its process.
    pub fn pid(self) -> u32 {
        self.0
    }

    /// What it has read so far.
    pub fn read_bytes(self) -> Result<ReadBytes, ServedError> {
        let path = format!("/proc/{}/io", self.0);
        let text = read(&path)?;
        counted(&text).ok_or(ServedError::Form(path))
    }

    /// Whether any layer's memory is still arriving. If nobody needs the pager any longer, it ends
    /// after a while.
    pub fn is_filling(self) -> bool {
        let is_unsealed = |layer: &PathBuf| {
            // One that is closed meanwhile does not fill any longer.
            let seals = File::open(layer).ok().and_then(|layer| fcntl_get_seals(&layer).ok());
            seals.is_some_and(|seals| !seals.contains(SealFlags::WRITE))
        };
        self.layers().is_ok_and(|layers| layers.iter().any(is_unsealed))
    }

    /// The memory of the layers that it has, each by a descriptor's path.
    pub fn layers(self) -> Result<Vec<PathBuf>, ServedError> {
        let path = format!("/proc/{}/fd", self.0);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // It has ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ServedError::Read { path, source }),
        };
        let files = entries.flatten().map(|entry| entry.path());
        let is_layer = |file: &PathBuf| {
            fs::read_link(file).is_ok_and(|target| target.to_string_lossy().starts_with(LAYER))
        };
        Ok(files.filter(is_layer).collect())
    }

    /// Waits until the memory of all VMs has arrived.
    pub async fn filled(self) -> Result<(), ServedError> {
        while self.is_filling() {
            if interrupt::requested() {
                return Err(ServedError::Interrupted);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn read(path: &str) -> Result<String, ServedError> {
    fs::read_to_string(path).map_err(|source| ServedError::Read { path: path.to_owned(), source })
}

fn counted(io: &str) -> Option<ReadBytes> {
    let value = |name| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some(ReadBytes { called: value("rchar:")?, disk: value("read_bytes:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_were_read_are_found_in_what_the_kernel_shows() {
        let io = "rchar: 3012\nwchar: 0\nsyscr: 7\nread_bytes: 4096\nwrite_bytes: 1\n";
        assert_eq!(counted(io), Some(ReadBytes { called: 3012, disk: 4096 }));
        assert_eq!(counted("wchar: 0\n"), None);
        let own = Served(std::process::id()).read_bytes().unwrap();
        assert!(own.called > 0, "{own:?}");
    }

    #[test]
    fn a_process_without_a_pager_has_none() {
        assert!(matches!(Served::by(Some(std::process::id())), Err(ServedError::None)));
        assert!(matches!(Served::by(None), Err(ServedError::None)));
    }
}
