//! Ports that are published, or not any longer, while a VM runs.

use super::Supervisor;
use crate::{
    plan::spec::{PORTS_MAX, Port},
    store::{Lasting, record::Record},
    vms::{
        blocking::blocking,
        error::Error,
        vm::{PortsChange, PortsOrder},
    },
};

impl Supervisor {
    pub(super) async fn change_ports(&mut self, PortsOrder { change, answer }: PortsOrder) {
        let changed = self.changed_ports(change).await;
        if changed.is_ok() {
            tracing::info!(ports = ?self.vm.record.ports, "its published ports have changed");
            self.publish();
        }
        if answer.send(changed).is_err() {
            tracing::debug!("who changed the published ports has gone");
        }
    }

    /// All of it, or nothing.
    async fn changed_ports(&mut self, change: PortsChange) -> Result<(), Error> {
        // Its image must not hold what somebody sent it.
        if self.vm.keep.is_some() || self.unpublished.is_some() {
            return Err(Error::NotReady { name: self.vm.record.name.clone(), state: "booting" });
        }
        let ports = self.ports_after(&change)?;
        // The record comes first: a vmmd that is started again publishes what it says.
        let (dir, record) = (self.vm.dir.clone(), Record { ports, ..self.vm.record.clone() });
        let written = move || dir.save(&record, Lasting::Process).map(|()| record).map_err(Error::from);
        self.vm.record = blocking(written).await?;
        match change {
            PortsChange::Publish(bound) => {
                if let Some(ip) = self.vm.record.net.ip(self.vm.record.vmid) {
                    self.vm.published.get_or_insert_default().add(bound.serve(ip));
                }
            }
            PortsChange::Close(places) => {
                if let Some(published) = &mut self.vm.published {
                    published.close(&places).await;
                }
            }
        }
        Ok(())
    }

    fn ports_after(&self, change: &PortsChange) -> Result<Vec<Port>, Error> {
        let name = || self.vm.record.name.clone();
        let mut ports = self.vm.record.ports.clone();
        match change {
            PortsChange::Publish(bound) => {
                // One that this vmmd could not publish again, as it took the VM over, is there
                // already.
                ports.retain(|port| bound.ports().all(|new| new.host != port.host));
                ports.extend(bound.ports());
                if ports.len() > PORTS_MAX {
                    return Err(Error::TooManyPorts { name: name(), all: ports.len() });
                }
            }
            PortsChange::Close(places) => {
                let is_other = |place| ports.iter().all(|port| port.host != place);
                if let Some(place) = places.iter().copied().find(|place| is_other(*place)) {
                    return Err(Error::NoSuchPort { name: name(), place });
                }
                ports.retain(|port| !places.contains(&port.host));
            }
        }
        Ok(ports)
    }
}
