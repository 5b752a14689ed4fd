//! `vmctl wait`: waits until a VM is ready or has ended.

use super::{
    Context,
    cluster::{Care, Where},
};
use crate::{
    error::CtlError,
    output::{self, Format},
    view::VmView,
};
use patina_proto::v1::{WaitVmRequest, wait_vm_request};

/// Arguments of `vmctl wait`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The VM.
    name: String,
    /// For what.
    #[arg(long, value_enum, default_value_t = Until::Ended)]
    until: Until,
    /// At most this long, seconds; then the exit code is 124.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: Option<u64>,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Until {
    /// Its agent answers.
    Ready,
    /// It has ended.
    Ended,
}

/// Waits, then prints how the VM stands.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client_of(arguments.place, &arguments.name, Care::Look).await?;
    let until = match arguments.until {
        Until::Ready => wait_vm_request::Until::Ready,
        Until::Ended => wait_vm_request::Until::Ended,
    };
    let request = WaitVmRequest {
        name: arguments.name,
        until: until.into(),
        timeout_ms: arguments.timeout.map_or(0, |seconds| seconds * 1000),
    };
    let view = VmView::from(client.wait_vm(request).await?.into_inner());
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => output::line(&view.summary()),
    }
}
