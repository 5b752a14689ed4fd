//! The connections to vmmd and to the scheduler.

use crate::error::CtlError;
use patina_proto::v1::{GetHostRequest, scheduler_client::SchedulerClient, vmmd_client::VmmdClient};
use std::time::Duration;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

/// Where vmmd listens when nothing else is said.
pub const DEFAULT_HOST: &str = "unix:/run/patina/vmmd.sock";
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer that is taken, bytes: a page of tickets with all their results.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// A client of the vmmd at an address.
pub type Client = VmmdClient<Channel>;
/// A client of the scheduler of that host.
pub type Scheduler = SchedulerClient<Channel>;

async fn channel(address: &str) -> Result<Result<Channel, tonic::transport::Error>, CtlError> {
    Ok(endpoint(address)?.connect_timeout(CONNECT_DEADLINE).connect().await)
}

/// Connects to `host`: `unix:PATH` or `tcp:ADDRESS:PORT`.
pub async fn connect(host: &str) -> Result<Client, CtlError> {
    let unreachable = |source| CtlError::Unreachable { host: host.to_owned(), source };
    Ok(VmmdClient::new(channel(host).await?.map_err(unreachable)?))
}

/// Connects to the scheduler: the one named, or where the vmmd at `host` says that it is.
pub async fn scheduler(host: &str, named: Option<&str>) -> Result<Scheduler, CtlError> {
    let channel = match named {
        Some(address) => connect_scheduler(address).await?,
        None => {
            let unreachable = |source| CtlError::Unreachable { host: host.to_owned(), source };
            let same = channel(host).await?.map_err(unreachable)?;
            match VmmdClient::new(same.clone()).get_host(GetHostRequest {}).await {
                Ok(host) => match host.into_inner().scheduler {
                    here if here.is_empty() => same,
                    elsewhere => connect_scheduler(&elsewhere).await?,
                },
                // A scheduler of its own, which is no host.
                Err(status) if status.code() == Code::Unimplemented => same,
                Err(status) => return Err(status.into()),
            }
        }
    };
    Ok(SchedulerClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES))
}

async fn connect_scheduler(address: &str) -> Result<Channel, CtlError> {
    let unreachable = |source| CtlError::NoScheduler { address: address.to_owned(), source };
    channel(address).await?.map_err(unreachable)
}

fn endpoint(host: &str) -> Result<Endpoint, CtlError> {
    let error = || CtlError::Address(host.to_owned());
    let uri = match host.split_once(':') {
        Some(("unix", path)) if path.starts_with('/') => host.to_owned(),
        Some(("tcp", address)) if address.contains(':') => format!("http://{address}"),
        // As vmmd names its scheduler.
        Some(("http", address)) if address.starts_with("//") => host.to_owned(),
        _ => return Err(error()),
    };
    Endpoint::from_shared(uri).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_http_are_addresses() {
        for wrong in ["", "vmmd.sock", "unix:", "unix:relative", "https://a:1", "tcp:", "tcp:a", "http:a"] {
            assert!(matches!(endpoint(wrong), Err(CtlError::Address(_))), "{wrong}");
        }
        for right in [DEFAULT_HOST, "tcp:127.0.0.1:7001", "http://127.0.0.1:7002"] {
            assert!(endpoint(right).is_ok(), "{right}");
        }
    }

    #[tokio::test]
    async fn a_missing_vmmd_says_how_to_start_one() {
        let error = connect("unix:/nonexistent/vmmd.sock").await.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("cannot reach vmmd at unix:/nonexistent/vmmd.sock"), "{error}");
        assert!(error.to_string().contains("vmmd --standalone"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_scheduler_is_told_from_a_missing_vmmd() {
        let error = scheduler(DEFAULT_HOST, Some("unix:/nonexistent/s.sock")).await.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(
            error.to_string().contains("cannot reach the scheduler at unix:/nonexistent/s.sock"),
            "{error}"
        );
        let error = scheduler("unix:/nonexistent/vmmd.sock", None).await.unwrap_err();
        assert!(matches!(error, CtlError::Unreachable { .. }), "{error}");
    }
}
