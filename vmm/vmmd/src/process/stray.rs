//! `vmm` processes that no record leads to: a `vmmd` was killed between starting one and writing it down.

use super::{Process, identify, spawn::DIR_VARIABLE};
use std::{fs, path::Path};

/// Every process that was started for a VM under `vms` (the state's `vms/` folder), with that VM's name.
#[must_use]
pub fn find(vms: &Path) -> Vec<(String, Process)> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let name = vm_of(&fs::read(format!("/proc/{pid}/environ")).ok()?, vms)?;
        Some((name, Process::find(&identify(pid).ok()?)?))
    })
    .collect()
}

/// The VM's name out of an environment.
fn vm_of(environ: &[u8], vms: &Path) -> Option<String> {
    let mut variables = environ.split(|byte| *byte == 0).filter_map(|v| std::str::from_utf8(v).ok());
    let dir = variables.find_map(|v| v.strip_prefix(DIR_VARIABLE)?.strip_prefix('='))?;
    let dir = Path::new(dir);
    (dir.parent() == Some(vms)).then(|| dir.file_name()?.to_str().map(str::to_owned))?
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
        let vms = Path::new("/s/vms");
        assert_eq!(vm_of(b"A=b\0PATINA_VM_DIR=/s/vms/web\0C=d\0", vms), Some("web".to_owned()));
        assert_eq!(vm_of(b"PATINA_VM_DIR=/other/vms/web\0", vms), None);
        assert_eq!(vm_of(b"PATINA_VM_DIRS=/s/vms/web\0", vms), None);
        assert_eq!(vm_of(b"", vms), None);
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
        let found = find(folder.path());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.id()), ("lost", owner.id()));
        found[0].1.kill().unwrap();
        owner.gone().await.unwrap();
    }
}
