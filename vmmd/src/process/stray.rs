//! `vmm` processes without a record: warm ones, and those that were started by a `vmmd` which was
//! killed before it wrote the record.

use super::{Process, identify, spawn::DIR_VARIABLE};
use patina_daemon::chain;
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// Every process that was started in a folder under one of `parents`, with the name of that folder
/// (of a warm one that became a VM: as it is now). Those that are `known` are not looked at: a busy
/// process lets nobody read its environment for long.
#[must_use]
pub fn find(parents: &[PathBuf], known: &HashSet<u32>) -> Vec<(String, Process)> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let found = pids.filter(|pid| !known.contains(pid)).filter_map(|pid| {
        let begun = vm_of(&fs::read(format!("/proc/{pid}/environ")).ok()?, parents)?;
        let process = match Process::find(&identify(pid).ok()?) {
            Ok(process) => process?,
            Err(error) => {
                tracing::error!(folder = begun, error = %chain(&error), "a vmm process that may be no VM's is left alone");
                return None;
            }
        };
        Some((folder_now(pid, parents).unwrap_or(begun), process))
    });
    found.collect()
}

/// The name of the folder in which a process's log is: a file's path follows when its folder moves.
fn folder_now(pid: u32, parents: &[PathBuf]) -> Option<String> {
    let log = fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
    name_under(log.parent()?, parents)
}

/// The folder's name out of an environment.
fn vm_of(environ: &[u8], parents: &[PathBuf]) -> Option<String> {
    let mut variables = environ.split(|byte| *byte == 0).filter_map(|v| std::str::from_utf8(v).ok());
    let dir = variables.find_map(|v| v.strip_prefix(DIR_VARIABLE)?.strip_prefix('='))?;
    name_under(Path::new(dir), parents)
}

fn name_under(dir: &Path, parents: &[PathBuf]) -> Option<String> {
    let is_ours = parents.iter().any(|parent| dir.parent() == Some(parent));
    is_ours.then(|| dir.file_name()?.to_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    #[test]
    fn only_processes_of_this_state_are_ours() {
        let of = |environ| vm_of(environ, &["/s/vms".into(), "/s/warm".into()]);
        assert_eq!(of(b"A=b\0PATINA_VM_DIR=/s/vms/web\0C=d\0"), Some("web".to_owned()));
        assert_eq!(of(b"PATINA_VM_DIR=/s/warm/7\0"), Some("7".to_owned()));
        assert_eq!(of(b"PATINA_VM_DIR=/other/vms/web\0"), None);
        assert_eq!(of(b"PATINA_VM_DIRS=/s/vms/web\0"), None);
        assert_eq!(of(b""), None);
    }

    #[tokio::test]
    async fn a_stray_is_found_by_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("lost");
        let mut command = Command::new("sh");
        command.args(["-c", "echo; read wait"]).env(DIR_VARIABLE, &dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _input = child.stdin.take();
        // Its environment is not to be seen until it runs.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let owner = Process::of_child(child).unwrap();
        let parents = [folder.path().to_owned()];
        assert!(find(&parents, &HashSet::from([owner.id().pid])).is_empty(), "known");
        let found = find(&parents, &HashSet::new());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.id()), ("lost", owner.id()));
        found[0].1.kill().unwrap();
        owner.gone().await.unwrap();
    }
}
