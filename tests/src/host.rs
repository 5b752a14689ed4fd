//! A private `vmmd` with its own socket and state directory. It leaves nothing behind.

pub use crate::daemon::{CALL_DEADLINE, HostError, succeeded, tail};

use crate::{
    daemon::{end_of, parse, system},
    interrupt,
    keeper::{Keeper, Orphan},
    leftovers::{self, Interface},
    place::Place,
    process::{self, Output, ProcessError},
    setup::Setup,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};
use tempfile::TempDir;

/// A running `vmmd` of one's own.
#[derive(Debug)]
pub struct Host {
    place: Place,
    // Removed when all else is.
    _dir: TempDir,
    vmmd: Option<Child>,
    is_clean: bool,
    // Ends all of it when this process is killed. Dropped last.
    _keeper: Option<Keeper>,
}

impl Host {
    /// Starts `vmmd --standalone` on a socket and a state directory of its own.
    ///
    /// # Errors
    /// It does not start, or is not ready within half a minute; its log is in the error.
    pub fn start(setup: &Setup) -> Result<Self, HostError> {
        Self::start_wrapped(setup, &[])
    }

    /// Starts `vmmd` through a program that runs the one its last arguments name, such as
    /// `unshare`.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_wrapped(setup: &Setup, wrapper: &[&str]) -> Result<Self, HostError> {
        Self::start_as(setup, wrapper, &[], None)
    }

    /// Starts `vmmd` with further options.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_with(setup: &Setup, options: &[&str]) -> Result<Self, HostError> {
        Self::start_as(setup, &[], options, None)
    }

    /// Starts `vmmd` with further options, in a network namespace of its own.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_apart(setup: &Setup, options: &[&str]) -> Result<Self, HostError> {
        Self::start_as(setup, &["unshare", "--net"], options, None)
    }

    /// Starts `vmmd` with further options, in the network namespace of a [`Switch`], where it is
    /// started again, too.
    ///
    /// # Errors
    /// As [`Host::start`].
    ///
    /// [`Switch`]: crate::switch::Switch
    pub fn start_in(setup: &Setup, wrapper: &[String; 2], options: &[&str]) -> Result<Self, HostError> {
        Self::start_as(setup, &wrapper.each_ref().map(String::as_str), options, None)
    }

    /// Starts `vmmd` in the network namespace of a [`Switch`], with options that have it listen on
    /// TCP. Whoever calls it is in a namespace of that switch, too, and has this operator's
    /// certificate.
    ///
    /// # Errors
    /// As [`Host::start`].
    ///
    /// [`Switch`]: crate::switch::Switch
    pub fn start_over_tcp(
        setup: &Setup,
        wrapper: &[String],
        options: &[&str],
        operator: &Path,
    ) -> Result<Self, HostError> {
        let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
        Self::start_as(setup, &wrapper, options, Some(operator))
    }

    fn start_as(
        setup: &Setup,
        wrapper: &[&str],
        options: &[&str],
        operator: Option<&Path>,
    ) -> Result<Self, HostError> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let mut options = owned(options);
        if !options.iter().any(|option| option == "--image-cache") {
            options.extend(image_options(setup));
        }
        if !options.iter().any(|option| option == "--spare") {
            // A story that counts processes does not depend on when a spare vmm is made.
            options.extend(["--spare", "0"].map(str::to_owned));
        }
        let dir = tempfile::Builder::new()
            .prefix("patina-")
            .tempdir()
            .map_err(system("make a temporary directory"))?;
        let place = Place {
            setup: setup.clone(),
            dir: dir.path().to_owned(),
            wrapper: owned(wrapper),
            options,
            operator: operator.map(Path::to_owned),
        };
        let keeper = Keeper::of(&Orphan::Host(Box::new(place.clone()))).map_err(system("start a keeper"))?;
        let mut host = Self { place, _dir: dir, vmmd: None, is_clean: false, _keeper: keeper };
        host.start_vmmd()?;
        Ok(host)
    }

    /// Starts `vmmd` again after [`Host::kill_vmmd`], with the same socket and state.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_vmmd(&mut self) -> Result<(), HostError> {
        self.vmmd = Some(self.place.start_vmmd()?);
        Ok(())
    }

    /// The command that starts a `vmmd` on this host's socket and state directory.
    #[must_use]
    pub fn vmmd_command(&self) -> Command {
        self.place.vmmd_command()
    }

    /// Kills `vmmd` with SIGKILL, as a crash would; its VMs run on.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn kill_vmmd(&mut self) -> Result<(), HostError> {
        if let Some(mut child) = self.vmmd.take() {
            child.kill().and_then(|()| child.wait()).map_err(system("kill vmmd"))?;
        }
        Ok(())
    }

    /// What `vmctl --host` and `vmmd --listen` take.
    #[must_use]
    pub fn address(&self) -> String {
        self.place.address()
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    /// Where `vmmd` keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.place.state_dir()
    }

    /// A directory for files of tests; it goes with the host.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// What the host was started with.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.place.setup
    }

    /// The pid of `vmmd`, while it runs.
    #[must_use]
    pub fn vmmd_pid(&self) -> Option<u32> {
        self.vmmd.as_ref().map(Child::id)
    }

    /// A `vmctl` command to this host, not started yet.
    #[must_use]
    pub fn vmctl_command(&self, arguments: &[&str]) -> Command {
        self.place.vmctl_command(arguments)
    }

    /// Runs `vmctl` with `arguments`, whatever its exit code.
    ///
    /// # Errors
    /// It could not be run, or did not end within [`CALL_DEADLINE`].
    pub fn vmctl(&self, arguments: &[&str]) -> Result<Output, HostError> {
        self.vmctl_with_input(arguments, b"")
    }

    /// Runs `vmctl` with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Host::vmctl`].
    pub fn vmctl_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Output, HostError> {
        if interrupt::requested() {
            return Err(HostError::Interrupted);
        }
        process::run(&mut self.vmctl_command(arguments), input, CALL_DEADLINE).map_err(|error| match error {
            ProcessError::Interrupted => HostError::Interrupted,
            other => other.into(),
        })
    }

    /// Runs `vmctl` with `arguments`, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn call(&self, arguments: &[&str]) -> Result<String, HostError> {
        succeeded(arguments, &self.vmctl(arguments)?)
    }

    /// Runs `vmctl -o json` with `arguments`, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0, or it prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, HostError> {
        let text = self.call(&[&["-o", "json"], arguments].concat())?;
        parse(text)
    }

    /// All that `vmmd` has logged from a byte on, and the byte after it.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn logged_since(&self, byte: u64) -> Result<(String, u64), HostError> {
        let all = fs::read(self.place.vmmd_log_path()).map_err(system("read the log of vmmd"))?;
        let from = usize::try_from(byte).unwrap_or(usize::MAX).min(all.len());
        Ok((String::from_utf8_lossy(&all[from..]).into_owned(), all.len() as u64))
    }

    /// The end of what `vmmd` has logged.
    #[must_use]
    pub fn vmmd_log(&self) -> String {
        end_of(&self.place.vmmd_log_path())
    }

    /// Ends every VM and `vmmd`, and looks for what they left.
    ///
    /// # Errors
    /// [`HostError::Leftovers`] when something is still there.
    pub fn stop(mut self) -> Result<(), HostError> {
        let interfaces = self.clean()?;
        let mut left = leftovers::processes_of(self.dir()).map_err(system("look for processes"))?;
        let still_there: BTreeSet<_> =
            interfaces.into_iter().filter(Interface::is_there).map(|interface| interface.name).collect();
        left.extend(still_there.into_iter().map(|name| format!("network interface {name}")));
        if self.socket().exists() {
            left.push(format!("socket {}", self.socket().display()));
        }
        if left.is_empty() { Ok(()) } else { Err(HostError::Leftovers(left)) }
    }

    /// Removes all VMs, then ends `vmmd`. Returns the interfaces that its VMs had.
    fn clean(&mut self) -> Result<Vec<Interface>, HostError> {
        let vmmd = self.vmmd.take();
        self.is_clean = true;
        if interrupt::requested() { self.place.clean_cut_short(vmmd) } else { self.place.clean(vmmd) }
    }
}

/// Where the VMs of a host start from. The kinds of VMs that stories have take half of the space:
/// the images of an older build go when a newer one needs theirs.
fn image_options(setup: &Setup) -> Vec<String> {
    const BOUNDS: [&str; 4] = ["--image-cache-size", "256M", "--image-cache-age", "2days"];
    let folder = setup.image_cache.as_ref().map(|folder| folder.to_string_lossy().into_owned());
    let bounds = if folder.is_some() { &BOUNDS[..] } else { &[] };
    let folder = folder.unwrap_or_else(|| "none".to_owned());
    ["--image-cache", &folder].iter().chain(bounds).map(|&word| word.to_owned()).collect()
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.is_clean
            && let Err(error) = self.clean()
        {
            patina_daemon::say!("clean up {}: {error}", self.dir().display());
        }
    }
}
