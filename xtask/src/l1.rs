//! `cargo xtask test --l1`: the tests on emulated hosts with hardware virtualization and Debian's
//! kernels.

use crate::{
    build::BuildError,
    programs::{Built, ProgramError},
    run::{self, Guarded},
    steps::{Steps, with_causes},
};
use patina_daemon::kernel::notes_writes;
use patina_images::{DebianKernel, Stderr as Progress};
use patina_tests::{
    l1::{
        self, L1Error, Outer,
        initramfs::Programs,
        plan::{Plan, TestPrograms},
        report::{Event, Fault, Verdict},
    },
    setup::Setup,
};
use std::{io, panic::resume_unwind, path::PathBuf, thread, time::Duration};

/// Debian packages that an emulated host needs.
const PACKAGES: [(&str, &str); 4] = [
    ("qemu-system-x86", "the emulated host"),
    ("busybox-static", "the emulated host's tools"),
    ("cpio", "the emulated host's files"),
    ("binutils", "programs without symbols for the emulated host"),
];
/// What the host loads besides what these need.
const MODULES: [&str; 3] = ["kvm_amd", "tun", "bridge"];
/// How long one host may take, on a machine that does other things too. It takes three or four
/// minutes where it is alone.
const LIMIT: Duration = Duration::from_mins(20);

/// An emulated host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kernel {
    /// The series of Debian's packages.
    series: &'static str,
    /// CPUs of the host. Debian 12's QEMU 7.2 emulates two badly enough for Linux 6.12 to take a
    /// double fault.
    cpus: u8,
}

/// Linux 6.1 cannot say which pages were written, and has other ways in many places; the other is
/// new.
const KERNELS: [Kernel; 2] = [Kernel { series: "6.1", cpus: 1 }, Kernel { series: "6.12", cpus: 1 }];

/// Which kernels are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted(Vec<Kernel>);

impl Wanted {
    /// All of them.
    pub fn all() -> Self {
        Self(KERNELS.to_vec())
    }
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::all());
        }
        let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.series).collect();
        match KERNELS.iter().find(|kernel| kernel.series == text) {
            Some(kernel) => Ok(Self(vec![*kernel])),
            None => {
                Err(format!("no emulated host has that kernel; choose one of {}, or all", known.join(", ")))
            }
        }
    }
}

/// Why the tests on emulated hosts did not pass.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// Something could not be built.
    #[error("build the programs for the emulated hosts")]
    Build(#[from] BuildError),
    /// A program of tests could not be built.
    #[error("build the tests for the emulated hosts")]
    Tests(#[from] ProgramError),
    /// What hosts are made of cannot be had: QEMU, another package, or a kernel. Of each host the
    /// reason.
    #[error("get QEMU, packages and kernels for the emulated hosts: {}", .0.join("; "))]
    Unavailable(Vec<String>),
    /// A folder cannot be made.
    #[error("create {}", path.display())]
    Folder {
        /// The path of the folder that cannot be made.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A host could not run.
    #[error("test on Linux {0} under emulated AMD-V")]
    Host(&'static str, #[source] L1Error),
    /// Tests did not pass: said above.
    #[error("test on Linux {0} under emulated AMD-V: {1} faults, see above and in {2}")]
    Faults(&'static str, usize, PathBuf),
}

/// Runs the tests on each host of `wanted`, all at the same time: the translator uses one CPU of
/// this machine for each. `filters` as for the other tests. A host that cannot be had keeps none of
/// the others from running.
///
/// # Errors
/// Of several hosts, that of the first one whose tests failed; otherwise the reasons of all that
/// cannot be had.
pub fn test(steps: &Steps, setup: &Setup, wanted: &Wanted, filters: &[String]) -> Result<(), HostsError> {
    let unavailable =
        |error: patina_images::Error| HostsError::Unavailable(vec![reason("every host", &error)]);
    let mut progress = Progress::new();
    patina_images::ensure_packages(&PACKAGES, &mut progress).map_err(|error| unavailable(error.into()))?;
    let programs = steps.step("build the tests for the emulated hosts", test_programs)?;
    let plan = |kernel: &Kernel| {
        Plan::new(&programs, filters, notes_writes(kernel.series))
            .map_err(|error| HostsError::Host(kernel.series, error.into()))
    };
    let plans = wanted.0.iter().map(|kernel| Ok((*kernel, plan(kernel)?)));
    let plans = plans.collect::<Result<Vec<_>, HostsError>>()?;
    let cache = patina_images::default_cache_dir().map_err(|error| unavailable(error.into()))?;
    for (kernel, plan) in &plans {
        for (name, why) in &plan.ignored {
            steps.note(&format!("  Linux {}: {name}: ignored: {why}", kernel.series));
        }
    }
    // All that was asked for may be ignored on a host.
    let plans = plans.into_iter().filter(|(_, plan)| !plan.suites.is_empty());
    let (there, missing) =
        with_kernels(plans, |series| patina_images::debian_kernel(&cache, series, &MODULES, &mut progress));
    let outcomes: Vec<_> = thread::scope(|scope| {
        let run = |(kernel, plan, debian): &(Kernel, Plan, DebianKernel)| {
            let what = format!("test on Linux {} under emulated AMD-V", debian.version);
            steps.step(&what, || host(steps, setup, plan, *kernel, debian))
        };
        let threads: Vec<_> = there.iter().map(|pair| scope.spawn(move || run(pair))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    outcomes.into_iter().collect::<Result<(), _>>()?;
    if missing.is_empty() { Ok(()) } else { Err(HostsError::Unavailable(missing)) }
}

/// The hosts whose kernel can be had, with it, and why the others cannot.
fn with_kernels<T, E: std::error::Error>(
    hosts: impl Iterator<Item = (Kernel, T)>,
    mut get: impl FnMut(&str) -> Result<DebianKernel, E>,
) -> (Vec<(Kernel, T, DebianKernel)>, Vec<String>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for (kernel, of) in hosts {
        match get(kernel.series) {
            Ok(debian) => there.push((kernel, of, debian)),
            Err(error) => missing.push(reason(&format!("Linux {}", kernel.series), &error)),
        }
    }
    (there, missing)
}

/// Why a host cannot be had, on one line.
fn reason(host: &str, error: &dyn std::error::Error) -> String {
    format!("{host}: {}", with_causes(error).replace("\n  because: ", ": "))
}

fn host(
    steps: &Steps,
    setup: &Setup,
    plan: &Plan,
    kernel: Kernel,
    debian: &DebianKernel,
) -> Result<(), HostsError> {
    let folder = run::target_dir().join("l1").join(kernel.series);
    std::fs::create_dir_all(&folder).map_err(|source| HostsError::Folder { path: folder.clone(), source })?;
    let outer = Outer { vmlinuz: &debian.vmlinuz, modules: &debian.modules, cpus: kernel.cpus, limit: LIMIT };
    // A signal ends the emulator, too.
    let _guarded = Guarded::new();
    let mut each = |event: &Event| show(steps, kernel, event);
    let report = l1::run(&outer, plan, &Programs { setup }, &folder, &mut each)
        .map_err(|error| HostsError::Host(kernel.series, error))?;
    let faults = report.faults();
    for fault in faults {
        steps.note(&format!("Linux {}: {fault}", kernel.series));
    }
    // The kernel's filter leaves a program no words: what the others said helps then.
    if faults.iter().any(|fault| matches!(fault, Fault::Failed(..) | Fault::Code(..))) {
        steps.note(&format!("Linux {}: said last:\n{}", kernel.series, report.said()));
    }
    if faults.is_empty() {
        steps.note(&format!("Linux {}: {} tests passed", kernel.series, report.passed()));
        return Ok(());
    }
    Err(HostsError::Faults(kernel.series, faults.len(), folder))
}

fn show(steps: &Steps, kernel: Kernel, event: &Event) {
    match event {
        Event::Suite(name) => steps.note(&format!("  Linux {}: {name} …", kernel.series)),
        Event::Test { name, verdict, took } => {
            let word = match verdict {
                Verdict::Ok => "ok",
                Verdict::Failed => "FAILED",
                Verdict::Ignored => "ignored",
            };
            steps.note(&format!("  Linux {}: {name}: {word} in {:.1}s", kernel.series, took.as_secs_f64()));
        }
    }
}

/// Builds the programs of tests, and finds out where they are.
fn test_programs() -> Result<TestPrograms, HostsError> {
    let built = Built::new(&["--lib", "--test", "tiny_guests", "--test", "e2e"])?;
    Ok(TestPrograms {
        tiny: built.program("test", "tiny_guests")?,
        e2e: built.program("test", "e2e")?,
        vmm: built.program("lib", "vmm")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_chosen_by_its_series() {
        assert_eq!("all".parse::<Wanted>().unwrap(), Wanted::all());
        assert_eq!("6.12".parse::<Wanted>().unwrap(), Wanted(vec![KERNELS[1]]));
        let refused = "clones".parse::<Wanted>().unwrap_err();
        assert_eq!(refused, "no emulated host has that kernel; choose one of 6.1, 6.12, or all");
    }

    #[test]
    fn all_hosts_that_cannot_be_had_have_their_reasons() {
        let get = |series: &str| Err(io::Error::other(format!("no package of {series}")));
        let (there, missing) = with_kernels(KERNELS.into_iter().map(|kernel| (kernel, ())), get);
        assert!(there.is_empty());
        let error = HostsError::Unavailable(missing);
        let expected = "get QEMU, packages and kernels for the emulated hosts: Linux 6.1: no package of 6.1; Linux 6.12: no package of 6.12";
        assert_eq!(with_causes(&error), expected);
    }
}
