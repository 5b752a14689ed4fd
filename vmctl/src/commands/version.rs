//! `vmctl version`: the version of vmctl, and that of vmmd if it answers.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
};
use patina_proto::v1::GetHostRequest;
use serde::Serialize;

#[derive(Serialize)]
struct Versions {
    vmctl: &'static str,
    vmmd: Option<String>,
}

/// Prints the versions. A vmmd that does not answer has none: no error, the command is about vmctl
/// too.
pub async fn run(context: &Context) -> Result<(), CtlError> {
    let vmmd = match context.client().await {
        Ok(mut client) => Some(client.get_host(GetHostRequest {}).await?.into_inner().revision),
        Err(CtlError::Unreachable { .. }) => None,
        Err(error) => return Err(error),
    };
    let versions = Versions { vmctl: env!("CARGO_PKG_VERSION"), vmmd };
    if context.format == Format::Json {
        return output::json(&versions);
    }
    output::line(&format!("vmctl {}", versions.vmctl))?;
    output::line(&format!("vmmd {}", versions.vmmd.as_deref().unwrap_or("does not answer")))
}
