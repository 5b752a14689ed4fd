//! The connections to vmmd and to the scheduler.

use crate::{
    error::CtlError,
    ssh::{self, SshAddress, SshError},
};
use hyper_util::rt::TokioIo;
use patina_daemon::{
    find_cause,
    tls::{Security, Tls, TlsError},
};
use patina_proto::v1::{GetHostRequest, scheduler_client::SchedulerClient, vmmd_client::VmmdClient};
use std::time::Duration;
use tonic::{
    Code,
    transport::{Channel, Endpoint, Uri},
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

/// Connects to an address. The inner error says that nobody is there.
async fn channel(
    address: &str,
    security: &Security,
) -> Result<Result<Channel, tonic::transport::Error>, CtlError> {
    if address.starts_with("ssh:") {
        return by_ssh(address).await;
    }
    let (endpoint, way) = endpoint(address)?;
    let endpoint = endpoint.connect_timeout(CONNECT_DEADLINE);
    let connected = match (way, security) {
        (Way::Unix, _) | (Way::Tcp | Way::Http, Security::Insecure) => endpoint.connect().await,
        (Way::Tcp | Way::Https, Security::Tls(tls)) => secured(endpoint, tls.clone()).await,
        (Way::Http, Security::Tls(_)) => return Err(CtlError::Plain(address.to_owned())),
        _ => return Err(CtlError::NoCertificate(address.to_owned())),
    };
    match connected {
        Err(error) if !is_unreachable(&error) => Err(CtlError::Tls(error)),
        connected => Ok(connected),
    }
}

/// Whether nobody is there; else the two have met, and one does not take the other.
fn is_unreachable(error: &tonic::transport::Error) -> bool {
    matches!(find_cause::<TlsError>(error), None | Some(TlsError::Connect { .. }))
}

async fn secured(endpoint: Endpoint, tls: Tls) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let host = uri.host().unwrap_or_default();
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            tls.connect(host, uri.port_u16().unwrap_or_default()).await.map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// Connects by way of ssh. If the connection breaks, the next call starts another ssh.
async fn by_ssh(address: &str) -> Result<Result<Channel, tonic::transport::Error>, CtlError> {
    let address: SshAddress = address.parse().map_err(|_| CtlError::Address(address.to_owned()))?;
    let connector = tower::service_fn(move |_: Uri| {
        let address = address.clone();
        async move { ssh::connect(&address).await.map(TokioIo::new) }
    });
    match Endpoint::from_static("http://ssh").connect_with_connector(connector).await {
        Err(error) if find_cause::<SshError>(&error).is_some() => Err(CtlError::Ssh(error)),
        connected => Ok(connected),
    }
}

/// Connects to the vmmd at `host`: `unix:PATH`, `tcp:ADDRESS:PORT` or `ssh://HOST`.
pub async fn connect(host: &str, security: &Security) -> Result<Channel, CtlError> {
    let unreachable = |source| CtlError::Unreachable { host: host.to_owned(), source };
    channel(host, security).await?.map_err(unreachable)
}

/// Connects to a vmmd whose address the scheduler has told.
pub async fn connect_told(address: &str, security: &Security) -> Result<Client, CtlError> {
    not_by_ssh(address)?;
    Ok(VmmdClient::new(connect(address, security).await?))
}

/// What a daemon tells starts no programs.
fn not_by_ssh(told: &str) -> Result<(), CtlError> {
    if told.starts_with("ssh:") { Err(CtlError::ToldSsh(told.to_owned())) } else { Ok(()) }
}

/// Connects to the scheduler at an address.
pub async fn scheduler(address: &str, security: &Security) -> Result<Scheduler, CtlError> {
    Ok(scheduler_on(connect_scheduler(address, security).await?))
}

/// Connects to the scheduler where the vmmd at `host` says on this connection that it is.
pub async fn scheduler_of(host: &str, vmmd: Channel, security: &Security) -> Result<Scheduler, CtlError> {
    let channel = match VmmdClient::new(vmmd.clone()).get_host(GetHostRequest {}).await {
        Ok(answer) => match answer.into_inner().scheduler {
            here if here.is_empty() => vmmd,
            elsewhere => told_scheduler(host, &elsewhere, security).await?,
        },
        // A scheduler of its own, which is no host.
        Err(status) if status.code() == Code::Unimplemented => vmmd,
        Err(status) => return Err(status.into()),
    };
    Ok(scheduler_on(channel))
}

/// A vmmd on another machine tells a path of that machine.
async fn told_scheduler(host: &str, told: &str, security: &Security) -> Result<Channel, CtlError> {
    not_by_ssh(told)?;
    let there: Option<SshAddress> = host.parse().ok();
    match (there, told.strip_prefix("unix:")) {
        (Some(there), Some(path)) => {
            let address = there.with_path(path).map_err(|_| CtlError::Address(told.to_owned()))?;
            connect_scheduler(&address.to_string(), security).await
        }
        _ => connect_scheduler(told, security).await,
    }
}

fn scheduler_on(channel: Channel) -> Scheduler {
    SchedulerClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES)
}

async fn connect_scheduler(address: &str, security: &Security) -> Result<Channel, CtlError> {
    let unreachable = |source| CtlError::NoScheduler { address: address.to_owned(), source };
    channel(address, security).await?.map_err(unreachable)
}

/// How an address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Unix,
    /// With TLS if there is a certificate.
    Tcp,
    Http,
    Https,
}

fn endpoint(host: &str) -> Result<(Endpoint, Way), CtlError> {
    let error = || CtlError::Address(host.to_owned());
    let (uri, way) = match host.split_once(':') {
        Some(("unix", path)) if path.starts_with('/') => (host.to_owned(), Way::Unix),
        Some(("tcp", address)) if address.contains(':') => (format!("http://{address}"), Way::Tcp),
        // As vmmd names its scheduler. TLS is not the library's, so it need not know.
        Some(("http", address)) if address.starts_with("//") => (host.to_owned(), Way::Http),
        Some(("https", address)) if address.starts_with("//") && address[2..].contains(':') => {
            (format!("http:{address}"), Way::Https)
        }
        _ => return Err(error()),
    };
    Ok((Endpoint::from_shared(uri).map_err(|_| error())?, way))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_http_are_addresses() {
        for wrong in ["", "vmmd.sock", "unix:", "unix:relative", "https://a", "tcp:", "tcp:a", "http:a"] {
            assert!(matches!(endpoint(wrong), Err(CtlError::Address(_))), "{wrong}");
        }
        for right in [DEFAULT_HOST, "tcp:127.0.0.1:7001", "http://127.0.0.1:7002", "https://[::1]:7002"] {
            assert!(endpoint(right).is_ok(), "{right}");
        }
    }

    #[tokio::test]
    async fn a_daemon_starts_no_ssh_by_the_address_that_it_tells() {
        let secure = Security::UnixOnly;
        assert!(matches!(connect_told("ssh://h", &secure).await, Err(CtlError::ToldSsh(_))));
        assert!(matches!(told_scheduler("ssh://h", "ssh://g", &secure).await, Err(CtlError::ToldSsh(_))));
        assert!(matches!(told_scheduler("ssh://h", "unix:/a b", &secure).await, Err(CtlError::Address(_))));
    }

    #[tokio::test]
    async fn a_missing_vmmd_says_how_to_start_one() {
        let error = connect("unix:/nonexistent/vmmd.sock", &Security::UnixOnly).await.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("cannot reach vmmd at unix:/nonexistent/vmmd.sock"), "{error}");
        assert!(error.to_string().contains("vmmd --standalone"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_scheduler_is_told_from_a_missing_vmmd() {
        let error = scheduler("unix:/nonexistent/s.sock", &Security::UnixOnly).await.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(
            error.to_string().contains("cannot reach the scheduler at unix:/nonexistent/s.sock"),
            "{error}"
        );
    }
}
