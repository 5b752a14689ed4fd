//! The operator's interface: `patina.v1.Vmmd`.
//!
//! - [`service`]: the calls; [`exec`], [`console`], [`logs`] the streaming ones.
//! - [`status`]: errors as rich statuses; [`convert`]: VMs as messages; [`facts`]: what this host is.
//!
//! Nothing is decided here: every call checks its message, asks [`crate::vms`], and says the answer.

pub mod console;
pub mod convert;
pub mod exec;
pub mod facts;
pub mod logs;
pub mod service;
pub mod status;

use std::pin::Pin;
use tokio_stream::Stream;
use tonic::Status;

/// Longest message that is taken, bytes: an exec start of 32 KiB or 64 KiB of input, and what surrounds them.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Messages between a stream's task and its client.
const STREAM_QUEUE: usize = 8;

/// The answers of a streaming call.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
