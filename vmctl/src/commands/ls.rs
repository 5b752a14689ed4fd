//! `vmctl ls`: the VMs of the host, or of all hosts.

use super::{Context, cluster::Cluster};
use crate::{
    error::CtlError,
    output::{self, Format},
    tree,
    view::{HEADER, VmView},
};
use patina_proto::v1::Vm;

/// Arguments of `vmctl ls`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// List the VMs of all hosts of the scheduler. If some do not answer, the others' VMs are
    /// listed, and the exit code is not 0.
    #[arg(long)]
    all_hosts: bool,
}

/// Prints all VMs, page by page where there are many.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    if !arguments.all_hosts {
        return print(context, context.vms().await?, false);
    }
    let cluster = Cluster::reach(context).await?;
    let mut asked = cluster.vms().await;
    let vms = asked.answers.iter_mut().flat_map(|(_, vms)| std::mem::take(vms)).collect();
    print(context, vms, true)?;
    cluster.complete(&asked)
}

fn print(context: &Context, vms: Vec<Vm>, with_host: bool) -> Result<(), CtlError> {
    let vms: Vec<(usize, VmView)> =
        tree::order(vms).into_iter().map(|(depth, vm)| (depth, vm.into())).collect();
    let header = |with_host: bool| {
        let (name, rest) = HEADER.split_at(1);
        [name, if with_host { &["HOST"] } else { &[] }, rest].concat()
    };
    let row = |(depth, vm): &(usize, VmView)| {
        let mut row = vm.row(*depth);
        if with_host {
            row.insert(1, vm.host.clone().unwrap_or_default());
        }
        row
    };
    match context.format {
        Format::Json => output::json(&vms.iter().map(|(_, vm)| vm).collect::<Vec<_>>()),
        Format::Table => output::table(&header(with_host), vms.iter().map(row)),
    }
}
