//! `vmctl dial-stdio`: the far end of `--host ssh://`.

use super::Context;
use crate::{error::CtlError, output, ssh::GREETING};
use tokio::{io, net::UnixStream};

/// Connects standard input and output to the socket of vmmd, until either side closes.
pub async fn run(context: &Context) -> Result<(), CtlError> {
    let path = context.host.strip_prefix("unix:").filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| CtlError::NoSocket(context.host.clone()))?;
    let connected = UnixStream::connect(path).await;
    let connected = connected.map_err(|source| CtlError::Socket { path: path.to_owned(), source })?;
    output::write(GREETING)?;
    let (mut from_vmmd, mut to_vmmd) = connected.into_split();
    let (mut stdin, mut stdout) = (io::stdin(), io::stdout());
    // Who has closed one direction is gone: a client of gRPC does not stop half-way.
    let copied = tokio::select! {
        copied = io::copy(&mut stdin, &mut to_vmmd) => copied,
        copied = io::copy(&mut from_vmmd, &mut stdout) => copied,
    };
    copied.map(drop).map_err(|source| CtlError::Stream { what: "pass on the connection", source })
}
