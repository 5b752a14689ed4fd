//! A test run that is interrupted or killed leaves nothing behind within seconds.

use crate::{Outcome, Story, family::require, stage::Stage};
use libtest_mimic::Failed;
use patina_tests::{host::CALL_DEADLINE, leftovers, process};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

pub const STORIES: &[Story] =
    stories![a_run_that_is_told_to_end_leaves_nothing_behind, a_run_that_is_killed_leaves_nothing_behind,];

/// The story that is run.
const STORY: &str = "boot::a_guest_boots_and_is_ready";
/// How long it may take until a VM is there.
const START: Duration = Duration::from_secs(60);
/// How long it may take until nothing is left. On a busy machine VMs take seconds to be removed.
const CLEAN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A run of one story, in a folder of its own. Killed if it is forgotten: its keeper does the rest.
struct Run {
    folder: PathBuf,
    child: Child,
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has ended already, or there is nothing more that could be done.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

fn a_run_that_is_told_to_end_leaves_nothing_behind(stage: &Stage) -> Outcome {
    interrupted(stage, Signal::TERM)?;
    interrupted(stage, Signal::INT)
}

fn a_run_that_is_killed_leaves_nothing_behind(stage: &Stage) -> Outcome {
    interrupted(stage, Signal::KILL)
}

fn interrupted(stage: &Stage, signal: Signal) -> Outcome {
    let folder = tempfile::Builder::new().prefix("interrupted-").tempdir()?;
    let log = folder.path().join("log");
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", STORY]).env("TMPDIR", &temporary).process_group(0);
    command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log)?)
        .stderr(fs::File::options().append(true).open(&log)?);
    let mut run = Run { child: command.spawn()?, folder: temporary };
    let told = tell(stage, &mut run, signal);
    told.map_err(|failed| {
        let log = fs::read_to_string(&log).unwrap_or_default();
        format!("{signal:?}: {}; the run said:\n{log}", failed.message().unwrap_or("failed")).into()
    })
}

fn tell(stage: &Stage, run: &mut Run, signal: Signal) -> Outcome {
    let interfaces = until("a VM runs", START, || interfaces(stage, &run.folder))?;
    kill_process(Pid::from_child(&run.child), signal)?;
    let begun = Instant::now();
    let status = process::wait(&mut run.child, CLEAN)?.ok_or("the run goes on")?;
    require(!status.success(), "the run fails", status)?;
    until("nothing is left", CLEAN, || {
        let processes = leftovers::processes_of(&run.folder)?;
        let left = interfaces.iter().filter(|name| leftovers::interface_exists(name)).count();
        let files = fs::read_dir(&run.folder)?.count();
        Ok((processes.is_empty() && left == 0 && files == 0).then_some(()))
    })
    .map_err(|failed| {
        let left = leftovers::processes_of(&run.folder).unwrap_or_default();
        let files = fs::read_dir(&run.folder).map(Iterator::count).unwrap_or_default();
        format!("{}: {left:?}, {files} folders, of {interfaces:?}", failed.message().unwrap_or("failed"))
    })?;
    patina_daemon::say!("{signal:?}: nothing left after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The interfaces of the run's VMs, once there is one that has some.
fn interfaces(stage: &Stage, folder: &Path) -> Result<Option<Vec<String>>, Failed> {
    for entry in fs::read_dir(folder)? {
        let socket = entry?.path().join("vmmd.sock");
        if !socket.exists() {
            continue;
        }
        let mut command = Command::new(stage.setup().binary("vmctl"));
        command.env("PATINA_HOST", format!("unix:{}", socket.display())).args(["-o", "json", "ls"]);
        // It may just be starting.
        let listed = process::run(&mut command, b"", CALL_DEADLINE)?;
        let vms: serde_json::Value = serde_json::from_str(&listed.text()).unwrap_or_default();
        let field = |field| vms.as_array().into_iter().flatten().filter_map(move |vm| vm[field].as_str());
        let names: Vec<String> =
            field("bridge").chain(field("tap")).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if names.iter().any(|name| leftovers::interface_exists(name)) {
            return Ok(Some(names));
        }
    }
    Ok(None)
}

fn until<T>(
    what: &str,
    deadline: Duration,
    look: impl Fn() -> Result<Option<T>, Failed>,
) -> Result<T, Failed> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > deadline {
            return Err(format!("{what}: not within {} s", deadline.as_secs()).into());
        }
        thread::sleep(LOOK_AGAIN);
    }
}
