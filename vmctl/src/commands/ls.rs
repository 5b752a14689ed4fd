//! `vmctl ls`: the VMs of the host.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
    tree,
    view::{HEADER, VmView},
};

/// Prints all VMs, page by page where there are many.
pub async fn run(context: &Context) -> Result<(), CtlError> {
    let vms: Vec<(usize, VmView)> =
        tree::order(context.vms().await?).into_iter().map(|(depth, vm)| (depth, vm.into())).collect();
    match context.format {
        Format::Json => output::json(&vms.iter().map(|(_, vm)| vm).collect::<Vec<_>>()),
        Format::Table => output::table(&HEADER, vms.iter().map(|(depth, vm)| vm.row(*depth))),
    }
}
