//! `vmctl inspect`: everything about one VM.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
    view::VmView,
};
use patina_proto::v1::GetVmRequest;

/// Arguments of `vmctl inspect`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VM.
    name: String,
}

/// Prints all about the VM.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let vm = client.get_vm(GetVmRequest { name: arguments.name }).await?.into_inner();
    let view = VmView::from(vm);
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => {
            let rows = view.details().into_iter().map(|(name, value)| vec![name.to_owned(), value]);
            output::table(&[], rows)
        }
    }
}
