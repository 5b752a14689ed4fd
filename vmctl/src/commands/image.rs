//! `vmctl image`: images of booted VMs.

use super::{
    Context,
    snapshot::view::{SnapshotView, mebibytes},
};
use crate::{
    error::CtlError,
    output::{self, Format},
    view::{age, unix_ms},
};
use patina_proto::v1::{Image, ListImagesRequest, PruneImagesRequest, PruneImagesResponse};
use serde::Serialize;
use std::time::Duration;

/// The header of [`ImageView::row`].
const HEADER: [&str; 8] = ["ID", "VCPUS", "MEMORY", "DISK", "VMS", "USED", "CMDLINE", "ROOTFS"];
/// How much of an id stands in a table, characters.
const ID_CHARS: usize = 16;

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the images. `-o json` prints all about each.
    #[command(visible_alias = "list")]
    Ls,
    /// Remove images from which no VM can start any more: the kernel, the root file system, the vmm
    /// program or the host is another one. Prints the ids of what was removed.
    ///
    /// VMs that were started from an image run on. An image from which VMs still read their memory
    /// stays.
    Prune(PruneArguments),
}

/// Arguments of `vmctl image prune`.
#[derive(Debug, clap::Args)]
pub struct PruneArguments {
    /// Remove all images, and the kernels and root file systems that the host fetched from other
    /// hosts and no VM uses.
    #[arg(long)]
    all: bool,
}

/// An image as `-o json` prints it: the fields of `patina.v1.Image`.
#[derive(Debug, Serialize)]
struct ImageView {
    id: String,
    snapshot: SnapshotView,
    used_unix_ms: u64,
    vms: u32,
}

/// What became of images, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct PrunedView {
    removed: Vec<String>,
    freed_kib: u64,
    in_use: Vec<String>,
}

impl From<Image> for ImageView {
    fn from(image: Image) -> Self {
        let Image { id, snapshot, used_unix_ms, vms } = image;
        Self { id, snapshot: snapshot.unwrap_or_default().into(), used_unix_ms, vms }
    }
}

impl ImageView {
    fn row(&self) -> Vec<String> {
        let id = self.id.chars().take(ID_CHARS).collect();
        let Some([vcpus, memory, disk, cmdline, rootfs]) = self.snapshot.as_image() else {
            let mut row = vec![id, format!("({})", self.snapshot.problem())];
            row.resize(HEADER.len(), String::new());
            return row;
        };
        let used = age(Duration::from_millis(unix_ms().saturating_sub(self.used_unix_ms)));
        vec![id, vcpus, memory, disk, self.vms.to_string(), used, cmdline, rootfs]
    }
}

/// Does it.
pub async fn run(context: &Context, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Ls => ls(context).await,
        Command::Prune(arguments) => prune(context, arguments).await,
    }
}

async fn ls(context: &Context) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let (mut images, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = client.list_images(ListImagesRequest { page_size: 0, page_token }).await?.into_inner();
        images.extend(page.images.into_iter().map(ImageView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match context.format {
        Format::Json => output::json(&images),
        Format::Table => output::table(&HEADER, images.iter().map(ImageView::row)),
    }
}

async fn prune(context: &Context, arguments: PruneArguments) -> Result<(), CtlError> {
    let request = PruneImagesRequest { all: arguments.all };
    let pruned = context.client().await?.prune_images(request).await?.into_inner();
    let PruneImagesResponse { removed, freed_kib, in_use } = pruned;
    match context.format {
        Format::Json => output::json(&PrunedView { removed, freed_kib, in_use }),
        Format::Table => {
            patina_daemon::say!("{}", summary(removed.len(), freed_kib, in_use.len()));
            removed.iter().try_for_each(|id| output::line(id))
        }
    }
}

fn summary(removed: usize, freed_kib: u64, in_use: usize) -> String {
    let mut text = format!("{removed} images removed, {} freed", mebibytes(freed_kib));
    if in_use > 0 {
        text = format!("{text}; VMs still read their memory from {in_use}, which stay");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use patina_proto::v1::Snapshot;

    #[test]
    fn what_image_commands_take() {
        let is_taken = |words: &str| {
            let line = format!("vmctl image {words}");
            crate::cli::Arguments::try_parse_from(line.split_whitespace()).is_ok()
        };
        assert!(["ls", "list", "prune", "prune --all", "ls -o json"].into_iter().all(is_taken));
        assert!(!["", "ls x", "prune x", "rm x"].into_iter().any(is_taken));
    }

    #[test]
    fn a_row_says_what_starts_from_it() {
        let snapshot = Snapshot {
            vcpus: 2,
            memory_mib: 256,
            cmdline: "a=1".into(),
            own_kib: 1536,
            ..Snapshot::default()
        };
        let image = Image { id: "ab".repeat(32), snapshot: Some(snapshot), vms: 3, ..Image::default() };
        let row = ImageView::from(image).row();
        assert_eq!(row.len(), HEADER.len());
        assert_eq!(row[..5], ["abababababababab", "2", "256 MiB", "1.5 MiB", "3"].map(str::to_owned));
        assert_eq!(row[6], "a=1");
        let torn = Snapshot { problem: "no manifest".into(), ..Snapshot::default() };
        let row = ImageView::from(Image { snapshot: Some(torn), ..Image::default() }).row();
        assert_eq!((row.len(), row[1].as_str()), (HEADER.len(), "(no manifest)"));
    }

    #[test]
    fn what_stays_is_told() {
        assert_eq!(summary(2, 1536, 0), "2 images removed, 1.5 MiB freed");
        assert!(summary(0, 0, 1).ends_with("; VMs still read their memory from 1, which stay"));
    }
}
