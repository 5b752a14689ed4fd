//! A cgroup of a test's own, on a machine where cgroup2 is mounted and may be written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Removed with all that was made in it, once its processes have ended.
pub struct TempCgroup(pub PathBuf);

impl TempCgroup {
    /// Makes one below the test's own.
    pub fn new(name: &str) -> Self {
        static SO_FAR: AtomicU32 = AtomicU32::new(0);
        let number = SO_FAR.fetch_add(1, Ordering::Relaxed);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted nowhere");
        let mount = mount.split(' ').nth(4).unwrap();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let path = Path::new(mount).join(own).join(format!("patina-{name}-{}-{number}", std::process::id()));
        fs::create_dir(&path)
            .unwrap_or_else(|e| panic!("make {}: {e}; these tests want to be root", path.display()));
        Self(path)
    }
}

impl Drop for TempCgroup {
    fn drop(&mut self) {
        for path in ["guest/hook.1", "guest/hook.2", "guest", ""].map(|below| self.0.join(below)) {
            // A process that was killed is gone from it a moment later.
            while fs::remove_dir(&path).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
                std::thread::yield_now();
            }
        }
    }
}
