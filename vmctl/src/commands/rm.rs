//! `vmctl rm`: forgets ended VMs.

use super::{Context, Several};
use crate::error::CtlError;
use patina_proto::v1::RemoveVmRequest;

/// Arguments of `vmctl rm`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Kill a VM that still runs.
    #[arg(short, long)]
    force: bool,
    /// The VMs.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Removes each VM, prints the names of those that are gone.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let mut several = Several::default();
    for name in arguments.names {
        let request = RemoveVmRequest { name: name.clone(), force: arguments.force };
        let result = client.remove_vm(request).await;
        several.note(&name, result.map(|_| ()).map_err(CtlError::from))?;
    }
    several.finish()
}
