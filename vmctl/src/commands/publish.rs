//! `vmctl publish` and `vmctl unpublish`: ports of a VM that runs.

use super::{
    Context,
    cluster::{Care, Where},
};
use crate::{
    error::CtlError,
    output::{self, Format},
    values,
    view::VmView,
};
use patina_proto::v1::{PublishPortsRequest, PublishedPort, UnpublishPortsRequest, Vm};

/// Arguments of `vmctl publish`.
#[derive(Debug, clap::Args)]
pub struct Publish {
    #[command(flatten)]
    place: Where,
    /// The VM: a clone as any other.
    name: String,
    /// Ports of the host that it runs on, and of the VM. Without ADDRESS only programs on that host
    /// reach it.
    #[arg(required = true, value_parser = values::published_port, value_name = "[ADDRESS:]HOST:GUEST")]
    ports: Vec<PublishedPort>,
}

/// Arguments of `vmctl unpublish`.
#[derive(Debug, clap::Args)]
pub struct Unpublish {
    #[command(flatten)]
    place: Where,
    /// The VM.
    name: String,
    /// Ports of the host, as they were published.
    #[arg(required = true, value_parser = values::host_port, value_name = "[ADDRESS:]HOST")]
    ports: Vec<PublishedPort>,
}

/// Publishes the ports, prints those that the VM has then.
pub async fn publish(context: &Context, arguments: Publish) -> Result<(), CtlError> {
    let Publish { place, name, ports } = arguments;
    let mut client = context.client_of(place, &name, Care::Change).await?;
    print(context, client.publish_ports(PublishPortsRequest { name, ports }).await?.into_inner())
}

/// Stops publishing the ports, prints those that the VM still has.
pub async fn unpublish(context: &Context, arguments: Unpublish) -> Result<(), CtlError> {
    let Unpublish { place, name, ports } = arguments;
    let mut client = context.client_of(place, &name, Care::Change).await?;
    print(context, client.unpublish_ports(UnpublishPortsRequest { name, ports }).await?.into_inner())
}

fn print(context: &Context, vm: Vm) -> Result<(), CtlError> {
    let view = VmView::from(vm);
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => output::table(&["HOST", "GUEST"], view.port_rows()),
    }
}
