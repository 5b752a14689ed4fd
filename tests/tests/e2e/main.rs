//! End-to-end tests with real guests, through `vmctl`, as users run it.
//!
//! - [`stage`]: what tests share: a host with a booted guest, created when the first test needs it.
//! - [`boot`], [`exec`], [`cpus`], [`network`], [`operator`], [`endings`], [`floods`]: on the
//!   shared host.
//! - On the shared host, too: [`clones`] from outside, [`forks`] from inside the guest, [`carried`]
//!   for what continues in a clone, [`tickets`], and the README's [`walk`]. They share [`family`].
//! - [`damage`], [`snapshots`]: on the shared host and on hosts of their own.
//! - [`adoption`], [`baseline`], [`refusals`], [`generations`], [`cluster`], [`elsewhere`],
//!   [`failures`], [`holders`], [`overlay`], [`publishing`]: on hosts of their own. [`interrupts`]:
//!   test runs that are interrupted.
//!
//! If guests cannot run, every test is ignored, with the reason. No test passes without a guest.
//! `cargo xtask test NAME` runs the tests whose names contain NAME.

/// The stories of a module, for its `STORIES`: the functions, each of which is listed by its own
/// name, as `module::function`. `with_family(function)` is for one that takes the
/// [`family::Family`].
macro_rules! stories {
    ($($function:ident $(($inner:ident))?),* $(,)?) => {
        &[$(stories!(@one $function $($inner)?)),*]
    };
    (@one $function:ident) => {
        (concat!(module_path!(), "::", stringify!($function)), $function)
    };
    (@one $around:ident $function:ident) => {
        (concat!(module_path!(), "::", stringify!($function)), |stage| $around(stage, $function))
    };
}

mod adoption;
mod baseline;
mod boot;
mod carried;
mod clones;
mod cluster;
mod cpus;
mod damage;
mod elsewhere;
mod endings;
mod exec;
mod failures;
mod family;
mod floods;
mod forks;
mod free_pages;
mod generations;
mod holders;
mod images;
mod interrupts;
mod network;
mod operator;
mod overlay;
mod publishing;
mod refusals;
mod snapshots;
mod stage;
mod steady;
mod tickets;
mod walk;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use patina_tests::{interrupt, keeper, setup::Setup};
use stage::Stage;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

/// What a test returns.
type Outcome = Result<(), Failed>;
/// A test: the path of its function, and the function.
type Story = (&'static str, fn(&Stage) -> Outcome);

/// How long stories may go on after a signal. None is begun any more; what one waits for may take
/// longer.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if let Some(code) = keeper::run_if_asked() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    if let Err(error) = interrupt::watch().and_then(|()| interrupt::end_after(PATIENCE)) {
        patina_daemon::say!("watch for signals: {error}");
        return ExitCode::FAILURE;
    }
    // Guests share two or so CPUs: one story at a time unless someone says otherwise.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let stage = Setup::from_env().map_err(|missing| missing.to_string());
    let stage = stage.map(|setup| Arc::new(Stage::new(setup.with_images(images()))));
    let conclusion = libtest_mimic::run(&arguments, stories().map(|story| trial(&stage, story)).collect());
    let failed = conclusion.has_failed();
    match stage.ok().and_then(Arc::into_inner).map(Stage::close) {
        Some(Err(error)) => {
            patina_daemon::say!("clean up after the tests: {error}");
            ExitCode::FAILURE
        }
        _ if failed => ExitCode::from(101),
        _ => ExitCode::SUCCESS,
    }
}

/// Where VMs start from unless a story says `--cold`: a folder beside the build, which all runs
/// share and hosts keep small. An emulated host has no such folder, and no memory for images: its
/// VMs boot.
fn images() -> Option<PathBuf> {
    let build = Path::new(env!("CARGO_TARGET_TMPDIR"));
    build.is_dir().then(|| build.join("images-of-vms"))
}

fn stories() -> impl Iterator<Item = Story> {
    let modules: [&[Story]; 28] = [
        boot::STORIES,
        exec::STORIES,
        cpus::STORIES,
        network::STORIES,
        publishing::STORIES,
        operator::STORIES,
        floods::STORIES,
        steady::STORIES,
        endings::STORIES,
        clones::STORIES,
        carried::STORIES,
        forks::STORIES,
        tickets::STORIES,
        walk::STORIES,
        generations::STORIES,
        images::STORIES,
        snapshots::STORIES,
        free_pages::STORIES,
        damage::STORIES,
        cluster::STORIES,
        elsewhere::STORIES,
        baseline::STORIES,
        holders::STORIES,
        overlay::STORIES,
        failures::STORIES,
        refusals::STORIES,
        adoption::STORIES,
        interrupts::STORIES,
    ];
    modules.into_iter().flatten().copied()
}

fn trial(stage: &Result<Arc<Stage>, String>, (path, story): Story) -> Trial {
    let stage = stage.clone();
    // The name of this program stands in front of each path.
    let name = path.strip_prefix(concat!(module_path!(), "::")).unwrap_or(path);
    Trial::ignorable_test(name, move || match stage {
        Ok(_) if interrupt::requested() => Err("interrupted".into()),
        Ok(stage) => story(&stage).map(|()| Completion::Completed),
        Err(missing) => Ok(Completion::ignored_with(missing)),
    })
}
