//! `vmctl logs`: the output of a VM's console, or of its vmm process.

use super::{
    Context,
    cluster::{Care, Where},
};
use crate::{error::CtlError, output};
use patina_proto::v1::{LogsRequest, logs_request::Source};
use tokio_stream::StreamExt as _;

/// Arguments of `vmctl logs`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Go on with what comes, until the VM ends.
    #[arg(short, long)]
    follow: bool,
    /// The log of the vmm process instead of the console.
    #[arg(long)]
    vmm: bool,
    #[command(flatten)]
    place: Where,
    /// The VM.
    name: String,
}

/// Prints the log as it comes, bytes unchanged.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client_of(arguments.place, &arguments.name, Care::Look).await?;
    let source = if arguments.vmm { Source::Vmm } else { Source::Console };
    let request = LogsRequest { name: arguments.name, follow: arguments.follow, source: source.into() };
    let mut stream = client.logs(request).await?.into_inner();
    while let Some(part) = stream.next().await {
        output::write(&part?.data)?;
    }
    Ok(())
}
