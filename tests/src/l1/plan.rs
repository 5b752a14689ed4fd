//! Selects the tests that run on an emulated host.
//!
//! All tiny guests run, and the tests of how a kernel tracks written pages. Of the end-to-end
//! stories, those run that depend on a host's hardware or kernel. Not all can run: a translator has
//! a fiftieth of the usual speed.

use super::report::{Expected, plain};
use crate::process::{self, ProcessError};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The suite of tests with guests of a few instructions.
pub const TINY: &str = "tiny_guests";
/// The suite of end-to-end stories.
pub const E2E: &str = "e2e";
/// The suite of the vmm's own tests of page tables.
pub const PAGE_TABLES: &str = "vmm";
/// Their names begin so. Those of them that are ignored where there is no root need a kernel that
/// tracks writes.
const PAGE_TABLE_TESTS: &str = "sys::pagemap::";
/// Why they do not run on an older one.
const NO_TRACKING: &str = "needs Linux 6.7, which tracks writes";

/// Tiny guests whose memory arrives while they run.
const LAZY: [&str; 10] = [
    "a_freeze_gives_up_on_a_vcpu_that_waits_for_a_page_and_the_vm_goes_on",
    "a_freeze_after_one_that_has_failed_copies_what_was_written_and_no_more",
    "another_pager_is_attached_during_a_freeze_that_waits_for_a_page",
    "a_vm_whose_vcpu_waits_for_a_page_is_killed_by_word",
    "a_vm_is_frozen_again_and_again_while_its_memory_arrives",
    "a_vm_whose_page_is_lost_ends_and_never_reads_another_content",
    "a_device_that_waits_for_a_page_goes_on_when_it_comes",
    "a_vm_whose_device_waits_for_a_page_is_killed_by_word",
    "a_vm_whose_device_needs_a_lost_page_ends_and_its_guest_is_told_nothing",
    "a_freeze_makes_no_content_of_a_lost_page",
];
/// So many of [`LAZY`] need a vCPU that cannot be paused while it waits.
const UNPAUSED: usize = 2;
/// Why they do not run with AMD-V.
const PAUSED: &str = "needs software KVM: elsewhere a vCPU that waits for a page can be paused";

/// How long a program may take to list its tests.
const LIST_DEADLINE: Duration = Duration::from_secs(60);

/// The end-to-end stories that run on an emulated host. Those that ask for more VMs than its RAM
/// allows are not among them.
const CHOSEN: [&str; 26] = [
    "boot::a_guest_boots_and_is_ready",
    "boot::the_guest_has_its_name_address_and_clock",
    "exec::output_errors_and_exit_code_are_kept_apart",
    "exec::a_program_gets_a_terminal",
    "cpus::a_guest_with_two_vcpus_runs_two_programs_at_once",
    "cpus::vector_registers_survive_context_switches",
    "network::the_host_reaches_the_guest_through_a_published_port",
    "endings::a_guest_that_powers_off_has_powered_off",
    "endings::a_triple_fault_is_recorded",
    "clones::two_clones_and_their_parent_go_on_each_for_itself",
    "clones::the_hosts_oom_killer_takes_clones_first_and_vmmd_last",
    "clones::memory_written_at_full_speed_is_whole_in_parent_and_clones",
    "clones::a_guest_of_two_vcpus_is_cloned_with_both",
    "carried::timers_connections_pipes_and_files_go_on",
    "carried::vector_registers_are_kept_across_a_clone",
    "carried::a_guest_of_four_vcpus_is_cloned_with_all_of_them",
    "forks::gc_clone_prints_0_in_the_parent_and_the_vmid_in_each_clone",
    "forks::a_ticket_is_for_as_many_clones_as_were_granted",
    "forks::a_ticket_for_more_than_is_free_is_refused_in_time",
    "forks::a_clone_of_a_clone_of_a_clone_goes_on",
    "forks::clones_talk_tcp_to_the_master_and_to_each_other",
    "tickets::a_map_reduce_job_in_shell_asks_clones_meets_works_and_joins",
    "tickets::what_is_killed_is_given_back",
    "generations::the_memory_of_a_generation_goes_with_its_last_user",
    "adoption::a_vm_outlives_a_killed_vmmd_and_is_taken_over",
    "snapshots::a_program_counts_on_in_the_vm_that_was_kept_and_in_two_restored_ones",
];

/// Why the tests cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A program does not list its tests.
    #[error("list the tests of {}", program.display())]
    List {
        /// The program.
        program: PathBuf,
        /// What it did.
        source: ProcessError,
    },
    /// A program does not list its tests.
    #[error("list the tests of {}: exit code {code}: {errors}", program.display())]
    Code {
        /// The program.
        program: PathBuf,
        /// Its exit code.
        code: i32,
        /// What it complained about.
        errors: String,
    },
    /// A test that is to run does not exist (any more).
    #[error("there is no test {0}: correct the list in tests/src/l1/plan.rs")]
    Unknown(String),
    /// The filters leave nothing to run.
    #[error("no test on emulated hosts has a name that contains one of: {}", .0.join(", "))]
    Nothing(Vec<String>),
}

/// A program of tests.
#[derive(Debug)]
pub struct Suite {
    /// Its name in the report.
    pub name: &'static str,
    /// The program, on this machine.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The tests that must run.
    pub tests: BTreeSet<String>,
}

/// What is run.
#[derive(Debug)]
pub struct Plan {
    /// One program after the other.
    pub suites: Vec<Suite>,
    /// Tests that this host's kernel cannot run, and why.
    pub ignored: Vec<(String, &'static str)>,
}

/// The programs of tests, as cargo built them.
#[derive(Debug)]
pub struct TestPrograms {
    /// `vmm/tests/tiny_guests.rs`.
    pub tiny: PathBuf,
    /// `tests/tests/e2e`.
    pub e2e: PathBuf,
    /// The unit tests of `vmm`.
    pub vmm: PathBuf,
}

impl Plan {
    /// All that is run on an emulated host, or of that the tests whose names contain one of
    /// `filters`. `tracks_writes`: whether its kernel does.
    ///
    /// # Errors
    /// A program does not list its tests, or has none of a name that it should have.
    pub fn new(programs: &TestPrograms, filters: &[String], tracks_writes: bool) -> Result<Self, PlanError> {
        let tiny = list(&programs.tiny, &[])?;
        let e2e = list(&programs.e2e, &[])?;
        let tracking = if tracks_writes { BTreeSet::new() } else { list(&programs.vmm, &["--ignored"])? };
        let (tables, ignored) = page_tables(list(&programs.vmm, &[])?, &tracking)?;
        let (unfit, why) = if tracks_writes { (&LAZY[..UNPAUSED], PAUSED) } else { (&LAZY[..], NO_TRACKING) };
        let fit = tiny.iter().filter(|name| !unfit.contains(&name.as_str())).cloned().collect();
        let suites = [
            Suite::new(TINY, &programs.tiny, &tiny, wanted(&fit, filters)),
            Suite::of_names(PAGE_TABLES, &programs.vmm, wanted(&tables, filters)),
            Suite::new(E2E, &programs.e2e, &e2e, wanted(&chosen(&e2e)?, filters)),
        ];
        let suites: Vec<Suite> = suites.into_iter().filter(|suite| !suite.tests.is_empty()).collect();
        let mut ignored: Vec<_> =
            wanted(&ignored, filters).into_iter().map(|name| (name, NO_TRACKING)).collect();
        let unfit = unfit.iter().map(|name| (*name).to_owned()).collect();
        ignored.extend(wanted(&unfit, filters).into_iter().map(|name| (name, why)));
        if suites.is_empty() && ignored.is_empty() {
            return Err(PlanError::Nothing(filters.to_vec()));
        }
        Ok(Self { suites, ignored })
    }

    /// The tests that must run.
    #[must_use]
    pub fn expected(&self) -> Expected {
        self.suites.iter().map(|suite| (suite.name.to_owned(), suite.tests.clone())).collect()
    }
}

impl Suite {
    /// Runs `tests` of `all` that the program has.
    fn new(name: &'static str, program: &Path, all: &BTreeSet<String>, tests: BTreeSet<String>) -> Self {
        let fixed = ["--format", "json", "--include-ignored", "--test-threads", "1", "--exact"];
        // A program takes one filter, and skips any number.
        let skipped = all.difference(&tests).flat_map(|test| ["--skip", test]);
        let arguments = fixed.into_iter().chain(skipped).map(str::to_owned).collect();
        Self { name, program: program.to_owned(), arguments, tests }
    }

    /// Runs `tests` of a program with Rust's own test harness, which takes any number of names.
    fn of_names(name: &'static str, program: &Path, tests: BTreeSet<String>) -> Self {
        let fixed = ["--include-ignored", "--test-threads", "1", "--exact"].map(str::to_owned);
        let arguments = fixed.into_iter().chain(tests.iter().cloned()).collect();
        Self { name, program: program.to_owned(), arguments, tests }
    }
}

/// Of a program's tests those of page tables that run, and those that do not, as they are among
/// `tracking`.
fn page_tables(
    all: BTreeSet<String>,
    tracking: &BTreeSet<String>,
) -> Result<(BTreeSet<String>, BTreeSet<String>), PlanError> {
    let tables: BTreeSet<String> =
        all.into_iter().filter(|name| name.starts_with(PAGE_TABLE_TESTS)).collect();
    if tables.is_empty() {
        return Err(PlanError::Unknown(format!("{PAGE_TABLE_TESTS}*")));
    }
    Ok(tables.into_iter().partition(|name| !tracking.contains(name)))
}

fn wanted(tests: &BTreeSet<String>, filters: &[String]) -> BTreeSet<String> {
    let is_wanted =
        |name: &&String| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    tests.iter().filter(is_wanted).cloned().collect()
}

fn chosen(stories: &BTreeSet<String>) -> Result<BTreeSet<String>, PlanError> {
    let known = |name: &str| match stories.contains(name) {
        true => Ok(name.to_owned()),
        false => Err(PlanError::Unknown(name.to_owned())),
    };
    CHOSEN.into_iter().map(known).collect()
}

/// The names of a program's tests.
fn list(program: &Path, options: &[&str]) -> Result<BTreeSet<String>, PlanError> {
    let mut command = Command::new(program);
    command.arg("--list").args(options);
    let output = process::run(&mut command, b"", LIST_DEADLINE)
        .map_err(|source| PlanError::List { program: program.to_owned(), source })?;
    if output.code != 0 {
        let (code, errors) = (output.code, output.errors());
        return Err(PlanError::Code { program: program.to_owned(), code, errors });
    }
    Ok(names(&output.text()))
}

/// The names in what `--list` prints: `NAME: test`, with `[REASON]` where a test cannot run on this
/// machine.
fn names(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(|line| line.trim_end().strip_suffix(": test")).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_without_this_machines_reasons() {
        let list = "power_off_is_recorded [no usable /dev/kvm: No such file or directory (os error 2)]: test\nb: test\n\n2 tests, 0 benchmarks\n";
        assert_eq!(names(list), BTreeSet::from(["power_off_is_recorded".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn a_story_that_was_renamed_is_missed() {
        let mut stories: BTreeSet<String> = CHOSEN.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(chosen(&stories).unwrap().len(), CHOSEN.len());
        stories.remove(CHOSEN[0]);
        assert!(matches!(chosen(&stories).unwrap_err(), PlanError::Unknown(name) if name == CHOSEN[0]));
    }

    #[test]
    fn tests_of_tracked_writes_are_ignored_where_the_kernel_does_not_track() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let all = names(&["sys::pagemap::tests::a", "sys::pagemap::tests::b", "sys::view::tests::c"]);
        let (run, ignored) =
            page_tables(all.clone(), &names(&["sys::pagemap::tests::b", "net::tests::tap"])).unwrap();
        assert_eq!((run, ignored), (names(&["sys::pagemap::tests::a"]), names(&["sys::pagemap::tests::b"])));
        let (run, ignored) = page_tables(all, &BTreeSet::new()).unwrap();
        assert_eq!((run.len(), ignored.len()), (2, 0));
        assert!(matches!(
            page_tables(names(&["other"]), &BTreeSet::new()).unwrap_err(),
            PlanError::Unknown(name) if name == "sys::pagemap::*"
        ));
        let suite = Suite::of_names(PAGE_TABLES, Path::new("vmm"), names(&["b", "a"]));
        assert_eq!(suite.arguments.join(" "), "--include-ignored --test-threads 1 --exact a b");
    }

    #[test]
    fn what_is_not_wanted_is_skipped_by_its_whole_name() {
        let all = BTreeSet::from(["a", "ab", "b"].map(str::to_owned));
        let suite = Suite::new(TINY, Path::new("tiny"), &all, wanted(&all, &["a".to_owned()]));
        assert_eq!(suite.tests, BTreeSet::from(["a", "ab"].map(str::to_owned)));
        assert_eq!(suite.arguments[5..], ["--exact", "--skip", "b"]);
        assert_eq!(wanted(&all, &[]), all);
    }
}
