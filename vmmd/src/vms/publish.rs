//! Ports of a VM that begin to be published, or stop, while it runs. Its supervisor does it, which
//! keeps the record.

use super::{
    error::Error,
    host::Host,
    vm::{PortsChange, Vm},
};
use crate::{
    net::ports::Bound,
    plan::spec::{Violation, check_places, check_ports},
};
use patina_proto::v1::PublishedPort;
use std::sync::Arc;

impl Host {
    /// Publishes more ports of a VM that runs: all of them, or none.
    ///
    /// # Errors
    /// There is no such VM, it has ended or is kept as an image first, or a port cannot be had.
    pub async fn publish_ports(&self, name: &str, ports: &[PublishedPort]) -> Result<Arc<Vm>, Error> {
        let ports = checked(ports, check_ports)?;
        let vm = self.find(name).await?;
        let bound = Bound::bind(&ports).await?;
        vm.change_ports(PortsChange::Publish(bound)).await.map(|()| vm)
    }

    /// Stops publishing ports of a VM: all of them, or none.
    ///
    /// # Errors
    /// There is no such VM, it has ended, or it does not publish one of them.
    pub async fn unpublish_ports(&self, name: &str, ports: &[PublishedPort]) -> Result<Arc<Vm>, Error> {
        let places = checked(ports, check_places)?;
        let vm = self.find(name).await?;
        vm.change_ports(PortsChange::Close(places)).await.map(|()| vm)
    }
}

fn checked<T>(
    ports: &[PublishedPort],
    check: fn(&[PublishedPort], &mut Vec<Violation>) -> Vec<T>,
) -> Result<Vec<T>, Error> {
    let mut wrong = Vec::new();
    let checked = check(ports, &mut wrong);
    if ports.is_empty() {
        wrong.push(Violation::new("ports", "name at least one".to_owned()));
    }
    if wrong.is_empty() { Ok(checked) } else { Err(Error::Invalid(wrong)) }
}
