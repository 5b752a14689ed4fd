//! The CPU baseline of a VM that boots.

use super::{error::Error, host::Host};
use crate::{
    plan::{
        baseline::{self, Baseline, BaselineError},
        spec::Violation,
    },
    process::host_check,
};
use patina_proto::v1::{HostStatus, ListHostsRequest};
use scheduler::client::Client;
use std::time::Duration;

/// Most pages of hosts that are read: more than any scheduler has.
const PAGES_MAX: usize = 100;

/// What names hosts that there are not is wrong with the request.
fn failed(error: BaselineError) -> Error {
    match error {
        BaselineError::NoHost(_) | BaselineError::SameName { .. } => {
            Error::Invalid(vec![Violation::new("cpu_baseline.hosts", error.to_string())])
        }
        _ => error.into(),
    }
}

impl Host {
    /// The baseline of this host and those that are named by name or id; with no names, of all that
    /// are up and are not drained.
    ///
    /// # Errors
    /// The scheduler does not answer, does not know a host, or the hosts are too different.
    pub(super) async fn baseline(&self, named: &[String]) -> Result<Baseline, Error> {
        if self.tickets.address().is_empty() {
            return Err(BaselineError::Alone.into());
        }
        let own = host_check::facts().ok_or(BaselineError::UnknownSelf)?;
        let hosts = self.listed_hosts().await?;
        baseline::of((self.tickets.host_id(), own), &hosts, named).map_err(failed)
    }

    async fn listed_hosts(&self) -> Result<Vec<HostStatus>, Error> {
        let (mut hosts, mut page_token) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let request = ListHostsRequest { page_token, ..ListHostsRequest::default() };
            let list = |mut client: Client, _| {
                let request = request.clone();
                async move { client.list_hosts(request).await }
            };
            let page = self.tickets.ask("list hosts for a CPU baseline", Duration::ZERO, list).await?;
            hosts.extend(page.hosts);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        Ok(hosts)
    }
}
