//! A gRPC server with the limits of every daemon, health checks and reflection.

use crate::roles::{Callers, Roles};
use tonic::transport::{Server, server::Router};
use tonic_health::ServingStatus;
use tower::layer::util::{Identity, Stack};

/// Most calls at once on one connection: a host has its guests' waiting calls on it.
const STREAMS_MAX: u32 = 65_536;
/// Most cancelled calls of a connection that the server has not got to.
const RESETS_MAX: usize = 65_536;

/// The service cannot be described.
#[derive(Debug, thiserror::Error)]
#[error("describe the service")]
pub struct DescribeError(#[from] tonic_reflection::server::Error);

/// A server that takes many calls on one connection.
#[must_use]
pub fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        // Guests that go away cancel their calls, many at once.
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
}

/// Adds what every daemon answers besides its own services: `grpc.health.v1`, where those of the
/// `names` serve from now on, and reflection of `descriptors`, an encoded FileDescriptorSet. Who
/// may make a call is what `callers` says of its path.
///
/// # Errors
/// The descriptors are none.
pub async fn described(
    server: Server,
    callers: fn(&str) -> Callers,
    descriptors: &'static [u8],
    names: &[&str],
) -> Result<Router<Stack<Roles, Identity>>, DescribeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in names {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(server.layer(Roles(callers)).add_service(health_service).add_service(reflection))
}
