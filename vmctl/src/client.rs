//! The connection to vmmd.

use crate::error::CtlError;
use patina_proto::v1::vmmd_client::VmmdClient;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Where vmmd listens when nothing else is said.
pub const DEFAULT_HOST: &str = "unix:/run/patina/vmmd.sock";
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A client of the vmmd at an address.
pub type Client = VmmdClient<Channel>;

/// Connects to `host`: `unix:PATH` or `tcp:ADDRESS:PORT`.
pub async fn connect(host: &str) -> Result<Client, CtlError> {
    let endpoint = endpoint(host)?.connect_timeout(CONNECT_DEADLINE);
    let unreachable = |source| CtlError::Unreachable { host: host.to_owned(), source };
    Ok(VmmdClient::new(endpoint.connect().await.map_err(unreachable)?))
}

fn endpoint(host: &str) -> Result<Endpoint, CtlError> {
    let error = || CtlError::Address(host.to_owned());
    let uri = match host.split_once(':') {
        Some(("unix", path)) if path.starts_with('/') => host.to_owned(),
        Some(("tcp", address)) if address.contains(':') => format!("http://{address}"),
        _ => return Err(error()),
    };
    Endpoint::from_shared(uri).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_http_are_addresses() {
        for wrong in ["", "vmmd.sock", "unix:", "unix:relative", "https://a:1", "tcp:", "tcp:a"] {
            assert!(matches!(endpoint(wrong), Err(CtlError::Address(_))), "{wrong}");
        }
        assert!(endpoint(DEFAULT_HOST).is_ok() && endpoint("tcp:127.0.0.1:7001").is_ok());
    }

    #[tokio::test]
    async fn a_missing_vmmd_says_how_to_start_one() {
        let error = connect("unix:/nonexistent/vmmd.sock").await.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("cannot reach vmmd at unix:/nonexistent/vmmd.sock"), "{error}");
        assert!(error.to_string().contains("vmmd --standalone"), "{error}");
    }
}
