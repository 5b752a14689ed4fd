//! `vmctl snapshot`: keeps VMs in directories of the host, and starts VMs from them.
//!
//! [`view`]: snapshots as tables and as JSON.

pub mod view;

use super::{
    Context, Several,
    clone::{self, CloneView},
};
use crate::{
    error::CtlError,
    output::{self, Format},
    values,
};
use patina_proto::v1::{
    CreateSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest, PublishedPort, RemoveSnapshotRequest,
    RestoreSnapshotRequest, VerifySnapshotRequest,
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use view::{CreatedView, HEADER, SnapshotView};

/// What every command says of a snapshot's place.
const PLACE: &str = "\
A snapshot is a directory of the host that vmmd runs on. DIR is its path. A name without a slash is a
directory in `snapshots` of vmmd's state folder: `base` is there, `./base` is here.";

/// What to do with snapshots.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Keep a VM in a snapshot; the VM goes on. Prints the snapshot's path.
    ///
    /// The guest's agent prepares as for a clone, and the VM pauses as for a clone. The memory is
    /// written while the VM runs. A second snapshot of a VM shares with the first what has not
    /// changed, and is written faster.
    #[command(after_help = PLACE)]
    Create(CreateArguments),
    /// Start VMs from a snapshot: a new family. Prints their names.
    ///
    /// The VMs continue as clones of the VM that was kept, each with an identity of its own. The
    /// first one is the master of a new family, the others are its clones.
    #[command(after_help = PLACE)]
    Restore(RestoreArguments),
    /// List the snapshots in a directory.
    #[command(visible_alias = "list")]
    Ls(LsArguments),
    /// Show what a snapshot is of. Its memory is not read.
    #[command(after_help = PLACE)]
    Inspect(PlaceArguments),
    /// Read a whole snapshot and compare it with its digests.
    #[command(after_help = PLACE)]
    Verify(PlacesArguments),
    /// Delete snapshots. VMs that were restored from them run on, and other snapshots stay whole.
    #[command(after_help = PLACE)]
    Rm(PlacesArguments),
}

/// Arguments of `vmctl snapshot create`.
#[derive(Debug, clap::Args)]
pub struct CreateArguments {
    /// The VM: it must be ready, and goes on.
    name: String,
    /// Where the snapshot is to be: nothing may be there yet.
    #[arg(value_name = "DIR", value_parser = values::utf8())]
    place: String,
}

/// Arguments of `vmctl snapshot restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArguments {
    /// The snapshot.
    #[arg(value_name = "DIR", value_parser = values::utf8())]
    place: String,
    /// The first VM's name; without, vmmd chooses one. The others are named after it: NAME.1 and so
    /// on.
    #[arg(long)]
    name: Option<String>,
    /// How many VMs, 1 to 256.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    count: u32,
    /// Publish a port of the first VM on the host; without an address on 127.0.0.1.
    #[arg(short, long = "publish", value_parser = values::published_port, value_name = "[ADDRESS:]HOST:GUEST")]
    publish: Vec<PublishedPort>,
    /// The kernel that the VM booted, if it is not any more where it was.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The root file system that the VM reads, if it is not any more where it was.
    #[arg(long, value_name = "FILE")]
    rootfs: Option<PathBuf>,
    /// Do not wait until the VMs are ready.
    #[arg(long, alias = "detach")]
    no_wait: bool,
    /// Wait for the VMs at most this long, seconds; then the exit code is 124, and the VMs run on.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: Option<u64>,
}

/// Arguments of `vmctl snapshot ls`.
#[derive(Debug, clap::Args)]
pub struct LsArguments {
    /// The directory; without, `snapshots` of vmmd's state folder.
    #[arg(value_name = "DIR", value_parser = values::utf8())]
    directory: Option<String>,
}

/// One snapshot.
#[derive(Debug, clap::Args)]
pub struct PlaceArguments {
    /// The snapshot.
    #[arg(value_name = "DIR", value_parser = values::utf8())]
    place: String,
}

/// Some snapshots.
#[derive(Debug, clap::Args)]
pub struct PlacesArguments {
    /// The snapshots.
    #[arg(value_name = "DIR", required = true, value_parser = values::utf8())]
    places: Vec<String>,
}

/// The restored VMs, as `-o json` prints them.
#[derive(Debug, Serialize)]
struct RestoredView {
    vms: Vec<CloneView>,
}

/// Does it.
pub async fn run(context: &Context, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Create(arguments) => create(context, arguments).await,
        Command::Restore(arguments) => restore(context, arguments).await,
        Command::Ls(arguments) => ls(context, arguments).await,
        Command::Inspect(arguments) => inspect(context, arguments).await,
        Command::Verify(arguments) => verify(context, arguments).await,
        Command::Rm(arguments) => rm(context, arguments).await,
    }
}

/// A snapshot's place as vmmd takes it, which has another working directory. A name without a slash
/// is one of vmmd's own.
fn place(text: &str) -> String {
    let is_name = !text.contains('/') && !matches!(text, "." | "..");
    if is_name { text.to_owned() } else { absolute(Path::new(text)) }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

async fn create(context: &Context, arguments: CreateArguments) -> Result<(), CtlError> {
    let CreateArguments { name, place: text } = arguments;
    let request = CreateSnapshotRequest { name: name.clone(), path: place(&text) };
    let created = context.client().await?.create_snapshot(request).await?.into_inner();
    let view = CreatedView::from(created);
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => {
            patina_daemon::say!("{}", view.summary(&name));
            output::line(&view.snapshot.path)
        }
    }
}

async fn restore(context: &Context, arguments: RestoreArguments) -> Result<(), CtlError> {
    let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).unwrap_or_default();
    let request = RestoreSnapshotRequest {
        path: place(&arguments.place),
        name: arguments.name.unwrap_or_default(),
        count: arguments.count,
        kernel: path(&arguments.kernel),
        rootfs: path(&arguments.rootfs),
        ports: arguments.publish,
    };
    let mut client = context.client().await?;
    let made = client.restore_snapshot(request).await?.into_inner();
    let timeout_ms = (!arguments.no_wait).then(|| arguments.timeout.map_or(0, |seconds| seconds * 1000));
    let vms = clone::follow(&client, made.vms, timeout_ms).await;
    match context.format {
        Format::Json => output::json(&RestoredView { vms: vms.clone() })?,
        Format::Table => {
            vms.iter().filter(|vm| !vm.name.is_empty()).try_for_each(|vm| output::line(&vm.name))?;
        }
    }
    clone::report("VM", &vms)
}

async fn ls(context: &Context, arguments: LsArguments) -> Result<(), CtlError> {
    let directory = arguments.directory.as_deref().map(Path::new).map(absolute).unwrap_or_default();
    let mut client = context.client().await?;
    let (mut snapshots, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListSnapshotsRequest { directory: directory.clone(), page_size: 0, page_token };
        let page = client.list_snapshots(request).await?.into_inner();
        snapshots.extend(page.snapshots.into_iter().map(SnapshotView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match context.format {
        Format::Json => output::json(&snapshots),
        Format::Table => output::table(&HEADER, snapshots.iter().map(SnapshotView::row)),
    }
}

async fn inspect(context: &Context, arguments: PlaceArguments) -> Result<(), CtlError> {
    let request = GetSnapshotRequest { path: place(&arguments.place) };
    let snapshot = context.client().await?.get_snapshot(request).await?.into_inner();
    let view = SnapshotView::from(snapshot);
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => {
            let rows = view.details().into_iter().map(|(name, value)| vec![name.to_owned(), value]);
            output::table(&[], rows)
        }
    }
}

async fn verify(context: &Context, arguments: PlacesArguments) -> Result<(), CtlError> {
    let client = context.client().await?;
    let mut several = Several::of("snapshots", context.format);
    // One after the other: each is read as a whole.
    for text in arguments.places {
        let mut client = client.clone();
        let check = |text: String| async move {
            client.verify_snapshot(VerifySnapshotRequest { path: place(&text) }).await?;
            Ok(())
        };
        several.each_once(text, check).await?;
    }
    several.finish()
}

async fn rm(context: &Context, arguments: PlacesArguments) -> Result<(), CtlError> {
    let client = context.client().await?;
    let mut several = Several::of("snapshots", context.format);
    let remove = |text: String| {
        let mut client = client.clone();
        async move {
            client.remove_snapshot(RemoveSnapshotRequest { path: place(&text) }).await?;
            Ok(())
        }
    };
    several.each(arguments.places, remove).await?;
    several.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn is_taken(words: &str) -> bool {
        let line = format!("vmctl snapshot {words}");
        crate::cli::Arguments::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn a_name_is_vmmds_own_and_a_path_is_made_absolute() {
        assert_eq!((place("base").as_str(), place("/a/b").as_str()), ("base", "/a/b"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(place("./base"), here.join("base").to_str().unwrap());
        assert_eq!(place("a/base"), here.join("a/base").to_str().unwrap());
        assert!(place(".").starts_with('/') && place("..").starts_with('/'));
    }

    #[test]
    fn what_snapshot_commands_take() {
        for right in [
            "create web base",
            "restore base",
            "restore ./base --name web -n 3 -p 8080:80",
            "restore base --no-wait",
            "ls",
            "ls /srv",
            "list",
            "inspect base",
            "verify a b",
            "rm a b",
        ] {
            assert!(is_taken(right), "{right}");
        }
        for wrong in
            ["", "create web", "restore", "restore a b", "restore a -n 0", "restore a -n 257", "ls a b", "rm"]
        {
            assert!(!is_taken(wrong), "{wrong}");
        }
    }
}
