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

/// Connects to `host`: `unix:PATH` or `http://ADDRESS:PORT`.
pub async fn connect(host: &str) -> Result<Client, CtlError> {
    let endpoint = endpoint(host)?.connect_timeout(CONNECT_DEADLINE);
    let unreachable = |source| CtlError::Unreachable { host: host.to_owned(), source };
    Ok(VmmdClient::new(endpoint.connect().await.map_err(unreachable)?))
}

fn endpoint(host: &str) -> Result<Endpoint, CtlError> {
    let error = || CtlError::Address(host.to_owned());
    let known =
        host.strip_prefix("unix:").is_some_and(|path| path.starts_with('/')) || host.starts_with("http://");
    if !known {
        return Err(error());
    }
    Endpoint::from_shared(host.to_owned()).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_http_are_addresses() {
        for wrong in ["", "vmmd.sock", "unix:", "unix:relative", "https://a:1", "ftp://a"] {
            assert!(matches!(endpoint(wrong), Err(CtlError::Address(_))), "{wrong}");
        }
        assert!(endpoint(DEFAULT_HOST).is_ok() && endpoint("http://127.0.0.1:7001").is_ok());
    }

    #[tokio::test]
    async fn a_missing_vmmd_says_how_to_start_one() {
        let error = connect("unix:/nonexistent/vmmd.sock").await.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("cannot reach vmmd at unix:/nonexistent/vmmd.sock"), "{error}");
        assert!(error.to_string().contains("vmmd --standalone"), "{error}");
    }
}
