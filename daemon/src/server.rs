//! A gRPC server with the limits of every daemon, health checks and reflection.

use tonic::{
    server::NamedService,
    transport::{Server, server::Router},
};

/// Most calls at once on one connection: a host has its guests' waiting calls on it.
const STREAMS_MAX: u32 = 65_536;
/// Most cancelled calls of a connection that the server has not got to.
const RESETS_MAX: usize = 65_536;

/// The service cannot be described.
#[derive(Debug, thiserror::Error)]
#[error("describe the service: {0}")]
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

/// Adds what every daemon answers besides its own service `S`: `grpc.health.v1`, where `S` serves from now on, and reflection of
/// `descriptors`, an encoded FileDescriptorSet.
///
/// # Errors
/// The descriptors are none.
pub async fn described<S: NamedService>(
    mut server: Server,
    descriptors: &'static [u8],
) -> Result<Router, DescribeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<S>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(server.add_service(health_service).add_service(reflection))
}
