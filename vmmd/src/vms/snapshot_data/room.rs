//! Room for the memory of restored VMs. A snapshot's memory comes into files in memory, which the
//! kernel does not take back: more than there is would end other processes.

use patina_daemon::lock;
use std::{
    fs, io,
    sync::{Arc, Mutex, MutexGuard},
};

const KIB: u64 = 1024;

/// There is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "its memory takes {} MiB, and of the host's {} MiB of available memory other restores take {} MiB; \
     end VMs, or restore it on another host", needed >> 20, available >> 20, taken >> 20
)]
pub struct NoRoom {
    needed: u64,
    available: u64,
    taken: u64,
}

/// The memory that restores under way will take, bytes.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<Mutex<u64>>);

/// A part of it, until this is dropped.
#[derive(Debug)]
pub struct Taken {
    room: Room,
    bytes: u64,
}

impl Room {
    fn taken(&self) -> MutexGuard<'_, u64> {
        // No code panics under this lock; if some did, the number is still whole.
        lock(&self.0)
    }

    /// Takes so many bytes of those that the host has available. What was taken before counts as
    /// not used yet.
    ///
    /// # Errors
    /// There are not so many.
    pub fn take(&self, needed: u64, available: u64) -> Result<Taken, NoRoom> {
        let mut taken = self.taken();
        if needed > available.saturating_sub(*taken) {
            return Err(NoRoom { needed, available, taken: *taken });
        }
        *taken += needed;
        drop(taken);
        Ok(Taken { room: self.clone(), bytes: needed })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.room.taken() -= self.bytes;
    }
}

/// The memory that this host can give away without taking it from anybody, bytes.
///
/// # Errors
/// The kernel does not say it.
pub fn available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    available_in(&text).ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_take_no_more_memory_together_than_there_is() {
        let room = Room::default();
        let first = room.take(600 << 20, 1000 << 20).unwrap();
        let error = room.take(500 << 20, 1000 << 20).unwrap_err();
        let words = error.to_string();
        assert!(["500 MiB", "1000 MiB", "600 MiB"].iter().all(|said| words.contains(said)), "{words}");
        let second = room.take(400 << 20, 1000 << 20).unwrap();
        drop(first);
        assert_eq!(room.take(600 << 20, 1000 << 20).map(drop), Ok(()));
        drop(second);
        assert_eq!(*room.taken(), 0);
    }

    #[test]
    fn the_available_memory_is_read_from_what_the_kernel_says() {
        let text = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available_in(text), Some(2 << 20));
        assert_eq!(available_in("MemTotal: 5 kB\n"), None);
        assert!(available().unwrap() > 0);
    }
}
