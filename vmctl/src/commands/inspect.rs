//! `vmctl inspect`: everything about one VM.

use super::{
    Context,
    cluster::{Care, Cluster, Where},
};
use crate::{
    error::CtlError,
    output::{self, Format},
    view::VmView,
};
use patina_proto::v1::GetVmRequest;

/// Arguments of `vmctl inspect`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The VM.
    name: String,
}

/// Prints all about the VM.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let vm = if arguments.place.all_hosts {
        Cluster::reach(context).await?.find(&arguments.name, Care::Look).await?.1
    } else {
        context.client().await?.get_vm(GetVmRequest { name: arguments.name }).await?.into_inner()
    };
    let view = VmView::from(vm);
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => {
            let rows = view.details().into_iter().map(|(name, value)| vec![name.to_owned(), value]);
            output::table(&[], rows)
        }
    }
}
