//! What users would do without Patina: boot a guest in QEMU, save it to a file, start others from
//! the file.
//!
//! - [`process`]: one QEMU process, its serial port and its monitor.
//!
//! Kernel and root file system are those of Patina's guests. The machine is `microvm`, QEMU's
//! fastest. The guest is small: a shell on the serial port, which answers a line with a square. Two
//! times are measured for each start: until QEMU reports that the guest runs, and until the guest
//! has answered.
//!
//! **If KVM is software**, the kernel cannot boot in QEMU's KVM: QEMU does not complete the
//! instructions that such a KVM's emulator lacks (the first is an int3 in the kernel's self test).
//! Patina's vmm does. The guest is therefore booted without KVM, by QEMU's translator, and moved
//! into a QEMU with KVM, where it is saved. Once booted, this guest uses none of those
//! instructions.

mod process;

use crate::{
    report::Figures,
    smaps::{self, SmapsError},
};
use patina_tests::setup::Setup;
use process::{Machine, Memory, Qemu};
use serde_json::json;
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// What the shell in the guest does: it answers a number with its square.
pub const SQUARES: &str = "while read a; do echo =$((a*a)); done\n";

/// The clock of a guest that was moved between the translator and KVM jumps, and its kernel makes
/// up for that. Saved before it has, it would do so in each guest that is started, for seconds. The
/// shell's own read waits for two seconds of the guest's clock; a program that ended would meet one
/// of the instructions that are missing.
const SETTLE: &str = "read -t 2 a\n";

/// Why QEMU could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// A signal asked us to end.
    #[error("interrupted")]
    Interrupted,
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU refused a command, or ended.
    #[error("QEMU, {what}: {said}; its log: {log}")]
    Refused {
        /// The command or what was waited for.
        what: String,
        /// Its answer.
        said: String,
        /// What it printed.
        log: String,
    },
    /// Its memory cannot be read.
    #[error(transparent)]
    Smaps(#[from] SmapsError),
}

fn system(what: &'static str) -> impl Fn(io::Error) -> QemuError {
    move |source| QemuError::System { what, source }
}

/// What QEMU says of itself; empty if there is none.
pub fn version() -> String {
    let said = Command::new(PROGRAM).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.lines().next().unwrap_or_default().to_owned()
}

/// How the guest's memory gets from the saved VM into the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In the file, with everything else.
    File,
    /// It is a file of its own, which the others map privately: experimental in QEMU
    /// (`x-ignore-shared`), the best it has.
    Template,
}

/// A guest that was saved.
#[derive(Debug)]
pub struct Saved {
    machine: Machine,
    way: Way,
    state: PathBuf,
    /// From the command to the whole state in the file.
    pub save_ms: f64,
    /// How long the file is.
    pub state_mib: f64,
    _dir: TempDir,
}

/// One start of several QEMUs.
#[derive(Debug)]
pub struct Started {
    /// From the first start of a process until all guests run.
    pub running_ms: f64,
    /// Until all have answered.
    pub answered_ms: f64,
    /// Memory that each process has to itself.
    pub private_kib: Vec<f64>,
}

impl Saved {
    /// Boots a guest, and saves it.
    pub fn make(setup: &Setup, software: bool, way: Way) -> Result<Self, QemuError> {
        // RAM that is a file of its own belongs in memory too.
        let dir = tempfile::Builder::new().prefix("patina-qemu-").tempdir_in("/dev/shm");
        let dir = dir.map_err(system("make a temporary directory"))?;
        let state = dir.path().join("state");
        let machine = Machine {
            kernel: setup.kernel.clone(),
            rootfs: setup.rootfs.clone(),
            ram: (way == Way::Template).then(|| dir.path().join("ram")),
            log: dir.path().join("qemu.log"),
            software,
        };
        let mut qemu = Qemu::boot(&machine)?;
        qemu.answer("", "# ")?;
        if software {
            let booted = dir.path().join("booted");
            save(qemu, way, &booted)?;
            qemu = load(Qemu::resume(&machine, Memory::Own, open(&booted)?)?, way)?;
            migrated(&mut qemu)?;
        }
        qemu.answer(SETTLE, "# ")?;
        qemu.answer(SQUARES, "done\r\n")?;
        qemu.answer("12\n", "=144")?;
        let save_ms = save(qemu, way, &state)?;
        let bytes = state.metadata().map_err(system("look at the saved guest"))?.len();
        Ok(Self { machine, way, state, save_ms, state_mib: bytes as f64 / f64::from(1 << 20), _dir: dir })
    }

    /// Starts `count` QEMUs from it at once.
    pub fn start(&self, count: usize) -> Result<Started, QemuError> {
        let started = Instant::now();
        let begin = |_| Qemu::resume(&self.machine, Memory::Copied, open(&self.state)?);
        let all = (0..count).map(begin).collect::<Result<Vec<Qemu>, _>>()?;
        let mut all = all.into_iter().map(|qemu| load(qemu, self.way)).collect::<Result<Vec<Qemu>, _>>()?;
        for qemu in &mut all {
            qemu.event("RESUME")?;
        }
        let running_ms = ms(started.elapsed());
        for qemu in &mut all {
            qemu.say("13\n")?;
        }
        for qemu in &mut all {
            qemu.answer("", "=169")?;
        }
        let answered_ms = ms(started.elapsed());
        let private_kib = all.iter().map(|qemu| smaps::private_kib(qemu.pid())).collect::<Result<_, _>>()?;
        Ok(Started { running_ms, answered_ms, private_kib })
    }

    /// Starts `count` at once, `rounds` times: until running, until answered, and private memory.
    pub fn rounds(&self, count: usize, rounds: usize) -> Result<[Option<Figures>; 3], QemuError> {
        let all = (0..rounds).map(|_| self.start(count)).collect::<Result<Vec<_>, _>>()?;
        let running = all.iter().map(|started| started.running_ms).collect();
        let answered = all.iter().map(|started| started.answered_ms).collect();
        let private = all.iter().flat_map(|started| started.private_kib.clone()).collect();
        Ok([Figures::of("ms", running), Figures::of("ms", answered), Figures::of("KiB", private)])
    }
}

/// Saves the guest into a file and ends its QEMU: how long saving took.
fn save(mut qemu: Qemu, way: Way, to: &Path) -> Result<f64, QemuError> {
    capabilities(&mut qemu, way)?;
    qemu.call("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40}))?;
    let started = Instant::now();
    qemu.call("migrate", json!({"uri": format!("exec:cat > {}", to.display())}))?;
    migrated(&mut qemu)?;
    let save_ms = ms(started.elapsed());
    // `cat` may still be writing: the file is whole when QEMU has waited for it, at its end.
    qemu.quit()?;
    Ok(save_ms)
}

/// Waits until the guest has come or gone as a whole.
fn migrated(qemu: &mut Qemu) -> Result<(), QemuError> {
    loop {
        let event = qemu.event("MIGRATION")?;
        match event["data"]["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed") => return Err(qemu.refused("migrate", &event.to_string())),
            _ => {}
        }
    }
}

/// Has a QEMU that waits take the guest from the file that it was given; it says when the guest
/// runs.
fn load(mut qemu: Qemu, way: Way) -> Result<Qemu, QemuError> {
    capabilities(&mut qemu, way)?;
    // The descriptor was inherited under the number that it has here.
    let uri = format!("fd:{}", qemu.state_fd());
    qemu.call("migrate-incoming", json!({"uri": uri}))?;
    Ok(qemu)
}

fn open(state: &Path) -> Result<OwnedFd, QemuError> {
    File::open(state).map(OwnedFd::from).map_err(system("open the saved guest"))
}

fn capabilities(qemu: &mut Qemu, way: Way) -> Result<(), QemuError> {
    let on = |name| json!({"capability": name, "state": true});
    let mut wanted = vec![on("events")];
    if way == Way::Template {
        wanted.push(on("x-ignore-shared"));
    }
    qemu.call("migrate-set-capabilities", json!({"capabilities": wanted})).map(drop)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs QEMU, KVM and an image: PATINA_KERNEL and the like, see cargo xtask image --print"]
    fn guests_go_on_where_the_saved_one_stood() {
        let setup = Setup::from_env().unwrap();
        let software = crate::host::facts(&setup.bin_dir).unwrap().kvm == "software";
        for way in [Way::File, Way::Template] {
            let saved = Saved::make(&setup, software, way).unwrap();
            for _ in 0..2 {
                let started = saved.start(2).unwrap();
                assert!(started.running_ms < started.answered_ms, "{started:?}");
                assert_eq!(started.private_kib.len(), 2);
            }
            patina_daemon::say!("{way:?}: {:.0} ms, {:?}", saved.save_ms, saved.start(1).unwrap());
        }
    }
}
