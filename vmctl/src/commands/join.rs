//! `vmctl join`: how the clones of a ticket ended, and the data they left.

use super::{Context, sync::Which};
use crate::{
    client::Scheduler,
    error::CtlError,
    output::{self, Format},
    tickets::ResultView,
};
use patina_proto::v1::{GetJoinDataRequest, JoinRequest, JoinWait, join_request::Side};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Arguments of `vmctl join`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
    /// At most this long, seconds; then the exit code is 124.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
    /// Write what each clone left into the file DIR/VMID.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Waits until all clones have ended, prints how.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut scheduler = context.scheduler().await?;
    let ticket = arguments.which.uuid();
    // Without a family it is an operator who waits, and no VM.
    let wait = JoinWait { vmid: 0, timeout_ms: arguments.timeout.map_or(0, |seconds| seconds * 1000) };
    let request = JoinRequest { ticket: ticket.clone(), family: String::new(), side: Some(Side::Wait(wait)) };
    let results = scheduler.join(request).await?.into_inner().results;
    let results: Vec<ResultView> = results.into_iter().map(ResultView::from).collect();
    if let Some(directory) = &arguments.data_dir {
        write_data(&mut scheduler, &ticket, &results, directory).await?;
    }
    match context.format {
        Format::Json => output::json(&results),
        Format::Table => output::table(&ResultView::HEADER, results.iter().map(ResultView::row)),
    }
}

/// A clone that left nothing has no file.
async fn write_data(
    scheduler: &mut Scheduler,
    ticket: &str,
    results: &[ResultView],
    directory: &Path,
) -> Result<(), CtlError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CtlError::File { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    for result in results.iter().filter(|result| result.data_bytes > 0) {
        let request =
            GetJoinDataRequest { ticket: ticket.to_owned(), family: String::new(), vmid: result.vmid };
        let data = scheduler.get_join_data(request).await?.into_inner().data;
        let path = directory.join(result.vmid.to_string());
        fs::write(&path, data).map_err(failed(&path))?;
    }
    Ok(())
}
