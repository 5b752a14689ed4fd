//! `patina.v1.Scheduler` and `patina.v1.HostScheduler` on an engine.
//!
//! - `service`: the calls of operators. `host_service`: those of hosts. `host`: a host's stream.
//!   `watch`: a watcher's.
//! - `access`: who may make which call.
//! - `check`: requests, checked field by field. `convert`: answers. `status`: errors.

pub mod access;
mod check;
mod convert;
mod host;
mod host_service;
mod service;
pub mod status;
mod watch;

pub use check::facts as read_facts;
pub use host_service::HostService;
pub use service::Service;

use crate::engine::Engine;
use patina_proto::v1::{host_scheduler_server::HostSchedulerServer, scheduler_server::SchedulerServer};

/// Longest message of a caller: what a clone leaves, or all clones of a host.
pub const MESSAGE_MAX_BYTES: usize = 2 << 20;

/// The service for operators, to be added to a server of [`patina_daemon::server::builder`], which
/// does not limit the calls of a connection to few: those that wait in the queue or at a barrier
/// would keep others out.
#[must_use]
pub fn server(engine: Engine) -> SchedulerServer<Service> {
    SchedulerServer::new(Service::new(engine)).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// The service for hosts, to be added to the same server.
#[must_use]
pub fn host_server(engine: Engine) -> HostSchedulerServer<HostService> {
    HostSchedulerServer::new(HostService::new(engine)).max_decoding_message_size(MESSAGE_MAX_BYTES)
}
