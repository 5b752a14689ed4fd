//! `cargo xtask test --l1`: the tests on emulated hosts with hardware virtualization and kernels of Debian's.

use crate::{
    build::BuildError,
    run::{self, Guarded, RunError, cargo},
    steps::Steps,
};
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
/// How long one host may take, on a machine that does other things too. It takes three or four minutes where it is alone.
const LIMIT: Duration = Duration::from_mins(20);

/// An emulated host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kernel {
    /// The series of Debian's packages.
    series: &'static str,
    /// CPUs of the host. Debian 12's QEMU 7.2 emulates two badly enough for Linux 6.12 to take a double fault.
    cpus: u8,
}

/// Linux 6.1 cannot say which pages were written, and has other ways in many places; the other is new.
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
            None => Err(format!("no host with that kernel; there are {} and all", known.join(", "))),
        }
    }
}

/// Why the tests on emulated hosts did not pass.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// Something could not be built.
    #[error("build what the emulated hosts run")]
    Build(#[from] BuildError),
    /// A program of tests could not be built.
    #[error("build the tests for the emulated hosts")]
    Tests(#[from] RunError),
    /// cargo did not say where it put a program.
    #[error("build the tests for the emulated hosts: cargo names no program of {0}")]
    Program(&'static str),
    /// What a host is made of cannot be had: QEMU, another package, or its kernel.
    #[error("get what {0} is made of")]
    Unavailable(String, #[source] Box<patina_images::Error>),
    /// A folder cannot be made.
    #[error("create {}", path.display())]
    Folder {
        /// Which.
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

/// Runs the tests on each host of `wanted`, all at the same time: the translator uses one CPU of this machine for each. `filters` as
/// for the other tests. A host that cannot be had keeps none of the others from running.
///
/// # Errors
/// Of several hosts, that of the first one whose tests failed; otherwise that of one that cannot be had.
pub fn test(steps: &Steps, setup: &Setup, wanted: &Wanted, filters: &[String]) -> Result<(), HostsError> {
    let unavailable = |error| HostsError::Unavailable("every emulated host".to_owned(), Box::new(error));
    let mut progress = Progress::new();
    patina_images::ensure_packages(&PACKAGES, &mut progress).map_err(|error| unavailable(error.into()))?;
    let programs = steps.step("build the tests for the emulated hosts", test_programs)?;
    let plan = Plan::new(&programs, filters).map_err(|error| HostsError::Host("any kernel", error.into()))?;
    let cache = patina_images::default_cache_dir().map_err(|error| unavailable(error.into()))?;
    let (mut there, mut missing) = (Vec::new(), Ok(()));
    for kernel in &wanted.0 {
        match patina_images::debian_kernel(&cache, kernel.series, &MODULES, &mut progress) {
            Ok(debian) => there.push((*kernel, debian)),
            Err(error) => {
                let host = format!("the emulated host with Linux {}", kernel.series);
                missing = Err(HostsError::Unavailable(host, Box::new(error)));
            }
        }
    }
    let outcomes: Vec<_> = thread::scope(|scope| {
        let run = |(kernel, debian): &(Kernel, DebianKernel)| {
            let what = format!("test on Linux {} under emulated AMD-V", debian.version);
            steps.step(&what, || host(steps, setup, &plan, *kernel, debian))
        };
        let threads: Vec<_> = there.iter().map(|pair| scope.spawn(move || run(pair))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    outcomes.into_iter().collect::<Result<(), _>>().and(missing)
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
    let arguments = ["test", "--no-run", "--message-format", "json-render-diagnostics"];
    let tests = ["-p", "vmm", "--test", "tiny_guests", "-p", "patina-tests", "--test", "e2e"];
    let told = run::output(cargo(&arguments).args(tests))?;
    let program = |name| program(&told, name).ok_or(HostsError::Program(name));
    Ok(TestPrograms { tiny: program("tiny_guests")?, e2e: program("e2e")? })
}

/// The program of the test target `name`, in cargo's messages, a JSON document a line.
fn program(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_wanted = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        if !is_wanted { None } else { message["executable"].as_str().map(PathBuf::from) }
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
        assert_eq!(refused, "no host with that kernel; there are 6.1, 6.12 and all");
    }

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"e2e"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"tiny_guests"},"executable":"/t/tiny_guests-1"}
{"reason":"compiler-artifact","target":{"name":"e2e"},"executable":"/t/e2e-2"}"#;
        assert_eq!(program(messages, "e2e"), Some(PathBuf::from("/t/e2e-2")));
        assert_eq!(program(messages, "walk"), None);
    }
}
