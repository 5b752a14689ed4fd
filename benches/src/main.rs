//! `patina-bench`: measures Patina with real guests. `cargo xtask bench NAME` builds all that is
//! needed and runs it.
//!
//! - [`boot`]: from `vmctl run` to a ready agent, the memory of a `vmm`, and the cost of a guest's
//!   kernel.
//! - [`mod@clone`]: the cost of a clone for its parent, how soon clones are ready, and the same
//!   with QEMU ([`qemu`]).
//! - [`ticket`]: the cost of a grant, without guests.
//! - [`restore`]: how soon VMs that are restored from a snapshot run and are ready, what they read
//!   and what they have to themselves, beside a plain mapping and QEMU; VMs of a booted image.
//! - [`remote`]: how soon clones on other hosts run and are ready, and what is sent for them.
//! - [`fault`]: the cost of a page fault that the pager answers, without guests.
//! - [`cornering`]: 100 clones are killed and 100 others are ready.
//! - [`floors`]: the kernel's cost of the smallest part of each.
//! - [`daemon`], [`talk`]: a `vmmd` for the benchmark alone, and the programs in its guests.
//! - [`only`]: the parts that somebody wants.
//! - [`report`]: figures and their limits, as a table and as JSON; [`host`]: the machine.
//! - [`smaps`]: the memory of a process; [`usage`]: the CPU time of its threads.
//!
//! The table goes to standard error, the JSON to a file or standard output. The exit code is 1 if a
//! figure misses its limit.

mod boot;
mod clone;
mod cornering;
mod daemon;
mod fault;
mod floors;
mod host;
mod only;
mod qemu;
mod remote;
mod report;
mod restore;
mod smaps;
mod talk;
mod ticket;
mod usage;

use clap::{Parser, ValueEnum};
use patina_tests::{
    interrupt,
    setup::{BIN_DIR, Missing, Setup},
};
use std::{
    env,
    error::Error,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

/// Measures Patina with real guests.
#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    name: Name,
    /// Write the figures to this file instead of standard output.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How many guests `boot` boots [default: 5, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(3..=1000))]
    boots: Option<u32>,
    /// Measure everything, but less often.
    #[arg(long)]
    quick: bool,
    /// Of `clone`, `remote` and `restore`, measure only the parts that have a row whose name begins
    /// so. May be given several times.
    #[arg(long, value_name = "ROW-PREFIX")]
    only: Vec<String>,
    /// Measure the binaries in this directory (vmm, vmmd, vmctl, scheduler), of another revision
    /// for instance, instead of those that were just built.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Guests boot this kernel.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Guests have this root file system.
    #[arg(long, value_name = "FILE")]
    rootfs: Option<PathBuf>,
}

impl Arguments {
    /// What is measured: what was built last, but for what the options name.
    fn setup(&self) -> Result<Setup, Missing> {
        let mut setup = Setup::from_env()?;
        let parts = [
            (&mut setup.bin_dir, &self.bin_dir),
            (&mut setup.kernel, &self.kernel),
            (&mut setup.rootfs, &self.rootfs),
        ];
        for (path, option) in parts {
            if let Some(option) = option {
                path.clone_from(option);
            }
        }
        setup.check().map(|()| setup)
    }

    /// The revision in the report is the benchmark's own: what else was measured is noted beside
    /// it.
    fn replaced(&self) -> Vec<String> {
        let options = [("--bin-dir", &self.bin_dir), ("--kernel", &self.kernel), ("--rootfs", &self.rootfs)];
        let given = options.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
        given.map(|(name, path)| format!("{name} {}: not of this revision", path.display())).collect()
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// Boot, memory and the guest's kernel.
    Boot,
    /// Clones: what they cost their parent, how soon they run, beside floors and QEMU.
    Clone,
    /// 100 clones killed and 100 others ready.
    Cornering,
    /// Page faults that the pager answers: needs no guests.
    Fault,
    /// Clones on other hosts: how soon they run, what is sent for them.
    Remote,
    /// VMs from snapshots and from booted images: how soon they run, what they read and keep.
    Restore,
    /// Grants of tickets: needs no guests.
    Ticket,
}

fn main() -> ExitCode {
    if let Some(code) = patina_tests::keeper::run_if_asked() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            patina_daemon::say!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Gives a measurement up once a signal asks us to end: what it has started goes as it is dropped.
async fn unless_interrupted<T>(
    measure: impl Future<Output = Result<T, Box<dyn Error>>>,
) -> Result<T, Box<dyn Error>> {
    let interrupted = async {
        let Some(woken) = interrupt::woken() else { return std::future::pending().await };
        let woken = std::os::unix::net::UnixStream::from(woken.try_clone_to_owned()?);
        woken.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(woken)?.readable().await
    };
    tokio::select! {
        measured = measure => measured,
        woken = interrupted => {
            woken?;
            Err(daemon::DaemonError::Interrupted.into())
        }
    }
}

/// Whether every figure reaches what it must.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    interrupt::watch()?;
    let own_bin_dir = || env::var_os(BIN_DIR).map(PathBuf::from).ok_or(Missing::Variable(BIN_DIR));
    let bin_dir = arguments.bin_dir.clone().map_or_else(own_bin_dir, Ok)?;
    let host = host::facts(&bin_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let quick = arguments.quick;
    let (metrics, mut notes) = match arguments.name {
        Name::Boot => {
            let boots = arguments.boots.unwrap_or(if quick { 3 } else { 5 });
            (boot::measure(&arguments.setup()?, boots)?, Vec::new())
        }
        Name::Clone => {
            let only = only::Only::new("clone", &arguments.only, &clone::PARTS)?;
            runtime.block_on(unless_interrupted(clone::measure(
                &arguments.setup()?,
                &host,
                clone::Plan::new(quick),
                &only,
            )))?
        }
        Name::Cornering => {
            let rounds = if quick { 1 } else { 3 };
            runtime.block_on(unless_interrupted(cornering::measure(&arguments.setup()?, &host, rounds)))?
        }
        Name::Fault => fault::measure(&bin_dir, fault::Plan::new(quick))?,
        Name::Remote => {
            let only = only::Only::new("remote", &arguments.only, &remote::PARTS)?;
            let plan = remote::Plan::new(quick);
            runtime.block_on(unless_interrupted(remote::measure(&arguments.setup()?, plan, &only)))?
        }
        Name::Restore => {
            let only = only::Only::new("restore", &arguments.only, &restore::PARTS)?;
            runtime.block_on(unless_interrupted(restore::measure(
                &arguments.setup()?,
                &host,
                restore::Plan::new(quick),
                &only,
            )))?
        }
        Name::Ticket => {
            runtime.block_on(unless_interrupted(ticket::measure(&bin_dir, ticket::Plan::new(quick))))?
        }
    };
    notes.extend(arguments.replaced());
    let bench = arguments.name.to_possible_value().map(|value| value.get_name().to_owned());
    let report = report::Report::new(bench.unwrap_or_default(), host, metrics, notes);
    patina_daemon::say!("{}", report.table());
    let json = serde_json::to_string_pretty(&report)?;
    match &arguments.json {
        Some(path) => fs::write(path, json + "\n")?,
        None => writeln!(io::stdout(), "{json}")?,
    }
    Ok(report.holds())
}
