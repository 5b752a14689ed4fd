//! `vmctl kill`: ends VMs at once.

use super::{Context, Several};
use crate::error::CtlError;
use patina_proto::v1::KillVmRequest;

/// Arguments of `vmctl kill`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VMs; one that has ended already stays as it is.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Kills each VM, prints the names of those that have ended.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let mut several = Several::default();
    for name in arguments.names {
        let result = client.kill_vm(KillVmRequest { name: name.clone() }).await;
        several.note(&name, result.map(|_| ()).map_err(CtlError::from))?;
    }
    several.finish()
}
