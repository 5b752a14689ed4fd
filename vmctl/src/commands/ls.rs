//! `vmctl ls`: the VMs of the host.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
    tree,
    view::{HEADER, VmView},
};
use patina_proto::v1::ListVmsRequest;

/// Prints all VMs, page by page where there are many.
pub async fn run(context: &Context) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let mut vms = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client.list_vms(ListVmsRequest { page_size: 0, page_token }).await?.into_inner();
        vms.extend(page.vms);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    let vms: Vec<(usize, VmView)> =
        tree::order(vms).into_iter().map(|(depth, vm)| (depth, vm.into())).collect();
    match context.format {
        Format::Json => output::json(&vms.iter().map(|(_, vm)| vm).collect::<Vec<_>>()),
        Format::Table => output::table(&HEADER, vms.iter().map(|(depth, vm)| vm.row(*depth))),
    }
}
