//! Tests on an emulated host with hardware virtualization and another kernel. The real host needs
//! neither: QEMU's translator emulates an AMD-V processor with nested paging, and Debian's kernels
//! have KVM for it.
//!
//! ```text
//!  this machine, no KVM needed        L1: QEMU (TCG), Debian's kernel, kvm_amd      L2
//!  test programs, vmm, vmmd … ──cpio──▶ /init runs the suites, one after the other ──▶ guests
//!  report.rs  ◀── results, ttyS1 ──────┤
//!             ◀── kernel's log, ttyS0 ─┘
//! ```
//!
//! - [`plan`]: selects the tests, and checks that they exist.
//! - [`initramfs`]: the files that L1 boots from: programs, their libraries, kernel modules,
//!   `/init`.
//! - [`qemu`]: L1 itself, with a time limit.
//! - [`report`]: the results. A test that did not run, or was ignored, has not passed. No test
//!   passes if L1's kernel killed a vmm by its filter, or reported a fault of its own.

pub mod initramfs;
pub mod plan;
pub mod qemu;
pub mod report;

use plan::Plan;
use report::{Event, Report};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// A host that is emulated.
#[derive(Debug)]
pub struct Outer<'a> {
    /// Its kernel, a bzImage.
    pub vmlinuz: &'a Path,
    /// Its kernel's modules, in the order in which they are loaded.
    pub modules: &'a [PathBuf],
    /// How many CPUs it has.
    pub cpus: u8,
    /// How long all of it may take.
    pub limit: Duration,
}

/// Why an emulated host could not run the tests.
#[derive(Debug, thiserror::Error)]
pub enum L1Error {
    /// The tests cannot be chosen.
    #[error("choose the tests of the emulated host")]
    Plan(#[from] plan::PlanError),
    /// Its files cannot be put together.
    #[error("create the emulated host's files")]
    Initramfs(#[from] initramfs::InitramfsError),
    /// QEMU cannot be run.
    #[error("run the emulated host")]
    Qemu(#[from] qemu::QemuError),
    /// What it printed cannot be read.
    #[error("read {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Boots the host, runs the tests of `plan` on it, and returns what came of them. All it prints
/// stays in `folder`: `results.log`, and the kernel's log in `console.log`.
///
/// # Errors
/// The tests could not be run at all. Tests that fail are in the report.
pub fn run(
    outer: &Outer<'_>,
    plan: &Plan,
    programs: &initramfs::Programs<'_>,
    folder: &Path,
    each: &mut dyn FnMut(&Event),
) -> Result<Report, L1Error> {
    let archive = initramfs::make(plan, programs, outer.modules, folder)?;
    let mut report = Report::new(plan.expected());
    let console = folder.join("console.log");
    let machine =
        qemu::Machine { outer, initramfs: &archive, console: &console, results: &folder.join("results.log") };
    let ended = machine.run(&mut |line, at| {
        if let Some(event) = report.line(line, at) {
            each(&event);
        }
    })?;
    let log = fs::read(&console).map_err(|source| L1Error::Log { path: console.clone(), source })?;
    report.end(&ended, &String::from_utf8_lossy(&log));
    // It is large, and made anew each time; the logs stay.
    fs::remove_file(&archive).map_err(|source| L1Error::Log { path: archive, source })?;
    Ok(report)
}
