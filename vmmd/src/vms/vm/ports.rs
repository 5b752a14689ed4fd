//! Changes of a VM's published ports, which its supervisor makes.

use super::Vm;
use crate::{net::ports::Bound, vms::error::Error};
use std::net::SocketAddr;
use tokio::sync::oneshot;

/// What is to change of a VM's published ports.
#[derive(Debug)]
pub(in crate::vms) enum PortsChange {
    /// These are published, too.
    Publish(Bound),
    /// Those at these places of the host are not published any more.
    Close(Vec<SocketAddr>),
}

/// A change, and who waits for it.
#[derive(Debug)]
pub(in crate::vms) struct PortsOrder {
    pub change: PortsChange,
    pub answer: oneshot::Sender<Result<(), Error>>,
}

impl Vm {
    /// Changes which ports the host publishes for it.
    ///
    /// # Errors
    /// It has ended, or cannot be changed so.
    pub(in crate::vms) async fn change_ports(&self, change: PortsChange) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let ended = |()| Error::NotReady { name: self.record.name.clone(), state: "ended" };
        let order = PortsOrder { change, answer };
        self.change_ports.send(order).await.map_err(|_| ended(()))?;
        answered.await.map_err(|_| ended(()))?
    }
}
