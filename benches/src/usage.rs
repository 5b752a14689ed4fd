//! The CPU time that the threads of `vmm` and `vmmd` have taken, by kind of thread, from
//! `/proc/PID/task/TID/schedstat`.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
};

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A vCPU of a clone: its guest, and KVM on its behalf.
    Vcpu,
    /// The device thread of a clone's vmm.
    Devices,
    /// The main thread of a clone's vmm.
    Main,
    /// Any other of its threads.
    Other,
    /// Threads of the kernel for a clone: kvm-pit, kvm-nx-lpage-recovery.
    Kernel,
    /// All threads of the parent's vmm.
    Parent,
    /// All threads of vmmd.
    Vmmd,
}

/// All of them, with their names in rows.
pub const KINDS: [(Kind, &str); 7] = [
    (Kind::Vcpu, "vcpu"),
    (Kind::Devices, "devices"),
    (Kind::Main, "main"),
    (Kind::Other, "other"),
    (Kind::Kernel, "kernel"),
    (Kind::Parent, "parent"),
    (Kind::Vmmd, "vmmd"),
];

/// The CPU time of a thread cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The kernel does not show it.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what was expected there.
    #[error("{0} does not begin with a thread's CPU time; is CONFIG_SCHED_INFO set in the kernel?")]
    Form(String),
}

/// The CPU time that each thread had taken at one moment, nanoseconds by thread id.
#[derive(Debug, Default)]
pub struct Usage(HashMap<u32, u64>);

impl Usage {
    /// Of all vmm and vmmd processes, and of KVM's kernel threads, as they are now.
    pub fn now() -> Result<Self, UsageError> {
        let mut times = HashMap::new();
        for pid in numbers("/proc")? {
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            if name.starts_with("vmm") || name.starts_with("kvm-") {
                times.extend(threads(pid)?.into_iter().map(|(tid, _, ns)| (tid, ns)));
            }
        }
        Ok(Self(times))
    }

    /// What has been taken since, in milliseconds: by the vmms `clones`, the vmm `parent` and
    /// `vmmd`. What a thread took that has ended meanwhile is lost.
    pub fn since(&self, clones: &[u32], parent: u32, vmmd: u32) -> Result<BTreeMap<Kind, f64>, UsageError> {
        let mut taken_ns: BTreeMap<Kind, u64> = KINDS.iter().map(|(kind, _)| (*kind, 0)).collect();
        let mut add = |kind, tid, ns: u64| {
            *taken_ns.entry(kind).or_default() += ns.saturating_sub(self.0.get(&tid).copied().unwrap_or(0));
        };
        for pid in clones {
            for (tid, name, ns) in threads(*pid)? {
                add(kind_of(&name, tid == *pid), tid, ns);
            }
        }
        for (pid, kind) in [(parent, Kind::Parent), (vmmd, Kind::Vmmd)] {
            threads(pid)?.into_iter().for_each(|(tid, _, ns)| add(kind, tid, ns));
        }
        for pid in numbers("/proc")? {
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            let owner = name.trim().strip_prefix("kvm-pit/").and_then(|owner| owner.parse().ok());
            if owner.is_some_and(|owner| clones.contains(&owner)) {
                threads(pid)?.into_iter().for_each(|(tid, _, ns)| add(Kind::Kernel, tid, ns));
            }
        }
        Ok(taken_ns.into_iter().map(|(kind, ns)| (kind, ns as f64 / 1e6)).collect())
    }
}

fn kind_of(name: &str, is_first: bool) -> Kind {
    match name {
        _ if is_first => Kind::Main,
        "devices" => Kind::Devices,
        name if name.starts_with("vcpu") => Kind::Vcpu,
        name if name.starts_with("kvm-") => Kind::Kernel,
        _ => Kind::Other,
    }
}

/// The threads of a process: id, name, nanoseconds. Those that end meanwhile are left out.
fn threads(pid: u32) -> Result<Vec<(u32, String, u64)>, UsageError> {
    let mut threads = Vec::new();
    for tid in numbers(&format!("/proc/{pid}/task"))? {
        let thread = format!("/proc/{pid}/task/{tid}");
        let path = format!("{thread}/schedstat");
        let (Ok(name), Ok(text)) = (fs::read_to_string(format!("{thread}/comm")), fs::read_to_string(&path))
        else {
            continue;
        };
        let ns = text.split_whitespace().next().and_then(|word| word.parse().ok());
        threads.push((tid, name.trim().to_owned(), ns.ok_or(UsageError::Form(path))?));
    }
    Ok(threads)
}

/// The entries of a directory that are numbers; none where there is no such directory (any more).
fn numbers(path: &str) -> Result<Vec<u32>, UsageError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(UsageError::Read { path: path.to_owned(), source }),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_apart_by_their_names() {
        let names = ["vmm", "vcpu0", "vcpu15", "devices", "kvm-nx-lpage-re", "prefault"];
        let kinds = names.map(|name| kind_of(name, name == "vmm"));
        let expected = [Kind::Main, Kind::Vcpu, Kind::Vcpu, Kind::Devices, Kind::Kernel, Kind::Other];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn what_this_thread_takes_is_counted() {
        let pid = std::process::id();
        let spun = std::thread::Builder::new().name("vcpu0".into()).spawn(move || {
            use rustix::time::{ClockId, clock_gettime};
            while clock_gettime(ClockId::ThreadCPUTime).tv_nsec < 50_000_000 {}
            Usage::default().since(&[pid], pid, pid)
        });
        let taken = spun.unwrap().join().unwrap().unwrap();
        assert!(taken[&Kind::Vcpu] > 10.0, "{taken:?}");
        assert!(taken[&Kind::Parent] >= taken[&Kind::Vcpu], "{taken:?}");
        assert_eq!(taken[&Kind::Kernel], 0.0);
    }
}
