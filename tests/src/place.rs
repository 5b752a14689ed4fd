//! The location of a private `vmmd`, how it is started, and everything that must be cleaned up
//! after it.

use crate::{
    daemon::{CALL_DEADLINE, HostError, parse, start_daemon, stop_daemon, succeeded, system},
    leftovers::{self, Interface, Network},
    process::{self, Output},
    setup::Setup,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

/// How long a process may take to end of a signal.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// How often vmmd is started again to remove what it was making when it was told to stop.
const ROUNDS: usize = 3;

/// A socket and a state directory, and what vmmd is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub setup: Setup,
    pub dir: PathBuf,
    pub wrapper: Vec<String>,
    pub options: Vec<String>,
    /// The operator's certificate, for a vmmd that listens on TCP.
    pub operator: Option<PathBuf>,
}

impl Place {
    /// For another process.
    pub fn to_json(&self) -> Value {
        let Setup { bin_dir, kernel, rootfs, guest_bin_dir, image_cache } = &self.setup;
        json!({
            "dir": self.dir, "wrapper": self.wrapper, "options": self.options,
            "bin_dir": bin_dir, "kernel": kernel, "rootfs": rootfs, "guest_bin_dir": guest_bin_dir,
            "image_cache": image_cache, "operator": self.operator,
        })
    }

    /// From another process.
    pub fn of_json(value: &Value) -> Option<Self> {
        let path = |name: &str| value[name].as_str().map(PathBuf::from);
        let words = |name: &str| {
            let words = value[name].as_array()?.iter().map(|word| word.as_str().map(str::to_owned));
            words.collect::<Option<Vec<_>>>()
        };
        let setup = Setup {
            bin_dir: path("bin_dir")?,
            kernel: path("kernel")?,
            rootfs: path("rootfs")?,
            guest_bin_dir: path("guest_bin_dir")?,
            image_cache: path("image_cache"),
        };
        let (wrapper, options) = (words("wrapper")?, words("options")?);
        Some(Self { setup, dir: path("dir")?, wrapper, options, operator: path("operator") })
    }

    pub fn address(&self) -> String {
        self.listens().map_or_else(|| format!("unix:{}", self.socket().display()), str::to_owned)
    }

    /// Where vmmd listens, if an option says so.
    fn listens(&self) -> Option<&str> {
        let mut options = self.options.iter();
        options.find(|option| *option == "--listen").and_then(|_| options.next()).map(String::as_str)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("vmmd.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn vmmd_log_path(&self) -> PathBuf {
        self.dir.join("vmmd.log")
    }

    pub fn start_vmmd(&self) -> Result<Child, HostError> {
        start_daemon("vmmd", self.vmmd_command(), &self.dir, &self.vmmd_log_path())
    }

    pub fn vmmd_command(&self) -> Command {
        let mut command = process::wrapped(&self.wrapper, &self.setup.binary("vmmd"));
        if !self.options.iter().any(|option| option == "--scheduler") {
            command.arg("--standalone");
        }
        if self.listens().is_none() {
            command.arg("--listen").arg(self.address());
        }
        command
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--kernel")
            .arg(&self.setup.kernel)
            .arg("--rootfs")
            .arg(&self.setup.rootfs)
            .args(&self.options);
        command
    }

    pub fn vmctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.setup.binary("vmctl"));
        command.env("PATINA_HOST", self.address()).args(arguments);
        if let Some(operator) = &self.operator {
            command.env("PATINA_TLS_DIR", operator);
        }
        command
    }

    /// Removes all VMs, then ends `vmmd`. One that was killed is started again: only it knows which
    /// bridges and processes are its own. Returns the interfaces that its VMs had.
    pub fn clean(&self, vmmd: Option<Child>) -> Result<Vec<Interface>, HostError> {
        let mut running = vmmd;
        let ended = match &mut running {
            Some(vmmd) => vmmd.try_wait().map_err(system("look at vmmd"))?.is_some(),
            None => true,
        };
        let vmmd = match running {
            Some(vmmd) if !ended => vmmd,
            _ => self.start_vmmd()?,
        };
        let network = Network::of(vmmd.id()).map_err(system("enter vmmd's network namespace"));
        let removed = network.and_then(|network| self.remove_all(&network));
        stop_daemon("vmmd", vmmd, &self.vmmd_log_path())?;
        removed
    }

    /// The same after a run that was cut short: what vmmd was making then comes to be after it was
    /// looked for. The next vmmd knows of it, or removes it because it is half-made; so it goes on
    /// until there was nothing more.
    pub fn clean_cut_short(&self, vmmd: Option<Child>) -> Result<Vec<Interface>, HostError> {
        let mut all = self.clean(vmmd)?;
        for _ in 1..ROUNDS {
            let more = self.clean(None)?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        Ok(all)
    }

    /// Ends and removes everything of a host whose owner has died.
    pub fn clean_orphaned(&self) -> Result<(), HostError> {
        // Whoever still calls would get what is removed made again.
        self.signal("vmctl", Signal::KILL)?;
        // Not its child, so that it cannot be waited for; the next one can.
        self.signal("vmmd", Signal::TERM)?;
        self.clean_cut_short(None)?;
        std::fs::remove_dir_all(&self.dir).map_err(system("remove a host's directory"))
    }

    /// Ends the processes of this place that have this name.
    fn signal(&self, name: &str, signal: Signal) -> Result<(), HostError> {
        for pid in leftovers::pids_of(&self.dir).map_err(system("look for processes"))? {
            if leftovers::name_of(pid) == name {
                end(pid, signal).map_err(system("end a process"))?;
            }
        }
        Ok(())
    }

    /// What cleaning up needs must run after an interrupt too.
    fn vmctl_even_now(&self, arguments: &[&str]) -> Result<Output, HostError> {
        Ok(process::run_even_now(&mut self.vmctl_command(arguments), b"", CALL_DEADLINE)?)
    }

    fn remove_all(&self, network: &Network) -> Result<Vec<Interface>, HostError> {
        let arguments = ["-o", "json", "ls"];
        let vms = parse(succeeded(&arguments, &self.vmctl_even_now(&arguments)?)?)?;
        let field = |field| vms.as_array().into_iter().flatten().filter_map(move |vm| vm[field].as_str());
        let interfaces = field("bridge").chain(field("tap")).filter(|name| !name.is_empty());
        let interfaces = interfaces.filter_map(|name| network.interface(name)).collect();
        let names: Vec<&str> = field("name").collect();
        if !names.is_empty() {
            let arguments = [&["rm", "-f"], names.as_slice()].concat();
            succeeded(&arguments, &self.vmctl_even_now(&arguments)?)?;
        }
        Ok(interfaces)
    }
}

/// Ends a process that is not a child, at last with SIGKILL.
fn end(pid: u32, signal: Signal) -> std::io::Result<()> {
    // One that is gone is what was wanted.
    let Ok(pidfd) = process::pidfd(pid) else { return Ok(()) };
    process::send(&pidfd, signal)?;
    if !process::ended(&pidfd, END_DEADLINE)? {
        process::send(&pidfd, Signal::KILL)?;
        process::ended(&pidfd, END_DEADLINE)?;
    }
    Ok(())
}

/// A place for tests of what is told to others.
#[cfg(test)]
pub(crate) fn sample(dir: &std::path::Path) -> Place {
    let setup = Setup {
        bin_dir: "/bin".into(),
        kernel: "/k".into(),
        rootfs: "/r".into(),
        guest_bin_dir: "/g".into(),
        image_cache: Some("/i".into()),
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let (wrapper, options) = (words(&["unshare", "-n"]), words(&["--warm", "2"]));
    Place { setup, dir: dir.to_owned(), wrapper, options, operator: Some("/o".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_to_another_process_whole() {
        let place = sample(std::path::Path::new("/tmp/patina-a b"));
        assert_eq!(Place::of_json(&place.to_json()), Some(place));
        assert_eq!(Place::of_json(&json!({"dir": "/tmp"})), None);
    }

    #[test]
    fn a_vmmd_listens_where_an_option_says_and_otherwise_on_its_own_socket() {
        let place = sample(std::path::Path::new("/tmp/p"));
        assert_eq!(place.address(), "unix:/tmp/p/vmmd.sock");
        let options = ["--listen", "tcp:192.0.2.1:7001"].map(str::to_owned).to_vec();
        let over_tcp = Place { options, ..place };
        assert_eq!(over_tcp.address(), "tcp:192.0.2.1:7001");
        let command = over_tcp.vmmd_command();
        assert_eq!(command.get_args().filter(|word| *word == "--listen").count(), 1);
    }
}
